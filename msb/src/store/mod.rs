//! The state of msb on the host: where it is kept, how a file of it becomes visible, and the EROFS images made from it.

pub mod erofs;
pub mod home;
