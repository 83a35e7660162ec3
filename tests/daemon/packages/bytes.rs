//! The same bytes from every build. Here is what takes seconds: packages of one binary, built twice at
//! different times and places, and a binary that knows nothing of the machine it was built on. `scripts/package
//! --check` builds the binary twice as well, on two paths, which takes minutes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{packages, repository, said, script};
use crate::support::TempDir;

#[test]
fn packages_built_twice_are_the_same_bytes() {
    let places = [TempDir::new("first"), TempDir::new("second-with-a-longer-name")];
    let built: Vec<Vec<PathBuf>> = places.iter().map(|place| packages(&["all"], place.path())).collect();
    assert_eq!(built[0].len(), 3);
    for (first, second) in built[0].iter().zip(&built[1]) {
        assert_eq!(first.file_name(), second.file_name());
        assert!(fs::read(first).unwrap() == fs::read(second).unwrap(), "{first:?} and {second:?} differ");
    }
    // It is the time of the commit that they bear, so that another one makes others.
    let deb = |epoch: &str, place: &TempDir| {
        let mut command = Command::new(repository().join("scripts/package"));
        command.args(["deb", "--into"]).arg(place.path()).env("SOURCE_DATE_EPOCH", epoch);
        fs::read(said(&mut command).trim()).unwrap()
    };
    let another = deb("1000000000", &places[0]);
    assert!(another != fs::read(&built[1][0]).unwrap(), "the time is not in the package");
    assert!(another == deb("1000000000", &places[1]));
}

#[test]
fn the_binary_names_no_path_of_the_machine_that_built_it() {
    let binary = fs::read(script("build-static", &[]).trim()).unwrap();
    let holds = |path: &Path| {
        let path = path.to_str().unwrap().as_bytes();
        memchr::memmem::find(&binary, path).is_some()
    };
    let home = PathBuf::from(std::env::var_os("HOME").expect("every user has one"));
    let cargo_home = std::env::var_os("CARGO_HOME").map_or(home.join(".cargo"), PathBuf::from);
    for path in [repository().join(""), cargo_home.join("registry"), home.join(".rustup")] {
        assert!(!holds(&path), "the binary holds {path:?}");
    }
    // Panics name their place all the same.
    assert!(holds(Path::new("/crates/")), "the paths of crates are not shortened, but missing");
}
