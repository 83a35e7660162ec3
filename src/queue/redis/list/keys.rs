//! The keys of a queue: their names, and the type of each.

/// The names of a queue's keys, all in the slot of the queue itself on a Cluster.
#[derive(Clone, Debug)]
pub struct Keys {
    all: Vec<String>,
}

/// The short names of the keys beside a queue, in the order in which every move is given them, each with its type.
const BESIDE: [(&str, &str); 12] = [
    ("id", "string"),
    ("messages", "hash"),
    ("inflight", "zset"),
    ("waiting", "zset"),
    ("lanes", "zset"),
    ("failures", "hash"),
    ("retry", "zset"),
    ("dead", "zset"),
    ("history", "hash"),
    ("recovered", "hash"),
    ("agents", "zset"),
    ("calls", "hash"),
];

/// The short names of the keys beside a queue.
pub fn key_names() -> impl Iterator<Item = &'static str> {
    BESIDE.iter().map(|(name, _)| *name)
}

impl Keys {
    /// The keys of the queue that has this one.
    pub fn new(queue: &str) -> Keys {
        let tagged = queue.find('{').is_some_and(|open| queue[open + 1..].find('}').is_some_and(|length| length > 0));
        let beside = |name: &str| if tagged { format!("{queue}:{name}") } else { format!("{{{queue}}}:{name}") };
        let mut all = vec![queue.to_string()];
        all.extend(key_names().map(beside));
        Keys { all }
    }

    /// The LIST that ACA-Py pushes to.
    pub fn queue(&self) -> &str {
        &self.all[0]
    }

    /// One of the keys beside it, by its short name.
    pub fn named(&self, name: &str) -> &str {
        let at = key_names().position(|known| known == name).expect("a key of the queue");
        &self.all[at + 1]
    }

    /// All of them, the queue first.
    pub fn all(&self) -> &[String] {
        &self.all
    }

    /// All of them, each with the type that it has if it is there.
    pub fn types(&self) -> impl Iterator<Item = (&str, &'static str)> {
        let types = std::iter::once("list").chain(BESIDE.iter().map(|(_, kind)| *kind));
        self.all.iter().map(String::as_str).zip(types)
    }
}
