//! The history of one message, for the day it is lost: what the producer and the recipients know of
//! it, what the agents' logs say of its id, what Redis was told about it, and which faults there were.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use super::agents::Slot;
use super::faults::Injected;
use super::ledger::Message;
use crate::support::Redis;

/// No history is longer than this; its beginning is what tells most.
const MOST_LINES: usize = 120;

/// All that is known of a message.
pub fn of(number: usize, message: &Message, slots: &[Slot], injected: &[Injected], aof: Option<&[u8]>) -> String {
    let mut out = format!(
        "--- history of message #{number}, {:?}, {} bytes, for recipient {}\n",
        message.kind, message.size, message.recipient
    );
    let since = |at: Instant| match at.checked_duration_since(message.pushed) {
        Some(after) => format!("{:+.3} s", after.as_secs_f64()),
        None => format!("-{:.3} s", (message.pushed - at).as_secs_f64()),
    };
    let _ = writeln!(out, "pushed: {:?}", message.push);
    for arrival in &message.arrivals {
        let _ = writeln!(
            out,
            "arrived at {} from agent {}: answered {:?}",
            since(arrival.at),
            arrival.agent,
            arrival.status
        );
    }
    let last = message.arrivals.last().map_or(message.pushed, |arrival| arrival.at);
    for fault in injected {
        if fault.to.is_none_or(|to| to >= message.pushed) && fault.from <= last + std::time::Duration::from_secs(5) {
            let to = fault.to.map_or("the end".into(), since);
            let _ = writeln!(out, "fault from {} to {to}: {} {:?}", since(fault.from), fault.fault.name(), fault.scope);
        }
    }
    let mut ids: BTreeSet<String> = message.id.iter().cloned().collect();
    let commands = aof.map(commands).unwrap_or_default();
    let mark = format!("#{number} ");
    for words in &commands {
        // HSET messages id bytes id bytes…
        for pair in words.windows(2) {
            let id = String::from_utf8_lossy(pair[0]);
            if id.len() == 16 && id.bytes().all(|b| b.is_ascii_digit()) && contains(pair[1], mark.as_bytes()) {
                ids.insert(id.into_owned());
            }
        }
    }
    let _ = writeln!(out, "ids: {ids:?}");
    let mut n_lines = 0;
    let mut time = String::new();
    for words in &commands {
        if let [stamp] = words.as_slice() {
            time = String::from_utf8_lossy(stamp).into_owned();
            continue;
        }
        let about = words
            .iter()
            .any(|word| contains(word, mark.as_bytes()) || ids.iter().any(|id| contains(word, id.as_bytes())));
        if about && n_lines < MOST_LINES {
            n_lines += 1;
            let _ = writeln!(out, "Redis {time}: {}", shown(words, &ids));
        }
    }
    for slot in slots {
        let log = fs::read(&slot.log).unwrap_or_default();
        for line in String::from_utf8_lossy(&log).lines() {
            if ids.iter().any(|id| line.contains(id)) && n_lines < MOST_LINES {
                n_lines += 1;
                let _ = writeln!(out, "agent {}: {line}", slot.n);
            }
        }
    }
    out
}

/// What Redis has written down.
pub fn append_only_file(redis: &Redis) -> Option<Vec<u8>> {
    let mut client = redis.try_client().ok()?;
    let dir: Vec<String> = redis::cmd("CONFIG").arg(&["GET", "dir"]).query(&mut client).ok()?;
    let dir = PathBuf::from(dir.get(1)?);
    if let Ok(parts) = fs::read_dir(dir.join("appendonlydir")) {
        let mut parts: Vec<_> = parts.flatten().map(|part| part.path()).collect();
        parts.retain(|part| part.to_string_lossy().ends_with(".incr.aof"));
        parts.sort();
        return Some(parts.iter().filter_map(|part| fs::read(part).ok()).flatten().collect());
    }
    fs::read(dir.join("appendonly.aof")).ok()
}

/// The commands of an append-only file; a time stamp is a command of one word.
fn commands(aof: &[u8]) -> Vec<Vec<&[u8]>> {
    let mut commands = Vec::new();
    let mut at = 0;
    while let Some(line) = line(aof, &mut at) {
        match line.first() {
            Some(b'#') => commands.push(vec![line]),
            Some(b'*') => {
                let n = number(&line[1..]);
                let mut words = Vec::new();
                for _ in 0..n {
                    let Some(header) = self::line(aof, &mut at) else { return commands };
                    let length = number(header.get(1..).unwrap_or_default());
                    let Some(word) = aof.get(at..at + length) else { return commands };
                    words.push(word);
                    at += length + 2;
                }
                commands.push(words);
            }
            _ => return commands,
        }
    }
    commands
}

fn line<'a>(bytes: &'a [u8], at: &mut usize) -> Option<&'a [u8]> {
    let rest = bytes.get(*at..)?;
    let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
    *at += end + 2;
    Some(&rest[..end])
}

fn number(digits: &[u8]) -> usize {
    std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// The first words, and those about the ids.
fn shown(words: &[&[u8]], ids: &BTreeSet<String>) -> String {
    let mut out = String::new();
    for (n, word) in words.iter().enumerate() {
        let text: String = String::from_utf8_lossy(word).chars().take(60).collect();
        let about = ids.iter().any(|id| text.contains(id.as_str()));
        let before = n > 0 && words.get(n + 1).is_some_and(|next| ids.iter().any(|id| contains(next, id.as_bytes())));
        if n < 4 || about || before {
            let _ = write!(out, "{} ", text.replace(['\n', '\r'], "|"));
        }
    }
    out
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}
