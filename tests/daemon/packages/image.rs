//! The image for containers, unpacked by hand and run as a runtime would, by the manifest for Kubernetes:
//! with its variables and its secret, as its user or any other, in a root directory that cannot be written.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::{needs_root, packages, repository, said, script};
use crate::support::{Agent, Answer, Redis, SOON, Sink, TempDir, eventually, wire};

/// An image in its file, each blob held against its digest.
struct Image {
    layout: TempDir,
}

impl Image {
    fn open(file: &Path) -> Image {
        let image = Image { layout: TempDir::new("layout") };
        said(Command::new("tar").arg("-xf").arg(file).arg("-C").arg(image.layout.path()));
        assert_eq!(image.json("oci-layout")["imageLayoutVersion"], "1.0.0");
        image
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.layout.path().join(name)).unwrap()).unwrap()
    }

    /// Where that is which a descriptor names.
    fn blob(&self, descriptor: &Value) -> PathBuf {
        let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let file = self.layout.path().join("blobs/sha256").join(digest);
        assert_eq!(sha256(&file), digest);
        assert_eq!(fs::metadata(&file).unwrap().len(), descriptor["size"].as_u64().unwrap());
        file
    }

    fn blob_json(&self, descriptor: &Value) -> Value {
        serde_json::from_slice(&fs::read(self.blob(descriptor)).unwrap()).unwrap()
    }
}

fn sha256(file: &Path) -> String {
    said(Command::new("sha256sum").arg(file)).split(' ').next().unwrap().to_string()
}

/// The manifest's objects, in order.
fn manifest() -> Vec<Value> {
    script("kubernetes/check", &[]); // Installs what reads YAML, too.
    let versions = fs::read_dir(repository().join("target/kubernetes-validate")).unwrap();
    let python = versions.map(|entry| entry.unwrap().path()).next().expect("installed just now");
    let program = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    let file = repository().join("scripts/kubernetes/acapy-deliver.yaml");
    let text = said(Command::new("python3").args(["-c", program]).arg(file).env("PYTHONPATH", python));
    serde_json::from_str(&text).unwrap()
}

fn pod(objects: &[Value]) -> &Value {
    &objects.iter().find(|object| object["kind"] == "Deployment").unwrap()["spec"]["template"]["spec"]
}

#[test]
fn the_manifest_for_kubernetes_holds_against_its_schemas() {
    let said = script("kubernetes/check", &[]);
    assert!(said.matches(" passed ").count() == 2, "{said}");
    // A slip of the pen would be seen.
    let dir = TempDir::new("manifest");
    let text = fs::read_to_string(repository().join("scripts/kubernetes/acapy-deliver.yaml")).unwrap();
    for (right, wrong) in [("livenessProbe:", "liveness-probe:"), ("replicas: 1", "replicas: one")] {
        let file = dir.path().join("wrong.yaml");
        assert!(text.contains(right));
        fs::write(&file, text.replace(right, wrong)).unwrap();
        let check = repository().join("scripts/kubernetes/check");
        assert!(!Command::new(check).arg(&file).output().unwrap().status.success(), "{wrong} is not seen");
    }
    let objects = manifest();
    // The whole drain fits into what is left before the kill.
    let drain = 5.0 + 1.5;
    assert!(pod(&objects)["terminationGracePeriodSeconds"].as_f64().unwrap() > drain + 5.0);
    let image = pod(&objects)["containers"][0]["image"].as_str().unwrap();
    assert!(image.ends_with(concat!(":", env!("CARGO_PKG_VERSION"))), "{image}");
}

#[test]
fn the_image_delivers_as_its_manifest_has_it_from_a_root_that_cannot_be_written() {
    needs_root("a root directory that cannot be written is a mount");
    let dir = TempDir::new("image");
    let file = packages(&["oci"], dir.path()).remove(0);
    // Somebody else's reading of the format: it holds all digests against the blobs.
    said(
        Command::new("skopeo")
            .args(["copy", "--quiet"])
            .arg(format!("oci-archive:{}", file.display()))
            .arg(format!("dir:{}", dir.path().join("copy").display())),
    );
    let image = Image::open(&file);
    let root = unpacked(&image, dir.path());
    let index = image.json("index.json");
    let config = image.blob_json(&image.blob_json(&index["manifests"][0])["config"]);
    assert_eq!(config["config"]["User"], "65532:65532");
    let entrypoint = config["config"]["Entrypoint"][0].as_str().unwrap().to_string();

    let objects = manifest();
    let container = &pod(&objects)["containers"][0];
    let user = &pod(&objects)["securityContext"];
    assert_eq!(format!("{}:{}", user["runAsUser"], user["runAsGroup"]), config["config"]["User"].as_str().unwrap());
    for user in ["65532:65532", "12345:54321"] {
        let redis = Redis::of_with("acapy_outbound", &["requirepass change-me"]);
        let sink = Sink::new(|_| Answer::ok());
        let mut running = Running::start(&root, user, &entrypoint, container, &objects[0], &redis);
        eventually("the agent is alive", SOON, || running.get("/healthz") == 200);
        eventually("the agent is ready", SOON, || running.get("/readyz") == 200);
        redis.push(&wire::json_with(&sink.url(), &[], b"from a container"));
        eventually("it arrives", SOON, || sink.n_delivered() == 1);
        redis.wait_empty(SOON);
        assert!(running.is_whose(user));
        running.stop();
    }
}

/// The root directory of a container: the layer, and the mount points that a runtime makes.
fn unpacked(image: &Image, dir: &Path) -> PathBuf {
    let manifest = image.blob_json(&image.json("index.json")["manifests"][0]);
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 1);
    let layer = image.blob(&layers[0]);
    let root = dir.join("rootfs");
    fs::create_dir(&root).unwrap();
    said(Command::new("tar").arg("-xzf").arg(&layer).arg("-C").arg(&root));
    // The digest by which runtimes know it is of the layer as it is unpacked.
    let config = image.blob_json(&manifest["config"]);
    let plain = dir.join("layer");
    said(Command::new("sh").args(["-c", "gzip -dc \"$1\" >\"$2\"", "sh"]).arg(&layer).arg(&plain));
    assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", sha256(&plain)));
    // So that others than root may look into it, as in a runtime's directory.
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(root.join("proc")).unwrap();
    root
}

/// An agent in a container, so far as it sees: process 1, another user, a root that cannot be written.
struct Running {
    agent: Agent,
    pid: String,
    status: String,
}

impl Running {
    fn start(root: &Path, user: &str, entrypoint: &str, container: &Value, secret: &Value, redis: &Redis) -> Running {
        let mounted = container["volumeMounts"][0]["mountPath"].as_str().unwrap().trim_start_matches('/');
        fs::create_dir_all(root.join(mounted)).unwrap();
        for (name, value) in secret["stringData"].as_object().unwrap() {
            fs::write(root.join(mounted).join(name), value.as_str().unwrap()).unwrap();
        }
        let inside = "mount --bind \"$1\" \"$1\" && mount -o remount,bind,ro \"$1\" && mount -t proc proc \"$1/proc\" && \
                      cd \"$1\" && ! touch \"$1/written\" 2>&1 && exec chroot --userspec=\"$2\" \"$1\" \"$3\" \"$4\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "sh", "-c", inside, "sh"]);
        command.arg(root).args([user, entrypoint, container["args"][0].as_str().unwrap()]);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        for variable in container["env"].as_array().unwrap() {
            let name = variable["name"].as_str().unwrap();
            let value = match (name, variable["value"].as_str().unwrap()) {
                ("REDIS_SERVER_URL", "redis://redis:6379") => format!("redis://{}", redis.address()),
                // This machine has one port 9100 for all tests.
                ("ACAPY_DELIVER_STATUS_ADDR", "0.0.0.0:9100") => format!("{}:0", redis.host()),
                (_, value) => value.to_string(),
            };
            command.env(name, value);
        }
        let agent = Agent::spawn(command);
        let mut running = Running { agent, pid: String::new(), status: String::new() };
        let unshare = running.agent.pid();
        eventually("its process 1 is there", SOON, || {
            assert!(running.agent.is_running(), "unshare ended: {}", running.agent.log());
            let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"));
            running.pid = children.unwrap_or_default().trim().to_string();
            !running.pid.is_empty()
        });
        running.agent.wait_log("status is served at ");
        let log = running.agent.log();
        let (_, after) = log.split_once("status is served at ").unwrap();
        let address = after.split_whitespace().next().unwrap().trim_start_matches("http://");
        running.status = address.split('/').next().unwrap().to_string();
        running
    }

    /// As a probe asks; the status of the answer.
    fn get(&self, page: &str) -> u16 {
        let mut stream = TcpStream::connect(&self.status).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        write!(stream, "GET {page} HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{answer:?}"))
    }

    fn is_whose(&self, user: &str) -> bool {
        let owner = said(Command::new("stat").args(["-c", "%u:%g", &format!("/proc/{}", self.pid)]));
        owner.trim() == user
    }

    /// As the kubelet does it: a signal to process 1.
    fn stop(&mut self) {
        said(Command::new("sh").args(["-c", &format!("kill -s TERM {}", self.pid)]));
        assert_eq!(self.agent.wait_exit(SOON), Some(0));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // What `unshare` would have to end has become another user since.
        if self.agent.is_running() && !self.pid.is_empty() {
            let _ = Command::new("sh").args(["-c", &format!("kill -s KILL {}", self.pid)]).status();
        }
    }
}
