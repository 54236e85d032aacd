//! Names that no other test uses: not in this process, not in another one, not in an earlier run.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

/// A name that no other test uses, for a queue, a stream or a folder: `prefix-<process>-<random>-<count>`.
pub fn unique(prefix: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    // Process ids come round again and a shared broker outlives a process, so the id alone does not do.
    format!("{prefix}-{}-{:08x}-{count}", process::id(), random() & 0xffff_ffff)
}

/// The standard library's own source of randomness: each `RandomState` is keyed anew.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_differ_and_keep_their_prefix() {
        let names: HashSet<String> = (0..1_000).map(|_| unique("orders")).collect();
        assert_eq!(names.len(), 1_000);
        assert!(names.iter().all(|name| name.starts_with("orders-")));
    }
}
