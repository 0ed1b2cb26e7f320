//! A client of container registries: names of images, credentials, registries.conf, and requests that are retried and
//! authenticated.
//!
//! It is for the tools that pull and push. What a registry sends is read with a limit, and nothing of it is trusted: a caller
//! checks digests.

mod challenge;
pub mod client;
pub mod credentials;
pub mod digest;
pub mod json;
pub mod reference;
pub mod registries;
pub mod retry;
