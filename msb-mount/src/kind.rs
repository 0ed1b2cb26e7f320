//! Which file system merges the layers.

use clap::ValueEnum;

/// Which file system merges the layers.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    /// msb-mount's own, over FUSE
    #[default]
    Fuse,
    /// The kernel's overlayfs
    Overlay,
    /// overlayfs if it can be mounted, else FUSE
    Auto,
}

impl Kind {
    /// The value of the flag.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fuse => "fuse",
            Self::Overlay => "overlay",
            Self::Auto => "auto",
        }
    }
}
