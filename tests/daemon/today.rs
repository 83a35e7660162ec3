//! Today's ACA-Py with its Redis plugin: the agent takes the place of the plugin's own deliverer, in
//! that one's environment, on its queue, and with what it left behind.

use std::process::{Command, Stdio};

use super::support::{Agent, Answer, Redis, SOON, Sink, eventually_eq, run_to_end, wire};

/// The binary with nothing but the environment that the plugin's deliverer would have.
fn in_place_of_the_deliverer(redis: &Redis, further: &[(&str, &str)]) -> Command {
    let mut command = Agent::command();
    command.env("REDIS_SERVER_URL", redis.url()).envs(further.iter().copied());
    command
}

fn output(mut command: Command, args: &[&str]) -> (Option<i32>, String) {
    let output = command.args(args).stdin(Stdio::null()).output().expect("the binary can be started");
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn the_environment_of_the_deliverer_is_enough_and_the_first_line_says_so() {
    for (queue, variables, said) in [
        ("acapy_outbound", &[][..], "Redis by REDIS_SERVER_URL, the queue by the default of TOPIC_PREFIX"),
        ("bob_outbound", &[("TOPIC_PREFIX", "bob")], "Redis by REDIS_SERVER_URL, the queue by TOPIC_PREFIX"),
    ] {
        let (redis, sink) = (Redis::of(queue), Sink::new(|_| Answer::ok()));
        let mut agent = Agent::start_as(&redis, in_place_of_the_deliverer(&redis, variables));
        let log = agent.log();
        let first = log.lines().next().unwrap_or_default();
        assert!(first.contains(&format!("'{queue}'")) && first.contains(said), "{log}");
        redis.push(&wire::envelope(&sink.url(), b"hello"));
        eventually_eq("it arrives", SOON, 1, || sink.n_delivered());
        redis.wait_empty(SOON);
        let (code, checked) = output(in_place_of_the_deliverer(&redis, variables), &["check"]);
        assert!(code == Some(0) && checked.contains(said) && checked.contains(&format!("'{queue}'")), "{checked}");
        agent.term();
        assert_eq!(agent.wait_exit(SOON), Some(0));
    }
}

#[test]
fn the_whole_key_can_be_given_and_what_is_typed_wins() {
    let (redis, sink) = (Redis::of("my topic"), Sink::new(|_| Answer::ok()));
    let mut command = in_place_of_the_deliverer(&Redis::of("elsewhere"), &[("TOPIC_PREFIX", "other")]);
    command.args(["-oq", &redis.url(), "--queue", "my topic"]);
    let agent = Agent::start_as(&redis, command);
    assert!(!agent.log().contains("TOPIC_PREFIX"), "{}", agent.log());
    let enqueue = ["enqueue", "-oq", &redis.url(), "--queue", "my topic", "--endpoint", &sink.url(), "--text", "hi"];
    let output = run_to_end(&enqueue);
    assert!(output.status.success(), "{output:?}");
    eventually_eq("it arrives", SOON, 1, || sink.n_delivered());
}

#[test]
fn a_python_class_in_the_place_of_the_url_is_told_and_what_to_give_instead() {
    let mut command = Agent::command();
    let class = "aries_cloudagent.transport.outbound.queue.redis:RedisOutboundQueue";
    command.env("ACAPY_OUTBOUND_TRANSPORT_QUEUE", class);
    let (code, said) = output(command, &[]);
    assert_eq!(code, Some(2), "{said}");
    for words in [class, "Python class", "ACA-Py 0.7.1 to 0.7.3", "-oq redis://host:6379"] {
        assert!(said.contains(words), "{said}");
    }
}
