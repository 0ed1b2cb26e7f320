//! Copies of files and trees as a stream of messages, in either direction between host and guest: [`send`] reads a tree, [`receive`] makes
//! one, and [`target`] decides where, by the rules of `docker cp`.
//!
//! Neither end trusts the other one, nor the processes that change its own files meanwhile. A name in the stream is one component, every
//! step is made from a descriptor and follows no symlink, and a file gets its name once it is complete. Memory does not grow with the
//! number or the size of files, except for the names of files with several hardlinks on the sending side, and some bytes for each directory
//! that the receiver makes, of a million at most.

pub mod receive;
pub mod send;
pub mod target;

use std::fmt::Display;
use std::io;

use crate::wire::Stream;

/// The stream of what the host receives: data, and the credit for the whole copy.
pub const TO_HOST: Stream = Stream::Stdout;
/// The stream of what the guest receives.
pub const TO_GUEST: Stream = Stream::Stdin;

/// How deep directories may nest. A level takes one descriptor of the receiver, and two of the sender.
pub const MAX_DEPTH: usize = 1000;

/// Adds to an error what it happened to.
fn at(subject: impl Display) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{subject}: {error}"))
}

#[cfg(test)]
mod tests;
