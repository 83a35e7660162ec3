//! What Redis's errors say, and what that means in our own words. Nothing here knows a server or a connection: what
//! an error is to an agent, by what came before, is `server`'s to say.

/// An error as the server wrote it, code first; the client's own words for errors of its own.
pub(super) fn wire_text(error: &redis::RedisError) -> String {
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
    let refuses_us = ["NOAUTH", "WRONGPASS", "WRONGTYPE"];
    let text = wire_text(error);
    is_answer(error)
        && !is_elsewhere(&text)
        && lacks(&text).is_none()
        && !refuses_us.iter().any(|code| text.contains(code))
}

/// Whether a server of a Cluster says that a key is not its own. Inside a script, servers before 7 wrap it
/// in a sentence, and those after have one of their own.
pub(super) fn is_elsewhere(text: &str) -> bool {
    text.contains("MOVED ") || text.contains("non local key")
}

/// A code by which a server says that it cannot do anything now. Inside a script, servers before 7 wrap the code in
/// a sentence.
struct Lack {
    code: &'static str,
    /// Whether another server may have the queue by now: after a failover the name may lead elsewhere.
    may_be_elsewhere: bool,
    /// Whether it is the same when one logs in: then waiting mends that too.
    at_log_in: bool,
    why: &'static str,
}

const REPLICA: &str = "it is a replica, which takes no writes; if its master has moved, this lasts until its name, a \
                       Cluster or its Sentinels lead to the new one";
const MOVING: &str = "the queue's slot is just moving to another node of the Cluster";

/// Of several, the first says why.
#[rustfmt::skip]
static LACKS: [Lack; 11] = [
    Lack { code: "LOADING", may_be_elsewhere: true, at_log_in: true, why: "it is still loading its data" },
    Lack { code: "OOM ", may_be_elsewhere: false, at_log_in: true, why: "it is full (maxmemory reached)" },
    Lack { code: "READONLY", may_be_elsewhere: true, at_log_in: true, why: REPLICA },
    Lack { code: "UNBLOCKED", may_be_elsewhere: true, at_log_in: false, why: REPLICA },
    Lack { code: "MASTERDOWN", may_be_elsewhere: true, at_log_in: true, why: "it is a replica, and has lost its master" },
    Lack { code: "NOREPLICAS", may_be_elsewhere: true, at_log_in: false, why: "it takes no writes while too few replicas follow it (min-replicas-to-write)" },
    Lack { code: "MISCONF", may_be_elsewhere: false, at_log_in: false, why: "it cannot save to disk and refuses writes (MISCONF)" },
    Lack { code: "CLUSTERDOWN", may_be_elsewhere: true, at_log_in: false, why: "its Cluster does not work now" },
    Lack { code: "TRYAGAIN", may_be_elsewhere: false, at_log_in: false, why: MOVING },
    Lack { code: "ASK ", may_be_elsewhere: false, at_log_in: false, why: MOVING },
    Lack { code: "BUSY", may_be_elsewhere: false, at_log_in: true, why: "it is busy with a script, or with a command of a module" },
];

fn lacks(text: &str) -> Option<&'static Lack> {
    LACKS.iter().find(|lack| text.contains(lack.code))
}

/// Why a server can do nothing now, of what it says itself; all of it is waited out.
pub(super) fn not_now(text: &str) -> Option<String> {
    lacks(text).map(|lack| match lack.code {
        "CLUSTERDOWN" | "BUSY" => format!("{} ({text})", lack.why),
        _ => lack.why.to_string(),
    })
}

/// Whether the queue may be another server's by now.
pub(super) fn may_be_elsewhere(text: &str) -> bool {
    LACKS.iter().any(|lack| lack.may_be_elsewhere && text.contains(lack.code))
}

/// Whether a server that said so when we logged in may let us in later.
pub(super) fn may_log_in_later(text: &str) -> bool {
    LACKS.iter().any(|lack| lack.at_log_in && text.contains(lack.code)) || text.contains("max number of clients")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_can_do_nothing_now_is_told_from_one_that_refuses() {
        // Inside a script, as servers before 7 wrap it, and since.
        for text in [
            "ERR Error running script (call to f_0): @user_script: 9: @user_script: 9: -READONLY You can't write",
            "READONLY You can't write against a read only replica. script: 0, on @user_script:9.",
        ] {
            assert!(not_now(text).is_some_and(|why| why.contains("replica")) && may_be_elsewhere(text), "{text}");
        }
        let busy = "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.";
        assert!(not_now(busy).is_some_and(|why| why.contains("busy with a script")) && may_log_in_later(busy));
        assert!(!may_be_elsewhere(busy) && may_be_elsewhere("LOADING Redis is loading the dataset in memory"));
        assert!(
            may_log_in_later("ERR max number of clients reached") && not_now("ERR max number of clients").is_none()
        );
        for text in ["NOPERM this user has no permissions", "ERR unknown command", "WRONGPASS invalid"] {
            assert!(not_now(text).is_none() && !may_be_elsewhere(text) && !may_log_in_later(text), "{text}");
        }
    }
}
