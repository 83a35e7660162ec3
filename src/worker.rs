//! A worker makes one attempt at a time through [`Poster`], has [`policy::judge`] say what it means, and hands the
//! outcome to the lanes by way of the dispatcher, which has it settled. It knows nothing of Redis. It ends when the
//! dispatcher closes `ready`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use crossbeam_channel::Receiver;
use log::debug;

use crate::delivery::Poster;
use crate::dispatch::{Attempting, Begin, Dispatch};
use crate::journal::Death;
use crate::lanes::{AFTER_LACKING, Claim, Closed};
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

/// An attempt through the poster; `named` with the message's id in a header.
pub fn post(poster: &Poster, claim: &Claim, named: bool, enter: Enter) -> Attempt {
    let id = named.then(|| claim.id.to_string());
    let envelope = &claim.envelope;
    poster.post_through(envelope.uri(), envelope.headers(), envelope.payload(), id.as_deref(), enter)
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
            dispatch.enter(origin, left.as_deref()).map_err(|closed| elsewhere(origin, closed))?;
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

/// The attempt was redirected to an endpoint that takes nothing now.
fn elsewhere(origin: &str, closed: Closed) -> Attempt {
    let (why, wait) = match closed {
        Closed::Full => ("whose window is full".to_string(), AFTER_LACKING),
        Closed::Paused => ("which an operator has paused".to_string(), AFTER_LACKING),
        Closed::Down { wait, why } if why.is_empty() => ("which is down".to_string(), wait),
        Closed::Down { wait, why } => (format!("which is down: {why}"), wait),
    };
    Attempt::Elsewhere { error: format!("redirected to {origin}, {why}"), wait }
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
