//! The two IDs of a layer that depend on the layers below it, and how many layers there may be.
//!
//! - The *chain ID* is that of the OCI image specification (`config.md`, "Layer ChainID"). That of a bottom layer is its diff_id. It
//!   names the EROFS image of a stack.
//! - The *stacked ID* names an unpacked layer whose form depends on the layers below it: it implies directories without listing them,
//!   and those have the attributes that they have below. It differs from the diff_id also for a bottom layer, since a layer that is
//!   stored under its diff_id has the same form on any layers.
//!
//! All IDs are 64 hex digits, without `sha256:`.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::layout;

/// The most layers of an image. The kernel's overlayfs takes 500 lower directories (`OVL_MAX_STACK`), and one of them is the empty
/// directory that [`super::erofs`] adds when it merges a stack.
pub const MAX_LAYERS: usize = 499;

/// The chain ID of a layer on a stack that has the chain ID `below`.
pub fn chain_id(below: Option<&str>, diff_id: &str) -> String {
    match below {
        None => diff_id.to_owned(),
        Some(below) => hex::encode(Sha256::digest(format!("sha256:{below} sha256:{diff_id}"))),
    }
}

/// The stacked ID of a layer on a layer that has the stacked ID `below`.
pub fn stacked_id(below: Option<&str>, diff_id: &str) -> String {
    let below = below.map_or_else(|| "nothing".to_owned(), |below| format!("sha256:{below}"));
    hex::encode(Sha256::digest(format!("{below} sha256:{diff_id}")))
}

/// The chain ID of a stack of directories, top first, if all of them are layers in the store at `home`: those never change. A layer
/// counts with the ID that it is stored under.
pub fn chain_id_of(home: &Path, lower: &[PathBuf]) -> Option<String> {
    let mut chain: Option<String> = None;
    for layer in lower.iter().rev() {
        chain = Some(chain_id(chain.as_deref(), layout::layer_id(home, layer)?));
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(names: &[char]) -> Vec<PathBuf> {
        names.iter().map(|name| Path::new("/home/layers/sha256").join(name.to_string().repeat(64))).collect()
    }

    #[test]
    fn a_chain_is_that_of_the_oci_specification_and_of_the_store_alone() {
        let home = Path::new("/home");
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        assert_eq!(chain_id_of(home, &layers(&['a'])), Some(a.clone()));
        let two = hex::encode(Sha256::digest(format!("sha256:{a} sha256:{b}")));
        assert_eq!(chain_id_of(home, &layers(&['b', 'a'])), Some(two));
        assert_ne!(chain_id_of(home, &layers(&['a', 'b'])), chain_id_of(home, &layers(&['b', 'a'])));
        for other in ["/elsewhere/layer", "/home/layers/sha256/short", "/home/layers/sha256"] {
            assert_eq!(chain_id_of(home, &[other.into()]), None, "{other}");
        }
    }

    #[test]
    fn a_stacked_id_is_never_a_diff_id() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        assert_ne!(stacked_id(None, &a), a);
        assert_ne!(stacked_id(None, &a), stacked_id(Some(&b), &a));
        assert_eq!(stacked_id(Some(&a), &b), hex::encode(Sha256::digest(format!("sha256:{a} sha256:{b}"))));
    }
}
