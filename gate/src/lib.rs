//! The filter between a guest's network card and the host's network: frames in, verdicts out.
//!
//! The guest sends Ethernet frames, and everything in them is hostile. [`Gate`] decides for each whether it may go on to
//! passt, which opens ordinary sockets of the host for it. Nothing here does I/O or reads a clock, so every rule has a table
//! test and the whole is fuzzed. All state is in tables of a fixed capacity: neither a flood nor an answer makes it grow.
//!
//! The parser is our own. The only frames that pass have headers of one fixed shape, without options, fragments, extension
//! headers or tags. etherparse and smoltcp's `wire` parse all of these, so each would have to be rejected again after parsing,
//! and neither edits a frame in place; the checks at fixed offsets in [`frame`] are shorter than the code to use them.

mod address;
mod arp;
mod connection;
mod dhcp;
mod dns;
mod dns_stream;
pub mod frame;
mod gate;
mod http;
mod link_local;
mod log;
mod lookup;
mod names;
mod policy;
mod reply;
mod rule;
mod table;
mod tls;

pub use address::{Prefix, is_never};
pub use arp::announcement;
pub use dhcp::Lease;
pub use gate::{Config, Gate, MAX_QUERY, Query, Verdict};
pub use log::{Denial, Log};
pub use lookup::{Lookup, Reply, Servers};
pub use policy::{Mode, Policy, PolicyRule};
pub use rule::{Protocol, Rule, RuleError, Target};
