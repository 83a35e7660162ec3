//! Turns one text into one value of its final type. The errors end the sentence "option '--name': 'text' …".

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::headers::is_token;
use crate::text::exact;

pub(super) const MILLISECOND: Duration = Duration::from_millis(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const HOUR: Duration = Duration::from_secs(3600);
pub(super) const DAY: Duration = Duration::from_secs(86_400);
pub(super) const YEAR: Duration = Duration::from_secs(365 * 86_400);

pub(super) fn number<T: TryFrom<u64>>(text: &str, least: u64, most: u64) -> Result<T, String> {
    let wanted = || match most {
        u64::MAX => format!("is not a whole number of at least {least}"),
        _ => format!("is not a whole number from {least} to {most}"),
    };
    let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let value: Option<u64> = text.parse().ok().filter(|value| is_plain && (least..=most).contains(value));
    value.and_then(|value| T::try_from(value).ok()).ok_or_else(wanted)
}

pub(super) fn at_least_one(text: &str) -> Result<u64, String> {
    number(text, 1, u64::MAX)
}

/// The digits a text begins with, and the rest of it.
fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    Some((text[..digits].parse().ok()?, &text[digits..]))
}

/// A whole number of one unit, so that what is typed is what is shown (`text::exact`).
pub(super) fn duration(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    const WANTED: &str = "is not a duration; give a whole number and a unit, as in 200ms, 5s, 10m, 24h or 7d";
    let (value, unit) = number_and_unit(text).ok_or(WANTED)?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "" => return Err(format!("has no unit; give one, as in {value}s or {value}ms")),
        _ => return Err(WANTED.to_owned()),
    };
    let duration = value.checked_mul(milliseconds).map(Duration::from_millis);
    let within = duration.filter(|duration| (least..=most).contains(duration));
    within.ok_or_else(|| format!("is not from {} to {}", exact(least), exact(most)))
}

pub(super) fn duration_or_forever(text: &str) -> Result<Option<Duration>, String> {
    match text {
        "forever" => Ok(None),
        _ => duration(text, SECOND, 10 * YEAR).map(Some).map_err(|why| format!("{why}, or forever")),
    }
}

/// Bytes. `KiB`, `MiB`, `GiB` are powers of 1024, `kB`, `MB`, `GB` of 1000, in any case of
/// letters; a lone `k` or `M` could be either, and is refused.
pub(super) fn size(text: &str) -> Result<u64, String> {
    const WANTED: &str =
        "is not a size; give a whole number of bytes or one with a unit, as in 512, 64KiB, 64MiB, 1GiB or 64MB";
    let (value, unit) = number_and_unit(text).ok_or(WANTED)?;
    let bytes: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        _ => return Err(WANTED.to_owned()),
    };
    match value.checked_mul(bytes) {
        Some(0) => Err("is nothing; give at least 1".to_owned()),
        Some(size) if size <= 1 << 40 => Ok(size),
        _ => Err("is over 1024GiB".to_owned()),
    }
}

pub(super) fn statuses(text: &str) -> Result<Vec<u16>, String> {
    let mut statuses = Vec::new();
    for part in text.split(',') {
        let status = number::<u16>(part.trim(), 300, 599).map_err(|_| {
            "is not a list of HTTP statuses from 300 to 599 with commas between them, as in 404,409".to_owned()
        })?;
        if !statuses.contains(&status) {
            statuses.push(status);
        }
    }
    Ok(statuses)
}

pub(super) fn one_of<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, String> {
    let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
    let found = choices.iter().find(|(name, _)| *name == text);
    found.map(|(_, value)| *value).ok_or_else(|| format!("is not one of {}", names.join(", ")))
}

pub(super) fn not_empty(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("is empty".to_owned()) } else { Ok(text.to_owned()) }
}

pub(super) fn file(text: &str) -> Result<PathBuf, String> {
    not_empty(text).map(PathBuf::from)
}

/// What the environment gives as one value with commas, the command line may give as several options.
pub(super) fn listed<T>(text: &str, parse: fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    text.split(',').map(|part| parse(part.trim())).collect()
}

pub(super) fn certificate_file(text: &str) -> Result<PathBuf, String> {
    let bytes = std::fs::read(text).map_err(|error| format!("cannot be read: {error}"))?;
    let mark = b"-----BEGIN CERTIFICATE-----";
    if !bytes.windows(mark.len()).any(|window| window == mark) {
        return Err("holds no certificate in PEM form".to_owned());
    }
    Ok(PathBuf::from(text))
}

pub(super) fn host_and_port(text: &str) -> Result<String, String> {
    let is_named = text.rsplit_once(':').is_some_and(|(host, port)| {
        let is_name = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-');
        is_name && port.parse::<u16>().is_ok()
    });
    if is_named || text.parse::<SocketAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    Err("is not an address with a port, as in 127.0.0.1:9100 or [::1]:9100".to_owned())
}

pub(super) fn header(text: &str) -> Result<Vec<(String, String)>, String> {
    let (name, value) = text.split_once(':').ok_or("has no colon; give 'Name: value'")?;
    let (name, value) = (name.trim(), value.trim());
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err("does not begin with a header's name; give 'Name: value'".to_owned());
    }
    if value.bytes().any(|byte| (byte < b' ' && byte != b'\t') || byte == 0x7f) {
        return Err("holds a control character, which HTTP does not allow in a header".to_owned());
    }
    Ok(vec![(name.to_owned(), value.to_owned())])
}

/// An id of a message, as the lists of the commands show it.
pub(super) fn id(text: &str) -> Option<u64> {
    let is_id = (1..=16).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_take_units() {
        let duration = |text| duration(text, Duration::ZERO, 10 * YEAR);
        for (text, milliseconds) in
            [("0s", 0), ("200ms", 200), ("5s", 5000), ("10m", 600_000), ("24h", 86_400_000), ("7d", 604_800_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
            assert_eq!(exact(Duration::from_millis(milliseconds)), text);
        }
        for (text, bytes) in [
            ("512", 512),
            ("512B", 512),
            ("64KiB", 65_536),
            ("64MiB", 67_108_864),
            ("1GiB", 1_073_741_824),
            ("2gib", 2_147_483_648),
            ("64kB", 64_000),
            ("3MB", 3_000_000),
            ("1GB", 1_000_000_000),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "KiB", "1k", "1 KiB", "-1", "1TiB", "2000GiB", "99999999999999999999"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
