//! Whether a message would reach an endpoint, by the resolver, the connector and the TLS that deliver. No message is
//! sent.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use ureq::http::Uri;

use super::{Report, micro};
use crate::commands::Error;
use crate::delivery::proxy::Proxy;
use crate::delivery::{Poster, is_secure, is_websocket, port};
use crate::envelope::Envelope;
use crate::guard::Guard;
use crate::policy::{self, Attempt, Outcome};
use crate::queue::History;

const WHAT: &str = "endpoint";

/// Resolves, is allowed, and takes a connection (with TLS for https and wss), and for ws and wss a handshake.
/// No request is made of http: a recipient may take any for a message.
pub(super) fn check(guard: &Guard, poster: Option<&Poster>, endpoint: &str, report: &mut Report) -> Result<(), Error> {
    let envelope = match Envelope::decode(Envelope::encode([], endpoint, b"")) {
        Ok(envelope) => envelope,
        Err(malformed) => return report.mend(WHAT, malformed),
    };
    let (uri, shown) = (envelope.uri(), envelope.endpoint_for_people());
    let (is_tls, port) = (is_secure(uri), port(uri));
    let host = uri.host().unwrap_or_default();
    if let Some((proxy, poster)) = poster.and_then(|poster| Some((poster.proxy_of(uri)?, poster))) {
        report.ok(WHAT, format!("{shown} is reached through the proxy {}", proxy.place()))?;
        return check_through_proxy(poster, uri, proxy, report);
    }
    let bare = host.trim_matches(['[', ']']);
    let addresses: Vec<SocketAddr> = match (bare, port).to_socket_addrs() {
        Ok(addresses) => addresses.collect(),
        Err(error) => {
            return report.mend(
                WHAT,
                format!("host '{bare}' has no address: {error}; see /etc/resolv.conf and the name itself"),
            );
        }
    };
    if let Err(why) = guard.check_scheme(is_tls) {
        return report.mend(WHAT, format!("messages for it become dead letters: {why}"));
    }
    let spelled: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
    report.ok(WHAT, format!("host '{bare}' is {}", spelled.join(", ")))?;

    let mut allowed = Vec::new();
    let mut refusals = Vec::new();
    for address in addresses {
        match guard.check(address, is_tls) {
            Ok(()) => allowed.push(address),
            Err(reason) => refusals.push(reason),
        }
    }
    match (allowed.is_empty(), refusals.is_empty()) {
        (true, _) => {
            let fate = match bare.parse::<std::net::IpAddr>() {
                Ok(_) => "become dead letters",
                Err(_) => "are put off, and are dead after '--give-up-after'",
            };
            return report.mend(WHAT, format!("messages for it {fate}: {}", refusals.join("; ")));
        }
        (false, false) => {
            report.note(WHAT, format!("not all of its addresses are allowed: {}", refusals.join("; ")))?
        }
        (false, true) => report.ok(WHAT, "its addresses are allowed")?,
    }
    // Without settings it has been said why.
    let Some(poster) = poster else { return Ok(()) };
    match try_connection(poster, uri) {
        Ok(took) => {
            let agrees = if is_tls { ", and agrees on TLS with a good certificate" } else { "" };
            let nothing_sent = if is_websocket(uri) { "" } else { "; nothing was sent" };
            report.ok(WHAT, format!("takes a connection, in {}{agrees}{nothing_sent}", micro(took)))?;
        }
        Err(why) => return report.mend(WHAT, why),
    }
    match is_websocket(uri) {
        true => check_handshake(poster, uri, report),
        false => Ok(()),
    }
}

/// By the resolver, the connector and the TLS that deliver; over the connection nothing is sent. How long it took, or
/// what would become of a message.
fn try_connection(poster: &Poster, uri: &Uri) -> Result<Duration, String> {
    let began = Instant::now();
    let Err(attempt) = poster.try_connection(uri) else { return Ok(began.elapsed()) };
    match policy::judge(&attempt, &History::default(), &policy::Retry::default()) {
        Outcome::Dead { reason, .. } => Err(format!("messages for it become dead letters: {reason}")),
        Outcome::Later { error, .. } => Err(error),
        Outcome::Delivered => Ok(began.elapsed()),
    }
}

/// As far as to the proxy, for plain http, or to the endpoint.
fn check_through_proxy(poster: &Poster, uri: &Uri, proxy: &Proxy, report: &mut Report) -> Result<(), Error> {
    if is_websocket(uri) {
        return check_handshake(poster, uri, report);
    }
    match try_connection(poster, uri) {
        Ok(took) => {
            let whither = match is_secure(uri) {
                true => "leads to it, and the two ends agree on TLS with a good certificate",
                false => "takes a connection; what it says of the endpoint is not tried",
            };
            report.ok(WHAT, format!("the proxy {} {whither} ({}); nothing was sent", proxy.place(), micro(took)))
        }
        Err(why) => report.mend(WHAT, why),
    }
}

/// Opens a WebSocket, and sends nothing.
fn check_handshake(poster: &Poster, uri: &Uri, report: &mut Report) -> Result<(), Error> {
    let Err(attempt) = poster.try_websocket(uri) else {
        return report.ok(WHAT, "opens a WebSocket; no message was sent");
    };
    match policy::judge(&attempt, &History::default(), &policy::Retry::default()) {
        Outcome::Later { error, .. } if matches!(attempt, Attempt::Unopened { status: 307 | 308, .. }) => {
            report.note(WHAT, format!("answers the handshake of a WebSocket with {error}; it is not followed here"))
        }
        Outcome::Later { error: why, .. } | Outcome::Dead { reason: why, .. } => {
            report.mend(WHAT, format!("opens no WebSocket: {why}"))
        }
        Outcome::Delivered => Ok(()),
    }
}
