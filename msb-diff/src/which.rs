//! Which layer supplies a path.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use msb::overlay::resolve::{End, Error, Last, resolve};
use msb::overlay::{Layer, Merged, Node};
use msb::record::{Record, Text};
use serde::Serialize;
use serde_json::Value;

use crate::difference::{State, shown};

/// Where a path is from.
#[derive(Debug, Serialize)]
pub(crate) struct Which {
    path: Text,
    resolved: Text,
    #[serde(flatten)]
    state: State,
    dir: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    history: Option<Value>,
}

impl Which {
    /// The line for a terminal.
    pub(crate) fn text(&self) -> String {
        let by = self.history.as_ref().and_then(|entry| entry["created_by"].as_str());
        let by = by.map(|by| format!(" ({})", msb::record::printable(by))).unwrap_or_default();
        format!("{}: {}{by}", shown(&self.path), self.state.layer)
    }
}

/// Looks a path up; `None` if it does not exist. `history` has an entry for each lower layer, top first, or is empty.
///
/// # Errors
/// The error of reading, with the path.
pub(crate) fn which(
    root: &Merged,
    record: &Record,
    lower: &[PathBuf],
    history: &[Value],
    path: &OsStr,
) -> anyhow::Result<Option<Which>> {
    let mut absolute = OsString::from(if path.as_bytes().starts_with(b"/") { "" } else { "/" });
    absolute.push(path);
    let found = match resolve(root, Path::new(&absolute), Last::Keep) {
        Err(Error::NotDirectory(_) | Error::Missing(_)) => return Ok(None),
        other => other.with_context(|| format!("{path:?}"))?,
    };
    let resolved = found.path();
    let node = match found.end {
        End::Missing(_) => return Ok(None),
        End::Leaf(_, leaf) => Node::Leaf(leaf),
        End::Dir => Node::Dir(found.steps.last().expect("the root stays").dir.clone()),
    };
    let layer = match &node {
        Node::Leaf(leaf) => leaf.layer,
        Node::Dir(dir) => dir.top().1,
    };
    let (dir, history) = match (layer, &record.upper) {
        (Layer::Lower(number), _) => (lower[number].clone(), history.get(number).cloned()),
        (Layer::Upper, Some(upper)) => (upper.dir.clone(), None),
        (Layer::Upper, None) => unreachable!("the record has no upper"),
    };
    let (path, resolved) = (path.into(), resolved.as_os_str().into());
    Ok(Some(Which { path, resolved, state: State::of(&node)?, dir, history }))
}
