//! ls: what is in the store.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use msb::store::snapshot_name::{self, Named};
use msb::store::{layers, layout, snapshot};
use msb::tool::{line, table};
use serde::Serialize;

use crate::args::{Config, Type};
use crate::image::Image;
use crate::inventory::{Erofs, Inventory, name_of};
use crate::sandbox::Sandbox;
use crate::size;
use crate::vm::{self, Vm};

/// A line of output. A member that is not known, or that a type does not have, is null.
#[derive(Debug, Serialize)]
struct Item {
    #[serde(rename = "type")]
    kind: Type,
    name: String,
    digest: Option<String>,
    bytes: u64,
    /// The part of an image that other images have too.
    shared_bytes: Option<u64>,
    /// Seconds since 1970.
    last_use: Option<u64>,
    used_by: Vec<String>,
    complete: Option<bool>,
    path: PathBuf,
}

/// Prints what is in the store.
///
/// # Errors
/// What cannot be read; a name that nothing has.
pub(crate) fn run(config: &Config) -> anyhow::Result<()> {
    let inventory = Inventory::read(&config.home)?;
    let names = snapshot_name::all(&inventory.home);
    let items = items(&inventory, &names, config)?;
    let is_listed = |name: &String| {
        // An image may have a short name.
        let is_image =
            |item: &Item| inventory.images.iter().any(|image| image.path == item.path && image.is_named(name));
        let is_snapshot = |item: &Item| {
            item.kind == Type::Snapshot
                && names.get(name).is_some_and(|named| item.digest.as_ref() == Some(&named.digest))
        };
        items.iter().any(|item| item.name == *name || is_image(item) || is_snapshot(item))
    };
    if let Some(missing) = config.names.iter().find(|name| !is_listed(name)) {
        anyhow::bail!("{missing:?}: nothing of that name (\"msb-store ls\" lists all)");
    }
    if table::is_wanted(config.json) {
        let rows: Vec<_> = items.iter().map(row).collect();
        table::print(["TYPE", "NAME", "DIGEST", "SIZE", "SHARED", "USED", "BY"], &rows)?;
        return Ok(());
    }
    Ok(items.iter().try_for_each(line::put)?)
}

/// The things of the types and names that are asked for.
fn items(inventory: &Inventory, names: &BTreeMap<String, Named>, config: &Config) -> anyhow::Result<Vec<Item>> {
    let is_wanted = |kind| config.kind.is_none_or(|wanted| wanted == kind);
    let is_named = |name: &String| config.names.is_empty() || config.names.contains(name);
    let is_image_named =
        |image: &&Image| config.names.is_empty() || config.names.iter().any(|name| image.is_named(name));
    let mut items = Vec::new();
    if is_wanted(Type::Image) {
        let counts = inventory.layer_counts();
        for image in inventory.images.iter().filter(is_image_named) {
            items.push(of_image(inventory, image, |id| counts.get(id).copied().unwrap_or_default())?);
        }
    }
    if is_wanted(Type::Layer) {
        for id in inventory.layers.iter().filter(|id| is_named(id)) {
            items.push(of_layer(inventory, id)?);
        }
    }
    if is_wanted(Type::Erofs) {
        for erofs in inventory.erofs.iter().filter(|erofs| is_named(&erofs.name())) {
            items.push(of_erofs(inventory, erofs)?);
        }
    }
    let sandboxes = inventory.sandboxes.iter().filter(|sandbox| !layout::is_staging(&sandbox.path));
    for sandbox in sandboxes.filter(|sandbox| is_named(&sandbox.name)) {
        if is_wanted(Type::Sandbox) && sandbox.has_upper {
            items.push(of_sandbox(sandbox)?);
        }
        if is_wanted(Type::Disk) && sandbox.has_disk {
            items.push(of_disk(sandbox)?);
        }
    }
    if is_wanted(Type::Snapshot) {
        let snapshots = size::children(&layout::snapshots(&inventory.home))?;
        for path in snapshots.into_iter().filter(|path| !layout::is_staging(path)) {
            let digest = snapshot::digest_of(&path);
            let has = |named: &Named| digest.as_ref() == Some(&named.digest);
            let names: Vec<_> = names.iter().filter(|(_, named)| has(named)).map(|(name, _)| name).collect();
            if is_named(&name_of(&path)) || names.iter().any(|name| config.names.contains(name)) {
                items.push(of_snapshot(&path, &names)?);
            }
        }
    }
    if is_wanted(Type::Volume) {
        let volumes = size::children(&layout::volumes(&inventory.home))?;
        for path in volumes.into_iter().filter(|path| is_named(&name_of(path))) {
            items.push(of_volume(inventory, &path)?);
        }
    }
    Ok(items)
}

fn of_image(inventory: &Inventory, image: &Image, count: impl Fn(&str) -> usize) -> anyhow::Result<Item> {
    let (mut bytes, mut shared) = (0, 0);
    for id in &image.layers {
        let size = size::of_layer(&inventory.home, id)?;
        bytes += size;
        shared += if count(id) > 1 { size } else { 0 };
    }
    for hex in &image.documents {
        bytes += size::of(&layout::blob(&inventory.home, hex))?;
    }
    let is_root = |lower: &[PathBuf]| {
        let has = |dir: &PathBuf| layout::layer_id(&inventory.home, dir).is_some_and(|id| image.layers.contains(id));
        !lower.is_empty() && lower.iter().all(has)
    };
    let vms = inventory.vms.iter().filter(|vm| is_root(vm.lower()));
    let mut used_by: Vec<String> = vms.map(|vm| vm.label()).collect();
    let sandboxes = inventory.sandboxes.iter().filter(|sandbox| is_root(&sandbox.owner.lower));
    used_by.extend(sandboxes.map(|sandbox| format!("sandbox {}", sandbox.name)));
    Ok(Item {
        name: image.name.clone(),
        digest: Some(image.digest.clone()),
        shared_bytes: Some(shared),
        last_use: seconds(Some(image.last_use)),
        used_by,
        complete: Some(image.is_complete),
        ..Item::new(Type::Image, &image.path, bytes)
    })
}

fn of_layer(inventory: &Inventory, id: &str) -> anyhow::Result<Item> {
    let images = inventory.images.iter().filter(|image| image.layers.contains(id));
    Ok(Item {
        last_use: seconds(layers::last_use(&inventory.home, id)),
        used_by: images.map(|image| image.name.clone()).collect(),
        ..Item::new(Type::Layer, &layout::layer(&inventory.home, id), size::of_layer(&inventory.home, id)?)
    })
}

fn of_erofs(inventory: &Inventory, erofs: &Erofs) -> anyhow::Result<Item> {
    let has_all = |image: &&Image| !erofs.layers.is_empty() && erofs.layers.iter().all(|id| image.layers.contains(id));
    Ok(Item {
        used_by: inventory.images.iter().filter(has_all).map(|image| image.name.clone()).collect(),
        ..Item::new(Type::Erofs, &erofs.path, size::of(&erofs.path)?)
    })
}

fn of_sandbox(sandbox: &Sandbox) -> anyhow::Result<Item> {
    let disk = if sandbox.has_disk { size::of(&sandbox.path.join(layout::SCRATCH_DISK))? } else { 0 };
    Ok(Item {
        last_use: seconds(sandbox.last_use),
        used_by: sandbox.users.clone(),
        ..Item::new(Type::Sandbox, &sandbox.path, size::of(&sandbox.path)?.saturating_sub(disk))
    })
}

fn of_disk(sandbox: &Sandbox) -> anyhow::Result<Item> {
    let path = sandbox.path.join(layout::SCRATCH_DISK);
    Ok(Item {
        name: sandbox.name.clone(),
        last_use: seconds(path.symlink_metadata().and_then(|meta| meta.modified()).ok()),
        used_by: sandbox.users.clone(),
        ..Item::new(Type::Disk, &path, size::of(&path)?)
    })
}

fn of_snapshot(path: &Path, names: &[&String]) -> anyhow::Result<Item> {
    let saved = vm::saved(path);
    let names = names.iter().map(|name| format!("msb-run --snapshot {name}"));
    Ok(Item {
        digest: snapshot::digest_of(path),
        last_use: seconds(path.symlink_metadata().and_then(|meta| meta.modified()).ok()),
        complete: Some(saved.is_some()),
        used_by: saved.iter().map(Vm::origin).chain(names).collect(),
        ..Item::new(Type::Snapshot, path, size::of(path)?)
    })
}

fn of_volume(inventory: &Inventory, path: &Path) -> anyhow::Result<Item> {
    let name = name_of(path);
    let vms = inventory.vms.iter().filter(|vm| vm.has_volume(&name));
    Ok(Item {
        used_by: vms.map(|vm| format!("VM {}", vm.name)).collect(),
        ..Item::new(Type::Volume, path, size::of(path)?)
    })
}

impl Item {
    fn new(kind: Type, path: &Path, bytes: u64) -> Self {
        Self {
            kind,
            name: name_of(path),
            digest: None,
            bytes,
            shared_bytes: None,
            last_use: None,
            used_by: Vec::new(),
            complete: None,
            path: path.to_owned(),
        }
    }
}

fn seconds(time: Option<SystemTime>) -> Option<u64> {
    Some(time?.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

fn row(item: &Item) -> [String; 7] {
    let now = seconds(Some(SystemTime::now())).unwrap_or_default();
    let digest =
        item.digest.as_ref().map(|digest| digest.split(':').next_back().unwrap_or_default().chars().take(12).collect());
    let users = match (item.complete, item.kind) {
        (Some(false), Type::Snapshot) => "damaged".to_owned(),
        (Some(false), _) => "incomplete: pull it again".to_owned(),
        _ => item.used_by.join(", "),
    };
    let name = if matches!(item.kind, Type::Layer | Type::Snapshot) {
        item.name.chars().take(12).collect()
    } else {
        item.name.clone()
    };
    [
        item.kind.name().to_owned(),
        name,
        table::cell(digest),
        table::size(item.bytes),
        table::cell(item.shared_bytes.map(table::size)),
        table::cell(item.last_use.map(|used| table::duration(now.saturating_sub(used)))),
        table::cell(Some(users)),
    ]
}
