//! One of the images of a stack of layers: all of them merged, or one layer alone.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One image of a stack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Where it is, or will be.
    pub image: PathBuf,
    /// The layers of the stack up to this image's, top first.
    pub lower: Vec<PathBuf>,
    /// What it has of those.
    pub form: Form,
}

/// What an image has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// All layers, merged.
    Merged,
    /// The topmost layer alone, with its whiteouts and opaque directories.
    Layer,
}
