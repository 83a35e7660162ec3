//! The rules of envelopes as tables: what is read of which bytes, and what is said of the others.

use rmp::encode::{self, ByteBuf};

use super::msgpack::write_text;
use super::*;

/// A map with the one header that ACA-Py sends; `parts` are MessagePack already.
fn map(parts: &[&[u8]]) -> Vec<u8> {
    assert!(parts.len().is_multiple_of(2) && parts.len() < 32);
    let mut raw = vec![0x80 | (parts.len() / 2) as u8];
    raw.extend(parts.concat());
    raw
}

fn text(text: &str) -> Vec<u8> {
    let mut buf = ByteBuf::new();
    write_text(&mut buf, text);
    buf.into_vec()
}

fn bin(bytes: &[u8]) -> Vec<u8> {
    let mut buf = ByteBuf::new();
    encode::write_bin(&mut buf, bytes).unwrap();
    buf.into_vec()
}

/// What is read, as: URI, origin, headers that were pushed a line each, payload, retries.
fn check(raw: &[u8], expected: Result<&str, &str>) {
    let read = Envelope::decode(raw.to_vec());
    let actual = match &read {
        Ok(envelope) => {
            assert_eq!(envelope.raw(), raw);
            let mut lines = format!("{} {}\n", envelope.uri(), envelope.origin());
            let n_added = usize::from(envelope.content_type.is_some());
            for (name, value) in envelope.headers().take(envelope.headers().count() - n_added) {
                lines += &format!("{name}: {}\n", value.escape_ascii());
            }
            let (payload, retries) = (envelope.payload().escape_ascii(), envelope.retries());
            Ok(lines + &format!("{payload} {retries}"))
        }
        Err(malformed) => {
            assert_eq!(malformed.raw, raw);
            Err(malformed.to_string())
        }
    };
    let expected = expected.map(String::from).map_err(String::from);
    assert_eq!(actual, expected, "{}", raw.escape_ascii());
}

const BOTH: [Format; 2] = [Format::MessagePack, Format::Json];

fn check_endpoint(endpoint: &str, expected: Result<&str, &str>) {
    for format in BOTH {
        let raw = format.encode([], endpoint, b"x");
        check(&raw, expected.map(|line| format!("{line}\nx 0")).as_deref().map_err(|error| *error));
    }
}

fn check_headers(headers: &[(&str, &str)], expected: Result<&str, &str>) {
    let expected = expected.map(|lines| format!("http://h/ http://h:80\n{lines}x 0"));
    for format in BOTH {
        let raw = format.encode(headers.iter().copied(), "http://h", b"x");
        check(&raw, expected.as_deref().map_err(|error| *error));
    }
}

/// `value` under `key`, beside a good endpoint and payload.
fn check_extra(key: &[u8], value: &[u8], expected: Result<&str, &str>) {
    let good = [&text("endpoint")[..], &text("http://h"), &text("payload"), &bin(b"x")];
    for at in [0, 2, 4] {
        let mut parts = good.to_vec();
        parts.splice(at..at, [key, value]);
        check(&map(&parts), expected);
    }
}

const GOOD: Result<&str, &str> = Ok("http://h/ http://h:80\nx 0");

#[test]
fn endpoints_become_what_http_can_request() {
    check_endpoint("http://h", Ok("http://h/ http://h:80"));
    check_endpoint("HTTP://Host.Example:80/A?b=c#d", Ok("http://host.example/A?b=c http://host.example:80"));
    check_endpoint("https://h/", Ok("https://h/ https://h:443"));
    check_endpoint("https://h:80", Ok("https://h:80/ https://h:80"));
    check_endpoint("ws://h/ws", Ok("ws://h/ws ws://h:80"));
    check_endpoint("WSS://H:443/ws?x#top", Ok("wss://h/ws?x wss://h:443"));
    check_endpoint("wss://h:80", Ok("wss://h:80/ wss://h:80"));
    check_endpoint("ws://user@h/", Ok("ws://h/ ws://h:80\nAuthorization: Basic dXNlcjo="));
    check_endpoint("http://h/b\u{e4}", Ok("http://h/b%C3%A4 http://h:80"));
    check_endpoint(
        "http://m\u{fc}nchen.example",
        Ok("http://xn--mnchen-3ya.example/ http://xn--mnchen-3ya.example:80"),
    );
    check_endpoint("http://0x7f.1:8020/", Ok("http://127.0.0.1:8020/ http://127.0.0.1:8020"));
    check_endpoint("http://2130706433", Ok("http://127.0.0.1/ http://127.0.0.1:80"));
    check_endpoint("http://[::FFFF:127.0.0.1]:1", Ok("http://[::ffff:7f00:1]:1/ http://[::ffff:7f00:1]:1"));
    check_endpoint("http://h/../a/./b?x=`{|}^\"<>", Ok("http://h/a/b?x=`{|}^%22%3C%3E http://h:80"));
    check_endpoint("http://h:/%2e%2E/a/%2e/b%zz%4", Ok("http://h/a/b%zz%4 http://h:80"));
    check_endpoint("http://\u{ff28}%41\u{ad}:0080?q", Ok("http://ha/?q http://ha:80"));
    check_endpoint("http://h/`{|}^'\u{200b}?'", Ok("http://h/%60%7B|%7D^'%E2%80%8B?%27 http://h:80"));
    check_endpoint("http://127.1./", Ok("http://127.0.0.1/ http://127.0.0.1:80"));
    check_endpoint("http://127\u{3002}0\u{ff0e}0.1/", Ok("http://127.0.0.1/ http://127.0.0.1:80"));
    check_endpoint("http://[0:0:0:0:0:0:0:1]/", Ok("http://[::1]/ http://[::1]:80"));
}

#[test]
fn user_and_password_become_a_header_and_are_never_shown() {
    check_endpoint(
        "http://Aladdin:open%20sesame@h/",
        Ok("http://h/ http://h:80\nAuthorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="),
    );
    check_endpoint("http://user@h/", Ok("http://h/ http://h:80\nAuthorization: Basic dXNlcjo="));
    check_endpoint("http://@h/", Ok("http://h/ http://h:80"));
    let own = [("authorization", "Bearer t")];
    for format in BOTH {
        let raw = format.encode(own, "http://user:secret@h/p#f", b"payload");
        check(&raw, Ok("http://h/p http://h:80\nauthorization: Bearer t\npayload 0"));
    }
    let raw = Envelope::encode(own, "http://user:secret@h/p#f", b"payload");
    let queried = Envelope::decode(Envelope::encode([], "http://h/p?code=secret", b"")).unwrap();
    assert_eq!(queried.endpoint_for_people(), "http://h/p?***");
    check_endpoint(
        "http://h:port/?code=secret",
        Err("endpoint \"http://h:port/?***\" is not a URL: invalid port number"),
    );
    let envelope = Envelope::decode(raw).unwrap();
    assert_eq!(envelope.endpoint(), "http://user:secret@h/p#f");
    assert_eq!(envelope.endpoint_for_people(), "http://h/p");
    let debug = format!("{envelope:?}");
    assert!(!debug.contains("secret") && !debug.contains("Bearer"), "{debug}");

    check_endpoint("http://user:secret@h:port/", Err("endpoint \"***@h:port/\" is not a URL: invalid port number"));
    check_endpoint("http://user:sec/ret@h:1/", Err("endpoint \"***@h:1/\" is not a URL: invalid port number"));
    check_endpoint("user:secret@h", Err("endpoint of scheme user, only http, https, ws and wss are supported"));
}

#[test]
fn what_cannot_be_requested_is_explained() {
    let fetches = "the recipient fetches its messages by itself, so that nothing can be sent to it";
    check_endpoint("", Err(&format!("endpoint is empty: {fetches}")));
    check_endpoint(" \n", Err(&format!("endpoint is empty: {fetches}")));
    check_endpoint("didcomm:transport/queue", Err(&format!("endpoint didcomm:transport/queue: {fetches}")));
    check_endpoint("didcomm:else", Err("endpoint of scheme didcomm, only http, https, ws and wss are supported"));
    check_endpoint("h/path", Err("endpoint \"h/path\" is not an absolute URL, as http://host/ is"));
    check_endpoint("http://", Err("endpoint \"http://\" is not a URL: empty host"));
    check_endpoint(
        "http://a\n\u{1b}[31m b",
        Err("endpoint \"http://a\\n\\u{1b}[31m b\" holds a control character (U+000A), which no URL has"),
    );
    check_endpoint("http://1.2.3.4.5/", Err("endpoint \"http://1.2.3.4.5/\" is not a URL: invalid IPv4 address"));
    check_endpoint("ws:/h/", Err("endpoint \"ws:/h/\" has not two slashes before its host, as http://host/ has"));
    check_endpoint("ftp://h/ws", Err("endpoint of scheme ftp, only http, https, ws and wss are supported"));
    check_endpoint("did:sov:abc", Err("endpoint of scheme did, only http, https, ws and wss are supported"));
    check_endpoint("h:8020", Err("endpoint of scheme h, only http, https, ws and wss are supported"));
    check_endpoint("http://a{b}/", Err("endpoint \"http://a{b}/\" cannot be requested: invalid uri character"));
    check_endpoint(&format!("http://{}/", "a".repeat(255)), Err("host of 255 bytes in the endpoint, 254 are possible"));
    check_endpoint(&format!("http://h/{}", "a".repeat(9000)), Err("endpoint of 9009 bytes, 8192 are allowed"));
    let long = format!("endpoint \"{}...\" is not an absolute URL, as http://host/ is", "a".repeat(80));
    check_endpoint(&"a".repeat(100), Err(&long));
    check(&map(&[&text("endpoint"), &bin(b"http://\xff"), &text("payload"), &bin(b"")]), Err("endpoint is not UTF-8"));
}

#[test]
fn what_is_no_clean_url_is_not_repaired_into_another() {
    for (endpoint, kind) in [
        ("http:\\\\h\\a", "a backslash"),
        ("http://good.example\\@evil.example/", "a backslash"),
        (" http://h/", "a blank"),
        ("http://h/ ", "a blank"),
        ("http://h/a b", "a blank"),
        ("http://h/a?b c", "a blank"),
        ("http://h/a\u{a0}b", "a blank (U+00A0)"),
        ("http://h/a\u{3000}", "a blank (U+3000)"),
        ("http://h/\n", "a control character (U+000A)"),
        ("ht\ttp://h/", "a control character (U+0009)"),
        ("http://good.example\r\n.evil.example/", "a control character (U+000D)"),
        ("http://h/\0", "a control character (U+0000)"),
        ("http://h/\u{7f}", "a control character (U+007F)"),
        ("http://h/\u{85}", "a control character (U+0085)"),
        ("\u{1f}http://h/", "a control character (U+001F)"),
    ] {
        let reason = Envelope::decode(Envelope::encode([], endpoint, b"x")).unwrap_err().reason;
        assert!(reason.ends_with(&format!(" holds {kind}, which no URL has")), "{endpoint:?}: {reason}");
        assert!(!reason.contains(|c: char| c.is_control()), "{reason:?}");
    }
    for endpoint in ["http:h/", "http:/h/", "http:///h/", "https:////h/x", "HTTP:h"] {
        let reason = Envelope::decode(Envelope::encode([], endpoint, b"x")).unwrap_err().reason;
        assert!(reason.ends_with("has not two slashes before its host, as http://host/ has"), "{endpoint:?}: {reason}");
    }
}

#[test]
fn the_longest_endpoint_and_host_are_accepted() {
    let host = "a".repeat(MAX_HOST);
    check_endpoint(&format!("http://{host}"), Ok(&format!("http://{host}/ http://{host}:80")));
    let path = "a".repeat(MAX_ENDPOINT - "http://h/".len());
    check_endpoint(&format!("http://h/{path}"), Ok(&format!("http://h/{path} http://h:80")));
}

#[test]
fn headers_keep_order_spelling_and_repetitions() {
    check_headers(&[("X-b", "1"), ("a", "2"), ("x-B", "\t\u{e4} 3")], Ok("X-b: 1\na: 2\nx-B: \\t\\xc3\\xa4 3\n"));
    check_headers(&[("Empty", "")], Ok("Empty: \n"));
}

#[test]
fn headers_of_the_connection_are_not_sent() {
    for name in [
        "host",
        "CONTENT-LENGTH",
        "Transfer-Encoding",
        "Connection",
        "Keep-Alive",
        "te",
        "Trailer",
        "Upgrade",
        "Expect",
        "Proxy-Authorization",
        "proxy-connection",
    ] {
        check_headers(&[(name, "1"), ("Content-Type", "t")], Ok("Content-Type: t\n"));
    }
    check_headers(&[("Proxy", "1"), ("TEA", "2")], Ok("Proxy: 1\nTEA: 2\n"));
}

#[test]
fn headers_that_http_does_not_allow_are_refused() {
    check_headers(&[("", "1")], Err("a header's name is empty"));
    check_headers(&[("a\r\nb", "1")], Err("name of header \"a...\" has byte 0x0d, not allowed"));
    check_headers(
        &[("Authorization: secret", "")],
        Err("name of header \"Authorization...\" has byte 0x3a, not allowed"),
    );
    check_headers(&[("\u{e4}", "")], Err("name of header \"...\" has byte 0xc3, not allowed"));
    check_headers(&[("a", "1"), ("b", "secret\r\nc: 2")], Err("value of header b has byte 0x0d, not allowed"));
    check_headers(&[("a", "1\n")], Err("value of header a has byte 0x0a, not allowed"));
    check_headers(&[("a", "\0")], Err("value of header a has byte 0x00, not allowed"));
    check_headers(&[("a", "\x7f")], Err("value of header a has byte 0x7f, not allowed"));
    let only_ascii = "value of header authorization has byte 0xc3, only ASCII is allowed";
    check_headers(&[("a", "\u{e4}"), ("authorization", "Bearer \u{e4}")], Err(only_ascii));
    check_headers(&[("Host", "\r\n")], Err("value of header Host has byte 0x0d, not allowed"));
    check_headers(&[("a", &"b".repeat(MAX_HEADERS))], Err("headers of 65537 bytes, 65536 are allowed"));
    let value = "b".repeat(MAX_HEADERS - 1);
    check_headers(&[("a", &value)], Ok(&format!("a: {value}\n")));
}

#[test]
fn text_and_bytes_are_the_same_everywhere() {
    let headers = map(&[&bin(b"n"), &bin(b"v\xff")]);
    let lines = Ok("http://h/ http://h:80\nn: v\\xff\n\\xffx 0");
    let payload = b"\xa2\xffx";
    check(&map(&[&bin(b"headers"), &headers, &bin(b"endpoint"), &bin(b"http://h"), &bin(b"payload"), payload]), lines);
}

#[test]
fn headers_may_be_missing_or_nil_but_nothing_else() {
    check(&map(&[&text("payload"), &bin(b"x"), &text("endpoint"), &text("http://h")]), GOOD);
    check_extra(&text("headers"), b"\xc0", GOOD);
    check_extra(&text("headers"), b"\x80", GOOD);
    check_extra(&text("headers"), b"\x90", Err("headers is an array, not a map"));
    check_extra(&text("headers"), b"\x81\x01\xa1v", Err("a header's name is an integer, not text or bytes"));
    check_extra(&text("headers"), b"\x81\xa1n\x01", Err("header n is an integer, not text"));
    check_extra(&text("headers"), b"\x81\xa1n\x91\xc0", Err("header n is an array, not text"));
}

#[test]
fn what_is_missing_or_of_a_wrong_type_is_named() {
    check(b"\x80", Err("no payload"));
    check(&map(&[&text("payload"), &bin(b"x")]), Err("no endpoint"));
    check(&map(&[&text("payload"), b"\xc0"]), Err("payload is nil, not text or bytes"));
    check(&map(&[&text("payload"), b"\x80"]), Err("payload is a map, not text or bytes"));
    check(
        &map(&[&text("payload"), &bin(b""), &text("endpoint"), b"\xc3"]),
        Err("endpoint is a boolean, not text or bytes"),
    );
    check(b"", Err("empty: not a single byte"));
    check(b"\x93\x01\x02\x03", Err("not a map but an array"));
    check(b"hello", Err("neither a JSON object nor a MessagePack map"));
    check(b"[{}]", Err("neither a JSON object nor a MessagePack map"));
    check(b"\xff", Err("not a map but an integer"));
    check(b"\xc1", Err("not MessagePack: byte 0xc1 begins no value"));
    check(b"\x81\x01\xc1", Err("not MessagePack: byte 0xc1 begins no value"));
}

#[test]
fn the_end_must_be_where_the_map_ends() {
    let whole = Envelope::encode([("n", "v")], "http://h", b"x");
    check(&whole, Ok("http://h/ http://h:80\nn: v\nx 0"));
    for n in 1..whole.len() {
        check(&whole[..n], Err("truncated: it ends within a value"));
    }
    let mut longer = whole.clone();
    longer.extend_from_slice(b"\xc0\xc0");
    check(&longer, Err(&format!("more after the map: 2 of {} bytes", longer.len())));
}

#[test]
fn lengths_are_not_believed_before_the_bytes_are_there() {
    for head in [
        &b"\xdf\xff\xff\xff\xff"[..],
        b"\xdd\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\xc7\xff\x01",
    ] {
        let raw = map(&[&text("headers"), head, &text("payload"), &bin(b"x")]);
        check(&raw, Err("truncated: it ends within a value"));
        let inside = [b"\x91", head].concat();
        let raw = map(&[&text("other"), &inside, &text("payload"), &bin(b"x")]);
        check(&raw, Err("truncated: it ends within a value"));
    }
    check(b"\xdf\xff\xff\xff\xff\xa1", Err("truncated: it ends within a value"));
}

#[test]
fn unknown_keys_of_any_type_and_depth_are_skipped() {
    let values: [&[u8]; 20] = [
        b"\x05",
        b"\xe0",
        b"\xc0",
        b"\xc2",
        b"\xc3",
        b"\xca....",
        b"\xcb........",
        b"\xcc.",
        b"\xcd..",
        b"\xce....",
        b"\xcf........",
        b"\xd0.",
        b"\xd3........",
        b"\xd4..",
        b"\xd8.................",
        b"\xc7\x01..",
        b"\xc8\x00\x02...",
        b"\x92\x81\xa1a\xc4\x01.\x90",
        b"\xdc\x00\x01\x80",
        b"\xde\x00\x01\xc0\xc0",
    ];
    for value in values {
        check_extra(&text("other"), value, GOOD);
        check_extra(value, value, GOOD);
    }
    let deep = [vec![0x91; 1_000_000], vec![0xc0]].concat();
    check_extra(&text("deep"), &deep, GOOD);
    check_extra(&deep, b"\xc0", GOOD);
}

#[test]
fn the_last_of_equal_keys_counts() {
    let (payload, endpoint) = (text("payload"), text("endpoint"));
    check(
        &map(&[&payload, b"\xc0", &endpoint, &text("bad"), &endpoint, &text("http://h"), &payload, &bin(b"x")]),
        GOOD,
    );
    check(
        &map(&[&endpoint, &text("http://h"), &payload, &bin(b"x"), &payload, b"\xc0"]),
        Err("payload is nil, not text or bytes"),
    );
}

#[test]
fn retries_count_if_they_can() {
    for (value, retries) in [
        (&b"\x03"[..], 3u32),
        (b"\x00", 0),
        (b"\xff", 0),
        (b"\xcd\x01\x00", 256),
        (b"\xd2\xff\xff\xff\xff", 0),
        (b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff", u32::MAX),
        (b"\xd3\x80\x00\x00\x00\x00\x00\x00\x00", 0),
        (b"\xc0", 0),
        (b"\xa13", 0),
        (b"\xcb\x40\x00\x00\x00\x00\x00\x00\x00", 0),
    ] {
        check_extra(&text("retries"), value, Ok(&format!("http://h/ http://h:80\nx {retries}")));
    }
}

#[test]
fn what_is_shown_of_an_endpoint_has_an_end() {
    let raw = Envelope::encode([], &format!("http://h/{}", "\u{e4}".repeat(1000)), b"");
    let shown = Envelope::decode(raw).unwrap().endpoint_for_people();
    assert!(shown.starts_with("http://h/%C3%A4") && shown.ends_with("...") && shown.len() == 203, "{shown}");
}

#[test]
fn what_names_no_content_type_gets_one_by_its_first_byte() {
    for (payload, expected) in [
        (&b"{}"[..], "application/json"),
        (b"[1]", "application/json"),
        (b" {}", "application/octet-stream"),
        (b"\xff{}", "application/octet-stream"),
        (b"", "application/octet-stream"),
    ] {
        for format in BOTH {
            let read = |headers: &[(&str, &str)]| {
                let raw = format.encode(headers.iter().copied(), "http://u:p@h/", payload);
                let envelope = Envelope::decode(raw).unwrap();
                let lines = envelope.headers().map(|(name, value)| format!("{name}: {}", value.escape_ascii()));
                lines.collect::<Vec<_>>()
            };
            let content_type = format!("Content-Type: {expected}");
            assert_eq!(read(&[]), ["Authorization: Basic dTpw", &content_type]);
            assert_eq!(read(&[("x-api-key", "k")])[2], content_type);
            assert_eq!(read(&[("content-TYPE", "t")])[0], "content-TYPE: t");
            assert_eq!(read(&[("content-TYPE", "t")]).len(), 2);
        }
    }
}

#[test]
fn the_first_byte_tells_the_formats_apart() {
    for first in 0..=u8::MAX {
        let is_map = matches!(first, 0x80..=0x8f | 0xde | 0xdf);
        let is_json = b"{ \t\r\n".contains(&first);
        assert!(!(is_map && is_json));
        assert_eq!(Format::of(&[first]) == Format::Json, is_json, "{first:#04x}");
    }
    assert_eq!(Format::of_key("acapy.outbound_transport"), Format::MessagePack);
    assert_eq!(Format::of_key("acapy_outbound"), Format::Json);
}

// ---- JSON ----

const GOOD_SERVICE: &str = r#""service": {"url": "http://h"}"#;

fn check_json(json: &str, expected: Result<&str, &str>) {
    check(json.as_bytes(), expected);
}

/// A member beside a good service and payload, in every place.
fn check_member(member: &str, expected: Result<&str, &str>) {
    let payload = r#""payload": "eA==""#;
    for members in [[member, GOOD_SERVICE, payload], [GOOD_SERVICE, member, payload], [GOOD_SERVICE, payload, member]] {
        check_json(&format!("{{{}}}", members.join(",")), expected);
        check_json(&format!(" {{\n\t{}\r\n}} ", members.join(" , ")), expected);
    }
}

/// A payload as JSON writes it, and what it comes to.
fn check_payload(json: &str, expected: Result<&str, &str>) {
    let expected = expected.map(|payload| format!("http://h/ http://h:80\n{payload} 0"));
    check_json(&format!("{{{GOOD_SERVICE}, \"payload\": {json}}}"), expected.as_deref().map_err(|error| *error));
}

#[test]
fn payloads_are_base64_as_anybody_writes_it() {
    check_payload(r#""""#, Ok(""));
    check_payload(r#""__79""#, Ok("\\xff\\xfe\\xfd"));
    check_payload(r#""//79""#, Ok("\\xff\\xfe\\xfd"));
    check_payload(r#""\/\u002f79""#, Ok("\\xff\\xfe\\xfd"));
    check_payload(r#""-_+/""#, Ok("\\xfb\\xff\\xbf"));
    for same in ["_w==", "_w=", "_w", "/w==", "/w", " _\\r\\nw = =\\t", "_x", "_w====="] {
        check_payload(&format!("\"{same}\""), Ok("\\xff"));
    }
    for bad in ["_", "_w==_w==", "_w=w", "!!!!", "_w\u{e4}", "____\\u0000"] {
        check_payload(&format!("\"{bad}\""), Err("payload is not base64"));
    }
    check_payload("null", Err("payload is null, not text"));
    check_payload("[\"eA==\"]", Err("payload is an array, not text"));
    check_payload("-1.5e3", Err("payload is a number, not text"));
    check_payload("true", Err("payload is a boolean, not text"));
}

#[test]
fn members_of_json_may_come_in_any_order_with_any_others() {
    for extra in [
        r#""x": 1"#,
        r#""x": null"#,
        r#""x": -1.5E+300"#,
        r#""x": 1e999"#,
        r#""x": 123456789012345678901234567890"#,
        r#""": [[], {}, [{"a": [true, false, "\"\\"]}]]"#,
        r#""Service": {"url": 5}"#,
        r#""\ud800": "\udfff""#,
        r#""headers": {}"#,
        r#""headers": null"#,
        "\"\u{e4}\u{10ffff}\": \"\u{7f}\"",
    ] {
        check_member(extra, GOOD);
    }
    // Names are what they say, not how they are written.
    check_json(r#"{"\u0073ervice": {"\u0075rl": "\u0068ttp:\/\/h"}, "payload": "eA=="}"#, GOOD);
    check_member(r#""headers": {"n": "v"}"#, Ok("http://h/ http://h:80\nn: v\nx 0"));
}

#[test]
fn nesting_costs_no_stack() {
    for (open, close) in [("[", "]"), (r#"{"a":"#, "}"), (r#"[{"a":["#, "]}]")] {
        let deep = format!("{}1{}", open.repeat(300_000), close.repeat(300_000));
        check_member(&format!("\"x\": {deep}"), GOOD);
        let kind = if open.starts_with('[') { "an array" } else { "an object" };
        check_member(&format!("\"payload\": {deep}, \"payload\": \"eA==\", \"x\": 0"), GOOD);
        check_json(&format!("{{{GOOD_SERVICE}, \"payload\": {deep}}}"), Err(&format!("payload is {kind}, not text")));
        check_json(&format!("{{\"x\": {}", open.repeat(300_000)), Err("truncated: it ends within a value"));
    }
}

#[test]
fn the_last_of_equal_members_counts_as_it_does_in_python() {
    check_json(
        r#"{"service": 5, "payload": 1, "headers": 7, "retries": 4, "service": {"url": 1, "url": "http://h"},
            "payload": "eA==", "headers": {"b": "1", "a": 5, "b": "2", "a": "3"}, "retries": 2}"#,
        Ok("http://h/ http://h:80\nb: 2\na: 3\nx 2"),
    );
    check_json(
        r#"{"service": {"url": "http://h"}, "payload": "eA==", "service": {"uri": "http://h"}}"#,
        Err("service has no url"),
    );
}

#[test]
fn what_is_missing_in_json_or_of_a_wrong_type_is_named() {
    let mediator = "no service, a payload alone: an entry of mediator mode, which is for another ACA-Py to fetch";
    check_json(r#"{"payload": "eA=="}"#, Err(mediator));
    check_json(r#"{"payload": "eA==", "headers": {}}"#, Err("no service"));
    check_json("{}", Err("no service"));
    check_json(&format!("{{{GOOD_SERVICE}}}"), Err("no payload"));
    check_json(r#"{"service": null, "payload": ""}"#, Err("service is null, not an object"));
    check_json(r#"{"service": "http://h", "payload": ""}"#, Err("service is text, not an object"));
    check_json(r#"{"service": {}, "payload": ""}"#, Err("service has no url"));
    check_json(r#"{"service": {"url": null}, "payload": ""}"#, Err("service.url is null, not text"));
    check_json(
        r#"{"service": {"url": "\ud800"}, "payload": ""}"#,
        Err("service.url is not text: unexpected end of hex escape"),
    );
    check_member(r#""headers": []"#, Err("headers is an array, not an object"));
    check_member(r#""headers": {"n": 5}"#, Err("header n is a number, not text"));
    check_member(r#""headers": {"n": null}"#, Err("header n is null, not text"));
    check_member(r#""headers": {"n": "secret\ud800"}"#, Err("header n is not text: unexpected end of hex escape"));
    check_member(r#""headers": {"\ud800": ""}"#, Err("name of header \"...\" has byte 0xef, not allowed"));
    check_member(r#""headers": {"n": "a\r\nb: c"}"#, Err("value of header n has byte 0x0d, not allowed"));
}

#[test]
fn what_is_not_json_is_said_without_quoting_it() {
    check_json("{", Err("truncated: it ends within a value"));
    check_json("  ", Err("not a JSON object"));
    check_json(" [1]", Err("not a JSON object"));
    check_json("{secret: 1}", Err("not JSON: byte 1 is not a member's name"));
    check_json("{'secret': 1}", Err("not JSON: byte 1 is not a member's name"));
    check_json("{\"a\" secret}", Err("not JSON: byte 5 is not a colon"));
    check_json("{\"a\": secret}", Err("not JSON: expected value, in what begins at byte 6"));
    check_json("{\"a\": {\n\"b\": {\"c\", 1}}}", Err("not JSON: expected `:`, in what begins at byte 6"));
    check_json("{\"a\": 1secret}", Err("not JSON: trailing characters, in what begins at byte 6"));
    check_json("{\"a\": 1; secret}", Err("not JSON: trailing characters, in what begins at byte 6"));
    check_json("{\"a\": \"\"; secret}", Err("not JSON: byte 8 is not a comma or the end"));
    check_json("{\"a\": 1,}", Err("not JSON: byte 8 is not a member's name"));
    check_json("{,}", Err("not JSON: byte 1 is not a member's name"));
    check_json("{\"a\": 1} secret", Err("not JSON: byte 9 is not its end"));
    check_json("{\"a\": \"\\", Err("truncated: it ends within a value"));
    check_json("{\"a\": \"\\\"", Err("truncated: it ends within a value"));
    let whole = Format::Json.encode([("n", "v")], "http://h", b"x");
    for n in 1..whole.len() {
        check(&whole[..n], Err("truncated: it ends within a value"));
    }
}

#[test]
fn retries_in_json_count_if_they_can() {
    for (value, retries) in [
        ("0", 0u32),
        ("5", 5),
        ("-1", 0),
        ("4294967296", u32::MAX),
        ("99999999999999999999999999", u32::MAX),
        ("1.0", 0),
        ("1e2", 0),
        ("null", 0),
        ("true", 0),
        ("\"3\"", 0),
        ("[1]", 0),
    ] {
        check_member(&format!("\"retries\": {value}"), Ok(&format!("http://h/ http://h:80\nx {retries}")));
    }
}

#[test]
fn json_is_written_as_python_writes_it() {
    let headers = [("a\"\\\u{8}\u{c}\n\r\t\0/", "\u{7f}\u{e4}\u{2028}\u{1d11e}"), ("b", "")];
    let expected = concat!(
        r#"{"service": {"url": "http://b\u00fccher/"}, "payload": "__79AA==", "#,
        r#""headers": {"a\"\\\b\f\n\r\t\u0000/": "\u007f\u00e4\u2028\ud834\udd1e", "b": ""}}"#
    );
    let written = Format::Json.encode(headers, "http://b\u{fc}cher/", b"\xff\xfe\xfd\0");
    assert_eq!(String::from_utf8(written).unwrap(), expected);
    let written = Format::Json.encode([], "", b"");
    assert_eq!(written, br#"{"service": {"url": ""}, "payload": "", "headers": {}}"#);
}
