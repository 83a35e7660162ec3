//! Parse, set up the log, run the agent or a command, turn the result into an exit code.

fn main() {}
