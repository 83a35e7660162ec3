//! Black-box tests: the real binary against a real Redis and real sockets.
//!
//! Where a new test belongs:
//!
//! | file | holds tests of |
//! |---|---|
//! | `delivery.rs` | what arrives when nothing fails: bytes, headers, sharing, waiting, sizes, redirects |
//! | `answers.rs` | recipients that answer oddly, late, twice or not at all: what counts as an answer |
//! | `websocket.rs` | what goes over ws, also to recipients that others wrote |
//! | `proxies.rs` | what goes through a proxy, and what does not even so |
//! | `trust.rs` | whom TLS trusts, and what of it changes while an agent runs |
//! | `retry.rs` | what is attempted again, when, and when no more |
//! | `lanes.rs` | a bad endpoint delays nobody else; messages that nobody survives |
//! | `paths.rs` | a bad path is not its origin; redirects are no way round a lane |
//! | `shares.rs` | who has the workers: slow, failed and new endpoints, and what agents died of |
//! | `order.rs` | `--ordered`: order through failures, restarts, standby, a switch of modes |
//! | `dead.rs` | what becomes a dead letter, with which reason and bytes, and what must not |
//! | `shutdown.rs` | an agent that ends or freezes: signals, `kill -9`, leases, giving back |
//! | `clock.rs` | a Redis whose clock is set, and what is long while the lease must be renewed |
//! | `outage.rs` | a Redis that is away, full, read-only, loading, or refuses us |
//! | `operator.rs` | what people type: `check`, `status`, `dead`, `enqueue`, `listen`, wrong options |
//! | `hands.rs` | the operator's hands: endpoints paused, resumed, tried; `retry`, `waiting` |
//! | `addresses.rs` | where no message may go; an agent whose name server is silent |
//! | `limits.rs` | what the machine refuses: descriptors, threads, names, memory for an envelope |
//! | `odd.rs` | values in Redis that no agent writes: skipped, counted, named, moved aside |
//! | `secrets.rs` | what must not be shown: credentials in logs, letters and redirects; escapes on a terminal |
//! | `makeup.rs` | what the program and the scripts are made of: dependencies, floors, lengths of files, `scripts/run` |
//! | `today.rs` | today's ACA-Py with its Redis plugin: which queue, and the place of the plugin's deliverer |
//! | `cli.rs` | the command line as a user meets it: output, exit codes |
//! | `embed.rs` | an agent inside another program |
//! | `tls.rs` | ways to a Redis that lets not everybody in: TLS, passwords, accounts, unix sockets |
//! | `failover.rs`, `failover/` | where Redis is not one server: Sentinels, a Cluster; and what `scripts/failover-figures` measures |
//! | `logs.rs` | `--log-format json`: that each line is an object, with which fields |
//! | `status.rs`, `status/` | the status server: what it tells, to whom, and that nobody harms it; its page in a real browser |
//! | `watch.rs` | `status --watch`: on a terminal and elsewhere |
//! | `supervisors.rs` | the agent under runit, supervisord and systemd, with the files of `scripts/` |
//! | `static_binary.rs` | the static binary in an empty root directory |
//! | `packages.rs`, `packages/` | what `scripts/package` builds: .deb, .rpm, the image for containers, and its manifest |
//! | `generated.rs` | what `generate` writes: the manual page, and completion in bash, zsh and fish |
//! | `support.rs`, `support/` | the fixtures, and tests of the fixtures themselves |
//!
//! A test writes wire bytes itself (`support/wire.rs`), never through the library, so that the
//! format cannot drift unseen. It waits for conditions with `eventually`; a pause stands only
//! where its length is what is tested. A name is a sentence.

mod addresses;
mod answers;
mod cli;
mod clock;
mod dead;
mod delivery;
mod embed;
mod failover;
mod generated;
mod hands;
mod lanes;
mod limits;
mod logs;
mod makeup;
mod odd;
mod operator;
mod order;
mod outage;
mod packages;
mod paths;
mod proxies;
mod retry;
mod secrets;
mod shares;
mod shutdown;
mod static_binary;
mod status;
mod supervisors;
mod support;
mod tls;
mod today;
mod trust;
mod watch;
mod websocket;
