//! check: compares what is in the store with its checksums and digests.

use std::fs::File;
use std::io;
use std::path::Path;

use anyhow::Context;
use msb::store::checksums::{self, Difference, Kind};
use msb::store::{Error, erofs, layers, layout};
use msb::tool::{exit, line, table};
use serde::Serialize;
use sha2::{Digest, Sha256, Sha512};

use crate::args::{Config, Type};
use crate::image::Image;
use crate::inventory::{Inventory, name_of};
use crate::size;

/// A line of output: something that is not as it was.
#[derive(Debug, Serialize)]
struct Problem {
    #[serde(rename = "type")]
    kind: Type,
    name: String,
    /// The path in the layer, or else in the host.
    path: String,
    problem: &'static str,
    members: Vec<&'static str>,
}

/// Prints what is damaged. Returns the exit code.
///
/// # Errors
/// What cannot be read.
pub(crate) fn run(config: &Config) -> anyhow::Result<u8> {
    let inventory = Inventory::read(&config.home)?;
    let is_known =
        |name: &String| inventory.layers.contains(name) || inventory.images.iter().any(|image| image.is_named(name));
    if let Some(name) = config.names.iter().find(|name| !is_known(name)) {
        anyhow::bail!("{name:?}: no image and no layer of that name (\"msb-store ls\" lists all)");
    }
    let is_all = config.names.is_empty();
    let is_named = |image: &&Image| is_all || config.names.iter().any(|name| image.is_named(name));
    let images: Vec<_> = inventory.images.iter().filter(is_named).collect();
    let is_wanted =
        |id: &String| is_all || config.names.contains(id) || images.iter().any(|image| image.layers.contains(id));
    let mut check = Check { config, checked: 0, unknown: 0, problems: 0 };
    for image in images.iter().filter(|image| !image.is_complete) {
        check.put(Type::Image, &image.name, &image.path, "damaged", Vec::new())?;
    }
    for id in inventory.layers.iter().filter(|id| is_wanted(id)) {
        check.layer(id).with_context(|| format!("layer {id:?}"))?;
    }
    for path in size::children(&layout::blobs(&config.home))? {
        let hex = name_of(&path);
        if is_all || images.iter().any(|image| image.documents.contains(&hex)) {
            check.blob(&path).with_context(|| format!("{path:?}"))?;
        }
    }
    for found in inventory.erofs.iter().filter(|_| is_all) {
        check.checked += 1;
        if erofs::open(&found.path).is_err() && found.path.exists() {
            check.put(Type::Erofs, &found.name(), &found.path, "damaged", Vec::new())?;
        }
    }
    let Check { checked, unknown, problems, .. } = check;
    let unknown = if unknown == 0 { String::new() } else { format!(", {unknown} layers without checksums") };
    exit::warn("msb-store", &format!("{checked} checked, {problems} problems{unknown}"));
    Ok(if problems == 0 { 0 } else { exit::FAILED })
}

struct Check<'a> {
    config: &'a Config,
    checked: u64,
    unknown: u64,
    problems: u64,
}

impl Check<'_> {
    fn put(
        &mut self,
        kind: Type,
        name: &str,
        path: &Path,
        problem: &'static str,
        members: Vec<&'static str>,
    ) -> anyhow::Result<()> {
        self.problems += u64::from(problem != "unknown");
        // Images choose the names, which need not be UTF-8.
        let path = path.to_string_lossy().into_owned();
        let problem = Problem { kind, name: name.to_owned(), path, problem, members };
        Ok(if table::is_wanted(self.config.json) { put_line(&problem) } else { line::put(&problem) }?)
    }

    fn layer(&mut self, id: &str) -> anyhow::Result<()> {
        let path = layout::layer(&self.config.home, id);
        let _held = match layers::hold_one(&path) {
            // It was removed meanwhile.
            Err(Error::Caller(_)) => return Ok(()),
            other => other?,
        };
        let known = layout::checksums(&self.config.home, id);
        if !known.exists() {
            self.unknown += 1;
            return self.put(Type::Layer, id, &path, "unknown", Vec::new());
        }
        self.checked += 1;
        let differences = match checksums::verify(&path, &known) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return self.put(Type::Layer, id, &known, "damaged", Vec::new());
            }
            other => other?,
        };
        for Difference { path, kind, members } in differences {
            let problem = match kind {
                Kind::Changed => "changed",
                Kind::Missing => "missing",
                Kind::Added => "added",
            };
            self.put(Type::Layer, id, &path, problem, members)?;
        }
        Ok(())
    }

    fn blob(&mut self, path: &Path) -> anyhow::Result<()> {
        let hex = name_of(path);
        if !layout::is_id(&hex) {
            return Ok(());
        }
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        self.checked += 1;
        let found = if hex.len() == 64 { hash::<Sha256>(file)? } else { hash::<Sha512>(file)? };
        if found != hex {
            self.put(Type::Blob, &hex, path, "damaged", Vec::new())?;
        }
        Ok(())
    }
}

fn hash<H: Digest + io::Write>(mut file: File) -> io::Result<String> {
    let mut hash = H::new();
    io::copy(&mut file, &mut hash)?;
    Ok(hex::encode(hash.finalize()))
}

fn put_line(problem: &Problem) -> Result<(), exit::OutputError> {
    let members = if problem.members.is_empty() { String::new() } else { format!(" ({})", problem.members.join(", ")) };
    let Problem { kind, name, path, problem, .. } = problem;
    let text = format!("{} {name}: {}: {problem}{members}", kind.name(), path);
    line::put_bytes(format!("{}\n", exit::printable(&text)).as_bytes())
}
