//! Endpoints as addresses of requests: which way they are delivered to, their port and origin, and where
//! a redirect leads from them.
//!
//! It promises that no redirect leads out of TLS, nor from one way of delivering to the other. It leaves
//! to the poster how many are followed, and to the lanes whether another origin takes something now.

use ureq::http::Uri;

/// Whether it is delivered to by WebSocket.
pub(crate) fn is_websocket(uri: &Uri) -> bool {
    matches!(uri.scheme_str(), Some("ws" | "wss"))
}

/// Whether it is reached by TLS alone.
pub(crate) fn is_secure(uri: &Uri) -> bool {
    matches!(uri.scheme_str(), Some("https" | "wss"))
}

/// Its own, or its scheme's.
pub(crate) fn port(uri: &Uri) -> u16 {
    uri.port_u16().unwrap_or(if is_secure(uri) { 443 } else { 80 })
}

/// As the lanes name it.
pub(super) fn origin(uri: &Uri) -> String {
    let (scheme, host) = (uri.scheme_str().unwrap_or("http"), uri.host().unwrap_or_default());
    format!("{scheme}://{}:{}", host.to_ascii_lowercase(), port(uri))
}

pub(super) fn is_same_origin(one: &Uri, other: &Uri) -> bool {
    one.scheme() == other.scheme()
        && port(one) == port(other)
        && one.host().unwrap_or_default().eq_ignore_ascii_case(other.host().unwrap_or_default())
}

/// Where a 307 or 308 leads, or why it is not followed. A handshake is a request of HTTP, so what answers
/// it may name `http` where it means `ws`, and mostly does.
pub(super) fn next(uri: &Uri, location: &str) -> Result<Uri, String> {
    let mut next = url::Url::parse(&uri.to_string())
        .and_then(|base| base.join(location))
        .map_err(|_| "redirect to an unreadable location")?;
    if is_websocket(uri) {
        let meant = match next.scheme() {
            "http" => "ws",
            "https" => "wss",
            _ => "",
        };
        // It is not done for what is neither.
        let _ = next.set_scheme(meant);
    }
    match (uri.scheme_str(), next.scheme()) {
        (Some("https"), "http") => return Err("redirect from https to http".to_string()),
        (Some("wss"), "ws") => return Err("redirect from wss to ws".to_string()),
        (Some("http" | "https"), "http" | "https") | (Some("ws" | "wss"), "ws" | "wss") => {}
        (Some("ws" | "wss"), _) => return Err("redirect to another scheme than ws and wss".to_string()),
        _ => return Err("redirect to another scheme than http and https".to_string()),
    }
    next.set_fragment(None);
    next.as_str().parse().map_err(|_| "redirect to an unreadable location".to_string())
}

/// What is said of the other redirects.
pub(super) fn not_followed(status: u16) -> Option<String> {
    matches!(status, 300..=303 | 305 | 306).then(|| "only redirects 307 and 308 are followed".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_resolved_as_the_url_standard_says() {
        for (base, location, expected) in [
            ("http://a.example/x/y", "/z", Ok("http://a.example/z")),
            ("http://a.example/x/y", "z?q=1", Ok("http://a.example/x/z?q=1")),
            ("http://a.example/x", "//b.example:81/", Ok("http://b.example:81/")),
            ("http://a.example/x", "https://b.example/#top", Ok("https://b.example/")),
            ("https://a.example/x", "https://b.example", Ok("https://b.example/")),
            ("https://a.example/x", "http://a.example/x", Err("from https to http")),
            ("http://a.example/x", "ftp://b.example/", Err("another scheme than http")),
            ("http://a.example/x", "ws://b.example/", Err("another scheme than http")),
            ("https://a.example/x", "wss://b.example/", Err("another scheme than http")),
            ("http://a.example/x", "data:,x", Err("another scheme")),
            ("http://a.example/x", "http://[::1/", Err("unreadable")),
            ("http://a.example/x", "http://", Err("unreadable")),
            ("ws://a.example/x/y", "z?q=1", Ok("ws://a.example/x/z?q=1")),
            ("ws://a.example/x", "wss://b.example/", Ok("wss://b.example/")),
            ("ws://a.example/x", "https://b.example:81/#top", Ok("wss://b.example:81/")),
            ("ws://a.example/x", "http://b.example", Ok("ws://b.example/")),
            ("wss://a.example/x", "https://b.example/", Ok("wss://b.example/")),
            ("wss://a.example/x", "ws://a.example/x", Err("from wss to ws")),
            ("wss://a.example/x", "http://a.example/x", Err("from wss to ws")),
            ("wss://a.example/x", "ftp://a.example/x", Err("another scheme than ws")),
            ("ws://a.example/x", "data:,x", Err("another scheme than ws")),
            ("wss://a.example/x", "wss://", Err("unreadable")),
        ] {
            let result = next(&base.parse().unwrap(), location);
            match (expected, &result) {
                (Ok(expected), Ok(next)) => assert_eq!(next.to_string(), expected),
                (Err(words), Err(note)) => assert!(note.contains(words), "{note}"),
                _ => panic!("{base} and {location}: {result:?}"),
            }
        }
    }

    #[test]
    fn origins_are_compared_with_their_schemes_and_ports() {
        for (one, other, expected) in [
            ("http://a.example/x", "http://A.example:80/y", true),
            ("https://a.example/x", "https://a.example:443/", true),
            ("ws://a.example/x", "ws://A.example:80/y", true),
            ("wss://a.example/x", "wss://a.example:443/", true),
            ("http://a.example/", "https://a.example/", false),
            ("http://a.example/", "ws://a.example/", false),
            ("https://a.example/", "wss://a.example/", false),
            ("http://a.example/", "http://a.example:8020/", false),
            ("http://a.example/", "http://b.example/", false),
        ] {
            let (one, other): (Uri, Uri) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!(is_same_origin(&one, &other), expected, "{one} and {other}");
            assert_eq!(origin(&one) == origin(&other), expected, "{one} and {other}");
        }
    }
}
