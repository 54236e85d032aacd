//! Where a group goes on if it is lost: deleted with its stream, or destroyed.
//!
//! The server keeps nothing of a group that is gone. What this process knows is better than where groups begin: `$` would
//! skip what came meanwhile, and `0` would deliver everything again. Other processes' entries in flight are not known here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use steadfast_core::Token;

use crate::group::Group;

/// Stream and group.
type Key = (Arc<str>, Arc<str>);

/// The last entry of each lost group that needs no second delivery.
#[derive(Default)]
pub(crate) struct Resume(Mutex<HashMap<Key, Token>>);

impl Resume {
    /// The group is lost, and everything up to `last` was settled. Of several readers the one that is furthest back counts.
    pub(crate) fn lost(&self, group: &Group, last: Token) {
        let mut known = self.lock();
        let point = known.entry(key(group)).or_insert(last);
        *point = last.min(*point);
    }

    /// Where to go on.
    pub(crate) fn point(&self, group: &Group) -> Option<Token> {
        self.lock().get(&key(group)).copied()
    }

    /// The group is there again.
    pub(crate) fn found(&self, group: &Group) {
        self.lock().remove(&key(group));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Token>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(group: &Group) -> Key {
    (Arc::clone(&group.stream), Arc::clone(&group.name))
}

/// The ID before this one.
pub(crate) fn before(token: Token) -> Token {
    match token {
        Token(0, 0) => token,
        Token(ms, 0) => Token(ms - 1, u64::MAX),
        Token(ms, sequence) => Token(ms, sequence - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::Stream;

    #[test]
    fn the_furthest_back_counts_until_the_group_is_there_again() {
        let (resume, group) = (Resume::default(), Stream::new("orders").group("billing"));
        for last in [Token(7, 3), Token(7, 1), Token(9, 0)] {
            resume.lost(&group, last);
        }
        assert_eq!(resume.point(&group), Some(Token(7, 1)));
        resume.found(&group);
        assert_eq!(resume.point(&group), None);
    }

    #[test]
    fn before_the_first_of_a_millisecond_is_the_last_of_the_one_before() {
        assert_eq!(before(Token(5, 2)), Token(5, 1));
        assert_eq!(before(Token(5, 0)), Token(4, u64::MAX));
        assert_eq!(before(Token(0, 0)), Token(0, 0));
    }
}
