//! Header names: which are names at all, which belong to a connection and not to a message, which
//! speak of a secret, and which may go where the message was not addressed to. Pure words; values
//! are left to those who hold them.

/// A character of a header's name (RFC 9110, section 5.6.2).
pub(crate) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether a header says something about the connection or about how the body
/// is framed on it, which the HTTP client alone knows.
pub(crate) fn belongs_to_connection(name: &[u8]) -> bool {
    const NAMES: [&[u8]; 9] = [
        b"Host",
        b"Content-Length",
        b"Transfer-Encoding",
        b"Connection",
        b"Keep-Alive",
        b"TE",
        b"Trailer",
        b"Upgrade",
        b"Expect",
    ];
    const PREFIX: &[u8] = b"Proxy-";
    NAMES.iter().any(|other| name.eq_ignore_ascii_case(other))
        || name.get(..PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(PREFIX))
}

/// The header that carries a message's id to its recipient: one that means nothing else to HTTP.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IdHeader(String);

impl IdHeader {
    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The error ends the sentence "option '--id-header': 'text' …".
impl std::str::FromStr for IdHeader {
    type Err = String;

    fn from_str(name: &str) -> Result<IdHeader, String> {
        if name.is_empty() || !name.bytes().all(is_token) {
            return Err("is not a header's name, as in X-Message-Id".to_string());
        }
        let is_taken = belongs_to_connection(name.as_bytes()) || belongs_to_handshake(name);
        if is_taken || name.eq_ignore_ascii_case("Content-Type") {
            return Err("is a header that HTTP needs for itself; take another name, as in X-Message-Id".to_string());
        }
        Ok(IdHeader(name.to_string()))
    }
}

/// Whether a header says something about a WebSocket, which whoever opens it alone knows.
pub(crate) fn belongs_to_handshake(name: &str) -> bool {
    const PREFIX: &str = "Sec-WebSocket-";
    name.get(..PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(PREFIX))
}

/// Whether the header's value may let somebody in, or tell whose message it is. By the look of
/// the name, which everybody invents anew, and so it would rather hide too much.
pub(crate) fn is_credential(name: &str) -> bool {
    const PARTS: [&str; 13] = [
        "key",
        "token",
        "secret",
        "auth",
        "cookie",
        "pass",
        "credential",
        "session",
        "signature",
        "jwt",
        "bearer",
        "csrf",
        "wallet",
    ];
    let name = name.to_ascii_lowercase();
    PARTS.iter().any(|part| name.contains(part))
}

/// Whether the header goes along when a redirect leads to another origin. All that an envelope's
/// headers hold was meant for its endpoint; what the body is, any recipient has to know.
pub(crate) fn goes_elsewhere(name: &str) -> bool {
    name.eq_ignore_ascii_case("Content-Type")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_speak_of_a_secret_are_known_by_their_parts() {
        for name in [
            "Authorization",
            "proxy-authorization",
            "Cookie",
            "Set-Cookie",
            "X-API-Key",
            "x-apikey",
            "X-Auth-Token",
            "x-wallet-id",
            "X-Amz-Signature",
            "X-Session-Id",
            "Client-Secret",
            "Password",
            "x-passwd",
            "X-Credential",
            "Ocp-Apim-Subscription-Key",
        ] {
            assert!(is_credential(name), "{name}");
        }
        for name in ["Content-Type", "Content-Length", "X-Plain", "Accept", "X-Request-Id", "Date", ""] {
            assert!(!is_credential(name), "{name}");
        }
    }

    #[test]
    fn the_id_goes_in_a_header_that_means_nothing_else() {
        for name in ["X-Id", "message-id"] {
            assert_eq!(name.parse::<IdHeader>().unwrap().as_str(), name);
        }
        for (name, says) in [
            ("not a name", "not a header's name"),
            ("", "not a header's name"),
            ("a:b", "not a header's name"),
            ("Content-Length", "needs for itself"),
            ("content-type", "needs for itself"),
            ("proxy-thing", "needs for itself"),
            ("Sec-WebSocket-Key", "needs for itself"),
            ("Expect", "needs for itself"),
        ] {
            assert!(name.parse::<IdHeader>().unwrap_err().contains(says), "{name}");
        }
    }

    #[test]
    fn a_handshake_has_headers_of_its_own() {
        for (name, expected) in [
            ("Sec-WebSocket-Key", true),
            ("sec-websocket-extensions", true),
            ("SEC-WEBSOCKET-PROTOCOL", true),
            ("Sec-WebSocket", false),
            ("Sec-Fetch-Mode", false),
            ("X-Sec-WebSocket-Key", false),
        ] {
            assert_eq!(belongs_to_handshake(name), expected, "{name}");
        }
    }

    #[test]
    fn only_the_kind_of_the_body_goes_elsewhere() {
        assert!(goes_elsewhere("content-type") && goes_elsewhere("Content-Type"));
        for name in ["Authorization", "X-Plain", "Content-Typ", "Content-Encoding", "User-Agent", ""] {
            assert!(!goes_elsewhere(name), "{name}");
        }
    }
}
