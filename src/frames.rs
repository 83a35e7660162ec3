//! WebSocket (RFC 6455) as bytes, without a socket: the key that a handshake is answered with, and frames,
//! as one that delivers writes and reads them.
//!
//! It promises that whatever comes costs no more memory than one control frame, for data is passed over
//! and not kept. It leaves to others what a close means, and how much may come.
//!
//! Not tungstenite (0.30, 49 kB of the binary): it copies a message twice, 10 MB more for one of 5 MB; once it
//! has sent a close frame it answers no ping; of what comes back it keeps whole messages, and a larger
//! one ends it before the close frame is read; and at `RUST_LOG=trace` it logs payloads.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

/// Opcodes.
pub(crate) const CONTINUATION: u8 = 0;
pub(crate) const TEXT: u8 = 1;
pub(crate) const BINARY: u8 = 2;
pub(crate) const CLOSE: u8 = 8;
pub(crate) const PING: u8 = 9;
pub(crate) const PONG: u8 = 10;

/// The code of a close for which there is no reason.
pub(crate) const NORMAL: u16 = 1000;

/// The most that a control frame holds.
const MAX_CONTROL: u64 = 125;

/// What the answer to a handshake with this key has in `Sec-WebSocket-Accept`.
pub(crate) fn accept_key(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    BASE64_STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()))
}

/// What stands before a frame's payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Head {
    pub(crate) is_final: bool,
    pub(crate) opcode: u8,
    pub(crate) mask: Option<[u8; 4]>,
    pub(crate) length: u64,
}

impl Head {
    /// At most so many bytes.
    pub(crate) const MAX: usize = 14;

    /// Of the whole of a message, or of a control frame.
    pub(crate) fn of(opcode: u8, length: usize, mask: Option<[u8; 4]>) -> Head {
        Head { is_final: true, opcode, mask, length: length as u64 }
    }

    pub(crate) fn write(self, out: &mut Vec<u8>) {
        out.push(u8::from(self.is_final) << 7 | self.opcode);
        let masked = u8::from(self.mask.is_some()) << 7;
        match (u16::try_from(self.length), self.length) {
            (_, length @ 0..126) => out.push(masked | length as u8),
            (Ok(length), _) => {
                out.push(masked | 126);
                out.extend(length.to_be_bytes());
            }
            (Err(_), length) => {
                out.push(masked | 127);
                out.extend(length.to_be_bytes());
            }
        }
        out.extend(self.mask.into_iter().flatten());
    }

    /// The head that these bytes begin with, and its length; `None` if more is needed.
    pub(crate) fn read(bytes: &[u8]) -> Result<Option<(Head, usize)>, &'static str> {
        let [first, second, rest @ ..] = bytes else { return Ok(None) };
        let (is_final, opcode, short) = (first & 0x80 != 0, first & 0x0f, second & 0x7f);
        if first & 0x70 != 0 {
            return Err("a frame with reserved bits set");
        }
        match opcode {
            CONTINUATION | TEXT | BINARY => {}
            CLOSE | PING | PONG if !is_final => return Err("a control frame in fragments"),
            CLOSE | PING | PONG if u64::from(short) > MAX_CONTROL => return Err("a control frame of over 125 bytes"),
            CLOSE | PING | PONG => {}
            _ => return Err("a frame of an unknown kind"),
        }
        let (length, rest) = match short {
            126 => match rest.split_first_chunk() {
                Some((length, rest)) => (u64::from(u16::from_be_bytes(*length)), rest),
                None => return Ok(None),
            },
            127 => match rest.split_first_chunk() {
                Some((length, rest)) => (u64::from_be_bytes(*length), rest),
                None => return Ok(None),
            },
            length => (u64::from(length), rest),
        };
        if length >> 63 != 0 {
            return Err("a frame of 2^63 bytes or more");
        }
        let (mask, rest) = match (second & 0x80, rest.split_first_chunk()) {
            (0, _) => (None, rest),
            (_, Some((mask, rest))) => (Some(*mask), rest),
            (_, None) => return Ok(None),
        };
        Ok(Some((Head { is_final, opcode, mask, length }, bytes.len() - rest.len())))
    }
}

/// Masks a payload, or the reverse: both are the same. A part of one begins at a multiple of four.
pub(crate) fn apply_mask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let twice = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (eights, rest) = payload.as_chunks_mut();
    for eight in eights {
        *eight = (u64::from_ne_bytes(*eight) ^ twice).to_ne_bytes();
    }
    rest.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
}

/// Writes a whole frame, masked if there is a mask.
pub(crate) fn write(opcode: u8, payload: &[u8], mask: Option<[u8; 4]>, out: &mut Vec<u8>) {
    Head::of(opcode, payload.len(), mask).write(out);
    let at = out.len();
    out.extend_from_slice(payload);
    if let Some(mask) = mask {
        apply_mask(&mut out[at..], mask);
    }
}

/// What of a recipient's frames matters to one that delivers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// To be answered with the same.
    Ping(Vec<u8>),
    /// The last that comes.
    Close(Close),
}

/// What a close frame says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Close {
    pub(crate) code: Option<u16>,
    /// As it came, but for what is not UTF-8: the code counts whatever follows it.
    pub(crate) reason: String,
}

/// Reads the frames of a recipient, in whatever pieces they come.
#[derive(Default)]
pub(crate) struct Reader {
    head: [u8; Head::MAX],
    n_head: usize,
    /// The frame that is being read, and how much of its payload is to come.
    frame: Option<(u8, u64)>,
    /// The payload of a control frame.
    control: Vec<u8>,
}

impl Reader {
    /// Reads on to the next that matters; `None` when nothing is left of the input. The error
    /// says what came that may not.
    pub(crate) fn next(&mut self, input: &mut &[u8]) -> Result<Option<Event>, &'static str> {
        loop {
            if let Some((opcode, left)) = &mut self.frame {
                let amount = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                let (payload, rest) = input.split_at(amount);
                *input = rest;
                *left -= amount as u64;
                if *opcode >= CLOSE {
                    self.control.extend_from_slice(payload);
                }
                if *left > 0 {
                    return Ok(None);
                }
                let opcode = *opcode;
                self.frame = None;
                let control = std::mem::take(&mut self.control);
                match opcode {
                    PING => return Ok(Some(Event::Ping(control))),
                    CLOSE => return read_close(&control).map(|close| Some(Event::Close(close))),
                    _ => continue,
                }
            }
            let Some((byte, rest)) = input.split_first() else { return Ok(None) };
            *input = rest;
            self.head[self.n_head] = *byte;
            self.n_head += 1;
            if let Some((head, _)) = Head::read(&self.head[..self.n_head])? {
                if head.mask.is_some() {
                    return Err("a masked frame");
                }
                self.n_head = 0;
                self.frame = Some((head.opcode, head.length));
            }
        }
    }
}

fn read_close(payload: &[u8]) -> Result<Close, &'static str> {
    match payload {
        [] => Ok(Close { code: None, reason: String::new() }),
        [_] => Err("a close frame with half a code"),
        [high, low, reason @ ..] => {
            let reason = String::from_utf8_lossy(reason).into_owned();
            Ok(Close { code: Some(u16::from_be_bytes([*high, *low])), reason })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_answered_as_in_the_standard() {
        assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn heads_are_written_in_the_fewest_bytes_and_read_again() {
        for (length, n_bytes) in
            [(0, 2), (1, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10), (5_000_000, 10), ((1 << 63) - 1, 10)]
        {
            for mask in [None, Some([1, 2, 3, 4])] {
                let head = Head { is_final: true, opcode: BINARY, mask, length };
                let mut bytes = Vec::new();
                head.write(&mut bytes);
                let n_bytes = n_bytes + mask.map_or(0, |_| 4);
                assert_eq!(bytes.len(), n_bytes, "{length}");
                for n in 0..n_bytes {
                    assert_eq!(Head::read(&bytes[..n]), Ok(None), "{n} of {length}");
                }
                bytes.push(9);
                assert_eq!(Head::read(&bytes), Ok(Some((head, n_bytes))), "{length}");
            }
        }
    }

    #[test]
    fn what_the_standard_shows_is_written() {
        let mut out = Vec::new();
        write(TEXT, b"Hello", None, &mut out);
        assert_eq!(out, [0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]);
        out.clear();
        write(TEXT, b"Hello", Some([0x37, 0xfa, 0x21, 0x3d]), &mut out);
        assert_eq!(out, [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]);
    }

    #[test]
    fn a_mask_is_laid_over_every_byte_and_taken_off_by_itself() {
        let mask = [0x37, 0xfa, 0x21, 0x3d];
        for length in 0..40 {
            let payload: Vec<u8> = (0..length).collect();
            let mut masked = payload.clone();
            apply_mask(&mut masked, mask);
            for (n, byte) in masked.iter().enumerate() {
                assert_eq!(*byte, payload[n] ^ mask[n % 4], "byte {n} of {length}");
            }
            apply_mask(&mut masked, mask);
            assert_eq!(masked, payload);
        }
    }

    fn all(bytes: &[u8], step: usize) -> Result<Vec<Event>, &'static str> {
        let (mut reader, mut events) = (Reader::default(), Vec::new());
        for mut piece in bytes.chunks(step) {
            while let Some(event) = reader.next(&mut piece)? {
                events.push(event);
            }
            assert!(piece.is_empty());
        }
        Ok(events)
    }

    #[test]
    fn pings_and_closes_are_found_among_data_however_they_come() {
        let mut bytes = Vec::new();
        write(BINARY, &[0x88; 70_000], None, &mut bytes);
        write(PING, b"", None, &mut bytes);
        Head { is_final: false, ..Head::of(TEXT, 300, None) }.write(&mut bytes);
        bytes.extend([0x89; 300]);
        write(PING, &[7; 125], None, &mut bytes);
        write(PONG, b"unasked", None, &mut bytes);
        write(CONTINUATION, b"", None, &mut bytes);
        write(CLOSE, b"\x03\xe8bye", None, &mut bytes);
        let expected = [
            Event::Ping(Vec::new()),
            Event::Ping(vec![7; 125]),
            Event::Close(Close { code: Some(NORMAL), reason: "bye".to_string() }),
        ];
        for step in [1, 2, 3, 7, 1000, bytes.len()] {
            assert_eq!(all(&bytes, step).unwrap(), expected, "in steps of {step}");
        }
    }

    #[test]
    fn closes_have_a_code_and_a_reason_or_none() {
        for (payload, expected) in [
            (&b""[..], Ok((None, ""))),
            (b"\x03\xe8", Ok((Some(1000), ""))),
            (b"\x03\xf1too big", Ok((Some(1009), "too big"))),
            (b"\x03\xf0\xffno", Ok((Some(1008), "\u{fffd}no"))),
            (b"\x00\x00", Ok((Some(0), ""))),
            (b"\x03", Err("a close frame with half a code")),
        ] {
            let mut bytes = Vec::new();
            write(CLOSE, payload, None, &mut bytes);
            let expected =
                expected.map(|(code, reason)| vec![Event::Close(Close { code, reason: reason.to_string() })]);
            assert_eq!(all(&bytes, 3), expected, "{payload:?}");
        }
    }

    #[test]
    fn what_may_not_come_is_named() {
        for (bytes, expected) in [
            (&[0x82, 0x81][..], "a masked frame"),
            (&[0xc2, 0], "a frame with reserved bits set"),
            (&[0x83, 0], "a frame of an unknown kind"),
            (&[0x8b, 0], "a frame of an unknown kind"),
            (&[0x08, 0], "a control frame in fragments"),
            (&[0x88, 126], "a control frame of over 125 bytes"),
            (&[0x89, 127], "a control frame of over 125 bytes"),
            (&[0x82, 127, 0x80], "a frame of 2^63 bytes or more"),
            (&[0x88, 1, 3], "a close frame with half a code"),
        ] {
            let bytes = [bytes, &[0; 16]].concat();
            assert_eq!(all(&bytes, 1), Err(expected), "{bytes:?}");
        }
    }
}
