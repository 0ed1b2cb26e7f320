//! Progress on stderr, one bar a layer. Nothing is drawn where stderr is no terminal.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::digest::Digest;

/// All bars of one pull.
pub(crate) struct Progress(MultiProgress);

impl Progress {
    pub(crate) fn new(quiet: bool) -> Self {
        let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        Self(MultiProgress::with_draw_target(target))
    }

    /// The bar of one layer of `size` compressed bytes.
    pub(crate) fn layer(&self, diff_id: &Digest, size: u64) -> Bar {
        let style = ProgressStyle::with_template("{prefix} {bar:32} {bytes:>11} of {total_bytes:<11} {bytes_per_sec}");
        let bar = ProgressBar::new(size).with_prefix(diff_id.hex()[..12].to_owned());
        Bar(self.0.add(bar.with_style(style.expect("the template is well-formed"))))
    }
}

/// The bar of one layer.
pub(crate) struct Bar(ProgressBar);

impl Bar {
    /// More bytes came.
    pub(crate) fn advance(&self, bytes: usize) {
        self.0.inc(bytes as u64);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
