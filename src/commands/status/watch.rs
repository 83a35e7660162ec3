//! `status --watch`: the same again every second, with what happened in it, until Ctrl-C. On a terminal it is drawn
//! in one place, on the screen that editors use, so that the terminal is left as it was; elsewhere the tables or objects
//! follow one another. A Redis that is away is said to be, and waited for.
//!
//! Redis is asked on a thread of its own: a signal ends this at once, also while Redis hangs.

use std::io::{self, IsTerminal, Write};
use std::thread::Builder;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, Sender, bounded, select, tick};

use super::look::{Bounds, Looker, Seen};
use crate::commands::{Error, Exit};
use crate::config::Status;
use crate::json::Object;
use crate::queue;
use crate::queue::redis::admin::Overview;
use crate::signals;
use crate::text::{spell, utc, visible};

const EVERY: Duration = Duration::from_secs(1);
/// Looked at every second: less than by a single look.
const BOUNDS: Bounds = Bounds { lanes: 2_000, retries: 500, dead: 2_000 };
/// Lines of a terminal that does not say how many it has.
const LINES: usize = 24;

/// To the other screen, without a cursor, long lines cut; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

pub(super) fn run(options: &Status) -> Result<Exit, Error> {
    let cannot = |what: &str, error: io::Error| Error::Failed(format!("cannot {what}: {error}"));
    let (_watch, stops, hang_ups) = signals::watch().map_err(|error| cannot("watch for signals", error))?;
    // One each: nothing is asked before the last answer was shown.
    let ((ask, asked), (tell, told)) = (bounded(1), bounded(1));
    let asking = options.clone();
    Builder::new()
        .name("look".to_owned())
        .spawn(move || answer(&asking, &asked, &tell))
        .map_err(|error| cannot("start a thread", error))?;

    let mut view = View::open(options);
    let every = tick(EVERY);
    let mut asked_at = Some(Instant::now());
    let _ = ask.send(());
    loop {
        select! {
            recv(stops) -> _ => return Ok(Exit::Done),
            // Whoever looked has gone.
            recv(hang_ups) -> _ => return Ok(Exit::Done),
            recv(told) -> answer => {
                asked_at = None;
                match answer.expect("the thread that looks ends after this one") {
                    Ok(seen) => view.show(seen)?,
                    Err(queue::Error::Fatal(why)) => return Err(Error::Failed(why)),
                    Err(error) => view.say_away(&error.to_string())?,
                }
            }
            recv(every) -> _ => match asked_at {
                None => {
                    asked_at = Some(Instant::now());
                    let _ = ask.send(());
                }
                Some(at) if at.elapsed() >= EVERY => view.say_away("it has not answered yet")?,
                Some(_) => {}
            },
        }
    }
}

/// Looks whenever it is asked to, until nobody asks any more.
fn answer(options: &Status, asked: &Receiver<()>, tell: &Sender<Result<Seen, queue::Error>>) {
    let mut looker = Looker::new(options);
    for () in asked {
        if tell.send(looker.look(options, &BOUNDS)).is_err() {
            return;
        }
    }
}

/// What is shown, and how.
struct View<'a> {
    options: &'a Status,
    is_terminal: bool,
    last: Option<Seen>,
    rates: Option<Rates>,
    away_since: Option<Instant>,
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        if self.is_terminal {
            let mut out = io::stdout().lock();
            let _ = out.write_all(LEAVE.as_bytes()).and_then(|()| out.flush());
        }
    }
}

impl View<'_> {
    fn open(options: &Status) -> View<'_> {
        let can_be_drawn_on = std::env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb");
        let is_terminal = io::stdout().is_terminal() && can_be_drawn_on && !options.json;
        if is_terminal {
            // An error of it is one of the first picture too.
            let _ = io::stdout().write_all(ENTER.as_bytes());
        }
        View { options, is_terminal, last: None, rates: None, away_since: None }
    }

    fn show(&mut self, seen: Seen) -> Result<(), Error> {
        self.away_since = None;
        self.rates = self.last.as_ref().and_then(|last| Rates::between(&last.overview, &seen.overview));
        if self.options.json {
            let rates = self.rates.as_ref().map_or("null".to_owned(), |rates| rates.json().to_string());
            writeln!(io::stdout(), "{}", seen.json(self.options).json("per_second", rates))?;
            self.last = Some(seen);
            return Ok(());
        }
        self.last = Some(seen);
        self.draw("")
    }

    /// Redis cannot be asked now, for this reason.
    fn say_away(&mut self, why: &str) -> Result<(), Error> {
        let since = *self.away_since.get_or_insert_with(Instant::now);
        let why = visible(why);
        if self.options.json {
            let line = Object::new().time("time", Some(SystemTime::now())).text("error", &why);
            return Ok(writeln!(io::stdout(), "{line}")?);
        }
        let words = format!("Redis cannot be used: {why}; trying on, for {}", spell(since.elapsed()));
        if self.is_terminal {
            return self.draw(&words);
        }
        Ok(writeln!(io::stdout(), "{} {words}\n", utc(SystemTime::now()))?)
    }

    fn draw(&self, trouble: &str) -> Result<(), Error> {
        let mut text = Vec::new();
        if !trouble.is_empty() {
            writeln!(text, "{trouble}")?;
        }
        if let Some(last) = &self.last {
            match &self.rates {
                _ if !trouble.is_empty() => writeln!(text, "what it told last:")?,
                Some(rates) => writeln!(text, "per second: {rates}")?,
                None => writeln!(text, "per second: not known yet")?,
            }
            last.print(self.options, &mut text)?;
        }
        let mut out = io::stdout().lock();
        if self.is_terminal {
            let height = terminal_size::terminal_size().map_or(LINES, |(_, height)| usize::from(height.0));
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().take(height.max(1)).collect();
            // Drawn over, not wiped first: nothing flickers.
            out.write_all(format!("\x1b[H{}\x1b[K\x1b[J", lines.join("\x1b[K\r\n")).as_bytes())?;
        } else {
            text.push(b'\n');
            out.write_all(&text)?;
        }
        Ok(out.flush()?)
    }
}

/// What happened in a second, between two looks.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Rates {
    queued: f64,
    delivered: f64,
    put_off: f64,
    dead: f64,
}

impl Rates {
    /// `None` if no time has passed by Redis's clock.
    fn between(before: &Overview, after: &Overview) -> Option<Rates> {
        let seconds = after.now.checked_sub(before.now).filter(|passed| *passed > 0)? as f64 / 1000.0;
        let more = |before: u64, after: u64| after.saturating_sub(before);
        let delivered = more(before.settled.delivered, after.settled.delivered);
        // What was pushed is in the queue still, has been claimed and is in the records, or has been delivered.
        let is_here = |overview: &Overview| overview.queued + overview.messages;
        let queued = (is_here(after) + delivered).saturating_sub(is_here(before));
        // One too large for any agent died as it was claimed, and is no settled attempt.
        let dead = more(before.settled.dead, after.settled.dead).max(more(before.dead, after.dead));
        let put_off = more(before.settled.put_off, after.settled.put_off);
        let rate = |n: u64| n as f64 / seconds;
        Some(Rates { queued: rate(queued), delivered: rate(delivered), put_off: rate(put_off), dead: rate(dead) })
    }

    fn json(&self) -> Object {
        let rate = |rate: f64| format!("{rate:.1}");
        Object::new()
            .json("queued", rate(self.queued))
            .json("delivered", rate(self.delivered))
            .json("put_off", rate(self.put_off))
            .json("dead", rate(self.dead))
    }
}

impl std::fmt::Display for Rates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Rates { queued, delivered, put_off, dead } = self;
        write!(f, "{queued:.1} queued, {delivered:.1} delivered, {put_off:.1} put off, {dead:.1} dead")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::redis::admin::overview::Settled;

    #[test]
    fn rates_are_what_happened_divided_by_redis_s_own_time() {
        let before = Overview {
            now: 10_000,
            queued: 100,
            messages: 50,
            dead: 5,
            settled: Settled { delivered: 1000, put_off: 10, dead: 5 },
            ..Overview::default()
        };
        // 60 pushed, 80 claimed, 70 delivered.
        let after = Overview {
            now: 12_000,
            queued: 80,
            messages: 60,
            dead: 6,
            settled: Settled { delivered: 1070, put_off: 14, dead: 6 },
            ..before.clone()
        };
        let rates = Rates::between(&before, &after).unwrap();
        assert_eq!(rates, Rates { queued: 30.0, delivered: 35.0, put_off: 2.0, dead: 0.5 });
        assert_eq!(rates.to_string(), "30.0 queued, 35.0 delivered, 2.0 put off, 0.5 dead");
        assert_eq!(rates.json().to_string(), r#"{"queued":30.0,"delivered":35.0,"put_off":2.0,"dead":0.5}"#);
        assert_eq!(Rates::between(&before, &before), None);
        // A Redis that has lost all, or whose clock went back.
        let empty = Overview { now: 11_000, ..Overview::default() };
        let nothing = Rates { queued: 0.0, delivered: 0.0, put_off: 0.0, dead: 0.0 };
        assert_eq!(Rates::between(&before, &empty), Some(nothing));
        assert_eq!(Rates::between(&empty, &before), None);
    }
}
