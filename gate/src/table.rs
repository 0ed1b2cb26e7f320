//! A map of a fixed capacity: the oldest entry makes room for a new one.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

/// The map. Its entries expire.
#[derive(Debug)]
pub(crate) struct Table<K, V> {
    capacity: usize,
    entries: HashMap<K, Entry<V>>,
    /// Keys with their entries' serial numbers, in the order of insertion. Some may name entries that are gone.
    order: VecDeque<(K, u64)>,
    serial: u64,
}

#[derive(Debug)]
struct Entry<V> {
    serial: u64,
    until: Duration,
    value: V,
}

impl<K: Clone + Eq + Hash, V> Table<K, V> {
    /// An empty one.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, entries: HashMap::new(), order: VecDeque::new(), serial: 0 }
    }

    /// Inserts or replaces an entry that is valid until `until`.
    pub(crate) fn insert(&mut self, key: K, until: Duration, value: V) {
        self.serial += 1;
        let serial = self.serial;
        self.entries.insert(key.clone(), Entry { serial, until, value });
        self.order.push_back((key, serial));
        while self.entries.len() > self.capacity {
            let Some((oldest, serial)) = self.order.pop_front() else { break };
            if self.entries.get(&oldest).is_some_and(|entry| entry.serial == serial) {
                self.entries.remove(&oldest);
            }
        }
        if self.order.len() > 2 * self.capacity {
            let entries = &self.entries;
            self.order.retain(|(key, serial)| entries.get(key).is_some_and(|entry| entry.serial == *serial));
        }
    }

    /// The entry, if it is valid at `now`.
    pub(crate) fn get(&self, key: &K, now: Duration) -> Option<&V> {
        self.entries.get(key).filter(|entry| entry.until > now).map(|entry| &entry.value)
    }

    /// Takes the entry out, if it is valid at `now`.
    pub(crate) fn remove(&mut self, key: &K, now: Duration) -> Option<V> {
        self.entries.remove(key).filter(|entry| entry.until > now).map(|entry| entry.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(10);
    const LATER: Duration = Duration::from_secs(11);

    #[test]
    fn the_oldest_entry_makes_room() {
        let mut table = Table::new(2);
        for key in 1..=3 {
            table.insert(key, LATER, ());
        }
        assert_eq!([1, 2, 3].map(|key| table.get(&key, NOW).is_some()), [false, true, true]);
        table.insert(2, LATER, ());
        table.insert(4, LATER, ());
        assert_eq!([2, 3, 4].map(|key| table.get(&key, NOW).is_some()), [true, false, true]);
    }

    #[test]
    fn an_entry_that_was_replaced_often_keeps_its_place() {
        let mut table = Table::new(2);
        for _ in 0..5 {
            table.insert(1, LATER, ());
        }
        assert_eq!(table.order.len(), 1);
        table.insert(2, LATER, ());
        table.insert(3, LATER, ());
        assert_eq!([1, 2, 3].map(|key| table.get(&key, NOW).is_some()), [false, true, true]);
    }

    #[test]
    fn it_stays_small_when_entries_come_and_go() {
        let mut table = Table::new(4);
        let mut longest = 0;
        for key in 0..1000 {
            table.insert(key % 7, LATER, ());
            table.insert(key, LATER, ());
            table.remove(&key, NOW);
            assert!(table.order.len() <= 8 && table.entries.len() <= 4);
            longest = longest.max(table.order.len());
        }
        // It is tidied when half of it may be stale, and not at every insertion.
        assert_eq!(longest, 8);
    }

    #[test]
    fn an_entry_expires() {
        let mut table = Table::new(4);
        table.insert(1, NOW, "x");
        assert_eq!(table.get(&1, NOW), None);
        assert_eq!(table.remove(&1, NOW), None);
        table.insert(1, LATER, "x");
        assert_eq!(table.get(&1, NOW), Some(&"x"));
        assert_eq!(table.remove(&1, NOW), Some("x"));
        assert_eq!(table.get(&1, NOW), None);
    }
}
