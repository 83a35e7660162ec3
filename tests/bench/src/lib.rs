//! What the measuring programs share: private servers to measure against, the processes that are
//! measured, the messages, and the figures that come of it. It measures nothing by itself.

pub mod closing;
pub mod figures;
pub mod ground;
pub mod load;
pub mod picture;
pub mod program;
pub mod proxy;
pub mod recipient;
