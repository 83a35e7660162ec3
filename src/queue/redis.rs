//! The queue on a Redis LIST, one file to a purpose, from the bottom up:
//! `names` (from a name to addresses in bounded time), `stream` (an open connection),
//! `errors` (what Redis's errors mean), `server` (opens a connection to one),
//! `sentinel` and `locate` (which server has the queue), `arguments` and `connection` (kept, replaced, runs the moves),
//! `list` (the queue itself; its moves are `scripts/*.lua`, one atomic step each), `adopt` (what the plugin's
//! deliverer has put off), `advice` (what an operator should change) and `admin` (what only operators see).

pub mod admin;
pub mod adopt;
pub mod advice;
pub mod arguments;
pub mod connection;
pub mod errors;
pub mod list;
pub mod locate;
pub mod names;
pub mod sentinel;
pub mod server;
pub mod stream;
