//! Where the queue is and how to get in: the options that all commands share but `listen`.

use std::fmt;
use std::path::PathBuf;

use super::queue_url::QueueUrl;
use super::reader::{Given, Reader};
use super::row::{AnyRow as _, Row, Section};
use super::values::{certificate_file, file, not_empty, one_of};
use super::{Error, REDIS_SERVER_URL, TOPIC_PREFIX};
use crate::roots::Roots;
use crate::text::redacted;

/// Where the queue is and how to get in. Its `Debug` shows no password.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RedisAddress {
    /// Which servers, and who we are to them.
    pub url: QueueUrl,
    /// The prefix of ACA-Py 0.7: without `queue`, the key is `PREFIX.outbound_transport`; `acapy`.
    pub prefix: String,
    /// The whole key of the queue, as today's ACA-Py names it.
    pub queue: Option<String>,
    /// Which variables of the plugin's deliverer were followed.
    pub taken: Taken,
    /// A file that holds the password, instead of the URL; see [`RedisAddress::password`].
    pub password_file: Option<PathBuf>,
    /// A PEM file of roots to trust instead of all others; only with TLS.
    pub ca_file: Option<PathBuf>,
    /// PEM files of the certificate that is shown to Redis and of its key; only with TLS.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// The name that Redis's certificate must have, whatever it is reached by; only with TLS.
    pub server_name: Option<String>,
    /// Which roots TLS trusts, towards Redis as towards recipients; both.
    pub roots: Roots,
}

/// What the environment of the plugin's deliverer has settled, where nothing of ours did: which variable
/// it was, for people.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Taken {
    /// Where Redis is.
    pub url: Option<&'static str>,
    /// The queue's key.
    pub queue: Option<&'static str>,
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = [("Redis", self.url), ("the queue", self.queue)];
        let said: Vec<String> = said.iter().filter_map(|(what, by)| Some(format!("{what} by {}", (*by)?))).collect();
        f.write_str(&said.join(", "))
    }
}

impl RedisAddress {
    /// A queue at `url` with the default prefix of ACA-Py 0.7.
    ///
    /// # Errors
    ///
    /// If that is no URL of a Redis.
    pub fn new(url: &str) -> Result<RedisAddress, Error> {
        let url = QueueUrl::parse(url).map_err(|why| Error(format!("'{}' {why}", redacted(url))))?;
        Ok(RedisAddress::at(url))
    }

    fn at(url: QueueUrl) -> RedisAddress {
        RedisAddress {
            url,
            prefix: PREFIX.default_value(),
            queue: None,
            taken: Taken::default(),
            password_file: None,
            ca_file: None,
            client_certificate: None,
            server_name: None,
            roots: Roots::default(),
        }
    }

    /// The key of the queue.
    pub fn key(&self) -> String {
        self.queue.clone().unwrap_or_else(|| format!("{}.outbound_transport", self.prefix))
    }

    /// The password in the password file, without the line end; read anew at every call, so
    /// that a changed password takes effect at the next connection. `None` without a file:
    /// then the URL's password counts, if it has one.
    ///
    /// # Errors
    ///
    /// If the file cannot be read or holds nothing; the sentence names it.
    pub fn password(&self) -> Result<Option<String>, Error> {
        let Some(path) = &self.password_file else {
            return Ok(None);
        };
        let refused = |why: String| Error(format!("option '--redis-password-file': '{}' {why}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| refused(format!("cannot be read: {error}")))?;
        match text.trim_end_matches(['\r', '\n']) {
            "" => Err(refused("is empty".to_owned())),
            password => Ok(Some(password.to_owned())),
        }
    }

    /// What can only be judged when all is read.
    fn checked(self) -> Result<RedisAddress, Error> {
        if self.password()?.is_some() && self.url.has_password() {
            return Err(Error(
                "a password is in both '--outbound-queue' and '--redis-password-file'; leave it in one".to_owned(),
            ));
        }
        let of_tls = [
            ("--redis-ca-file", self.ca_file.is_some()),
            ("--redis-cert-file", self.client_certificate.is_some()),
            ("--redis-server-name", self.server_name.is_some()),
        ];
        match of_tls.iter().find(|(_, is_given)| *is_given && !self.url.has_tls_anywhere()) {
            Some((option, _)) => Err(Error(format!("'{option}' needs a queue URL that begins with rediss://"))),
            None => Ok(self),
        }
    }
}

static OUTBOUND_QUEUE: Row<QueueUrl> = Row::new("--outbound-queue", "URL", queue_url)
    .short("-oq")
    .variable_named("ACAPY_OUTBOUND_TRANSPORT_QUEUE")
    .unset("REDIS_SERVER_URL")
    .help(
        "where ACA-Py pushes to: redis://[user:password@]host:6379, rediss://… (TLS) or unix:///run/redis.sock; of a \
         Cluster any node, or some: redis://host-1:6379,host-2:6379; with Sentinels \
         redis+sentinel://host-1:26379,host-2:26379/NAME",
    );
static QUEUE: Row<String> = Row::new("--queue", "NAME", not_empty)
    .variable()
    .unset("see above")
    .help("the queue's whole key: acapy_outbound, unless the plugin is told otherwise (acapy_outbound_topic)");
static PREFIX: Row<String> = Row::new("--outbound-queue-prefix", "NAME", not_empty)
    .short("-oqp")
    .variable_named("ACAPY_OUTBOUND_TRANSPORT_QUEUE_PREFIX")
    .default("acapy")
    .help("for ACA-Py 0.7: the queue's key is NAME.outbound_transport");
static CLASS: Row<()> = Row::new("--outbound-queue-class", "NAME", queue_class)
    .short("-oqc")
    .variable_named("ACAPY_OUTBOUND_TRANSPORT_QUEUE_CLASS")
    .default("redis")
    .help("for ACA-Py's sake: redis, or ACA-Py's name for it");
static PASSWORD_FILE: Row<PathBuf> = Row::new("--redis-password-file", "FILE", file)
    .variable()
    .unset("none")
    .help("the password, instead of in the URL");
static CA_FILE: Row<PathBuf> = Row::new("--redis-ca-file", "PEM", certificate_file)
    .variable()
    .unset("none")
    .help("roots to trust for rediss://, instead of all others");
static CERT_FILE: Row<PathBuf> = Row::new("--redis-cert-file", "PEM", certificate_file)
    .variable()
    .unset("none")
    .help("the certificate to show to Redis, with those between it and its root");
static KEY_FILE: Row<PathBuf> = Row::new("--redis-key-file", "PEM", file).variable().unset("none").help("its key");
static SERVER_NAME: Row<String> = Row::new("--redis-server-name", "NAME", server_name)
    .variable()
    .unset("the host's")
    .help("the name that its certificate must have");
static ROOTS: Row<Roots> = Row::new("--roots", "both|bundled|system", |text| {
    one_of(text, &[("both", Roots::Both), ("bundled", Roots::Bundled), ("system", Roots::System)])
})
.variable()
.default("both")
.help("which roots TLS trusts: those in this program, those of the system (SSL_CERT_FILE, SSL_CERT_DIR), or both");

/// The options of the queue, which all commands share but `listen`.
pub static SECTION: Section = Section {
    heading: "\
The queue. Where these do not say it, the variables of the plugin's deliverer do:
REDIS_SERVER_URL, and TOPIC_PREFIX (the queue's key is TOPIC_PREFIX_outbound, or
acapy_outbound without it).",
    rows: &[
        &OUTBOUND_QUEUE,
        &QUEUE,
        &PREFIX,
        &CLASS,
        &PASSWORD_FILE,
        &CA_FILE,
        &CERT_FILE,
        &KEY_FILE,
        &SERVER_NAME,
        &ROOTS,
    ],
};

pub(super) fn read(reader: &mut Reader) -> Result<RedisAddress, Error> {
    let url = reader.optional(&OUTBOUND_QUEUE)?;
    let theirs = reader.foreign(REDIS_SERVER_URL)?;
    let name = read_name(reader, url.is_none() && theirs.is_some())?;
    reader.value(&CLASS)?;
    let mut redis = RedisAddress::at(match (&url, theirs) {
        (Some(url), _) => url.clone(),
        (None, Some(theirs)) => theirs.parsed(queue_url)?,
        (None, None) => {
            return Err(Error(
                "no queue: give ACA-Py's Redis with '-oq redis://host:6379' ('--outbound-queue') \
                 or in the variable ACAPY_OUTBOUND_TRANSPORT_QUEUE or REDIS_SERVER_URL"
                    .to_owned(),
            ));
        }
    });
    redis.taken = Taken { url: url.is_none().then_some(REDIS_SERVER_URL), queue: name.taken };
    redis.queue = name.queue;
    redis.prefix = name.prefix.unwrap_or_else(|| PREFIX.default_value());
    redis.password_file = reader.optional(&PASSWORD_FILE)?;
    redis.ca_file = reader.optional(&CA_FILE)?;
    redis.client_certificate = certificate_and_key(reader, &CERT_FILE, &KEY_FILE)?;
    redis.server_name = reader.optional(&SERVER_NAME)?;
    redis.roots = reader.value(&ROOTS)?;
    redis.checked()
}

/// What names the queue.
#[derive(Default)]
struct Name {
    queue: Option<String>,
    prefix: Option<String>,
    taken: Option<&'static str>,
}

/// `is_theirs`: it is the plugin's deliverer's variable that says where Redis is.
fn read_name(reader: &mut Reader, is_theirs: bool) -> Result<Name, Error> {
    let queue = |given: &Given| Ok(Name { queue: Some(given.parsed(not_empty)?), ..Name::default() });
    let prefix = |given: &Given| Ok(Name { prefix: Some(given.parsed(not_empty)?), ..Name::default() });
    match (reader.given(&QUEUE)?, reader.given(&PREFIX)?) {
        // What is typed wins over a variable, whichever of the two it is.
        (Some(one), Some(other)) if one.is_from_variable() == other.is_from_variable() => {
            Err(Error(format!("the queue is named by {one} and by {other}; leave out one")))
        }
        (Some(one), Some(other)) if one.is_from_variable() => prefix(&other),
        (Some(one), _) => queue(&one),
        (None, Some(other)) => prefix(&other),
        (None, None) => Ok(match reader.foreign(TOPIC_PREFIX)? {
            Some(topic) => {
                Name { queue: Some(format!("{}_outbound", topic.value)), taken: Some(TOPIC_PREFIX), ..Name::default() }
            }
            None if is_theirs => Name {
                queue: Some("acapy_outbound".to_owned()),
                taken: Some("the default of TOPIC_PREFIX"),
                ..Name::default()
            },
            None => Name::default(),
        }),
    }
}

/// A certificate and its key, which go together.
pub(super) fn certificate_and_key(
    reader: &mut Reader,
    certificate: &'static Row<PathBuf>,
    key: &'static Row<PathBuf>,
) -> Result<Option<(PathBuf, PathBuf)>, Error> {
    let names = (certificate.name(), key.name());
    match (reader.optional(certificate)?, reader.optional(key)?) {
        (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
        (None, None) => Ok(None),
        (Some(_), None) => Err(Error(format!("'{}' needs the key: give '{}'", names.0, names.1))),
        (None, Some(_)) => Err(Error(format!("'{}' needs the certificate: give '{}'", names.1, names.0))),
    }
}

fn queue_url(text: &str) -> Result<QueueUrl, String> {
    if is_python_class(text) {
        return Err(
            "is a Python class, which is what ACA-Py 0.7.1 to 0.7.3 want there; give the URL of the Redis that \
                    they push to, as in '-oq redis://host:6379', which wins over the variable"
                .to_owned(),
        );
    }
    QueueUrl::parse(text)
}

/// `package.module:Class`, or with a dot in the place of the colon.
fn is_python_class(text: &str) -> bool {
    let is_word = |word: &str| {
        let letters = word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        letters && word.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
    };
    let class = text.rsplit(['.', ':']).next().unwrap_or_default();
    let has_class = text.contains(':') || class.starts_with(|first: char| first.is_ascii_uppercase());
    text.contains(['.', ':']) && has_class && text.matches(':').count() <= 1 && text.split(['.', ':']).all(is_word)
}

/// ACA-Py names a Python class here; the one queue there is goes by its names for it.
fn queue_class(text: &str) -> Result<(), String> {
    let names = [
        "aries_cloudagent.transport.outbound.queue.redis:RedisOutboundQueue",
        "aries_cloudagent.transport.outbound.queue.redis.RedisOutboundQueue",
        "redis",
    ];
    if names.contains(&text) {
        Ok(())
    } else {
        Err(format!("is not a queue there is; there is only {}", names.join(" = ")))
    }
}

fn server_name(text: &str) -> Result<String, String> {
    match rustls::pki_types::ServerName::try_from(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("is neither a name nor an address that a certificate can be for".to_owned()),
    }
}
