//! Requests that copy a file up before they are answered.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Fs;
use crate::node::Node;
use crate::tree::Tree;

/// The most threads for copy-ups. Further ones are made by the threads that answer requests.
const MAX_COPYING: usize = 64;

impl Fs {
    /// Answers a request that copies a file up first: on a thread of its own if that takes long, so that others do not wait for it.
    pub(super) fn after_copy(
        &self,
        node: io::Result<Arc<Node>>,
        answer: impl FnOnce(&Tree, io::Result<Arc<Node>>) + Send + 'static,
    ) {
        let is_long = node.as_ref().is_ok_and(|node| node.dir().is_err() && self.tree.is_long_copy(node));
        if !is_long || self.copying.fetch_add(1, Ordering::Relaxed) >= MAX_COPYING {
            if is_long {
                self.copying.fetch_sub(1, Ordering::Relaxed);
            }
            return answer(&self.tree, node);
        }
        let (tree, copying) = (self.tree.clone(), self.copying.clone());
        let started = std::thread::Builder::new().name("copy-up".into()).spawn(move || {
            answer(&tree, node);
            copying.fetch_sub(1, Ordering::Relaxed);
        });
        // The crate answers such a request with EIO.
        if started.is_err() {
            self.copying.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
