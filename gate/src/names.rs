//! The guest's questions that are with the resolver, and the names that answers have given to addresses.

use std::net::IpAddr;
use std::time::Duration;

use crate::dns::Question;
use crate::table::Table;

/// How many questions may be with the resolver.
const MAX_QUESTIONS: usize = 1024;
/// How many addresses are remembered.
const MAX_ADDRESSES: usize = 4096;
/// How many names are remembered for one address.
const MAX_NAMES: usize = 8;

/// How long an answer is waited for.
const QUESTION: Duration = Duration::from_secs(30);
/// An address is remembered as long as its answer is valid, within these limits, in seconds.
const ADDRESS: (u32, u32) = (60, 86400);

/// A question that is with the resolver.
#[derive(Debug)]
pub(crate) struct Pending {
    pub question: Question,
    /// The guest's message up to the end of its question.
    pub head: Vec<u8>,
    pub asker: Asker,
}

/// Where an answer goes.
#[derive(Debug)]
pub(crate) enum Asker {
    /// To a program that has sent a datagram.
    Datagram {
        /// The Ethernet addresses of a frame to the guest.
        ethernet: [u8; 12],
        resolver: IpAddr,
        guest: (IpAddr, u16),
        /// How much it takes, in bytes.
        size: usize,
    },
    /// To the connection of this number.
    Stream(usize),
}

/// The questions without an answer, and the names by which the guest knows addresses.
#[derive(Debug)]
pub(crate) struct Names {
    pending: Table<u32, Pending>,
    /// The number of the last question.
    token: u32,
    /// The names of an address, each with the time until which it is one.
    known: Table<IpAddr, Vec<(String, Duration)>>,
}

impl Names {
    /// Nothing was asked yet.
    pub(crate) fn new() -> Self {
        Self { pending: Table::new(MAX_QUESTIONS), token: 0, known: Table::new(MAX_ADDRESSES) }
    }

    /// Keeps a question until it is answered. Returns its number.
    pub(crate) fn ask(&mut self, pending: Pending, now: Duration) -> u32 {
        self.token = self.token.wrapping_add(1);
        self.pending.insert(self.token, now + QUESTION, pending);
        self.token
    }

    /// Takes the question with this number, unless it has waited too long.
    pub(crate) fn take(&mut self, token: u32, now: Duration) -> Option<Pending> {
        self.pending.remove(&token, now)
    }

    /// Remembers that the guest has got an address for a name, for so many seconds.
    pub(crate) fn learn(&mut self, address: IpAddr, name: &str, ttl: u32, now: Duration) {
        let until = now + Duration::from_secs(ttl.clamp(ADDRESS.0, ADDRESS.1).into());
        self.remember(address, name, until, now);
    }

    fn remember(&mut self, address: IpAddr, name: &str, until: Duration, now: Duration) {
        let mut names = self.known.remove(&address, now).unwrap_or_default();
        names.retain(|(known, until)| known != name && *until > now);
        if names.len() >= MAX_NAMES {
            names.remove(0);
        }
        names.push((name.to_owned(), until));
        let last = names.iter().map(|(_, until)| *until).max().unwrap_or(until);
        self.known.insert(address, last, names);
    }

    /// The names of an address.
    pub(crate) fn of(&self, address: IpAddr, now: Duration) -> Vec<String> {
        let names = self.known.get(&address, now).map(Vec::as_slice).unwrap_or_default();
        names.iter().filter(|(_, until)| *until > now).map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_known_for_its_time_and_an_old_one_pushes_no_other_out() {
        let address = IpAddr::from([203, 0, 113, 9]);
        let at = Duration::from_secs;
        let mut names = Names::new();
        names.learn(address, "long.test", 86400, at(0));
        let short: Vec<String> = (1..MAX_NAMES).map(|number| format!("short{number}.test")).collect();
        for name in &short {
            names.learn(address, name, 60, at(0));
        }
        assert_eq!(names.of(address, at(59)).len(), MAX_NAMES);
        assert_eq!(names.of(address, at(60)), ["long.test"]);
        names.learn(address, "new.test", 60, at(60));
        assert_eq!(names.of(address, at(60)), ["long.test", "new.test"]);
        // As long as they are valid, the oldest goes.
        for name in &short {
            names.learn(address, name, 60, at(61));
        }
        let known = names.of(address, at(61));
        assert_eq!((known.len(), known[0].as_str(), known[7].as_str()), (8, "new.test", "short7.test"));
    }

    #[test]
    fn a_name_is_known_for_a_minute_at_least_and_a_day_at_most() {
        let address = IpAddr::from([203, 0, 113, 9]);
        for (ttl, seconds) in [(0, 60), (61, 61), (u32::MAX, 86400)] {
            let mut names = Names::new();
            names.learn(address, "a.test", ttl, Duration::ZERO);
            let is_known = |seconds| !names.of(address, Duration::from_secs(seconds)).is_empty();
            assert!(is_known(seconds - 1) && !is_known(seconds), "{ttl}");
        }
    }
}
