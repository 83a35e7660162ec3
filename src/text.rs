//! Text for people: in one line and printable whatever a stranger wrote, without secrets; times and durations.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A text in one line that cannot move the cursor, nor show itself in another order than it has:
/// control characters and those like them are written as escapes.
pub fn visible(text: &str) -> String {
    let mut visible = String::with_capacity(text.len());
    for character in text.chars() {
        if is_moving(character) {
            visible.extend(character.escape_default());
        } else {
            visible.push(character);
        }
    }
    visible
}

/// The beginning of a stranger's text, of so many characters at most, as [`visible`] writes it.
pub fn excerpt(text: &str, most: usize) -> String {
    let end = text.char_indices().nth(most).map(|(at, _)| at);
    let shown = visible(&text[..end.unwrap_or(text.len())]);
    if end.is_some() { shown + "..." } else { shown }
}

/// Whether a character acts on those around it: control characters, separators of lines and
/// paragraphs, and those that turn the direction of writing.
pub fn is_moving(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// `text` with whatever could be a password in it replaced by `***`. Meant for URLs, whole or
/// broken, so it goes by the look of the text and would rather hide too much.
pub fn redacted(text: &str) -> String {
    let start = text.find("://").map_or(0, |at| at + 3);
    let (scheme, rest) = text.split_at(start);
    let rest = match rest.rfind('@') {
        Some(at) => {
            let (user, host) = rest.split_at(at);
            match user.find(':') {
                Some(colon) => format!("{}:***{host}", &user[..colon]),
                // A lone word before the '@' should be a user's name, but a password is as easily put there.
                None => format!("***{host}"),
            }
        }
        // `redis://user:password` with the host forgotten: only a port may follow a colon.
        None if !scheme.is_empty() => {
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            let mut begin = 0;
            let no_port = rest[..end].split(',').find_map(|host| {
                let after_name = host.rfind(']').map_or(0, |at| at + 1);
                let port = host[after_name..].find(':').map(|at| after_name + at + 1);
                let found = port.filter(|port| *port < host.len() && host[*port..].parse::<u16>().is_err());
                let found = found.map(|port| begin + port);
                begin += host.len() + 1;
                found
            });
            match no_port {
                Some(port) => format!("{}***{}", &rest[..port], &rest[end..]),
                None => rest.to_owned(),
            }
        }
        None => rest.to_owned(),
    };
    let mut shown = String::from(scheme);
    for (n, part) in rest.split_inclusive(['?', '&']).enumerate() {
        let secret = n > 0 && ["pass=", "password=", "sentinel-password="].iter().any(|name| part.starts_with(name));
        match part.find('=') {
            Some(equals) if secret => {
                shown.push_str(&part[..=equals]);
                shown.push_str("***");
                if part.ends_with('&') {
                    shown.push('&');
                }
            }
            _ => shown.push_str(part),
        }
    }
    shown
}

/// A time as `2026-01-31T23:59:59.999Z`; what is beyond the year 9999 or before 1970 as the nearest that is not.
pub fn utc(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time.clamp(UNIX_EPOCH, at_ms(LAST_MS))).to_string()
}

/// The last millisecond of the year 9999, since 1970.
const LAST_MS: u64 = 253_402_300_799_999;

/// A time of the queue, in milliseconds since 1970.
pub fn at_ms(milliseconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(milliseconds.min(LAST_MS))
}

/// How long before `now` that was, or how long after: `4.2s ago`, `in 3m 20s`.
pub fn ago(time: SystemTime, now: SystemTime) -> String {
    match now.duration_since(time) {
        Ok(since) => format!("{} ago", spell(since)),
        Err(error) => format!("in {}", spell(error.duration())),
    }
}

/// A duration for people: `85ms`, `4.2s`, `12m 5s`, `3h 4m`.
pub fn spell(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{}ms", duration.as_millis()),
        1..60 => format!("{:.1}s", duration.as_secs_f64()),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        _ => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// In the largest unit that leaves no fraction, as it would be typed: `7d`, `24h`, `90m`, `45s`, `500ms`, `0s`.
pub fn exact(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms")];
    match units.into_iter().find(|(unit, _)| milliseconds.is_multiple_of(*unit)) {
        Some((86_400_000, _)) if milliseconds == 86_400_000 => "24h".to_string(),
        Some((unit, name)) if milliseconds > 0 => format!("{}{name}", milliseconds / unit),
        _ => "0s".to_string(),
    }
}

/// `1 message`, `2 messages`.
pub fn n_of(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// What a panic said, if it said anything.
pub fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_as_utc_with_milliseconds() {
        let table = [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_164_800_001, "2024-02-29T00:00:00.001Z"),
            (1_735_689_599_999, "2024-12-31T23:59:59.999Z"),
            (1_772_323_200_000, "2026-03-01T00:00:00.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ];
        for (milliseconds, text) in table {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_millis(milliseconds)), text);
        }
    }

    #[test]
    fn what_would_move_the_cursor_or_turn_the_text_is_escaped() {
        for (text, expected) in [
            ("plain \u{e4} \u{1f600}", "plain \u{e4} \u{1f600}"),
            ("a\u{1b}[31m\nb\u{9b}c", "a\\u{1b}[31m\\nb\\u{9b}c"),
            ("\u{202e}gpj.exe", "\\u{202e}gpj.exe"),
            ("a\u{2028}b\u{2029}c", "a\\u{2028}b\\u{2029}c"),
            (
                "\u{61c}\u{200e}\u{200f}\u{202a}\u{2066}\u{2069}",
                "\\u{61c}\\u{200e}\\u{200f}\\u{202a}\\u{2066}\\u{2069}",
            ),
        ] {
            assert_eq!(visible(text), expected);
        }
    }

    #[test]
    fn redaction_hides_what_may_be_a_password_and_nothing_else() {
        let table = [
            ("redis://host:6379/0", "redis://host:6379/0"),
            ("redis://user@host", "redis://***@host"),
            ("redis://pw@host:6379/0", "redis://***@host:6379/0"),
            ("redis://user:pw@host:6379", "redis://user:***@host:6379"),
            ("redis://:p@s/s@host", "redis://:***@host"),
            ("redis://user:pw", "redis://user:***"),
            ("redis://[::1]:6379", "redis://[::1]:6379"),
            ("redis://a:1,b,[::1]:2/0", "redis://a:1,b,[::1]:2/0"),
            ("redis://u:pw@a:1,b:2", "redis://u:***@a:1,b:2"),
            (
                "redis+sentinel://a:1,b/m?sentinel-password=pw&sentinel-user=u",
                "redis+sentinel://a:1,b/m?sentinel-password=***&sentinel-user=u",
            ),
            ("redis://a:1,user:p,w", "redis://a:1,user:***"),
            ("redis://[::1]", "redis://[::1]"),
            ("unix:///run/s?db=1&pass=pw&user=u", "unix:///run/s?db=1&pass=***&user=u"),
            ("http://host/a?password=pw", "http://host/a?password=***"),
            ("word", "word"),
            ("pw@host", "***@host"),
        ];
        for (text, shown) in table {
            assert_eq!(redacted(text), shown, "{text}");
        }
    }

    #[test]
    fn durations_are_rounded_for_reading_and_exact_for_typing() {
        for (milliseconds, rounded, typed) in [
            (0, "0ms", "0s"),
            (85, "85ms", "85ms"),
            (1500, "1.5s", "1500ms"),
            (5000, "5.0s", "5s"),
            (90_000, "1m 30s", "90s"),
            (3_600_000, "1h 0m", "1h"),
            (11_040_000, "3h 4m", "184m"),
            (86_400_000, "24h 0m", "24h"),
            (604_800_000, "168h 0m", "7d"),
        ] {
            let duration = Duration::from_millis(milliseconds);
            assert_eq!((spell(duration).as_str(), exact(duration).as_str()), (rounded, typed));
        }
    }
}
