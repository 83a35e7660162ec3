//! The packages that `scripts/package` builds, from the static binary, put where they are meant for:
//! the .deb and the .rpm into a Debian that runs systemd, the image into a root directory that cannot be
//! written. They need root, and what `scripts/test` installs.
//!
//! | file | holds tests of |
//! |---|---|
//! | `machine.rs` | no tests: a directory tree in which systemd runs |
//! | `system.rs` | .deb and .rpm: installed, upgraded under load, removed; the shipped unit |
//! | `image.rs` | the image for containers, run as the manifest for Kubernetes says; that manifest |
//! | `bytes.rs` | the same bytes from every build, and no path of the machine in them |

mod bytes;
mod image;
mod machine;
mod system;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs a script of the repository to its end; what it prints.
#[track_caller]
fn script(name: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(repository().join("scripts").join(name));
    said(command.args(arguments))
}

/// What a command prints on standard output; it must be content.
#[track_caller]
fn said(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {}\n{text}{errors}", output.status);
    text
}

/// Builds packages; their paths.
#[track_caller]
fn packages(arguments: &[&str], into: &Path) -> Vec<PathBuf> {
    let arguments = [arguments, &["--into", into.to_str().unwrap()]].concat();
    script("package", &arguments).lines().map(PathBuf::from).collect()
}

#[track_caller]
fn needs_root(why: &str) {
    let uid = fs::metadata("/proc/self").unwrap().uid();
    assert_eq!(uid, 0, "{why}: run the tests as root");
}
