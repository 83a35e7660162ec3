//! A worker attempts one claim at a time and says what became of it. It knows
//! nothing of Redis. It ends when the lanes close `ready`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use crossbeam_channel::Receiver;
use log::debug;

use crate::lanes::Claim;
use crate::policy::{self, Attempt, Fault, Outcome, Retry};
use crate::shared::{Attempting, Begin, Shared};

/// Attempts claims with `post` until `ready` is closed. `n` is the worker's place among the workers.
pub fn run(n: usize, ready: &Receiver<Box<Claim>>, post: impl Fn(&Claim) -> Attempt, retry: &Retry, shared: &Shared) {
    let mut next = None;
    while let Some(claim) = next.take().or_else(|| ready.recv().ok()) {
        if shared.may_begin(&claim) == Begin::Never {
            shared.abandon(claim);
            continue;
        }
        let (id, origin, history) = (claim.id, claim.origin.clone(), claim.history.clone());
        shared.attempting(n, Some(Attempting { id, origin, history }));
        let begun = Instant::now();
        let outcome = attempt(&claim, &post, retry);
        shared.metrics.attempted(&outcome, begun.elapsed());
        note(&claim, &outcome, begun, shared);
        // Settled before the lane goes on, so that the next claim of this origin cannot overtake.
        next = shared.finish(claim, outcome, begun);
        shared.attempting(n, None);
    }
}

/// A panic costs the one message that caused it, not the agent.
fn attempt(claim: &Claim, post: &impl Fn(&Claim) -> Attempt, retry: &Retry) -> Outcome {
    let judged = catch_unwind(AssertUnwindSafe(|| {
        let attempt = post(claim);
        policy::judge(&attempt, &claim.history_at(Instant::now()), retry)
    }));
    judged.unwrap_or_else(|panic| Outcome::Dead {
        reason: format!("internal error: {}", panic_message(&*panic)),
        fault: None,
    })
}

/// What a panic said, if it said anything.
pub fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

fn note(claim: &Claim, outcome: &Outcome, begun: Instant, shared: &Shared) {
    match outcome {
        Outcome::Delivered => debug!("message {} delivered to {} in {:?}", claim.id, claim.origin, begun.elapsed()),
        Outcome::Later { fault, error, .. } => {
            debug!("message {} for {}: later: {error}", claim.id, claim.origin);
            if *fault == Fault::Ours {
                shared.journal.lacking(error);
            }
        }
        Outcome::Dead { reason, .. } => {
            shared.journal.died(claim.id, &claim.envelope.endpoint_for_people(), reason);
        }
    }
}
