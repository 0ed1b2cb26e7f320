//! The members that several operations share, and the types of members that are not plain strings or numbers.

mod attributes;
mod base64;
pub(crate) mod mode;
pub(crate) mod owner;
mod raw_path;
mod timestamp;

pub(crate) use attributes::members_with_attributes;
pub use base64::Base64;
pub use mode::Mode;
pub use owner::Owner;
pub use raw_path::RawPath;
pub use timestamp::Timestamp;
