//! Entries of the queue's keys that no agent writes: named, and mended if that is asked for twice.

use std::collections::HashSet;

use super::{Report, Stop};
use crate::commands::Error;
use crate::config::Repair;
use crate::queue::redis::admin::Operator;
use crate::queue::redis::admin::odd::{OddEntry, Remedy};
use crate::queue::redis::list::key_names;

/// So many entries of a key are named; the others are counted.
const NAMED: usize = 5;
/// So much of an entry is shown.
const SHOWN: usize = 80;
const WHAT: &str = "odd entries";

/// Looks through all keys.
pub(super) fn check(operator: &mut Operator, repair: Repair, report: &mut Report) -> Result<(), Stop> {
    let mut all = 0;
    for name in key_names() {
        let key = operator.keys().named(name).to_string();
        let aside = operator.aside();
        let (mut seen, mut n) = (HashSet::new(), 0);
        operator.each_odd(name, |operator, entries| -> Result<(), Stop> {
            for entry in entries {
                if repair == Repair::Do {
                    // One that comes twice is not odd the second time.
                    if !operator.mend_odd(name, &entry.member)? {
                        continue;
                    }
                } else if !seen.insert(entry.member.clone()) {
                    continue;
                }
                n += 1;
                if n <= NAMED {
                    say(&entry, &key, &aside, repair, report)?;
                }
            }
            Ok(())
        })?;
        if n > NAMED {
            let more = format!("and {} more at '{key}'", n - NAMED);
            match repair {
                Repair::Do => report.note(WHAT, more)?,
                _ => report.mend(WHAT, more)?,
            }
        }
        all += n as u64;
    }
    match (all, repair) {
        (0, _) => report.ok(WHAT, "none: agents alone have written to the keys")?,
        (_, Repair::No) => report.note(
            WHAT,
            format!("{all} in all, which agents leave alone; 'check --repair' says what would mend them"),
        )?,
        (_, Repair::Say) => report.note(WHAT, "nothing was changed: 'check --repair --yes' does all this")?,
        (_, Repair::Do) => report.ok(WHAT, format!("mended: {all}"))?,
    }
    Ok(())
}

fn say(entry: &OddEntry, key: &str, aside: &str, repair: Repair, report: &mut Report) -> Result<(), Error> {
    let OddEntry { member, value, wrong, remedy } = entry;
    let what = format!("{} at '{key}' ({}) {wrong}", quoted(member), quoted(value));
    let deed = match remedy {
        Remedy::Aside => format!("moved to '{aside}'"),
        Remedy::Due => "due again, as a message that is to be delivered".to_string(),
        Remedy::Right => "put right where it is".to_string(),
    };
    match repair {
        Repair::No => report.mend(WHAT, what),
        Repair::Say => report.mend(WHAT, format!("{what}: would be {deed}")),
        Repair::Do => report.note(WHAT, format!("{what}: {deed}")),
    }
}

/// The beginning of what may be bytes of any kind.
fn quoted(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("'{shown}'")
}
