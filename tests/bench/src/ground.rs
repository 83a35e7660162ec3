//! Private servers: a redis-server and an nginx, each on free ports and in a directory of its
//! own, gone when they are dropped.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{fs, thread};

/// A directory that goes when it is dropped.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new(name: &str) -> TempDir {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("acapy-deliver-{name}-{}-{n}", std::process::id()));
        fs::create_dir_all(&path).expect("a temporary directory can be made");
        TempDir(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A port that is free at this moment.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port can be listened on");
    listener.local_addr().expect("a bound socket has an address").port()
}

/// Waits until something listens there.
pub fn wait_for_port(port: u16, what: &str, child: &mut Child) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        let ended = child.try_wait().ok().flatten();
        assert!(ended.is_none() && Instant::now() < deadline, "{what} does not start ({ended:?})");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A redis-server of our own.
pub struct Redis {
    dir: TempDir,
    child: Child,
    port: u16,
}

/// What Redis has counted since its counters were last reset.
#[derive(Clone, Debug, Default)]
pub struct RedisCounts {
    /// Calls and microseconds by command.
    pub commands: BTreeMap<String, (u64, u64)>,
    /// CPU time of the process in seconds, since its start.
    pub cpu: f64,
}

impl Redis {
    /// With further lines of configuration; nothing is written to disk unless they say so.
    pub fn start(configuration: &[&str]) -> Redis {
        let (dir, port) = (TempDir::new("redis"), free_port());
        let mut lines = vec![
            "bind 127.0.0.1".to_string(),
            format!("port {port}"),
            format!("dir {}", dir.path().display()),
            "save \"\"".to_string(),
            "logfile redis.log".to_string(),
            "maxclients 2000".to_string(),
        ];
        lines.extend(configuration.iter().map(|line| line.to_string()));
        let file = dir.path().join("redis.conf");
        fs::write(&file, lines.join("\n") + "\n").expect("the directory can be written to");
        let mut child = Command::new("redis-server")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        wait_for_port(port, "redis-server", &mut child);
        Redis { dir, child, port }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn client(&self) -> redis::Connection {
        redis::Client::open(self.url()).and_then(|client| client.get_connection()).expect("our Redis answers")
    }

    /// Empties it, and forgets what it has counted.
    pub fn reset(&self) {
        let mut client = self.client();
        redis::pipe()
            .cmd("FLUSHALL")
            .cmd("CONFIG")
            .arg("RESETSTAT")
            .exec(&mut client)
            .expect("our Redis can be emptied");
    }

    /// Takes an append-only file back to what is in memory, so that a round does not wait for the last one's.
    pub fn rewrite(&self) {
        let mut client = self.client();
        let setting: Vec<String> =
            redis::cmd("CONFIG").arg("GET").arg("appendonly").query(&mut client).expect("our Redis answers");
        if setting[1] != "yes" {
            return;
        }
        let _ = redis::cmd("BGREWRITEAOF").exec(&mut client);
        loop {
            let info: String = redis::cmd("INFO").arg("persistence").query(&mut client).expect("our Redis answers");
            if info.contains("aof_rewrite_in_progress:0") && info.contains("aof_rewrite_scheduled:0") {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn counts(&self) -> RedisCounts {
        let mut client = self.client();
        let info = |client: &mut redis::Connection, section: &str| -> String {
            redis::cmd("INFO").arg(section).query(client).expect("our Redis answers")
        };
        let mut counts = RedisCounts::default();
        for line in info(&mut client, "commandstats").lines() {
            let Some((name, values)) = line.strip_prefix("cmdstat_").and_then(|rest| rest.split_once(':')) else {
                continue;
            };
            let value = |key: &str| {
                let found = values.split(',').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
                found.and_then(|text| text.parse().ok()).unwrap_or(0)
            };
            counts.commands.insert(name.to_string(), (value("calls"), value("usec")));
        }
        for line in info(&mut client, "cpu").lines() {
            for key in ["used_cpu_sys:", "used_cpu_user:"] {
                counts.cpu += line.strip_prefix(key).and_then(|value| value.trim().parse::<f64>().ok()).unwrap_or(0.0);
            }
        }
        counts
    }

    /// Its version.
    pub fn version(&self) -> String {
        let info: String = redis::cmd("INFO").arg("server").query(&mut self.client()).expect("our Redis answers");
        info.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap_or("?").trim().to_string()
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An nginx that answers everything with 200, at every address of this machine.
pub struct Nginx {
    dir: TempDir,
    child: Child,
    pub http: u16,
    pub https: u16,
    /// With TLS, and closing each connection after one answer.
    pub https_close: u16,
}

impl Nginx {
    pub fn start() -> Nginx {
        let dir = TempDir::new("nginx");
        let (http, https, https_close) = (free_port(), free_port(), free_port());
        let names: Vec<String> = (0..100).map(|n| crate::load::origin(n).to_string()).collect();
        let made = rcgen::generate_simple_self_signed(names).expect("a certificate can be made");
        let path = |name: &str| dir.path().join(name).display().to_string();
        let write = |name: &str, text: &str| fs::write(path(name), text).expect("the directory can be written to");
        write("cert.pem", &made.cert.pem());
        write("key.pem", &made.signing_key.serialize_pem());
        let tls = format!("ssl_certificate {}; ssl_certificate_key {};", path("cert.pem"), path("key.pem"));
        let configuration = format!(
            "daemon off; worker_processes 2; pid {pid}; error_log {log} crit; worker_rlimit_nofile 60000;
             events {{ worker_connections 20000; }}
             http {{
               access_log off; server_tokens off; keepalive_requests 100000000; keepalive_timeout 600s;
               client_max_body_size 10m; client_body_buffer_size 128k; reset_timedout_connection on;
               client_body_temp_path {tmp}; proxy_temp_path {tmp}; fastcgi_temp_path {tmp};
               uwsgi_temp_path {tmp}; scgi_temp_path {tmp};
               server {{ listen 0.0.0.0:{http} backlog=4096 reuseport; return 200; }}
               server {{ listen 0.0.0.0:{https} ssl backlog=4096 reuseport; {tls} return 200; }}
               server {{ listen 0.0.0.0:{https_close} ssl backlog=4096 reuseport; {tls} keepalive_timeout 0; return 200; }}
             }}\n",
            pid = path("pid"),
            log = path("error.log"),
            tmp = path("tmp"),
        );
        write("nginx.conf", &configuration);
        let nginx = if Path::new("/usr/sbin/nginx").exists() { "/usr/sbin/nginx" } else { "nginx" };
        let mut child = Command::new(nginx)
            .args(["-p", &path(""), "-c", &path("nginx.conf"), "-e", &path("error.log")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx is installed");
        wait_for_port(http, "nginx", &mut child);
        Nginx { dir, child, http, https, https_close }
    }

    /// The root that its certificate leads to: itself.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("cert.pem")
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master takes its workers with it only if it is asked, and its number is in the file.
        let pid = fs::read_to_string(self.dir.path().join("pid")).unwrap_or_default();
        let _ = Command::new("kill").arg("-TERM").arg(pid.trim()).stderr(Stdio::null()).status();
        let _ = self.child.wait();
    }
}
