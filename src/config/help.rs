//! The help texts, one a command. A test holds them against the options that there are.

/// The help of a command; of the program for an empty name.
pub(super) fn of(command: &str) -> Option<String> {
    let queue = QUEUE;
    Some(match command {
        "" => format!("{MAIN}\n{RUN}\n{RUN_OPTIONS}\n{queue}"),
        "run" => format!("{RUN}\n{RUN_OPTIONS}\n{queue}"),
        "enqueue" => format!("{ENQUEUE}\n{queue}"),
        "listen" => LISTEN.to_owned(),
        "check" => format!("{CHECK}\n{RUN_OPTIONS}\n{queue}"),
        "status" => format!("{STATUS}\n{queue}"),
        "dead" => format!("{DEAD}\n{queue}"),
        "help" => HELP.to_owned(),
        _ => return None,
    })
}

const MAIN: &str = "\
acapy-deliver delivers what ACA-Py puts into its outbound queue: it takes each
message from Redis and POSTs it to its endpoint, losing none. In the place of the
'deliverer' of ACA-Py's plugin redis_events it needs that one's environment alone.

  acapy-deliver [run]     deliver until told to stop
  acapy-deliver enqueue   push one message, as ACA-Py would
  acapy-deliver listen    be a recipient that shows what arrives, for trying things out
  acapy-deliver check     see whether an agent could work here, and what to change
  acapy-deliver status    show what is queued, in flight, waiting and dead
  acapy-deliver dead      list, show, replay, drop or export the dead letters
  acapy-deliver help CMD  the same as acapy-deliver CMD --help

  -h, --help      this text
  -V, --version   the version

Exit codes: 0 clean, 1 could not go on (dead: nothing such), 2 wrong usage.
";

const RUN: &str = "\
acapy-deliver [run] [-oq URL] [--queue NAME] [options]

Delivers until SIGTERM or SIGINT. Each option can be given by the variable beside
it; the command line wins. Defaults are in brackets. Durations are written 200ms,
5s, 10m, 24h, 7d; sizes 512, 64KiB, 64MiB, 1GiB (1024) or 64kB, 64MB, 1GB (1000).
";

const RUN_OPTIONS: &str = "\
How much at once
  --workers N                attempts at the same time; at most half of --in-flight
                             [128]                   ACAPY_DELIVER_WORKERS
  --endpoint-concurrency N   the same for one endpoint; at most --workers
                             [8]                     ACAPY_DELIVER_ENDPOINT_CONCURRENCY
  --ordered                  one at a time and in order, for each endpoint
                             [no]                    ACAPY_DELIVER_ORDERED
  --in-flight N              messages held in memory
                             [4096]                  ACAPY_DELIVER_IN_FLIGHT
  --in-flight-bytes SIZE     bytes of messages held in memory
                             [64MiB]                 ACAPY_DELIVER_IN_FLIGHT_BYTES

How long and how often
  --connect-timeout TIME     for a connection; at most --timeout
                             [5s]                    ACAPY_DELIVER_CONNECT_TIMEOUT
  --timeout TIME             for a whole attempt
                             [30s]                   ACAPY_DELIVER_TIMEOUT
  --retry-first TIME         until the first retry, then doubling; at most --retry-max
                             [5s]                    ACAPY_DELIVER_RETRY_FIRST
  --retry-max TIME           what the time between retries grows to
                             [10m]                   ACAPY_DELIVER_RETRY_MAX
  --give-up-after TIME       age since its first failure at which a message is dead
                             [24h]                   ACAPY_DELIVER_GIVE_UP_AFTER
  --attempts N               failed attempts after which a message is dead
                             [any number]            ACAPY_DELIVER_ATTEMPTS
  --final STATUS,…           answers after which a message is dead, beside
                             400 405 410 411 413 414 415 422 431 501 505
                             [none]                  ACAPY_DELIVER_FINAL
  --retryable STATUS,…       answers after which it is retried even so
                             [none]                  ACAPY_DELIVER_RETRYABLE
  --keep-dead TIME           age at which dead letters are removed for good, or forever
                             [30d]                   ACAPY_DELIVER_KEEP_DEAD
  --drain-timeout TIME       when told to stop: for attempts under way, at most 1h
                             [5s]                    ACAPY_DELIVER_DRAIN_TIMEOUT
  --lease TIME               silence after which others take over what an agent had;
                             at least 3s
                             [15s]                   ACAPY_DELIVER_LEASE
  --pop peek|blpop           how to wait on an empty queue; blpop can lose a message
                             [peek]                  ACAPY_DELIVER_POP

Where to
  --deny-net NET             where messages may not go: private, loopback, self (all
                             addresses of this machine), public, all, or a network as
                             in 10.0.0.0/8; repeatable (commas in the variable)
                             [none]                  ACAPY_DELIVER_DENY_NET
  --allow-net NET            where they may go all the same, in the same words; the
                             most specific of both lists wins; needs a --deny-net
                             [none]                  ACAPY_DELIVER_ALLOW_NET
  --https-only               refuse endpoints without TLS, but in networks of an
                             --allow-net
                             [no]                    ACAPY_DELIVER_HTTPS_ONLY
  --proxy-resolves yes|no    whether names may go through a proxy (HTTP_PROXY,
                             HTTPS_PROXY, ALL_PROXY, NO_PROXY): only it then knows,
                             and judges, their addresses
                             [yes]                   ACAPY_DELIVER_PROXY_RESOLVES
  --ca-file PEM              more roots to trust, beside those of --roots
                             [none]                  ACAPY_DELIVER_CA_FILE
  --client-cert-file PEM     the certificate to show to endpoints that ask for one
                             [none]                  ACAPY_DELIVER_CLIENT_CERT_FILE
  --client-key-file PEM      its key
                             [none]                  ACAPY_DELIVER_CLIENT_KEY_FILE
  --id-header NAME           send each message's id in this header, the same at
                             every attempt, for recipients that drop repeats
                             [none]                  ACAPY_DELIVER_ID_HEADER

What it shows
  --status-addr HOST:PORT    serve /metrics, /healthz and /readyz here; the plugin's
                             STATUS_ENDPOINT_HOST, _PORT and _API_KEY do as there
                             [off]                   ACAPY_DELIVER_STATUS_ADDR
  --log-format full|bare     log lines with their time, or without for a
                             supervisor's log that adds it; RUST_LOG says how much
                             [full]                  ACAPY_DELIVER_LOG_FORMAT
";

const QUEUE: &str = "\
The queue. Where these do not say it, the variables of the plugin's deliverer do:
REDIS_SERVER_URL, and TOPIC_PREFIX (the queue's key is TOPIC_PREFIX_outbound, or
acapy_outbound without it).
  -oq, --outbound-queue URL  where ACA-Py pushes to: redis://[user:password@]host:6379,
                             rediss://… (TLS) or unix:///run/redis.sock; of a Cluster
                             any node, or some: redis://host-1:6379,host-2:6379; with
                             Sentinels redis+sentinel://host-1:26379,host-2:26379/NAME
                             [REDIS_SERVER_URL]      ACAPY_OUTBOUND_TRANSPORT_QUEUE
  --queue NAME               the queue's whole key: acapy_outbound, unless the plugin is
                             told otherwise (acapy_outbound_topic)
                             [see above]             ACAPY_DELIVER_QUEUE
  -oqp, --outbound-queue-prefix NAME
                             for ACA-Py 0.7: the queue's key is NAME.outbound_transport
                             [acapy]                 ACAPY_OUTBOUND_TRANSPORT_QUEUE_PREFIX
  -oqc, --outbound-queue-class NAME
                             for ACA-Py's sake: redis, or ACA-Py's name for it
                             [redis]                 ACAPY_OUTBOUND_TRANSPORT_QUEUE_CLASS
  --redis-password-file FILE the password, instead of in the URL
                             [none]                  ACAPY_DELIVER_REDIS_PASSWORD_FILE
  --redis-ca-file PEM        roots to trust for rediss://, instead of all others
                             [none]                  ACAPY_DELIVER_REDIS_CA_FILE
  --redis-cert-file PEM      the certificate to show to Redis, with those between it and
                             its root                ACAPY_DELIVER_REDIS_CERT_FILE
  --redis-key-file PEM       its key                 ACAPY_DELIVER_REDIS_KEY_FILE
  --redis-server-name NAME   the name that its certificate must have
                             [the host's]            ACAPY_DELIVER_REDIS_SERVER_NAME
  --roots both|bundled|system
                             which roots TLS trusts: those in this program, those of the
                             system (SSL_CERT_FILE, SSL_CERT_DIR), or both
                             [both]                  ACAPY_DELIVER_ROOTS
";

const ENQUEUE: &str = "\
acapy-deliver enqueue -oq URL --endpoint URL [options] [FILE|-]

Pushes a message onto the queue as ACA-Py would. Its payload is FILE, or standard
input for - or when nothing is said.

  --endpoint URL             where it is to be delivered, http or https; needed
                                                     ACAPY_DELIVER_ENDPOINT
  --format json|msgpack      how it is written: as ACA-Py of today does, or as 0.7 did
                             [msgpack for ….outbound_transport, else json]
                                                     ACAPY_DELIVER_FORMAT
  --header 'Name: value'     a header to deliver with it; repeatable (in the variable
                             commas come between headers)
                             [Content-Type: application/didcomm-envelope-enc, or with
                             msgpack application/ssi-agent-wire]
                                                     ACAPY_DELIVER_HEADER
  --text STRING              the payload, instead of a file
                             [none]                  ACAPY_DELIVER_TEXT
  --count N                  push it so many times
                             [1]                     ACAPY_DELIVER_COUNT
";

const LISTEN: &str = "\
acapy-deliver listen [options] [HOST:PORT]

Is a recipient for trying things out: answers every request and shows it, and takes
WebSockets at the same port and shows their messages. Listens on 127.0.0.1:8030
unless told otherwise; port 0 takes a free one. The first line of output says where.

  --status N                 answer with this status, 200 to 599 (2xx opens WebSockets)
                             [200]                   ACAPY_DELIVER_STATUS
  --close CODE               close WebSockets with this code, 1000 to 4999
                             [1000]                  ACAPY_DELIVER_CLOSE
  --delay TIME               wait so long before each answer, as in 200ms or 5s
                             [0s]                    ACAPY_DELIVER_DELAY
  --quiet                    one line a request, without headers and payload
                             [no]                    ACAPY_DELIVER_QUIET
  --count N                  end after so many requests
                             [never]                 ACAPY_DELIVER_COUNT
";

const CHECK: &str = "\
acapy-deliver check -oq URL [--endpoint URL] [options of run]

Says, a line each, whether an agent could work here and what to change: can it reach
Redis, is the version enough, is persistence on, are permissions right. Takes the
options of 'run' as well, so that what is checked is what would run.

  --endpoint URL             see also whether this recipient resolves, is allowed,
                             and answers
                             [none]                  ACAPY_DELIVER_ENDPOINT
  --repair                   say what would mend entries in Redis that no agent writes
  --yes                      with --repair: do it; what is moved aside is kept in a key
                             beside the queue's
Both are for the command line alone.
";

const STATUS: &str = "\
acapy-deliver status -oq URL [--json] [--limit N]

Shows the length of the queue, what is in flight by agent, what waits by endpoint,
and the dead letters by reason.

  --json                     one JSON object instead of tables
                             [no]                    ACAPY_DELIVER_JSON
  --limit N                  at most so many lines a table
                             [20]                    ACAPY_DELIVER_LIMIT
";

const DEAD: &str = "\
acapy-deliver dead list    [--endpoint URL] [--reason TEXT] [--limit N] [--json]
acapy-deliver dead show    ID [--payload] [--json]
acapy-deliver dead replay  ID… | --all [--endpoint URL] [--reason TEXT] [--limit N]
acapy-deliver dead drop    ID… | --all [--endpoint URL] [--reason TEXT] [--limit N]
acapy-deliver dead export  [--endpoint URL] [--reason TEXT] [--limit N]

Looks after the dead letters: messages that will not be tried again unless they are
replayed. 'replay' has them delivered as if they were new; 'drop' removes them for
good; 'export' writes one line of JSON each, payload included, oldest first.
Ends with 1 if there is nothing such.

  --endpoint URL             only those whose endpoint begins with this
  --reason TEXT              only those whose reason contains this
  --limit N                  at most so many, the oldest [list: 50; else all]
  --all                      replay or drop all that these let pass
  --payload                  show the payload as well
  --json                     JSON instead of text
                             [no]                    ACAPY_DELIVER_JSON
These but --json are for the command line alone: what one call is about should
stand in that call.
";

const HELP: &str = "\
acapy-deliver help [CMD]

Shows the help of a command: run, enqueue, listen, check, status, dead.
";
