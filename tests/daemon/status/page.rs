//! The page for people: what it shows, of whom, how soon, and how it looks in a real browser.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use super::browser::Browser;
use super::{ask_as, get, start, status_address};
use crate::support::{Agent, Answer, Redis, SOON, Sink, eventually, ms, run_to_end, wire};

const PHONE: (u32, u32) = (390, 844);
const DESKTOP: (u32, u32) = (1280, 800);

/// Set by a test that runs itself again in a network namespace of its own.
const INSIDE: &str = "ACAPY_DELIVER_TEST_PAGE_INSIDE";
/// A directory for the pictures (scripts/status-page).
const PICTURES: &str = "STATUS_PAGE_PICTURES";

fn page(address: std::net::SocketAddr) -> String {
    let (status, body) = get(address, "/");
    assert_eq!(status, 200, "{body}");
    body
}

/// The page once it says this.
fn page_with(address: std::net::SocketAddr, texts: &[&str]) -> String {
    let mut seen = String::new();
    let what = format!("the page says {texts:?}");
    // What Redis told is up to four seconds old.
    eventually(&what, SOON, || {
        seen = page(address);
        texts.iter().all(|text| seen.contains(text))
    });
    seen
}

/// So many endpoints that failed, of names and errors that want to break out, as other agents left them; and as many
/// dead letters.
fn fill_with_hostile(redis: &Redis, n: u64) {
    const NAMES: [&str; 5] = [
        "http://<script>document.title='broken'</script>:80",
        "http://\"'><img src=x onerror=\"document.title='broken'\">:80",
        "http://\u{202e}moc.live\u{2066}evil:80",
        "http://</bdi></td></table></body><h1>broken</h1>:80",
        "http://שלום.العربية.example:80",
    ];
    let mut client = redis.client();
    let key = |name: &str| redis.key(name);
    let mut pipe = redis::pipe();
    let hour = 3_600_000;
    let now: (u64, u64) = redis::cmd("TIME").query(&mut client).unwrap();
    let now = now.0 * 1000;
    for i in 0..n {
        let (waiting, dead) = (format!("{:016}", now * 1000 + i), format!("{:016}", now * 1000 + n + i));
        let long = if i % 7 == 0 { "x".repeat(3000) } else { String::new() };
        let name = format!("{}{long}{i}", NAMES[i as usize % NAMES.len()]);
        let error = format!("connect: <b>\u{202e}refused</b>\n\u{1b}[31m \"{}\"", "e".repeat(i as usize % 700));
        pipe.hset(key("messages"), &waiting, wire::envelope("http://127.0.0.1:1/", b"secret-payload")).ignore();
        pipe.zadd(key("waiting"), format!("{name}\n{waiting}"), 0).ignore();
        // The first have most waiting, so that each kind of name is seen.
        for more in (i + 1)..20 {
            let id = format!("{:016}", now * 1000 + 100_000 + i * 20 + more);
            pipe.hset(key("messages"), &id, wire::envelope("http://127.0.0.1:1/", b"secret-payload")).ignore();
            pipe.zadd(key("waiting"), format!("{name}\n{id}"), 0).ignore();
        }
        pipe.zadd(key("lanes"), &name, now + hour).ignore();
        pipe.hset(key("failures"), &name, format!("{} f {error}", i + 1)).ignore();
        pipe.hset(key("messages"), &dead, wire::envelope("http://127.0.0.1:1/", b"secret-payload")).ignore();
        pipe.zadd(key("dead"), &dead, now).ignore();
        pipe.hset(key("history"), &dead, format!("1 1 {now} <i>reason</i> \u{2067}{i}")).ignore();
    }
    pipe.exec(&mut client).unwrap();
}

#[test]
fn the_page_shows_where_messages_are_and_of_whom_but_no_secret() {
    let redis = Redis::with(&["requirepass sesame"]);
    let sink = Sink::new(|request| match request.target.as_str() {
        "/gone?token=hush" => Answer::status(410),
        "/busy" => Answer::status(500),
        _ => Answer::ok(),
    });
    let (_agent, address) = start(&redis, &["--retry-first", "1h", "--retry-max", "1h", "--endpoint-concurrency", "7"]);
    redis.push_all(wire::numbered(&sink.url(), 5));
    redis.push(&wire::envelope(&format!("{}/gone?token=hush", sink.url()), b"secret-payload"));
    redis.push(&wire::envelope_with(&format!("{}/busy", sink.url()), &[("x-api-key", "hidden")], b"secret-payload"));
    redis.push(&wire::envelope("http://user:hunter2@127.0.0.1:1/path?token=hush", b"secret-payload"));
    let shown = page_with(
        address,
        &[
            "http://127.0.0.1:1<",
            "410",
            "(this one)",
            "<b class=\"bad\">1</b>dead",
            "<b class=\"wait\">1</b>waiting",
            "<b class=\"wait\">1</b>on retry",
            "<b class=\"\">0</b>queued",
            "delivered per minute: 5 in the last hour",
            "put off per minute: 2 in the last hour",
            "dead per minute: 1 in the last hour",
            "<dt>endpoint-concurrency</dt><dd><bdi>7</bdi></dd>",
            "<p class=\"state good\">delivering</p>",
            env!("CARGO_PKG_VERSION"),
        ],
    );
    for secret in ["sesame", "hush", "hunter2", "secret-payload", "hidden", "/path"] {
        assert!(!shown.contains(secret), "{secret} is in:\n{shown}");
    }
    let (status, head, body) = ask_as(address, "HEAD / HTTP/1.1\r\n\r\n");
    assert_eq!((status, body.as_str()), (200, ""));
    for header in [
        "Content-Security-Policy: default-src 'none'; style-src 'sha256-",
        "frame-ancestors 'none'",
        "X-Content-Type-Options: nosniff",
        "Referrer-Policy: no-referrer",
        "Cache-Control: no-store",
        "Content-Type: text/html; charset=utf-8",
    ] {
        assert!(head.contains(header), "no {header:?} in:\n{head}");
    }
}

#[test]
fn with_thousands_of_failing_endpoints_the_page_is_quick_and_bounded() {
    let mut redis = Redis::start();
    fill_with_hostile(&redis, 3000);
    let (agent, address) = start(&redis, &[]);
    let shown = page_with(address, &["and at least 2,980 more endpoints", "and at least 1,980 more reasons"]);
    assert!(shown.contains("(of the last 2,000)"), "{shown}");
    let (mut slowest, mut largest) = (ms(0), 0);
    for _ in 0..20 {
        let asked = Instant::now();
        largest = largest.max(page(address).len());
        slowest = slowest.max(asked.elapsed());
    }
    eprintln!("with 3,000 failing endpoints: at most {largest} bytes, after at most {slowest:?}");
    assert!(slowest < ms(1500) && largest < 64 << 10, "{slowest:?}, {largest} bytes");

    // Away: what is known is shown, with the time since when, and nobody waits.
    redis.kill9();
    agent.wait_log("Redis cannot be used");
    let shown = page_with(address, &["Redis is away for ", ", since 20", "it does not answer now"]);
    assert!(shown.contains("more endpoints") && shown.contains("<b class=\"bad\">3,000</b>dead"), "{shown}");
    let asked = Instant::now();
    page(address);
    assert!(asked.elapsed() < ms(1000), "{:?}", asked.elapsed());
    redis.restart();
    page_with(address, &["<p class=\"state good\">delivering</p>"]);
}

#[test]
fn a_paused_endpoint_is_on_the_page_whether_something_waits_for_it_or_not() {
    let mut redis = Redis::start();
    let sink = Sink::new(|_| Answer::ok());
    let (agent, address) = start(&redis, &[]);
    let with_waiting = sink.url().trim_end_matches('/').to_string();
    for origin in [&with_waiting, "http://quiet.example:80"] {
        let output = run_to_end(&["endpoint", "pause", "-oq", &redis.url(), origin]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
    agent.wait_log("paused by an operator");
    redis.push(&wire::envelope(&sink.url(), b"x"));
    let line = |origin: &str, waiting: &str| {
        format!(
            "<td><bdi>{origin}</bdi></td><td data-name=\"state\"><span>paused</span></td>\
             <td class=\"n\" data-name=\"waiting\"><span>{waiting}</span></td>"
        )
    };
    let (waits, quiet) = (line(&with_waiting, "1"), line("http://quiet.example:80", ""));
    page_with(address, &[&waits, &quiet]);
    assert_eq!(sink.n_requests(), 0);
    // It is known while Redis is away, too.
    redis.kill9();
    agent.wait_log("Redis cannot be used");
    page_with(address, &[&quiet, &waits, "Redis is away for"]);
}

#[test]
fn an_agent_that_has_never_seen_redis_has_a_page_too() {
    let agent = Agent::start_at("redis://127.0.0.1:1", &["--status-addr", "127.0.0.1:0"]);
    let address = status_address(&agent);
    let shown = page_with(address, &["Redis is away for "]);
    assert!(shown.contains("Redis has not told yet") && shown.contains("None that is known."), "{shown}");
}

/// What a real browser makes of a page that it has loaded.
fn look(browser: &mut Browser, url: &str, screen: (u32, u32), scheme: &str, picture: &str) -> String {
    browser.open(url, screen, scheme);
    let seen = browser.evaluate(
        "({width: document.documentElement.scrollWidth, inner: innerWidth, title: document.title,
           loaded: performance.getEntriesByType('resource').length, scripts: document.scripts.length,
           images: document.images.length, headings: document.querySelectorAll('h1').length,
           background: getComputedStyle(document.body).backgroundColor, text: document.body.innerText})",
    );
    let what = format!("{picture} in {scheme} at {screen:?}: {seen}");
    // Nothing sticks out to the side.
    assert_eq!(seen["width"].as_u64(), Some(u64::from(screen.0)), "{what}");
    assert_eq!(seen["inner"].as_u64(), Some(u64::from(screen.0)), "{what}");
    // The style sheet is the one that the policy names, and follows the scheme.
    let background = if scheme == "dark" { "rgb(20, 23, 27)" } else { "rgb(246, 247, 249)" };
    assert_eq!(seen["background"], background, "{what}");
    // No name has become an element, and nothing was loaded.
    for (count, expected) in [("loaded", 0), ("scripts", 0), ("images", 0), ("headings", 1)] {
        assert_eq!(seen[count].as_u64(), Some(expected), "{count}: {what}");
    }
    assert_ne!(seen["title"], "broken", "{what}");
    let complaints = browser.events("Log.entryAdded");
    assert!(complaints.is_empty(), "{complaints:?} of {what}");
    let png = browser.picture(3000);
    if let Some(directory) = std::env::var_os(PICTURES) {
        let name = format!("{picture}-{scheme}-{}.png", screen.0);
        fs::write(PathBuf::from(directory).join(name), png).unwrap();
    }
    seen["text"].as_str().unwrap().to_owned()
}

#[test]
fn a_real_browser_shows_the_page_on_phone_and_desktop_by_day_and_night_and_nothing_breaks_out_of_it() {
    if !is_inside("a_real_browser_shows_the_page_on_phone_and_desktop_by_day_and_night_and_nothing_breaks_out_of_it") {
        return;
    }
    let mut browser = Browser::start();
    let screens = [(PHONE, "light"), (PHONE, "dark"), (DESKTOP, "light"), (DESKTOP, "dark")];

    let redis = Redis::start();
    let sink = Sink::new(|request| match request.target.as_str() {
        "/gone" => Answer::status(410),
        "/busy" => Answer::status(500),
        _ => Answer::ok(),
    });
    let (_agent, address) = start(&redis, &["--retry-first", "1h", "--retry-max", "1h"]);
    redis.push_all(wire::numbered(&sink.url(), 1500));
    for n in 1..=3 {
        redis.push(&wire::envelope(&format!("{}/gone", sink.url()), b"x"));
        redis.push(&wire::envelope(&format!("{}/busy", sink.url()), b"x"));
        redis.push(&wire::envelope(&format!("http://127.0.0.1:{n}/"), b"x"));
        redis.push(&wire::envelope("gopher://agent.example/", b"x"));
    }
    let url = format!("http://{address}/");
    page_with(address, &["http://127.0.0.1:3<", "gopher", "410", "1,500 in the last hour"]);
    for (screen, scheme) in screens {
        let text = look(&mut browser, &url, screen, scheme, "page");
        assert!(text.contains("http://127.0.0.1:1") && text.contains("refused"), "{text}");
    }
    // By itself it is loaded anew.
    browser.events("Page.loadEventFired");
    browser.wait_for("Page.loadEventFired");
    // Whatever got into it could not run.
    let planted = "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title=1\">'); \
                   document.body.appendChild(document.createElement('script')).textContent = 'document.title=1'; 0";
    browser.evaluate(planted);
    eventually("the policy has stopped what was planted", SOON, || browser.events("Log.entryAdded").len() >= 2);
    assert_ne!(browser.evaluate("document.title"), "1");

    let mut redis = Redis::start();
    fill_with_hostile(&redis, 1000);
    let (agent, address) = start(&redis, &[]);
    let url = format!("http://{address}/");
    page_with(address, &["and 980 more endpoints"]);
    browser.events("Log.entryAdded");
    for (screen, scheme) in screens {
        let text = look(&mut browser, &url, screen, scheme, "hostile");
        assert!(text.contains("and 980 more endpoints") && text.contains("<script>document.title"), "{text}");
        assert!(text.contains("\\u{202e}") && text.contains("\\n\\u{1b}[31m"), "{text}");
    }
    redis.kill9();
    agent.wait_log("Redis cannot be used");
    page_with(address, &["it does not answer now"]);
    for (screen, scheme) in screens {
        let text = look(&mut browser, &url, screen, scheme, "away");
        assert!(text.contains("Redis is away for") && text.contains("more endpoints"), "{text}");
    }
}

#[test]
#[ignore = "takes a quarter of an hour: scripts/status-page, which makes the README's picture of it"]
fn a_quarter_of_an_hour_on_the_page() {
    if !is_inside("a_quarter_of_an_hour_on_the_page") {
        return;
    }
    const MINUTES: u64 = 15;
    let redis = Redis::start();
    let sink = Sink::new(|request| match request.target.as_str() {
        "/gone" => Answer::status(410),
        "/busy" => Answer::status(500),
        _ => Answer::ok(),
    });
    let (_agent, address) = start(&redis, &["--attempts", "3"]);
    let down: Vec<String> = (1..=4).map(|n| format!("http://127.0.0.1:{n}/")).collect();
    let begun = Instant::now();
    for second in 0.. {
        if begun.elapsed().as_secs() > MINUTES * 60 {
            break;
        }
        let wave = (second as f64 / 60.0).sin() * 60.0 + (second as f64 / 17.0).sin() * 25.0 + 100.0;
        redis.push_all((0..wave as u32).map(|_| wire::envelope(&sink.url(), b"hello")));
        if second % 10 == 0 {
            redis.push(&wire::envelope(&format!("{}/busy", sink.url()), b"x"));
            redis.push(&wire::envelope(&down[second as usize / 10 % down.len()], b"x"));
        }
        if second % 150 == 0 {
            redis.push(&wire::envelope(&format!("{}/gone", sink.url()), b"x"));
            redis.push(&wire::envelope("gopher://agent.example/", b"x"));
        }
        eventually("the next second", SOON, || begun.elapsed().as_secs() > second);
    }
    let mut browser = Browser::start();
    for (screen, scheme) in [(PHONE, "dark"), (DESKTOP, "light")] {
        look(&mut browser, &format!("http://{address}/"), screen, scheme, "quarter");
    }
}

/// False outside of a network namespace that has nothing but loopback, after the test of this name has been run
/// in one, and passed.
fn is_inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        let routes = fs::read_to_string("/proc/net/route").unwrap();
        assert!(routes.lines().count() <= 1, "this is no empty namespace:\n{routes}");
        return true;
    }
    let mut inside = Command::new("unshare");
    inside.arg("--net");
    if fs::metadata("/proc/self").map(|meta| std::os::unix::fs::MetadataExt::uid(&meta)).unwrap_or(1) != 0 {
        inside.arg("--map-root-user");
    }
    inside.args(["sh", "-c", "ip link set lo up && exec \"$@\"", "sh"]).arg(std::env::current_exe().unwrap());
    inside.args([&format!("status::page::{test}"), "--exact", "--nocapture", "--include-ignored"]).env(INSIDE, "1");
    let output = inside.output().expect("unshare (util-linux) can be started");
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    // Its summary is not that of the whole run.
    let said = said.replace("test result:", "inside:");
    assert!(output.status.success(), "{test} failed in its namespace, or none may be made:\n{said}");
    println!("{said}");
    false
}
