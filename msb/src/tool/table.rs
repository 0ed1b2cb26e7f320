//! A table for a terminal, and how its cells are written.

use std::io::{self, IsTerminal, Write};

use crate::tool::exit::{OutputError, printable};

/// Whether a tool prints a table: for a person, unless JSON is asked for.
pub fn is_wanted(json: bool) -> bool {
    !json && io::stdout().is_terminal()
}

/// Prints rows below a header, in columns that are as wide as their widest cell. Control characters are replaced: images and guests
/// name things.
///
/// # Errors
/// See [`OutputError`].
pub fn print<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> Result<(), OutputError> {
    let text = lay_out(header, rows);
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(OutputError::of_stdout)
}

fn lay_out<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let header = header.map(str::to_owned);
    let rows: Vec<[String; N]> =
        [&header].into_iter().chain(rows).map(|row| row.clone().map(|cell| printable(&cell))).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A duration in its largest unit: `42s`, `7m`, `3h`, `12d`.
pub fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A size in MiB or GiB.
pub fn size(bytes: u64) -> String {
    match bytes >> 20 {
        0..10 => format!("{:.1}M", bytes as f64 / f64::from(1 << 20)),
        mib @ 10..10_240 => format!("{mib}M"),
        mib => format!("{:.1}G", mib as f64 / 1024.0),
    }
}

/// A cell, or a dash if there is nothing to show.
pub fn cell(text: Option<String>) -> String {
    text.filter(|text| !text.is_empty()).unwrap_or_else(|| "-".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a".into(), "long\u{1b}[2J".into()], ["bcdef".into(), "x".into()]];
        assert_eq!(lay_out(["NAME", "WHAT"], &rows), "NAME   WHAT\na      long\u{fffd}[2J\nbcdef  x\n");
    }

    #[test]
    fn a_cell_without_a_text_has_a_dash() {
        for (text, expected) in [(Some("a"), "a"), (Some(""), "-"), (None, "-")] {
            assert_eq!(cell(text.map(str::to_owned)), expected);
        }
        assert!(!is_wanted(true));
    }

    #[test]
    fn durations_and_sizes_are_short() {
        let texts = [0, 59, 60, 3599, 3600, 90_000, 172_800].map(duration);
        assert_eq!(texts, ["0s", "59s", "1m", "59m", "1h", "25h", "2d"]);
        assert_eq!([0, 1 << 20, 512 << 20, 20 << 30].map(size), ["0.0M", "1.0M", "512M", "20.0G"]);
    }
}
