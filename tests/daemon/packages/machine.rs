//! A machine to install packages on: the Debian of `scripts/systemd-root`, with a systemd of its own as
//! process 1 in namespaces of its own, and this machine's network. What is written goes into memory; the
//! directory tree stays as it was. It ends when dropped.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::{needs_root, repository, said, script};
use crate::support::{SOON, TempDir, eventually};

/// Where systemd keeps its groups of processes; which of them there are depends on the machine.
const GROUPS: [&str; 3] = ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"];

pub struct Machine {
    name: String,
    nspawn: Child,
    /// What systemd-nspawn itself says.
    says: TempDir,
    /// Its process 1, as this machine numbers it.
    leader: u32,
}

impl Machine {
    /// Started, with this directory as its /packages; waits until its services are up.
    pub fn start(packages: &Path) -> Machine {
        needs_root("packages are installed into a directory tree, and services run there");
        script("systemd-root", &[]);
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("acapy-deliver-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        // A group of its own, so that its systemd has nothing to do with this machine's.
        let mut inside = String::new();
        for group in groups(&name) {
            inside += &format!("mkdir {0} && echo $$ >{0}/cgroup.procs && ", group.display());
        }
        let says = TempDir::new("machine");
        let log = File::create(says.path().join("log")).unwrap();
        let nspawn = Command::new("sh")
            .args(["-c", &format!("{inside} exec systemd-nspawn \"$@\""), "sh"])
            .args(["--quiet", "--register=no", "--keep-unit", "--boot", "--volatile=overlay", "--link-journal=no"])
            .args(["--console=read-only", "--resolv-conf=off", "--timezone=off"])
            .arg(format!("--machine={name}"))
            .arg(format!("--directory={}", repository().join("target/systemd-root").display()))
            .arg(format!("--bind-ro={}:/packages", packages.display()))
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut machine = Machine { name, nspawn, says, leader: 0 };
        eventually("systemd is started", SOON, || {
            let ended = machine.nspawn.try_wait().unwrap();
            assert!(ended.is_none(), "systemd-nspawn ended ({ended:?}), which this machine must be able to run");
            machine.leader = leader(machine.nspawn.id()).unwrap_or(0);
            machine.leader != 0
        });
        eventually("its services are up", SOON * 3, || {
            let (_, state) = machine.tries("systemctl is-system-running 2>&1");
            ["running", "degraded"].contains(&state.trim())
        });
        machine
    }

    /// Runs a line of shell there; whether it was content, and all it said.
    pub fn tries(&self, line: &str) -> (bool, String) {
        let output = self.command(&format!("exec 2>&1; {line}")).stdin(Stdio::null()).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The same for what must be content; what it printed.
    #[track_caller]
    pub fn does(&self, line: &str) -> String {
        said(&mut self.command(line))
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.leader.to_string(), "--mount", "--uts", "--ipc", "--pid", "--root", "--wd"]);
        command.args(["--", "/bin/sh", "-c", line]).env_clear();
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    }
}

/// Process 1 of the namespace that this systemd-nspawn made.
fn leader(nspawn: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{nspawn}/task/{nspawn}/children")).ok()?;
    let pids = children.split(' ').filter_map(|pid| pid.trim().parse().ok());
    pids.into_iter().find(|pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
        ids.split_whitespace().last() == Some("1") && ids.split_whitespace().count() > 1
    })
}

fn groups(name: &str) -> Vec<PathBuf> {
    let there = GROUPS.iter().filter(|group| Path::new(group).join("cgroup.procs").exists());
    there.map(|group| Path::new(group).join(name)).collect()
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let says = fs::read_to_string(self.says.path().join("log")).unwrap_or_default();
            eprintln!("--- systemd-nspawn says:\n{says}");
            let log = self.tries("journalctl --no-pager -b -n 60").1;
            eprintln!("--- the machine's log:\n{log}");
        }
        // Its first process takes all others along, and systemd-nspawn tidies up after it.
        if self.leader != 0 {
            let _ = Command::new("sh").args(["-c", &format!("kill -s KILL {}", self.leader)]).status();
        } else {
            let _ = self.nspawn.kill();
        }
        let _ = self.nspawn.wait();
        for group in groups(&self.name) {
            let _ =
                Command::new("find").arg(group).args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"]).status();
        }
    }
}
