//! Torture: several agents on one real Redis, many messages, and faults of every kind at random
//! times, alone and together; then the ledger must come out even. A binary of its own:
//!
//! ```text
//! scripts/torture [--minutes N] [--seed N] [--mode short|ordered|default|origins] [--round N]
//! scripts/torture --minutes N --seed N --cluster
//! scripts/torture --release --soak 1000000
//! ```
//!
//! Without options it is one short round with a fixed seed, which is how `cargo test` runs it. It
//! runs round after round, each with a Redis, agents and recipients of its own and a schedule that
//! follows from the seed and the round's number, and prints a table. It fails if a message is lost
//! or stuck, if the invariant of the keys is broken at any moment, if a copy arrives that no fault
//! explains, if an agent ends by itself, or if the logs say more than a few lines a fault; then it
//! prints the history of the messages concerned and keeps the logs. `--soak` is another matter: no
//! faults, so many messages at full speed, and the agent's memory must level.
//!
//! | file | holds |
//! |---|---|
//! | `torture/round.rs` | one round from start to judgement |
//! | `torture/faults.rs` | every fault: whom it strikes, how it begins and ends |
//! | `torture/agents.rs`, `recipients.rs`, `proxy.rs` | what is struck |
//! | `torture/cuts.rs` | packets that are dropped, where this process has a network of its own |
//! | `torture/ledger.rs`, `history.rs` | what became of each message |
//! | `torture/losses.rs` | what a Redis that forgot something may have taken along |
//! | `torture/cluster.rs` | a Redis Cluster, and what befalls one |
//! | `torture/soak.rs` | memory over many messages |

#[path = "daemon"]
mod daemon {
    // The fixtures of the black-box tests, of which this binary uses a part.
    #[allow(dead_code, unused_imports)]
    pub mod support;
}
#[path = "torture"]
mod torture {
    pub mod agents;
    pub mod cluster;
    pub mod cuts;
    pub mod faults;
    pub mod history;
    pub mod ledger;
    pub mod losses;
    pub mod proxy;
    pub mod recipients;
    pub mod rng;
    pub mod round;
    pub mod soak;
}

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use daemon::support;
use torture::round::{Mode, Plan, Report};
use torture::{cluster, cuts, faults, round, soak};

/// The seed of the short round in `cargo test`.
const FIXED_SEED: u64 = 20_240_229;
/// Faults are injected for so long in a round of a long run, and of the short one.
const LONG_ROUND: Duration = Duration::from_secs(40);
const SHORT_ROUND: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let options = match Options::from_args(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => return ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("torture: {why}");
            return ExitCode::from(2);
        }
    };
    if options.soak.is_none() && !cuts::are_possible() {
        println!(
            "no packets are dropped, for this is no network of its own with nft: proxies and frozen servers alone"
        );
    }
    let other = match (options.soak, options.cluster) {
        (Some(n_messages), _) => Some(soak::run(n_messages, options.seed)),
        (None, true) => Some(cluster::run(options.minutes.unwrap_or(1), options.seed)),
        (None, false) => None,
    };
    if let Some(came_to) = other {
        return match came_to {
            Ok(()) => ExitCode::SUCCESS,
            Err(wrong) => {
                println!("FAILED: {wrong}");
                ExitCode::FAILURE
            }
        };
    }
    let begun = Instant::now();
    let mut totals = Totals::default();
    let mut round = options.round.unwrap_or(0);
    loop {
        let (plan, rng) = Plan::new(options.seed, round, options.mode, options.round_length());
        let report = round::run(&plan, rng);
        totals.add(&plan, report);
        round += 1;
        let is_over = match options.minutes {
            None => true,
            Some(minutes) => begun.elapsed() >= Duration::from_secs(60) * minutes || totals.n_failed >= 3,
        };
        if is_over {
            break;
        }
    }
    totals.print(&options, begun.elapsed());
    if totals.n_failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

struct Options {
    minutes: Option<u32>,
    seed: u64,
    mode: Option<Mode>,
    round: Option<u64>,
    /// Instead of faults: so many messages at full speed, and the size of the agent.
    soak: Option<u64>,
    /// On a Cluster, and with faults of its own.
    cluster: bool,
}

impl Options {
    /// `None` if this run of `cargo test` is about other tests.
    fn from_args(mut args: impl Iterator<Item = String>) -> Result<Option<Options>, String> {
        let mut options =
            Options { minutes: None, seed: FIXED_SEED, mode: None, round: None, soak: None, cluster: false };
        let mut filters = Vec::new();
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("option '{arg}' needs a value"));
            let number = |text: String| text.parse::<u64>().map_err(|_| format!("option '{arg}': {text} is no number"));
            match arg.as_str() {
                "--minutes" => options.minutes = Some(number(value()?)?.min(10_000) as u32),
                "--seed" => options.seed = number(value()?)?,
                "--round" => options.round = Some(number(value()?)?),
                "--cluster" => options.cluster = true,
                "--soak" => options.soak = Some(number(value()?)?),
                "--mode" => {
                    options.mode = Some(match value()?.as_str() {
                        "short" => Mode::Short,
                        "ordered" => Mode::Ordered,
                        "default" => Mode::Default,
                        "origins" => Mode::Origins,
                        other => {
                            return Err(format!(
                                "option '--mode': there is no {other}; short, ordered, default or origins"
                            ));
                        }
                    });
                }
                // What `cargo test` hands to every test binary.
                "--list" | "--ignored" => return Ok(None),
                "--test-threads" | "--skip" | "--format" | "--color" | "-Z" => drop(value()?),
                flag if flag.starts_with('-') => {}
                filter => filters.push(filter.to_string()),
            }
        }
        let concerns_us = filters.is_empty() || filters.iter().any(|filter| "torture".contains(filter.as_str()));
        if options.minutes.is_none() && options.mode.is_none() && options.round.is_none() {
            options.mode = Some(Mode::Short);
        }
        Ok(concerns_us.then_some(options))
    }

    fn round_length(&self) -> Duration {
        if self.minutes.is_some() || self.round.is_some() { LONG_ROUND } else { SHORT_ROUND }
    }
}

/// All rounds together.
#[derive(Default)]
struct Totals {
    n_rounds: usize,
    n_failed: usize,
    sum: Report,
    lines: BTreeMap<String, usize>,
    slowest_drain: Duration,
    /// Rounds by what their plan had in it, faults aside.
    kinds: BTreeMap<&'static str, usize>,
}

impl Totals {
    fn add(&mut self, plan: &Plan, report: Report) {
        self.n_rounds += 1;
        println!(
            "round {:>3} {:8} {} agents, {} faults, {} messages: {} lost, {} stuck, {} repeated (at most {} copies), \
             drained in {:.1?}, {} lines (of {}), {} starts, RSS {} KiB (peak {}), {} files",
            plan.round,
            format!("{:?}", plan.mode).to_lowercase(),
            plan.n_agents,
            report.n_faults(),
            report.n_messages,
            report.n_lost,
            report.n_stuck,
            report.n_repeated,
            report.most_copies,
            report.drained_in,
            report.n_lines(),
            report.lines_allowed,
            report.n_starts,
            report.last_kib,
            report.peak_kib,
            report.peak_files,
        );
        for note in &report.notes {
            println!("  slow to drain: {note}");
        }
        if !report.failures.is_empty() {
            self.n_failed += 1;
            println!("round {} FAILED ({plan:?}):", plan.round);
            for failure in &report.failures {
                println!("  {failure}");
            }
        }
        let kinds = [
            ("agents with leases of different lengths", plan.leases.iter().any(|lease| *lease != plan.leases[0])),
            ("in strict order", plan.ordered),
            ("more origins than an agent remembers", plan.mode == Mode::Origins),
            ("a replica that may have to take over", plan.replica),
            ("Redis with a clock that is stepped", plan.redis_clock),
            ("messages given up after seconds", plan.give_up_after.is_some()),
            ("strangers' paths on a shared origin", report.n_strange > 0),
        ];
        for (kind, is_in) in kinds {
            *self.kinds.entry(kind).or_default() += usize::from(is_in);
        }
        let sum = &mut self.sum;
        sum.n_behind += report.n_behind;
        sum.n_gone_with_redis += report.n_gone_with_redis;
        sum.n_held_only_here += report.n_held_only_here;
        sum.n_strange += report.n_strange;
        sum.n_given_up += report.n_given_up;
        sum.n_aged_by_clock += report.n_aged_by_clock;
        sum.latest_beside_strangers = sum.latest_beside_strangers.max(report.latest_beside_strangers);
        sum.n_messages += report.n_messages;
        sum.n_delivered += report.n_delivered;
        sum.n_dead += report.n_dead;
        sum.n_lost += report.n_lost;
        sum.n_stuck += report.n_stuck;
        sum.n_repeated += report.n_repeated;
        sum.n_unexplained += report.n_unexplained;
        sum.n_uncertain += report.n_uncertain;
        sum.n_refused += report.n_refused;
        sum.n_starts += report.n_starts;
        sum.n_invariant_checks += report.n_invariant_checks;
        sum.most_copies = sum.most_copies.max(report.most_copies);
        sum.peak_kib = sum.peak_kib.max(report.peak_kib);
        sum.peak_files = sum.peak_files.max(report.peak_files);
        self.slowest_drain = self.slowest_drain.max(report.drained_in);
        for (fault, n) in report.faults {
            *sum.faults.entry(fault).or_default() += n;
        }
        for (line, n) in report.lines {
            *self.lines.entry(line).or_default() += n;
        }
    }

    fn print(&self, options: &Options, took: Duration) {
        let sum = &self.sum;
        let row = |name: &str, value: String| println!("{name:<60} {value:>12}");
        println!("\nfaults by kind");
        for (fault, _) in faults::ALL {
            row(fault.name(), sum.faults.get(&fault).copied().unwrap_or(0).to_string());
        }
        row("failovers to a replica whose clock was behind", sum.n_behind.to_string());
        println!("\nrounds with");
        for (kind, n) in &self.kinds {
            row(kind, n.to_string());
        }
        println!("\nlines at info and above, the most frequent");
        let mut lines: Vec<_> = self.lines.iter().collect();
        lines.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
        for (line, n) in lines.iter().take(15) {
            println!("{n:>6} {line}");
        }
        println!("\nseed {}, {} rounds in {:.0?}", options.seed, self.n_rounds, took);
        row("faults", sum.n_faults().to_string());
        row("messages", sum.n_messages.to_string());
        row("  delivered", sum.n_delivered.to_string());
        row("  dead", sum.n_dead.to_string());
        row("  pushed without an answer, so perhaps not at all", sum.n_uncertain.to_string());
        row("beside these, refused by a Redis that was full or read-only", sum.n_refused.to_string());
        row("  given up, each after an attempt of its own", sum.n_given_up.to_string());
        row("aged by a clock that was set before their agent started", sum.n_aged_by_clock.to_string());
        row("  to strangers' paths that failed", sum.n_strange.to_string());
        row("gone with a Redis that forgot, and held by nobody", sum.n_gone_with_redis.to_string());
        row("gone from Redis, and still held by an agent", sum.n_held_only_here.to_string());
        row("lost", sum.n_lost.to_string());
        row("stuck", sum.n_stuck.to_string());
        row("delivered more than once", sum.n_repeated.to_string());
        row("most copies of one", sum.most_copies.to_string());
        row("copies that no fault explains", sum.n_unexplained.to_string());
        row("latest good one beside strangers' paths alone", format!("{:.1?}", sum.latest_beside_strangers));
        row("checks of the invariant", sum.n_invariant_checks.to_string());
        row("agents started by the harness, as a supervisor would", sum.n_starts.to_string());
        row("slowest drain after the last fault", format!("{:.1?}", self.slowest_drain));
        let n_lines: usize = self.lines.values().sum();
        row(
            "log lines per fault, all agents together",
            format!("{:.1}", n_lines as f64 / sum.n_faults().max(1) as f64),
        );
        row("largest resident size of an agent, KiB", sum.peak_kib.to_string());
        row("most files open in an agent", sum.peak_files.to_string());
        row("rounds that failed", self.n_failed.to_string());
        let missing: Vec<_> =
            faults::ALL.iter().map(|(fault, _)| fault).filter(|f| !sum.faults.contains_key(f)).collect();
        if options.minutes.is_some() && !missing.is_empty() {
            println!("not injected in this run: {missing:?}");
        }
    }
}
