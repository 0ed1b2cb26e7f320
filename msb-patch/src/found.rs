//! What was at an operation's path before, for the report.

use std::path::{Path, PathBuf};

use msb::overlay::Layer;
use msb::overlay::resolve::{End, Resolved};
use msb::record::script::GUEST_DIR;

/// What was there.
#[derive(Clone, Debug)]
pub struct Found {
    /// The path with all symlinks followed.
    pub resolved: PathBuf,
    /// The layer that answered for it, if something was there.
    pub layer: Option<Layer>,
    /// Whether something was there.
    pub exists: bool,
    /// What is done to it.
    pub action: &'static str,
    /// Where it goes.
    pub to: Option<PathBuf>,
}

impl Found {
    /// From the end of a way: `action` is done to what is there; what is not is created.
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

    /// A script, which is made in the guest's own directory for them.
    pub fn script(name: &str, exists: bool) -> Self {
        let resolved = Path::new(GUEST_DIR).join(name);
        Self { resolved, layer: None, exists, action: if exists { "replace" } else { "create" }, to: None }
    }

    /// A path at which nothing can be.
    pub fn nothing(path: &Path) -> Self {
        Self { resolved: path.to_owned(), layer: None, exists: false, action: "nothing", to: None }
    }
}
