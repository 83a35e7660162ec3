//! Each rule of the lanes by a test of its own, in simulated time; a bracket in a
//! name is the failure that came back when the rule was left out.

use std::collections::VecDeque;

use super::blame::OVERDUE_EVERY;

use super::*;
use crate::envelope::Envelope;
use crate::orders::{Order, Orders};
use crate::policy::{Fault, Outcome};
use crate::queue::{Bounds, FailedLane, History, LaneChange, Place, Settlement, Source, WaitingLane};

/// Lanes with a clock, the claims out, and what was settled.
struct Scene {
    lanes: Lanes,
    now: Instant,
    next_id: u64,
    out: VecDeque<(Box<Claim>, Instant)>,
    settled: Vec<Settlement>,
    changes: Vec<LaneChange>,
    news: Vec<News>,
}

fn limits() -> Limits {
    Limits {
        workers: 16,
        endpoint_concurrency: 8,
        messages: 256,
        bytes: 1 << 20,
        ordered: false,
        retry_first: Duration::from_secs(5),
        retry_max: Duration::from_secs(600),
        give_up_after: Duration::from_secs(24 * 3600),
        attempt: Duration::from_secs(35),
    }
}

fn envelope(origin: &str) -> Envelope {
    let headers: [(&str, &str); 0] = [];
    Envelope::decode(Envelope::encode(headers, origin, b"x")).unwrap()
}

fn failed(origin: &str, failures: u32, slowly: bool) -> FailedLane {
    FailedLane { origin: origin.to_string(), failures, slowly }
}

fn want(origin: &str, room: usize) -> (String, usize) {
    (origin.to_string(), room)
}

fn later(fault: Fault) -> Outcome {
    Outcome::Later { fault, retry_after: None, error: "no good".to_string() }
}

impl Scene {
    fn new(limits: Limits) -> Scene {
        Scene {
            lanes: Lanes::new(limits, 7),
            now: Instant::now(),
            next_id: 1,
            out: VecDeque::new(),
            settled: Vec::new(),
            changes: Vec::new(),
            news: Vec::new(),
        }
    }

    fn perform(&mut self, effects: Effects) {
        self.settled.extend(effects.settlements);
        self.changes.extend(effects.changes);
        self.news.extend(effects.news);
        let now = self.now;
        self.out.extend(effects.ready.into_iter().map(|claim| (claim, now)));
    }

    fn claim_from(&mut self, origin: &str, source: Source) -> Box<Claim> {
        let id = Id(self.next_id);
        self.next_id += 1;
        let history = History::default();
        Box::new(Claim::new(id, envelope(origin), history, 0, source, AgentNumber(1), self.now))
    }

    fn claim(&mut self, origin: &str) -> Box<Claim> {
        self.claim_from(origin, Source::Queue)
    }

    fn admit_with(&mut self, origin: &str, source: Source, change: impl FnOnce(&mut Claim)) -> Id {
        let mut claim = self.claim_from(origin, source);
        change(&mut claim);
        let id = claim.id;
        let mut effects = Effects::default();
        self.lanes.admit(claim, self.now, &mut effects);
        self.perform(effects);
        id
    }

    fn admit(&mut self, origin: &str) -> Id {
        self.admit_with(origin, Source::Queue, |_| {})
    }

    fn admit_many(&mut self, origin: &str, n: usize) {
        for _ in 0..n {
            self.admit(origin);
        }
    }

    fn n_out(&self, origin: &str) -> usize {
        self.out.iter().filter(|(claim, _)| &*claim.origin == origin).count()
    }

    /// Ends the oldest attempt of an origin.
    fn finish(&mut self, origin: &str, outcome: Outcome) -> Id {
        let at = self.out.iter().position(|(claim, _)| &*claim.origin == origin).expect("one is out");
        let (claim, begun) = self.out.remove(at).unwrap();
        let id = claim.id;
        let mut effects = Effects::default();
        self.lanes.finish(claim, outcome, None, begun, self.now, &mut effects);
        self.perform(effects);
        id
    }

    /// Proves a lane and grows its window to the widest.
    fn widen(&mut self, origin: &str) {
        for _ in 0..40 {
            self.admit_many(origin, 10);
            while self.n_out(origin) > 0 && self.lanes.held.len() > self.settled.len() {
                self.finish(origin, Outcome::Delivered);
            }
        }
        while self.n_out(origin) > 0 {
            self.finish(origin, Outcome::Delivered);
        }
        self.confirm();
        self.changes.clear();
    }

    fn confirm(&mut self) {
        let settled = std::mem::take(&mut self.settled);
        self.lanes.confirmed(&settled, self.now);
        // The next claim is begun.
        self.appetite();
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    fn appetite(&mut self) -> Option<Bounds> {
        let mut effects = Effects::default();
        let bounds = self.lanes.appetite(false, self.now, &mut effects);
        self.perform(effects);
        bounds
    }

    fn nudge(&mut self) {
        let mut effects = Effects::default();
        self.lanes.nudge(self.now, &mut effects);
        self.perform(effects);
    }

    fn wants(&mut self) -> Vec<(String, usize)> {
        let wants = self.appetite().expect("room").wants;
        wants.into_iter().map(|want| (want.origin, want.room)).collect()
    }

    fn place_of(&self, id: Id) -> Option<&Place> {
        self.settled.iter().rev().find(|one| one.id == id).map(|one| &one.place)
    }

    fn n_waiting(&self, origin: &str) -> usize {
        self.settled.iter().filter(|one| &*one.origin == origin && matches!(one.place, Place::Waiting(_))).count()
    }

    fn outages(&self, origin: &str) -> Vec<(u32, Duration)> {
        self.changes
            .iter()
            .filter_map(|change| match change {
                LaneChange::Down { origin: down, after, failures, .. } if &**down == origin => {
                    Some((*failures, *after))
                }
                _ => None,
            })
            .collect()
    }
}

const A: &str = "http://a.test:80";
const B: &str = "http://b.test:80";

fn origin(n: usize) -> String {
    format!("http://n{n}.test:80")
}

fn about(seconds: u64) -> std::ops::RangeInclusive<Duration> {
    Duration::from_secs(seconds) * 8 / 10..=Duration::from_secs(seconds) * 12 / 10
}

// ---- rule 1: the window ----

#[test]
fn a_lane_begins_with_one_claim_out_and_grows_by_one_for_each_delivery_while_full() {
    let mut scene = Scene::new(limits());
    scene.admit_many(A, 100);
    for expected in [1, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8] {
        assert_eq!(scene.n_out(A), expected);
        scene.finish(A, Outcome::Delivered);
    }
}

#[test]
fn a_window_that_is_not_full_does_not_grow() {
    // [Else 16 endpoints that hang together stop everything.]
    let mut scene = Scene::new(limits());
    for _ in 0..50 {
        scene.admit(A);
        scene.finish(A, Outcome::Delivered);
    }
    let window = scene.lanes.lanes[0].window;
    assert!(window <= 2, "one at a time needs no window of {window}");
}

#[test]
fn after_a_halving_the_window_grows_by_one_per_window_of_deliveries() {
    let mut scene = Scene::new(limits());
    scene.widen(A);
    scene.admit_many(A, 200);
    assert_eq!(scene.n_out(A), 8);
    scene.pass(1);
    scene.finish(A, later(Fault::Throttled));
    assert_eq!(scene.lanes.lanes[0].window, 4);
    // The seven begun before the halving count for nothing when they fail.
    scene.pass(1);
    for _ in 0..7 {
        scene.finish(A, later(Fault::Throttled));
    }
    assert_eq!((scene.lanes.lanes[0].window, scene.n_out(A)), (4, 4));
    for _ in 0..4 {
        scene.finish(A, Outcome::Delivered);
    }
    assert_eq!(scene.lanes.lanes[0].window, 5);
}

#[test]
fn what_it_was_throttled_at_is_tried_again_only_after_a_while() {
    let mut scene = Scene::new(limits());
    scene.widen(A);
    scene.pass(1);
    scene.admit_many(A, 8);
    scene.pass(1);
    scene.finish(A, later(Fault::Throttled));
    scene.confirm();
    scene.pass(1);
    scene.lanes.emptied(A, scene.now);
    let mut deliveries_at = [0; 9];
    for _ in 0..400 {
        scene.pass(1);
        if scene.n_out(A) < scene.lanes.lanes[0].window {
            scene.admit_many(A, 8 - scene.n_out(A));
        }
        deliveries_at[scene.lanes.lanes[0].window] += 1;
        scene.finish(A, Outcome::Delivered);
        scene.confirm();
    }
    // At 4, 5 and 6 for a window each; at 7 for eight, before 8 is tried.
    assert!(deliveries_at[5] <= 8 && deliveries_at[6] <= 8, "{deliveries_at:?}");
    assert!(deliveries_at[7] >= 50, "{deliveries_at:?}");
    assert!(deliveries_at[8] > 100, "it is not kept down for good: {deliveries_at:?}");
}

// ---- rule 2: the endpoint's fault ----

#[test]
fn no_answer_closes_the_lane_and_all_it_holds_waits_in_the_queue() {
    let mut scene = Scene::new(limits());
    scene.admit_many(A, 5);
    let failed = scene.finish(A, later(Fault::NoAnswer));
    assert!(matches!(scene.place_of(failed), Some(Place::Retry(after)) if about(5).contains(after)));
    assert_eq!((scene.n_waiting(A), scene.n_out(A)), (4, 0));
    let outages = scene.outages(A);
    assert_eq!(outages.len(), 1);
    assert!(outages[0].0 == 1 && about(5).contains(&outages[0].1), "{outages:?}");
}

#[test]
fn a_throttling_endpoint_narrows_and_is_closed_when_it_takes_nothing_any_more() {
    // [Outage at once on 503: an endpoint that takes 4 at a time got 1/s.]
    let mut scene = Scene::new(limits());
    scene.widen(A);
    scene.admit_many(A, 200);
    for window in [4, 2, 1, 1, 1, 1, 1] {
        scene.pass(1);
        // One begun after the last halving has to say so.
        for _ in 0..scene.n_out(A) {
            scene.finish(A, later(Fault::Throttled));
        }
        assert_eq!(scene.lanes.lanes[0].window, window);
        assert!(scene.outages(A).is_empty());
        scene.pass(1);
        scene.finish(A, Outcome::Delivered);
        scene.pass(1);
    }
    // Twelve in a row at most, and fewer when the last delivery is long ago.
    scene.pass(6);
    let mut n = 0;
    while scene.outages(A).is_empty() {
        scene.finish(A, later(Fault::Throttled));
        scene.pass(1);
        n += 1;
    }
    assert_eq!(n, 3);
}

#[test]
fn one_bad_path_of_a_proven_origin_holds_up_nothing() {
    // [One message to a path that answers 503, 429 with a Retry-After, or not at all, held up 119 of 120 good ones.]
    for (fault, retry_after) in
        [(Fault::NoAnswer, None), (Fault::Throttled, None), (Fault::Throttled, Some(Duration::from_secs(3600)))]
    {
        for n_bad in [1, 11] {
            let mut scene = Scene::new(limits());
            scene.widen(A);
            for _ in 0..60 {
                for _ in 0..n_bad {
                    let bad = scene.admit(A);
                    let outcome = Outcome::Later { fault, retry_after, error: "bad path".to_string() };
                    assert_eq!(scene.finish(A, outcome.clone()), bad);
                    if fault == Fault::Throttled
                        && retry_after.is_none()
                        && scene.place_of(bad) == Some(&Place::Waiting(None))
                    {
                        // What a wide window may not have taken is sent again at once, but only once.
                        scene.confirm();
                        scene.admit_with(A, Source::Waiting { probe: false }, |claim| {
                            claim.id = bad;
                            claim.history.attempts = 1;
                        });
                        scene.finish(A, outcome);
                    }
                    let place = scene.place_of(bad).unwrap();
                    let expected = retry_after.map_or(about(5), |wanted| wanted..=wanted);
                    assert!(matches!(place, Place::Retry(after) if expected.contains(after)), "{place:?}");
                    scene.confirm();
                    scene.lanes.emptied(A, scene.now + Duration::from_millis(1));
                }
                let good = scene.admit(A);
                assert_eq!(scene.finish(A, Outcome::Delivered), good, "not behind the bad ones");
                scene.confirm();
                scene.pass(1);
            }
            assert!(scene.outages(A).is_empty(), "{fault:?}");
        }
    }
}

#[test]
fn what_nothing_reaches_is_closed_at_once_whatever_the_path() {
    let mut scene = Scene::new(limits());
    scene.widen(A);
    scene.admit(A);
    scene.finish(A, later(Fault::Unreachable));
    assert_eq!(scene.outages(A).len(), 1);
}

#[test]
fn an_answer_to_any_message_opens_the_lane_however_long_ago_its_attempt_began() {
    let mut scene = Scene::new(limits());
    scene.widen(A);
    scene.admit_many(A, 2);
    scene.pass(1);
    scene.finish(A, later(Fault::Unreachable));
    assert_eq!(scene.lanes.lanes[0].state, State::Down);
    scene.finish(A, Outcome::Delivered);
    assert_eq!(scene.lanes.lanes[0].state, State::Up);
    assert_eq!(scene.changes.last(), Some(&LaneChange::Up(Arc::from(A))));
}

#[test]
fn a_probe_that_failed_is_not_the_next_one_while_others_wait() {
    let mut scene = Scene::new(limits());
    scene.admit_many(A, 2);
    let first = scene.finish(A, later(Fault::NoAnswer));
    assert!(matches!(scene.place_of(first), Some(Place::Retry(_))), "the other one is tried first");
    scene.confirm();
    scene.pass(6);
    scene.lanes.emptied(A, scene.now);
    scene.admit_with(A, Source::Waiting { probe: true }, |claim| claim.id = Id(2));
    let second = scene.finish(A, later(Fault::NoAnswer));
    assert!(matches!(scene.place_of(second), Some(Place::Waiting(_))), "none else waits");
}

#[test]
fn beside_silent_attempts_one_more_goes_out_and_the_silent_ones_no_longer_count_once_it_is_answered() {
    let mut scene = Scene::new(limits());
    scene.admit(A);
    scene.finish(A, Outcome::Delivered);
    let (silent, held) = (scene.admit(A), [scene.admit(A), scene.admit(A)]);
    scene.now += Duration::from_millis(200);
    scene.nudge();
    assert_eq!(scene.n_out(A), 1, "it may still be answered");
    scene.now += Duration::from_millis(100);
    scene.nudge();
    assert_eq!(scene.out.back().unwrap().0.id, held[1], "the newest");
    let (claim, begun) = scene.out.pop_back().unwrap();
    scene.now += Duration::from_millis(10);
    let mut effects = Effects::default();
    scene.lanes.finish(claim, Outcome::Delivered, None, begun, scene.now, &mut effects);
    scene.perform(effects);
    let out: Vec<Id> = scene.out.iter().map(|(claim, _)| claim.id).collect();
    assert_eq!(out, [silent, held[0]], "the silent one is beside the window now");
    // What is silent altogether costs two attempts more, and no third.
    let mut scene = Scene::new(limits());
    scene.admit(A);
    scene.finish(A, Outcome::Delivered);
    scene.admit_many(A, 20);
    for _ in 0..100 {
        scene.now += Duration::from_millis(300);
        scene.nudge();
    }
    assert_eq!(scene.n_out(A), 1 + 2);
}

#[test]
fn retry_after_closes_the_lane_for_that_time_when_more_than_one_message_is_told_so() {
    let wanted = Some(Duration::from_secs(77));
    let outcome = Outcome::Later { fault: Fault::Throttled, retry_after: wanted, error: "429".to_string() };
    let mut scene = Scene::new(limits());
    scene.admit_many(A, 20);
    let asked = scene.finish(A, outcome.clone());
    assert_eq!(scene.place_of(asked), Some(&Place::Retry(Duration::from_secs(77))));
    assert_eq!(scene.outages(A), vec![(1, Duration::from_secs(60))], "one alone is not heeded for longer");
    scene.confirm();
    scene.pass(61);
    scene.admit_with(A, Source::Waiting { probe: true }, |claim| claim.id = Id(2));
    scene.finish(A, outcome);
    assert_eq!(scene.outages(A)[1], (2, Duration::from_secs(77)));
}

#[test]
fn the_backoff_doubles_with_the_failures_of_the_lane_up_to_the_longest() {
    let mut scene = Scene::new(limits());
    let mut seconds = 5;
    for n in 1..=10u32 {
        let probe = Source::Waiting { probe: true };
        if n == 1 {
            scene.admit(A)
        } else {
            scene.admit_with(A, probe, |_| {})
        };
        scene.finish(A, later(Fault::NoAnswer));
        let (failures, after) = *scene.outages(A).last().unwrap();
        assert!(failures == n && about(seconds).contains(&after), "{n}: {failures} {after:?}");
        seconds = (seconds * 2).min(600);
        scene.confirm();
        scene.pass(700);
    }
}

#[test]
fn failures_seen_by_other_agents_count() {
    let mut scene = Scene::new(limits());
    scene.lanes.has_failed(&failed(A, 3, false), scene.now);
    scene.admit_with(A, Source::Waiting { probe: true }, |_| {});
    scene.finish(A, later(Fault::NoAnswer));
    let (failures, after) = scene.outages(A)[0];
    assert!(failures == 4 && about(40).contains(&after), "{failures} {after:?}");
}

#[test]
fn a_failure_begun_before_the_closing_counts_for_nothing() {
    let mut scene = Scene::new(limits());
    scene.widen(A);
    scene.admit_many(A, 8);
    scene.pass(30);
    for _ in 0..8 {
        scene.finish(A, later(Fault::NoAnswer));
    }
    assert_eq!(scene.outages(A).len(), 1);
    assert_eq!(scene.outages(A)[0].0, 1);
}

// ---- rule 3: the message's fault ----

#[test]
fn a_message_at_fault_gets_a_backoff_of_its_own_and_its_lane_goes_on() {
    // [One message in ten answered 500 killed the lane in nine minutes.]
    let mut scene = Scene::new(limits());
    scene.widen(A);
    for _ in 0..100 {
        scene.admit_many(A, 8);
        let bad = scene.finish(A, later(Fault::Message));
        let place = scene.place_of(bad).unwrap();
        assert!(matches!(place, Place::Retry(after) if about(5).contains(after)), "{place:?}");
        while scene.n_out(A) > 0 {
            scene.finish(A, Outcome::Delivered);
        }
        scene.confirm();
    }
    assert!(scene.outages(A).is_empty());
}

#[test]
fn a_message_on_its_own_backoff_is_not_counted_against_the_lane() {
    let mut scene = Scene::new(limits());
    scene.widen(A);
    for _ in 0..50 {
        scene.admit_with(A, Source::Retry, |claim| claim.history.own_failures = 3);
        let id = scene.finish(A, later(Fault::Message));
        assert!(matches!(scene.place_of(id), Some(Place::Retry(after)) if about(40).contains(after)));
    }
    assert!(scene.outages(A).is_empty());
}

#[test]
fn due_while_the_lane_is_down_it_is_due_again_when_that_is_tried_and_no_attempt_is_spent() {
    let mut scene = Scene::new(limits());
    scene.admit(A);
    scene.finish(A, later(Fault::NoAnswer));
    let id = scene.admit_with(A, Source::Retry, |claim| {
        claim.history.own_failures = 1;
        claim.history.attempts = 4;
    });
    let one = scene.settled.last().unwrap();
    assert_eq!((one.id, one.history.attempts), (id, 4));
    assert!(
        matches!(one.place, Place::Retry(after) if (Duration::from_secs(8)..Duration::from_secs(13)).contains(&after))
    );
    assert_eq!(scene.n_out(A), 0);
}

#[test]
fn a_lane_that_is_down_is_tried_with_a_message_on_its_own_backoff_when_nothing_else_waits_for_it() {
    let mut scene = Scene::new(limits());
    scene.admit(A);
    let dead = Outcome::Dead { reason: "gave up".to_string(), fault: Some(Fault::NoAnswer) };
    scene.finish(A, dead);
    scene.confirm();
    scene.pass(6);
    scene.admit_with(A, Source::Retry, |claim| claim.history.own_failures = 1);
    assert_eq!(scene.n_out(A), 1);
    let id = scene.finish(A, later(Fault::NoAnswer));
    assert!(matches!(scene.place_of(id), Some(Place::Waiting(_))));
    assert_eq!(scene.outages(A).len(), 2, "the endpoint is down");
    scene.confirm();
    scene.pass(13);
    scene.admit_with(A, Source::Waiting { probe: true }, |claim| claim.id = id);
    scene.finish(A, later(Fault::Message));
    assert_eq!(scene.lanes.lanes[0].state, State::Up, "it answers");
    assert_eq!(scene.lanes.lanes[0].failures, 2, "and the next failure counts on until a delivery");
}

#[test]
fn ten_different_messages_at_fault_in_a_row_bring_the_lane_down() {
    let mut scene = Scene::new(limits());
    scene.widen(A);
    for n in 1..=10 {
        assert_eq!(scene.outages(A).len(), 0, "after {n}");
        scene.admit(A);
        scene.finish(A, later(Fault::Message));
    }
    assert_eq!(scene.outages(A).len(), 1);
}

#[test]
fn a_lane_whose_answers_all_refuse_is_tried_at_the_same_pace_and_stays_down() {
    // [Else one bad message in ten, when it happened to be the probe, doubled the time that the good ones waited.]
    let mut scene = Scene::new(limits());
    scene.widen(A);
    for _ in 0..10 {
        scene.admit(A);
        scene.finish(A, later(Fault::Message));
    }
    scene.confirm();
    for n in 1..=10 {
        assert_eq!(scene.outages(A).len(), 1, "after {n}");
        scene.changes.retain(|change| !matches!(change, LaneChange::Due { .. }));
        scene.pass(7);
        scene.admit_with(A, Source::Waiting { probe: true }, |_| {});
        let id = scene.finish(A, later(Fault::Message));
        assert!(matches!(scene.place_of(id), Some(Place::Retry(_))));
        let soon = |change: &LaneChange| matches!(change, LaneChange::Due { after, .. } if about(5).contains(after));
        assert_eq!(scene.changes.iter().any(soon), n < 10, "{:?}", scene.changes);
        scene.confirm();
    }
    assert_eq!(
        scene.outages(A).last().map(|(failures, _)| *failures),
        Some(2),
        "ten different ones in a row do bring it down"
    );
}

#[test]
fn a_message_ends_by_the_age_of_its_own_first_failure_while_its_endpoint_is_down() {
    let mut scene = Scene::new(limits());
    scene.admit(A);
    scene.finish(A, later(Fault::NoAnswer));
    for (attempts, hours, dies) in [(1, 25, true), (1, 23, false), (0, 25, false)] {
        let id = scene.admit_with(A, Source::Retry, |claim| {
            claim.history.own_failures = 1;
            claim.history.attempts = attempts;
            claim.history.age = Some(Duration::from_secs(hours * 3600));
            claim.history.last_error = "503".to_string();
        });
        assert_eq!(scene.place_of(id) == Some(&Place::Dead), dies, "{attempts} attempts, {hours} h");
        if dies {
            assert_eq!(scene.settled.last().unwrap().history.last_error, "gave up after 24h: 503");
        }
    }
}

#[test]
fn what_has_waited_too_long_without_an_attempt_is_attempted_one_a_second() {
    let mut scene = Scene::new(limits());
    for n in 0..5 {
        scene.admit_with(A, Source::Waiting { probe: true }, |claim| {
            claim.history.age = Some(Duration::from_secs(25 * 3600));
        });
        scene.finish(A, later(Fault::Unreachable));
        assert_eq!(scene.outages(A)[n].1, OVERDUE_EVERY);
        scene.confirm();
        scene.pass(2);
    }
}

// ---- rule 4: what waits in the queue ----

#[test]
fn what_arrives_for_a_lane_that_is_down_waits_in_the_queue() {
    let mut scene = Scene::new(limits());
    scene.admit(A);
    scene.finish(A, later(Fault::NoAnswer));
    let id = scene.admit(A);
    assert!(matches!(scene.place_of(id), Some(Place::Waiting(Some(after))) if about(5).contains(after)));
    // Also long after its time: with messages waiting, one of those is the probe.
    scene.confirm();
    scene.pass(3600);
    let id = scene.admit(A);
    assert!(matches!(scene.place_of(id), Some(Place::Waiting(_))));
    assert_eq!(scene.n_out(A), 0);
}

#[test]
fn a_probe_that_is_delivered_brings_the_lane_up_and_more_of_what_waits_is_asked_for() {
    let mut scene = Scene::new(limits());
    scene.admit_many(A, 3);
    scene.finish(A, later(Fault::NoAnswer));
    scene.confirm();
    scene.pass(6);
    scene.admit_with(A, Source::Waiting { probe: true }, |claim| claim.id = Id(1));
    assert_eq!(scene.n_out(A), 1);
    scene.finish(A, Outcome::Delivered);
    assert_eq!(scene.changes.last(), Some(&LaneChange::Up(Arc::from(A))));
    assert_eq!(scene.wants(), vec![want(A, 16)], "256 messages among 16 workers");
    assert!(matches!(scene.news.last(), Some(News::Back { .. })));
}

#[test]
fn what_arrives_while_older_ones_wait_queues_behind_them() {
    let mut scene = Scene::new(limits());
    scene.admit_many(A, 3);
    scene.finish(A, later(Fault::NoAnswer));
    scene.confirm();
    scene.pass(6);
    scene.admit_with(A, Source::Waiting { probe: true }, |claim| claim.id = Id(1));
    scene.finish(A, Outcome::Delivered);
    let id = scene.admit(A);
    assert!(matches!(scene.place_of(id), Some(Place::Waiting(_))));
}

#[test]
fn an_emptied_lane_takes_new_messages_again_but_not_while_one_is_on_its_way_to_wait() {
    let mut scene = Scene::new(limits());
    scene.admit(A);
    scene.finish(A, later(Fault::NoAnswer));
    let asked = scene.now;
    // The failed one is on its way: the queue may not have seen it when it said that nothing waits.
    scene.lanes.emptied(A, asked);
    assert!(scene.lanes.lanes[0].has_waiting);
    scene.pass(1);
    scene.confirm();
    scene.lanes.emptied(A, asked);
    assert!(scene.lanes.lanes[0].has_waiting, "confirmed only after the queue was asked");
    scene.pass(1);
    scene.lanes.emptied(A, scene.now);
    assert!(!scene.lanes.lanes[0].has_waiting);
    scene.admit_with(A, Source::Waiting { probe: true }, |claim| claim.id = Id(1));
    scene.finish(A, Outcome::Delivered);
    scene.admit(A);
    assert_eq!(scene.n_out(A), 1);
}

#[test]
fn what_failed_goes_out_before_what_came_later() {
    let mut scene = Scene::new(limits());
    scene.widen(A);
    scene.admit_many(A, 20);
    let first = scene.next_id;
    scene.admit_with(A, Source::Waiting { probe: false }, |claim| claim.id = Id(first - 15));
    let held: Vec<u64> = scene.lanes.lanes[0].held.iter().map(|claim| claim.id.0).collect();
    assert!(held.is_sorted(), "{held:?}");
}

#[test]
fn a_lane_that_is_down_and_has_nothing_waiting_is_tried_with_what_comes_after_its_time() {
    let mut scene = Scene::new(limits());
    scene.admit(A);
    let id = scene.finish(A, Outcome::Dead { reason: "gave up".to_string(), fault: Some(Fault::NoAnswer) });
    assert_eq!(scene.place_of(id), Some(&Place::Dead));
    scene.confirm();
    let early = scene.admit(A);
    assert!(matches!(scene.place_of(early), Some(Place::Waiting(_))));
    scene.confirm();
    scene.pass(10);
    scene.lanes.emptied(A, scene.now);
    scene.admit(A);
    assert_eq!(scene.n_out(A), 1);
}

#[test]
fn a_lane_that_is_down_for_another_agent_is_not_tried_from_here() {
    let mut scene = Scene::new(limits());
    let known = WaitingLane { origin: A.to_string(), due_in: Some(Duration::from_secs(40)), is_paused: false };
    scene.lanes.learn(&[known], scene.now, scene.now);
    let id = scene.admit(A);
    assert!(matches!(scene.place_of(id), Some(Place::Waiting(Some(_)))));
    assert_eq!(scene.n_out(A), 0);
}

#[test]
fn what_the_queue_gives_out_again_before_its_settling_is_noted_here_is_taken() {
    let mut scene = Scene::new(limits());
    scene.widen(A);
    let id = scene.admit(A);
    scene.finish(A, later(Fault::Message));
    scene.pass(6);
    // The settler has not yet told of the confirmation, but the reader has claimed it again.
    scene.admit_with(A, Source::Retry, |claim| {
        claim.id = id;
        claim.history.own_failures = 1;
    });
    assert_eq!(scene.n_out(A), 1);
    scene.confirm();
    assert!(scene.lanes.holds(id), "it is here, whatever was confirmed of an earlier settlement");
    scene.finish(A, Outcome::Delivered);
    scene.confirm();
    assert!(!scene.lanes.holds(id));
}

#[test]
fn what_the_queue_gave_out_before_it_knew_of_a_failure_does_not_bring_the_lane_up() {
    // [Else a younger message overtook those that the outage gave back.]
    for probe in [false, true] {
        let mut scene = Scene::new(ordered());
        scene.admit_many(A, 3);
        scene.finish(A, later(Fault::NoAnswer));
        let younger = scene.admit_with(A, Source::Waiting { probe }, |_| {});
        assert!(matches!(scene.place_of(younger), Some(Place::Waiting(_))));
        assert_eq!(scene.n_out(A), 0);
        let due_again = scene.changes.iter().any(|change| matches!(change, LaneChange::Due { .. }));
        assert_eq!(due_again, probe, "the time set aside for a probe is given back");
    }
}

#[test]
fn what_was_waiting_does_not_overtake_what_a_lane_that_holds_too_much_gives_back() {
    let mut scene = Scene::new(ordered());
    scene.widen(A);
    scene.admit_many(A, 256);
    scene.pass(1);
    scene.appetite();
    assert!(scene.n_waiting(A) > 200);
    let younger = scene.admit_with(A, Source::Waiting { probe: false }, |_| {});
    assert!(matches!(scene.place_of(younger), Some(Place::Waiting(_))), "older ones are on their way to wait");
    // Those that arrive meanwhile are younger than any that waits, and hold up nothing.
    let first_to_wait = scene.settled.iter().find(|one| matches!(one.place, Place::Waiting(_))).unwrap().id;
    scene.confirm();
    scene.appetite();
    scene.admit(A);
    scene.admit_with(A, Source::Waiting { probe: false }, |claim| claim.id = first_to_wait);
    assert!(scene.place_of(first_to_wait).is_none(), "taken in");
}

#[test]
fn what_is_put_to_wait_a_second_time_is_not_overtaken_once_the_first_time_is_confirmed() {
    // [Else a younger one overtook it: seen in the torture.]
    let mut scene = Scene::new(ordered());
    scene.admit_many(A, 3);
    scene.finish(A, later(Fault::NoAnswer));
    let first_time = std::mem::take(&mut scene.settled);
    assert_eq!(first_time.len(), 3);
    let second = first_time[1].id;
    // The queue has them before that is known here, and gives out the second while the first is on its way.
    scene.admit_with(A, Source::Waiting { probe: false }, |claim| claim.id = second);
    assert!(matches!(scene.place_of(second), Some(Place::Waiting(_))));
    scene.lanes.confirmed(&first_time, scene.now);
    scene.appetite();
    let third = scene.admit_with(A, Source::Waiting { probe: false }, |claim| claim.id = first_time[2].id);
    assert!(matches!(scene.place_of(third), Some(Place::Waiting(_))), "the second is on its way to wait");
    assert_eq!(scene.n_out(A), 0);
    // And then all is as before.
    scene.confirm();
    scene.admit_with(A, Source::Waiting { probe: false }, |claim| claim.id = second);
    scene.admit_with(A, Source::Waiting { probe: false }, |claim| claim.id = third);
    assert_eq!(scene.finish(A, Outcome::Delivered), second);
    assert_eq!(scene.finish(A, Outcome::Delivered), third);
}

#[test]
fn a_probe_is_taken_however_many_arrive_for_its_lane_that_is_down() {
    let mut scene = Scene::new(limits());
    let oldest = scene.admit(A);
    scene.finish(A, later(Fault::NoAnswer));
    scene.confirm();
    scene.pass(6);
    scene.appetite();
    scene.admit_many(A, 50);
    scene.admit_with(A, Source::Waiting { probe: true }, |claim| claim.id = oldest);
    assert_eq!(scene.n_out(A), 1);
}

#[test]
fn a_recovered_message_frees_the_lane_that_its_dead_agent_was_probing() {
    for limits in [limits(), ordered()] {
        let mut scene = Scene::new(limits);
        let known = WaitingLane { origin: A.to_string(), due_in: Some(Duration::from_secs(35)), is_paused: false };
        scene.lanes.learn(&[known], scene.now, scene.now);
        scene.admit_with(A, Source::Retry, |claim| claim.recovered = 1);
        assert_eq!(scene.changes, vec![LaneChange::Freed(Arc::from(A))]);
    }
}

#[test]
fn a_probe_of_a_lane_that_is_up_here_gives_back_the_time_set_aside_for_it() {
    let mut scene = Scene::new(limits());
    scene.widen(A);
    scene.admit_with(A, Source::Waiting { probe: true }, |_| {});
    assert_eq!(scene.changes, vec![LaneChange::Up(Arc::from(A))]);
}

#[test]
fn a_probe_of_a_lane_that_another_message_brought_up_meanwhile_frees_it_in_the_queue() {
    let mut scene = Scene::new(limits());
    scene.admit(A);
    scene.admit_with(A, Source::Waiting { probe: true }, |_| {});
    scene.finish(A, Outcome::Delivered);
    scene.finish(A, Outcome::Delivered);
    assert!(scene.changes.contains(&LaneChange::Up(Arc::from(A))), "[else the rest waits for a whole attempt]");
}

#[test]
fn a_probe_that_says_nothing_of_its_endpoint_frees_the_lane_in_the_queue() {
    let refused = Outcome::Dead { reason: "refused".to_string(), fault: None };
    for outcome in [refused, later(Fault::Message)] {
        let mut scene = Scene::new(limits());
        scene.admit_with(A, Source::Waiting { probe: true }, |_| {});
        scene.finish(A, outcome);
        assert_eq!(scene.changes, vec![LaneChange::Up(Arc::from(A))]);
    }
}

// ---- rule 5: lanes not proven ----

#[test]
fn lanes_not_proven_have_half_of_the_workers_and_failed_ones_a_quarter() {
    let probe = Source::Waiting { probe: true };
    let mut scene = Scene::new(limits());
    for n in 0..20 {
        scene.lanes.has_failed(&failed(&origin(n), 1, true), scene.now);
        scene.admit_with(&origin(n), probe, |_| {});
    }
    assert_eq!(scene.out.len(), 3, "a quarter, less what is kept for those that fail fast");
    for n in 20..40 {
        scene.lanes.has_failed(&failed(&origin(n), 1, false), scene.now);
        scene.admit_with(&origin(n), probe, |_| {});
    }
    assert_eq!(scene.out.len(), 4, "a quarter");
    for n in 40..60 {
        scene.admit(&origin(n));
    }
    assert_eq!(scene.out.len(), 8, "half");
    // A proven lane does not care.
    let mut proven = Scene::new(limits());
    proven.widen(A);
    for n in 0..40 {
        proven.admit(&origin(n));
    }
    assert_eq!(proven.out.len(), 6, "half, less what is kept for those that failed");
    proven.admit_many(A, 8);
    assert_eq!((proven.n_out(A), proven.out.len()), (8, 14));
}

#[test]
fn a_lane_that_failed_is_tried_however_many_new_ones_hang() {
    // [Behind 300 black holes an endpoint that was well again was not tried for a minute.]
    for workers in [2, 4, 16, 128] {
        let mut scene = Scene::new(Limits { workers, endpoint_concurrency: 1, messages: 4096, ..limits() });
        for n in 0..300 {
            scene.admit(&origin(n));
        }
        assert!(scene.appetite().unwrap().failed_probes > 0, "{workers}");
        scene.lanes.has_failed(&failed(A, 1, false), scene.now);
        scene.admit_with(A, Source::Waiting { probe: true }, |_| {});
        let mut n_timed_out = 0;
        while scene.n_out(A) == 0 {
            let hanging = scene.out.front().unwrap().0.origin.to_string();
            scene.finish(&hanging, later(Fault::NoAnswer));
            n_timed_out += 1;
        }
        assert!(n_timed_out <= if workers < 16 { 2 } else { 0 }, "{workers}: {n_timed_out}");
    }
}

#[test]
fn slow_lanes_have_half_of_the_workers_until_they_have_shown_to_be_fast() {
    // [128 origins that answer 200 after 28 s: a healthy endpoint waited for 23 s.]
    let mut scene = Scene::new(limits());
    scene.widen(A);
    for n in 0..20 {
        scene.admit(&origin(n));
        scene.finish(&origin(n), Outcome::Delivered);
    }
    for n in 0..20 {
        scene.admit(&origin(n));
    }
    assert_eq!(scene.out.len(), 8, "one delivery says little");
    scene.admit_many(A, 8);
    assert_eq!(scene.n_out(A), 8, "it has always been fast");
    scene.pass(28);
    for n in 0..8 {
        scene.finish(&origin(n), Outcome::Delivered);
    }
    assert_eq!(scene.out.len() - scene.n_out(A), 8, "the next have their turn");
}

#[test]
fn new_goes_before_failed_and_of_the_new_the_newest_first() {
    // [First in, first out: a healthy newcomer began after 304 s, and not after 5.]
    let mut scene = Scene::new(limits());
    for n in 0..100 {
        scene.admit(&origin(n));
    }
    let newcomer = "http://newcomer.test:80";
    scene.admit(newcomer);
    scene.finish(&origin(0), later(Fault::NoAnswer));
    assert_eq!(scene.n_out(newcomer), 1);
    scene.finish(&origin(1), later(Fault::NoAnswer));
    assert_eq!(scene.n_out(&origin(99)), 1);
}

#[test]
fn lanes_not_proven_hold_half_of_the_memory_and_the_rest_waits_in_the_queue() {
    let mut scene = Scene::new(limits());
    for n in 0..200 {
        scene.admit(&origin(n));
    }
    let waiting = scene.settled.iter().filter(|one| one.place == Place::Waiting(None)).count();
    assert_eq!(scene.lanes.shares.held_unproven, 128);
    assert_eq!(waiting, 200 - 128 - 6);
    scene.confirm();
    scene.admit(B);
    assert!(scene.appetite().is_some(), "the reader goes on");
}

// ---- rule 6: memory ----

#[test]
fn while_no_worker_is_idle_only_a_few_are_held() {
    let mut scene = Scene::new(Limits { messages: 4096, ..limits() });
    for lane in 0..2 {
        scene.widen(&origin(lane));
    }
    assert!(scene.appetite().is_some());
    for lane in 0..2 {
        scene.admit_many(&origin(lane), 120);
    }
    assert_eq!(scene.out.len(), 16, "all workers are busy");
    assert!(scene.appetite().is_none(), "240 are held, a claim would be worth 64");
}

#[test]
fn full_with_a_worker_idle_the_lane_that_does_not_keep_up_gives_back_all_but_a_few() {
    let mut scene = Scene::new(limits());
    scene.widen(A);
    scene.admit_many(A, 256);
    assert!(scene.appetite().is_none(), "it is full, and its head has only just come");
    assert_eq!(scene.n_waiting(A), 0);
    scene.pass(1);
    scene.appetite();
    // One went out beside those that are silent for a second by now.
    assert_eq!(scene.n_waiting(A), 256 - 9 - 16);
    scene.confirm();
    assert_eq!(scene.wants(), vec![want(A, 0)], "it still holds what it may");
    for _ in 0..16 {
        scene.finish(A, Outcome::Delivered);
    }
    assert_eq!(scene.wants(), vec![want(A, 16 - scene.lanes.lanes[0].held.len())]);
}

#[test]
fn two_workers_and_eight_in_flight_still_claim() {
    let mut scene = Scene::new(Limits { workers: 2, endpoint_concurrency: 2, messages: 8, ..limits() });
    for n in 0..1000 {
        if scene.appetite().is_some() {
            scene.admit(&origin(n % 3));
        }
        if n % 2 == 0
            && let Some((claim, _)) = scene.out.front()
        {
            let origin = claim.origin.clone();
            scene.finish(&origin, Outcome::Delivered);
            scene.confirm();
        }
    }
    assert!(scene.next_id > 400, "only {} came in", scene.next_id);
}

#[test]
fn bytes_bound_what_is_claimed() {
    let mut scene = Scene::new(Limits { bytes: 40, ..limits() });
    scene.admit(A);
    assert!(scene.appetite().is_none(), "one message is larger than what may be held");
    scene.finish(A, Outcome::Delivered);
    assert!(scene.appetite().is_some());
}

// ---- rule 8 and the rest ----

#[test]
fn lane_records_are_bounded_and_forgotten_when_idle() {
    let mut scene = Scene::new(limits());
    for n in 0..MOST_LANES + 5000 {
        let name = origin(n);
        scene.admit(&name);
        scene.finish(&name, if n % 2 == 0 { Outcome::Delivered } else { later(Fault::NoAnswer) });
        scene.confirm();
    }
    assert!(scene.lanes.by_origin.len() <= MOST_LANES);
    assert!(scene.lanes.lanes.len() <= MOST_LANES);
}

#[test]
fn what_agents_died_of_is_counted_by_how_many_died() {
    let mut scene = Scene::new(limits());
    let seen = |scene: &mut Scene| {
        let bounds = scene.appetite().unwrap();
        (bounds.fragile, bounds.suspects, bounds.gravest)
    };
    assert_eq!(seen(&mut scene), (16, 0, 0));
    scene.admit_with(&origin(1), Source::Retry, |claim| claim.recovered = 2);
    assert_eq!(seen(&mut scene), (15, 1, 2));
    scene.admit_with(&origin(2), Source::Retry, |claim| claim.recovered = 7);
    assert_eq!(seen(&mut scene), (14, 2, 4));
    scene.finish(&origin(2), Outcome::Delivered);
    assert_eq!(seen(&mut scene), (15, 1, 2));
    scene.finish(&origin(1), later(Fault::NoAnswer));
    assert_eq!(seen(&mut scene), (16, 0, 0));
}

#[test]
fn what_was_in_flight_in_an_agent_that_died_goes_out_at_once_or_waits_in_the_queue() {
    // [Else two deaths in a row made suspects of thousands that were never attempted.]
    for limits in [limits(), ordered()] {
        let mut scene = Scene::new(limits);
        for _ in 0..3 {
            scene.admit_with(A, Source::Waiting { probe: false }, |claim| claim.recovered = 1);
        }
        assert_eq!((scene.n_out(A), scene.n_waiting(A)), (1, 2));
        assert_eq!(scene.lanes.shares.held_unproven, 0);
    }
}

#[test]
fn a_machine_that_lacks_something_blames_nobody() {
    let mut scene = Scene::new(limits());
    scene.widen(A);
    scene.admit_many(A, 8);
    let id = scene.finish(A, later(Fault::Ours));
    assert_eq!(scene.place_of(id), Some(&Place::Retry(AFTER_LACKING)));
    let one = scene.settled.iter().find(|one| one.id == id).unwrap();
    assert_eq!(one.history.attempts, 0);
    assert!(scene.outages(A).is_empty());
}

#[test]
fn a_probe_of_a_closed_lane_that_says_nothing_of_it_is_followed_by_another_soon() {
    // [Else the lane was left alone for the whole attempt that the queue had set aside.]
    let refused = Outcome::Dead { reason: "refused".to_string(), fault: None };
    for (limits, outcome) in [(limits(), refused), (limits(), later(Fault::Ours)), (ordered(), later(Fault::Ours))] {
        let mut scene = Scene::new(limits);
        scene.admit(A);
        scene.finish(A, later(Fault::NoAnswer));
        scene.confirm();
        scene.pass(6);
        scene.changes.clear();
        scene.admit_with(A, Source::Waiting { probe: true }, |_| {});
        scene.finish(A, outcome);
        let due = LaneChange::Due { origin: Arc::from(A), after: AFTER_LACKING };
        assert!(scene.changes.contains(&due), "{:?}", scene.changes);
    }
}

#[test]
fn a_refused_endpoint_does_not_close_its_lane() {
    let mut scene = Scene::new(limits());
    for _ in 0..20 {
        scene.admit(A);
        let id = scene.finish(A, Outcome::Dead { reason: "refused".to_string(), fault: None });
        assert_eq!(scene.place_of(id), Some(&Place::Dead));
    }
    assert!(scene.outages(A).is_empty());
}

#[test]
fn half_of_an_odd_bound_is_rounded_up_and_down_in_turn() {
    let mut scene = Scene::new(Limits { workers: 1, endpoint_concurrency: 1, messages: 1, ..limits() });
    let returning: Vec<usize> = (0..4).map(|_| scene.appetite().unwrap().returning).collect();
    assert_eq!(returning, vec![1, 0, 1, 0]);
}

#[test]
fn claims_of_another_agent_now_are_discarded_and_the_counts_stay_right() {
    let mut scene = Scene::new(limits());
    scene.widen(A);
    scene.admit_many(A, 20);
    let ids: HashSet<Id> = scene.lanes.held().into_iter().collect();
    let mut effects = Effects::default();
    scene.lanes.discard(|id, _| ids.contains(&id), scene.now, &mut effects);
    scene.perform(effects);
    assert_eq!(scene.lanes.held.len(), 0);
    while let Some((claim, _)) = scene.out.pop_front() {
        assert!(!scene.lanes.holds(claim.id) && scene.lanes.is_discarded(&claim));
        let mut effects = Effects::default();
        scene.lanes.abandon(claim, scene.now, &mut effects);
        scene.perform(effects);
    }
    let lanes = &scene.lanes;
    assert_eq!((lanes.shares, lanes.held_bytes), (Shares::default(), 0));
    assert!(lanes.discarded.is_empty());
}

#[test]
fn what_is_discarded_while_it_is_out_takes_room_until_it_comes_back() {
    // [Else as much again was claimed at every discarding, and more was out than there is room for.]
    let mut scene = Scene::new(limits());
    scene.widen(A);
    scene.lanes.limits.messages = 16;
    scene.admit_many(A, 16);
    assert!(!scene.lanes.has_room());
    let n_out = scene.out.len();
    assert!(n_out > 4, "{n_out} are out");
    let mut effects = Effects::default();
    scene.lanes.discard(|_, _| true, scene.now, &mut effects);
    scene.perform(effects);
    let room = scene.appetite().map_or(0, |bounds| bounds.messages);
    assert!(room <= 16 - n_out, "room for {room} beside {n_out} that are out");
}

#[test]
fn a_discarded_claim_that_ends_leaves_the_same_message_held_anew_alone() {
    let mut scene = Scene::new(limits());
    scene.admit(A);
    let (old, _) = scene.out.pop_front().unwrap();
    let mut effects = Effects::default();
    scene.lanes.discard(|_, _| true, scene.now, &mut effects);
    let (id, envelope) = (old.id, Envelope::decode(old.envelope.raw().to_vec()).unwrap());
    let anew = Claim::new(id, envelope, History::default(), 0, Source::Retry, AgentNumber(99), scene.now);
    scene.lanes.admit(Box::new(anew), scene.now, &mut effects);
    let now = scene.now;
    scene.lanes.finish(old, Outcome::Delivered, None, now, now, &mut effects);
    let settled: Vec<_> = effects.settlements.drain(..).collect();
    scene.lanes.confirmed(&settled, now);
    assert!(scene.lanes.holds(id));
    assert!(scene.lanes.discarded.is_empty());
}

// ---- ordered ----

fn ordered() -> Limits {
    Limits { ordered: true, ..limits() }
}

#[test]
fn ordered_lets_out_one_at_a_time_whatever_was_delivered() {
    let mut scene = Scene::new(ordered());
    scene.admit_many(A, 50);
    for _ in 0..50 {
        assert_eq!(scene.n_out(A), 1);
        scene.finish(A, Outcome::Delivered);
    }
}

#[test]
fn ordered_every_failure_closes_the_lane_and_the_message_waits_at_its_head() {
    for fault in [Fault::NoAnswer, Fault::Throttled, Fault::Message, Fault::Ours] {
        let mut scene = Scene::new(ordered());
        scene.admit_many(A, 5);
        let failed = scene.finish(A, later(fault));
        assert!(matches!(scene.place_of(failed), Some(Place::Waiting(_))), "{fault:?}");
        assert_eq!((scene.n_waiting(A), scene.n_out(A)), (5, 0), "{fault:?}");
        assert_eq!(scene.outages(A).len(), 1, "{fault:?}");
    }
}

#[test]
fn ordered_files_recovered_messages_before_anything_else_is_claimed() {
    let mut scene = Scene::new(ordered());
    let id = scene.admit_with(A, Source::Retry, |claim| claim.recovered = 1);
    assert!(matches!(scene.place_of(id), Some(Place::Waiting(_))));
    assert!(scene.appetite().is_none());
    let younger = scene.admit(A);
    assert!(matches!(scene.place_of(younger), Some(Place::Waiting(_))), "it queues behind");
    scene.confirm();
    assert!(scene.appetite().is_some());
}

#[test]
fn ordered_a_dead_message_makes_way_for_the_next() {
    let mut scene = Scene::new(ordered());
    scene.admit_many(A, 2);
    scene.finish(A, Outcome::Dead { reason: "410 Gone".to_string(), fault: Some(Fault::Message) });
    assert_eq!(scene.n_out(A), 1);
}

/// Random traffic: whatever happens, the counts agree with the lanes.
#[test]
fn the_counts_agree_with_the_lanes_whatever_happens() {
    for seed in 1..40u64 {
        let mut scene = Scene::new(Limits { ordered: seed % 4 == 0, ..limits() });
        let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut next = |n: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % n
        };
        for _ in 0..3000 {
            let name = origin(next(12) as usize);
            match next(10) {
                0..4 => {
                    let probe = next(2) == 0;
                    let sources = [Source::Queue, Source::Queue, Source::Retry, Source::Waiting { probe }];
                    let (own, recovered) = (next(2) as u32, next(4) as u32);
                    scene.admit_with(&name, sources[next(4) as usize], |claim| {
                        claim.history.own_failures = own;
                        claim.recovered = recovered;
                    });
                }
                4..8 => {
                    if !scene.out.is_empty() {
                        let at = next(scene.out.len() as u64) as usize;
                        let name = scene.out[at].0.origin.clone();
                        let faults = [Fault::NoAnswer, Fault::Throttled, Fault::Message, Fault::Ours];
                        let outcome = match next(4) {
                            0 => later(faults[next(4) as usize]),
                            1 if next(3) == 0 => Outcome::Dead { reason: "r".to_string(), fault: None },
                            _ => Outcome::Delivered,
                        };
                        scene.finish(&name, outcome);
                    }
                }
                8 => scene.confirm(),
                _ => {
                    scene.pass(next(5));
                    scene.appetite();
                    scene.lanes.emptied(&name, scene.now);
                }
            }
            let lanes = &scene.lanes;
            let sum = |of: &dyn Fn(&Lane) -> usize| lanes.lanes.iter().map(of).sum::<usize>();
            let mut shares = Shares::default();
            for lane in &lanes.lanes {
                shares += lane.shares();
            }
            assert_eq!(lanes.shares, shares);
            assert_eq!(lanes.shares.out, scene.out.len());
            let held = sum(&|lane| lane.held.len()) + scene.out.len() + scene.settled.len();
            assert_eq!(lanes.held.len(), held, "every claim held is in a lane, out, or on its way to be settled");
            assert!(lanes.lanes.iter().all(|lane| lane.out.len() <= 8 + 2 + 4));
            // What may go out does.
            let stuck = lanes
                .lanes
                .iter()
                .any(|lane| lane.state == State::Up && lane.has_room() && !lane.held.is_empty() && !lane.on_stack);
            assert!(!stuck, "a lane that is up holds what it could send");
        }
    }
}

// ---- redirects ----

#[test]
fn a_lane_that_only_others_have_seen_fail_is_down_for_a_redirect_too_and_not_full() {
    let mut scene = Scene::new(limits());
    let waiting = WaitingLane { origin: B.to_string(), due_in: Some(Duration::from_secs(9)), is_paused: false };
    scene.lanes.learn(&[waiting], scene.now, scene.now);
    let Err(Closed::Down { wait, why }) = scene.lanes.enter(B, scene.now) else { panic!("it is down") };
    assert_eq!((wait, why.as_str()), (Duration::from_secs(9), ""));
}

#[test]
fn a_redirected_attempt_takes_a_place_where_it_is_redirected_to_and_what_becomes_of_it_is_that_ones() {
    let mut scene = Scene::new(limits());
    scene.admit_many(A, 2);
    scene.finish(A, Outcome::Delivered);
    assert_eq!(scene.lanes.enter(B, scene.now), Ok(()));
    assert_eq!(scene.lanes.enter(B, scene.now), Err(Closed::Full), "its window is one");
    let (claim, begun) = scene.out.pop_front().unwrap();
    let mut effects = Effects::default();
    scene.lanes.finish(claim, later(Fault::Throttled), Some(B), begun, scene.now, &mut effects);
    scene.perform(effects);
    assert!(matches!(scene.settled.last().unwrap().place, Place::Retry(_)));
    assert_eq!((scene.outages(A).len(), scene.outages(B).len()), (0, 1));
    let Err(Closed::Down { wait, why }) = scene.lanes.enter(B, scene.now) else { panic!("it is down") };
    assert!(wait >= Duration::from_secs(4) && !why.is_empty(), "{wait:?} {why:?}");
    scene.pass(7);
    assert_eq!(scene.lanes.enter(B, scene.now), Ok(()), "its time is over: this one tries it");
    assert!(scene.lanes.enter(B, scene.now).is_err());
    scene.lanes.leave(B, scene.now, &mut Effects::default());
    scene.pass(2);
    assert_eq!(scene.lanes.enter(B, scene.now), Ok(()), "nothing became of that");
    scene.admit(A);
    let (claim, begun) = scene.out.pop_front().unwrap();
    let mut effects = Effects::default();
    scene.lanes.finish(claim, Outcome::Delivered, Some(B), begun, scene.now, &mut effects);
    let at = scene.lanes.by_origin[B];
    assert_eq!((scene.lanes.lanes[at].state, scene.lanes.lanes[at].guests), (State::Up, 0));
}

#[test]
fn a_redirect_to_what_takes_nothing_now_is_a_failure_of_the_message_alone() {
    let mut scene = Scene::new(limits());
    scene.widen(A);
    for n in 0..20 {
        let id = scene.admit(A);
        let wait = Some(Duration::from_secs(60));
        scene.finish(A, Outcome::Later { fault: Fault::Elsewhere, retry_after: wait, error: "busy".to_string() });
        assert_eq!(scene.place_of(id), Some(&Place::Retry(Duration::from_secs(60))), "{n}");
    }
    assert!(scene.outages(A).is_empty());
}

fn paused(origins: &[&str], number: u64) -> Orders {
    let order = |origin: &&str| (origin.to_string(), Order::Paused(number));
    Orders { number, by_origin: origins.iter().map(order).collect() }
}

impl Scene {
    fn obey(&mut self, orders: Orders) {
        let mut effects = Effects::default();
        self.lanes.obey(orders, self.now, &mut effects);
        while self.lanes.put_away(3, self.now, &mut effects) {}
        self.perform(effects);
    }
}

#[test]
fn what_is_held_for_a_paused_lane_waits_in_the_queue_and_what_is_out_ends() {
    let mut scene = Scene::new(limits());
    scene.widen(A);
    scene.admit_many(A, 20);
    let (out, settled) = (scene.n_out(A), scene.settled.len());
    assert!(out > 0 && out < 20);
    scene.obey(paused(&[A], 1));
    assert_eq!((scene.n_out(A), scene.settled.len() - settled, scene.n_waiting(A)), (out, 20 - out, 20 - out));
    assert_eq!(scene.news.last(), Some(&News::Ordered { paused: vec![A.to_string()], resumed: Vec::new() }));
    // Nothing is asked for meanwhile, and what comes waits as well, on a backoff of its own or not.
    assert_eq!(scene.wants(), []);
    let own = scene.admit_with(A, Source::Retry, |claim| claim.history.own_failures = 2);
    let new = scene.admit(A);
    let probe = scene.admit_with(A, Source::Waiting { probe: true }, |_| {});
    assert!([own, new, probe].iter().all(|id| matches!(scene.place_of(*id), Some(Place::Waiting(_)))));
    // What was let out and not begun comes back unattempted.
    let (claim, _) = scene.out.pop_front().unwrap();
    let id = claim.id;
    let mut effects = Effects::default();
    scene.lanes.withdraw(claim, scene.now, &mut effects);
    scene.perform(effects);
    assert_eq!(scene.settled.last().map(|one| (one.id, one.history.attempts)), Some((id, 0)));
    scene.finish(A, Outcome::Delivered);
    assert_eq!((scene.n_out(A), scene.wants()), (out - 2, vec![]));
    // Another endpoint is not held up, and a redirect goes no way round.
    scene.admit(B);
    assert_eq!(scene.n_out(B), 1);
    assert_eq!(scene.lanes.enter(A, scene.now), Err(Closed::Paused));
    // Resumed, the queue gives out one to try it, and then the others.
    scene.confirm();
    scene.obey(paused(&[], 2));
    assert_eq!(scene.news.last(), Some(&News::Ordered { paused: Vec::new(), resumed: vec![A.to_string()] }));
    scene.admit_with(A, Source::Waiting { probe: true }, |claim| claim.id = id);
    assert_eq!(scene.n_out(A), out - 1);
    while scene.n_out(A) > 0 {
        scene.finish(A, Outcome::Delivered);
    }
    assert!(!scene.wants().is_empty());
}

#[test]
fn a_lane_first_seen_while_it_is_paused_is_paused() {
    let mut scene = Scene::new(limits());
    scene.obey(paused(&[A], 1));
    let id = scene.admit(A);
    assert_eq!((scene.n_out(A), scene.place_of(id)), (0, Some(&Place::Waiting(None))));
    // The time of a paused lane says nothing of its endpoint.
    let known = WaitingLane { origin: B.to_string(), due_in: Some(Duration::MAX / 4), is_paused: true };
    scene.lanes.learn(&[known], scene.now, scene.now);
    assert_eq!(scene.lanes.counts().down, 0);
}

#[test]
fn a_lane_that_is_down_is_tried_at_once_when_an_operator_says_so() {
    for resumed in [false, true] {
        let mut scene = Scene::new(limits());
        scene.admit(A);
        scene.finish(A, later(Fault::Unreachable));
        scene.confirm();
        scene.admit(A);
        assert_eq!((scene.n_out(A), scene.n_waiting(A)), (0, 1));
        scene.confirm();
        if resumed {
            scene.obey(paused(&[A], 1));
            scene.obey(paused(&[], 2));
        } else {
            let by_origin = [(A.to_string(), Order::Try(2))].into();
            scene.obey(Orders { number: 2, by_origin });
        }
        // With whatever comes first, be it on a backoff of its own.
        scene.admit_with(A, Source::Retry, |claim| claim.history.own_failures = 1);
        assert_eq!(scene.n_out(A), 1);
        scene.finish(A, Outcome::Delivered);
        assert_eq!(scene.lanes.counts().up, 1);
    }
}

#[test]
fn a_time_that_no_backoff_comes_to_was_written_by_a_clock_that_was_ahead() {
    // [Else each message that was put to wait made the lane due in weeks again, whatever the queue had mended.]
    let mut scene = Scene::new(limits());
    let known = |due_in| WaitingLane { origin: A.to_string(), due_in: Some(due_in), is_paused: false };
    scene.lanes.learn(&[known(Duration::from_secs(960 * 3600))], scene.now, scene.now);
    let id = scene.admit(A);
    assert_eq!(scene.place_of(id), Some(&Place::Waiting(Some(Duration::ZERO))));
    // The longest that there is stays.
    scene.pass(1);
    scene.confirm();
    let mut scene = Scene::new(limits());
    scene.lanes.learn(&[known(Duration::from_secs(4000))], scene.now, scene.now);
    let id = scene.admit(A);
    assert_eq!(scene.place_of(id), Some(&Place::Waiting(Some(Duration::from_secs(4000)))));
}

// ---- how long the mutex is held ----

/// Twenty thousand lanes and more, up, down and untried, busy and idle: what is done while the mutex is held, each as
/// `Dispatch` does it. The same is done five times over, and of each step the shortest counts, for all that another
/// program takes away is no part of it.
#[test]
#[ignore = "a measurement: cargo test --release --lib the_longest_hold -- --ignored --nocapture"]
fn the_longest_hold_with_twenty_thousand_lanes() {
    let runs: Vec<Vec<(&str, Duration)>> = (0..5).map(|_| holds()).collect();
    let mut longest: std::collections::BTreeMap<&str, (Duration, usize)> = Default::default();
    for step in 0..runs[0].len() {
        let what = runs[0][step].0;
        assert!(runs.iter().all(|run| run[step].0 == what), "the runs differ");
        let took = runs.iter().map(|run| run[step].1).min().unwrap();
        let (most, n) = longest.entry(what).or_default();
        (*most, *n) = ((*most).max(took), *n + 1);
    }
    for (what, (took, n)) in &longest {
        println!("{what:<40} longest of {n}: {took:?}");
    }
    let (what, (took, _)) = longest.iter().max_by_key(|(_, (took, _))| *took).unwrap();
    assert!(*took < Duration::from_micros(100), "{what}: {took:?}");
}

fn holds() -> Vec<(&'static str, Duration)> {
    let limits = Limits { workers: 128, messages: 4096, bytes: 64 << 20, ..limits() };
    let mut scene = Scene::new(limits);
    let (mut holds, mut random) = (Vec::new(), 7_u64);
    let mut next = move |n: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % n as u64) as usize
    };
    let mut timed = |what, scene: &mut Scene, act: &mut dyn FnMut(&mut Scene, &mut Effects)| {
        let mut effects = Effects::default();
        let begun = Instant::now();
        act(scene, &mut effects);
        holds.push((what, begun.elapsed()));
        scene.perform(effects);
    };
    let now = scene.now;
    let waiting: Vec<WaitingLane> = (0..MOST_LANES / 2)
        .map(|n| WaitingLane {
            origin: origin(n),
            due_in: (n % 3 > 0).then(|| Duration::from_secs(n as u64 % 600)),
            is_paused: false,
        })
        .collect();
    for some in waiting.chunks(32) {
        timed("learn 32 lanes", &mut scene, &mut |scene, _| scene.lanes.learn(some, now, now));
    }
    for round in 0..3000 {
        scene.now += Duration::from_millis(20);
        let now = scene.now;
        // Half of them new, so that others must be forgotten.
        let origins: Vec<String> =
            (0..32).map(|n| origin(if n % 2 == 0 { next(MOST_LANES) } else { MOST_LANES + round * 16 + n })).collect();
        let mut claims: Vec<_> = origins.iter().map(|origin| scene.claim(origin)).collect();
        timed("admit 32 claims", &mut scene, &mut |scene, effects| {
            for claim in claims.drain(..) {
                scene.lanes.admit(claim, now, effects);
            }
        });
        for _ in 0..scene.out.len().min(32) {
            let (claim, begun) = scene.out.pop_front().unwrap();
            let outcome = match next(3) {
                0 => later(Fault::NoAnswer),
                1 => later(Fault::Message),
                _ => Outcome::Delivered,
            };
            let mut claim = Some((claim, outcome));
            timed("finish an attempt", &mut scene, &mut |scene, effects| {
                let (claim, outcome) = claim.take().unwrap();
                scene.lanes.finish(claim, outcome, None, begun, now, effects);
            });
        }
        let settled = std::mem::take(&mut scene.settled);
        for some in settled.chunks(128) {
            timed("confirm 128 settlements", &mut scene, &mut |scene, _| scene.lanes.confirmed(some, now));
        }
        timed("appetite", &mut scene, &mut |scene, effects| {
            scene.lanes.appetite(false, now, effects);
        });
        timed("nudge", &mut scene, &mut |scene, effects| scene.lanes.nudge(now, effects));
        timed("is_hungry", &mut scene, &mut |scene, _| {
            std::hint::black_box(scene.lanes.is_hungry());
        });
        timed("counts", &mut scene, &mut |scene, _| {
            std::hint::black_box(scene.lanes.counts());
        });
        let from = next(scene.lanes.lanes.len());
        timed("look at 64 lanes for those that are down", &mut scene, &mut |scene, _| {
            std::hint::black_box(scene.lanes.down_among(from, 64, now));
        });
        let emptied = origin(next(MOST_LANES));
        timed("emptied", &mut scene, &mut |scene, _| scene.lanes.emptied(&emptied, now));
    }
    assert!(scene.lanes.by_origin.len() > MOST_LANES * 9 / 10, "{}", scene.lanes.by_origin.len());
    holds
}

#[test]
fn what_a_resumed_lane_has_not_put_away_goes_out() {
    let mut scene = Scene::new(limits());
    scene.widen(A);
    scene.admit_many(A, 40);
    let out = scene.n_out(A);
    let mut effects = Effects::default();
    scene.lanes.obey(paused(&[A], 1), scene.now, &mut effects);
    assert!(scene.lanes.put_away(5, scene.now, &mut effects));
    scene.perform(effects);
    // Whatever else happens to it, nothing goes out meanwhile.
    scene.finish(A, Outcome::Delivered);
    assert_eq!((scene.n_out(A), scene.n_waiting(A)), (out - 1, 5));
    scene.obey(paused(&[], 2));
    assert_eq!((scene.n_out(A), scene.n_waiting(A)), (out, 5));
    while scene.n_out(A) > 0 {
        scene.finish(A, Outcome::Delivered);
    }
    assert_eq!(scene.lanes.shares, Shares::default());
}
