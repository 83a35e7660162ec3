//! How many files may be open, and so how many connections may be idle.

/// Files that are open besides connections: Redis, status, log, look-ups.
const OTHER_DESCRIPTORS: u64 = 64;

/// How many are kept idle however few the workers: recipients that take turns
/// are met again only after all the others, and a connection costs far less to
/// keep than to make.
const MIN_IDLE: usize = 1024;

/// How many of those through proxies: each takes up a place there, of which tinyproxy as it is installed has
/// a hundred for all who use it, and lets all others wait.
pub(super) const IDLE_THROUGH_PROXIES: usize = 32;

/// Raises the limit of open files as far as it goes, and returns it. Each
/// connection needs one; many systems start processes with 1024.
pub fn raise_descriptor_limit() -> u64 {
    rlimit::increase_nofile_limit(u64::MAX).unwrap_or_else(|_| descriptor_limit())
}

pub(super) fn descriptor_limit() -> u64 {
    // Where it cannot be read, the least that systems give.
    rlimit::Resource::NOFILE.get_soft().unwrap_or(256)
}

/// Half of what is left when each worker has its connection: the other half is
/// for look-ups, for others in the same process, and for luck.
pub(super) fn idle_limit(workers: usize, descriptors: u64) -> usize {
    let spare = descriptors.saturating_sub(workers as u64 + OTHER_DESCRIPTORS) / 2;
    usize::try_from(spare).unwrap_or(usize::MAX).min(workers.saturating_mul(8).max(MIN_IDLE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_connections_leave_room_for_other_files() {
        for (workers, descriptors, expected) in
            [(128, 1024, 416), (256, 20_000, 2048), (128, 100, 0), (8, 1024, 476), (8, u64::MAX, 1024)]
        {
            assert_eq!(idle_limit(workers, descriptors), expected);
        }
    }
}
