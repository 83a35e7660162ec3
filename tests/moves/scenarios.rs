//! One rule each, on a real redis-server whose clock the test sets. The mutations
//! run all of these against scripts with a safety taken out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use acapy_deliver::RedisAddress;
use acapy_deliver::internals::orders::{Before, Hand, MOST_PAUSED, Order, Orders, Standing};
use acapy_deliver::internals::queue::redis::list::{Keys, RedisList};
use acapy_deliver::internals::queue::redis::server::Server;
use acapy_deliver::queue::{
    AgentNumber, Bounds, Claimed, Error, FailedLane, Fate, History, Id, LaneChange, Peer, Place, Pop, Queue, RawClaim,
    Settlement, Source, Waited, Want,
};
use redis::Value;

use crate::memory::{NEVER, Record, State};
use crate::support::{Redis, ms};
use crate::world::{invariant, read_state};

/// What becomes of a script's text, by the name of its file.
pub type Edit<'a> = &'a dyn Fn(&str, String) -> String;

const LEASE: Duration = Duration::from_secs(15);
const LONGEST: Duration = Duration::from_secs(7200);
/// Later than any time here.
const LATE: u64 = 1 << 52;
const SECOND: Duration = Duration::from_secs(1);
/// An entry of another service's schedule that somebody else takes when we have just looked at it.
const SOMEBODY_ELSES: &str = "of somebody else";
const A: &str = "http://a:80";
const B: &str = "http://b:80";

/// A queue of its own on a server.
pub struct Bench {
    prefix: String,
    list: RedisList,
    keys: Keys,
    client: redis::Connection,
    clock: u64,
}

struct Taken {
    claims: Vec<RawClaim>,
    emptied: Vec<String>,
    failures: Vec<FailedLane>,
    oversized: Vec<(Id, usize)>,
    due_in: Option<Duration>,
    more: bool,
}

impl Taken {
    fn ids(&self) -> Vec<Id> {
        self.claims.iter().map(|claim| claim.id).collect()
    }

    fn sources(&self) -> Vec<Source> {
        self.claims.iter().map(|claim| claim.source).collect()
    }
}

fn bounds() -> Bounds {
    Bounds {
        messages: 100_000,
        bytes: 1 << 30,
        largest: 1 << 30,
        returning: 100_000,
        wants: Vec::new(),
        probes: 0,
        failed_probes: 0,
        slow_probes: 0,
        probe_for: SECOND * 35,
        fragile: 100_000,
        suspects: 0,
        gravest: 0,
        ordered: false,
        popped: None,
        seen: 0,
        orders: 0,
    }
}

fn probing() -> Bounds {
    Bounds { probes: 10, failed_probes: 10, slow_probes: 10, ..bounds() }
}

fn ordered() -> Bounds {
    Bounds { ordered: true, ..probing() }
}

fn want(origin: &str, room: usize) -> Want {
    Want { origin: origin.to_string(), room, free: room }
}

fn wanting(origin: &str, n: usize) -> Bounds {
    Bounds { wants: vec![want(origin, n)], ..bounds() }
}

fn settlement(id: Id, place: Place) -> Settlement {
    let history = History { attempts: 1, last_error: "why not".to_string(), ..History::default() };
    Settlement { id, origin: Arc::from(A), place, history, kept: None }
}

fn close(origin: &str, after: Duration, failures: u32) -> LaneChange {
    LaneChange::Down { origin: Arc::from(origin), after, failures, slowly: true, why: "down".to_string() }
}

impl Bench {
    pub fn new(redis: &Redis, edit: Edit) -> Bench {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("scenario-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let server = Server::from(&RedisAddress::new(&redis.url()).unwrap());
        let queue = format!("{prefix}.outbound_transport");
        let edit = |name: &str, text: String| match name {
            // Nothing can come between the steps of taking over here: so one entry always goes to somebody else.
            "take" => format!("redis.call('ZREM', KEYS[1], '{SOMEBODY_ELSES}')\n{}", edit(name, text)),
            _ => edit(name, text),
        };
        let list = RedisList::with_edited_moves(server, &queue, false, Some(&format!("{prefix}-clock")), &edit);
        let (keys, client) = (Keys::new(&queue), redis.client());
        let mut bench = Bench { prefix, list, keys, client, clock: 1_770_000_000_000_000 };
        bench.pass(Duration::ZERO);
        bench
    }

    fn pass(&mut self, time: Duration) {
        self.set_clock(self.clock + time.as_micros() as u64);
    }

    fn set_clock(&mut self, micros: u64) {
        self.clock = micros;
        self.redis(redis::cmd("SET").arg(format!("{}-clock", self.prefix)).arg(micros));
    }

    fn now(&self) -> i64 {
        (self.clock / 1000) as i64
    }

    fn redis(&mut self, command: &redis::Cmd) -> Value {
        command.query(&mut self.client).unwrap()
    }

    fn push(&mut self, n: usize, size: usize) {
        let queue = self.keys.queue().to_string();
        for i in 0..n {
            let mut bytes = format!("{i}").into_bytes();
            bytes.resize(size.max(bytes.len()), b'.');
            self.redis(redis::cmd("RPUSH").arg(&queue).arg(bytes));
        }
    }

    fn join(&mut self) -> AgentNumber {
        self.list.join(LEASE, None, 0).unwrap().number
    }

    fn claim(&mut self, me: AgentNumber, call: u64, bounds: &Bounds) -> Taken {
        self.claim_again(me, call, false, bounds)
    }

    #[track_caller]
    fn claim_again(&mut self, me: AgentNumber, call: u64, again: bool, bounds: &Bounds) -> Taken {
        match self.list.claim(me, call, again, bounds).unwrap() {
            Claimed::Taken { claims, emptied, failures, oversized, due_in, more, .. } => {
                Taken { claims, emptied, failures, oversized, due_in, more }
            }
            other => panic!("claim answers {other:?}"),
        }
    }

    /// An agent that has claimed so many new messages by its call 1.
    fn agent_with(&mut self, n: usize) -> (AgentNumber, Vec<Id>) {
        self.push(n, 10);
        let me = self.join();
        let ids = self.claim(me, 1, &bounds()).ids();
        assert_eq!(ids.len(), n);
        (me, ids)
    }

    fn settle(&mut self, me: AgentNumber, call: u64, settlements: &[Settlement]) -> Vec<Id> {
        self.list.settle(me, call, settlements, &[]).unwrap().unwrap_or_default()
    }

    fn settle_all(&mut self, me: AgentNumber, call: u64, ids: &[Id], place: &Place) -> Vec<Id> {
        let settlements: Vec<_> = ids.iter().map(|id| settlement(*id, place.clone())).collect();
        self.settle(me, call, &settlements)
    }

    /// So many messages wait for the lane A, which may be tried after `delay`.
    fn waiting(&mut self, n: usize, delay: Option<Duration>) -> (AgentNumber, Vec<Id>) {
        let (me, ids) = self.agent_with(n);
        self.settle_all(me, 1, &ids, &Place::Waiting(delay));
        (me, ids)
    }

    /// Lets an agent with these in flight die, as seen by another; returns that one.
    fn die(&mut self, dead: AgentNumber) -> AgentNumber {
        let me = self.join();
        let peer = self.peer(me, dead);
        assert!(self.list.recover(me, &peer, 1000).unwrap().is_some());
        me
    }

    fn peer(&mut self, me: AgentNumber, other: AgentNumber) -> Peer {
        let peers = self.list.beat(me, LEASE, 0, LONGEST).unwrap().peers;
        *peers.iter().find(|peer| peer.number == other).expect("it is listed")
    }

    fn order(&mut self, hand: Hand, origin: &str) -> Option<Before> {
        let before = self.list.order(hand, false, &[origin.to_string()]).unwrap();
        before.map(|before| before.into_iter().next().expect("one for each"))
    }

    /// What a claim of an agent that knows these orders is told.
    fn told(&mut self, me: AgentNumber, call: u64, known: u64) -> Option<Orders> {
        let bounds = Bounds { messages: 0, orders: known, ..bounds() };
        let Claimed::Taken { orders, .. } = self.list.claim(me, call, false, &bounds).unwrap() else { panic!() };
        orders
    }

    #[track_caller]
    fn state(&mut self) -> State {
        let state = read_state(&mut self.client, &self.keys).unwrap();
        invariant(&state).unwrap();
        state
    }
}

/// Each a test of its own, and a line in the table for the mutations.
macro_rules! scenarios {
    ($($name:ident)*) => {
        /// All of them, by name.
        pub const ALL: &[(&str, fn(&mut Bench))] = &[$((stringify!($name), rules::$name)),*];
        $(
            #[test]
            fn $name() {
                let redis = Redis::with(&["appendonly no"]);
                rules::$name(&mut Bench::new(&redis, &|_, text| text));
            }
        )*
    };
}

scenarios! {
    a_claim_takes_no_more_messages_than_asked
    a_claim_stops_after_the_message_that_reaches_its_bytes
    a_huge_message_is_taken_alone
    a_message_larger_than_an_agent_may_hold_is_dead_at_once
    due_retries_come_first_but_only_half_while_messages_are_queued
    returning_messages_have_half_the_bytes_while_messages_are_queued
    a_retry_that_is_not_due_stays_and_is_told
    no_number_is_given_out_that_another_agent_has_seen
    what_two_masters_leave_out_differs
    while_the_counter_is_ahead_of_the_clock_who_joins_leaves_numbers_out
    an_agent_learns_how_far_numbers_were_given_out
    nothing_is_older_than_its_claim_whatever_the_clock_said
    who_joins_learns_how_far_the_clock_went_back_since_the_last_beat
    what_waits_is_pulled_lowest_id_first_and_as_much_as_wanted
    a_probe_takes_one_and_moves_the_lane_on
    a_lane_whose_prober_died_is_due_again
    of_lanes_that_never_failed_the_newest_is_first
    lanes_that_failed_are_tried_whatever_else_may_be_taken
    of_lanes_that_failed_the_last_due_and_the_fast_ones_are_not_left_behind
    every_second_failure_in_a_row_the_newest_is_the_probe
    what_is_due_and_has_no_place_is_looked_for_again_in_a_moment
    an_emptied_lane_is_told_and_forgotten
    what_agents_died_of_is_taken_only_as_far_as_it_goes_out_at_once
    the_more_agents_died_of_a_message_the_fewer_of_such_are_taken_together
    suspects_are_taken_a_few_at_a_time_from_their_lane
    a_message_recovered_for_the_fifth_time_is_dead
    a_settled_attempt_clears_the_count_of_deaths
    an_agent_whose_lease_has_changed_is_not_recovered
    a_recovered_agent_is_gone_and_leaves_no_calls
    leaving_gives_back_everything_without_counting_a_death
    a_settle_sent_again_changes_nothing
    what_was_settled_is_counted_once
    a_claim_sent_again_answers_the_same
    an_empty_claim_sent_again_leaves_nothing_to_a_late_first
    an_older_claim_takes_nothing
    a_standby_that_asked_again_leaves_nothing_to_a_late_first
    what_was_delivered_goes_wherever_it_is
    what_is_not_ours_any_more_stays_where_it_is
    the_first_failure_of_a_message_is_remembered
    a_delivered_message_leaves_no_count_of_deaths
    a_lane_closes_once_for_the_same_failure
    a_lane_keeps_its_time_when_more_comes_to_wait
    a_wanted_lane_that_failed_gives_one_probe
    a_lane_whose_probe_came_back_is_due_and_one_that_backs_off_is_not
    a_full_redis_still_makes_every_move
    twenty_thousand_messages_are_settled_and_recovered_in_one_go
    a_wrong_type_at_any_key_leaves_everything_as_it_was
    dead_letters_past_their_keeping_are_forgotten
    only_the_dead_are_replayed_as_if_never_attempted
    only_the_dead_are_dropped
    what_another_service_put_off_is_taken_over_and_due_when_it_was
    what_somebody_else_took_meanwhile_is_theirs
    scripts_that_the_server_forgot_are_sent_again
    no_number_is_used_twice_when_the_clock_goes_back
    no_number_is_used_twice_when_the_counter_is_lost
    a_beat_lists_the_others_and_strangers_and_never_registers
    only_what_is_in_flight_here_is_given_back
    an_agent_taken_for_dead_learns_of_it_when_it_joins_again
    so_many_agents_taken_for_dead_are_remembered
    no_number_is_given_out_that_an_agent_has_seen
    what_redis_has_lost_is_restored_and_the_rest_stays_where_it_is
    a_settle_sent_again_says_again_what_was_not_ours
    what_is_due_later_than_any_delay_is_due_now
    a_beat_tells_how_long_each_lease_is
    in_order_only_the_oldest_agent_claims
    in_order_nobody_claims_while_a_stranger_has_messages_in_flight
    in_order_retries_come_alone_due_or_not
    numbers_go_on_from_now_when_the_counter_is_none
    what_is_no_id_is_put_out_of_the_way_of_retries
    what_waits_without_an_id_is_passed_over
    scores_of_what_waits_are_put_right
    a_lane_for_which_nothing_waits_is_forgotten
    agents_and_owners_that_are_no_numbers_are_nobody
    an_agent_with_any_lease_can_be_taken_back
    what_is_in_flight_and_no_message_is_taken_back_out_of_the_way
    counts_that_are_none_are_nought
    calls_that_are_no_numbers_are_none
    a_dead_letter_without_a_time_or_an_id_is_kept
    a_first_failure_long_before_any_is_none
    a_message_without_a_name_is_not_lost
    a_paused_lane_is_given_to_nobody_and_no_move_makes_it_due
    a_lane_that_is_resumed_is_due_at_once
    agents_are_told_what_is_ordered_once
    what_waits_for_a_paused_endpoint_grows_no_older
    only_what_backs_off_is_tried_and_that_is_told_for_a_minute
    an_order_that_is_dry_or_too_much_changes_nothing
    what_is_retried_now_is_due_and_has_no_backoff_of_its_own
    only_what_waits_is_dropped_and_its_lane_with_the_last
}

mod rules {
    use super::*;

    pub fn a_paused_lane_is_given_to_nobody_and_no_move_makes_it_due(b: &mut Bench) {
        let (me, ids) = b.agent_with(6);
        b.settle_all(me, 1, &ids[..2], &Place::Waiting(Some(Duration::ZERO)));
        // Its probe is out.
        assert_eq!(b.claim(me, 2, &probing()).ids(), ids[..1]);
        let before = b.order(Hand::Pause, A).unwrap();
        assert_eq!((before.standing, before.messages), (Standing::Probed, 1));
        assert_eq!(b.order(Hand::Pause, B).unwrap().standing, Standing::Unknown);
        let never = |b: &mut Bench, what: &str| {
            let state = b.state();
            assert!(state.lanes.values().all(|due| *due == NEVER), "{what}: {:?}", state.lanes);
        };
        never(b, "pause");
        b.settle_all(me, 2, &ids[..1], &Place::Waiting(Some(SECOND)));
        b.settle_all(me, 3, &ids[2..3], &Place::Waiting(None));
        // A lane that comes to be.
        let of_b = |n: usize| Settlement { origin: Arc::from(B), ..settlement(ids[n], Place::Waiting(None)) };
        b.settle(me, 4, &[of_b(3), Settlement { place: Place::Waiting(Some(SECOND)), ..of_b(4) }]);
        never(b, "waits");
        let changes = [
            LaneChange::Freed(Arc::from(A)),
            LaneChange::Due { origin: Arc::from(A), after: Duration::ZERO },
            close(A, Duration::ZERO, 3),
            LaneChange::Up(Arc::from(A)),
        ];
        for (call, change) in (5..).zip(&changes) {
            b.list.settle(me, call, &[], std::slice::from_ref(change)).unwrap();
            never(b, &format!("{change:?}"));
        }
        b.pass(SECOND * 1000);
        assert_eq!(b.list.beat(me, LEASE, 0, SECOND).unwrap().beyond, None);
        assert_eq!(b.list.hasten(SECOND, 100).unwrap(), 0);
        let taken = b.claim(me, 3, &Bounds { wants: vec![want(A, 9), want(B, 9)], ..probing() });
        assert_eq!((taken.ids(), taken.emptied.len(), taken.due_in), (vec![], 0, None));
        assert!(b.list.lanes().unwrap().iter().all(|lane| lane.is_paused));
        never(b, "the rest");
        // What is not paused goes on beside them.
        b.settle(
            me,
            10,
            &[Settlement { origin: Arc::from("http://c:80"), ..settlement(ids[5], Place::Waiting(None)) }],
        );
        assert_eq!(b.claim(me, 4, &probing()).ids(), ids[5..]);
    }

    pub fn a_lane_that_is_resumed_is_due_at_once(b: &mut Bench) {
        let (me, ids) = b.waiting(3, Some(SECOND * 500));
        b.order(Hand::Pause, A);
        b.order(Hand::Pause, B);
        b.pass(SECOND);
        let before = b.order(Hand::Resume, A).unwrap();
        assert!(matches!(before.standing, Standing::Paused(_)) && before.messages == 3);
        assert_eq!(b.state().lanes[A], b.now());
        let taken = b.claim(me, 2, &probing());
        assert_eq!((taken.ids(), taken.sources()), (ids[..1].to_vec(), vec![Source::Waiting { probe: true }]));
        assert_eq!(b.order(Hand::Resume, A).unwrap().standing, Standing::Probed);
        assert!(b.state().orders.is_paused(B));
        // The last of it is dropped: it is no lane any more, and is paused all the same.
        b.order(Hand::Pause, A);
        let waiting: Vec<(String, Id)> = ids.iter().map(|id| (A.to_string(), *id)).collect();
        assert_eq!(b.list.drop_waiting(&waiting).unwrap(), 2);
        b.order(Hand::Resume, A);
        assert_eq!(b.state().lanes.len(), 0);
    }

    pub fn agents_are_told_what_is_ordered_once(b: &mut Bench) {
        let me = b.join();
        assert_eq!(b.told(me, 1, 0), None);
        b.order(Hand::Pause, A);
        let first = b.told(me, 2, 0).expect("it knows none");
        assert!(first.is_paused(A) && !first.is_paused(B));
        assert_eq!((b.told(me, 3, first.number), b.list.orders().unwrap()), (None, first.clone()));
        // Paused again, nothing changes; resumed, something does, whatever the clock says.
        b.order(Hand::Pause, A);
        assert_eq!(b.told(me, 4, first.number), None);
        b.order(Hand::Pause, B);
        b.set_clock(b.clock - 3_600_000_000);
        b.order(Hand::Resume, A);
        let second = b.told(me, 5, first.number).expect("they have changed");
        assert!(second.is_paused(B) && !second.is_paused(A) && second.number > first.number);
        // A claim that is sent again tells it too.
        b.push(1, 10);
        assert_eq!(b.claim(me, 6, &bounds()).claims.len(), 1);
        let Claimed::Taken { claims, orders, .. } = b.list.claim(me, 6, true, &bounds()).unwrap() else { panic!() };
        assert_eq!((claims.len(), orders), (1, Some(second.clone())));
        // Redis has lost them.
        let calls = b.keys.named("calls").to_string();
        b.redis(redis::cmd("HDEL").arg(calls).arg("orders").arg("ordered"));
        assert_eq!(b.told(me, 7, second.number), Some(Orders::default()));
    }

    pub fn what_waits_for_a_paused_endpoint_grows_no_older(b: &mut Bench) {
        // More than fit into a call.
        let (me, ids) = b.agent_with(1002);
        b.settle_all(me, 1, &ids[..1001], &Place::Waiting(Some(Duration::ZERO)));
        b.pass(SECOND * 10);
        b.order(Hand::Pause, A);
        b.pass(SECOND * 1000);
        // It comes from the retry schedule, where it grew older.
        b.settle_all(me, 2, &ids[1001..], &Place::Retry(Duration::ZERO));
        b.pass(SECOND * 5);
        assert_eq!(b.claim(me, 2, &bounds()).ids(), ids[1001..]);
        b.settle_all(me, 3, &ids[1001..], &Place::Waiting(None));
        b.pass(SECOND * 86_400);
        b.order(Hand::Resume, A);
        b.pass(SECOND);
        b.list.settle(me, 4, &[], &[LaneChange::Up(Arc::from(A))]).unwrap();
        let taken = b.claim(me, 3, &wanting(A, 2000));
        let ages: Vec<u64> = taken.claims.iter().map(|claim| claim.history.age.unwrap().as_secs()).collect();
        assert_eq!((ages.len(), ages[..1001] == [10; 1001], ages[1001]), (1002, true, 5));
        // What fails again, or is put off once more, is as old as that from now on.
        let again = |n: usize, attempts: u32| {
            let history = History { attempts, last_error: "again".to_string(), ..History::default() };
            Settlement { history, ..settlement(ids[n], Place::Retry(Duration::ZERO)) }
        };
        b.settle(me, 5, &[again(0, 2)]);
        b.pass(SECOND * 7);
        let taken = b.claim(me, 4, &bounds());
        assert_eq!(taken.claims[0].history.age, Some(SECOND * 17));
        let record = &b.state().history[&ids[0]];
        assert_eq!((record.stands_still, record.first), (false, b.now() - 17_000));
    }

    pub fn only_what_backs_off_is_tried_and_that_is_told_for_a_minute(b: &mut Bench) {
        let (me, ids) = b.waiting(2, Some(SECOND * 500));
        let state = b.order(Hand::Try, A).unwrap();
        assert_eq!(state.standing, Standing::Down(b.now() as u64 + 500_000));
        assert_eq!(b.state().lanes[A], b.now());
        let orders = b.told(me, 2, 0).unwrap();
        assert_eq!(orders.by_origin[A], Order::Try(orders.number));
        // Once it is due, agents are told once more.
        assert_eq!(b.order(Hand::Try, A).unwrap().standing, Standing::Due);
        assert_ne!(b.told(me, 3, orders.number), None);
        assert_eq!(b.claim(me, 4, &probing()).ids(), ids[..1]);
        let probed = b.state();
        assert_eq!(b.order(Hand::Try, A).unwrap().standing, Standing::Probed);
        assert_eq!(b.state(), probed);
        b.list.settle(me, 4, &[], &[LaneChange::Up(Arc::from(A))]).unwrap();
        let up = b.state();
        assert_eq!(b.order(Hand::Try, A).unwrap().standing, Standing::Up);
        assert_eq!(b.state(), up);
        // Nothing waits for it, and agents may think it down.
        b.order(Hand::Try, B);
        b.pass(SECOND * 59);
        b.order(Hand::Pause, "http://c:80");
        assert_eq!(b.state().orders.by_origin.len(), 3);
        b.pass(SECOND * 2);
        let paused = b.order(Hand::Try, "http://c:80").unwrap();
        assert!(matches!(paused.standing, Standing::Paused(_)));
        b.order(Hand::Pause, A);
        let orders = b.state().orders;
        assert!(orders.by_origin.len() == 2 && orders.paused().count() == 2, "{orders:?}");
    }

    pub fn an_order_that_is_dry_or_too_much_changes_nothing(b: &mut Bench) {
        b.waiting(2, Some(SECOND * 500));
        b.order(Hand::Pause, B);
        let before = b.state();
        for hand in [Hand::Pause, Hand::Resume, Hand::Try] {
            let told = b.list.order(hand, true, &[A.to_string(), B.to_string()]).unwrap().unwrap();
            let standings: Vec<bool> = told.iter().map(|one| matches!(one.standing, Standing::Paused(_))).collect();
            assert_eq!(standings, [false, true]);
            assert_eq!(b.state(), before, "a dry {hand}");
        }
        let many: Vec<String> = (0..MOST_PAUSED).map(|n| format!("http://h{n}:80")).collect();
        assert_eq!(b.list.order(Hand::Pause, false, &many).unwrap(), None);
        assert_eq!(b.state(), before);
        assert!(b.list.order(Hand::Pause, false, &many[1..]).unwrap().is_some());
        assert_eq!(b.state().orders.paused().count(), MOST_PAUSED);
    }

    pub fn what_is_retried_now_is_due_and_has_no_backoff_of_its_own(b: &mut Bench) {
        let (me, ids) = b.agent_with(3);
        let mut one = settlement(ids[0], Place::Retry(SECOND * 500));
        one.history = History { attempts: 4, own_failures: 3, last_error: "500 and so on".to_string(), age: None };
        b.settle(me, 1, &[one, settlement(ids[1], Place::Waiting(Some(SECOND)))]);
        b.pass(SECOND * 3);
        // Neither what waits nor what is in flight, nor what never was.
        assert_eq!(b.list.retry_now(&[ids, vec![Id(7)]].concat()).unwrap(), 1);
        let taken = b.claim(me, 2, &bounds());
        assert_eq!(taken.sources(), [Source::Retry]);
        let history = &taken.claims[0].history;
        assert_eq!((history.attempts, history.own_failures, history.age), (4, 0, Some(SECOND * 3)));
        assert_eq!(history.last_error, "500 and so on");
        // What is due already keeps its place among those.
        b.settle_all(me, 2, &taken.ids(), &Place::Retry(Duration::ZERO));
        let due = b.now();
        b.pass(SECOND);
        assert_eq!(b.list.retry_now(&taken.ids()).unwrap(), 1);
        assert_eq!(b.state().retry[&taken.ids()[0]], due);
    }

    pub fn only_what_waits_is_dropped_and_its_lane_with_the_last(b: &mut Bench) {
        let (me, ids) = b.waiting(2, Some(SECOND));
        b.list.settle(me, 2, &[], &[close(A, SECOND, 1)]).unwrap();
        let all = |origin: &str| ids.iter().map(|id| (origin.to_string(), *id)).collect::<Vec<_>>();
        assert_eq!(b.list.drop_waiting(&all(B)).unwrap(), 0);
        assert_eq!(b.list.drop_waiting(&all(A)[..1]).unwrap(), 1);
        let state = b.state();
        assert_eq!((state.messages.len(), state.history.len(), state.lanes.len(), state.failures.len()), (1, 1, 1, 1));
        assert_eq!(b.list.drop_waiting(&all(A)).unwrap(), 1);
        let state = b.state();
        assert_eq!((state.messages.len(), state.history.len(), state.lanes.len(), state.failures.len()), (0, 0, 0, 0));
    }

    pub fn a_claim_takes_no_more_messages_than_asked(b: &mut Bench) {
        b.push(10, 10);
        let me = b.join();
        let taken = b.claim(me, 1, &Bounds { messages: 3, ..bounds() });
        assert_eq!(taken.sources(), [Source::Queue; 3]);
        assert_eq!(taken.claims[0].bytes, b"0.........");
        assert!(taken.more);
        let state = b.state();
        assert_eq!((state.queue.len(), state.inflight.len()), (7, 3));
        let taken = b.claim(me, 2, &bounds());
        assert_eq!((taken.claims.len(), taken.more), (7, false));
        assert_eq!(b.list.in_flight(me).unwrap().len(), 10);
    }

    pub fn a_claim_stops_after_the_message_that_reaches_its_bytes(b: &mut Bench) {
        b.push(9, 100);
        let me = b.join();
        assert_eq!(b.claim(me, 1, &Bounds { bytes: 250, ..bounds() }).claims.len(), 3);
        assert_eq!(b.claim(me, 2, &Bounds { bytes: 300, ..bounds() }).claims.len(), 3);
        assert_eq!(b.state().queue.len(), 3);
    }

    pub fn a_huge_message_is_taken_alone(b: &mut Bench) {
        b.push(1, 6 << 20);
        b.push(5, 10);
        let me = b.join();
        let taken = b.claim(me, 1, &Bounds { bytes: 4 << 20, ..bounds() });
        assert_eq!(taken.claims.iter().map(|claim| claim.bytes.len()).collect::<Vec<_>>(), [6 << 20]);
        assert_eq!(b.state().queue.len(), 5);
    }

    pub fn a_message_larger_than_an_agent_may_hold_is_dead_at_once(b: &mut Bench) {
        b.push(1, 10);
        b.push(1, 1001);
        b.push(1, 10);
        let me = b.join();
        let limits = Bounds { largest: 1000, ..bounds() };
        let first = b.claim(me, 1, &limits);
        let second = b.claim(me, 2, &limits);
        assert_eq!(first.claims.len() + second.claims.len(), 2);
        let oversized = [first.oversized, second.oversized].concat();
        assert_eq!(oversized.iter().map(|(_, size)| *size).collect::<Vec<_>>(), [1001]);
        let state = b.state();
        assert_eq!(state.dead.keys().copied().collect::<Vec<_>>(), [oversized[0].0]);
        assert!(state.history[&oversized[0].0].last_error.contains("1001 bytes"));
    }

    pub fn due_retries_come_first_but_only_half_while_messages_are_queued(b: &mut Bench) {
        let (me, ids) = b.agent_with(8);
        b.settle_all(me, 1, &ids, &Place::Retry(Duration::ZERO));
        b.push(8, 10);
        let half = Bounds { messages: 8, returning: 4, ..bounds() };
        let taken = b.claim(me, 2, &half);
        assert_eq!(taken.ids()[..4], ids[..4]);
        assert_eq!(taken.sources(), [[Source::Retry; 4], [Source::Queue; 4]].concat());
        b.claim(me, 3, &Bounds { returning: 0, ..half.clone() });
        b.push(0, 0);
        assert_eq!(b.state().queue.len(), 0);
        // With nothing queued they may fill the claim.
        assert_eq!(b.claim(me, 4, &Bounds { returning: 1, ..half }).sources(), [Source::Retry; 4]);
    }

    pub fn returning_messages_have_half_the_bytes_while_messages_are_queued(b: &mut Bench) {
        b.push(10, 100);
        let me = b.join();
        let ids = b.claim(me, 1, &bounds()).ids();
        b.settle_all(me, 1, &ids[..5], &Place::Retry(Duration::ZERO));
        b.settle_all(me, 2, &ids[5..], &Place::Waiting(None));
        b.push(10, 100);
        let taken = b.claim(me, 2, &Bounds { bytes: 400, ..bounds() });
        assert_eq!(taken.sources(), [[Source::Retry; 2], [Source::Queue; 2]].concat());
        b.list.settle(me, 3, &[], &[LaneChange::Up(Arc::from(A))]).unwrap();
        b.list.give_back(me, &taken.ids()).unwrap();
        let taken = b.claim(me, 3, &Bounds { bytes: 300, returning: 2, ..wanting(A, 5) });
        assert_eq!(taken.sources()[..2], [Source::Retry, Source::Waiting { probe: false }]);
        assert_eq!(taken.claims.len(), 3);
    }

    pub fn a_retry_that_is_not_due_stays_and_is_told(b: &mut Bench) {
        let (me, ids) = b.agent_with(2);
        b.settle(me, 1, &[settlement(ids[0], Place::Retry(SECOND * 5)), settlement(ids[1], Place::Retry(SECOND * 9))]);
        let taken = b.claim(me, 2, &bounds());
        assert_eq!((taken.claims.len(), taken.due_in), (0, Some(SECOND * 5)));
        b.pass(SECOND * 5 - ms(1));
        assert_eq!(b.claim(me, 3, &bounds()).ids(), []);
        b.pass(ms(1));
        let taken = b.claim(me, 4, &bounds());
        assert_eq!((taken.ids(), taken.sources()), (vec![ids[0]], vec![Source::Retry]));
        assert_eq!(taken.due_in, Some(SECOND * 4));
    }

    pub fn what_waits_is_pulled_lowest_id_first_and_as_much_as_wanted(b: &mut Bench) {
        let (me, ids) = b.agent_with(5);
        for (call, id) in (1..).zip(ids.iter().rev()) {
            b.settle(me, call, &[settlement(*id, Place::Waiting(None))]);
        }
        b.list.settle(me, 9, &[], &[LaneChange::Up(Arc::from(A))]).unwrap();
        let taken = b.claim(me, 2, &wanting(A, 3));
        assert_eq!((taken.ids(), taken.sources()), (ids[..3].to_vec(), vec![Source::Waiting { probe: false }; 3]));
        assert_eq!(taken.emptied, [""; 0]);
        // Other lanes that are open get one.
        assert_eq!(b.claim(me, 3, &probing()).ids(), [ids[3]]);
        assert_eq!(b.claim(me, 4, &wanting(A, 3)).ids(), [ids[4]]);
    }

    pub fn a_probe_takes_one_and_moves_the_lane_on(b: &mut Bench) {
        let (me, ids) = b.waiting(3, Some(SECOND * 5));
        let other = b.join();
        b.list.settle(me, 2, &[], &[close(A, SECOND * 7, 3)]).unwrap();
        assert_eq!(b.claim(me, 2, &probing()).due_in, Some(SECOND * 7));
        b.pass(SECOND * 7);
        assert_eq!(b.claim(me, 3, &Bounds { failed_probes: 0, ..probing() }).ids(), []);
        assert_eq!(b.claim(me, 4, &Bounds { slow_probes: 0, ..probing() }).ids(), [], "it failed slowly");
        let taken = b.claim(me, 5, &probing());
        assert_eq!((taken.ids(), taken.sources()), (vec![ids[0]], vec![Source::Waiting { probe: true }]));
        assert_eq!(taken.failures, [FailedLane { origin: A.to_string(), failures: 3, slowly: true }]);
        // An odd time says that it is being probed.
        assert_eq!(b.state().lanes[A], b.now() + 35_001);
        assert_eq!(b.claim(other, 1, &probing()).ids(), []);
        assert_eq!(b.claim(other, 2, &wanting(A, 10)).ids(), []);
    }

    pub fn a_lane_whose_prober_died_is_due_again(b: &mut Bench) {
        let (prober, ids) = b.waiting(2, Some(Duration::ZERO));
        assert_eq!(b.claim(prober, 2, &probing()).ids(), [ids[0]]);
        let me = b.die(prober);
        assert_eq!(b.claim(me, 1, &probing()).ids(), [ids[0]]);
        b.pass(SECOND * 36);
        assert_eq!(b.claim(me, 2, &probing()).ids(), [ids[1]]);
    }

    fn wait_for(id: Id, origin: &str, delay: Option<Duration>) -> Settlement {
        Settlement { origin: Arc::from(origin), ..settlement(id, Place::Waiting(delay)) }
    }

    pub fn of_lanes_that_never_failed_the_newest_is_first(b: &mut Bench) {
        let (me, ids) = b.agent_with(3);
        for (call, origin) in (1..).zip(["new", "newer", "newest"]) {
            b.settle(me, call, &[wait_for(ids[call as usize - 1], origin, None)]);
            b.pass(ms(1));
        }
        assert_eq!(b.claim(me, 2, &Bounds { probes: 2, ..bounds() }).ids(), [ids[2], ids[1]]);
    }

    pub fn lanes_that_failed_are_tried_whatever_else_may_be_taken(b: &mut Bench) {
        let (me, ids) = b.agent_with(20);
        b.settle(me, 1, &[wait_for(ids[0], "failed", Some(Duration::ZERO))]);
        for id in &ids[1..] {
            b.settle(me, id.0, &[wait_for(*id, A, None)]);
        }
        b.list.settle(me, u64::MAX >> 12, &[], &[LaneChange::Up(Arc::from(A))]).unwrap();
        b.push(4, 10);
        let taken = b.claim(me, 2, &Bounds { messages: 8, returning: 4, failed_probes: 1, ..wanting(A, 10) });
        assert_eq!(taken.ids()[..4], [ids[0], ids[1], ids[2], ids[3]]);
    }

    pub fn of_lanes_that_failed_the_last_due_and_the_fast_ones_are_not_left_behind(b: &mut Bench) {
        let (me, ids) = b.agent_with(5);
        for (n, id) in (0..).zip(&ids) {
            let lane = format!("lane {n}");
            b.settle(me, 2 * n + 1, &[wait_for(*id, &lane, Some(SECOND * (n as u32 + 1)))]);
            // All but the fourth fail slowly.
            let mut change = close(&lane, SECOND * (n as u32 + 1), 1);
            if let LaneChange::Down { slowly, .. } = &mut change {
                *slowly = n != 3;
            }
            b.list.settle(me, 2 * n + 2, &[], &[change]).unwrap();
        }
        b.pass(SECOND * 10);
        let two = Bounds { failed_probes: 2, slow_probes: 1, ..bounds() };
        let taken = b.claim(me, 2, &two);
        assert_eq!(taken.ids(), [ids[3], ids[4]], "the fast one, and the last due");
        assert_eq!(b.claim(me, 3, &two).ids(), [ids[2]], "one slow one");
    }

    pub fn every_second_failure_in_a_row_the_newest_is_the_probe(b: &mut Bench) {
        let (me, ids) = b.waiting(4, Some(Duration::ZERO));
        for (failures, expected) in [(1, ids[0]), (2, ids[3]), (3, ids[1])] {
            b.list.settle(me, 100 + failures, &[], &[close(A, Duration::ZERO, failures as u32)]).unwrap();
            assert_eq!(b.claim(me, failures + 1, &probing()).ids(), [expected], "after {failures}");
        }
    }

    pub fn what_is_due_and_has_no_place_is_looked_for_again_in_a_moment(b: &mut Bench) {
        let (me, _) = b.waiting(3, Some(Duration::ZERO));
        assert_eq!(b.claim(me, 2, &bounds()).due_in, Some(ms(20)), "a lane that failed is due");
        b.list.settle(me, 2, &[], &[LaneChange::Up(Arc::from(A))]).unwrap();
        assert_eq!(b.claim(me, 3, &bounds()).due_in, Some(ms(20)), "one that did not");
        let taken = b.claim(me, 4, &Bounds { wants: vec![want(A, 0)], ..bounds() });
        assert_eq!(taken.due_in, None, "its agent knows how much it wants");
    }

    pub fn an_emptied_lane_is_told_and_forgotten(b: &mut Bench) {
        let (me, ids) = b.waiting(2, Some(Duration::ZERO));
        b.list.settle(me, 2, &[], &[close(A, Duration::ZERO, 1)]).unwrap();
        assert_eq!(b.claim(me, 2, &probing()).emptied, [""; 0]);
        b.pass(SECOND * 36);
        let taken = b.claim(me, 3, &probing());
        assert_eq!((taken.ids(), taken.emptied), (vec![ids[1]], vec![A.to_string()]));
        let state = b.state();
        assert!(state.lanes.is_empty() && state.failures.is_empty());
        assert_eq!(b.claim(me, 4, &wanting(A, 3)).emptied, [A]);
    }

    pub fn what_agents_died_of_is_taken_only_as_far_as_it_goes_out_at_once(b: &mut Bench) {
        let (first, ids) = b.agent_with(5);
        let me = b.die(first);
        let taken = b.claim(me, 1, &Bounds { fragile: 2, ..bounds() });
        assert_eq!((taken.ids(), taken.due_in), (ids[..2].to_vec(), Some(ms(20))));
        b.settle_all(me, 1, &ids[..2], &Place::Delivered);
        for id in &ids[2..] {
            let taken = b.claim(me, id.0, &Bounds { fragile: 1, ..bounds() });
            let mut waits = settlement(taken.ids()[0], Place::Waiting(None));
            waits.history.attempts = 0;
            b.settle(me, id.0, &[waits]);
        }
        b.list.settle(me, u64::MAX >> 12, &[], &[LaneChange::Up(Arc::from(A))]).unwrap();
        let wants = vec![Want { origin: A.to_string(), room: 3, free: 1 }];
        assert_eq!(b.claim(me, 1 << 52, &Bounds { wants, ..bounds() }).ids(), [ids[2]]);
    }

    /// Messages that so many agents died of.
    fn suspects(b: &mut Bench, n: usize, deaths: u32) -> (AgentNumber, Vec<Id>) {
        let (mut agent, ids) = b.agent_with(n);
        for death in 1..=deaths {
            agent = b.die(agent);
            if death < deaths {
                let mut call = 0;
                let mut taken = Vec::new();
                while taken.len() < n {
                    call += 1;
                    // As if none of them were here.
                    taken.extend(b.claim(agent, call, &bounds()).ids());
                }
            }
        }
        (agent, ids)
    }

    pub fn the_more_agents_died_of_a_message_the_fewer_of_such_are_taken_together(b: &mut Bench) {
        for (deaths, together) in [(2, 16), (3, 4), (4, 1)] {
            let (me, ids) = suspects(b, 20, deaths);
            let taken = b.claim(me, 1, &bounds());
            assert_eq!(taken.ids(), ids[..together], "{deaths}");
            assert_eq!((taken.claims[0].recovered, taken.due_in), (deaths, Some(ms(20))));
            let some_here = Bounds { suspects: together, gravest: deaths, ..bounds() };
            assert_eq!(b.claim(me, 2, &some_here).ids(), [], "{deaths}");
            let graver = Bounds { suspects: 1, gravest: 4, ..bounds() };
            assert_eq!(b.claim(me, 3, &graver).ids(), [], "{deaths}: alone with the gravest");
            let rest = b.claim(me, 4, &bounds()).ids();
            assert!(rest.len() == together.min(20 - together), "{deaths}");
            b.settle_all(me, 1, &ids, &Place::Delivered);
            b.list.leave(me).unwrap();
        }
    }

    pub fn suspects_are_taken_a_few_at_a_time_from_their_lane(b: &mut Bench) {
        let (me, ids) = suspects(b, 3, 4);
        for call in 1..=3 {
            let one = b.claim(me, call, &bounds()).ids();
            assert_eq!(one.len(), 1);
            let mut waits = settlement(one[0], Place::Waiting(Some(Duration::ZERO)));
            // Not attempted, so the count stays.
            waits.history.attempts = 0;
            b.settle(me, call, &[waits]);
        }
        let busy = |bounds: Bounds| Bounds { suspects: 1, gravest: 2, ..bounds };
        assert_eq!(b.claim(me, 4, &busy(probing())).ids(), []);
        assert_eq!(b.state().lanes[A], b.now() + 100);
        b.pass(ms(100));
        assert_eq!(b.claim(me, 5, &probing()).ids(), [ids[0]]);
        b.list.settle(me, 5, &[], &[LaneChange::Up(Arc::from(A))]).unwrap();
        assert_eq!(b.claim(me, 6, &wanting(A, 10)).ids(), [ids[1]]);
        assert_eq!(b.claim(me, 7, &busy(wanting(A, 10))).ids(), []);
    }

    pub fn a_message_recovered_for_the_fifth_time_is_dead(b: &mut Bench) {
        let (mut agent, ids) = b.agent_with(1);
        for death in 1..=4 {
            agent = b.die(agent);
            let taken = b.claim(agent, 1, &bounds());
            assert_eq!((taken.ids(), taken.claims[0].recovered), (ids.clone(), death));
        }
        let me = b.die(agent);
        assert_eq!(b.claim(me, 1, &bounds()).ids(), []);
        let state = b.state();
        assert_eq!(state.dead.keys().copied().collect::<Vec<_>>(), ids);
        assert_eq!(state.history[&ids[0]].last_error, "in flight in 5 agents that died");
    }

    pub fn a_settled_attempt_clears_the_count_of_deaths(b: &mut Bench) {
        let (first, ids) = b.agent_with(2);
        let me = b.die(first);
        b.claim(me, 1, &bounds());
        let mut unattempted = settlement(ids[1], Place::Retry(SECOND));
        unattempted.history.attempts = 0;
        b.settle(me, 1, &[settlement(ids[0], Place::Retry(SECOND)), unattempted]);
        assert_eq!(b.state().recovered.into_iter().collect::<Vec<_>>(), [(ids[1], 1)]);
    }

    pub fn an_agent_whose_lease_has_changed_is_not_recovered(b: &mut Bench) {
        let (alive, ids) = b.agent_with(2);
        let me = b.join();
        let seen = b.peer(me, alive);
        b.pass(SECOND * 20);
        b.list.beat(alive, LEASE, 0, LONGEST).unwrap();
        assert_eq!(b.list.recover(me, &seen, 10).unwrap(), None);
        assert_eq!(b.list.recover(me, &Peer { lease: None, ..seen }, 10).unwrap(), None);
        assert_eq!(b.list.in_flight(alive).unwrap(), ids);
        let seen = b.peer(me, alive);
        assert_eq!(b.list.recover(me, &seen, 1).unwrap(), Some(1));
        assert_eq!(b.list.recover(me, &seen, 1).unwrap(), None);
        assert_eq!(b.list.recover(me, &Peer { lease: None, ..seen }, 1).unwrap(), Some(1));
        assert_eq!(b.state().retry.into_keys().collect::<Vec<_>>(), ids);
    }

    pub fn a_recovered_agent_is_gone_and_leaves_no_calls(b: &mut Bench) {
        let (dead, ids) = b.agent_with(2);
        b.settle_all(dead, 1, &ids[..1], &Place::Delivered);
        let me = b.join();
        let peer = b.peer(me, dead);
        // Exactly as many as it has: nobody looks at it again.
        assert_eq!(b.list.recover(me, &peer, 1).unwrap(), Some(1));
        let state = b.state();
        assert!(state.claims.is_empty() && state.settles.is_empty());
        assert_eq!(b.list.claim(dead, 2, false, &bounds()).unwrap(), Claimed::Gone);
        assert_eq!(b.settle_all(dead, 2, &ids[1..], &Place::Dead), ids[1..]);
        assert!(b.state().settles.is_empty());
    }

    pub fn leaving_gives_back_everything_without_counting_a_death(b: &mut Bench) {
        let (me, ids) = b.agent_with(1200);
        b.list.leave(me).unwrap();
        let state = b.state();
        assert_eq!(state.retry.keys().copied().collect::<Vec<_>>(), ids);
        assert!(state.recovered.is_empty() && state.agents.is_empty() && state.claims.is_empty());
    }

    pub fn what_was_settled_is_counted_once(b: &mut Bench) {
        let (me, ids) = b.agent_with(6);
        let failed = |n: usize, place: Place| {
            let history = History { attempts: 1, last_error: "x".to_string(), ..History::default() };
            Settlement { history, ..settlement(ids[n], place) }
        };
        let batch = [
            settlement(ids[0], Place::Delivered),
            settlement(ids[1], Place::Delivered),
            failed(2, Place::Retry(Duration::ZERO)),
            failed(3, Place::Waiting(Some(Duration::ZERO))),
            failed(4, Place::Dead),
            // Given back without an attempt.
            Settlement { history: History::default(), ..settlement(ids[5], Place::Retry(Duration::ZERO)) },
        ];
        let calls = b.keys.named("calls").to_string();
        let counts = |b: &mut Bench| {
            let value = b.redis(redis::cmd("HGET").arg(&calls).arg("counts"));
            redis::from_redis_value::<String>(value).unwrap()
        };
        b.settle(me, 1, &batch);
        b.settle(me, 1, &batch);
        assert_eq!(counts(b), "2 2 1");
        // What somebody wrote there is no count, and no obstacle.
        b.redis(redis::cmd("HSET").arg(&calls).arg("counts").arg("7 99999999999999999999 many"));
        let more = b.claim(me, 2, &bounds()).ids();
        b.settle_all(me, 2, &more[..1], &Place::Delivered);
        assert_eq!(counts(b), "1 0 0");
    }

    pub fn a_settle_sent_again_changes_nothing(b: &mut Bench) {
        let (me, ids) = b.agent_with(3);
        let batch = [
            settlement(ids[0], Place::Retry(Duration::ZERO)),
            settlement(ids[1], Place::Waiting(Some(Duration::ZERO))),
            settlement(ids[2], Place::Dead),
        ];
        b.settle(me, 1, &batch);
        b.list.replay(&ids[2..]).unwrap();
        assert_eq!(b.claim(me, 2, &probing()).claims.len(), 3);
        let before = b.state();
        assert_eq!(b.settle(me, 1, &batch), []);
        assert_eq!(b.state(), before);
        b.settle(me, 7, &[]);
        b.settle(me, 6, &batch);
        assert_eq!(b.state().inflight, before.inflight);
    }

    pub fn a_claim_sent_again_answers_the_same(b: &mut Bench) {
        let (me, ids) = b.agent_with(4);
        b.settle(
            me,
            1,
            &[
                settlement(ids[0], Place::Retry(Duration::ZERO)),
                settlement(ids[1], Place::Waiting(Some(Duration::ZERO))),
            ],
        );
        b.push(3, 10);
        let first = b.claim(me, 2, &probing());
        assert_eq!(first.claims.len(), 5);
        b.push(3, 10);
        let before = b.state();
        let second = b.claim_again(me, 2, true, &bounds());
        assert_eq!(second.claims, first.claims);
        assert_eq!(b.state(), before);
        // What another has taken back meanwhile is not given out again.
        b.settle_all(me, 2, &first.ids()[..1], &Place::Delivered);
        assert_eq!(b.claim_again(me, 2, true, &bounds()).ids(), first.ids()[1..]);
    }

    pub fn an_empty_claim_sent_again_leaves_nothing_to_a_late_first(b: &mut Bench) {
        let me = b.join();
        assert_eq!(b.claim_again(me, 1, true, &bounds()).ids(), []);
        b.push(2, 10);
        // The first of its kind arrives now; nobody reads its answer.
        assert_eq!(b.claim(me, 1, &bounds()).ids(), []);
        assert_eq!(b.state().queue.len(), 2);
    }

    pub fn an_older_claim_takes_nothing(b: &mut Bench) {
        let (me, _) = b.agent_with(2);
        b.push(1, 10);
        b.claim(me, 3, &bounds());
        b.push(4, 10);
        assert_eq!(b.list.claim(me, 2, false, &bounds()).unwrap(), Claimed::Gone);
        let state = b.state();
        assert_eq!((state.queue.len(), state.inflight.len()), (4, 3));
    }

    pub fn a_standby_that_asked_again_leaves_nothing_to_a_late_first(b: &mut Bench) {
        let (older, me) = (b.join(), b.join());
        b.push(2, 10);
        assert_eq!(b.list.claim(me, 1, true, &ordered()).unwrap(), Claimed::Standby);
        b.list.leave(older).unwrap();
        // The first of its kind arrives now; nobody reads its answer.
        assert_eq!(b.claim(me, 1, &ordered()).ids(), []);
        assert_eq!(b.state().queue.len(), 2);
        assert_eq!(b.claim(me, 2, &ordered()).claims.len(), 2);
    }

    pub fn what_was_delivered_goes_wherever_it_is(b: &mut Bench) {
        let (me, ids) = b.agent_with(5);
        b.settle(
            me,
            1,
            &[
                settlement(ids[0], Place::Retry(SECOND)),
                settlement(ids[1], Place::Waiting(Some(SECOND))),
                settlement(ids[2], Place::Dead),
            ],
        );
        b.list.give_back(me, &ids[3..4]).unwrap();
        let other = b.join();
        assert_eq!(b.claim(other, 1, &bounds()).ids(), ids[3..4]);
        b.list.settle(me, 2, &[], &[close(A, SECOND, 1)]).unwrap();
        assert_eq!(b.settle_all(me, 3, &ids, &Place::Delivered), []);
        let state = b.state();
        assert_eq!(
            State {
                last_number: 0,
                agents: state.agents.clone(),
                claims: state.claims.clone(),
                settles: state.settles.clone(),
                lengths: state.lengths.clone(),
                ..State::default()
            },
            State { last_number: 0, ..state }
        );
    }

    pub fn what_is_not_ours_any_more_stays_where_it_is(b: &mut Bench) {
        let (me, ids) = b.agent_with(4);
        b.list.give_back(me, &ids).unwrap();
        let other = b.join();
        assert_eq!(b.claim(other, 1, &bounds()).ids(), ids);
        let before = b.state();
        let lost = b.settle(
            me,
            1,
            &[
                settlement(ids[0], Place::Dead),
                settlement(ids[1], Place::Retry(SECOND)),
                settlement(ids[2], Place::Waiting(None)),
                settlement(Id(5), Place::Dead),
            ],
        );
        assert_eq!(lost, [ids[1], ids[2], ids[0], Id(5)]);
        let after = b.state();
        assert_eq!((after.inflight, after.history, after.dead), (before.inflight, before.history, before.dead));
    }

    pub fn the_first_failure_of_a_message_is_remembered(b: &mut Bench) {
        let (me, ids) = b.agent_with(1);
        let mut waits = settlement(ids[0], Place::Waiting(None));
        waits.history.attempts = 0;
        b.settle(me, 1, &[waits.clone()]);
        b.pass(SECOND * 7);
        assert_eq!(b.claim(me, 2, &probing()).claims[0].history.age, Some(SECOND * 7), "first put off");
        b.settle(me, 2, &[waits]);
        b.pass(SECOND);
        assert_eq!(b.claim(me, 3, &probing()).claims[0].history.age, Some(SECOND * 8));
        let first = b.now();
        b.settle_all(me, 3, &ids, &Place::Retry(Duration::ZERO));
        b.pass(SECOND * 50);
        let claim = b.claim(me, 4, &bounds()).claims.remove(0);
        assert_eq!(claim.history.age, Some(SECOND * 50), "it failed");
        assert_eq!((claim.history.attempts, claim.history.last_error.as_str()), (1, "why not"));
        b.settle_all(me, 4, &ids, &Place::Waiting(None));
        b.pass(SECOND);
        assert_eq!(b.claim(me, 5, &probing()).claims[0].history.age, Some(SECOND * 51));
        b.settle_all(me, 5, &ids, &Place::Dead);
        assert_eq!(b.state().history[&ids[0]].first, first);
    }

    pub fn a_delivered_message_leaves_no_count_of_deaths(b: &mut Bench) {
        let (first, ids) = b.agent_with(1);
        let me = b.die(first);
        assert_eq!(b.claim(me, 1, &bounds()).claims[0].recovered, 1);
        b.settle_all(me, 1, &ids, &Place::Delivered);
        assert!(b.state().recovered.is_empty());
    }

    pub fn a_lane_closes_once_for_the_same_failure(b: &mut Bench) {
        let (me, _) = b.waiting(2, Some(SECOND));
        b.list.settle(me, 2, &[], &[close(A, SECOND * 10, 2)]).unwrap();
        let due = b.state().lanes[A];
        assert_eq!(due, b.now() + 10_000);
        // Another agent's attempt, begun before it knew.
        b.list.settle(me, 3, &[], &[close(A, SECOND * 99, 1), close(A, SECOND * 99, 2), close(B, SECOND, 1)]).unwrap();
        let state = b.state();
        assert_eq!((state.lanes[A], &state.failures[A]), (due, &(2, true, "down".to_string())));
        b.list.settle(me, 4, &[], &[LaneChange::Up(Arc::from(A)), LaneChange::Up(Arc::from(B))]).unwrap();
        let state = b.state();
        assert_eq!((state.lanes[A], state.lanes.len(), state.failures.len()), (0, 1, 0));
    }

    pub fn a_lane_keeps_its_time_when_more_comes_to_wait(b: &mut Bench) {
        let (me, _) = b.waiting(1, Some(SECOND * 10));
        let due = b.state().lanes[A];
        b.pass(SECOND);
        let (other, ids) = b.agent_with(2);
        b.settle(other, 1, &[settlement(ids[0], Place::Waiting(None))]);
        b.settle(other, 2, &[settlement(ids[1], Place::Waiting(Some(SECOND)))]);
        assert_eq!(b.state().lanes[A], due);
        assert_eq!(b.claim(me, 2, &probing()).ids(), []);
    }

    pub fn a_wanted_lane_that_failed_gives_one_probe(b: &mut Bench) {
        let (me, ids) = b.waiting(3, Some(SECOND));
        let wants = vec![want(A, 3)];
        assert_eq!(b.claim(me, 2, &Bounds { wants: wants.clone(), ..probing() }).ids(), []);
        b.pass(SECOND);
        let taken = b.claim(me, 3, &Bounds { wants, ..probing() });
        assert_eq!((taken.ids(), taken.sources()), (ids[..1].to_vec(), vec![Source::Waiting { probe: true }]));
    }

    pub fn a_lane_whose_probe_came_back_is_due_and_one_that_backs_off_is_not(b: &mut Bench) {
        let (me, _) = b.waiting(3, Some(SECOND * 2));
        let freed = [LaneChange::Freed(Arc::from(A)), LaneChange::Freed(Arc::from(B))];
        b.list.settle(me, 2, &[], &freed).unwrap();
        assert_eq!(b.state().lanes.into_iter().collect::<Vec<_>>(), [(A.to_string(), b.now() + 2000)]);
        b.pass(SECOND * 2);
        assert_eq!(b.claim(me, 2, &probing()).claims.len(), 1);
        b.list.settle(me, 3, &[], &freed).unwrap();
        assert_eq!(b.state().lanes[A], b.now());
        assert_eq!(b.claim(me, 3, &probing()).claims.len(), 1);
        let due = LaneChange::Due { origin: Arc::from(A), after: SECOND * 4 };
        b.list.settle(me, 4, &[], &[due]).unwrap();
        assert_eq!(b.state().lanes[A], b.now() + 4000);
    }

    pub fn a_full_redis_still_makes_every_move(b: &mut Bench) {
        let (me, ids) = b.agent_with(40);
        b.settle_all(me, 1, &ids[..4], &Place::Dead);
        b.settle_all(me, 2, &ids[4..8], &Place::Waiting(Some(Duration::ZERO)));
        b.push(10, 100_000);
        b.redis(redis::cmd("RPUSH").arg(format!("{}.outbound_retry-x", b.prefix)).arg("x"));
        b.redis(redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg("100kb"));
        let refused: redis::RedisResult<()> = redis::cmd("SET").arg("x").arg("y").query(&mut b.client);
        assert!(refused.unwrap_err().to_string().contains("OOM"), "the server is full");

        assert_eq!(b.claim(me, 2, &bounds()).claims.len(), 10);
        assert_eq!(b.settle_all(me, 3, &ids[8..12], &Place::Retry(Duration::ZERO)), []);
        assert_eq!(b.settle_all(me, 4, &ids[12..16], &Place::Waiting(Some(Duration::ZERO))), []);
        assert_eq!(b.settle_all(me, 5, &ids[16..20], &Place::Dead), []);
        assert_eq!(b.settle_all(me, 6, &ids[20..24], &Place::Delivered), []);
        assert_eq!(b.list.replay(&ids[..2]).unwrap(), 2);
        assert_eq!(b.list.drop_dead(&ids[2..4]).unwrap(), 2);
        assert_eq!(b.list.give_back(me, &ids[24..26]).unwrap(), 2);
        assert_eq!(b.list.forget_dead(Duration::ZERO, 100_000, LATE).unwrap(), 4);
        assert!(b.list.beat(me, LEASE, 0, LONGEST).unwrap().registered);
        assert_eq!(b.list.retry_now(&ids[8..9]).unwrap(), 1);
        assert_eq!(b.list.drop_waiting(&[(A.to_string(), ids[12])]).unwrap(), 1);
        assert!(b.order(Hand::Pause, A).is_some() && b.order(Hand::Resume, A).is_some());
        let other = b.die(me);
        assert!(!b.claim(other, 1, &probing()).ids().is_empty());
        b.list.leave(other).unwrap();
        b.redis(redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg("0"));
        assert!(b.state().agents.is_empty());
    }

    pub fn twenty_thousand_messages_are_settled_and_recovered_in_one_go(b: &mut Bench) {
        const N: usize = 20_000;
        let queue = b.keys.queue().to_string();
        let values: Vec<String> = (0..N).map(|n| n.to_string()).collect();
        b.redis(redis::cmd("RPUSH").arg(&queue).arg(values));
        let me = b.join();
        let everything = Bounds { messages: N, returning: N, ..bounds() };
        let ids = b.claim(me, 1, &everything).ids();
        assert_eq!(ids.len(), N);
        let other = b.join();
        let seen = b.peer(other, me);
        assert_eq!(b.list.recover(other, &seen, N).unwrap(), Some(N));
        assert_eq!(claim_all(b, other, 1), ids);
        b.settle_all(other, 1, &ids, &Place::Waiting(Some(Duration::ZERO)));
        b.list.settle(other, 2, &[], &[LaneChange::Up(Arc::from(A))]).unwrap();
        let wanted = b.claim(other, 90, &Bounds { wants: vec![Want { free: N, ..want(A, N) }], ..everything });
        assert_eq!(wanted.ids(), ids);
        b.settle_all(other, 3, &ids, &Place::Dead);
        assert_eq!(b.list.replay(&ids).unwrap(), N);
        assert_eq!(claim_all(b, other, 100), ids);
        b.settle_all(other, 4, &ids, &Place::Delivered);
        assert!(b.state().messages.is_empty());
    }

    /// A claim looks at two thousand retries at most.
    fn claim_all(b: &mut Bench, me: AgentNumber, first_call: u64) -> Vec<Id> {
        let mut ids = Vec::new();
        for call in first_call.. {
            let some = b.claim(me, call, &bounds()).ids();
            if some.is_empty() {
                break;
            }
            ids.extend(some);
        }
        ids
    }

    pub fn a_wrong_type_at_any_key_leaves_everything_as_it_was(b: &mut Bench) {
        let (me, ids) = b.agent_with(6);
        b.settle_all(me, 1, &ids[..2], &Place::Dead);
        b.settle_all(me, 2, &ids[2..3], &Place::Waiting(Some(Duration::ZERO)));
        b.settle_all(me, 3, &ids[3..4], &Place::Retry(Duration::ZERO));
        b.list.settle(me, 4, &[], &[close(A, Duration::ZERO, 1)]).unwrap();
        b.push(2, 10);
        let keys = b.keys.all().to_vec();
        let mut call = 10;
        for wrong in &keys {
            let aside = format!("{wrong}-aside");
            let there = b.redis(redis::cmd("EXISTS").arg(wrong)) == Value::Int(1);
            if there {
                b.redis(redis::cmd("RENAME").arg(wrong).arg(&aside));
            }
            let foreign = if wrong.ends_with(":id") { "LPUSH" } else { "SET" };
            b.redis(redis::cmd(foreign).arg(wrong).arg("foreign"));
            let before = dump(b);
            call += 1;
            let moves: [(&str, Result<(), Error>); 12] = [
                ("order", b.list.order(Hand::Pause, false, &[A.to_string()]).map(drop)),
                ("retry", b.list.retry_now(&ids).map(drop)),
                ("drop_waiting", b.list.drop_waiting(&[(A.to_string(), ids[2])]).map(drop)),
                ("restore", b.list.restore(me, &[(ids[5], Arc::new(b"x".to_vec()))]).map(drop)),
                ("hasten", b.list.hasten(SECOND, 100).map(drop)),
                ("join", b.list.join(LEASE, None, 0).map(drop)),
                ("claim", b.list.claim(me, call, false, &probing()).map(drop)),
                ("settle", b.list.settle(me, call, &[settlement(ids[4], Place::Retry(SECOND))], &[]).map(drop)),
                ("leave", b.list.leave(me)),
                ("give_back", b.list.give_back(me, &ids).map(drop)),
                ("replay", b.list.replay(&ids).map(drop)),
                ("forget", b.list.forget_dead(Duration::ZERO, 100_000, LATE).map(drop)),
            ];
            for (name, result) in moves {
                match result {
                    Err(Error::WrongType(why)) => assert!(why.contains(&format!("'{wrong}'")), "{name}: {why}"),
                    other => panic!("{name} with a wrong type at {wrong}: {other:?}"),
                }
            }
            assert_eq!(dump(b), before, "a wrong type at {wrong}");
            b.redis(redis::cmd("DEL").arg(wrong));
            if there {
                b.redis(redis::cmd("RENAME").arg(&aside).arg(wrong));
            }
        }
        b.state();
    }

    fn dump(b: &mut Bench) -> Vec<Value> {
        let keys = b.keys.all().to_vec();
        keys.iter().map(|key| b.redis(redis::cmd("DUMP").arg(key))).collect()
    }

    pub fn dead_letters_past_their_keeping_are_forgotten(b: &mut Bench) {
        let (me, ids) = b.agent_with(1202);
        b.settle_all(me, 1, &ids[..1201], &Place::Dead);
        b.pass(SECOND * 60);
        b.settle_all(me, 2, &ids[1201..], &Place::Dead);
        let latest = b.now() as u64;
        assert_eq!(b.list.forget_dead(SECOND * 60, 100_000, latest - 1).unwrap(), 0);
        assert_eq!(b.list.forget_dead(SECOND * 60, 100_000, latest).unwrap(), 1201);
        let state = b.state();
        assert_eq!(state.dead.keys().copied().collect::<Vec<_>>(), ids[1201..]);
        assert_eq!((state.messages.len(), state.history.len()), (1, 1));
    }

    pub fn only_the_dead_are_replayed_as_if_never_attempted(b: &mut Bench) {
        let (mut agent, ids) = b.agent_with(1);
        for _ in 0..4 {
            agent = b.die(agent);
            b.claim(agent, 1, &bounds());
        }
        let me = b.die(agent);
        b.push(1, 10);
        let other = b.claim(me, 1, &bounds()).ids();
        assert_eq!(b.list.replay(&[ids[0], other[0], Id(5)]).unwrap(), 1);
        let state = b.state();
        assert!(state.recovered.is_empty() && state.dead.is_empty());
        // A record that counts nothing, so that what another service has counted does not count either.
        let record = Record { first: b.now(), ..Record::default() };
        assert_eq!(state.history.into_iter().collect::<Vec<_>>(), [(ids[0], record)]);
        assert_eq!(state.retry[&ids[0]], b.now());
        assert_eq!(state.inflight.keys().copied().collect::<Vec<_>>(), other);
        let taken = b.claim(me, 2, &bounds());
        let history = History { age: Some(Duration::ZERO), ..History::default() };
        assert_eq!((taken.ids(), &taken.claims[0].history), (ids, &history));
    }

    pub fn nothing_is_older_than_its_claim_whatever_the_clock_said(b: &mut Bench) {
        let (me, ids) = b.agent_with(3);
        let claimed = b.clock;
        // Behind by ten days one dies and one fails; the clock is put right, and another dies.
        b.set_clock(claimed - 10 * 86_400_000_000);
        b.settle(me, 1, &[settlement(ids[0], Place::Dead), settlement(ids[1], Place::Retry(SECOND))]);
        b.set_clock(claimed + 60_000_000);
        b.settle(me, 2, &[settlement(ids[2], Place::Dead)]);
        let again = b.claim(me, 2, &bounds());
        assert_eq!((again.ids(), again.claims[0].history.age), (ids[1..2].to_vec(), Some(SECOND * 60)));
        // The one that died long before its claim dies now, and is kept as long as others from now on.
        b.pass(SECOND * 20);
        assert_eq!(b.list.forget_dead(SECOND * 60, 100, b.now() as u64).unwrap(), 0);
        assert_eq!(b.state().dead[&ids[0]], b.now());
        b.pass(SECOND * 60);
        assert_eq!(b.list.forget_dead(SECOND * 60, 100, b.now() as u64).unwrap(), 2);
        // An id from a clock that was ahead tells nothing.
        b.push(1, 10);
        let id = b.claim(me, 3, &bounds()).ids()[0];
        b.set_clock(b.clock - 86_400_000_000);
        b.settle(me, 3, &[settlement(id, Place::Dead)]);
        b.pass(SECOND * 60);
        assert_eq!(b.list.forget_dead(SECOND * 60, 100, b.now() as u64).unwrap(), 1);
    }

    pub fn who_joins_learns_how_far_the_clock_went_back_since_the_last_beat(b: &mut Bench) {
        let me = b.join();
        b.list.beat(me, LEASE, 0, LONGEST).unwrap();
        b.list.leave(me).unwrap();
        b.pass(SECOND);
        assert_eq!(b.list.join(LEASE, None, 0).unwrap().set_back, Duration::ZERO);
        b.set_clock(b.clock - 3_600_000_000);
        assert_eq!(b.list.join(LEASE, None, 0).unwrap().set_back, SECOND * 3599);
        let next = b.list.join(LEASE, None, 0).unwrap();
        assert_eq!(next.set_back, SECOND * 3599);
        b.list.beat(next.number, LEASE, 0, LONGEST).unwrap();
        assert_eq!(b.list.join(LEASE, None, 0).unwrap().set_back, Duration::ZERO);
    }

    pub fn only_the_dead_are_dropped(b: &mut Bench) {
        let (me, ids) = b.agent_with(4);
        b.settle(
            me,
            1,
            &[
                settlement(ids[0], Place::Retry(SECOND)),
                settlement(ids[1], Place::Waiting(Some(SECOND))),
                settlement(ids[2], Place::Dead),
            ],
        );
        assert_eq!(b.list.drop_dead(&ids).unwrap(), 1);
        let state = b.state();
        assert_eq!(state.messages.keys().copied().collect::<Vec<_>>(), [ids[0], ids[1], ids[3]]);
        assert_eq!(state.history.len(), 2);
    }

    pub fn what_another_service_put_off_is_taken_over_and_due_when_it_was(b: &mut Bench) {
        let legacy = format!("{}.outbound_retry", b.prefix);
        let now = (b.clock / 1_000_000) as i64;
        let times = [now - 5, now + 7, now + 7200, 0];
        for n in 0..50_usize {
            b.redis(redis::cmd("ZADD").arg(&legacy).arg(times[n % 4] + n as i64).arg(format!("left {n}")));
        }
        let mut taken = Vec::new();
        // Bounded: a schedule from which nothing goes would give for ever.
        for _ in 0..8 {
            let adopted = b.list.adopt(0).unwrap();
            assert_eq!(adopted.hindrance, None);
            taken.push(adopted.messages);
            if !adopted.more {
                break;
            }
        }
        assert_eq!(taken, [16, 16, 16, 2]);
        let state = b.state();
        assert!(state.legacy.is_empty() && state.queue.is_empty() && state.messages.len() == 50);
        for (id, bytes) in &state.messages {
            let n: usize = std::str::from_utf8(&bytes[5..]).unwrap().parse().unwrap();
            let due = times[n % 4] + n as i64;
            let is_a_time = due > now && due < now + 3600;
            assert_eq!(state.retry[id], if is_a_time { due } else { now } * 1000, "{n}");
        }
        assert_eq!(b.list.adopt(0).unwrap().messages, 0);
    }

    /// Another agent, or the other service itself, has taken one between the look and the taking.
    pub fn what_somebody_else_took_meanwhile_is_theirs(b: &mut Bench) {
        let legacy = format!("{}.outbound_retry", b.prefix);
        for entry in [SOMEBODY_ELSES, "still there"] {
            b.redis(redis::cmd("ZADD").arg(&legacy).arg(1).arg(entry));
        }
        let adopted = b.list.adopt(0).unwrap();
        assert_eq!((adopted.messages, adopted.hindrance), (1, None));
        let state = b.state();
        assert_eq!(state.messages.values().collect::<Vec<_>>(), [b"still there"]);
        assert_eq!(state.retry.len(), 1);
    }

    /// What no agent writes, at a key.
    fn plant(b: &mut Bench, command: &str, name: &str, words: &[&str]) {
        let key = b.keys.named(name).to_string();
        b.redis(redis::cmd(command).arg(key).arg(words));
    }

    pub fn numbers_go_on_from_now_when_the_counter_is_none(b: &mut Bench) {
        for counter in ["word", "", "-5", "1e17", "9007199254740992", "inf", "nan", "0.5", "8000000000000000"] {
            b.pass(SECOND);
            plant(b, "SET", "id", &[counter]);
            let me = b.join();
            assert_eq!(me, AgentNumber(b.clock + 1), "{counter}");
            plant(b, "SET", "id", &[counter]);
            b.push(2, 10);
            let ids = b.claim(me, 1, &bounds()).ids();
            assert_eq!(ids, [Id(b.clock + 1), Id(b.clock + 2)], "{counter}");
            b.settle_all(me, 1, &ids, &Place::Delivered);
            b.list.leave(me).unwrap();
        }
        assert!(b.list.odd().load(Ordering::Relaxed) >= 14);
        // One that could be is followed, wherever it comes from.
        plant(b, "SET", "id", &[&format!("{}.5", b.clock + 4)]);
        assert_eq!(b.join(), AgentNumber(b.clock + 5));
    }

    pub fn what_is_no_id_is_put_out_of_the_way_of_retries(b: &mut Bench) {
        let (me, ids) = b.agent_with(2);
        b.settle_all(me, 1, &ids, &Place::Retry(Duration::ZERO));
        for n in 0..3000 {
            plant(b, "ZADD", "retry", &[&n.to_string(), &format!("word {n}")]);
        }
        plant(b, "ZADD", "retry", &["-inf", "12345"]);
        plant(b, "ZADD", "retry", &["inf", "a word"]);
        let taken: Vec<Id> = (2..5).flat_map(|call| b.claim(me, call, &bounds()).ids()).collect();
        assert_eq!(taken, ids);
        let met = b.list.odd().load(Ordering::Relaxed);
        assert_eq!(met, 3001);
        // What stands there is neither looked at again, nor made due, nor lost; nor in order.
        b.list.hasten(LONGEST, 500).unwrap();
        assert!(b.list.beat(me, LEASE, 0, LONGEST).unwrap().beyond.is_none());
        assert_eq!(b.claim(me, 5, &bounds()).ids(), []);
        b.list.leave(me).unwrap();
        let me = b.join();
        assert_eq!(b.claim(me, 1, &ordered()).ids(), ids);
        assert_eq!(b.list.odd().load(Ordering::Relaxed), met + 100);
        let retry = b.keys.named("retry").to_string();
        assert_eq!(b.redis(redis::cmd("ZCARD").arg(retry)), Value::Int(3002));
    }

    pub fn what_waits_without_an_id_is_passed_over(b: &mut Bench) {
        let (me, ids) = b.waiting(3, Some(Duration::ZERO));
        for id in ["", "0", "12345", "word", "00000000000000000", "0000000000000000.", "9999999999999999999"] {
            plant(b, "ZADD", "waiting", &["0", &format!("{A}\n{id}")]);
        }
        for n in 0..40 {
            plant(b, "ZADD", "waiting", &["0", &format!("{A}\n000{n}")]);
        }
        plant(b, "ZADD", "waiting", &["0", "word"]);
        let probe = b.claim(me, 2, &probing());
        assert_eq!((probe.ids(), probe.emptied), (ids[..1].to_vec(), vec![]));
        b.list.settle(me, 2, &[], &[LaneChange::Up(Arc::from(A))]).unwrap();
        let rest = b.claim(me, 3, &wanting(A, 10));
        assert_eq!((rest.ids(), rest.emptied), (ids[1..].to_vec(), vec![A.to_string()]));
        assert!(b.list.lanes().unwrap().is_empty());
        let waiting = b.keys.named("waiting").to_string();
        assert_eq!(b.redis(redis::cmd("ZCARD").arg(waiting)), Value::Int(48));
    }

    pub fn scores_of_what_waits_are_put_right(b: &mut Bench) {
        for (score, hides) in [("-1", "zzz"), ("5", "aaa"), ("inf", "aaa"), ("-inf", "zzz")] {
            let (me, ids) = b.waiting(3, Some(Duration::ZERO));
            for n in 0..700 {
                plant(b, "ZADD", "waiting", &[score, &format!("{hides}{n}")]);
            }
            // An end of what waits, delivered after all, is not the end of its lane.
            b.settle_all(me, 2, &ids[2..], &Place::Delivered);
            let taken: Vec<Id> = (2..5).flat_map(|call| b.claim(me, call, &probing()).ids()).collect();
            assert_eq!(taken, ids[..1], "{score}");
            b.list.settle(me, 3, &[], &[LaneChange::Up(Arc::from(A))]).unwrap();
            assert_eq!(b.claim(me, 5, &wanting(A, 10)).ids(), ids[1..2], "{score}");
            let waiting = b.keys.named("waiting").to_string();
            b.redis(redis::cmd("DEL").arg(waiting));
            b.state();
            b.list.leave(me).unwrap();
            let retry = b.keys.named("retry").to_string();
            b.redis(redis::cmd("DEL").arg(retry).arg(b.keys.named("messages")).arg(b.keys.named("history")));
        }
    }

    pub fn a_lane_for_which_nothing_waits_is_forgotten(b: &mut Bench) {
        let me = b.join();
        for (n, score) in ["1", "0", "-1", "-inf"].iter().enumerate() {
            plant(b, "ZADD", "lanes", &[score, &format!("http://none{n}")]);
            plant(b, "HSET", "failures", &[&format!("http://none{n}"), "word"]);
            let taken = b.claim(me, n as u64 + 1, &probing());
            assert_eq!((taken.emptied.len(), taken.due_in), (1, None), "{score}");
            let state = b.state();
            assert!(state.lanes.is_empty() && state.failures.is_empty(), "{score}");
        }
    }

    pub fn agents_and_owners_that_are_no_numbers_are_nobody(b: &mut Bench) {
        let (me, ids) = b.agent_with(4);
        for agent in ["word", "", "12345", "-1", "00000000000000000"] {
            plant(b, "ZADD", "agents", &["9e15", agent]);
        }
        for (score, id) in ["-inf", "-5", "1e17", "inf"].iter().zip(&ids) {
            plant(b, "ZADD", "inflight", &[score, &id.to_string()]);
        }
        plant(b, "ZADD", "inflight", &["1.5", "word"]);
        let younger = b.join();
        plant(b, "ZADD", "inflight", &[&me.to_string(), "12345", &younger.to_string(), "123456"]);
        let beat = b.list.beat(me, LEASE, 0, LONGEST).unwrap();
        assert_eq!(beat.peers.iter().map(|peer| peer.number).collect::<Vec<_>>(), [younger]);
        assert_eq!(b.list.odd().load(Ordering::Relaxed), 10);
        // Nor do they keep the order waiting.
        b.push(1, 10);
        assert_eq!(b.claim(me, 2, &ordered()).ids().len(), 1);
        b.push(1, 10);
        assert_eq!(b.claim(me, 3, &ordered()).ids().len(), 1);
        let inflight = b.keys.named("inflight").to_string();
        assert_eq!(b.redis(redis::cmd("ZCARD").arg(inflight)), Value::Int(9));
    }

    pub fn an_agent_with_any_lease_can_be_taken_back(b: &mut Bench) {
        for lease in ["inf", "-inf", "-5", "1e17", "0.5"] {
            let (dead, ids) = b.agent_with(1);
            plant(b, "ZADD", "agents", &[lease, &dead.to_string()]);
            plant(b, "HSET", "recovered", &[&ids[0].to_string(), "word"]);
            plant(b, "HSET", "calls", &[&format!("l{dead}"), "99999999999999999999 99999999999999999999"]);
            let me = b.die(dead);
            let state = b.state();
            assert_eq!((state.recovered[&ids[0]], state.agents.len()), (1, 1), "{lease}");
            b.settle_all(me, 1, &ids, &Place::Delivered);
            b.list.leave(me).unwrap();
        }
    }

    pub fn what_is_in_flight_and_no_message_is_taken_back_out_of_the_way(b: &mut Bench) {
        let me = b.join();
        plant(b, "ZADD", "inflight", &["7", "word"]);
        plant(b, "ZADD", "inflight", &[&me.to_string(), "12345"]);
        assert_eq!(b.list.in_flight(me).unwrap(), []);
        let stranger = b.peer(me, AgentNumber(7));
        assert_eq!(b.list.recover(me, &stranger, 100).unwrap(), Some(1));
        b.list.leave(me).unwrap();
        let names = ["retry", "recovered"].map(|name| b.keys.named(name).to_string());
        let retry = b.redis(redis::cmd("ZRANGE").arg(&names[0]).arg(&["0", "-1", "WITHSCORES"]));
        let never = "9000000000000000";
        let expected = ["12345", never, "word", never].map(|text| Value::BulkString(text.into())).to_vec();
        assert_eq!(retry, Value::Array(expected));
        assert_eq!(b.redis(redis::cmd("EXISTS").arg(&names[1])), Value::Int(0));
    }

    pub fn counts_that_are_none_are_nought(b: &mut Bench) {
        for count in ["word", "", "-1", "1e17", "2.5", "inf", "99999999999"] {
            let (me, ids) = b.waiting(1, Some(Duration::ZERO));
            plant(b, "HSET", "recovered", &[&ids[0].to_string(), count]);
            plant(b, "HSET", "failures", &[A, count]);
            let taken = b.claim(me, 2, &probing());
            assert_eq!((taken.ids(), taken.claims[0].recovered), (ids.clone(), 0), "{count}");
            assert_eq!(b.claim_again(me, 2, true, &probing()).claims[0].recovered, 0, "{count}");
            b.settle_all(me, 2, &ids, &Place::Waiting(Some(Duration::ZERO)));
            plant(b, "HSET", "failures", &[A, count]);
            plant(b, "HDEL", "recovered", &[&ids[0].to_string()]);
            b.list.settle(me, 3, &[], &[close(A, SECOND, 1)]).unwrap();
            let state = b.state();
            assert_eq!((state.failures[A].0, state.lanes[A] % 1000 / 2), (1, b.now() % 1000 / 2), "{count}");
            b.pass(SECOND);
            let ids = b.claim(me, 3, &probing()).ids();
            b.settle_all(me, 4, &ids, &Place::Retry(Duration::ZERO));
            plant(b, "HSET", "recovered", &[&ids[0].to_string(), count]);
            assert_eq!(b.claim(me, 4, &bounds()).claims[0].recovered, 0, "{count}");
            b.settle_all(me, 5, &ids, &Place::Delivered);
            b.list.leave(me).unwrap();
        }
    }

    pub fn calls_that_are_no_numbers_are_none(b: &mut Bench) {
        let (me, ids) = b.agent_with(2);
        plant(b, "HSET", "calls", &[&me.to_string(), "word", &format!("s{me}"), "word"]);
        b.push(1, 10);
        assert_eq!(b.claim(me, 2, &bounds()).ids().len(), 1);
        assert_eq!(b.settle_all(me, 1, &ids, &Place::Delivered), []);
        assert_eq!(b.state().messages.len(), 1);
        plant(b, "HSET", "calls", &[&me.to_string(), "3 12345k 999999999999999999999k"]);
        plant(b, "ZADD", "inflight", &[&me.to_string(), "12345"]);
        plant(b, "HSET", "messages", &["12345", "body"]);
        assert_eq!(b.claim_again(me, 3, true, &bounds()).ids(), []);
    }

    pub fn a_dead_letter_without_a_time_or_an_id_is_kept(b: &mut Bench) {
        let (me, ids) = b.agent_with(2);
        // The clock is behind what it was, so that the ids tell nothing.
        b.set_clock(b.clock - 3_600_000_000);
        b.settle_all(me, 1, &ids, &Place::Dead);
        plant(b, "ZADD", "dead", &["-inf", &ids[0].to_string()]);
        for n in 0..10 {
            plant(b, "ZADD", "dead", &["1500000000000", &format!("word {n}")]);
        }
        b.pass(SECOND * 60);
        let latest = b.now() as u64;
        assert_eq!(b.list.forget_dead(SECOND * 60, 6, latest).unwrap(), 1);
        let names = ["dead", "messages"].map(|name| b.keys.named(name).to_string());
        assert_eq!(b.redis(redis::cmd("ZCARD").arg(&names[0])), Value::Int(11));
        assert_eq!(
            b.redis(redis::cmd("HKEYS").arg(&names[1])),
            Value::Array(vec![Value::BulkString(ids[0].to_string().into())])
        );
    }

    pub fn a_first_failure_long_before_any_is_none(b: &mut Bench) {
        let (me, ids) = b.waiting(1, Some(Duration::ZERO));
        for record in ["1 0 0 x", "1 0 -9223372036854775808 x", "1 0 99999999999999999999 x", "word"] {
            plant(b, "HSET", "history", &[&ids[0].to_string(), record]);
            let claim = b.claim(me, 2 + b.clock, &probing()).claims.remove(0);
            assert_eq!(claim.history.age, None, "{record}");
            b.settle_all(me, 2 + b.clock, &ids, &Place::Waiting(Some(Duration::ZERO)));
            assert_eq!(b.state().history[&ids[0]].first, b.now(), "{record}");
            b.pass(SECOND);
        }
    }

    pub fn a_message_without_a_name_is_not_lost(b: &mut Bench) {
        plant(b, "HSET", "messages", &["", "body"]);
        let (me, ids) = b.agent_with(1);
        b.settle_all(me, 1, &ids, &Place::Delivered);
        let messages = b.keys.named("messages").to_string();
        assert_eq!(b.redis(redis::cmd("HLEN").arg(messages)), Value::Int(1));
    }

    pub fn scripts_that_the_server_forgot_are_sent_again(b: &mut Bench) {
        let (me, ids) = b.agent_with(2);
        b.redis(redis::cmd("SCRIPT").arg("FLUSH"));
        b.settle_all(me, 1, &ids, &Place::Retry(Duration::ZERO));
        b.redis(redis::cmd("SCRIPT").arg("FLUSH"));
        assert_eq!(b.claim(me, 2, &bounds()).ids(), ids);
    }

    pub fn no_number_is_used_twice_when_the_clock_goes_back(b: &mut Bench) {
        let (me, ids) = b.agent_with(5);
        b.set_clock(b.clock - 3_600_000_000);
        b.push(5, 10);
        let more = b.claim(me, 2, &bounds()).ids();
        assert!(more[0] > ids[4] && b.join().0 > more[4].0);
    }

    pub fn no_number_is_used_twice_when_the_counter_is_lost(b: &mut Bench) {
        let (me, ids) = b.agent_with(5);
        let counter = b.keys.named("id").to_string();
        b.redis(redis::cmd("DEL").arg(counter));
        b.pass(ms(1));
        b.push(5, 10);
        let more = b.claim(me, 2, &bounds()).ids();
        assert!(more[0] > ids[4]);
        assert_eq!(more[0].0, b.clock + 1);
    }

    pub fn a_beat_lists_the_others_and_strangers_and_never_registers(b: &mut Bench) {
        let (gone, _) = b.agent_with(3);
        let me = b.join();
        let seen = b.peer(me, gone);
        assert_eq!(seen.lease, Some((b.now() + 15_000) as u64));
        b.list.recover(me, &seen, 1).unwrap();
        assert_eq!(b.peer(me, gone), Peer { number: gone, lease: None, length: Duration::ZERO });
        b.pass(SECOND);
        assert!(!b.list.beat(gone, LEASE, 0, LONGEST).unwrap().registered);
        assert!(b.list.beat(me, LEASE, 0, LONGEST).unwrap().registered);
        let agents = b.state().agents;
        assert_eq!(agents.into_iter().collect::<Vec<_>>(), [(me, b.now() + 15_000)]);
    }

    pub fn only_what_is_in_flight_here_is_given_back(b: &mut Bench) {
        let (me, ids) = b.agent_with(2);
        let (other, others) = b.agent_with(1);
        assert_eq!(b.list.give_back(me, &[ids[0], others[0], Id(5)]).unwrap(), 1);
        let state = b.state();
        assert_eq!(state.retry.into_keys().collect::<Vec<_>>(), ids[..1]);
        assert_eq!(state.inflight.into_iter().collect::<Vec<_>>(), [(ids[1], me), (others[0], other)]);
    }

    pub fn an_agent_taken_for_dead_learns_of_it_when_it_joins_again(b: &mut Bench) {
        let fate = |b: &mut Bench, old| b.list.join(LEASE, Some(old), 0).unwrap().old;
        let (dead, _) = b.agent_with(3);
        let left = b.join();
        assert_eq!(fate(b, dead), Fate::Registered);
        b.list.leave(left).unwrap();
        let me = b.join();
        let seen = b.peer(me, dead);
        // With the first call already: the rest is taken back later.
        assert_eq!(b.list.recover(me, &seen, 1).unwrap(), Some(1));
        assert_eq!(fate(b, dead), Fate::Recovered);
        assert_eq!(b.list.recover(me, &Peer { lease: None, ..seen }, 9).unwrap(), Some(2));
        assert_eq!(fate(b, dead), Fate::Recovered);
        assert_eq!(b.state().recovered_agents, [dead]);
        // Of one that left by itself nothing needs to be known, and of one whose traces are lost nothing is.
        assert_eq!(fate(b, left), Fate::Unknown);
        let keys = b.keys.all().to_vec();
        b.redis(redis::cmd("DEL").arg(keys));
        assert_eq!(fate(b, dead), Fate::Unknown);
    }

    pub fn so_many_agents_taken_for_dead_are_remembered(b: &mut Bench) {
        let me = b.join();
        let mut dead = Vec::new();
        for _ in 0..1001 {
            let other = b.join();
            let seen = Peer { number: other, lease: Some((b.now() + 15_000) as u64), length: LEASE };
            assert_eq!(b.list.recover(me, &seen, 1).unwrap(), Some(0));
            dead.push(other);
        }
        assert_eq!(b.state().recovered_agents, dead[1..]);
    }

    pub fn no_number_is_given_out_that_an_agent_has_seen(b: &mut Bench) {
        // Ahead of the clock and of the counter: a master that crashed had given them out.
        let seen = b.clock + 1_000_000;
        let me = b.list.join(LEASE, None, seen).unwrap().number;
        assert!(me.0 > seen);
        let seen = seen + 1_000_000;
        b.push(1, 10);
        b.push(1, 1001);
        let taken = b.claim(me, 1, &Bounds { seen, largest: 1000, ..bounds() });
        assert!(taken.ids()[0].0 > seen);
        let second = Bounds { seen: seen + 1_000_000, largest: 1000, ..bounds() };
        let oversized = [taken.oversized, b.claim(me, 2, &second).oversized].concat();
        assert!(oversized[0].0.0 > seen);
        let seen = seen + 10 * 3_600_000_000;
        b.list.beat(me, LEASE, seen, LONGEST).unwrap();
        assert!(b.join().0 > seen);
    }

    pub fn no_number_is_given_out_that_another_agent_has_seen(b: &mut Bench) {
        let (one, other) = (b.join(), b.join());
        let seen = b.list.beat(one, LEASE, 0, LONGEST).unwrap().at * 1000;
        b.push(3, 10);
        let queued = b.state().queue;
        b.pass(SECOND * 5);
        let held = b.claim(other, 1, &bounds()).ids();
        // A replica that has missed the claim, with a clock that is behind; who holds nothing is the first there.
        let keys = ["id", "messages", "inflight"].map(|name| b.keys.named(name).to_string());
        b.redis(redis::cmd("DEL").arg(&keys));
        b.redis(redis::cmd("RPUSH").arg(b.keys.all()[0].clone()).arg(Vec::from(queued)));
        b.set_clock(b.clock - 600_000_000);
        let given = b.claim(one, 1, &Bounds { seen, ..bounds() }).ids();
        assert_eq!(given.len(), 3);
        assert!(given[0] > held[2], "{given:?} {held:?}");
    }

    pub fn while_the_counter_is_ahead_of_the_clock_who_joins_leaves_numbers_out(b: &mut Bench) {
        let (_, ids) = b.agent_with(3);
        b.set_clock(b.clock - 3_600_000_000);
        // What a replica has missed of the counter was given to somebody who holds it still, perhaps.
        b.redis(redis::cmd("SET").arg(b.keys.named("id").to_string()).arg(ids[0].0));
        let me = b.join();
        assert!(me.0 > ids[2].0 + 1_000_000, "{me} {ids:?}");
    }

    pub fn what_two_masters_leave_out_differs(b: &mut Bench) {
        let before = b.join();
        b.set_clock(b.clock - 3_600_000_000);
        let one = b.join();
        // The same counter on a replica that has missed this, a moment later.
        b.redis(redis::cmd("SET").arg(b.keys.named("id").to_string()).arg(before.0));
        b.pass(ms(77));
        assert!(b.join().0.abs_diff(one.0) > 1_000_000);
    }

    pub fn an_agent_learns_how_far_numbers_were_given_out(b: &mut Bench) {
        let (one, other) = (b.join(), b.join());
        b.push(3, 10);
        let given = b.claim(other, 1, &bounds()).ids();
        assert_eq!(b.list.beat(one, LEASE, 0, LONGEST).unwrap().numbered, given[2].0);
        let Claimed::Taken { numbered, .. } = b.list.claim(one, 1, false, &bounds()).unwrap() else { panic!() };
        assert_eq!(numbered, given[2].0);
    }

    pub fn what_redis_has_lost_is_restored_and_the_rest_stays_where_it_is(b: &mut Bench) {
        let (me, ids) = b.agent_with(2);
        b.settle_all(me, 1, &ids[..1], &Place::Retry(SECOND));
        let before = b.state();
        let lost = Id(b.clock + 5_000_000);
        let held: Vec<_> = [ids[0], ids[1], lost].map(|id| (id, Arc::new(b"held".to_vec()))).into();
        assert_eq!(b.list.restore(me, &held).unwrap(), Some(vec![ids[1], lost]));
        let after = b.state();
        assert_eq!(
            (&after.messages[&ids[0]], &after.messages[&ids[1]]),
            (&before.messages[&ids[0]], &before.messages[&ids[1]])
        );
        assert_eq!((after.messages[&lost].as_slice(), after.inflight[&lost]), (&b"held"[..], me));
        assert_eq!(after.retry, before.retry);
        // Sent again it changes nothing, and no number up to it is given out any more.
        assert_eq!(b.list.restore(me, &held).unwrap(), Some(vec![ids[1], lost]));
        assert_eq!(b.state(), after);
        assert!(b.join().0 > lost.0);
        // Only for who is registered: else nobody would take it back.
        b.list.leave(me).unwrap();
        assert_eq!(b.list.restore(me, &[(Id(b.clock), Arc::new(b"x".to_vec()))]).unwrap(), None);
        assert_eq!(b.state().messages.len(), 3);
    }

    pub fn a_settle_sent_again_says_again_what_was_not_ours(b: &mut Bench) {
        let (me, ids) = b.agent_with(2);
        let first = [settlement(Id(5), Place::Retry(SECOND)), settlement(ids[0], Place::Dead)];
        assert_eq!(b.settle(me, 1, &first), [Id(5)]);
        assert_eq!(b.settle(me, 1, &first), [Id(5)]);
        let second = [settlement(Id(6), Place::Retry(SECOND)), settlement(ids[1], Place::Delivered)];
        assert_eq!(b.settle(me, 2, &second), [Id(6)]);
        // A late copy of the first is not answered with what the second came to.
        assert_eq!(b.list.settle(me, 1, &first, &[]).unwrap(), None);
        assert_eq!(b.state().settles[&me], (2, vec![Id(6)]));
    }

    pub fn what_is_due_later_than_any_delay_is_due_now(b: &mut Bench) {
        let right = b.clock;
        let (me, ids) = b.agent_with(4);
        b.pass(SECOND * 86_400);
        b.settle_all(me, 1, &ids[..2], &Place::Retry(SECOND));
        b.settle_all(me, 2, &ids[2..3], &Place::Waiting(Some(SECOND)));
        assert_eq!(b.list.beat(me, LEASE, 0, LONGEST).unwrap().beyond, None);
        b.set_clock(right);
        b.settle(me, 3, &[Settlement { origin: Arc::from(B), ..settlement(ids[3], Place::Waiting(Some(LONGEST))) }]);
        assert_eq!(b.list.beat(me, LEASE, 0, LONGEST).unwrap().beyond, Some(LONGEST));
        assert_eq!(b.claim(me, 2, &probing()).ids(), []);
        // One message and one lane at a time.
        assert_eq!(b.list.hasten(LONGEST, 1).unwrap(), 2);
        assert_eq!(b.list.hasten(LONGEST, 1).unwrap(), 1);
        assert_eq!(b.list.hasten(LONGEST, 1).unwrap(), 0);
        assert_eq!(b.list.beat(me, LEASE, 0, LONGEST).unwrap().beyond, None);
        let state = b.state();
        assert_eq!((state.lanes[A], state.lanes[B]), (b.now(), b.now() + 7_200_000));
        assert_eq!(b.claim(me, 3, &probing()).ids(), ids[..3]);
        // Another agent may give longer delays.
        let other = b.join();
        b.list.beat(other, LEASE, 0, LONGEST * 2).unwrap();
        let mine = b.list.beat(me, LEASE, 0, SECOND).unwrap();
        assert_eq!(mine.beyond, None);
        b.list.leave(other).unwrap();
        assert_eq!(b.list.beat(me, LEASE, 0, SECOND).unwrap().beyond, Some(SECOND));
    }

    pub fn a_beat_tells_how_long_each_lease_is(b: &mut Bench) {
        let (me, other) = (b.join(), b.join());
        b.list.beat(other, SECOND * 60, 0, LONGEST).unwrap();
        b.pass(SECOND * 50);
        assert_eq!(b.peer(me, other).length, SECOND * 60);
        // A program before this one has not written it down: what is left is the next best.
        let calls = b.keys.named("calls").to_string();
        b.redis(redis::cmd("HDEL").arg(calls).arg(format!("l{other}")));
        assert_eq!(b.peer(me, other).length, SECOND * 10);
    }

    pub fn in_order_only_the_oldest_agent_claims(b: &mut Bench) {
        let (older, me) = (b.join(), b.join());
        b.push(2, 10);
        assert_eq!(b.list.claim(me, 1, false, &ordered()).unwrap(), Claimed::Standby);
        assert_eq!(b.claim(older, 1, &Bounds { messages: 1, ..ordered() }).claims.len(), 1);
        b.list.leave(older).unwrap();
        assert_eq!(b.claim(me, 2, &ordered()).sources(), [Source::Retry]);
    }

    pub fn in_order_nobody_claims_while_a_stranger_has_messages_in_flight(b: &mut Bench) {
        let (dead, ids) = b.agent_with(2);
        let me = b.join();
        b.push(1, 10);
        let seen = b.peer(me, dead);
        b.list.recover(me, &seen, 1).unwrap();
        assert_eq!(b.list.claim(me, 1, false, &ordered()).unwrap(), Claimed::Standby);
        b.list.recover(me, &Peer { lease: None, ..seen }, 1).unwrap();
        assert_eq!(b.claim(me, 2, &ordered()).ids(), ids);
    }

    pub fn in_order_retries_come_alone_due_or_not(b: &mut Bench) {
        let (me, ids) = b.agent_with(6);
        b.settle_all(me, 1, &ids[..3], &Place::Retry(SECOND * 99));
        b.settle_all(me, 2, &ids[3..4], &Place::Waiting(Some(Duration::ZERO)));
        b.push(3, 10);
        for (call, returning) in [(2, 0), (3, 4)] {
            let taken = b.claim(me, call, &Bounds { returning, ..ordered() });
            assert_eq!((taken.ids(), taken.sources()), (ids[..3].to_vec(), vec![Source::Retry; 3]));
            b.settle_all(me, call + 10, &ids[..3], &Place::Retry(SECOND * 99));
        }
        b.settle_all(me, 20, &ids[..3], &Place::Delivered);
        let taken = b.claim(me, 4, &ordered());
        assert_eq!(taken.sources(), [&[Source::Waiting { probe: true }][..], &[Source::Queue; 3]].concat());
    }
}

fn list(redis: &Redis, prefix: &str, pop: Pop, ordered: bool) -> RedisList {
    let queue = format!("{prefix}.outbound_transport");
    RedisList::new(Server::from(&RedisAddress::new(&redis.url()).unwrap()), &queue, pop, ordered)
}

#[test]
fn keys_share_the_slot_of_the_queue_on_a_cluster() {
    let slot = |key: &str| {
        let tag = key.find('{').and_then(|open| {
            let length = key[open + 1..].find('}').filter(|length| *length > 0)?;
            Some(&key[open + 1..open + 1 + length])
        });
        tag.unwrap_or(key).to_string()
    };
    for (queue, beside) in [
        ("acapy_outbound", "{acapy_outbound}:id"),
        ("acapy.outbound_transport", "{acapy.outbound_transport}:id"),
        ("{acapy}.outbound_transport", "{acapy}.outbound_transport:id"),
        ("{}x.outbound_transport", "{{}x.outbound_transport}:id"),
        ("a{b.outbound_transport", "{a{b.outbound_transport}:id"),
    ] {
        let keys = Keys::new(queue);
        assert_eq!(keys.named("id"), beside, "queue {queue}");
        if queue != "{}x.outbound_transport" {
            let slots: Vec<_> = keys.all().iter().map(|key| slot(key)).collect();
            assert!(slots.iter().all(|other| *other == slots[0]), "{slots:?}");
        }
    }
}

#[test]
fn a_prefix_with_a_hash_tag_works() {
    let redis = Redis::with(&["appendonly no"]);
    let mut queue = list(&redis, "{acapy}", Pop::Peek, false);
    redis::cmd("RPUSH").arg("{acapy}.outbound_transport").arg("x").exec(&mut redis.client()).unwrap();
    let me = queue.join(LEASE, None, 0).unwrap().number;
    let Claimed::Taken { claims, .. } = queue.claim(me, 1, false, &bounds()).unwrap() else { panic!("it claims") };
    assert_eq!(claims[0].bytes, b"x");
}

fn waits_and_takes_nothing(redis: &Redis, queue: &mut RedisList) {
    assert_eq!(queue.wait(ms(30)).unwrap(), Waited::Nothing);
    redis.push(b"one");
    redis.push(b"two");
    assert_eq!(queue.wait(SECOND).unwrap(), Waited::Something);
    // It looks, and takes nothing.
    assert_eq!(redis.counts().queue, 2);
}

#[test]
fn the_wait_looks_and_takes_nothing() {
    let redis = Redis::with(&["appendonly no"]);
    let mut queue = list(&redis, "acapy", Pop::Peek, false);
    waits_and_takes_nothing(&redis, &mut queue);
    let me = queue.join(LEASE, None, 0).unwrap().number;
    let Claimed::Taken { claims, .. } = queue.claim(me, 1, false, &bounds()).unwrap() else { panic!("it claims") };
    assert_eq!(claims.iter().map(|claim| claim.bytes.as_slice()).collect::<Vec<_>>(), [b"one", b"two"]);
}

#[test]
fn the_wait_of_a_server_without_blmove_takes_nothing() {
    let redis = Redis::with(&["appendonly no", "rename-command BLMOVE \"\""]);
    let mut queue = list(&redis, "acapy", Pop::Peek, false);
    waits_and_takes_nothing(&redis, &mut queue);
    // In order it may not turn the list, and polls.
    let mut queue = list(&redis, "acapy", Pop::Peek, true);
    redis.push(b"three");
    for _ in 0..5 {
        queue.wait(ms(20)).unwrap();
    }
    let values: Vec<Vec<u8>> =
        redis::cmd("LRANGE").arg(redis.queue_key()).arg(0).arg(-1).query(&mut redis.client()).unwrap();
    assert_eq!(values.last().map(Vec::as_slice), Some(&b"three"[..]));
}

#[test]
fn a_popped_message_goes_into_the_next_claim() {
    let redis = Redis::with(&["appendonly no"]);
    let mut queue = list(&redis, "acapy", Pop::Blpop, false);
    assert_eq!(queue.wait(ms(30)).unwrap(), Waited::Nothing);
    redis.push(b"one");
    redis.push(b"two");
    let popped = queue.wait(SECOND).unwrap();
    assert_eq!(popped, Waited::Popped(b"one".to_vec()));
    let me = queue.join(LEASE, None, 0).unwrap().number;
    let with_popped = Bounds { popped: Some(b"one".to_vec()), ..bounds() };
    let Claimed::Taken { claims, .. } = queue.claim(me, 1, false, &with_popped).unwrap() else { panic!("it claims") };
    let [one, two] = &claims[..] else { panic!("{claims:?}") };
    assert!(one.bytes == b"one" && two.bytes == b"two" && one.id < two.id && one.source == Source::Queue);
    // Sent again, it is not taken twice.
    assert!(
        matches!(queue.claim(me, 1, true, &with_popped).unwrap(), Claimed::Taken { claims: again, .. } if again == claims)
    );
    redis.check_invariant();
}

#[test]
fn a_full_redis_refuses_the_wait_and_says_so() {
    let redis = Redis::with(&["appendonly no"]);
    let mut queue = list(&redis, "acapy", Pop::Peek, false);
    // Shorter ones are not made by Redis before 6.0.
    assert_eq!(queue.wait(ms(500)).unwrap(), Waited::Nothing);
    redis::cmd("CONFIG").arg(&["SET", "maxmemory", "1"]).exec(&mut redis.client()).unwrap();
    // The first wait may end early and unheard; the second is listened to.
    let waits = [queue.wait(ms(500)).unwrap(), queue.wait(ms(500)).unwrap()];
    assert!(waits.contains(&Waited::Refused), "{waits:?}");
}

#[test]
fn a_claim_whose_answer_was_lost_is_answered_by_a_master_alone() {
    let redis = Redis::with(&["appendonly no"]);
    let mut queue = list(&redis, "acapy", Pop::Peek, false);
    redis.push(b"one");
    let me = queue.join(LEASE, None, 0).unwrap().number;
    let claim = |queue: &mut RedisList, again| queue.claim(me, 1, again, &bounds());
    assert!(matches!(claim(&mut queue, false), Ok(Claimed::Taken { claims, .. }) if claims.len() == 1));
    // A replica of nobody: it keeps its data, and answers who reads.
    let role = |of: &[&str]| redis::cmd("REPLICAOF").arg(of).exec(&mut redis.client()).unwrap();
    role(&["127.0.0.1", "1"]);
    assert!(matches!(claim(&mut queue, true), Err(Error::Unavailable(why)) if why.contains("replica")));
    role(&["NO", "ONE"]);
    assert!(matches!(claim(&mut queue, true), Ok(Claimed::Taken { claims, .. }) if claims.len() == 1));
}
