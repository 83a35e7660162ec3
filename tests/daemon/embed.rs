//! An agent inside another program: `examples/embed.rs`, as it stands.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::wire::envelope;
use crate::support::{Answer, Redis, SOON, Sink, eventually, forget_package};

/// As its head says; it may have to be built first, and to wait for another cargo.
const BUILT: Duration = Duration::from_secs(180);

fn example() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    forget_package(&mut command);
    command.args(["run", "--quiet", "--locked", "--example", "embed"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    command
}

#[test]
fn the_example_delivers_and_gives_back_what_is_left_when_it_stops() {
    let redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    redis.push(&envelope(&sink.url(), b"by another program"));
    let mut child = example().arg(redis.url()).stdin(Stdio::piped()).spawn().unwrap();
    eventually("it delivers", BUILT, || sink.n_delivered() == 1);
    assert_eq!(redis.agents().len(), 1);
    drop(child.stdin.take());
    eventually("it ends", SOON, || child.try_wait().unwrap().is_some_and(|status| status.success()));
    assert_eq!(redis.agents().len(), 0);
}
