//! The recipients of a round: healthy, slow, flapping, dead for a time, and such as cut connections
//! in mid-answer; some of them behind a network that can fail, and about a third by WebSocket, where a
//! close frame is the answer. All note in the ledger what arrives, before they answer.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use super::ledger::{Kind, Ledger};
use super::proxy::Proxy;
use super::rng::Rng;
use crate::support::{Answer, Request, Sink};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Temper {
    Healthy,
    /// Behind a network of its own.
    Remote,
    /// Each answer takes a tenth of a second and more.
    Slow,
    /// Answers 503 to some, hangs up on others.
    Flapping,
    /// Is away from the start until the faults end.
    Dead,
    /// Closes a third of the connections before or in the middle of the answer.
    Cutting,
    /// One listener that is more origins than an agent remembers: each loopback address is one.
    Wide,
}

/// Agents remember 20,000 lanes.
pub const WIDE: usize = 24_000;
/// The lanes of the wide recipient begin here.
pub const FIRST_WIDE_LANE: usize = 1_000;
/// And its addresses here.
const FIRST_WIDE: u32 = 0x7f40_0001;
/// The recipient with strangers' paths; and how many ways to fail these have.
pub const WITH_STRANGERS: usize = 0;
pub const STRANGE_WAYS: u64 = 4;

/// Who receives how many messages of a hundred.
pub const ALL: [(Temper, u64); 8] = [
    (Temper::Healthy, 25),
    (Temper::Healthy, 15),
    (Temper::Remote, 18),
    (Temper::Remote, 10),
    (Temper::Slow, 6),
    (Temper::Flapping, 10),
    (Temper::Dead, 6),
    (Temper::Cutting, 10),
];

/// What a fault makes of all answers for a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Mood {
    Usual = 0,
    /// 503 to everything.
    Busy,
    /// No answer.
    Hanging,
    /// As usual, and the temper is put aside: for the end, when all must be well.
    Calm,
}

pub struct Recipient {
    pub temper: Temper,
    pub endpoint: String,
    pub proxy: Option<Proxy>,
    /// What fault it suffers is over only when this is cleared.
    pub troubled: bool,
    sink: Sink,
    listens: bool,
    mood: Arc<AtomicU8>,
    /// Whether strangers' paths fail.
    strangers: Arc<AtomicBool>,
}

impl Recipient {
    /// All of them; with a wide one at the end, or without.
    pub fn all(ledger: &Arc<Ledger>, rng: &mut Rng, wide: bool) -> Vec<Recipient> {
        let tempers = ALL.iter().map(|(temper, _)| *temper).chain(wide.then_some(Temper::Wide));
        let start = |(n, temper)| {
            // Strangers' paths have answers that only HTTP knows.
            let by_ws = n != WITH_STRANGERS && temper != Temper::Wide && rng.between(0, 3) == 0;
            Recipient::start(n, temper, if by_ws { "ws" } else { "http" }, ledger.clone(), rng.next())
        };
        tempers.enumerate().map(start).collect()
    }

    pub fn place(&self) -> Place {
        Place { wide: (self.temper == Temper::Wide).then(|| self.sink.address().port()), inbox: self.endpoint.clone() }
    }

    fn start(n: usize, temper: Temper, scheme: &str, ledger: Arc<Ledger>, seed: u64) -> Recipient {
        let mood = Arc::new(AtomicU8::new(Mood::Usual as u8));
        let dice = AtomicU64::new(seed);
        let mood_now = mood.clone();
        let strangers = Arc::new(AtomicBool::new(true));
        let strangers_now = strangers.clone();
        let behaviour = move |request: &Request| {
            let dice = Rng::new(dice.fetch_add(0x9e37_79b9, Ordering::Relaxed)).next();
            let strangers = strangers_now.load(Ordering::SeqCst);
            answer((n, temper), mood_now.load(Ordering::SeqCst), strangers, dice, request, &ledger)
        };
        let sink = match temper {
            Temper::Wide => Sink::at(Ipv4Addr::UNSPECIFIED, 0, behaviour),
            _ => Sink::new(behaviour),
        };
        let proxy = (temper == Temper::Remote).then(|| Proxy::to(sink.address()));
        let address = proxy.as_ref().map_or(sink.address(), Proxy::address);
        let endpoint = format!("{scheme}://{address}/inbox");
        let mut recipient =
            Recipient { temper, endpoint, proxy, troubled: false, sink, listens: true, mood, strangers };
        if temper == Temper::Dead {
            recipient.stop();
        }
        recipient
    }

    pub fn set_mood(&self, mood: Mood) {
        self.mood.store(mood as u8, Ordering::SeqCst);
    }

    pub fn stop(&mut self) {
        if std::mem::replace(&mut self.listens, false) {
            self.sink.stop();
        }
    }

    pub fn listen(&mut self) {
        if !std::mem::replace(&mut self.listens, true) {
            self.sink.start();
        }
    }

    pub fn cut_on_accept(&self, cut: bool) {
        self.sink.cut_on_accept(cut);
    }

    /// Everything back to normal.
    pub fn mend(&mut self) {
        self.troubled = false;
        self.set_mood(Mood::Usual);
        self.cut_on_accept(false);
        if let Some(proxy) = &self.proxy {
            proxy.mend(false);
        }
        if self.temper != Temper::Dead {
            self.listen();
        }
    }

    /// For the end: all is well, whatever its temper.
    pub fn calm(&mut self) {
        self.mend();
        self.listen();
        self.set_mood(Mood::Calm);
        self.let_strangers_fail(false);
    }

    pub fn let_strangers_fail(&self, fail: bool) {
        self.strangers.store(fail, Ordering::SeqCst);
    }
}

/// Where a recipient is found.
pub struct Place {
    inbox: String,
    /// The port on which every address is an origin.
    wide: Option<u16>,
}

impl Place {
    /// Where a message of this kind goes that is for this lane.
    pub fn endpoint(&self, kind: Kind, lane: usize) -> String {
        match (self.wide, kind) {
            (Some(port), _) => format!("http://{}:{port}/inbox", Ipv4Addr::from(FIRST_WIDE + wide_number(lane))),
            (_, Kind::Strange(way)) => self.inbox.replace("/inbox", &format!("/strange/{way}")),
            _ => self.inbox.clone(),
        }
    }
}

fn wide_number(lane: usize) -> u32 {
    u32::try_from(lane - FIRST_WIDE_LANE).expect("a lane of the wide recipient")
}

fn answer(
    (n, temper): (usize, Temper),
    mood: u8,
    strangers: bool,
    dice: u64,
    request: &Request,
    ledger: &Ledger,
) -> Answer {
    let calm = mood == Mood::Calm as u8;
    let of_hundred = dice % 100;
    let host = request.header("host").and_then(|host| host.split(':').next()?.parse::<Ipv4Addr>().ok());
    let lane = match (temper, host) {
        (Temper::Wide, Some(host)) => FIRST_WIDE_LANE + (u32::from(host) - FIRST_WIDE) as usize,
        _ => n,
    };
    let strange = request.target.strip_prefix("/strange/").filter(|_| strangers).map(|way| match way {
        "0" => Answer::Cut,
        "1" => Answer::Hang,
        "2" => Answer::status(503),
        _ => Answer::status(429).header("Retry-After", "2"),
    });
    let odd = match temper {
        _ if mood == Mood::Busy as u8 => Some(Answer::status(503)),
        _ if mood == Mood::Hanging as u8 => Some(Answer::Hang),
        _ if strange.is_some() => strange,
        _ if calm => None,
        Temper::Flapping if of_hundred < 25 => Some(Answer::status(503)),
        Temper::Flapping if of_hundred < 35 => Some(Answer::Cut),
        Temper::Cutting if of_hundred < 15 => Some(Answer::Cut),
        Temper::Cutting if of_hundred < 30 => Some(Answer::BreakOff),
        // So that messages of many lanes wait.
        Temper::Wide if of_hundred < 30 => Some(Answer::status(503)),
        _ => None,
    };
    let status = ledger.arrive(lane, request, |kind, n_500| match (&odd, kind) {
        (Some(Answer::Reply(_)), _) => Some(503),
        (Some(_), _) => None,
        (None, Kind::Final) => Some(410),
        (None, Kind::Stubborn(times)) if n_500 < times => Some(500),
        (None, _) => Some(200),
    });
    let delay = match temper {
        Temper::Slow => Duration::from_millis(100 + dice / 100 % 300),
        _ => Duration::from_millis(dice / 100 % 8),
    };
    match (odd, status) {
        (Some(odd), _) => odd,
        // Nobody comes to such an origin again soon, and the listener has only so many threads.
        (None, Some(status)) if temper == Temper::Wide => {
            Answer::status(status).header("Connection", "close").after(delay)
        }
        (None, Some(status)) => Answer::status(status).after(delay),
        (None, None) => Answer::Cut,
    }
}
