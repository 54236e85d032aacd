//! How many partitions a member has, and what it does about that. Pure.
//!
//! A quota follows from the number of members and one's place in the order of joining, so members need not agree on who has
//! which partition: those that have too many give, those that have too few take what is free.

/// The quota of the member with this rank, from 0. Those that joined first have one more where it does not come out even:
/// then a departure raises quotas and lowers none, and who joins gets the smallest.
pub(crate) fn quota(partitions: u16, members: usize, rank: usize) -> usize {
    let rank = rank.min(members.saturating_sub(1));
    (usize::from(partitions) + members.saturating_sub(1) - rank) / members.max(1)
}

/// Which of those in hand, oldest first, are given up: the last ones taken, since they have the least to lose.
pub(crate) fn surplus(owned: &[u16], quota: usize) -> &[u16] {
    &owned[quota.min(owned.len())..]
}

/// The order in which to try to take: each member begins elsewhere, so that they do not all ask for the same one.
pub(crate) fn candidates(partitions: u16, members: usize, rank: usize) -> impl Iterator<Item = u16> {
    let first = usize::from(partitions) * rank / members.max(1);
    let first = u16::try_from(first).unwrap_or_default();
    (first..partitions).chain(0..first.min(partitions))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Members in the order of joining, each with what it owns.
    struct Members {
        partitions: u16,
        members: Vec<(u32, Vec<u16>)>,
    }

    impl Members {
        fn owners(&self) -> BTreeMap<u16, u32> {
            let all = self.members.iter().flat_map(|(name, owned)| owned.iter().map(|part| (*part, *name)));
            all.collect()
        }

        /// One after the other does what it has to, beginning with any, until nobody has anything to do.
        fn settle(&mut self, begin: usize) {
            for _ in 0..3 {
                for turn in 0..self.members.len() {
                    let (count, rank) = (self.members.len(), (begin + turn) % self.members.len());
                    let quota = quota(self.partitions, count, rank);
                    let free = self.owners();
                    let owned = &mut self.members[rank].1;
                    let given = surplus(owned, quota).len();
                    owned.truncate(owned.len() - given);
                    let take =
                        candidates(self.partitions, count, rank).filter(|part| !free.contains_key(part));
                    owned.extend(take.take(quota.saturating_sub(owned.len())));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn each_partition_has_one_owner_shares_are_even_and_no_more_is_moved_than_must_be(
            partitions in 1_u16..70,
            changes in prop::collection::vec((any::<bool>(), 0_usize..20, 0_usize..20), 1..40),
        ) {
            let mut all = Members { partitions, members: vec![(0, Vec::new())] };
            all.settle(0);
            for (n, (joins, who, begin)) in (1_u32..).zip(changes) {
                let before = all.owners();
                let must_move = if joins {
                    all.members.push((n, Vec::new()));
                    quota(partitions, all.members.len(), all.members.len() - 1)
                } else if all.members.len() > 1 {
                    all.members.remove(who % all.members.len()).1.len()
                } else {
                    continue;
                };
                all.settle(begin);
                let owned: usize = all.members.iter().map(|(_, owned)| owned.len()).sum();
                prop_assert_eq!((owned, all.owners().len()), (usize::from(partitions), usize::from(partitions)));
                let counts = || all.members.iter().map(|(_, owned)| owned.len());
                prop_assert!(counts().max() <= counts().min().map(|least| least + 1));
                let moved = all.owners().iter().filter(|(part, owner)| before.get(part) != Some(owner)).count();
                prop_assert_eq!(moved, must_move);
            }
        }

        #[test]
        fn all_are_tried_once(partitions in 0_u16..200, members in 1_usize..50, rank in 0_usize..50) {
            let mut tried: Vec<u16> = candidates(partitions, members, rank % members).collect();
            tried.sort_unstable();
            prop_assert_eq!(tried, (0..partitions).collect::<Vec<_>>());
        }
    }
}
