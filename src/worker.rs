//! A worker attempts one claim at a time and says what became of it. It knows
//! nothing of Redis. It ends when the lanes close `ready`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use crossbeam_channel::Receiver;
use log::debug;

use crate::dispatch::{Attempting, Begin, Dispatch};
use crate::journal::Death;
use crate::lanes::Claim;
use crate::policy::{self, Attempt, Fault, Outcome, Retry};
use crate::text::panic_message;

/// Asks whether a redirect to this origin may be followed now.
pub type Enter<'a> = &'a mut dyn FnMut(&str) -> Result<(), Attempt>;

/// Attempts claims with `post` until `ready` is closed. `n` is the worker's place among the workers.
pub fn run(
    n: usize,
    ready: &Receiver<Box<Claim>>,
    post: impl Fn(&Claim, Enter) -> Attempt,
    retry: &Retry,
    dispatch: &Dispatch,
) {
    let mut next = None;
    while let Some(claim) = next.take().or_else(|| ready.recv().ok()) {
        match dispatch.may_begin(&claim) {
            Begin::Now => {}
            Begin::Never => {
                dispatch.abandon(claim);
                continue;
            }
            Begin::Paused => {
                dispatch.withdraw(claim);
                continue;
            }
        }
        let (id, origin, history) = (claim.id, claim.origin.clone(), claim.history.clone());
        dispatch.attempting(n, Some(Attempting { id, origin, history }));
        let begun = Instant::now();
        let mut guest_of = None;
        let outcome = attempt(&claim, &post, &mut guest_of, retry, dispatch);
        dispatch.metrics.attempted(&outcome, begun.elapsed());
        note(&claim, &outcome, begun, dispatch);
        // Settled before the lane goes on, so that the next claim of this origin cannot overtake.
        next = dispatch.finish(claim, outcome, guest_of.as_deref(), begun);
        dispatch.attempting(n, None);
    }
}

/// A panic costs the one message that caused it, not the agent.
fn attempt(
    claim: &Claim,
    post: &impl Fn(&Claim, Enter) -> Attempt,
    guest_of: &mut Option<String>,
    retry: &Retry,
    dispatch: &Dispatch,
) -> Outcome {
    let judged = catch_unwind(AssertUnwindSafe(|| {
        // Where a redirect leads, it takes a place in that lane; back at its own it has one.
        let mut enter = |origin: &str| {
            let left = guest_of.take();
            if *origin == *claim.origin {
                dispatch.leave(left.as_deref());
                return Ok(());
            }
            dispatch.enter(origin, left.as_deref()).map_err(|(wait, why)| Attempt::Elsewhere {
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

fn note(claim: &Claim, outcome: &Outcome, begun: Instant, dispatch: &Dispatch) {
    match outcome {
        Outcome::Delivered => debug!(
            id:% = claim.id, origin = &*claim.origin, attempts = claim.history.attempts.saturating_add(1);
            "message {} delivered to {} in {:?}", claim.id, claim.origin, begun.elapsed()
        ),
        Outcome::Later { fault, error, .. } => {
            debug!(
                id:% = claim.id, origin = &*claim.origin, attempts = claim.history.attempts.saturating_add(1), error = error;
                "message {} for {}: later: {error}", claim.id, claim.origin
            );
            if *fault == Fault::Ours {
                dispatch.journal.lacking(error);
            }
        }
        Outcome::Dead { reason, .. } => {
            let endpoint = claim.envelope.endpoint_for_people();
            let (origin, attempts) = (Some(&*claim.origin), Some(claim.history.attempts.saturating_add(1)));
            dispatch.journal.died(&Death { id: claim.id, endpoint: &endpoint, origin, attempts, reason });
        }
    }
}
