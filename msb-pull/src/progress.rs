//! Progress on stderr: one bar for each layer on a terminal, otherwise one line at the end.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::digest::Digest;

/// The narrowest terminal that has room for the speed.
const NARROW: u16 = 72;

/// All bars of one pull.
pub(crate) struct Progress {
    bars: MultiProgress,
    style: ProgressStyle,
    layers: AtomicU64,
    bytes: AtomicU64,
    in_a_log: bool,
}

impl Progress {
    pub(crate) fn new(quiet: bool) -> Self {
        let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let columns = rustix::termios::tcgetwinsize(std::io::stderr()).map_or(80, |size| size.ws_col);
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .into_iter()
            .find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()));
        Self {
            bars: MultiProgress::with_draw_target(target),
            style: style(columns, &locale.unwrap_or_default()),
            layers: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            in_a_log: !quiet && !std::io::stderr().is_terminal(),
        }
    }

    /// The bar of one layer of `size` compressed bytes.
    pub(crate) fn layer(&self, diff_id: &Digest, size: u64) -> Bar {
        self.layers.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(size, Ordering::Relaxed);
        let bar = ProgressBar::new(size).with_prefix(diff_id.short().to_owned());
        Bar(self.bars.add(bar.with_style(self.style.clone())))
    }

    /// Reports what was fetched, if stderr is not a terminal.
    pub(crate) fn finish(&self, name: &str) {
        if let (true, layers @ 1..) = (self.in_a_log, self.layers.load(Ordering::Relaxed)) {
            let noun = if layers == 1 { "layer" } else { "layers" };
            let size = HumanBytes(self.bytes.load(Ordering::Relaxed));
            msb::tool::exit::warn("msb-pull", &format!("{name}: unpacked {layers} {noun}, {size} compressed"));
        }
    }
}

fn style(columns: u16, locale: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template(columns)).expect("the template is well-formed");
    if is_utf8(locale) { style } else { style.progress_chars("#> ") }
}

/// The template for a terminal with so many columns.
fn template(columns: u16) -> &'static str {
    match columns {
        ..NARROW => "{prefix} {wide_bar} {bytes} of {total_bytes}",
        _ => "{prefix} {wide_bar} {bytes:>11} of {total_bytes:<11} {bytes_per_sec:>12}",
    }
}

/// Whether a locale's characters go beyond ASCII, by its name.
fn is_utf8(locale: &str) -> bool {
    let charset = locale.split_once('.').map_or("", |(_, charset)| charset);
    let charset = charset.split('@').next().unwrap_or_default();
    charset.eq_ignore_ascii_case("utf-8") || charset.eq_ignore_ascii_case("utf8")
}

/// The bar of one layer.
pub(crate) struct Bar(ProgressBar);

impl Bar {
    /// Counts received bytes.
    pub(crate) fn advance(&self, bytes: usize) {
        self.0.inc(bytes as u64);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_fits_its_terminal() {
        for (columns, has_speed) in [(200, true), (72, true), (71, false), (0, false)] {
            assert_eq!(template(columns).contains("bytes_per_sec"), has_speed, "{columns}");
            // And both are templates.
            style(columns, "C");
        }
    }

    #[test]
    fn a_locale_says_what_can_be_drawn() {
        for (locale, expected) in [
            ("C.UTF-8", true),
            ("en_US.utf8", true),
            ("de_DE.UTF-8@euro", true),
            ("C", false),
            ("", false),
            ("de_DE.ISO-8859-1", false),
            ("utf-8", false),
        ] {
            assert_eq!(is_utf8(locale), expected, "{locale}");
        }
    }
}
