use std::time::Duration;

use super::row::AnyRow;
use super::*;
use crate::envelope::Format;
use crate::guard::Net;
use crate::orders::Hand;
use crate::policy::FINAL_STATUSES;
use crate::queue::Pop;
use crate::roots::Roots;

/// Words with spaces between them, and variables as `NAME=value`.
fn parsed(line: &str, variables: &[&str]) -> Result<Command, Error> {
    let environment = variables.iter().map(|variable| variable.split_once('=').unwrap());
    let environment = environment.map(|(name, value)| (name.to_owned(), OsString::from(value))).collect();
    parse(line.split_whitespace().map(OsString::from).collect(), &environment)
}

fn redis(url: &str) -> RedisAddress {
    RedisAddress::new(url).unwrap()
}

fn nets(texts: &[&str]) -> Vec<Net> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// The rows of a command, each with its variable.
fn rows(command: &str) -> Vec<&'static dyn AnyRow> {
    super::command(command).unwrap().rows().collect()
}

/// What `run` makes of the options, with a queue.
fn config(options: &str, variables: &[&str]) -> Result<Config, Error> {
    match parsed(&format!("run -oq redis://h {options}"), variables)? {
        Command::Run(config) => Ok(config),
        other => panic!("{other:?}"),
    }
}

fn refused(line: &str, variables: &[&str], words: &[&str]) {
    let message = parsed(line, variables).expect_err(line).to_string();
    for word in words {
        assert!(message.contains(word), "{line}: {message:?} lacks {word:?}");
    }
    assert!(!message.contains("secret"), "{line}: {message:?}");
}

fn refused_option(options: &str, words: &[&str]) {
    refused(&format!("-oq redis://h {options}"), &[], words);
}

#[test]
fn a_queue_url_is_all_that_run_needs() {
    let expected = Command::Run(Config::with_defaults(redis("redis://h:6379")));
    for line in [
        "-oq redis://h:6379",
        "-oq=redis://h:6379",
        "--outbound-queue redis://h:6379",
        "--outbound-queue=redis://h:6379",
        "run -oq redis://h:6379",
        "-oq redis://h:6379 -oqp acapy -oqc redis",
        "-oq redis://h:6379 -oqc aries_cloudagent.transport.outbound.queue.redis:RedisOutboundQueue",
        "-oq redis://h:6379 -oqc aries_cloudagent.transport.outbound.queue.redis.RedisOutboundQueue",
    ] {
        assert_eq!(parsed(line, &[]), Ok(expected.clone()), "{line}");
    }
    assert_eq!(parsed("", &["ACAPY_OUTBOUND_TRANSPORT_QUEUE=redis://h:6379"]), Ok(expected));
    refused("", &[], &["-oq", "ACAPY_OUTBOUND_TRANSPORT_QUEUE"]);
    refused("run", &["ACAPY_OUTBOUND_TRANSPORT_QUEUE="], &["-oq"]);
}

#[test]
fn every_option_of_run_sets_its_field_from_the_command_line_and_from_the_environment() {
    type Set = fn(&mut Config);
    let table: &[(&str, &str, Set)] = &[
        ("--outbound-queue-prefix", "p", |c| c.redis.prefix = "p".into()),
        ("--queue", "acapy_outbound", |c| c.redis.queue = Some("acapy_outbound".into())),
        ("--outbound-queue-class", "redis", |_| {}),
        ("--workers", "9", |c| c.workers = 9),
        ("--endpoint-concurrency", "3", |c| c.endpoint_concurrency = 3),
        ("--in-flight", "300", |c| c.in_flight = 300),
        ("--in-flight-bytes", "3MiB", |c| c.in_flight_bytes = 3 << 20),
        ("--connect-timeout", "200ms", |c| c.connect_timeout = Duration::from_millis(200)),
        ("--timeout", "7s", |c| c.timeout = Duration::from_secs(7)),
        ("--retry-first", "1m", |c| c.retry_first = Duration::from_secs(60)),
        ("--retry-max", "2h", |c| c.retry_max = Duration::from_secs(7200)),
        ("--give-up-after", "7d", |c| c.give_up_after = Duration::from_secs(604_800)),
        ("--attempts", "6", |c| c.attempts = Some(6)),
        ("--final", "404,409", |c| c.final_statuses = vec![404, 409]),
        ("--retryable", "400", |c| c.retryable_statuses = vec![400]),
        ("--keep-dead", "forever", |c| c.keep_dead = None),
        ("--drain-timeout", "0s", |c| c.drain_timeout = Duration::ZERO),
        ("--lease", "3s", |c| c.lease = Duration::from_secs(3)),
        ("--pop", "blpop", |c| c.pop = Pop::Blpop),
        ("--deny-net", "private,self,fd00::/8", |c| c.deny_net = nets(&["private", "self", "fd00::/8"])),
        ("--status-addr", "[::1]:9100", |c| c.status_addr = Some("[::1]:9100".into())),
        ("--id-header", "X-Id", |c| c.id_header = "X-Id".parse().ok()),
        ("--log-format", "bare", |c| c.log_format = LogFormat::Bare),
        ("--ordered", "", |c| c.ordered = true),
        ("--https-only", "", |c| c.https_only = true),
        ("--roots", "system", |c| c.redis.roots = Roots::System),
        ("--proxy-resolves", "no", |c| c.proxy_resolves = false),
    ];
    let asked = rows("run");
    for (name, value, set) in table {
        let mut expected = Config::with_defaults(redis("redis://h"));
        // Bounds that were said shrink what lies under them.
        set(&mut expected);
        expected.workers = expected.workers.min(expected.in_flight / 2);
        expected.endpoint_concurrency = expected.endpoint_concurrency.min(expected.workers);
        assert_eq!(config(&format!("{name} {value}"), &[]).as_ref(), Ok(&expected), "{name}");
        let variable = asked.iter().find(|row| row.name() == *name).unwrap().variable().unwrap();
        let value = if value.is_empty() { "yes" } else { value };
        assert_eq!(config("", &[&format!("{variable}={value}")]).as_ref(), Ok(&expected), "{variable}");
    }
    let bounds = config("--keep-dead 7d --deny-net all --allow-net 10.1.0.0/16,public", &[]).unwrap();
    assert_eq!(bounds.keep_dead, Some(Duration::from_secs(7 * 86_400)));
    assert_eq!((bounds.deny_net, bounds.allow_net), (nets(&["all"]), nets(&["10.1.0.0/16", "public"])));
    // Tested by themselves, and just above.
    let files = [
        "--outbound-queue",
        "--ca-file",
        "--redis-ca-file",
        "--redis-cert-file",
        "--redis-key-file",
        "--redis-server-name",
        "--redis-password-file",
        "--allow-net",
        "--client-cert-file",
        "--client-key-file",
    ];
    for option in asked {
        let covered = files.contains(&option.name()) || table.iter().any(|(name, _, _)| *name == option.name());
        assert!(covered, "{} is not in this table", option.name());
    }
}

#[test]
fn the_queue_is_named_by_ours_or_by_the_variables_of_the_deliverer() {
    let key =
        |line: &str, variables: &[&str]| match parsed(line, variables).unwrap_or_else(|why| panic!("{line}: {why}")) {
            Command::Run(Config { redis, .. }) => (redis.key(), redis.url.shown(), redis.taken.to_string()),
            other => panic!("{other:?}"),
        };
    let found = |key: &str, url: &str, taken: &str| (key.to_owned(), url.to_owned(), taken.to_owned());
    let (server, topic) = ("REDIS_SERVER_URL=redis://r:6379/0", "TOPIC_PREFIX=bob");
    let by_server = "redis://r:6379/0";
    for (line, variables, expected) in [
        ("-oq redis://h", &[][..], found("acapy.outbound_transport", "redis://h", "")),
        ("-oq redis://h --queue bob_outbound", &[], found("bob_outbound", "redis://h", "")),
        ("-oq redis://h --queue q", &["ACAPY_OUTBOUND_TRANSPORT_QUEUE_PREFIX=p"], found("q", "redis://h", "")),
        ("-oq redis://h -oqp p", &["ACAPY_DELIVER_QUEUE=q"], found("p.outbound_transport", "redis://h", "")),
        (
            "",
            &[server],
            found("acapy_outbound", by_server, "Redis by REDIS_SERVER_URL, the queue by the default of TOPIC_PREFIX"),
        ),
        (
            "",
            &[server, topic],
            found("bob_outbound", by_server, "Redis by REDIS_SERVER_URL, the queue by TOPIC_PREFIX"),
        ),
        (
            "",
            &[server, "TOPIC_PREFIX="],
            found("acapy_outbound", by_server, "Redis by REDIS_SERVER_URL, the queue by the default of TOPIC_PREFIX"),
        ),
        ("-oqp p", &[server, topic], found("p.outbound_transport", by_server, "Redis by REDIS_SERVER_URL")),
        ("--queue q", &[server, topic], found("q", by_server, "Redis by REDIS_SERVER_URL")),
        ("-oq redis://h", &[server], found("acapy.outbound_transport", "redis://h", "")),
        ("-oq redis://h", &[server, topic], found("bob_outbound", "redis://h", "the queue by TOPIC_PREFIX")),
    ] {
        assert_eq!(key(line, variables), expected, "{line} {variables:?}");
    }
    refused_option("--queue a -oqp b", &["'--queue'", "'--outbound-queue-prefix'", "leave out one"]);
    refused_option("--queue=", &["'--queue'", "empty"]);
    refused("", &["REDIS_SERVER_URL=http://u:secret@h"], &["variable REDIS_SERVER_URL", "redis://host:6379"]);
    for class in ["aries_cloudagent.transport.outbound.queue.redis:RedisOutboundQueue", "my_queue:Queue", "a.b.Queue"] {
        let variable = format!("ACAPY_OUTBOUND_TRANSPORT_QUEUE={class}");
        let words = ["variable ACAPY_OUTBOUND_TRANSPORT_QUEUE", class, "0.7.1 to 0.7.3", "-oq redis://host:6379"];
        refused("", &[&variable], &words);
        refused("", &[&variable, server], &words);
        assert_eq!(key("-oq redis://h", &[&variable]).1, "redis://h");
    }
    for host in ["localhost:6379", "redis.example.com", "127.0.0.1:6379", "redis:6379"] {
        let message = parsed(&format!("-oq {host}"), &[]).unwrap_err().to_string();
        assert!(message.contains("is not the URL of a Redis"), "{message}");
    }
}

#[test]
fn the_status_pages_of_the_deliverer_want_all_three_of_its_variables() {
    let all = ["STATUS_ENDPOINT_HOST=0.0.0.0", "STATUS_ENDPOINT_PORT=7002", "STATUS_ENDPOINT_API_KEY=secret"];
    let endpoint = config("", &all).unwrap().status_endpoint.unwrap();
    assert_eq!((endpoint.address.as_str(), endpoint.key.as_str()), ("0.0.0.0:7002", "secret"));
    assert!(!format!("{endpoint:?}").contains("secret"));
    let v6 = ["STATUS_ENDPOINT_HOST=::1", all[1], all[2]];
    assert_eq!(config("", &v6).unwrap().status_endpoint.unwrap().address, "[::1]:7002");
    let environment = |variables: &[&str]| -> Environment {
        let pairs = variables.iter().map(|variable| variable.split_once('=').unwrap());
        pairs.map(|(name, value)| (name.to_owned(), OsString::from(value))).collect()
    };
    assert_eq!(unknown_variables(&environment(&all)), Vec::<String>::new());
    for missing in 0..3 {
        let mut two = all.to_vec();
        two.remove(missing);
        assert_eq!(config("", &two).unwrap().status_endpoint, None);
        let said = unknown_variables(&environment(&two));
        assert!(said.len() == 1 && said[0].contains("no status pages") && !said[0].contains("secret"), "{said:?}");
    }
    refused("-oq redis://h", &[all[0], "STATUS_ENDPOINT_PORT=x", all[2]], &["STATUS_ENDPOINT_PORT", "'0.0.0.0:x'"]);
}

#[test]
fn the_command_line_wins_over_the_environment_and_lists_are_not_mixed() {
    let variables =
        ["ACAPY_DELIVER_WORKERS=3", "ACAPY_DELIVER_DENY_NET=private, loopback,", "ACAPY_DELIVER_ORDERED=on"];
    let from_both = config("--workers 4 --deny-net 10.0.0.0/8 --deny-net 192.0.2.1", &variables).unwrap();
    assert_eq!((from_both.workers, from_both.ordered), (4, true));
    assert_eq!(from_both.deny_net, nets(&["10.0.0.0/8", "192.0.2.1"]));
    assert_eq!(config("", &variables).unwrap().deny_net, nets(&["private", "loopback"]));
    for off in ["0", "false", "No", "OFF"] {
        assert!(!config("", &[&format!("ACAPY_DELIVER_ORDERED={off}")]).unwrap().ordered);
    }
    refused("-oq redis://h", &["ACAPY_DELIVER_ORDERED=maybe"], &["variable ACAPY_DELIVER_ORDERED", "'maybe'", "yes"]);
    refused("-oq redis://h", &["ACAPY_DELIVER_WORKERS=x"], &["variable ACAPY_DELIVER_WORKERS", "'x'", "1 to 4096"]);
}

#[test]
fn bad_values_are_refused_with_option_value_and_what_would_be_right() {
    let table: &[(&str, &[&str])] = &[
        ("--workers 0", &["'--workers'", "'0'", "1 to 4096"]),
        ("--workers 5x", &["'--workers'", "'5x'"]),
        ("--workers +5", &["'--workers'"]),
        ("--workers=", &["'--workers'", "''"]),
        ("--workers 99999999999999999999999", &["'--workers'"]),
        ("--workers", &["'--workers'", "needs a value"]),
        ("--workers --ordered", &["'--workers'", "needs a value"]),
        ("--workers -1", &["'--workers'", "needs a value"]),
        ("--workers 1 --workers 2", &["'--workers'", "twice"]),
        ("--ordered --ordered", &["'--ordered'", "twice"]),
        ("--timeout 30", &["'--timeout'", "'30'", "30s"]),
        ("--timeout 1.5s", &["'--timeout'", "200ms"]),
        ("--timeout 0s", &["'--timeout'", "1ms to 24h"]),
        ("--timeout s", &["'--timeout'"]),
        ("--timeout 99999999999999999d", &["'--timeout'"]),
        ("--lease 2s", &["'--lease'", "3s to 1h"]),
        ("--drain-timeout 2h", &["'--drain-timeout'", "0s to 1h"]),
        ("--in-flight-bytes 64M", &["'--in-flight-bytes'", "64MiB"]),
        ("--in-flight-bytes 0", &["'--in-flight-bytes'", "at least 1"]),
        ("--final 200", &["'--final'", "300 to 599"]),
        ("--final 404,", &["'--final'"]),
        ("--final 404 --retryable 404", &["404", "'--final'", "'--retryable'"]),
        ("--pop lpop", &["'--pop'", "peek, blpop"]),
        ("--log-format xml", &["'--log-format'", "full, bare, json"]),
        ("--deny-net 10.0.0.0/33", &["'--deny-net'", "'10.0.0.0/33'"]),
        ("--deny-net example.com", &["'--deny-net'", "private"]),
        ("--allow-net public", &["'--allow-net public'", "restricts nothing", "'--deny-net all'"]),
        ("--keep-dead never", &["'--keep-dead'", "7d", "forever"]),
        ("--allow-net private --deny-net private", &["'private'", "'--allow-net'", "'--deny-net'"]),
        ("--ca-file /nonexistent", &["'--ca-file'", "'/nonexistent'", "cannot be read"]),
        ("--ca-file Cargo.toml", &["'--ca-file'", "PEM"]),
        ("--redis-password-file /nonexistent", &["/nonexistent"]),
        ("--status-addr 9100", &["'--status-addr'", "127.0.0.1:9100"]),
        ("--status-addr 127.0.0.1:99999", &["'--status-addr'"]),
        ("--id-header a:b", &["'--id-header'"]),
        ("--id-header Content-Length", &["'--id-header'", "needs for itself"]),
        ("-oqc kafka", &["'--outbound-queue-class'", "'kafka'", "redis"]),
        ("-oqp=", &["'--outbound-queue-prefix'", "empty"]),
        ("--outbound-queue redis://g", &["'--outbound-queue'", "twice"]),
        ("--status 200", &["'--status'", "'listen'"]),
        ("--wrokers 3", &["'--wrokers'", "did you mean '--workers'"]),
        ("--password=secret", &["'--password'", "--help"]),
        ("-x", &["'-x'"]),
        ("extra", &["'extra'", "'run'"]),
        ("enqueue", &["'enqueue'", "first"]),
    ];
    for (options, words) in table {
        refused_option(options, words);
    }
}

#[test]
fn contradictions_are_refused_and_defaults_give_way_to_bounds() {
    refused_option("--connect-timeout 31s", &["'--connect-timeout'", "31s", "'--timeout'", "30s"]);
    refused_option("--connect-timeout 6s --timeout 5s", &["'--connect-timeout'"]);
    refused_option("--endpoint-concurrency 129", &["'--endpoint-concurrency'", "'--workers'", "128"]);
    refused_option("--workers 2049", &["'--workers'", "'--in-flight'", "2048"]);
    refused_option("--workers 5 --in-flight 9", &["'--workers'", "'--in-flight'"]);
    refused_option("--retry-first 11m", &["'--retry-first'", "'--retry-max'", "10m"]);

    let small = config("--workers 2 --in-flight 8", &[]).unwrap();
    assert_eq!((small.workers, small.endpoint_concurrency, small.in_flight), (2, 2, 8));
    let smaller = config("--in-flight 8", &[]).unwrap();
    assert_eq!((smaller.workers, smaller.endpoint_concurrency), (4, 4));
    let quick = config("--timeout 1s --retry-max 100ms", &[]).unwrap();
    assert_eq!((quick.connect_timeout, quick.retry_first), (Duration::from_secs(1), Duration::from_millis(100)));
}

#[test]
fn queue_urls_are_judged_early_and_never_with_their_password() {
    for url in
        ["redis://h", "redis://u:p@h:1/2", "rediss://h:1", "unix:///s", "redis+unix:///s?db=1", "redis://[::1]:1"]
    {
        parsed(&format!("-oq {url}"), &[]).expect(url);
    }
    let refused_urls = [
        "http://:secret@h",
        "redis://:secret@",
        "redis://:sec/secret@h",
        "redis://default:secret",
        "redis://:secret@h:99999",
        "redis://:secret@h/x",
        "redis://:secret@0.0.0.0",
        "user:secret@h:6379",
        "secret@h",
        "unix://s/x?pass=secret",
        "http:///s?db=x&pass=secret&password=secret",
        "rediss://:secret@h#insecure",
        "rediss://:secret@h#other",
        "h:6379",
        "",
    ];
    for url in refused_urls {
        refused(&format!("-oq={url}"), &[], &["option '--outbound-queue'"]);
        if !url.is_empty() {
            let variable = format!("ACAPY_OUTBOUND_TRANSPORT_QUEUE={url}");
            refused("", &[&variable], &["variable ACAPY_OUTBOUND_TRANSPORT_QUEUE"]);
        }
    }
    refused("-oq redis://:secret@h redis://:secret@g", &[], &["one too many"]);
    refused("redis://:secret@g", &[], &["no command"]);
    refused("-oq redis://:secret@h --outbound-queu=redis://:secret@g", &[], &["'--outbound-queu'"]);
    let debug = format!("{:?}", parsed("-oq redis://u:secret@h", &[]).unwrap());
    assert!(debug.contains("redis://u:***@h") && !debug.contains("secret"), "{debug}");
}

#[test]
fn a_password_comes_from_the_url_or_from_a_file_but_not_from_both() {
    let path = std::env::temp_dir().join(format!("acapy-deliver-password-{}", std::process::id()));
    std::fs::write(&path, "secret\n").unwrap();
    let file = path.display();
    let Ok(Command::Run(config)) = parsed(&format!("-oq redis://h --redis-password-file {file}"), &[]) else {
        panic!()
    };
    assert_eq!(config.redis.password(), Ok(Some("secret".to_owned())));
    refused(&format!("-oq redis://:secret@h --redis-password-file {file}"), &[], &["both"]);
    refused(&format!("-oq redis://u:secret@h --redis-password-file {file}"), &[], &["both"]);
    refused(&format!("-oq redis://u@h?pass=secret --redis-password-file {file}"), &[], &["both"]);
    assert!(parsed(&format!("-oq redis://u@h --redis-password-file {file}"), &[]).is_ok());
    std::fs::write(&path, "\n").unwrap();
    refused(&format!("-oq redis://h --redis-password-file {file}"), &[], &["empty"]);
    std::fs::write(&path, "-----BEGIN CERTIFICATE-----\n").unwrap();
    refused(&format!("-oq redis://h --redis-ca-file {file}"), &[], &["'--redis-ca-file'", "rediss://"]);
    refused("-oq redis://h --redis-server-name h", &[], &["'--redis-server-name'", "rediss://"]);
    refused("-oq rediss://h --redis-server-name a/b", &[], &["'--redis-server-name'", "neither a name"]);
    refused(&format!("-oq rediss://h --redis-cert-file {file}"), &[], &["'--redis-cert-file'", "'--redis-key-file'"]);
    refused_option(&format!("--client-cert-file {file}"), &["'--client-cert-file'", "'--client-key-file'"]);
    refused_option(&format!("--client-key-file {file}"), &["'--client-key-file'", "'--client-cert-file'"]);
    let both = format!("-oq redis://h --client-cert-file {file} --client-key-file {file}");
    let Ok(Command::Run(pair)) = parsed(&both, &[]) else { panic!("{both}") };
    assert_eq!(pair.client_certificate, Some((path.clone(), path.clone())));
    let Ok(Command::Run(config)) = parsed(&format!("-oq rediss://h --redis-ca-file {file} --ca-file {file}"), &[])
    else {
        panic!()
    };
    assert_eq!((config.redis.ca_file.as_ref(), config.ca_file.as_ref()), (Some(&path), Some(&path)));
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn enqueue_takes_its_payload_from_one_place() {
    let enqueue = |line: &str, variables: &[&str]| match parsed(&format!("enqueue -oq redis://h {line}"), variables)? {
        Command::Enqueue(enqueue) => Ok::<_, Error>(enqueue),
        other => panic!("{other:?}"),
    };
    let expected = Enqueue {
        redis: redis("redis://h"),
        endpoint: "http://e".into(),
        format: None,
        headers: vec![],
        payload: Payload::Unsaid,
        count: 1,
    };
    assert_eq!(enqueue("--endpoint http://e", &["ACAPY_DELIVER_COUNT=7"]), Ok(expected));
    // What one call is about stands in that call.
    refused("enqueue -oq redis://h", &["ACAPY_DELIVER_ENDPOINT=http://e"], &["'--endpoint' is missing"]);
    let format = |line: &str| enqueue(&format!("--endpoint http://e {line}"), &[]).map(|enqueue| enqueue.format);
    assert_eq!(format("--format json"), Ok(Some(Format::Json)));
    assert_eq!(format("--format msgpack"), Ok(Some(Format::MessagePack)));
    assert!(format("--format yaml").unwrap_err().to_string().contains("not one of json, msgpack"));
    assert_eq!(enqueue("--endpoint http://e -", &[]).unwrap().payload, Payload::Stdin);
    assert_eq!(enqueue("file --endpoint http://e", &[]).unwrap().payload, Payload::File("file".into()));
    assert_eq!(enqueue("--endpoint http://e --text hi", &[]).unwrap().payload, Payload::Text("hi".into()));
    let headers = enqueue("--endpoint http://e --header A:1 --header B:2", &[]).unwrap().headers;
    assert_eq!(headers, [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "2".to_owned())]);
    refused("enqueue -oq redis://h --endpoint http://e --text a file", &[], &["twice", "'--text'"]);
    refused("enqueue -oq redis://h", &[], &["'--endpoint'"]);
    refused("enqueue --endpoint http://e", &[], &["-oq"]);
    refused("enqueue -oq redis://h --endpoint http://e a b", &[], &["'b'", "one too many"]);
    refused("enqueue -oq redis://h --endpoint http://e --workers 2", &[], &["'--workers'", "'run'"]);
    refused("enqueue -oq redis://h --endpoint http://e --header X=y", &[], &["'--header'", "Name: value"]);
    refused("enqueue -oq redis://h --endpoint http://e --count 0", &[], &["'--count'"]);

    let spaced = ["enqueue", "-oq", "redis://h", "--endpoint", "http://e", "--header", "A: \"b\"", "--text=\"c d\"=e"];
    let Ok(Command::Enqueue(spaced)) = parse(spaced.map(OsString::from).to_vec(), &Environment::new()) else {
        panic!()
    };
    assert_eq!(spaced.headers, [("A".to_owned(), "\"b\"".to_owned())]);
    assert_eq!(spaced.payload, Payload::Text("\"c d\"=e".into()));
    for bad in ["A: secret\r\nB: c", ": secret", "A b: secret", "A: secret\0"] {
        let line = ["enqueue", "-oq", "redis://h", "--endpoint", "http://e", "--header", bad];
        let message = parse(line.map(OsString::from).to_vec(), &Environment::new()).unwrap_err().to_string();
        assert!(message.contains("'--header'") && !message.contains("secret"), "{message}");
    }
}

#[test]
fn listen_and_status_and_check_have_their_options() {
    let listen = |address: &str, (status, close), delay, quiet, count| {
        let delay = Duration::from_millis(delay);
        Ok(Command::Listen(Listen { address: address.into(), status, close, delay, quiet, count }))
    };
    assert_eq!(parsed("listen", &[]), listen("127.0.0.1:8030", (200, 1000), 0, false, None));
    let line = "listen localhost:0 --status 503 --close 1009 --delay 200ms --quiet --count 3";
    assert_eq!(parsed(line, &[]), listen("localhost:0", (503, 1009), 200, true, Some(3)));
    refused("listen --close 200", &[], &["'--close'", "1000 to 4999"]);
    refused("listen 8030", &[], &["'8030'", "127.0.0.1"]);
    refused("listen --status 100", &[], &["'--status'", "200 to 599"]);

    let redis = redis("redis://h");
    let status = Status { redis: redis.clone(), json: true, watch: false, limit: 5 };
    assert_eq!(parsed("status -oq redis://h --json --limit 5", &[]), Ok(Command::Status(status)));
    let status = Status { redis: redis.clone(), json: false, watch: true, limit: 20 };
    assert_eq!(parsed("status -oq redis://h --watch", &[]), Ok(Command::Status(status)));
    let mut config = Config::with_defaults(redis);
    config.deny_net = nets(&["private"]);
    let check = Check { config, endpoint: Some("http://e".into()), repair: Repair::No };
    let line = "check -oq redis://h --endpoint http://e --deny-net private";
    assert_eq!(parsed(line, &[]), Ok(Command::Check(check.clone())));
    assert_eq!(
        parsed(&format!("{line} --repair"), &[]),
        Ok(Command::Check(Check { repair: Repair::Say, ..check.clone() }))
    );
    assert_eq!(
        parsed(&format!("{line} --repair --yes"), &["ACAPY_DELIVER_REPAIR=1"]),
        Ok(Command::Check(Check { repair: Repair::Do, ..check }))
    );
    refused(&format!("{line} --yes"), &[], &["'--yes'", "'--repair'"]);
}

#[test]
fn dead_takes_ids_or_filters_or_all_only_from_the_command_line() {
    let dead = |line: &str| match parsed(&format!("dead {line} -oq redis://h"), &["ACAPY_DELIVER_ENDPOINT=http://x"])? {
        Command::Dead(dead) => Ok::<_, Error>(dead.action),
        other => panic!("{other:?}"),
    };
    let act = |selection, dry| Act { selection, dry };
    let filter = |endpoint: Option<&str>, reason: Option<&str>, limit| Filter {
        endpoint: endpoint.map(str::to_owned),
        reason: reason.map(str::to_owned),
        limit,
    };
    assert_eq!(dead("list"), Ok(DeadAction::List(List { filter: filter(None, None, Some(50)), json: false })));
    let narrow = filter(Some("http://e"), Some("410"), Some(3));
    let line = "list --endpoint http://e --reason 410 --limit 3 --json";
    assert_eq!(dead(line), Ok(DeadAction::List(List { filter: narrow.clone(), json: true })));
    assert_eq!(
        dead("show 0001700000000000"),
        Ok(DeadAction::Show { id: 1_700_000_000_000, payload: false, json: false })
    );
    assert_eq!(dead("show 7 --payload --json"), Ok(DeadAction::Show { id: 7, payload: true, json: true }));
    assert_eq!(dead("replay 7 8"), Ok(DeadAction::Replay(act(Selection::Ids(vec![7, 8]), false))));
    assert_eq!(dead("drop 7 --dry-run"), Ok(DeadAction::Drop(act(Selection::Ids(vec![7]), true))));
    for all in ["--all", ""] {
        let line = format!("replay {all} --endpoint http://e --reason 410 --limit 3");
        assert_eq!(dead(&line), Ok(DeadAction::Replay(act(Selection::All(narrow.clone()), false))));
    }
    assert_eq!(dead("export"), Ok(DeadAction::Export(Filter::default())));

    refused("dead", &[], &["list, show, replay, drop, export"]);
    refused("dead lst", &[], &["'lst'", "did you mean 'list'"]);
    refused("dead --json list", &[], &["right after it"]);
    refused("dead drop -oq redis://h", &[], &["'dead drop'", "--all"]);
    refused("dead drop -oq redis://h", &["ACAPY_DELIVER_ALL=1"], &["'dead drop'", "--all"]);
    refused("dead drop 7 --all -oq redis://h", &[], &["not both"]);
    refused("dead replay 7 --reason x -oq redis://h", &[], &["not both"]);
    refused("dead drop x7 -oq redis://h", &[], &["'x7'", "16 digits"]);
    refused("dead show 12345678901234567 -oq redis://h", &[], &["16 digits"]);
    refused("dead show -oq redis://h", &[], &["needs the id"]);
    refused("dead list --all -oq redis://h", &[], &["'--all'", "'dead list'"]);
}

#[test]
fn the_operators_hands_are_told_whom_they_are_for() {
    let hands = |line: &str| parsed(&format!("{line} -oq redis://h"), &["ACAPY_DELIVER_DRY_RUN=1"]);
    let order = |line: &str| match hands(&format!("endpoint {line}"))? {
        Command::Endpoint(endpoint) => Ok::<_, Error>(endpoint.action),
        other => panic!("{other:?}"),
    };
    let ordered = |hand, origins: &[&str], dry| {
        Ok(EndpointAction::Order { hand, origins: origins.iter().map(|origin| origin.to_string()).collect(), dry })
    };
    let line = "pause HTTP://A/x http://a:80?q wss://[::1]";
    assert_eq!(order(line), ordered(Hand::Pause, &["http://a:80", "wss://[::1]:443"], false));
    assert_eq!(order("try http://a --dry-run"), ordered(Hand::Try, &["http://a:80"], true));
    assert_eq!(order("resume --all"), ordered(Hand::Resume, &[], false));
    assert_eq!(order("list"), Ok(EndpointAction::List { limit: 50, json: false }));
    let act = |selection, dry| HeldAction::Act(Act { selection, dry });
    let held = |line: &str| match hands(line)? {
        Command::Retry(held) | Command::Waiting(held) => Ok::<_, Error>(held.action),
        other => panic!("{other:?}"),
    };
    let filter = |endpoint: Option<&str>, limit| Filter { endpoint: endpoint.map(str::to_owned), reason: None, limit };
    assert_eq!(held("retry now 7 8 --dry-run"), Ok(act(Selection::Ids(vec![7, 8]), true)));
    let line = "retry now --endpoint http://e --limit 3";
    assert_eq!(held(line), Ok(act(Selection::All(filter(Some("http://e"), Some(3))), false)));
    assert_eq!(held("waiting drop --all"), Ok(act(Selection::All(Filter::default()), false)));
    assert_eq!(held("waiting list --json"), Ok(HeldAction::List(List { filter: filter(None, Some(50)), json: true })));

    refused("endpoint pause --all http://a -oq redis://h", &[], &["'--all'", "'endpoint pause'"]);
    refused("endpoint resume --all http://a -oq redis://h", &[], &["not both"]);
    refused("endpoint pause -oq redis://h", &[], &["'endpoint pause' needs an origin"]);
    refused("endpoint pause a.example -oq redis://h", &[], &["a.example", "http://host/"]);
    refused("endpoint pause mailto:a@b -oq redis://h", &[], &["scheme mailto"]);
    // How many is not yet which.
    refused("waiting drop --limit 3 -oq redis://h", &[], &["'waiting drop' needs ids", "'--all'"]);
    refused("retry now 7 --reason x -oq redis://h", &[], &["not both"]);
    refused("retry now 7 --limit 1 -oq redis://h", &[], &["not both"]);
    refused("retry drop 7 -oq redis://h", &[], &["list, now"]);
}

#[test]
fn help_can_be_asked_for_everywhere_and_names_every_option_and_variable() {
    for command in COMMANDS.iter().map(|command| command.name) {
        let Ok(Command::Print(text)) = parsed(&format!("{command} --help"), &[]) else { panic!("{command}") };
        assert_eq!(parsed(&format!("help {command}"), &[]), Ok(Command::Print(text.clone())));
        assert_eq!(parsed(&format!("{command} -h --no-such-thing"), &[]), Ok(Command::Print(text.clone())));
        let words: Vec<&str> = text.split(|c: char| !(c.is_ascii_alphanumeric() || "-_".contains(c))).collect();
        for row in rows(command) {
            assert!(words.contains(&row.name()), "help of {command} lacks {}", row.name());
            if let Some(variable) = row.variable() {
                assert!(words.contains(&variable.as_str()), "help of {command} lacks {variable}");
            }
        }
        for word in words.iter().filter(|word| word.starts_with("--") && !["--help", "--version"].contains(word)) {
            assert!(rows(command).iter().any(|row| row.name() == *word), "help of {command} invents {word}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 92), "help of {command} is too wide");
    }
    let Ok(Command::Print(main)) = parsed("--help", &[]) else { panic!() };
    for command in COMMANDS.iter().map(|command| command.name) {
        assert!(main.contains(&format!("acapy-deliver {command}")) || command == "run", "{command}");
    }
    assert_eq!(parsed("help", &[]), Ok(Command::Print(main)));
    refused("help nonsense", &[], &["'nonsense'"]);
    refused("enqeue --help", &[], &["did you mean 'enqueue'"]);
}

#[test]
fn every_default_is_one_of_the_values_of_its_option() {
    for row in COMMANDS.iter().flat_map(|command| command.rows()) {
        assert_eq!(row.check_default(), Ok(()), "{} {:?}", row.name(), row.default());
    }
    Config::with_defaults(redis("redis://h"));
}

#[test]
fn actions_have_their_options_from_those_of_their_command() {
    for command in COMMANDS {
        for action in command.actions {
            for row in command.rows_of(action) {
                assert!(command.rows().any(|other| other.name() == row.name()), "{} {}", command.name, row.name());
            }
        }
    }
}

#[test]
fn version_stands_alone() {
    let version = Command::Print(format!("acapy-deliver {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(parsed("--version", &[]), Ok(version.clone()));
    assert_eq!(parsed("-V", &[]), Ok(version));
    refused("--version --ordered", &[], &["'--ordered'"]);
    refused("listen --version", &[], &["'--version'"]);
}

#[test]
fn readme_names_every_option_of_run() {
    let Ok(readme) = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")) else {
        return;
    };
    let words: Vec<&str> = readme.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).collect();
    for row in rows("run") {
        assert!(words.contains(&row.name()), "README.md lacks {}", row.name());
    }
}

#[test]
fn help_and_readme_name_the_statuses_that_are_final() {
    let numbers = |text: &str| -> Vec<u16> {
        text.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
    };
    let row = rows("run").into_iter().find(|row| row.name() == "--final").expect("an option of run");
    assert_eq!(numbers(row.help()), FINAL_STATUSES, "--final: {}", row.help());
    let Ok(readme) = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")) else {
        return;
    };
    let table = readme.split_once("## What becomes of an attempt").expect("that section").1;
    let said = table.lines().find(|line| line.ends_with("| dead at once |")).expect("its row of final statuses");
    assert_eq!(numbers(said), FINAL_STATUSES, "README.md: {said}");
}

#[test]
fn misspelt_variables_are_told() {
    let environment = ["ACAPY_DELIVER_WORKER", "ACAPY_DELIVER_WORKERS", "ACAPY_DELIVER_NONSENSE", "ACAPY_WALLET_KEY"];
    let environment = environment.iter().map(|name| ((*name).to_owned(), OsString::from("secret"))).collect();
    let told = unknown_variables(&environment);
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].contains("ACAPY_DELIVER_NONSENSE") && !told[0].contains("mean"), "{told:?}");
    assert!(told[1].contains("did you mean 'ACAPY_DELIVER_WORKERS'"), "{told:?}");
}

#[cfg(unix)]
#[test]
fn what_is_not_utf_8_is_refused_by_place_or_name() {
    use std::os::unix::ffi::OsStringExt;
    let bytes = || OsString::from_vec(vec![0xff]);
    let message = parse(vec![OsString::from("--text"), bytes()], &Environment::new()).unwrap_err().to_string();
    assert!(message.contains("argument 2"), "{message}");
    let environment = Environment::from([("ACAPY_DELIVER_FINAL".to_owned(), bytes())]);
    let line = ["-oq", "redis://h"].map(OsString::from).to_vec();
    let message = parse(line, &environment).unwrap_err().to_string();
    assert!(message.contains("ACAPY_DELIVER_FINAL"), "{message}");
}
