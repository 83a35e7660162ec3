//! Ways to a Redis that lets not everybody in: TLS with a CA of one's own, passwords, ACL users,
//! unix sockets. A real redis-server, with certificates made here.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;
use std::{fs, thread};

use rcgen::{CertificateParams, date_time_ymd};

use crate::support::{Agent, Answer, Authority, Redis, SOON, Sink, TempDir, eventually, run_to_end, wire};

fn host(redis: &Redis) -> String {
    redis.address().split(':').next().unwrap().to_string()
}

#[test]
fn a_message_goes_through_a_redis_that_speaks_tls() {
    let redis = Redis::with(&["user agent on >secret ~* &* +@all"]);
    let authority = Authority::new();
    let address = authority.serve_tls(&redis, authority.certify(&[&host(&redis)], |_| {}), "no");
    let sink = Sink::new(|_| Answer::ok());
    let password = authority.path().join("password");
    fs::write(&password, "secret\n").unwrap();
    let (url, ca, password) = (format!("rediss://agent@{address}"), authority.file(), password.display().to_string());
    let identity = ["-oq", &url, "--redis-ca-file", &ca, "--redis-password-file", &password];
    let enqueue = ["enqueue", "--endpoint", &sink.url(), "--text", "hello", "--count", "20"];
    let output = run_to_end(&[&enqueue[..], &identity].concat());
    assert!(output.status.success(), "{output:?}");
    let agent = Agent::start_at(&url, &[&identity[2..], &["--status-addr", "127.0.0.1:0"]].concat());
    eventually("all are delivered", SOON, || sink.n_delivered() == 20);
    redis.wait_empty(SOON);
    assert!(!agent.log().contains("secret"), "{}", agent.log());
    // It is TLS that it went through.
    let clients: String = redis::cmd("CLIENT").arg("LIST").query(&mut redis.client()).unwrap();
    let port = format!(":{}", address.rsplit(':').next().unwrap());
    assert!(
        clients.lines().filter(|line| line.contains(&format!("{port} ")) && line.contains("user=agent")).count() >= 2,
        "{clients}"
    );
}

#[test]
fn a_redis_reached_by_its_tls_port_is_refused_at_its_other_port_too() {
    let redis = Redis::start();
    let authority = Authority::new();
    let address = authority.serve_tls(&redis, authority.certify(&[&host(&redis)], |_| {}), "no");
    let url = format!("rediss://{address}");
    let _agent = Agent::start_at(&url, &["--redis-ca-file", &authority.file(), "--retry-first", "200ms"]);
    for own in [&address, &redis.address()] {
        redis.push(&wire::envelope(&format!("http://{own}/"), b"x"));
    }
    eventually("both are dead", SOON, || redis.counts().dead == 2);
    for dead in redis.dead() {
        assert!(dead.history.contains("the agent's own Redis"), "{}", dead.history);
    }
}

/// An agent that cannot agree with Redis says why, and waits; it takes the bundled roots unless told otherwise.
#[track_caller]
fn check_trouble(
    names: &[&str],
    change: impl FnOnce(&mut CertificateParams),
    clients: &str,
    with_ca: bool,
    says: &[&str],
) {
    let redis = Redis::start();
    let authority = Authority::new();
    let own = host(&redis);
    let names: Vec<&str> = names.iter().map(|name| if *name == "own" { own.as_str() } else { name }).collect();
    let address = authority.serve_tls(&redis, authority.certify(&names, change), clients);
    let ca = authority.file();
    let options = if with_ca { vec!["--redis-ca-file", &ca] } else { vec![] };
    let mut agent = Agent::start_at(&format!("rediss://{address}"), &options);
    agent.wait_log("Redis cannot be used");
    let log = agent.log();
    for word in says {
        assert!(log.contains(word), "no {word:?} in:\n{log}");
    }
    assert!(log.contains(&address), "{log}");
    assert!(agent.is_running());

    // Mended while it waits, which it does not everywhere need a restart for.
    if with_ca {
        let (certificate, key) = authority.certify(&[&own], |_| {});
        let mut command = redis::cmd("CONFIG");
        command.arg("SET").arg("tls-cert-file").arg(certificate.display().to_string());
        command.arg("tls-key-file").arg(key.display().to_string()).arg("tls-auth-clients").arg("no");
        command.exec(&mut redis.client()).unwrap();
        agent.wait_log("Redis can be used again");
    }
}

#[test]
fn a_certificate_of_an_unknown_authority_is_named_and_the_option_with_it() {
    check_trouble(&["own"], |_| {}, "no", false, &["not trusted", "--redis-ca-file", "UnknownIssuer"]);
}

#[test]
fn a_certificate_for_another_name_is_named() {
    check_trouble(&["redis.example"], |_| {}, "no", true, &["for another name", "redis.example"]);
}

#[test]
fn an_expired_certificate_is_named() {
    let expired = |params: &mut CertificateParams| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    };
    check_trouble(&["own"], expired, "no", true, &["has expired"]);
}

#[test]
fn a_redis_that_wants_a_client_certificate_is_told_apart() {
    check_trouble(&["own"], |_| {}, "yes", true, &["client certificate", "--redis-cert-file", "tls-auth-clients"]);
}

#[test]
fn a_client_certificate_is_shown_and_read_anew_at_each_connection() {
    let redis = Redis::start();
    let (authority, strangers) = (Authority::new(), Authority::new());
    // Its certificate has a name that nothing leads to.
    let address = authority.serve_tls(&redis, authority.certify(&["redis.example"], |_| {}), "yes");
    // In files of its own; at first they are of an authority that this Redis does not know.
    let own = TempDir::new("client");
    let (certificate, key) = (own.path().join("client.pem"), own.path().join("client.key"));
    let issue = |authority: &Authority| {
        let (new_certificate, new_key) = authority.certify(&["client"], |_| {});
        fs::copy(new_certificate, &certificate).unwrap();
        fs::copy(new_key, &key).unwrap();
    };
    issue(&strangers);
    let (ca, certificate_file, key_file) =
        (authority.file(), certificate.display().to_string(), key.display().to_string());
    let options = [
        "--redis-ca-file",
        &ca,
        "--redis-cert-file",
        &certificate_file,
        "--redis-key-file",
        &key_file,
        "--redis-server-name",
        "redis.example",
    ];
    let sink = Sink::new(|_| Answer::ok());
    let mut agent = Agent::start_at(&format!("rediss://{address}"), &options);
    agent.wait_log("Redis cannot be used");
    issue(&authority);
    agent.wait_log("Redis can be used again");
    redis.push(&wire::envelope(&sink.url(), b"x"));
    redis.wait_empty(SOON);
    // One half of another pair, as in the midst of a change: that is waited out.
    let whole = fs::read(&key).unwrap();
    fs::copy(strangers.certify(&["client"], |_| {}).1, &key).unwrap();
    redis::cmd("CLIENT").arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"]).exec(&mut redis.client()).unwrap();
    agent.wait_log("the key is not that of the certificate");
    fs::write(&key, whole).unwrap();
    redis.push(&wire::envelope(&sink.url(), b"y"));
    redis.wait_empty(SOON);
    assert!(agent.is_running() && sink.n_delivered() == 2, "{}", agent.log());
}

#[test]
fn tls_to_a_port_without_it_is_told() {
    let redis = Redis::start();
    let authority = Authority::new();
    let agent = Agent::start_at(&format!("rediss://{}", redis.address()), &["--redis-ca-file", &authority.file()]);
    agent.wait_log("does it speak TLS on this port?");
}

#[test]
fn a_unix_socket_with_user_and_password_will_do() {
    let redis = Redis::with(&["user agent on >secret ~* &* +@all"]);
    let sink = Sink::new(|_| Answer::ok());
    let url = format!("unix://{}?user=agent&pass=secret", redis.socket().display());
    redis.push(&wire::envelope(&sink.url(), b"hello"));
    let agent = Agent::start_at(&url, &[]);
    eventually("it is delivered", SOON, || sink.n_delivered() == 1);
    redis.wait_empty(SOON);
    assert!(!agent.log().contains("secret"), "{}", agent.log());
}

#[test]
fn a_password_changed_in_its_file_takes_effect_without_a_restart() {
    let redis = Redis::with(&["user agent on >first ~* &* +@all"]);
    let dir = TempDir::new("password");
    let file = dir.path().join("password");
    fs::write(&file, "first").unwrap();
    let url = format!("redis://agent@{}", redis.address());
    let mut agent = Agent::start_at(&url, &["--redis-password-file", &file.display().to_string()]);
    eventually("it is registered", SOON, || redis.agents().len() == 1);
    fs::write(&file, "second\n").unwrap();
    let mut client = redis.client();
    redis::cmd("ACL").arg(&["SETUSER", "agent", "resetpass", ">second"]).exec(&mut client).unwrap();
    redis::cmd("CLIENT").arg(&["KILL", "USER", "agent"]).exec(&mut client).unwrap();
    let sink = Sink::new(|_| Answer::ok());
    redis.push_all(wire::numbered(&sink.url(), 10));
    redis.wait_empty(SOON);
    assert!(agent.is_running(), "{}", agent.log());
}

#[test]
fn connections_log_in_anew_before_a_password_that_was_changed_in_its_file_expires() {
    let redis = Redis::with(&["user agent on >first ~* &* +@all"]);
    let dir = TempDir::new("password");
    let file = dir.path().join("password");
    fs::write(&file, "first").unwrap();
    let url = format!("redis://agent@{}", redis.address());
    let options = ["--redis-password-file", &file.display().to_string(), "--lease", "3s"];
    let agent = Agent::start_at(&url, &options);
    eventually("it is registered", SOON, || redis.agents().len() == 1);
    let mut client = redis.client();
    let stats = |client: &mut redis::Connection| -> String {
        let all: String = redis::cmd("INFO").arg("commandstats").query(client).unwrap();
        let auth = all.lines().find(|line| line.starts_with("cmdstat_auth:")).unwrap_or_default();
        auth.split(',').filter(|part| !part.contains("usec")).collect::<Vec<_>>().join(",")
    };
    let connections = |redis: &Redis| {
        let list: String = redis::cmd("CLIENT").arg("LIST").query(&mut redis.client()).unwrap();
        let ids = list.lines().filter(|line| line.contains("user=agent"));
        ids.map(|line| line.split(' ').next().unwrap().to_string()).collect::<BTreeSet<_>>()
    };
    eventually("both threads are connected", SOON, || connections(&redis).len() == 2);
    let before = connections(&redis);
    redis::cmd("CONFIG").arg("RESETSTAT").exec(&mut client).unwrap();
    // First the file, and then Redis: it is refused, and tried on.
    fs::write(&file, "second\n").unwrap();
    agent.wait_log("refuses the password that is now in '--redis-password-file'");
    redis::cmd("ACL").arg(&["SETUSER", "agent", ">second"]).exec(&mut client).unwrap();
    let accepted = |stats: &str| {
        let number = |name: &str| -> u32 {
            let part = stats.split([',', ':']).find_map(|part| part.strip_prefix(name));
            part.and_then(|n| n.parse().ok()).unwrap_or(0)
        };
        number("calls=") - number("failed_calls=")
    };
    eventually("both log in anew", SOON, || accepted(&stats(&mut client)) >= 2);
    redis::cmd("ACL").arg(&["SETUSER", "agent", "<first"]).exec(&mut client).unwrap();
    let sink = Sink::new(|_| Answer::ok());
    redis.push_all(wire::numbered(&sink.url(), 10));
    redis.wait_empty(SOON);
    assert_eq!(connections(&redis), before);
    assert!(agent.complaints().iter().all(|line| line.contains("refuses the password")), "{}", agent.log());
}

#[test]
fn a_password_that_changes_not_quite_at_once_is_waited_for_by_an_agent_that_was_in() {
    let redis = Redis::with(&["user agent on >first ~* &* +@all"]);
    let dir = TempDir::new("password");
    let file = dir.path().join("password");
    fs::write(&file, "first").unwrap();
    let url = format!("redis://agent@{}", redis.address());
    let mut agent = Agent::start_at(&url, &["--redis-password-file", &file.display().to_string()]);
    eventually("it is registered", SOON, || redis.agents().len() == 1);
    let sink = Sink::new(|_| Answer::ok());
    let mut client = redis.client();
    let mut acl = |args: &[&str]| redis::cmd("ACL").arg(args).exec(&mut client).unwrap();
    let n_waits = |agent: &Agent| agent.log().matches("waited out").count();
    // The file is emptied, goes, is behind Redis, is ahead of it; then both are the same again.
    let steps: [(&str, Option<&str>, &str, &str); 4] = [
        ("is empty", Some(""), "first", "first"),
        ("cannot be read", None, "first", "first"),
        ("refused the user name or password", Some("first"), "second", "second"),
        ("refused the user name or password", Some("third"), "second", "third"),
    ];
    for (said, in_file, in_redis, at_last) in steps {
        let n_before = n_waits(&agent);
        match in_file {
            Some(password) => fs::write(&file, password).unwrap(),
            None => fs::remove_file(&file).unwrap(),
        }
        acl(&["SETUSER", "agent", "resetpass", &format!(">{in_redis}")]);
        redis::cmd("CLIENT").arg(&["KILL", "USER", "agent"]).exec(&mut redis.client()).unwrap();
        eventually("it says so", SOON, || !agent.is_running() || n_waits(&agent) > n_before);
        // It would have ended by now, or does at its next try.
        thread::sleep(Duration::from_millis(500));
        assert!(agent.is_running(), "{}", agent.log());
        assert!(agent.log().lines().rev().take(3).any(|line| line.contains(said)), "{said:?}: {}", agent.log());
        fs::write(&file, at_last).unwrap();
        acl(&["SETUSER", "agent", "resetpass", &format!(">{at_last}")]);
        redis.push(&wire::envelope(&sink.url(), said.as_bytes()));
        redis.wait_empty(SOON);
    }
    // Once or twice for each: one connection may notice after the other is back.
    assert!(agent.complaints().len() <= 16, "{:#?}", agent.complaints());
}

/// The line of scripts/OPERATING.md that begins like this.
fn line_of_operating(beginning: &str) -> &'static str {
    let text = include_str!("../../scripts/OPERATING.md");
    let line = text.lines().find(|line| line.starts_with(beginning));
    line.unwrap_or_else(|| panic!("scripts/OPERATING.md has no line {beginning:?}"))
}

/// The rule of scripts/OPERATING.md for `run`, word by word, with its password, and the keys of the queue that these tests serve.
fn rule() -> Vec<String> {
    let of_ours = |word: &str| {
        let word = word.replace("acapy_outbound_retry", "acapy.outbound_retry");
        word.replace("acapy_outbound", "acapy.outbound_transport")
    };
    line_of_operating("ACL SETUSER acapy-deliver ").split(' ').skip(3).map(of_ours).collect()
}

#[test]
fn an_agent_needs_no_more_than_the_acl_rule_that_is_shown() {
    let redis = Redis::start();
    let mut client = redis.client();
    redis::cmd("ACL").arg("SETUSER").arg("acapy-deliver").arg(rule()).exec(&mut client).unwrap();
    // What the prototype left is adopted; the default user pushes what comes from elsewhere.
    let sink = Sink::origins(4, |request| match request.target.as_str() {
        "/gone" => Answer::status(410),
        "/busy" => Answer::status(500),
        "/hang" => Answer::Hang,
        "/slow" => Answer::status(503).header("Retry-After", "1"),
        _ => Answer::ok(),
    });
    let prototype = wire::envelope(&sink.url(), b"from the prototype");
    redis::cmd("ZADD").arg("acapy.outbound_retry").arg(1).arg(prototype).exec(&mut client).unwrap();
    redis.push_all(wire::numbered(&sink.url(), 200));
    for (path, url) in ["gone", "busy", "slow"].iter().zip(&sink.urls()[1..]) {
        redis.push(&wire::envelope(&format!("{url}/{path}"), path.as_bytes()));
    }
    redis.push(b"not an envelope");
    redis.push_all(wire::numbered("http://127.0.0.1:1", 3));
    let url = format!("redis://acapy-deliver:secret@{}", redis.address());
    let options = [
        "--lease",
        "3s",
        "--retry-first",
        "200ms",
        "--retry-max",
        "400ms",
        "--give-up-after",
        "3s",
        "--keep-dead",
        "1s",
        "--status-addr",
        "127.0.0.1:0",
    ];
    let mut agent = Agent::start_at(&url, &options);
    eventually("what can be delivered is", SOON, || sink.copies().len() >= 201);
    // One that dies with a message in flight, to be recovered.
    redis.push(&wire::envelope(&format!("{}/hang", sink.url()), b"hang"));
    eventually("the message is in flight", SOON, || redis.counts().inflight >= 1);
    agent.kill9();
    sink.behave(|request| match request.target.as_str() {
        "/busy" => Answer::status(500),
        "/slow" => Answer::status(503),
        _ => Answer::ok(),
    });
    let mut successor = Agent::start_at(&url, &options);
    successor.wait_log("is dead:");
    eventually("the recovered one is delivered", SOON, || sink.copies().contains_key("hang"));
    // What fails for long dies, and dead letters past their keeping go: all moves of `run` but ordered mode's.
    let address = successor.log();
    let address = address.split("status is served at http://").nth(1).unwrap().split('/').next().unwrap().to_string();
    eventually("the status server sees the queue", SOON, || page(&address).contains("acapy_deliver_queue_messages"));
    eventually("nothing waits any more", SOON * 2, || {
        let counts = redis.counts();
        (counts.inflight, counts.waiting, counts.retry) == (0, 0, 0)
    });
    successor.term();
    assert_eq!(successor.wait_exit(SOON), Some(0));

    // In order, and with the other way to wait.
    for option in ["--ordered", "--pop=blpop"] {
        sink.behave(|_| Answer::ok());
        let before = sink.n_delivered();
        let more = if option == "--ordered" { vec!["--ordered"] } else { vec!["--pop", "blpop"] };
        let mut agent = Agent::start_at(&url, &more);
        eventually("it is registered", SOON, || !redis.agents().is_empty());
        redis.push_all(wire::numbered(&sink.url(), 20));
        eventually("all arrive", SOON, || sink.n_delivered() >= before + 20);
        agent.term();
        assert_eq!(agent.wait_exit(SOON), Some(0));
    }

    // The operator's commands, with what that file adds for them.
    let more = line_of_operating("`check`, `status`, `dead`, `endpoint`, ").split('`').nth(13).unwrap();
    redis::cmd("ACL")
        .arg("SETUSER")
        .arg("acapy-deliver")
        .arg(more.split(' ').collect::<Vec<_>>())
        .exec(&mut client)
        .unwrap();
    redis.push_all(wire::numbered(&sink.url(), 5));
    for command in [
        &["status"][..],
        &["dead", "list"],
        &["endpoint", "pause", "http://a"],
        &["endpoint", "resume", "http://a"],
        &["endpoint", "try", "http://a"],
        &["endpoint", "list"],
        &["retry", "now", "--all"],
        &["waiting", "drop", "--all"],
        &["check"],
        &["enqueue", "--endpoint", "http://a/", "--text", "x"],
    ] {
        let output = run_to_end(&[command, &["-oq", &url]].concat());
        assert!(output.status.code().is_some_and(|code| code <= 1), "{command:?}: {output:?}");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(!said.contains("NOPERM") && !said.contains("mend  permissions"), "{command:?}: {said}");
    }

    // Redis remembers what it refused.
    let refused: Vec<redis::Value> = redis::cmd("ACL").arg("LOG").query(&mut client).unwrap();
    assert!(refused.is_empty(), "refused under the rule: {refused:?}");
}

/// The metrics of an agent; empty if it does not answer.
fn page(address: &str) -> String {
    use std::io::{Read, Write};
    let mut text = String::new();
    if let Ok(mut stream) = std::net::TcpStream::connect(address) {
        let _ = stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n");
        let _ = stream.read_to_string(&mut text);
    }
    text
}

/// The rule names what the moves and the client use, and nothing that they do not.
#[test]
fn the_acl_rule_that_is_shown_has_no_command_too_many() {
    let mut used = BTreeSet::new();
    // What the moves of `run` call, by the names between the quotes.
    let queue = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/queue/redis/scripts");
    let figures = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/status/figures.lua");
    let scripts = fs::read_dir(queue).unwrap().map(|entry| entry.unwrap().path());
    let scripts = scripts.chain([figures]).filter(|path| path.extension().is_some_and(|extension| extension == "lua"));
    for script in scripts {
        let text = fs::read_to_string(script).unwrap();
        for (before, after) in [("redis.call('", '\''), ("all('", '\'')] {
            used.extend(text.split(before).skip(1).map(|rest| rest.split(after).next().unwrap().to_lowercase()));
        }
    }
    assert!(used.len() > 15 && used.contains("zadd"), "{used:?}");
    // What the threads send themselves.
    for name in [
        "evalsha",
        "eval",
        "blmove",
        "brpoplpush",
        "blpop",
        "lpush",
        "rpush",
        "type",
        "info",
        "config|get",
        "client|reply",
        // Named by `some_waiting`, which is told which end.
        "zrangebylex",
        "zrevrangebylex",
    ] {
        used.insert(name.to_string());
    }
    let allowed: BTreeSet<String> =
        rule().iter().filter_map(|word| word.strip_prefix('+')).map(str::to_string).collect();
    let too_many: Vec<_> = allowed.difference(&used).collect();
    assert!(too_many.is_empty(), "the rule allows what nothing uses: {too_many:?}");
    // BRPOPLPUSH is for servers before 6.2 and BLPOP for --pop blpop alone.
    let missing: Vec<_> = used.difference(&allowed).filter(|name| !["brpoplpush"].contains(&name.as_str())).collect();
    assert!(missing.is_empty(), "the rule lacks {missing:?}");
}

#[test]
fn the_roots_of_the_system_are_those_that_the_environment_names_for_redis_too() {
    let redis = Redis::start();
    let authority = Authority::new();
    let address = authority.serve_tls(&redis, authority.certify(&[&host(&redis)], |_| {}), "no");
    let url = format!("rediss://{address}");
    let run = |roots: &str, variable: &str, value: &str| {
        let mut command = Agent::command();
        command.args(["check", "-oq", &url, "--roots", roots]);
        command.env_remove("SSL_CERT_FILE").env_remove("SSL_CERT_DIR").env(variable, value);
        let output = command.output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let answers = |said: &str| said.lines().any(|line| line.contains("Redis") && line.contains(" answers; "));
    let said = run("both", "SSL_CERT_FILE", &authority.file());
    assert!(answers(&said), "{said}");
    assert!(said.contains(" bundled, 1 of the system (1 of them not bundled)"), "{said}");
    let said = run("system", "SSL_CERT_FILE", &authority.file());
    assert!(answers(&said) && said.contains("roots         0 bundled, 1 of the system"), "{said}");
    let directory = authority.path().join("roots");
    fs::create_dir(&directory).unwrap();
    fs::copy(authority.file(), directory.join("own.pem")).unwrap();
    let said = run("system", "SSL_CERT_DIR", &directory.display().to_string());
    assert!(answers(&said), "{said}");
    // Beside it a file that holds nothing is said.
    fs::write(directory.join("empty"), "no PEM").unwrap();
    let mut command = Agent::command();
    command.args(["check", "-oq", &url]).env("SSL_CERT_DIR", &directory);
    let output = command.env("SSL_CERT_FILE", directory.join("empty")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("note  roots") && said.contains("that file holds no PEM certificate"), "{said}");
    let said = run("bundled", "SSL_CERT_FILE", &authority.file());
    assert!(!answers(&said) && said.contains("an authority that is not trusted"), "{said}");
    // What is not there is said, and ends nothing while there are others.
    let said = run("both", "SSL_CERT_FILE", "/nowhere/ca.pem");
    assert!(said.contains(" bundled, 0 of the system") && said.contains("/nowhere/ca.pem"), "{said}");
    let said = run("system", "SSL_CERT_FILE", "/nowhere/ca.pem");
    assert!(said.contains("mend") && said.contains("option '--roots': there are no roots of the system"), "{said}");
}
