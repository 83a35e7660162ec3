//! A worker attempts one claim at a time and says what became of it. It knows
//! nothing of Redis. It ends when the lanes close `ready`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use crossbeam_channel::Receiver;
use log::debug;

use crate::lanes::Claim;
use crate::policy::{self, Attempt, Fault, Outcome, Retry};
use crate::shared::{Attempting, Begin, Shared};

/// Asks whether a redirect to this origin may be followed now.
pub type Enter<'a> = &'a mut dyn FnMut(&str) -> Result<(), Attempt>;

/// Attempts claims with `post` until `ready` is closed. `n` is the worker's place among the workers.
pub fn run(
    n: usize,
    ready: &Receiver<Box<Claim>>,
    post: impl Fn(&Claim, Enter) -> Attempt,
    retry: &Retry,
    shared: &Shared,
) {
    let mut next = None;
    while let Some(claim) = next.take().or_else(|| ready.recv().ok()) {
        if shared.may_begin(&claim) == Begin::Never {
            shared.abandon(claim);
            continue;
        }
        let (id, origin, history) = (claim.id, claim.origin.clone(), claim.history.clone());
        shared.attempting(n, Some(Attempting { id, origin, history }));
        let begun = Instant::now();
        let mut guest_of = None;
        let outcome = attempt(&claim, &post, &mut guest_of, retry, shared);
        shared.metrics.attempted(&outcome, begun.elapsed());
        note(&claim, &outcome, begun, shared);
        // Settled before the lane goes on, so that the next claim of this origin cannot overtake.
        next = shared.finish(claim, outcome, guest_of.as_deref(), begun);
        shared.attempting(n, None);
    }
}

/// A panic costs the one message that caused it, not the agent.
fn attempt(
    claim: &Claim,
    post: &impl Fn(&Claim, Enter) -> Attempt,
    guest_of: &mut Option<String>,
    retry: &Retry,
    shared: &Shared,
) -> Outcome {
    let judged = catch_unwind(AssertUnwindSafe(|| {
        // Where a redirect leads, it takes a place in that lane; back at its own it has one.
        let mut enter = |origin: &str| {
            let left = guest_of.take();
            if *origin == *claim.origin {
                shared.leave(left.as_deref());
                return Ok(());
            }
            shared.enter(origin, left.as_deref()).map_err(|(wait, why)| Attempt::Elsewhere {
                error: match why.as_str() {
                    "" => format!("redirected to {origin}, which is busy"),
                    why => format!("redirected to {origin}, which is down: {why}"),
                },
                wait,
            })?;
            *guest_of = Some(origin.to_string());
            Ok(())
        };
        let attempt = post(claim, &mut enter);
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
