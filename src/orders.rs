//! What operators have ordered for endpoints, as all agents go by it: which are paused, and which were to be tried
//! now a moment ago. It is one value with a number, so that who knows the number need not be told again.

use std::collections::HashMap;
use std::fmt;

/// Endpoints that may be paused at a time.
pub const MOST_PAUSED: usize = 1000;

/// All orders that are in force.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Orders {
    /// The number of the newest, the time of it in microseconds since 1970 or a little more; another one after each
    /// change. 0: there never was any.
    pub number: u64,
    /// By origin.
    pub by_origin: HashMap<String, Order>,
}

/// An order for one endpoint, and its number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// Nothing is sent to it until that is taken back.
    Paused(u64),
    /// It was to be tried at once, whatever it backs off.
    Try(u64),
}

/// What is done with an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hand {
    /// All that is for it waits.
    Pause,
    /// That is taken back, and it is tried at once.
    Resume,
    /// It is tried at once, if it backs off.
    Try,
}

/// What an endpoint was before an order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Before {
    /// How it stood.
    pub standing: Standing,
    /// Messages that wait for it.
    pub messages: u64,
    /// How many times in a row it has failed.
    pub failures: u64,
}

/// How an endpoint stands in the queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Paused, by the order of this number.
    Paused(u64),
    /// An agent tries it.
    Probed,
    /// It failed, and may be tried at this time, in milliseconds since 1970.
    Down(u64),
    /// It failed or was paused, and may be tried.
    Due,
    /// It delivers.
    Up,
    /// It was never tried.
    New,
    /// Nothing waits for it: the queue does not know it.
    Unknown,
}

impl Orders {
    /// Of this number, as they are written down: a line each, of an origin and `p` or `t` with a number. What is none
    /// of these, nobody ordered.
    pub fn read(number: u64, text: &str) -> Orders {
        let order = |line: &str| {
            let (origin, order) = line.rsplit_once(' ')?;
            let number = order.get(1..)?.parse().ok()?;
            match order.as_bytes()[0] {
                b'p' => Some((origin.to_string(), Order::Paused(number))),
                b't' => Some((origin.to_string(), Order::Try(number))),
                _ => None,
            }
        };
        Orders { number, by_origin: text.lines().filter_map(order).collect() }
    }

    /// Whether this endpoint is paused.
    pub fn is_paused(&self, origin: &str) -> bool {
        matches!(self.by_origin.get(origin), Some(Order::Paused(_)))
    }

    /// Those that are paused, by the number of their order.
    pub fn paused(&self) -> impl Iterator<Item = (&String, u64)> {
        self.by_origin.iter().filter_map(|(origin, order)| match order {
            Order::Paused(number) => Some((origin, *number)),
            Order::Try(_) => None,
        })
    }
}

impl fmt::Display for Hand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Hand::Pause => "pause",
            Hand::Resume => "resume",
            Hand::Try => "try",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read_as_they_are_written_and_nothing_else_is_one() {
        let orders =
            Orders::read(7, "\nhttp://a:80 p5\nhttp://b:80 t7\n\nhttp://c:80\nhttp://d:80 x7\nhttp://e:80 p\n é");
        assert!(orders.is_paused("http://a:80") && !orders.is_paused("http://b:80"));
        assert_eq!(orders.paused().collect::<Vec<_>>(), [(&"http://a:80".to_string(), 5)]);
        assert_eq!(orders.by_origin.len(), 2);
        assert_eq!(orders.by_origin["http://b:80"], Order::Try(7));
        assert_eq!(Orders::read(0, ""), Orders::default());
    }
}
