//! du: how much space things take, and how much of it gc would free.

use std::collections::BTreeMap;

use msb::tool::{line, table};
use serde::Serialize;

use crate::args::{Config, Type};
use crate::collect::{Scope, collect};

/// What the things of one type take.
#[derive(Debug, Serialize)]
struct Usage {
    #[serde(rename = "type")]
    kind: Type,
    count: u64,
    bytes: u64,
    reclaimable_bytes: u64,
}

/// Prints what the things of each type take.
///
/// # Errors
/// As [`collect`].
pub(crate) fn run(config: &Config) -> anyhow::Result<()> {
    let mut by_type: BTreeMap<Type, Usage> = BTreeMap::new();
    let scope = Scope { dry_run: true, ..Scope::default() };
    collect(&config.home, &scope, &mut |settled| {
        let new = || Usage { kind: settled.kind, count: 0, bytes: 0, reclaimable_bytes: 0 };
        let usage = by_type.entry(settled.kind).or_insert_with(new);
        usage.count += 1;
        usage.bytes += settled.bytes;
        usage.reclaimable_bytes += if settled.state == "kept" { 0 } else { settled.bytes };
        Ok(())
    })?;
    if !table::is_wanted(config.json) {
        return Ok(by_type.values().try_for_each(line::put)?);
    }
    let mut rows: Vec<_> = by_type.values().map(row).collect();
    let sum = |member: fn(&Usage) -> u64| by_type.values().map(member).sum();
    let (bytes, reclaimable) = (sum(|usage| usage.bytes), sum(|usage| usage.reclaimable_bytes));
    rows.push(["total".into(), String::new(), table::size(bytes), table::size(reclaimable)]);
    table::print(["TYPE", "COUNT", "SIZE", "RECLAIMABLE"], &rows)?;
    Ok(())
}

fn row(usage: &Usage) -> [String; 4] {
    // The space of an image is that of its layers and documents.
    let size = |bytes| if usage.kind == Type::Image { "-".to_owned() } else { table::size(bytes) };
    [usage.kind.name().into(), usage.count.to_string(), size(usage.bytes), size(usage.reclaimable_bytes)]
}
