//! Where the agent's own services answer, which is nowhere to deliver to: the status server for as long as the
//! agent runs, and Redis wherever its connections lead, or led until another was made.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};

use super::addresses::carried_ipv4;
use super::machine::is_of_this_machine;

/// Where the agent's own services are, by port and address: no message may be delivered there.
/// Clones are the same. Known from the live connections, not from names, which may change.
#[derive(Clone, Debug, Default)]
pub struct Own(Arc<RwLock<Services>>);

#[derive(Debug, Default)]
struct Services {
    /// For as long as the agent runs.
    fixed: Vec<(SocketAddr, String)>,
    redis: Vec<RedisEnd>,
}

/// Where one connection to Redis leads, or led until it was lost.
#[derive(Debug)]
struct RedisEnd {
    connection: u64,
    is_live: bool,
    addresses: Vec<SocketAddr>,
}

impl Own {
    /// Something of ours answers here; `name` says what.
    pub fn add(&self, address: SocketAddr, name: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).fixed.push((address, name.to_string()));
    }

    /// A connection to Redis has been opened, and these are its addresses. What only lost connections
    /// led to is nobody's any more: until now Redis might have come back there.
    pub fn connected(&self, connection: u64, addresses: Vec<SocketAddr>) {
        let mut services = self.0.write().unwrap_or_else(PoisonError::into_inner);
        services.redis.retain(|end| end.is_live && end.connection != connection);
        services.redis.push(RedisEnd { connection, is_live: true, addresses });
    }

    /// A connection to Redis is gone.
    pub fn lost(&self, connection: u64) {
        let mut services = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for end in services.redis.iter_mut().filter(|end| end.connection == connection) {
            end.is_live = false;
        }
    }

    /// What of ours answers there.
    pub(super) fn holds(&self, ip: IpAddr, port: u16) -> Option<String> {
        let services = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let fixed = services.fixed.iter().map(|(own, name)| (own, name.as_str()));
        let redis = services.redis.iter().flat_map(|end| end.addresses.iter().map(|own| (own, "Redis")));
        fixed
            .chain(redis)
            .filter(|(own, _)| own.port() == port)
            .find(|(own, _)| {
                let own = carried_ipv4(own.ip()).map_or(own.ip(), IpAddr::V4);
                // What listens on one address of a machine often listens on all of them.
                own == ip || ((own.is_unspecified() || is_of_this_machine(own)) && is_of_this_machine(ip))
            })
            .map(|(_, name)| name.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(own: &Own, addr: &str, expected: Option<&str>) {
        let addr: SocketAddr = addr.parse().unwrap();
        assert_eq!(own.holds(addr.ip(), addr.port()).as_deref(), expected, "{addr}");
    }

    #[test]
    fn where_redis_was_is_refused_until_another_connection_leads_elsewhere() {
        let (own, old, new) = (Own::default(), "192.0.2.7:6379", "192.0.2.8:6379");
        let at = |addr: &str| vec![addr.parse().unwrap()];
        own.connected(1, at(old));
        own.connected(2, at(old));
        check(&own, old, Some("Redis"));
        check(&own, new, None);
        // Lost, and perhaps soon back at the same address.
        own.lost(1);
        own.lost(2);
        check(&own, old, Some("Redis"));
        own.connected(1, at(new));
        check(&own, old, None);
        check(&own, new, Some("Redis"));
        // One that still lives where Redis was keeps it refused.
        own.connected(2, at(old));
        own.connected(1, at(new));
        check(&own, old, Some("Redis"));
        own.lost(2);
        own.connected(2, at(new));
        check(&own, old, None);
    }
}
