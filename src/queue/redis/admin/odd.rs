//! Entries of the queue's keys that no agent writes: found, a page at a time, and mended one by one. What
//! is mended is judged anew in the same step, so that nothing goes that has become right meanwhile.

use super::{Operator, read};
use crate::queue::Error;
use crate::queue::redis::arguments::Arguments;

/// Entries in one look; bodies are among them.
const PAGE: usize = 50;

/// An entry that no agent writes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OddEntry {
    /// The member or field.
    pub member: Vec<u8>,
    /// Its score or value, or the first hundred bytes of it.
    pub value: Vec<u8>,
    /// What is wrong with it.
    pub wrong: String,
    /// How it is mended.
    pub remedy: Remedy,
}

/// How an odd entry is mended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Remedy {
    /// Moved to a key beside the others.
    Aside,
    /// A message: it is due again.
    Due,
    /// Stays where it is, as it should be.
    Right,
}

impl Operator {
    /// Hands out the odd entries of a key, a page at a time; some may come twice.
    ///
    /// # Errors
    ///
    /// If Redis cannot be asked, or `take` fails.
    pub fn each_odd<E: From<Error>>(
        &mut self,
        name: &str,
        mut take: impl FnMut(&mut Operator, Vec<OddEntry>) -> Result<(), E>,
    ) -> Result<(), E> {
        type Found = Vec<(Vec<u8>, Vec<u8>, String, String)>;
        let mut cursor = "0".to_string();
        loop {
            let mut arguments = Arguments::default();
            arguments.text(name).text(&cursor).text(PAGE);
            let (next, _, found): (String, u64, Found) = read(self.run(|looks| &looks.odd, &arguments)?)?;
            let entry = |(member, value, wrong, remedy): (Vec<u8>, Vec<u8>, String, String)| OddEntry {
                member,
                value,
                wrong,
                remedy: match remedy.as_str() {
                    "due" => Remedy::Due,
                    "right" => Remedy::Right,
                    _ => Remedy::Aside,
                },
            };
            take(self, found.into_iter().map(entry).collect())?;
            cursor = next;
            if cursor == "0" {
                return Ok(());
            }
        }
    }

    /// Mends an odd entry; false if it is not odd any more.
    ///
    /// # Errors
    ///
    /// If Redis cannot be asked.
    pub fn mend_odd(&mut self, name: &str, member: &[u8]) -> Result<bool, Error> {
        let mut keys = self.keys.all().to_vec();
        keys.push(self.aside());
        let mut arguments = Arguments::default();
        arguments.text(name).bytes(member);
        Ok(read::<u64>(self.link.run(&self.looks.mend, &keys, &arguments)?)? == 1)
    }

    /// The key that odd entries are moved to.
    pub fn aside(&self) -> String {
        format!("{}aside", self.keys.named("id").trim_end_matches("id"))
    }
}
