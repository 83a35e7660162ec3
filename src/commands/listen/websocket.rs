//! The same over WebSocket: each message is shown as a request is, and a close frame is answered with
//! the code of `--close`. A handshake is answered with `--status` if that is no 2xx.

use std::net::SocketAddr;
use std::thread;

use super::body::{BODY, Body};
use super::{Recipient, Request};
use crate::frames::{self, BINARY, CLOSE, CONTINUATION, Head, PING, TEXT};
use crate::serve::{Connection, Unreadable};

/// The key of a request that asks for a WebSocket.
pub(super) fn key(request: &Request) -> Option<&str> {
    let value = |name: &str| request.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
    let (_, upgrade) = value("Upgrade")?;
    let asks = request.method == "GET" && upgrade.trim().eq_ignore_ascii_case("websocket");
    value("Sec-WebSocket-Key").filter(|_| asks).map(|(_, key)| key.trim())
}

/// Serves one until it is closed. What it was asked for with stands in `request`.
pub(super) fn serve(
    connection: &mut Connection,
    mut request: Request,
    peer: SocketAddr,
    recipient: &Recipient,
) -> Result<(), Unreadable> {
    let accept = frames::accept_key(key(&request).unwrap_or_default());
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    connection.write(answer.as_bytes())?;
    request.method = "WebSocket".to_owned();
    let close = recipient.options.close;
    let mut n_shown = 0;
    let ended = loop {
        let (opcode, is_final, payload) = match read_frame(connection, &mut request.body) {
            Ok(frame) => frame,
            Err(Unreadable::Refused(code, why)) => {
                say(connection, CLOSE, &code.to_be_bytes())?;
                break Err(Unreadable::Refused(code, why));
            }
            Err(error) => break Err(error),
        };
        match opcode {
            CONTINUATION | TEXT | BINARY if is_final => {
                let Some(number) = recipient.number() else { break Ok(()) };
                recipient.show(&recipient.text_of(number, &request, peer, &format!("to be closed with {close}")));
                request.body = Body::default();
                n_shown += 1;
            }
            PING => say(connection, frames::PONG, &payload)?,
            CLOSE => {
                thread::sleep(recipient.options.delay);
                break say(connection, CLOSE, &close.to_be_bytes()).map_err(Unreadable::from);
            }
            _ => {}
        }
    };
    (0..n_shown).for_each(|_| recipient.done());
    ended
}

fn say(connection: &mut Connection, opcode: u8, payload: &[u8]) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    frames::write(opcode, payload, None, &mut bytes);
    connection.write(&bytes)
}

/// A frame's kind, whether it is the last of its message, and the payload of a control frame; data
/// is counted in `body`.
fn read_frame(connection: &mut Connection, body: &mut Body) -> Result<(u8, bool, Vec<u8>), Unreadable> {
    const PROTOCOL_ERROR: u16 = 1002;
    connection.begin();
    let (head, length) = loop {
        match Head::read(connection.unused()) {
            Ok(Some(read)) => break read,
            Ok(None) => connection.must_read_more()?,
            Err(why) => return Err(Unreadable::refused(PROTOCOL_ERROR, why)),
        }
    };
    connection.consume(length);
    let mut mask = head.mask.ok_or_else(|| Unreadable::refused(PROTOCOL_ERROR, "a frame that is not masked"))?;
    if body.total.saturating_add(head.length) > BODY {
        return Err(Unreadable::refused(1009, "its message is over 1 GiB"));
    }
    let mut control = Vec::new();
    let mut left = head.length;
    while left > 0 {
        if connection.unused().is_empty() {
            connection.must_read_more()?;
        }
        let amount = left.min(connection.unused().len() as u64) as usize;
        let piece = &mut connection.unused_mut()[..amount];
        frames::apply_mask(piece, mask);
        // The next piece begins where this one ended.
        mask.rotate_left(amount % 4);
        match head.opcode {
            CLOSE.. => control.extend_from_slice(piece),
            _ => body.add(piece),
        }
        connection.consume(amount);
        left -= amount as u64;
    }
    Ok((head.opcode, head.is_final, control))
}
