# shellcheck shell=bash
# What the scripts share: where the repository is, how they talk, how a missing program is
# installed. Sourced, not run; it starts nothing by itself.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
name=${0##*/}

# On standard error, so that what a command prints can be piped.
say() { printf '%s: %s\n' "$name" "$*" >&2; }
fail() {
    say "$@"
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# need PROGRAM PACKAGE…: has the program, or installs Debian's packages of it, or says what to do.
need() {
    local program=$1
    shift
    have "$program" && return
    if [ "$(id -u)" != 0 ] || ! have apt-get; then
        fail "$program is missing; as root: apt-get install $* (or what your system calls it), then try again"
    fi
    say "installing $*, for $program is missing"
    apt_install "$@"
    have "$program" || fail "$* is installed, but there is no $program in PATH"
}

# Installs packages without questions, and without the services in them being started or enabled:
# the scripts start what they need themselves and leave the machine as they found it.
apt_install() {
    local policy=/usr/sbin/policy-rc.d log status=0
    local ours=
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
        ours=yes
    fi
    log=$(mktemp)
    # A machine that has never fetched the lists of packages finds nothing without an update.
    { DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" ||
        { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"; }; } \
        </dev/null >"$log" 2>&1 || status=$?
    [ -z "$ours" ] || rm -f "$policy"
    if [ "$status" != 0 ]; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        fail "cannot install $*; see above"
    fi
    rm -f "$log"
    local package
    for package in "$@"; do
        # The package enables its service for the next boot.
        [ ! -e "/etc/init.d/$package" ] || update-rc.d "$package" disable >/dev/null 2>&1 || true
    done
}

# What cargo needs to build this crate.
need_rust() {
    if ! have cargo && [ -x "$HOME/.cargo/bin/cargo" ]; then
        PATH=$HOME/.cargo/bin:$PATH
    fi
    have cargo || fail "cargo is missing: install Rust $(rust_version) or newer with rustup, then try again"
    # The TLS library compiles some C.
    have cc || need cc gcc
}

rust_version() { sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml"; }
