//! gc: removes what nothing refers to.

use std::collections::BTreeMap;

use msb::tool::{exit, line, table};

use crate::args::Config;
use crate::collect::{Scope, Settled, collect};

/// Removes what nothing refers to, and prints it.
///
/// # Errors
/// As [`collect`].
pub(crate) fn run(config: &Config) -> anyhow::Result<()> {
    let scope = Scope { dry_run: config.dry_run, older_than: config.older_than, all: config.all, ..Scope::default() };
    put(config, &scope)
}

/// Collects, and prints each thing: on a terminal those that go, otherwise all. The sum goes to stderr.
///
/// # Errors
/// As [`collect`].
pub(crate) fn put(config: &Config, scope: &Scope) -> anyhow::Result<()> {
    let mut sums: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    let (is_table, mut rows) = (table::is_wanted(config.json), Vec::new());
    collect(&config.home, scope, &mut |settled: Settled| {
        let sum = sums.entry(settled.state).or_default();
        *sum = (sum.0 + 1, sum.1 + settled.bytes);
        if !is_table {
            line::put(&settled)?;
        } else if settled.state != "kept" {
            let kind = settled.kind.name().to_owned();
            rows.push([kind, settled.name, table::size(settled.bytes), settled.why.to_owned()]);
        }
        Ok(())
    })?;
    if !rows.is_empty() {
        table::print(["TYPE", "NAME", "SIZE", "WHY"], &rows)?;
    }
    let total = |state: &str| {
        let (count, bytes) = sums.get(state).copied().unwrap_or_default();
        format!("{count} {state} ({:.1} MiB)", bytes as f64 / f64::from(1 << 20))
    };
    let gone = if scope.dry_run { total("unneeded") } else { total("removed") };
    exit::warn("msb-store", &format!("{gone}, {}", total("kept")));
    Ok(())
}
