//! The .deb and the .rpm on a system that runs systemd: what an administrator does with them, and that no
//! message is lost by it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use super::machine::Machine;
use super::packages;
use crate::support::{Answer, Redis, SOON, Sink, TempDir, eventually, ms, wire};

const ENVIRONMENT: &str = "/etc/acapy-deliver/environment";
/// Of an instance that an administrator adds.
const INSTANCE: &str = "/etc/acapy-deliver/another";

fn file_name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_string()
}

/// Two revisions of a package, and the names of their files.
fn two_revisions(kind: &str, into: &Path) -> [String; 2] {
    ["1", "2"].map(|revision| file_name(&packages(&[kind, "--revision", revision], into)[0]))
}

fn main_pid(machine: &Machine, unit: &str) -> String {
    machine.does(&format!("systemctl show --property MainPID --value {unit}")).trim().to_string()
}

/// What was installed, is told its queue, and started: as a user of its own, with the unit's restrictions.
fn is_told_its_queue(machine: &Machine, redis: &Redis) {
    assert_eq!(machine.does(&format!("stat -c '%a %U %G' {ENVIRONMENT}")).trim(), "640 root acapy-deliver");
    assert_eq!(machine.tries("systemctl is-active acapy-deliver").1.trim(), "inactive");
    assert!(machine.does("getent passwd acapy-deliver").contains("/nonexistent:/usr/sbin/nologin"));
    machine.does(&format!("echo 'ACAPY_OUTBOUND_TRANSPORT_QUEUE={}' >>{ENVIRONMENT}", redis.url()));
    machine.does("systemctl enable --now acapy-deliver 2>/dev/null");
    eventually("the agent is registered", SOON, || redis.agents().len() == 1);
    let user = machine.does(&format!("stat -c %U /proc/{}", main_pid(machine, "acapy-deliver")));
    assert_eq!(user.trim(), "acapy-deliver");
    let line = machine.does(&format!("tr '\\0' ' ' </proc/{}/cmdline", main_pid(machine, "acapy-deliver")));
    assert_eq!(line.trim(), "acapy-deliver run --log-format bare");
    let program = machine.does(&format!("readlink /proc/{}/exe", main_pid(machine, "acapy-deliver")));
    assert_eq!(program.trim(), "/usr/bin/acapy-deliver");
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Upgraded while messages are pushed and delivered: the new version runs, also of an instance that an
/// administrator has added, and each message arrives once.
fn is_upgraded_under_load(machine: &Machine, redis: &Redis, upgrade: &str) {
    let sink = Sink::new(|_| Answer::ok().after(ms(4)));
    let (stop, n_pushed) = (AtomicBool::new(false), AtomicUsize::new(0));
    machine.does(&format!("ln -s environment {INSTANCE} && systemctl start acapy-deliver@another"));
    let pids = || [main_pid(machine, "acapy-deliver"), main_pid(machine, "acapy-deliver@another")];
    let old = pids();
    eventually("both are registered", SOON, || redis.agents().len() == 2);
    thread::scope(|scope| {
        // Also when the test fails.
        let _stopped = StopOnDrop(&stop);
        scope.spawn(|| {
            // Somewhat more than is delivered, so that the agent is never idle.
            while !stop.load(Ordering::SeqCst) {
                let n = n_pushed.load(Ordering::SeqCst);
                redis.push_all((n..n + 100).map(|i| wire::envelope(&sink.url(), format!("message {i}").as_bytes())));
                n_pushed.store(n + 100, Ordering::SeqCst);
                thread::sleep(ms(40));
            }
        });
        eventually("messages are delivered", SOON, || sink.n_delivered() > 300);
        machine.does(upgrade);
        let n_upgraded = sink.n_delivered();
        eventually("deliveries go on", SOON, || sink.n_delivered() > n_upgraded + 300);
    });
    let new = pids();
    assert!(!new.contains(&"0".to_string()) && old.iter().all(|pid| !new.contains(pid)), "{old:?} became {new:?}");
    let n_pushed = n_pushed.load(Ordering::SeqCst);
    eventually("all messages arrive", SOON * 2, || sink.copies().len() == n_pushed);
    redis.wait_empty(SOON);
    // The old one finished what was under way, so that nothing had to be sent again.
    assert_eq!(sink.n_delivered(), n_pushed);
    let log = machine.does("journalctl --no-pager -u acapy-deliver");
    assert!(log.contains("stopped after"), "{log}");
    assert!(!log.contains("ERROR") && !log.contains("Failed with result"), "{log}");
}

/// Removed: it is stopped, and what is in Redis waits there.
fn is_removed(machine: &Machine, redis: &Redis, remove: &str) {
    machine.does(remove);
    assert_eq!(redis.agents().len(), 0);
    assert_eq!(machine.tries("systemctl is-active acapy-deliver").1.trim(), "inactive");
    assert!(!machine.tries("ls /usr/bin/acapy-deliver").0);
}

/// All files that last, but what package managers and systemd note of everything.
fn files(machine: &Machine) -> BTreeSet<String> {
    let noted = ["/var/lib/dpkg/", "/var/log/", "/var/cache/", "/var/lib/systemd/", "/var/tmp/", "/tmp/"];
    let found = machine.does("find / -xdev -mindepth 1");
    found.lines().filter(|file| !noted.iter().any(|place| file.starts_with(place))).map(String::from).collect()
}

#[test]
fn a_deb_is_installed_upgraded_under_load_removed_and_purged() {
    let (dir, redis) = (TempDir::new("deb"), Redis::start());
    let [first, second] = two_revisions("deb", dir.path());
    let machine = Machine::start(dir.path());
    let users = "cat /etc/passwd /etc/group /etc/shadow /etc/gshadow";
    // Who else is added leaves copies of these.
    machine.does("for file in passwd group shadow gshadow; do cp -p /etc/$file /etc/$file-; done");
    let (files_before, users_before) = (files(&machine), machine.does(users));

    let said = machine.does(&format!("dpkg -i /packages/{first}"));
    assert!(said.contains(&format!("name the queue in {ENVIRONMENT}")), "{said}");
    assert_eq!(machine.does("systemctl is-enabled acapy-deliver").trim(), "enabled");
    // What it lists is there, and as it was packed.
    assert_eq!(machine.does("dpkg --verify acapy-deliver"), "");
    is_told_its_queue(&machine, &redis);
    is_upgraded_under_load(&machine, &redis, &format!("dpkg -i /packages/{second}"));
    assert!(machine.does("dpkg-query -W acapy-deliver").trim().ends_with("-2"));
    let told = machine.does(&format!("cat {ENVIRONMENT}"));
    assert!(told.contains(&redis.url()), "an upgrade changed the environment file: {told}");

    // Who has stopped and disabled it finds it so after an upgrade.
    machine.does("systemctl disable --now acapy-deliver 2>/dev/null; systemctl stop acapy-deliver@another");
    machine.does(&format!("rm {INSTANCE}"));
    machine.does(&format!("dpkg -i --force-downgrade /packages/{first}"));
    assert_eq!(machine.tries("systemctl is-enabled acapy-deliver").1.trim(), "disabled");
    assert_eq!(redis.agents().len(), 0);

    machine.does("systemctl enable --now acapy-deliver 2>/dev/null");
    eventually("the agent is registered", SOON, || redis.agents().len() == 1);
    is_removed(&machine, &redis, "dpkg -r acapy-deliver");
    assert!(machine.does(&format!("cat {ENVIRONMENT}")).contains(&redis.url()), "only a purge forgets it");
    // Installed again it knows its queue, and is started at once.
    machine.does(&format!("dpkg -i /packages/{second}"));
    eventually("the agent is registered again", SOON, || redis.agents().len() == 1);

    is_removed(&machine, &redis, "dpkg -P acapy-deliver");
    let left: Vec<_> = files(&machine).difference(&files_before).cloned().collect();
    assert!(left.is_empty(), "a purge leaves {left:?}");
    assert_eq!(machine.does(users), users_before);
    let links = machine.does("find /etc/systemd /var/lib/systemd /run/systemd -name '*acapy-deliver*'");
    assert_eq!(links, "", "a purge leaves links of systemd");
}

#[test]
fn an_rpm_is_installed_upgraded_under_load_and_removed() {
    let (dir, redis) = (TempDir::new("rpm"), Redis::start());
    let [first, second] = two_revisions("rpm", dir.path());
    let machine = Machine::start(dir.path());
    let listed = machine.does(&format!(
        "rpm -qp --queryformat '[%{{FILEMODES:perms}} %{{FILEFLAGS:fflags}} %{{FILENAMES}}\\n]' /packages/{first}"
    ));
    assert!(listed.contains(&format!("-rw-r----- cn {ENVIRONMENT}")), "{listed}");
    assert!(listed.contains("-rwxr-xr-x  /usr/bin/acapy-deliver"), "{listed}");

    // A Debian has no packages of the names that Fedora and its kin have.
    let said = machine.does(&format!("rpm -i --nodeps /packages/{first}"));
    assert!(said.contains(&format!("name the queue in {ENVIRONMENT}")), "{said}");
    is_told_its_queue(&machine, &redis);
    is_upgraded_under_load(&machine, &redis, &format!("rpm -U --nodeps /packages/{second}"));
    assert!(machine.does("rpm -q acapy-deliver").contains("-2."));
    assert!(machine.does(&format!("cat {ENVIRONMENT}")).contains(&redis.url()));
    is_removed(&machine, &redis, "rpm -e acapy-deliver");
    assert!(machine.does(&format!("cat {ENVIRONMENT}.rpmsave")).contains(&redis.url()));
    assert!(!machine.tries("ls /etc/systemd/system/multi-user.target.wants/acapy-deliver.service").0);
}
