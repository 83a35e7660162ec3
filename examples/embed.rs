//! An agent inside another program: it delivers the queue at the URL that is given until its standard input ends.
//!
//! ```sh
//! cargo run --example embed redis://127.0.0.1:6379 acapy_outbound
//! ```

use std::io::Read;
use std::time::Duration;

use acapy_deliver::{Agent, Config, RedisAddress};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().unwrap_or_else(|| "redis://127.0.0.1:6379".to_string());
    let redis = RedisAddress { queue: arguments.next(), ..RedisAddress::new(&url)? };

    // Fields, not options: what `acapy-deliver --help` says of `--workers` holds for `workers`.
    let config = Config { workers: 8, timeout: Duration::from_secs(10), ..Config::with_defaults(redis) };
    let agent = Agent::start(&config)?;

    // … whatever the program is there for. Here: wait until nobody writes to it any more.
    std::io::stdin().read_to_end(&mut Vec::new())?;

    // Ten seconds for what is being attempted; a value on this channel would end them early. What is left is given
    // back, and another agent delivers it. Dropping the agent does the same without the ten seconds.
    let (_hurry, hurried) = crossbeam_channel::bounded::<()>(1);
    agent.stop(Duration::from_secs(10), &hurried);
    Ok(())
}
