//! WebSocket for a sink: one message on a connection, as agents send it, and a close frame for an answer.

use std::io::{self, BufRead, Read, Write};
use std::net::TcpStream;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::sink::{Request, read_exactly};

pub fn is_asked_for(request: &Request) -> bool {
    request.header("upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket"))
}

/// Answers the handshake, and reads the message and the close frame behind it.
pub fn open(reader: &mut impl BufRead, mut stream: &TcpStream, request: &mut Request) -> io::Result<()> {
    let key = request.header("sec-websocket-key").ok_or_else(|| io::Error::other("a handshake without a key"))?;
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    let accept = BASE64_STANDARD.encode(digest);
    let answer = format!(
        "HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    stream.write_all(answer.as_bytes())?;
    let (first, body) = frame(reader)?;
    if first != 0x82 {
        return Err(io::Error::other(format!("{first:#x} begins no whole binary frame")));
    }
    request.method = "WEBSOCKET".to_string();
    request.body = body;
    match frame(reader)? {
        (0x88, code) if code == 1000_u16.to_be_bytes() => Ok(()),
        (first, payload) => Err(io::Error::other(format!("no close with 1000: {first:#x} {payload:?}"))),
    }
}

/// Closes as the status would be meant, and waits for the end.
pub fn close(reader: &mut impl BufRead, mut stream: &TcpStream, status: u16) -> io::Result<()> {
    let code: u16 = match status {
        200..=299 => 1000,
        429 | 502..=504 => 1013,
        500 => 1011,
        _ => 1008,
    };
    stream.write_all(&[&[0x88, 2][..], &code.to_be_bytes()].concat())?;
    stream.shutdown(std::net::Shutdown::Write)?;
    io::copy(&mut reader.take(1 << 20), &mut io::sink())?;
    Ok(())
}

/// Half of a close frame.
pub fn break_off(mut stream: &TcpStream) -> io::Result<()> {
    stream.write_all(&[0x88, 2, 3])
}

/// The first byte of a masked frame, and its payload.
fn frame(reader: &mut impl BufRead) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 2];
    reader.read_exact(&mut head)?;
    if head[1] & 0x80 == 0 {
        return Err(io::Error::other("a frame that is not masked"));
    }
    let mut length = [0; 8];
    let n_length = match head[1] & 0x7f {
        126 => 2,
        127 => 8,
        short => {
            length[7] = short;
            0
        }
    };
    reader.read_exact(&mut length[8 - n_length..][..n_length])?;
    let mut mask = [0; 4];
    reader.read_exact(&mut mask)?;
    let mut payload = Vec::new();
    read_exactly(reader, u64::from_be_bytes(length), &mut payload)?;
    payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
    Ok((head[0], payload))
}
