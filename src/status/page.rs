//! `GET /`: one page for people. Made here as a whole, without scripts and without anything from elsewhere; it loads
//! itself anew. It shows counts, origins, errors and options, and no payload, header or credential.
//!
//! Endpoints, errors and reasons are texts of strangers: each goes through [`shown`], which cuts it, makes it
//! printable as in the log, and escapes it. What may be many is cut by whoever fills in the [`View`]; the page
//! says how many more there are.

use std::borrow::Cow;
use std::fmt::{Display, Write as _};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use base64::Engine as _;

use super::figures::KEPT;
use super::minutes::{Counts, REMEMBERED};
use crate::text::{ago, at_ms, is_moving, n_of, spell, utc};

const STYLE: &str = include_str!("page.css");
/// The page loads itself anew so often: long enough to read a line and to select it.
const EVERY: u64 = 10;
/// A text of a stranger is cut after so many characters.
const LONGEST: usize = 160;
/// A chart's size in units of its own: a bar is ten wide.
const BAR: usize = 10;
const HEIGHT: f64 = 60.0;

/// What the page shows.
#[derive(Default)]
pub(super) struct View {
    pub(super) queue: String,
    /// Without its password.
    pub(super) redis: String,
    pub(super) now: Option<SystemTime>,
    pub(super) up_for: Duration,
    /// Why it does not deliver, if it does not.
    pub(super) unready: Option<String>,
    pub(super) redis_away: Option<Duration>,
    /// What Redis told last; `None` if it never has.
    pub(super) told: Option<Told>,
    pub(super) minutes: Vec<Counts>,
    /// Attempts under way, workers, messages held.
    pub(super) here: [usize; 3],
    pub(super) endpoints: Listed<Endpoint>,
    pub(super) options: Vec<(&'static str, String)>,
}

/// What only Redis knows.
#[derive(Default)]
pub(super) struct Told {
    /// Its clock, then.
    pub(super) at: u64,
    /// How long ago, if that is worth saying: it did not answer when it was asked for this page.
    pub(super) age: Option<Duration>,
    pub(super) queued: u64,
    pub(super) in_flight: u64,
    pub(super) waiting: u64,
    pub(super) retry: u64,
    pub(super) dead: u64,
    pub(super) agents: Listed<Agent>,
    /// Dead letters by reason, of so many.
    pub(super) reasons: Listed<(String, u64)>,
    pub(super) dead_looked_at: u64,
}

/// The first lines of a list, and how many there would be.
pub(super) struct Listed<T> {
    pub(super) lines: Vec<T>,
    pub(super) n: usize,
    /// There may be more than were counted.
    pub(super) at_least: bool,
}

impl<T> Default for Listed<T> {
    fn default() -> Listed<T> {
        Listed { lines: Vec::new(), n: 0, at_least: false }
    }
}

/// An endpoint that is not delivered to.
pub(super) struct Endpoint {
    pub(super) origin: String,
    pub(super) state: &'static str,
    /// Messages that wait for it; `None`: not known here.
    pub(super) waiting: Option<u64>,
    pub(super) failures: u64,
    pub(super) next_try: Option<Duration>,
    pub(super) last_error: String,
}

pub(super) struct Agent {
    pub(super) number: u64,
    /// When its lease ends or has ended; `None` if it is not registered.
    pub(super) lease: Option<u64>,
    pub(super) in_flight: u64,
    pub(super) is_this: bool,
}

/// What goes with the page besides the usual headers: nothing is loaded, run, framed or told to others.
pub(super) fn headers() -> &'static str {
    static HEADERS: OnceLock<String> = OnceLock::new();
    HEADERS.get_or_init(|| {
        let hash = ring::digest::digest(&ring::digest::SHA256, STYLE.as_bytes());
        let hash = base64::engine::general_purpose::STANDARD.encode(hash);
        format!(
            "Content-Security-Policy: default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'\r\n\
             X-Content-Type-Options: nosniff\r\nX-Frame-Options: DENY\r\nReferrer-Policy: no-referrer\r\n\
             Cross-Origin-Opener-Policy: same-origin\r\nCross-Origin-Resource-Policy: same-origin\r\n"
        )
    })
}

/// The page.
pub(super) fn render(view: &View) -> String {
    let mut page = String::with_capacity(16 << 10);
    let out = &mut page;
    let queue = shown(&view.queue);
    add(
        out,
        format_args!(
            "<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{queue}: acapy-deliver</title>\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
             <meta http-equiv=\"refresh\" content=\"{EVERY}\"><style>{STYLE}</style></head><body>"
        ),
    );
    head(out, view);
    places(out, view);
    charts(out, &view.minutes);
    endpoints(out, &view.endpoints);
    if let Some(told) = &view.told {
        reasons(out, told);
        agents(out, told);
    }
    options(out, view);
    out.push_str("</body></html>\n");
    page
}

fn head(out: &mut String, view: &View) {
    let (class, state) = match (&view.unready, view.redis_away) {
        (_, Some(away)) => {
            let since = view.now.map(|now| now - away).map(|since| format!(", since {}", utc(since)));
            ("bad", format!("Redis is away for {}{}", spell(away), since.unwrap_or_default()))
        }
        (Some(why), None) => ("wait", shown(why).into_owned()),
        (None, None) => ("good", "delivering".to_owned()),
    };
    let now = view.now.map(utc).unwrap_or_default();
    add(
        out,
        format_args!(
            "<header><h1>acapy-deliver: <bdi>{}</bdi></h1><p class=\"state {class}\">{state}</p>\
             <p class=\"faint\"><bdi>{}</bdi> · {now}, loaded anew every {EVERY} s</p></header>",
            shown(&view.queue),
            shown(&view.redis)
        ),
    );
}

fn places(out: &mut String, view: &View) {
    out.push_str("<section><h2>Messages</h2><div class=\"places\">");
    let told = view.told.as_ref();
    let place = |out: &mut String, name: &str, class: &str, n: Option<u64>| {
        let n = n.map_or_else(|| "–".to_owned(), grouped);
        add(out, format_args!("<div><b class=\"{class}\">{n}</b>{name}</div>"));
    };
    let class = |n: Option<u64>, class| if n.is_some_and(|n| n > 0) { class } else { "" };
    place(out, "queued", "", told.map(|told| told.queued));
    place(out, "in flight", "", told.map(|told| told.in_flight));
    let (waiting, retry, dead) = (told.map(|told| told.waiting), told.map(|told| told.retry), told.map(|t| t.dead));
    place(out, "waiting", class(waiting, "wait"), waiting);
    place(out, "on retry", class(retry, "wait"), retry);
    place(out, "dead", class(dead, "bad"), dead);
    out.push_str("</div>");
    if view.told.is_none() {
        out.push_str("<p class=\"bad\">Redis has not told yet how many messages are where.</p>");
    } else if let Some(age) = told.and_then(|told| told.age) {
        add(out, format_args!("<p class=\"bad\">As Redis told {} ago; it does not answer now.</p>", spell(age)));
    }
    let [attempts, workers, held] = view.here;
    add(
        out,
        format_args!(
            "<p class=\"faint\">This agent holds {} and attempts {attempts} of at most {workers} at once.</p></section>",
            n_of(held as u64, "message")
        ),
    );
}

/// One chart for each outcome, each of its own height: a few dead among thousands delivered are to be seen.
fn charts(out: &mut String, minutes: &[Counts]) {
    out.push_str("<section><h2>Per minute, in the last hour, by this agent</h2><div class=\"charts\">");
    for (n, (class, name)) in [("delivered", "delivered"), ("later", "put off"), ("dead", "dead")].iter().enumerate() {
        let counts: Vec<u64> = minutes.iter().map(|counts| counts[n]).collect();
        let (most, sum) = (counts.iter().max().copied().unwrap_or(0), counts.iter().sum::<u64>());
        let (most_text, sum_text) = (grouped(most), grouped(sum));
        add(
            out,
            format_args!(
                "<figure class=\"{class}\"><figcaption>{name} <span>{sum_text}, at most {most_text} a minute</span></figcaption><svg viewBox=\"0 0 {} {HEIGHT}\" preserveAspectRatio=\"none\" \
                 role=\"img\" aria-label=\"{name} per minute: {sum_text} in the last hour, at most {most_text}\">\
                 <path d=\"{}\"/></svg></figure>",
                REMEMBERED * BAR,
                bars(&counts, most)
            ),
        );
    }
    out.push_str("</div></section>");
}

fn bars(counts: &[u64], most: u64) -> String {
    let mut path = String::new();
    for (n, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        // What happened at all is to be seen.
        let height = (*count as f64 / most as f64 * HEIGHT).max(1.5);
        let (x, y, width) = (n * BAR + 1, HEIGHT - height, BAR - 2);
        let _ = write!(path, "M{x} {y:.1}h{width}V{HEIGHT}h-{width}z");
    }
    path
}

fn endpoints(out: &mut String, endpoints: &Listed<Endpoint>) {
    out.push_str("<section><h2>Endpoints not delivered to</h2>");
    if endpoints.lines.is_empty() {
        out.push_str("<p class=\"faint\">None that is known.</p></section>");
        return;
    }
    table(out, &["endpoint", "state", "#waiting", "#failures", "next try", "last error"]);
    for endpoint in &endpoints.lines {
        let next = match endpoint.next_try {
            None => String::new(),
            Some(next) if next.is_zero() => "now".to_owned(),
            Some(next) => format!("in {}", spell(next)),
        };
        row(
            out,
            &[
                ("", false, bdi(&endpoint.origin)),
                ("state", false, endpoint.state.to_owned()),
                ("waiting", true, endpoint.waiting.map(grouped).unwrap_or_default()),
                ("failures", true, grouped(endpoint.failures)),
                ("next try", false, next),
                ("last error", false, bdi(&endpoint.last_error)),
            ],
        );
    }
    end_table(out, endpoints, "endpoint");
}

fn reasons(out: &mut String, told: &Told) {
    if told.reasons.lines.is_empty() {
        return;
    }
    let of = match told.dead_looked_at < told.dead {
        true => format!(" <span class=\"faint\">(of the last {})</span>", grouped(told.dead_looked_at)),
        false => String::new(),
    };
    add(out, format_args!("<section><h2>Dead letters by reason{of}</h2>"));
    table(out, &["reason", "#messages"]);
    for (reason, messages) in &told.reasons.lines {
        row(out, &[("", false, bdi(reason)), ("messages", true, grouped(*messages))]);
    }
    end_table(out, &told.reasons, "reason");
}

fn agents(out: &mut String, told: &Told) {
    out.push_str("<section><h2>Agents on this queue</h2>");
    table(out, &["agent", "started", "lease", "#in flight"]);
    let now = at_ms(told.at);
    for agent in &told.agents.lines {
        let lease = match agent.lease {
            Some(lease) if lease >= told.at => format!("alive, ends {}", ago(at_ms(lease), now)),
            Some(lease) => format!("<span class=\"bad\">ended {}</span>", ago(at_ms(lease), now)),
            None => "<span class=\"bad\">not registered</span>".to_owned(),
        };
        let this = if agent.is_this { " (this one)" } else { "" };
        row(
            out,
            &[
                ("", false, format!("{:016}{this}", agent.number)),
                ("started", false, ago(at_ms(agent.number / 1000), now)),
                ("lease", false, lease),
                ("in flight", true, grouped(agent.in_flight)),
            ],
        );
    }
    end_table(out, &told.agents, "agent");
}

fn options(out: &mut String, view: &View) {
    add(
        out,
        format_args!("<section><h2>Version {}, up for {}</h2><dl>", env!("CARGO_PKG_VERSION"), spell(view.up_for)),
    );
    for (name, value) in &view.options {
        add(out, format_args!("<div><dt>{name}</dt><dd>{}</dd></div>", bdi(value)));
    }
    out.push_str("</dl></section>");
}

/// Begins a table; headings that begin with `#` are of numbers.
fn table(out: &mut String, headings: &[&str]) {
    out.push_str("<table><thead><tr>");
    for heading in headings {
        match heading.strip_prefix('#') {
            Some(number) => add(out, format_args!("<th class=\"n\">{number}</th>")),
            None => add(out, format_args!("<th>{heading}</th>")),
        }
    }
    out.push_str("</tr></thead><tbody>");
}

/// A row of HTML by the names that its cells have where there are no headings; whether a cell is a number.
fn row(out: &mut String, cells: &[(&str, bool, String)]) {
    out.push_str("<tr>");
    for (name, is_number, html) in cells {
        let class = if *is_number { " class=\"n\"" } else { "" };
        match *name {
            "" => add(out, format_args!("<td{class}>{html}</td>")),
            name => add(out, format_args!("<td{class} data-name=\"{name}\"><span>{html}</span></td>")),
        }
    }
    out.push_str("</tr>");
}

fn end_table<T>(out: &mut String, listed: &Listed<T>, what: &str) {
    out.push_str("</tbody></table>");
    let more = listed.n.saturating_sub(listed.lines.len()) as u64;
    if more > 0 {
        let at_least = if listed.at_least { "at least " } else { "" };
        let s = if more == 1 { "" } else { "s" };
        add(out, format_args!("<p class=\"faint\">and {at_least}{} more {what}{s}</p>", grouped(more)));
    }
    out.push_str("</section>");
}

fn add(out: &mut String, html: std::fmt::Arguments) {
    let _ = out.write_fmt(html);
}

/// A stranger's text that turns nothing around it, whichever way it is written.
fn bdi(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("<bdi>{}</bdi>", shown(text)) }
}

/// A text as HTML, wherever it stands: cut, printable, escaped.
fn shown(text: &str) -> Cow<'_, str> {
    let is_plain = |c: char| !is_moving(c) && !matches!(c, '&' | '<' | '>' | '"' | '\'' | '`');
    // Bytes are at least as many as characters.
    if text.len() <= LONGEST && text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut html = String::with_capacity(LONGEST + 64);
    for (n, c) in text.chars().enumerate() {
        if n == LONGEST {
            html.push('…');
            break;
        }
        match c {
            c if is_moving(c) => html.extend(c.escape_default()),
            c if is_plain(c) => html.push(c),
            c => {
                let _ = write!(html, "&#{};", u32::from(c));
            }
        }
    }
    Cow::Owned(html)
}

/// `1234567` as `1,234,567`.
fn grouped(n: impl Display) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// So many lines of a list are shown.
pub(super) const LINES: usize = KEPT;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strangers_text_is_cut_printable_and_breaks_out_of_nothing() {
        for (text, html) in [
            ("http://plain:80", "http://plain:80".to_owned()),
            ("<script>alert('1')</script>", "&#60;script&#62;alert(&#39;1&#39;)&#60;/script&#62;".to_owned()),
            ("\" onload=x & `", "&#34; onload=x &#38; &#96;".to_owned()),
            ("\u{202e}gpj\n\u{0}", "\\u{202e}gpj\\n\\u{0}".to_owned()),
            (&"é".repeat(LONGEST), "é".repeat(LONGEST)),
            (&"x".repeat(5000), format!("{}…", "x".repeat(LONGEST))),
        ] {
            assert_eq!(shown(text), html);
        }
    }

    #[test]
    fn numbers_are_grouped_and_bars_are_as_high_as_their_counts() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(bars(&[0, 10, 5, 0, 1_000_000], 1_000_000).matches('z').count(), 3);
        assert_eq!(bars(&[4, 2], 4), "M1 0.0h8V60h-8zM11 30.0h8V60h-8z");
        assert_eq!(bars(&[0; 60], 0), "");
    }

    #[test]
    fn a_page_of_hostile_lists_is_bounded_and_says_how_many_more_there_are() {
        let hostile = "<img src=x onerror=alert(1)>\u{202e}".repeat(200);
        let line = || Endpoint {
            origin: hostile.clone(),
            state: "down",
            waiting: Some(u64::MAX),
            failures: u64::MAX,
            next_try: Some(Duration::MAX),
            last_error: hostile.clone(),
        };
        let view = View {
            queue: hostile.clone(),
            redis: hostile.clone(),
            now: Some(SystemTime::now()),
            unready: Some(hostile.clone()),
            minutes: vec![[u64::MAX / 100, 1, 2]; REMEMBERED],
            endpoints: Listed { lines: (0..LINES).map(|_| line()).collect(), n: 1000, at_least: true },
            told: Some(Told {
                reasons: Listed { lines: vec![(hostile.clone(), 3); LINES], n: 21, at_least: false },
                ..Told::default()
            }),
            options: vec![("option", hostile.clone())],
            ..View::default()
        };
        let page = render(&view);
        assert!(page.contains("and at least 980 more endpoints") && page.contains("and 1 more reason<"), "{page}");
        assert!(!page.contains("<img") && !page.contains('\u{202e}'), "{page}");
        // Nothing is styled, scripted or loaded but by the one style sheet that the policy names.
        assert!(!page.contains(" style=") && !page.contains("<script"), "{page}");
        assert!(page.len() < 100 << 10, "{}", page.len());
    }
}
