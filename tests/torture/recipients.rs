//! The recipients of a round: healthy, slow, flapping, dead for a time, and such as cut connections
//! in mid-answer; some of them behind a network that can fail. All note in the ledger what arrives,
//! before they answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use super::ledger::{Kind, Ledger};
use super::proxy::Proxy;
use super::rng::Rng;
use crate::support::{Answer, Sink};

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
}

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
}

impl Recipient {
    pub fn all(ledger: &Arc<Ledger>, rng: &mut Rng) -> Vec<Recipient> {
        ALL.iter()
            .enumerate()
            .map(|(n, (temper, _))| Recipient::start(n, *temper, ledger.clone(), rng.next()))
            .collect()
    }

    fn start(n: usize, temper: Temper, ledger: Arc<Ledger>, seed: u64) -> Recipient {
        let mood = Arc::new(AtomicU8::new(Mood::Usual as u8));
        let dice = AtomicU64::new(seed);
        let mood_now = mood.clone();
        let sink = Sink::new(move |request| {
            let dice = Rng::new(dice.fetch_add(0x9e37_79b9, Ordering::Relaxed)).next();
            answer(n, temper, mood_now.load(Ordering::SeqCst), dice, request, &ledger)
        });
        let proxy = (temper == Temper::Remote).then(|| Proxy::to(sink.address()));
        let address = proxy.as_ref().map_or(sink.address(), Proxy::address);
        let endpoint = format!("http://{address}/inbox");
        let mut recipient = Recipient { temper, endpoint, proxy, troubled: false, sink, listens: true, mood };
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
    }
}

fn answer(n: usize, temper: Temper, mood: u8, dice: u64, request: &crate::support::Request, ledger: &Ledger) -> Answer {
    let calm = mood == Mood::Calm as u8;
    let of_hundred = dice % 100;
    let odd = match temper {
        _ if mood == Mood::Busy as u8 => Some(Answer::status(503)),
        _ if mood == Mood::Hanging as u8 => Some(Answer::Hang),
        _ if calm => None,
        Temper::Flapping if of_hundred < 25 => Some(Answer::status(503)),
        Temper::Flapping if of_hundred < 35 => Some(Answer::Cut),
        Temper::Cutting if of_hundred < 15 => Some(Answer::Cut),
        Temper::Cutting if of_hundred < 30 => Some(Answer::BreakOff),
        _ => None,
    };
    let status = ledger.arrive(n, request, |kind, n_500| match (&odd, kind) {
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
        (None, Some(status)) => Answer::status(status).after(delay),
        (None, None) => Answer::Cut,
    }
}
