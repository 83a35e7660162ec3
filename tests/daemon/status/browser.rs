//! A real Chromium without a window, told what to do through its debugging pipe. It has a profile of its own,
//! and is meant for a network namespace that has loopback alone, so that nothing it may want to tell anybody
//! goes out. Killed when it is dropped.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::{Value, json};

use crate::support::TempDir;

/// On a machine busy with other tests it takes its time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Its process, with one tab.
pub struct Browser {
    child: Child,
    stdin: ChildStdin,
    messages: Receiver<Value>,
    next: u64,
    session: String,
    /// What came and was not waited for.
    events: Vec<Value>,
    _profile: TempDir,
}

impl Browser {
    pub fn start() -> Browser {
        let profile = TempDir::new("chromium");
        // The two ends of its debugging pipe are files 3 and 4.
        let script = "exec chromium \"$@\" 3<&0 4>&1 >/dev/null 2>\"$LOG\"";
        let mut child = Command::new("sh")
            .args(["-c", script, "chromium", "--headless=new", "--remote-debugging-pipe", "--no-sandbox"])
            .args(["--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-sync"])
            .args(["--disable-component-update", "--disable-default-apps", "--disable-extensions", "--no-first-run"])
            .args(["--disable-breakpad", "--hide-scrollbars", "--force-color-profile=srgb", "--no-proxy-server"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .env("LOG", profile.path().join("log"))
            .env("HOME", profile.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh can be started");
        let (sender, messages) = channel();
        let mut pipe = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            let mut message = Vec::new();
            while pipe.read_until(0, &mut message).is_ok_and(|n| n > 0) {
                message.pop();
                let parsed = serde_json::from_slice(&message).expect("Chromium speaks JSON");
                if sender.send(parsed).is_err() {
                    return;
                }
                message.clear();
            }
        });
        let stdin = child.stdin.take().unwrap();
        let (session, events) = (String::new(), Vec::new());
        let mut browser = Browser { child, stdin, messages, next: 0, session, events, _profile: profile };
        let targets = browser.tell("Target.getTargets", json!({}));
        let tab = targets["targetInfos"].as_array().unwrap().iter().find(|target| target["type"] == "page").unwrap();
        let attached = browser.tell("Target.attachToTarget", json!({"targetId": tab["targetId"], "flatten": true}));
        browser.session = attached["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.tell(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// A command and its answer.
    #[track_caller]
    pub fn tell(&mut self, method: &str, params: Value) -> Value {
        self.next += 1;
        let mut message = json!({"id": self.next, "method": method, "params": params});
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        let sent = self.stdin.write_all(format!("{message}\0").as_bytes());
        assert!(sent.is_ok(), "Chromium has ended, or could not be started: run scripts/test, which installs it");
        let id = json!(self.next);
        let mut answer = self.next_where(|message| message["id"] == id);
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].take()
    }

    /// The next event of this name, also one that has come already.
    #[track_caller]
    pub fn wait_for(&mut self, event: &str) -> Value {
        if let Some(at) = self.events.iter().position(|other| other["method"] == event) {
            return self.events.remove(at);
        }
        self.next_where(|message| message["method"] == event)
    }

    #[track_caller]
    fn next_where(&mut self, is_it: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + PATIENCE;
        loop {
            let message = self.messages.recv_timeout(until.saturating_duration_since(Instant::now()));
            let message = message.expect("Chromium answers; is it installed? run scripts/test, which does that");
            if is_it(&message) {
                return message;
            }
            self.events.push(message);
        }
    }

    /// Events of this name that have come since they were last asked for.
    pub fn events(&mut self, name: &str) -> Vec<Value> {
        self.events.extend(self.messages.try_iter());
        self.events.extract_if(.., |event| event["method"] == name).collect()
    }

    /// Loads a page as a screen of this size and scheme (`light`, `dark`) shows it.
    pub fn open(&mut self, url: &str, (width, height): (u32, u32), scheme: &str) {
        let screen = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.tell("Emulation.setDeviceMetricsOverride", screen);
        let scheme = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.tell("Emulation.setEmulatedMedia", scheme);
        self.events("Page.loadEventFired");
        self.tell("Page.navigate", json!({"url": url}));
        self.wait_for("Page.loadEventFired");
    }

    /// What an expression comes to on the page.
    #[track_caller]
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let answer = self.tell("Runtime.evaluate", json!({"expression": expression, "returnByValue": true}));
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// A PNG of the page, as high as it is, but at most so high.
    pub fn picture(&mut self, at_most: u64) -> Vec<u8> {
        let size = self.evaluate("[innerWidth, document.documentElement.scrollHeight]");
        let height = size[1].as_u64().unwrap().min(at_most);
        let clip = json!({"x": 0, "y": 0, "width": size[0], "height": height, "scale": 1});
        let picture = json!({"format": "png", "captureBeyondViewport": true, "clip": clip});
        let picture = self.tell("Page.captureScreenshot", picture);
        base64::prelude::BASE64_STANDARD.decode(picture["data"].as_str().unwrap()).unwrap()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Its own processes end when it does.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let log = std::fs::read_to_string(self._profile.path().join("log")).unwrap_or_default();
            eprintln!("--- Chromium said:\n{log}");
        }
    }
}
