//! A run: from a record to its targets, and to the record of what was made.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use msb::overlay::Merged;
use msb::record::path::absolute;
use msb::record::script::GUEST_DIR;
use msb::record::{DiskFormat, Image, Record, Rootfs};
use msb::store::{home, layout as store, publish};
use msb::tool::exit::OutputError;
use msb::tool::interrupt::DeferExit;

use crate::args::Config;
use crate::base::{Base, Origin};
use crate::compression::Compression;
use crate::digest::{digest, hex_of};
use crate::directory::Directory;
use crate::document::{self, NewImage, Parts};
use crate::layer::{self, Layer, Out};
use crate::root::Root;
use crate::scripts::Scripts;
use crate::staged::{StagedDir, StagedFile, parent, remedy};
use crate::target::{Disk, Target};
use crate::walk::walk;
use crate::{disk, docker, layout, push};

/// The history's name of the layer of an upper.
const BY_UPPER: &str = "msb-pack: upper";
const BY_SCRIPTS: &str = "msb-pack: scripts";
const BY_SQUASH: &str = "msb-pack --squash";
const BY_REPACK: &str = "msb-pack: base";

/// Writes the targets.
///
/// # Errors
/// The error names the target or the layer.
pub(crate) fn pack(config: &Config, record: Record) -> anyhow::Result<Record> {
    let root = Root::open(&record)?;
    let merged = root.merged()?;
    let scripts = Scripts::read(&record.scripts, config.scripts_to.as_deref(), &merged)?;
    let origin = Origin::of(record.image.as_ref().map_or("", |image| &image.reference), &config.access);
    let run = Run { config, record: &record, root, merged, scripts, origin };
    let image =
        if config.targets.iter().any(Target::is_image) { Some(run.image().map_err(with_remedy)?) } else { None };
    let mut written = None;
    for target in &config.targets {
        // An interrupt ends the tool between two targets.
        drop(written.take());
        written = Some(run.write(target, image.as_ref()).map_err(with_remedy)?);
    }
    let made = run.made(image.as_ref())?;
    if let Some(deferred) = written {
        // The output is complete, so a late interrupt is ignored.
        deferred.finish();
    }
    Ok(made.into_record(record))
}

fn with_remedy(error: anyhow::Error) -> anyhow::Error {
    match remedy(&error) {
        Some(remedy) => anyhow!("{error:#} ({remedy})"),
        None => error,
    }
}

struct Run<'a> {
    config: &'a Config,
    record: &'a Record,
    root: Root,
    merged: Merged,
    scripts: Option<Scripts>,
    /// Where the layers of the base are.
    origin: Origin,
}

/// What the new record has in place of the old one's.
struct Made {
    image: Option<Image>,
    rootfs: Option<Rootfs>,
}

impl Made {
    fn into_record(self, mut record: Record) -> Record {
        if let Some(image) = self.image {
            record.image = Some(image);
        }
        if let Some(rootfs) = self.rootfs {
            record.rootfs = Some(rootfs);
            record.upper = None;
            record.mount = None;
        }
        record
    }
}

impl Run<'_> {
    /// Makes the layers and documents of the image.
    fn image(&self) -> anyhow::Result<NewImage> {
        let config = self.config;
        let home = home::home()?;
        let compression = config.compression.unwrap_or(Compression::Gzip);
        // The file system of the first image that is a directory or a file, where the blobs can get a name without a copy.
        let place = config.targets.iter().filter(|target| target.is_image()).find_map(Target::path);
        let place = place.map(|path| absolute(path)).transpose()?;
        let dir = place.as_deref().map_or(home.as_path(), |path| if path.is_dir() { path } else { parent(path) });
        publish::make_private_dir(&home)?;
        let base = Base::find(&home, self.record, &self.root);
        let mut layers = Vec::new();
        let mut changes = config.changes.clone();
        if config.squash {
            layers.push(layer::make(dir, compression, config.epoch, BY_SQUASH, |out| self.fill_whole(out))?);
        } else {
            layers.extend(self.base_layers(dir, compression, base.as_ref())?);
            if self.root.upper.is_some() {
                layers.push(layer::make(dir, compression, config.epoch, BY_UPPER, |out| self.fill_upper(out))?);
            }
            if let Some(scripts) = &self.scripts {
                layers.push(layer::make(dir, compression, config.epoch, BY_SCRIPTS, |out| {
                    scripts.add_to(out, config.epoch.unwrap_or(0), true)
                })?);
            }
        }
        if self.scripts.as_ref().is_some_and(|scripts| scripts.needs_path) {
            changes.path = Some(GUEST_DIR.to_owned());
        }
        let image = document::image(Parts {
            image: self.record.image.as_ref(),
            base: base.as_ref(),
            layers,
            changes: &changes,
            annotations: &config.annotations,
            epoch: config.epoch,
            is_squashed: config.squash || config.repack,
        })?;
        Ok(image)
    }

    /// The layers of the base: where they are, or written anew.
    fn base_layers(&self, dir: &Path, compression: Compression, base: Option<&Base>) -> anyhow::Result<Vec<Layer>> {
        if let Some(base) = base.filter(|_| !self.config.repack) {
            return Ok(base.layers.iter().map(Layer::of_base).collect());
        }
        let mut layers = Vec::new();
        for number in (0..self.root.lower.len()).rev() {
            let (below, merged) = self.root.layer(number)?;
            let made = layer::make(dir, compression, self.config.epoch, BY_REPACK, |out| walk(below, merged, out));
            layers.push(made.with_context(|| format!("layer {:?}", self.root.lower[number]))?);
        }
        Ok(layers)
    }

    fn fill_upper<W: Write>(&self, out: &mut Out<W>) -> anyhow::Result<()> {
        walk(Some(self.root.base()?), self.merged.clone(), out)
    }

    fn fill_whole<W: Write>(&self, out: &mut Out<W>) -> anyhow::Result<()> {
        walk(None, self.merged.clone(), out)?;
        match &self.scripts {
            Some(scripts) => scripts.add_to(out, self.config.epoch.unwrap_or(0), false),
            None => Ok(()),
        }
    }

    /// Writes a target. What is returned defers an interrupt that comes when the target is complete.
    fn write(&self, target: &Target, image: Option<&NewImage>) -> anyhow::Result<DeferExit> {
        let origin = &self.origin;
        let image = || image.context("the image is made");
        match target {
            Target::Registry(reference) => {
                push::push(reference, &self.config.access, image()?, origin, &home::home()?)?;
            }
            Target::OciDir(dir, tag) => layout::write_dir(dir, tag.as_deref(), image()?, origin)?,
            Target::OciArchive(file, tag) => layout::write_archive(file, tag.as_deref(), image()?, origin)?,
            Target::DockerArchive(file, name) => docker::write(file, name.as_deref(), image()?, origin)?,
            Target::Tar(file) => self.archive(file.as_deref(), false)?,
            Target::Layer(file) => self.archive(file.as_deref(), true)?,
            Target::Dir(dir) => return self.directory(dir),
            Target::Disk(form, file) => {
                let config = self.config;
                disk::write(*form, file, &self.root, self.scripts.as_ref(), config.free, config.epoch)?;
            }
        }
        Ok(DeferExit::new())
    }

    fn archive(&self, file: Option<&Path>, is_layer: bool) -> anyhow::Result<()> {
        let name = file.map(|file| file.to_string_lossy().into_owned()).unwrap_or_default();
        let compression = self.config.compression.unwrap_or_else(|| Compression::of_name(&name));
        let Some(file) = file else {
            // The standard library's stdout holds the end back, and ignores the error of writing it.
            let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
            let written = self.fill_archive(stdout, compression, is_layer);
            return written.map(drop).map_err(|error| match error.downcast_ref::<io::Error>() {
                Some(cause) if cause.kind() == io::ErrorKind::BrokenPipe => OutputError::ReaderGone.into(),
                _ => error,
            });
        };
        let staged = StagedFile::begin(file)?;
        let out: File = staged.file.try_clone()?;
        self.fill_archive(out, compression, is_layer).with_context(|| format!("archive {file:?}"))?;
        staged.commit()
    }

    fn fill_archive<W: Write>(&self, out: W, compression: Compression, is_layer: bool) -> anyhow::Result<W> {
        let epoch = self.config.epoch;
        let written = layer::write(out, compression, is_layer, epoch, |out| match is_layer {
            true => self.fill_upper(out),
            false => self.fill_whole(out),
        });
        Ok(written?.0)
    }

    fn directory(&self, dir: &Path) -> anyhow::Result<DeferExit> {
        // An interrupted tool removes the staging directory before it ends.
        let deferred = DeferExit::new();
        let staged = StagedDir::begin(dir)?;
        let fill = || -> anyhow::Result<()> {
            walk(None, self.merged.clone(), &mut Directory::open(&staged.path)?)?;
            match &self.scripts {
                Some(scripts) => scripts.write_below(&staged.path, self.config.epoch.unwrap_or(0)),
                None => Ok(()),
            }
        };
        fill().with_context(|| format!("{dir:?}"))?;
        staged.commit()?;
        Ok(deferred)
    }

    /// What was made, for the record. The documents of an image go to the store, for a later run and for msb-diff.
    fn made(&self, image: Option<&NewImage>) -> anyhow::Result<Made> {
        let mut made = Made { image: None, rootfs: None };
        if let Some(image) = image {
            let home = home::home()?;
            publish::make_private_dir(&store::blobs(&home))?;
            for text in [&image.config, &image.manifest] {
                let name = digest(text);
                let path = store::blob(&home, hex_of(&name).context("not a sha256 digest")?);
                if !path.exists() {
                    publish::write_file(&path, text, 0o600)?;
                }
            }
            let target = self.config.targets.iter().find(|target| target.is_image());
            let mut new = self.record.image.clone().unwrap_or_default();
            new.reference = target.map(reference).transpose()?.flatten().unwrap_or_default();
            new.digest = Some(image.digest());
            let config: serde_json::Value = serde_json::from_slice(&image.config)?;
            new.config = serde_json::from_value(config["config"].clone()).unwrap_or_default();
            if let (Some(os), Some(architecture)) = (config["os"].as_str(), config["architecture"].as_str()) {
                let variant = config["variant"].as_str().map(|variant| format!("/{variant}")).unwrap_or_default();
                new.platform = Some(format!("{os}/{architecture}{variant}"));
            }
            made.image = Some(new);
        }
        made.rootfs = match self.config.targets.first() {
            Some(Target::Dir(dir)) => Some(Rootfs::dir(absolute(dir)?)),
            Some(Target::Disk(Disk::Qcow2, file)) => Some(Rootfs::disk(absolute(file)?, DiskFormat::Qcow2)),
            Some(Target::Disk(Disk::Raw, file)) => Some(Rootfs::disk(absolute(file)?, DiskFormat::Raw)),
            Some(Target::Disk(Disk::Erofs, file)) => Some(Rootfs::disk(absolute(file)?, DiskFormat::Erofs)),
            _ => None,
        };
        Ok(made)
    }
}

/// The name of an image as msb-pull writes it into a record.
fn reference(target: &Target) -> anyhow::Result<Option<String>> {
    let named = |prefix: &str, path: &PathBuf, tag: &Option<String>| -> anyhow::Result<_> {
        let tag = tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
        Ok(Some(format!("{prefix}{}{tag}", absolute(path)?.display())))
    };
    match target {
        Target::Registry(reference) => Ok(Some(reference.whole())),
        Target::OciDir(path, tag) => named("oci:", path, tag),
        Target::OciArchive(path, tag) => named("oci-archive:", path, tag),
        Target::DockerArchive(path, tag) => named("docker-archive:", path, tag),
        _ => Ok(None),
    }
}
