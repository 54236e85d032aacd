//! What was published, and what was handled.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::names::Names;

/// The books of the shop. Delivery is at least once, so an order is booked by its message id: the second copy of a
/// message changes nothing.
#[derive(Debug)]
pub struct Ledger {
    names: Names,
    published: AtomicU64,
    books: Mutex<Books>,
}

#[derive(Debug, Default)]
struct Books {
    handled: HashSet<String>,
    accounts: HashMap<String, u64>,
}

impl Ledger {
    /// Empty books.
    pub fn new(names: &Names) -> Self {
        Self { names: names.clone(), published: AtomicU64::new(0), books: Mutex::default() }
    }

    /// Books an order, once.
    pub fn book(&self, message_id: Option<&str>, customer: &str, cents: u64) {
        let Some(id) = message_id.filter(|id| self.names.is_ours(id)) else { return };
        let mut books = self.books();
        if books.handled.insert(id.to_owned()) {
            *books.accounts.entry(customer.to_owned()).or_default() += cents;
        }
    }

    /// The broker has confirmed one order more.
    pub fn published(&self) {
        self.published.fetch_add(1, Ordering::Relaxed);
    }

    /// How many orders the broker has confirmed.
    pub fn published_count(&self) -> u64 {
        self.published.load(Ordering::Relaxed)
    }

    /// How many orders are booked.
    pub fn handled_count(&self) -> u64 {
        self.books().handled.len().try_into().unwrap_or(u64::MAX)
    }

    /// Whether the order of this message is booked.
    pub fn is_handled(&self, message_id: &str) -> bool {
        self.books().handled.contains(message_id)
    }

    /// How many customers have an account, and what they owe together.
    pub fn accounts(&self) -> (usize, u64) {
        let books = self.books();
        (books.accounts.len(), books.accounts.values().sum())
    }

    /// A handler that panicked while it held the lock left whole entries behind: each is one insertion.
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
