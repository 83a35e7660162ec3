//! What Redis's errors say, and what that means in our own words. Nothing here knows a server or a connection: what
//! an error is to an agent, by what came before, is `server`'s to say.

/// An error as the server wrote it, code first; the client's own words for errors of its own.
pub fn wire_text(error: &redis::RedisError) -> String {
    match error.code() {
        Some(code) => format!("{code} {}", error.detail().unwrap_or_default()),
        None => error.to_string(),
    }
}

/// Whether the server said so, rather than the connection or the client.
pub(super) fn is_answer(error: &redis::RedisError) -> bool {
    matches!(error.kind(), redis::ErrorKind::Server(_) | redis::ErrorKind::Extension)
}

/// Whether the server said that it will not do this: it does not know or permit the command. Not one that says
/// of itself that it cannot do anything now, or nothing for us.
pub(super) fn is_refusal(error: &redis::RedisError) -> bool {
    let of_itself = [
        "READONLY",
        "LOADING",
        "MASTERDOWN",
        "UNBLOCKED",
        "CLUSTERDOWN",
        "NOREPLICAS",
        "TRYAGAIN",
        "ASK ",
        "BUSY",
        "MISCONF",
        "OOM ",
        "NOAUTH",
        "WRONGPASS",
        "WRONGTYPE",
    ];
    let text = wire_text(error);
    is_answer(error) && !is_elsewhere(&text) && !of_itself.iter().any(|code| text.contains(code))
}

/// Whether a server of a Cluster says that a key is not its own. Inside a script, servers before 7 wrap it
/// in a sentence, and those after have one of their own.
pub(super) fn is_elsewhere(text: &str) -> bool {
    text.contains("MOVED ") || text.contains("non local key")
}

/// Why a server can do nothing now, of what it says itself; all of it is waited out.
pub(super) fn not_now(text: &str) -> Option<String> {
    let says = |code: &str| text.contains(code);
    let why = if says("LOADING") {
        "it is still loading its data".to_string()
    } else if says("OOM ") {
        "it is full (maxmemory reached)".to_string()
    } else if says("READONLY") || says("UNBLOCKED") {
        "it is a replica, which takes no writes; if its master has moved, this lasts until its name, a Cluster \
         or its Sentinels lead to the new one"
            .to_string()
    } else if says("MASTERDOWN") {
        "it is a replica, and has lost its master".to_string()
    } else if says("NOREPLICAS") {
        "it takes no writes while too few replicas follow it (min-replicas-to-write)".to_string()
    } else if says("MISCONF") {
        "it cannot save to disk and refuses writes (MISCONF)".to_string()
    } else if says("CLUSTERDOWN") {
        format!("its Cluster does not work now ({text})")
    } else if says("TRYAGAIN") || says("ASK ") {
        "the queue's slot is just moving to another node of the Cluster".to_string()
    } else {
        return None;
    };
    Some(why)
}

/// What a failed handshake means and what to do; `None` if it was no handshake. All of it is
/// waited out: a certificate can be renewed while the agent runs.
pub(super) fn in_words_of_tls(text: &str) -> Option<String> {
    let means = if text.contains("UnknownIssuer") {
        "its certificate is of an authority that is not trusted: give the authority's with '--redis-ca-file'"
    } else if text.contains("not valid for name") || text.contains("NotValidForName") {
        "its certificate is for another name: use a name that stands in it, or say which with '--redis-server-name'"
    } else if text.contains("Expired") || text.contains("certificate expired") {
        "its certificate has expired"
    } else if text.contains("NotValidYet") || text.contains("not valid yet") {
        "its certificate is not valid yet: is this machine's clock right?"
    } else if text.contains("CertificateRequired") {
        "it asks for a client certificate: give one with '--redis-cert-file' and '--redis-key-file', or set \
         'tls-auth-clients no' or 'optional' there"
    } else if text.contains("InvalidContentType") {
        "it does not speak TLS on this port: write redis:// or name its TLS port"
    } else if text.contains("close_notify") {
        return Some("it has closed the connection".to_string());
    } else if text.contains("peer certificate") || text.contains("fatal alert") || text.contains("peer is incompatible")
    {
        "no agreement on TLS"
    } else {
        return None;
    };
    Some(format!("{means} ({text})"))
}
