//! JSON, written value by value in the order in which it is said: enough for what
//! the commands print, where a line may be as large as a message. It promises valid
//! JSON on one line; it reads none. serde_json would have every object built first, and
//! sort its members.

use std::fmt::{Display, Write};
use std::time::SystemTime;

use crate::envelope::json::write_text;
use crate::text::{is_moving, utc};

/// An object under construction.
pub struct Object(String);

impl Object {
    /// An object without members.
    pub fn new() -> Object {
        Object("{".to_string())
    }

    /// Adds a text.
    pub fn text(self, name: &str, value: &str) -> Object {
        self.maybe_text(name, Some(value))
    }

    /// Adds a text, or `null`.
    pub fn maybe_text(mut self, name: &str, value: Option<&str>) -> Object {
        self.name(name);
        match value {
            Some(value) => write_text(&mut self.0, value, is_moving),
            None => self.0.push_str("null"),
        }
        self
    }

    /// Adds a whole number.
    pub fn number(self, name: &str, value: u64) -> Object {
        self.json(name, value)
    }

    /// Adds a time as text in UTC, or `null`.
    pub fn time(self, name: &str, value: Option<SystemTime>) -> Object {
        self.maybe_text(name, value.map(utc).as_deref())
    }

    /// Adds what is JSON already: another object, an array, `true`.
    pub fn json(mut self, name: &str, value: impl Display) -> Object {
        self.name(name);
        write!(self.0, "{value}").expect("memory takes all writes");
        self
    }

    fn name(&mut self, name: &str) {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        write_text(&mut self.0, name, is_moving);
        self.0.push(':');
    }
}

impl Default for Object {
    fn default() -> Object {
        Object::new()
    }
}

impl Display for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)?;
        f.write_str("}")
    }
}

/// An array of objects.
pub fn array(objects: impl IntoIterator<Item = Object>) -> String {
    let mut array = "[".to_string();
    for object in objects {
        if array.len() > 1 {
            array.push(',');
        }
        write!(array, "{object}").expect("memory takes all writes");
    }
    array.push(']');
    array
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_comes_back_as_it_was_written() {
        let all: String = (0..=0x2ff).filter_map(char::from_u32).chain(['\u{2028}', '\u{10ffff}', '𝄞']).collect();
        for text in ["", "plain", "\"\\/\u{8}\u{c}\n\r\t\0", &all] {
            let json = Object::new().text(text, text).to_string();
            let value: serde_json::Value = serde_json::from_str(&json).unwrap();
            assert_eq!(value[text].as_str(), Some(text), "{json}");
            assert!(!json.chars().any(char::is_control), "{json:?}");
        }
    }

    #[test]
    fn objects_nest_in_the_order_in_which_they_were_said() {
        let inner = || Object::new().number("n", u64::MAX).maybe_text("none", None);
        let json = Object::new().json("list", array([inner(), inner()])).json("empty", array([])).json("yes", true);
        let expected = r#"{"list":[{"n":18446744073709551615,"none":null},{"n":18446744073709551615,"none":null}],"empty":[],"yes":true}"#;
        assert_eq!(json.to_string(), expected);
        assert_eq!(Object::new().to_string(), "{}");
    }
}
