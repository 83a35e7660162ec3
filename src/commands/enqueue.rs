//! Pushes one message, or the same one several times, exactly as ACA-Py would. Refuses what
//! the agent could never deliver, so that a slip of the keyboard does not become a dead letter.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};

use super::{Error, Exit};
use crate::config::{Enqueue, Payload};
use crate::envelope::{Envelope, Format};
use crate::queue::redis::locate::connect;
use crate::queue::redis::server::Server;
use crate::queue::redis::stream::Connection;
use crate::text::redacted;

const CONTENT_TYPE: &str = "Content-Type";
/// Redis takes no value over 512 MiB; this leaves room for headers and endpoint. What JSON makes of it may
/// be a third more, and then Redis refuses it.
const LARGEST_PAYLOAD: u64 = (512 << 20) - (1 << 20);
/// Bytes pushed with one command, so that a large `--count` stays small in memory.
const PUSHED_AT_ONCE: usize = 4 << 20;

/// Pushes and says so.
///
/// # Errors
///
/// `Usage` for an endpoint, header or payload that could not be delivered; `Failed` if
/// Redis cannot be reached or refuses.
pub fn run(options: &Enqueue) -> Result<Exit, Error> {
    let format = options.format.unwrap_or_else(|| Format::of_key(&options.redis.key()));
    let headers = headers(&options.headers, format)?;
    let payload = payload(&options.payload)?;
    let bytes = message(format, &headers, &options.endpoint, &payload)?;

    let server = Server::from(&options.redis);
    let mut connection = connect(&server, &options.redis.key())?;
    let waiting = push(&mut connection, &server, options.redis.key(), &bytes, options.count)?;
    let mut out = io::stdout().lock();
    let plural = if options.count == 1 { "" } else { "s" };
    writeln!(
        out,
        "pushed {} message{plural} of {} bytes, as {}, for {} onto {} at {}; its length is now {waiting}",
        options.count,
        payload.len(),
        format.name(),
        redacted(&options.endpoint),
        options.redis.key(),
        options.redis.url.shown(),
    )?;
    Ok(Exit::Done)
}

/// What is pushed: only what the agent would accept.
fn message(format: Format, headers: &[(&str, &str)], endpoint: &str, payload: &[u8]) -> Result<Vec<u8>, Error> {
    let bytes = format.encode(headers.iter().copied(), endpoint, payload);
    match Envelope::decode(bytes) {
        Ok(envelope) => Ok(envelope.into_raw()),
        Err(malformed) => {
            Err(Error::Usage(format!("this could not be delivered: {malformed}; see '--endpoint' and '--header'")))
        }
    }
}

fn headers(given: &[(String, String)], format: Format) -> Result<Vec<(&str, &str)>, Error> {
    let mut headers: Vec<(&str, &str)> = Vec::with_capacity(given.len() + 1);
    if !given.iter().any(|(name, _)| name.eq_ignore_ascii_case(CONTENT_TYPE)) {
        // What ACA-Py sends with a packed message.
        headers.push((CONTENT_TYPE, format.content_type()));
    }
    for (name, value) in given {
        if headers.iter().any(|(other, _)| other.eq_ignore_ascii_case(name)) {
            return Err(Error::Usage(format!("option '--header': '{name}' is given twice")));
        }
        headers.push((name, value));
    }
    Ok(headers)
}

fn payload(from: &Payload) -> Result<Vec<u8>, Error> {
    match from {
        Payload::Text(text) => Ok(text.clone().into_bytes()),
        Payload::File(path) => {
            let cannot = |error| Error::Failed(format!("cannot read '{}': {error}", path.display()));
            read_bounded(File::open(path).map_err(cannot)?).map_err(cannot)
        }
        Payload::Unsaid if io::stdin().is_terminal() => {
            Err(Error::Usage("no payload: name a file, '-' for standard input, or give '--text STRING'".to_owned()))
        }
        Payload::Stdin | Payload::Unsaid => {
            let bytes = read_bounded(io::stdin().lock())
                .map_err(|error| Error::Failed(format!("cannot read standard input: {error}")))?;
            if bytes.is_empty() && *from == Payload::Unsaid {
                let why = "no payload: standard input is empty; name a file, or '-' if an empty payload is meant";
                return Err(Error::Usage(why.to_owned()));
            }
            Ok(bytes)
        }
    }
}

fn read_bounded(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(LARGEST_PAYLOAD + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST_PAYLOAD {
        return Err(io::Error::other("it is over 511 MiB, and Redis takes no more than 512 MiB a message"));
    }
    Ok(bytes)
}

/// The length of the queue afterwards.
fn push(connection: &mut Connection, server: &Server, key: String, bytes: &[u8], count: u64) -> Result<u64, Error> {
    let at_once = (PUSHED_AT_ONCE / bytes.len()).clamp(1, 10_000) as u64;
    let (mut pushed, mut length) = (0, 0);
    while pushed < count {
        let n = at_once.min(count - pushed);
        let mut command = redis::cmd("RPUSH");
        command.arg(&key);
        for _ in 0..n {
            command.arg(bytes);
        }
        length = command.query(connection).map_err(|error| {
            let so_far = if pushed == 0 { String::new() } else { format!(" after {pushed} messages") };
            Error::Failed(format!("cannot push onto {key}{so_far}: {}", server.explain(&server.name(), error)))
        })?;
        pushed += n;
    }
    Ok(length)
}
