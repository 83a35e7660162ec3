//! Which endpoints are reached through a proxy, and through which: `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`
//! and `NO_PROXY`, read as curl and Go read them. ureq's own reading takes the first of them for
//! everything, sends CONNECT for plain http too, which Squid refuses as it is installed, and knows in
//! NO_PROXY neither networks nor ports nor what is below a name.
//!
//! Where curl, Go and Python differ, what is followed:
//! * a name in small letters wins over the same in capitals (curl, Python); one that is empty counts as
//!   unset (Go);
//! * `HTTP_PROXY` in capitals is followed, since this is no CGI program;
//! * a proxy without a port is at 80, or 443 for `https://` (Go);
//! * `example.com` and `.example.com` in NO_PROXY both stand for the name and all below it (curl, Python);
//! * loopback is no exception (curl, Python).
//!
//! What cannot be followed in a proxy's URL is an error. An entry of NO_PROXY that can stand for nothing is
//! left out and said, since it may be meant for other programs.
//!
//! It leaves to the connector how a proxy is spoken to, and to the resolver what may go through one.

use std::net::IpAddr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ipnet::IpNet;
use percent_encoding::percent_decode_str;
use ureq::http::Uri;

use super::redirect::port;

/// The proxies of the environment; by default none.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    http: Option<Proxy>,
    https: Option<Proxy>,
    direct: Vec<Direct>,
    /// What of NO_PROXY stands for nothing, and the variable's name.
    odd: Option<(String, Vec<String>)>,
}

/// One proxy.
#[derive(Clone)]
pub struct Proxy {
    pub(super) is_tls: bool,
    /// As in a URL: an IPv6 address in brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// The value of `Proxy-Authorization`.
    pub(super) authorization: Option<String>,
    /// Where it was named, for words.
    pub(super) variable: String,
}

/// One entry of NO_PROXY.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Direct {
    to: To,
    /// `None`: any.
    port: Option<u16>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum To {
    All,
    Net(IpNet),
    /// This name and all below it; lower case, without dots at its ends.
    Name(String),
}

impl Proxies {
    /// As the environment of this process says.
    ///
    /// # Errors
    ///
    /// If a variable that is followed cannot be; the sentence names it.
    pub fn from_environment() -> Result<Proxies, String> {
        let text = |name: &str| std::env::var_os(name).map(|value| value.into_string());
        let names = ["http_proxy", "https_proxy", "all_proxy", "no_proxy"];
        for name in names.iter().flat_map(|name| [name.to_string(), name.to_uppercase()]) {
            if let Some(Err(_)) = text(&name) {
                return Err(format!("variable {name} is not UTF-8: set it anew, or unset it"));
            }
        }
        Proxies::from_variables(|name| text(name)?.ok())
    }

    /// As these variables say.
    ///
    /// # Errors
    ///
    /// As [`Proxies::from_environment`].
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Proxies, String> {
        let first = |names: &[&str]| {
            names
                .iter()
                .find_map(|name| Some((name.to_string(), variable(name)?)).filter(|(_, value)| !value.is_empty()))
        };
        let proxy = |names: &[&str]| first(names).map(|(name, value)| Proxy::read(name, &value)).transpose();
        let mut proxies = Proxies {
            http: proxy(&["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])?,
            https: proxy(&["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])?,
            ..Proxies::default()
        };
        if let (false, Some((name, list))) = (proxies.is_empty(), first(&["no_proxy", "NO_PROXY"])) {
            let mut odd = Vec::new();
            for entry in list.split(|c: char| c == ',' || c.is_whitespace()).filter(|entry| !entry.is_empty()) {
                match Direct::read(entry) {
                    Some(direct) => proxies.direct.push(direct),
                    None => odd.push(entry.to_string()),
                }
            }
            proxies.odd = (!odd.is_empty()).then_some((name, odd));
        }
        Ok(proxies)
    }

    /// What of NO_PROXY has no effect, for people.
    pub fn advice(&self) -> Option<String> {
        let (name, entries) = self.odd.as_ref()?;
        let entries = entries.iter().map(|entry| format!("'{entry}'")).collect::<Vec<_>>().join(", ");
        Some(format!("variable {name}: no name, address or network: {entries}; left out"))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.http.is_none() && self.https.is_none()
    }

    /// The proxy through which this is reached; `None`: it is reached directly.
    pub fn of(&self, uri: &Uri) -> Option<&Proxy> {
        let proxy = match uri.scheme_str() {
            Some("https" | "wss") => &self.https,
            _ => &self.http,
        };
        let proxy = proxy.as_ref()?;
        let host = bare(uri.host().unwrap_or_default());
        let is_direct = self.direct.iter().any(|direct| direct.holds(&host, port(uri)));
        (!is_direct).then_some(proxy)
    }
}

impl Proxy {
    fn read(variable: String, value: &str) -> Result<Proxy, String> {
        // The value may hold a password, so nothing of it is repeated but what is none for certain.
        let wanted = |what: &str| {
            format!("variable {variable} {what}: set it to http://host:port or https://host:port, or unset it")
        };
        let value = value.trim();
        let (scheme, rest) = value.split_once("://").unwrap_or(("http", value));
        // The standard would take these out or turn them round.
        if rest.starts_with('/') || value.chars().any(|c| c.is_control() || c.is_whitespace() || c == '\\') {
            return Err(wanted("is not the URL of a proxy"));
        }
        // In a user or password they would end the host, and what follows them go nowhere.
        if rest.trim_end_matches('/').contains(['/', '?', '#']) {
            return Err(wanted("holds '/', '?' or '#' (in a user or password to be written %2F, %3F, %23)"));
        }
        let url = url::Url::parse(&format!("{scheme}://{rest}")).map_err(|_| wanted("is not the URL of a proxy"))?;
        let is_tls = match url.scheme() {
            "http" => false,
            "https" => true,
            other if other.starts_with("socks") => return Err(wanted("names a SOCKS proxy, which is not supported")),
            _ => return Err(wanted("is not the URL of an HTTP proxy")),
        };
        let host = url.host_str().ok_or_else(|| wanted("names no host"))?.to_string();
        let port = url.port_or_known_default().expect("http and https have a default port");
        let has_user = !url.username().is_empty() || url.password().is_some();
        let authorization = has_user.then(|| {
            let mut credentials: Vec<u8> = percent_decode_str(url.username()).collect();
            credentials.push(b':');
            credentials.extend(percent_decode_str(url.password().unwrap_or_default()));
            format!("Basic {}", BASE64_STANDARD.encode(credentials))
        });
        Ok(Proxy { is_tls, host, port, authorization, variable })
    }

    /// `host:port`, for words.
    pub fn place(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Why a proxy answers so (407; tinyproxy says 401 to a wrong password), and what to do.
    pub(super) fn wants_credentials(&self, status: u16) -> String {
        let (place, variable) = (self.place(), &self.variable);
        match self.authorization {
            Some(_) => format!("proxy {place} refuses the user or password in {variable} ({status})"),
            None => format!("proxy {place} wants a user and password ({status}): write them into {variable}"),
        }
    }
}

/// Without user and password.
impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").field("place", &self.place()).field("is_tls", &self.is_tls).finish_non_exhaustive()
    }
}

/// A host to compare: without the brackets of IPv6 and a final dot, in lower case.
fn bare(host: &str) -> String {
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.trim_end_matches('.').to_ascii_lowercase()
}

impl Direct {
    /// `None` for what can stand for nothing.
    fn read(entry: &str) -> Option<Direct> {
        if entry == "*" {
            return Some(Direct { to: To::All, port: None });
        }
        let net = |text: &str| text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok();
        if let Some(net) = net(entry.trim_start_matches('[').trim_end_matches(']')) {
            return Some(Direct { to: To::Net(net), port: None });
        }
        // What is left of IPv6 has brackets if a port follows.
        let (host, port) = match entry.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>())) {
            Some((host, Ok(port))) => (host, Some(port)),
            _ => (entry, None),
        };
        let host = host.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(host);
        let host = bare(host);
        let host = host.trim_start_matches('.');
        if let Some(net) = net(host) {
            return Some(Direct { to: To::Net(net), port });
        }
        // As endpoints are read, so that it is the same name; but no address in an odd spelling.
        match url::Host::parse(host) {
            Ok(url::Host::Domain(name)) if !name.contains('*') => Some(Direct { to: To::Name(name), port }),
            _ => None,
        }
    }

    fn holds(&self, host: &str, port: u16) -> bool {
        if self.port.is_some_and(|own| own != port) {
            return false;
        }
        match &self.to {
            To::All => true,
            To::Net(net) => {
                host.parse::<IpAddr>().is_ok_and(|ip| net.contains(&ip) || net.contains(&ip.to_canonical()))
            }
            To::Name(name) => {
                let is_below = |rest: &str| rest.is_empty() || rest.ends_with('.');
                host.strip_suffix(name.as_str()).is_some_and(is_below)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        read(variables).unwrap()
    }

    fn read(variables: &[(&str, &str)]) -> Result<Proxies, String> {
        let found = |name: &str| variables.iter().find(|(other, _)| *other == name).map(|(_, value)| value.to_string());
        Proxies::from_variables(found)
    }

    /// Where a request goes: `host:port` of its proxy, or `direct`.
    fn way(proxies: &Proxies, uri: &str) -> String {
        proxies.of(&uri.parse().unwrap()).map_or("direct".to_string(), Proxy::place)
    }

    #[test]
    fn each_scheme_has_its_proxy_and_small_letters_win() {
        let (http, https) = ("http://a.example/", "https://a.example/");
        for (variables, expected) in [
            (&[][..], ["direct", "direct"]),
            (&[("HTTP_PROXY", "http://h:1")], ["h:1", "direct"]),
            (&[("HTTPS_PROXY", "http://s:2")], ["direct", "s:2"]),
            (&[("ALL_PROXY", "http://a:3")], ["a:3", "a:3"]),
            (&[("HTTPS_PROXY", "http://s:2"), ("ALL_PROXY", "http://a:3")], ["a:3", "s:2"]),
            (&[("http_proxy", "http://l:4"), ("HTTP_PROXY", "http://h:1")], ["l:4", "direct"]),
            (&[("http_proxy", ""), ("HTTP_PROXY", "http://h:1")], ["h:1", "direct"]),
            (&[("all_proxy", "http://l:4"), ("HTTPS_PROXY", "http://s:2")], ["l:4", "s:2"]),
        ] {
            let proxies = proxies(variables);
            assert_eq!([way(&proxies, http), way(&proxies, https)], expected, "{variables:?}");
            assert_eq!(proxies.is_empty(), expected == ["direct", "direct"]);
        }
    }

    #[test]
    fn a_proxy_is_a_url_or_its_host_alone() {
        let basic = |user: &str| Some(format!("Basic {}", BASE64_STANDARD.encode(user)));
        for (value, place, is_tls, authorization) in [
            ("http://proxy.example:3128", "proxy.example:3128", false, None),
            ("proxy.example:3128", "proxy.example:3128", false, None),
            (" proxy.example ", "proxy.example:80", false, None),
            ("https://proxy.example/", "proxy.example:443", true, None),
            ("HTTPS://[::1]:8443", "[::1]:8443", true, None),
            ("user:pa%40ss@proxy.example:1", "proxy.example:1", false, basic("user:pa@ss")),
            ("http://user@proxy.example", "proxy.example:80", false, basic("user:")),
            ("http://user:a:b@10.0.0.1:8080", "10.0.0.1:8080", false, basic("user:a:b")),
        ] {
            let proxy = Proxy::read("HTTP_PROXY".to_string(), value).unwrap();
            assert_eq!(
                (proxy.place().as_str(), proxy.is_tls, proxy.authorization.clone()),
                (place, is_tls, authorization)
            );
            assert!(!format!("{proxy:?}").contains("user"), "{proxy:?}");
        }
        for (value, words) in [
            ("socks5://user:secret@proxy.example:1080", "names a SOCKS proxy"),
            ("ftp://user:secret@proxy.example", "is not the URL of an HTTP proxy"),
            ("http://user:secret@:80", "is not the URL of a proxy"),
            ("proxy.example:secret", "is not the URL of a proxy"),
            ("http:/secret.example:1", "holds '/', '?' or '#'"),
            ("http:///secret.example:1", "is not the URL of a proxy"),
            ("http://pro\txy.example:1", "is not the URL of a proxy"),
            ("http://pro\\xy.example:1", "is not the URL of a proxy"),
            ("http://user:1#secret@proxy.example:1", "holds '/', '?' or '#'"),
            ("http://user:1/secret@proxy.example:1", "holds '/', '?' or '#'"),
            ("http://user:1?secret@proxy.example:1", "holds '/', '?' or '#'"),
            ("http://proxy.example/secret.pac", "holds '/', '?' or '#'"),
        ] {
            let error = read(&[("HTTPS_PROXY", value)]).unwrap_err();
            assert!(error.starts_with(&format!("variable HTTPS_PROXY {words}")), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
        // What is not followed need not be right.
        read(&[("ALL_PROXY", "socks5://p"), ("HTTP_PROXY", "p"), ("HTTPS_PROXY", "p")]).unwrap();
    }

    #[test]
    fn what_stands_for_nothing_in_no_proxy_is_said() {
        let odd = "10.0.0.0/33 192.168.* <local> http://a.example/ 1.2 a*.example : .";
        let list = format!("good.example, {odd}");
        let some = proxies(&[("HTTP_PROXY", "http://p:1"), ("no_proxy", &list)]);
        assert_eq!(way(&some, "http://good.example/"), "direct");
        for uri in ["http://10.0.0.1/", "http://192.168.1.1/", "http://a.example/", "http://1.0.0.2/"] {
            assert_eq!(way(&some, uri), "p:1");
        }
        let advice = some.advice().unwrap();
        assert!(advice.starts_with("variable no_proxy: no name, address or network: '10.0.0.0/33', "), "{advice}");
        assert!(odd.split(' ').all(|entry| advice.contains(&format!("'{entry}'"))), "{advice}");
        // Without a proxy it means nothing.
        assert_eq!(proxies(&[("NO_PROXY", &list)]).advice(), None);
    }

    #[test]
    fn no_proxy_knows_names_suffixes_ports_addresses_and_networks() {
        for (list, direct, proxied) in [
            ("*", &["http://a.example/", "http://10.0.0.1/", "http://[::1]/"][..], &[][..]),
            (
                "example.com",
                &["http://example.com/", "http://a.b.EXAMPLE.com./"],
                &["http://notexample.com/", "http://com/"],
            ),
            (".example.com", &["http://example.com/", "http://a.example.com/"], &["http://notexample.com/"]),
            ("*.example.com.", &["http://a.example.com:8020/"], &["http://example.org/"]),
            (
                "a.example , b.example\tc.example",
                &["http://a.example/", "http://b.example/", "http://c.example/"],
                &["http://d.example/"],
            ),
            (
                "a.example:8020",
                &["http://a.example:8020/", "http://x.a.example:8020/"],
                &["http://a.example/", "https://a.example/"],
            ),
            ("a.example:443", &["https://a.example/"], &["http://a.example/"]),
            ("10.1.2.3", &["http://10.1.2.3:8020/"], &["http://10.1.2.30/", "http://10.1.2.4/"]),
            ("10.1.2.3:80", &["http://10.1.2.3/"], &["http://10.1.2.3:81/"]),
            (
                "10.0.0.0/8,fd00::/8",
                &["http://10.9.9.9/", "http://[fd00::1]/", "http://[::ffff:10.1.1.1]/"],
                &["http://11.0.0.1/", "http://[fe00::1]/"],
            ),
            ("::1", &["http://[::1]:8020/"], &["http://[::2]/"]),
            ("[::1]:81,[::2]", &["http://[::1]:81/", "http://[::2]:9/"], &["http://[::1]/"]),
            (",, ", &[], &["http://a.example/"]),
            ("10.0.0.0", &[], &["http://10.0.0.1/", "http://x10.0.0.0.example/"]),
            ("Bücher.example", &["http://xn--bcher-kva.example/", "http://a.XN--BCHER-KVA.example/"], &[]),
            ("_a.example", &["http://_a.example/"], &[]),
        ] {
            let proxies = proxies(&[("ALL_PROXY", "http://p:1"), ("NO_PROXY", list)]);
            assert_eq!(proxies.advice(), None);
            for uri in direct {
                assert_eq!(way(&proxies, uri), "direct", "NO_PROXY={list}");
            }
            for uri in proxied {
                assert_eq!(way(&proxies, uri), "p:1", "NO_PROXY={list} and {uri}");
            }
        }
    }
}
