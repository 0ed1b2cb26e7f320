//! Many connections on one byte stream: a virtio-serial port between host and guest, for a VMM without a vsock device.
//!
//! ```text
//! 0        3      4            8            8 + length
//! | length | kind | connection | payload    |
//!   u24 LE   u8     u32 LE
//! ```
//!
//! Either side opens connections: the host those with even numbers, the guest those with odd ones. A connection starts with
//! [`WINDOW`] bytes of credit in each direction, and its receiver grants more as it passes bytes on, so a connection that is not
//! read never holds up the others. `End` ends one direction; `Close` both, and what still arrives is discarded.
//!
//! The host can freeze the channel: both sides stop at the end of a frame. Then the guest can be saved, and the channel goes on
//! where it was (`Thaw`), or, in a guest that was started from what was saved, begins anew without connections (`Restart`).
//!
//! [`Decoder`] and [`Connections`] do no I/O, and the peer is not trusted. [`Multiplexer`] is the loop of both sides.

mod connections;
mod frame;
mod multiplexer;

pub use connections::{Connections, MAX_CONNECTIONS, Side, Taken, WINDOW};
pub use frame::{Decoder, Error, Frame, HEADER, MAX_DATA, Piece, data_header};
pub use multiplexer::{Ends, FREEZE, FROZEN, Multiplexer, RESTART, THAW};
