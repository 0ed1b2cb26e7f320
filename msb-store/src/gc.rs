//! gc: removes what nothing refers to.

use std::collections::BTreeMap;

use msb::tool::{exit, line, table};

use crate::args::Config;
use crate::collect::{KEPT, Scope, Settled, collect};

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
    let mut report = Report::new(config);
    collect(&config.home, scope, &mut |settled: Settled| {
        let sum = sums.entry(settled.state).or_default();
        *sum = (sum.0 + 1, sum.1 + settled.bytes);
        report.add(settled)
    })?;
    report.finish()?;
    let total = |state: &str| {
        let (count, bytes) = sums.get(state).copied().unwrap_or_default();
        format!("{count} {state} ({:.1} MiB)", bytes as f64 / f64::from(1 << 20))
    };
    let gone = if scope.dry_run { total("unneeded") } else { total("removed") };
    exit::warn("msb-store", &format!("{gone}, {}", total(KEPT)));
    Ok(())
}

/// What is printed about things that go: on a terminal a table, otherwise a line of JSON for each thing, also for one that stays.
pub(crate) struct Report {
    is_table: bool,
    rows: Vec<[String; 4]>,
}

impl Report {
    pub(crate) fn new(config: &Config) -> Self {
        Self { is_table: table::is_wanted(config.json), rows: Vec::new() }
    }

    /// Adds a thing.
    ///
    /// # Errors
    /// That stdout cannot be written.
    pub(crate) fn add(&mut self, settled: Settled) -> anyhow::Result<()> {
        if !self.is_table {
            line::put(&settled)?;
        } else if settled.state != KEPT {
            let kind = settled.kind.name().to_owned();
            self.rows.push([kind, settled.name, table::size(settled.bytes), settled.why.to_owned()]);
        }
        Ok(())
    }

    /// Prints the table.
    ///
    /// # Errors
    /// That stdout cannot be written.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        if !self.rows.is_empty() {
            table::print(["TYPE", "NAME", "SIZE", "WHY"], &self.rows)?;
        }
        Ok(())
    }
}
