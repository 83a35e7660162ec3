//! Bodies of requests: how they are framed, how large they were, and how they began. None is kept.

use httparse::Status;

use super::HEAD;
use crate::serve::{Connection, Unreadable};
use crate::text::visible;

/// A body may have so many bytes; no message in Redis has more than half.
pub(super) const BODY: u64 = 1 << 30;
/// First bytes of a body that are kept to be shown.
const PREVIEW: usize = 240;

/// How large a body was, and how it began.
#[derive(Default)]
pub(super) struct Body {
    pub(super) total: u64,
    preview: Vec<u8>,
}

impl Body {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let room = PREVIEW - self.preview.len();
        self.preview.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// Its first bytes if they are text; `None` if there is no body.
    pub(super) fn shown(&self) -> Option<String> {
        let cut = self.total > self.preview.len() as u64;
        let text = match std::str::from_utf8(&self.preview) {
            Ok(text) => text,
            // The cut may have gone through a character.
            Err(error) if cut && error.error_len().is_none() => {
                std::str::from_utf8(&self.preview[..error.valid_up_to()]).unwrap_or_default()
            }
            Err(_) => return Some("(not text)".to_owned()),
        };
        match (self.total, cut) {
            (0, _) => None,
            (_, true) => Some(format!("{}…", visible(text))),
            (_, false) => Some(visible(text)),
        }
    }

    /// Counts so many bytes.
    fn take(&mut self, length: u64, connection: &mut Connection) -> Result<(), Unreadable> {
        if self.total.saturating_add(length) > BODY {
            return Err(too_large());
        }
        let mut left = length;
        while left > 0 {
            if connection.unused().is_empty() {
                connection.must_read_more()?;
            }
            let n = left.min(connection.unused().len() as u64) as usize;
            self.add(&connection.unused()[..n]);
            connection.consume(n);
            left -= n as u64;
        }
        Ok(())
    }

    fn take_chunks(&mut self, connection: &mut Connection) -> Result<(), Unreadable> {
        let bad = || Unreadable::refused(400, "its chunks are malformed");
        loop {
            let size = loop {
                match httparse::parse_chunk_size(connection.unused()) {
                    Ok(Status::Complete((length, size))) => {
                        connection.consume(length);
                        break size;
                    }
                    Ok(Status::Partial) if connection.unused().len() < HEAD => connection.must_read_more()?,
                    _ => return Err(bad()),
                }
            };
            if size == 0 {
                return skip_trailers(connection);
            }
            self.take(size, connection)?;
            let mut end = Body::default();
            end.take(2, connection)?;
            if end.preview != b"\r\n" {
                return Err(bad());
            }
        }
    }
}

/// How a body is delimited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Framing {
    Length(u64),
    Chunks,
}

/// How a body is framed by these values of `Content-Length` and `Transfer-Encoding`.
pub(super) fn framing_of(lengths: &[&str], encodings: &[&str]) -> Result<Framing, Unreadable> {
    match (lengths, encodings) {
        ([], []) => Ok(Framing::Length(0)),
        ([length], []) if !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit()) => {
            length.parse().map(Framing::Length).map_err(|_| too_large())
        }
        ([], [encoding]) if encoding.eq_ignore_ascii_case("chunked") => Ok(Framing::Chunks),
        _ => Err(Unreadable::refused(400, "its body is not framed in one clear way")),
    }
}

impl Framing {
    /// Reads a body to its end, having said that it may come if its sender waits for that.
    pub(super) fn read(self, connection: &mut Connection, waits_for_continue: bool) -> Result<Body, Unreadable> {
        let mut body = Body::default();
        if waits_for_continue && connection.unused().is_empty() && self != Framing::Length(0) {
            connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        match self {
            Framing::Length(length) => body.take(length, connection)?,
            Framing::Chunks => body.take_chunks(connection)?,
        }
        Ok(body)
    }
}

/// Skips what may follow the last chunk, up to its empty line.
fn skip_trailers(connection: &mut Connection) -> Result<(), Unreadable> {
    loop {
        let unused = connection.unused();
        let end = if unused.starts_with(b"\r\n") { Some(2) } else { find(unused, b"\r\n\r\n").map(|at| at + 4) };
        match end {
            Some(length) => {
                connection.consume(length);
                return Ok(());
            }
            None if unused.len() < HEAD => connection.must_read_more()?,
            None => return Err(Unreadable::refused(431, "its trailers are over 64 KiB")),
        }
    }
}

fn too_large() -> Unreadable {
    Unreadable::refused(413, "its body is over 1 GiB")
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_framed_in_one_clear_way_or_refused() {
        let table: [(&[&str], &[&str], Option<Framing>); 9] = [
            (&[], &[], Some(Framing::Length(0))),
            (&["12"], &[], Some(Framing::Length(12))),
            (&[], &["chunked"], Some(Framing::Chunks)),
            (&["12", "12"], &[], None),
            (&["12"], &["chunked"], None),
            (&["+1"], &[], None),
            (&[""], &[], None),
            (&["99999999999999999999999"], &[], None),
            (&[], &["gzip, chunked"], None),
        ];
        for (lengths, encodings, framing) in table {
            assert_eq!(framing_of(lengths, encodings).ok(), framing, "{lengths:?} {encodings:?}");
        }
    }

    #[test]
    fn the_first_bytes_of_text_are_shown_in_one_line() {
        let check = |bytes: &[u8], shown: Option<&str>| {
            let mut body = Body::default();
            body.add(bytes);
            assert_eq!(body.shown().as_deref(), shown);
        };
        check(b"", None);
        check("a\nb\u{1b}[2J é".as_bytes(), Some("a\\nb\\u{1b}[2J é"));
        check(&[0xff, 0x00], Some("(not text)"));
        check(&[b'x'; PREVIEW], Some(&"x".repeat(PREVIEW)));
        // 239 bytes, then a character that the cut goes through.
        check(format!("{}é", "x".repeat(PREVIEW - 1)).as_bytes(), Some(&format!("{}…", "x".repeat(PREVIEW - 1))));
    }
}
