//! The head of a request, read from the bytes that have come, and why one is none.

use std::io;

use httparse::Status;

use super::limits::Limits;

/// Why no request came.
#[derive(Debug)]
pub enum Unreadable {
    /// The connection ended in the middle of one, or took too long.
    Gone(io::Error),
    /// What came is to be answered with this status, for this reason, and the connection closed.
    Refused(u16, String),
}

impl Unreadable {
    /// `Refused`, for any kind of text.
    pub fn refused(status: u16, why: impl Into<String>) -> Unreadable {
        Unreadable::Refused(status, why.into())
    }
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Unreadable {
        Unreadable::Gone(error)
    }
}

/// A request's line and headers.
#[derive(Debug, Default)]
pub struct Head {
    /// As it was sent.
    pub method: String,
    /// With its query.
    pub path: String,
    /// Whether it is HTTP/1.1, and not 1.0.
    pub is_1_1: bool,
    /// Names as they were sent.
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Head {
    /// The values of all headers of this name.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.headers.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_slice())
    }
}

/// The head that these bytes begin with, and its length; `None` while it is not whole yet.
pub(super) fn read_head(bytes: &[u8], limits: &Limits) -> Result<Option<(Head, usize)>, Unreadable> {
    let mut headers = vec![httparse::EMPTY_HEADER; limits.headers];
    let mut parsed = httparse::Request::new(&mut headers);
    match parsed.parse(bytes) {
        Ok(Status::Complete(length)) => {
            let head = Head {
                method: parsed.method.unwrap_or_default().to_owned(),
                path: parsed.path.unwrap_or_default().to_owned(),
                is_1_1: parsed.version == Some(1),
                headers: parsed.headers.iter().map(|header| (header.name.to_owned(), header.value.to_vec())).collect(),
            };
            Ok(Some((head, length)))
        }
        Ok(Status::Partial) if bytes.len() < limits.head => Ok(None),
        Ok(Status::Partial) => Err(Unreadable::refused(431, format!("its headers are over {} KiB", limits.head >> 10))),
        Err(httparse::Error::TooManyHeaders) => {
            Err(Unreadable::refused(431, format!("over {} headers", limits.headers)))
        }
        Err(_) => Err(Unreadable::refused(400, "not an HTTP request")),
    }
}

/// A status line.
pub fn status_line(status: u16) -> String {
    let known = ureq::http::StatusCode::from_u16(status).ok();
    format!("HTTP/1.1 {status} {}\r\n", known.and_then(|status| status.canonical_reason()).unwrap_or(""))
}

#[cfg(test)]
mod tests {
    use super::super::limits::LIMITS;
    use super::*;

    #[test]
    fn a_head_is_read_refused_or_waited_for() {
        let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(LIMITS.head));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(LIMITS.headers + 1));
        let table: [(&str, Result<Option<&str>, u16>); 8] = [
            ("", Ok(None)),
            ("GET /metrics HTTP/1.1\r\nHost: a\r\n", Ok(None)),
            ("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", Ok(Some("/metrics"))),
            ("GET /metrics?name[]=x HTTP/1.0\r\n\r\nmore", Ok(Some("/metrics?name[]=x"))),
            ("\r\nGET / HTTP/1.1\r\n\r\n", Ok(Some("/"))),
            (&long, Err(431)),
            (&many, Err(431)),
            ("\u{1}\u{2}\r\n\r\n", Err(400)),
        ];
        for (bytes, expected) in table {
            let read = match read_head(bytes.as_bytes(), &LIMITS) {
                Ok(read) => Ok(read.map(|(head, _)| head.path)),
                Err(Unreadable::Refused(status, _)) => Err(status),
                Err(Unreadable::Gone(error)) => panic!("{error}"),
            };
            assert_eq!(read, expected.map(|path| path.map(str::to_owned)), "{:?}", &bytes[..bytes.len().min(60)]);
        }
    }
}
