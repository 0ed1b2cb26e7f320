//! A pull: from a source to a record. Documents first, then the layers that the store does not have, several at once;
//! then all of it becomes visible, and the record names it.

use std::collections::HashMap;
use std::fs::DirBuilder;
use std::io::IsTerminal;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, anyhow, ensure};
use msb::overlay::beneath::Dir;
use msb::overlay::whiteout;
use msb::record::{Image, Record, Rootfs, path};
use msb::store::{chain, home};
use oci_distribution::Reference;

use crate::archive::Files;
use crate::args::Config;
use crate::chunks::is_hangup;
use crate::credentials;
use crate::digest::Digest;
use crate::disk;
use crate::docker::DockerArchive;
use crate::image::{Found, Nowhere, Origin, find, pair};
use crate::implied::inherit;
use crate::layer::{Layer, fetch_and_unpack};
use crate::layout::Layout;
use crate::manifest::{Configuration, select};
use crate::platform::Platform;
use crate::progress::Progress;
use crate::reference::Source;
use crate::registry::Registry;
use crate::store::Store;

/// How many layers are on their way at once.
const AT_ONCE: usize = 4;
/// Pulls what `config` names.
///
/// # Errors
/// Words that name the source.
pub(crate) fn pull(config: &Config) -> anyhow::Result<Record> {
    if let Source::Path(path) = &config.source {
        let mut record = Record::new();
        record.rootfs = Some(disk::root(path)?);
        return Ok(record);
    }
    ensure!(
        rustix::process::geteuid().is_root(),
        "unpacking layers needs root, for owners and device nodes (run it with sudo)"
    );
    let home = home::home()?;
    from_elsewhere(config, &home).map_err(|error| match is_full(&error) {
        true => anyhow!("{error:#} (make room in {home:?}, or set MSB_HOME)"),
        false => error,
    })
}

fn is_full(error: &anyhow::Error) -> bool {
    let is_full = |error: &std::io::Error| error.kind() == std::io::ErrorKind::StorageFull;
    error.chain().any(|cause| cause.downcast_ref().is_some_and(is_full))
}

fn from_elsewhere(config: &Config, home: &Path) -> anyhow::Result<Record> {
    let store = Store::open(home)?;
    match &config.source {
        Source::Registry(reference) => {
            let name = reference.whole();
            from_registry(config, &store, reference).with_context(|| format!("image {name:?}"))
        }
        Source::OciDir(path, tag) => {
            let open = || from_layout(config, &store, Layout::dir(path)?, tag.as_deref(), named("oci:", path, tag)?);
            open().with_context(|| format!("layout {path:?}"))
        }
        Source::OciArchive(path, tag) => {
            let open = || {
                let layout = Layout::of(Files::tar(path)?)?;
                from_layout(config, &store, layout, tag.as_deref(), named("oci-archive:", path, tag)?)
            };
            open().with_context(|| format!("archive {path:?}"))
        }
        Source::DockerArchive(path, tag) => {
            let open = || {
                let archive = DockerArchive::of(Files::tar(path)?)?;
                from_docker(config, &store, &archive, tag.as_deref(), named("docker-archive:", path, tag)?)
            };
            open().with_context(|| format!("archive {path:?}"))
        }
        Source::Stdin => from_stdin(config, &store).context("archive on stdin"),
        Source::Path(_) => unreachable!("taken above"),
    }
}

/// An archive's name in the record: as given, made absolute.
fn named(prefix: &str, path: &Path, tag: &Option<String>) -> anyhow::Result<String> {
    let tag = tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
    Ok(format!("{prefix}{}{tag}", path::absolute(path)?.display()))
}

fn from_registry(config: &Config, store: &Store, reference: &Reference) -> anyhow::Result<Record> {
    let wanted = config.platform.clone().unwrap_or_else(Platform::host);
    // What a digest names cannot have changed: a store that has all of it needs no registry.
    if let Some(digest) = reference.digest() {
        let digest = Digest::parse(digest)?;
        if let Ok(found) = find(&Nowhere, store, &digest, &wanted)
            && let Some(lower) = stored(store, &found.layers)
        {
            return Ok(record(reference.whole(), found, lower));
        }
    }
    let image = format!("{}/{}", reference.registry(), reference.repository());
    let credentials = credentials::find(&image, config.authfile.as_deref())?;
    let registry = Registry::connect(reference, config.plain_http, config.ca_file.as_deref(), credentials)?;
    let digest = match reference.digest() {
        Some(digest) => Digest::parse(digest)?,
        None => registry.resolve()?,
    };
    let found = find(&registry, store, &digest, &wanted)?;
    take(config, store, &registry, found, reference.whole())
}

fn from_layout(
    config: &Config,
    store: &Store,
    layout: Layout,
    tag: Option<&str>,
    name: String,
) -> anyhow::Result<Record> {
    let wanted = config.platform.clone().unwrap_or_else(Platform::host);
    let chosen = layout.choose(tag)?;
    let found = find(&layout, store, &select(&chosen, &wanted)?.digest, &wanted)?;
    take(config, store, &layout, found, name)
}

fn from_docker(
    config: &Config,
    store: &Store,
    archive: &DockerArchive,
    tag: Option<&str>,
    name: String,
) -> anyhow::Result<Record> {
    let wanted = config.platform.clone().unwrap_or_else(Platform::host);
    let (text, blobs) = archive.choose(tag)?;
    let configuration = Configuration::parse(&text)?;
    configuration.check_platform(&wanted)?;
    let layers = pair(blobs, &configuration)?;
    let documents = vec![(Digest::of(&text), text)];
    take(config, store, archive, Found { digest: None, configuration, layers, documents }, name)
}

fn from_stdin(config: &Config, store: &Store) -> anyhow::Result<Record> {
    // The documents come last in some archives, so it has to be all there before the first layer can be checked.
    ensure!(!std::io::stdin().is_terminal(), "stdin is a terminal (pipe an archive in)");
    let spool = store.scratch("archive");
    let mut file = std::fs::File::create(&spool)?;
    let length = std::io::copy(&mut std::io::stdin().lock(), &mut file).context("spooling it")?;
    ensure!(length > 0, "it is empty");
    let files = Files::tar(&spool)?;
    std::fs::remove_file(&spool)?;
    if Layout::is_in(&files) {
        from_layout(config, store, Layout::of(files)?, None, "-".into())
    } else {
        let archive = DockerArchive::of(files).map_err(|_| anyhow!("neither an OCI nor a docker archive"))?;
        from_docker(config, store, &archive, None, "-".into())
    }
}

/// The stacked ID of each layer, bottom first. A diff_id that occurs twice has the ID of its highest position.
fn stacked_ids(layers: &[Layer]) -> Vec<String> {
    let mut ids: Vec<String> = Vec::new();
    for layer in layers {
        ids.push(chain::stacked_id(ids.last().map(String::as_str), layer.diff_id.hex()));
    }
    let highest = |layer: &Layer| layers.iter().rposition(|other| other.diff_id == layer.diff_id).unwrap_or(0);
    layers.iter().map(|layer| ids[highest(layer)].clone()).collect()
}

/// A layer in the store. It is stored under its diff_id if its form is the same on any layers, else under its stacked ID.
fn in_store(store: &Store, layer: &Layer, stacked_id: &str) -> Option<PathBuf> {
    store.layer(layer.diff_id.hex()).or_else(|| store.layer(stacked_id))
}

/// The lower directories, top first, if the store has all of them.
fn stored(store: &Store, layers: &[Layer]) -> Option<Vec<PathBuf>> {
    let mut lower = Vec::new();
    for (layer, stacked_id) in layers.iter().zip(stacked_ids(layers)) {
        let stored = in_store(store, layer, &stacked_id)?;
        // A layer that cannot be read is pulled again, and that reports the error.
        push(&mut lower, stored).ok()?;
    }
    Some(top_first(lower))
}

/// Pushes a layer onto those below. overlayfs ignores an opaque root, so the layers that such a root hides are removed.
fn push(lower: &mut Vec<PathBuf>, layer: PathBuf) -> anyhow::Result<()> {
    if whiteout::is_opaque(&Dir::open(&layer)?)? {
        lower.clear();
    }
    lower.push(layer);
    Ok(())
}

/// Turns layers from bottom first to top first. A layer that occurs twice keeps its highest position, which hides the other one;
/// overlayfs refuses a directory that occurs twice.
fn top_first(layers: Vec<PathBuf>) -> Vec<PathBuf> {
    let mut lower: Vec<PathBuf> = Vec::new();
    for layer in layers.into_iter().rev() {
        if !lower.contains(&layer) {
            lower.push(layer);
        }
    }
    lower
}

fn take(config: &Config, store: &Store, origin: &dyn Origin, found: Found, name: String) -> anyhow::Result<Record> {
    let stacked_ids = stacked_ids(&found.layers);
    let missing = missing(store, &found.layers, &stacked_ids);
    let progress = Progress::new(config.quiet);
    let unpacked = unpack_all(&progress, store, origin, &missing)?;
    let mut lower: Vec<PathBuf> = Vec::new();
    let mut fresh: HashMap<PathBuf, String> = HashMap::new();
    for (layer, stacked_id) in found.layers.iter().zip(&stacked_ids) {
        let Some((scratch, implied)) = unpacked.get(layer.diff_id.hex()) else {
            let stored =
                in_store(store, layer, stacked_id).ok_or_else(|| anyhow!("a layer vanished from the store"))?;
            push(&mut lower, stored)?;
            continue;
        };
        let below: Vec<PathBuf> = top_first(lower.clone()).into_iter().filter(|dir| dir != scratch).collect();
        inherit(scratch, implied, &below).with_context(|| format!("layer {:?}", layer.blob.name()))?;
        let id = if implied.is_empty() { layer.diff_id.hex() } else { stacked_id };
        fresh.insert(scratch.clone(), id.to_owned());
        push(&mut lower, scratch.clone())?;
    }
    let layers: Vec<(PathBuf, String)> = fresh.clone().into_iter().collect();
    store.commit(&layers, &found.documents)?;
    progress.finish(&name);
    let place = |dir: PathBuf| fresh.get(&dir).map_or(dir, |id| store.layer_path(id));
    let lower = top_first(lower).into_iter().map(place).collect();
    Ok(record(name, found, lower))
}

/// The layers to fetch, each diff_id once.
fn missing<'a>(store: &Store, layers: &'a [Layer], stacked_ids: &[String]) -> Vec<&'a Layer> {
    let mut missing: Vec<&Layer> = Vec::new();
    for (layer, stacked_id) in layers.iter().zip(stacked_ids) {
        let is_listed = missing.iter().any(|other| other.diff_id == layer.diff_id);
        if !is_listed && in_store(store, layer, stacked_id).is_none() {
            missing.push(layer);
        }
    }
    missing
}

/// Directory and implied directories of each layer, by diff_id.
type Unpacked = HashMap<String, (PathBuf, Vec<PathBuf>)>;

fn unpack_all(progress: &Progress, store: &Store, origin: &dyn Origin, layers: &[&Layer]) -> anyhow::Result<Unpacked> {
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let done = Mutex::new((Unpacked::new(), Vec::<anyhow::Error>::new()));
    thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(layers.len()) {
            scope.spawn(|| {
                while let Some(layer) = layers.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = unpack_one(store, origin, layer, progress, &stop);
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    match result {
                        Ok(unpacked) => drop(done.0.insert(layer.diff_id.hex().to_owned(), unpacked)),
                        Err(error) => {
                            stop.store(true, Ordering::Relaxed);
                            done.1.push(error);
                            return;
                        }
                    }
                }
            });
        }
    });
    let (unpacked, errors) = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    match errors.into_iter().reduce(|first, next| if is_hangup(&first) { next } else { first }) {
        Some(error) => Err(error),
        None => Ok(unpacked),
    }
}

fn unpack_one(
    store: &Store,
    origin: &dyn Origin,
    layer: &Layer,
    progress: &Progress,
    stop: &AtomicBool,
) -> anyhow::Result<(PathBuf, Vec<PathBuf>)> {
    let scratch = store.scratch(layer.diff_id.hex());
    DirBuilder::new().mode(0o700).create(&scratch).with_context(|| format!("{scratch:?}"))?;
    let bar = progress.layer(&layer.diff_id, layer.blob.size);
    let implied = fetch_and_unpack(origin, layer, &scratch, &bar, stop)?;
    Ok((scratch, implied))
}

fn record(name: String, found: Found, lower: Vec<PathBuf>) -> Record {
    let mut image = Image::new(name);
    image.digest = found.digest.map(|digest| digest.to_string());
    image.platform = Some(found.configuration.platform.to_string()).filter(|platform| platform != "/");
    image.config = found.configuration.config;
    let mut record = Record::new();
    (record.image, record.rootfs) = (Some(image), Some(Rootfs::layers(lower)));
    record
}
