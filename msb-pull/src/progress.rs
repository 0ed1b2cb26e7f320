//! Progress on stderr: one bar for each layer on a terminal, otherwise a line from time to time and one at the end.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use msb_registry::digest::Digest;

/// The narrowest terminal that has room for the speed.
const NARROW: u16 = 72;
/// How often a log gets a line.
const INTERVAL: Duration = Duration::from_secs(10);

/// The progress of one pull.
pub(crate) struct Progress {
    bars: MultiProgress,
    style: ProgressStyle,
    count: Arc<Count>,
    /// Writes lines to a log, if stderr is one.
    writer: Option<JoinHandle<()>>,
}

/// The layers and bytes that have arrived so far.
struct Count {
    name: String,
    start: Instant,
    layers: AtomicU64,
    done: AtomicU64,
    total: AtomicU64,
    has_ended: Mutex<bool>,
    ended: Condvar,
}

impl Progress {
    /// For the image of this name.
    pub(crate) fn new(name: &str, is_quiet: bool) -> Self {
        let target = if is_quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let columns = rustix::termios::tcgetwinsize(std::io::stderr()).map_or(80, |size| size.ws_col);
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .into_iter()
            .find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()));
        let count = Arc::new(Count::new(name));
        let is_log = !is_quiet && !std::io::stderr().is_terminal();
        Self {
            bars: MultiProgress::with_draw_target(target),
            style: style(columns, &locale.unwrap_or_default()),
            writer: is_log.then(|| {
                thread::spawn({
                    let count = count.clone();
                    move || count.write_lines()
                })
            }),
            count,
        }
    }

    /// Announces that so many compressed bytes will be fetched.
    pub(crate) fn expect(&self, bytes: u64) {
        self.count.total.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The bar of one layer of `size` compressed bytes.
    pub(crate) fn layer(&self, diff_id: &Digest, size: u64) -> Bar {
        self.count.layers.fetch_add(1, Ordering::Relaxed);
        let bar = ProgressBar::new(size).with_prefix(diff_id.short().to_owned());
        Bar(self.bars.add(bar.with_style(self.style.clone())), self.count.clone())
    }

    /// Reports that another pull is waited for.
    pub(crate) fn wait_for(&self, diff_id: &Digest) {
        let line = format!("{}: waiting for another pull that fetches layer {}", self.count.name, diff_id.short());
        if self.writer.is_some() {
            msb::tool::exit::warn("msb-pull", &line);
        } else {
            // Hidden bars print nothing. A line that cannot be written is not a reason to fail.
            let _ = self.bars.println(format!("msb-pull: {line}"));
        }
    }

    /// Reports what was fetched, if stderr is a log.
    pub(crate) fn finish(&self) {
        if self.writer.is_some() && self.count.layers.load(Ordering::Relaxed) > 0 {
            msb::tool::exit::warn("msb-pull", &self.count.last_line(self.count.start.elapsed()));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        *self.count.has_ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.count.ended.notify_all();
        if let Some(writer) = self.writer.take() {
            // It has nothing to report.
            let _ = writer.join();
        }
    }
}

impl Count {
    fn new(name: &str) -> Self {
        let (layers, done, total) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let (has_ended, ended) = (Mutex::new(false), Condvar::new());
        Self { name: name.to_owned(), start: Instant::now(), layers, done, total, has_ended, ended }
    }

    /// Writes a line every [`INTERVAL`] until the pull ends.
    fn write_lines(&self) {
        let mut has_ended = self.has_ended.lock().unwrap_or_else(PoisonError::into_inner);
        while !*has_ended {
            let (guard, waited) = self
                .ended
                .wait_timeout_while(has_ended, INTERVAL, |has_ended| !*has_ended)
                .unwrap_or_else(PoisonError::into_inner);
            has_ended = guard;
            if waited.timed_out() && self.layers.load(Ordering::Relaxed) > 0 {
                msb::tool::exit::warn("msb-pull", &self.line(self.start.elapsed()));
            }
        }
    }

    fn line(&self, elapsed: Duration) -> String {
        let done = self.done.load(Ordering::Relaxed);
        let total = HumanBytes(self.total.load(Ordering::Relaxed));
        format!("{}: {} of {total} ({}/s)", self.name, HumanBytes(done), HumanBytes(rate(done, elapsed)))
    }

    fn last_line(&self, elapsed: Duration) -> String {
        let (layers, done) = (self.layers.load(Ordering::Relaxed), self.done.load(Ordering::Relaxed));
        let noun = if layers == 1 { "layer" } else { "layers" };
        let (size, rate) = (HumanBytes(done), HumanBytes(rate(done, elapsed)));
        format!(
            "{}: unpacked {layers} {noun}, {size} compressed, in {:.1} s ({rate}/s)",
            self.name,
            elapsed.as_secs_f64()
        )
    }
}

/// Bytes per second.
fn rate(bytes: u64, elapsed: Duration) -> u64 {
    let rate = u128::from(bytes) * 1000 / elapsed.as_millis().max(1);
    u64::try_from(rate).unwrap_or(u64::MAX)
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
pub(crate) struct Bar(ProgressBar, Arc<Count>);

impl Bar {
    /// Counts received bytes.
    pub(crate) fn advance(&self, bytes: usize) {
        self.0.inc(bytes as u64);
        self.1.done.fetch_add(bytes as u64, Ordering::Relaxed);
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
    fn a_line_has_the_size_the_time_and_the_rate() {
        let count = Count::new("demo");
        count.total.store(20 << 20, Ordering::Relaxed);
        count.done.store(5 << 20, Ordering::Relaxed);
        count.layers.store(2, Ordering::Relaxed);
        let elapsed = Duration::from_millis(2500);
        assert_eq!(count.line(elapsed), "demo: 5.00 MiB of 20.00 MiB (2.00 MiB/s)");
        assert_eq!(count.last_line(elapsed), "demo: unpacked 2 layers, 5.00 MiB compressed, in 2.5 s (2.00 MiB/s)");
        assert_eq!(rate(7, Duration::ZERO), 7000);
    }

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
