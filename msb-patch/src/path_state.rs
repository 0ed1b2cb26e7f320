//! What was at an operation's path before it ran, for the report.

use std::path::{Path, PathBuf};

use msb::overlay::Layer;
use msb::overlay::resolve::{End, Resolved};
use msb::record::script::GUEST_DIR;

/// The state of a path before an operation.
#[derive(Clone, Debug)]
pub struct PathState {
    /// The path with all symlinks resolved.
    pub resolved: PathBuf,
    /// The layer of what was there.
    pub layer: Option<Layer>,
    /// Whether something was there.
    pub exists: bool,
    /// What the operation does to it.
    pub action: &'static str,
    /// Where it is moved.
    pub to: Option<PathBuf>,
}

impl PathState {
    /// The state of a resolved path. The operation does `action` to what is there, or creates it.
    pub fn at(at: &Resolved, action: &'static str) -> Self {
        let layer = match &at.end {
            End::Leaf(_, leaf) => Some(leaf.layer),
            End::Dir => at.steps.last().map(|step| step.dir.top().1),
            End::Missing(_) => None,
        };
        let exists = layer.is_some();
        let action = if exists { action } else { "create" };
        Self { resolved: at.path(), layer, exists, action, to: None }
    }

    /// The state of a script in the guest's directory for scripts.
    pub fn script(name: &str, exists: bool) -> Self {
        let resolved = Path::new(GUEST_DIR).join(name);
        Self { resolved, layer: None, exists, action: if exists { "replace" } else { "create" }, to: None }
    }

    /// The state of a path at which nothing can exist.
    pub fn nothing(path: &Path) -> Self {
        Self { resolved: path.to_owned(), layer: None, exists: false, action: "nothing", to: None }
    }
}
