//! The types of members that are more than a string or a number.

mod base64;
mod mode;
mod owner;
mod raw_path;
mod timestamp;

pub use base64::Base64;
pub use mode::Mode;
pub use owner::Owner;
pub use raw_path::RawPath;
pub use timestamp::Timestamp;
