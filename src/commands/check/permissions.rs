//! Whether the account may do all that an agent calls, found out by calls that change nothing.

use super::{Report, user};
use crate::commands::Error;
use crate::config::Config;
use crate::queue::redis::admin::Operator;
use crate::queue::redis::list::Keys;
use crate::queue::{self, Denied, Pop};

/// Tries each call, and says which rules of the account are missing.
pub(super) fn check(config: &Config, operator: &mut Operator, report: &mut Report) -> Result<(), Error> {
    let keys = operator.keys().clone();
    let mut refuses = |call: &Call| operator.query(&call.command(&keys)).err().filter(is_refused);
    let mut missing: Vec<&str> = Vec::new();
    let mut first_error = None;
    for call in CALLS {
        if let Some(error) = refuses(call) {
            missing.push(call.name());
            first_error = first_error.or(Some(error));
        }
    }
    let wait = |refuses: &mut dyn FnMut(&Call) -> Option<queue::Error>| match config.pop {
        Pop::Blpop => ("BLPOP", refuses(&BLPOP)),
        Pop::Peek => match refuses(&BLMOVE) {
            Some(queue::Error::NoCommand(_)) => ("BRPOPLPUSH", refuses(&BRPOPLPUSH)),
            answer => ("BLMOVE", answer),
        },
    };
    let (way, error) = wait(&mut refuses);
    match (way, &error) {
        (_, Some(_)) => {
            missing.push(way);
            first_error = first_error.or(error);
        }
        ("BLMOVE", None) => report.ok("wait", "by BLMOVE, which looks and takes nothing")?,
        ("BLPOP", None) => {
            report.note("wait", "by BLPOP, as '--pop blpop' says: it can lose the one message it has just popped")?
        }
        (_, None) if config.ordered => {
            report.note("wait", "by asking ten times a second: this server has no BLMOVE (6.2)")?
        }
        _ => report
            .note("wait", "by BRPOPLPUSH, which may put the newest message first: this server has no BLMOVE (6.2)")?,
    }
    let looks: Vec<&str> = LOOKS.iter().filter(|call| refuses(call).is_some()).map(Call::name).collect();

    let account = user(config);
    match first_error {
        None => report.ok("permissions", format!("all {} commands of an agent", CALLS.len() + 1))?,
        Some(error) => {
            let remedy = if matches!(error, queue::Error::NoCommand(_)) {
                format!(
                    "this server does not know {}: a 'rename-command' in its configuration hides them, or it is not Redis",
                    missing.join(", ")
                )
            } else if matches!(error, queue::Error::NotPermitted(Denied::Key, _)) {
                let queue = keys.queue();
                let beside = keys.named("id").trim_end_matches("id");
                format!(
                    "the account '{account}' may not use the queue's keys: 'ACL SETUSER {account} ~{queue} ~{beside}*'"
                )
            } else {
                let rules: Vec<String> = missing.iter().map(|name| format!("+{}", name.to_lowercase())).collect();
                format!(
                    "the account '{account}' may not use {}: 'ACL SETUSER {account} {}'",
                    missing.join(", "),
                    rules.join(" ")
                )
            };
            report.mend("permissions", remedy)?;
        }
    }
    if !looks.is_empty() && looks.iter().all(|name| !missing.contains(name)) {
        let words = format!(
            "'check', 'status', 'dead', 'endpoint', 'retry' and 'waiting' need {} as well, which the account '{account}' may not use",
            looks.join(", ")
        );
        report.note("permissions", words)?;
    }
    Ok(())
}

/// A call that Redis judges by its account and then does not carry out: it reads nothing or
/// next to nothing, or is refused for what stands in the place of a number.
struct Call(&'static [&'static str]);

/// What an agent calls, by itself and in its moves. A word in angle brackets is a key; `<*>` are
/// all, with their number before them.
const CALLS: &[Call] = &[
    Call(&["EVAL", "return 1", "<*>"]),
    Call(&["EVALSHA", "0000000000000000000000000000000000000000", "<*>"]),
    Call(&["TIME"]),
    Call(&["TYPE", "<queue>"]),
    Call(&["LLEN", "<queue>"]),
    Call(&["LRANGE", "<queue>", "1", "0"]),
    Call(&["LTRIM", "<queue>", "no", "number"]),
    Call(&["GET", "<id>"]),
    Call(&["SET", "<id>", "0", "NO-OPTION"]),
    // Of another type, so that not even an entry without a name goes.
    Call(&["HDEL", "<agents>", ""]),
    Call(&["HEXISTS", "<messages>", ""]),
    Call(&["HGET", "<messages>", ""]),
    Call(&["HLEN", "<history>"]),
    Call(&["HMGET", "<history>", ""]),
    Call(&["HSET", "<failures>", "a", "pair", "and a half"]),
    Call(&["ZADD", "<retry>", "no number", ""]),
    Call(&["ZCARD", "<dead>"]),
    Call(&["ZRANGE", "<agents>", "1", "0"]),
    Call(&["ZRANGEBYLEX", "<waiting>", "[b", "[a"]),
    Call(&["ZREVRANGEBYLEX", "<waiting>", "[a", "[b"]),
    Call(&["ZREVRANGEBYSCORE", "<lanes>", "0", "1"]),
    Call(&["ZRANGEBYSCORE", "<lanes>", "1", "0"]),
    Call(&["ZREM", "<calls>", ""]),
    Call(&["ZREVRANGE", "<inflight>", "1", "0"]),
    Call(&["ZSCORE", "<dead>", ""]),
];

const BLMOVE: Call = Call(&["BLMOVE", "<queue>", "<queue>", "LEFT", "LEFT", "no number"]);

const BRPOPLPUSH: Call = Call(&["BRPOPLPUSH", "<queue>", "<queue>", "no number"]);

const BLPOP: Call = Call(&["BLPOP", "<queue>", "no number"]);

/// What only the operator's commands call.
const LOOKS: &[Call] = &[
    Call(&["ZCOUNT", "<inflight>", "1", "0"]),
    Call(&["ZLEXCOUNT", "<waiting>", "[b", "[a"]),
    Call(&["HSCAN", "<calls>", "no cursor"]),
    Call(&["ZSCAN", "<agents>", "no cursor"]),
];

impl Call {
    fn name(&self) -> &'static str {
        self.0[0]
    }

    fn command(&self, keys: &Keys) -> redis::Cmd {
        let mut command = redis::Cmd::new();
        for word in self.0 {
            match word.strip_prefix('<').and_then(|word| word.strip_suffix('>')) {
                Some("*") => command.arg(keys.all().len()).arg(keys.all()),
                Some("queue") => command.arg(keys.queue()),
                Some(name) => command.arg(keys.named(name)),
                None => command.arg(*word),
            };
        }
        command
    }
}

/// By the account, or because the server does not know the command.
pub(super) fn is_refused(error: &queue::Error) -> bool {
    matches!(error, queue::Error::NotPermitted(..) | queue::Error::NoCommand(_))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The commands that a move calls, by itself or through `all`.
    fn called(script: &str) -> impl Iterator<Item = &str> {
        ["redis.call('", "all('"]
            .into_iter()
            .flat_map(move |call| script.split(call).skip(1).filter_map(|rest| rest.split('\'').next()))
    }

    #[test]
    fn every_command_of_the_moves_is_checked() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/queue/redis/scripts");
        let scripts = |dir: &Path| -> Vec<String> {
            let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
            files
                .filter(|path| path.extension().is_some_and(|e| e == "lua"))
                .map(|p| std::fs::read_to_string(p).unwrap())
                .collect()
        };
        let (moves, looks) = (scripts(&dir), scripts(&dir.join("../admin")));
        assert!(moves.len() > 10 && looks.len() > 3);
        let knows = |calls: &[Call], name: &str| calls.iter().any(|call| call.name() == name);
        // Adopting what the prototype left is not every agent's.
        for name in moves.iter().flat_map(|script| called(script)).filter(|name| *name != "RPUSH") {
            assert!(knows(CALLS, name), "{name} is called by a move and not checked");
        }
        for name in looks.iter().flat_map(|script| called(script)) {
            assert!(knows(CALLS, name) || knows(LOOKS, name), "{name} is called by a look and not checked");
        }
    }

    #[test]
    fn calls_name_their_keys() {
        let keys = Keys::new("p.outbound_transport");
        for call in CALLS.iter().chain(LOOKS).chain([&BLMOVE, &BRPOPLPUSH, &BLPOP]) {
            let packed = String::from_utf8(call.command(&keys).get_packed_command()).unwrap();
            assert!(call.name() == "TIME" || packed.contains("p.outbound_transport"), "{packed}");
        }
    }
}
