//! Frames between host and guest: a length, a kind, a payload.
//!
//! ```text
//! 0        4      5                5 + length
//! | length | kind | payload        |
//!   u32 LE   u8
//! ```
//!
//! One vsock connection carries one exec, one question about execs, one copy, one shutdown, the output of all detached execs, or the
//! agent's report that it is up. The first frame in each direction is [`Message::Hello`]. The peer is not trusted: a length is checked
//! against the limit of its kind before the payload is read, and any violation ends the connection. `man/msb-wire.5` specifies the
//! protocol.
//!
//! The bodies of messages may gain members, with a default for peers that do not send them. They are plain structs because both ends
//! are built from this source; the version of the protocol changes when a member changes its meaning.
//!
//! ```
//! use msb::wire::{Decoder, Decoded, Message, Stream};
//!
//! let mut bytes = Message::hello().to_frame();
//! Message::Data(Stream::Stdout, b"hi".to_vec()).put(&mut bytes);
//!
//! // Bytes arrive in any pieces.
//! let mut decoder = Decoder::default();
//! let mut received = &bytes[..];
//! assert_eq!(decoder.next(&mut received)?, Some(Decoded::Message(Message::hello())));
//! assert_eq!(decoder.next(&mut received)?, Some(Decoded::Data(Stream::Stdout, b"hi")));
//! assert_eq!(decoder.next(&mut received)?, None);
//! # Ok::<(), msb::wire::Error>(())
//! ```

pub mod channel;
pub mod container;
pub mod copy;
mod decoder;
pub mod dial;
pub mod exec;
pub mod exit_status;
mod frame;
mod message;
mod report;
pub mod sequence;
pub mod upper;

pub use decoder::{Decoded, Decoder};
pub use frame::{
    AGENT_PORT, Error, HEADER, MAX_CONTROL, MAX_DATA, MAX_OUTPUT, READY_PORT, Stream, VERSION, data_header, put_data,
    read_header,
};
pub use message::Message;
pub use report::Report;
