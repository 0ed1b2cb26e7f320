//! A pull: from a source to a record. The documents come first, then the layers that the store does not have, several at a time.
//! Then all of it becomes visible, and the record names it.

use std::fs::File;
use std::io::{BufReader, IsTerminal};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail, ensure};
use msb::record::{Image, Record, Rootfs, path};
use msb::store::{home, support};
use msb::tool::exit;

use crate::archive::{ArchiveFile, Files};
use crate::args::{Config, Policy};
use crate::budget::Budget;
use crate::disk;
use crate::docker::DockerArchive;
use crate::endpoints::Endpoints;
use crate::fetch::Fetcher;
use crate::foreign;
use crate::image::{Nowhere, Origin, ResolvedImage, find, pair};
use crate::layout::Layout;
use crate::manifest::Configuration;
use crate::platform::Platform;
use crate::progress::Progress;
use crate::root::{self, RootArchive};
use crate::source::Source;
use crate::stack;
use crate::store::Store;
use crate::verify::verify;
use msb_registry::digest::Digest;
use msb_registry::reference::Reference;
use msb_registry::registries::Registries;

/// Pulls what `config` names.
///
/// # Errors
/// A message that names the source.
pub(crate) fn pull(config: &Config) -> anyhow::Result<Record> {
    if let Source::Path(path) = &config.source {
        let mut record = Record::new();
        record.rootfs = Some(disk::root(path)?);
        return Ok(record);
    }
    let home = home::home()?;
    from_elsewhere(config, &home).map_err(|error| match support::advice(&home, error.as_ref()) {
        Some(advice) => anyhow!("{error:#} ({advice})"),
        None => error,
    })
}

fn from_elsewhere(config: &Config, home: &Path) -> anyhow::Result<Record> {
    let pull = Pull { config, store: &Store::open(home)?, budget: Budget::new(config.limits, home)? };
    let takes_config = matches!(config.source, Source::Stdin(_) | Source::TarFile(_));
    ensure!(takes_config || config.config.is_none(), NOT_A_ROOT);
    let record = from_source(&pull)?;
    let devices = pull.budget.devices_left_out();
    if devices > 0 && !config.quiet {
        let what = "device nodes of the image were left out: only root can make them, and a guest has its own in /dev";
        exit::warn("msb-pull", &format!("{devices} {what}"));
    }
    Ok(record)
}

fn from_source(pull: &Pull<'_>) -> anyhow::Result<Record> {
    let config = pull.config;
    match &config.source {
        Source::Registry(reference, short) => {
            let registries = Registries::load().context("registries.conf")?;
            pull.pull_registry(&registries, &registries.candidates(reference, short.as_ref())?)
        }
        Source::Foreign(keeper, name) => {
            let source = format!("{}{name}", keeper.prefix());
            let open = || {
                let archive = DockerArchive::of(foreign::archive(*keeper, name, pull.store, &pull.budget)?)?;
                pull.pull_docker(&archive, None, Some(source.clone()))
            };
            open().with_context(|| format!("image {source:?}"))
        }
        Source::OciDir(path, tag) => {
            let open = || pull.pull_layout(Layout::dir(path)?, tag.as_deref(), Some(named("oci:", path, tag)?));
            open().with_context(|| format!("layout {path:?}"))
        }
        Source::OciArchive(path, tag) => {
            let open = || {
                let layout = Layout::of(pull.archive(path)?)?;
                pull.pull_layout(layout, tag.as_deref(), Some(named("oci-archive:", path, tag)?))
            };
            open().with_context(|| format!("archive {path:?}"))
        }
        Source::DockerArchive(path, tag) => {
            let open = || {
                let archive = DockerArchive::of(pull.archive(path)?)?;
                pull.pull_docker(&archive, tag.as_deref(), Some(named("docker-archive:", path, tag)?))
            };
            open().with_context(|| format!("archive {path:?}"))
        }
        Source::TarFile(file) => {
            let open = || {
                let archive = pull.archive(file)?;
                let prefix = match Content::of(&archive) {
                    Content::Root => "",
                    Content::Layout => "oci-archive:",
                    Content::Docker => "docker-archive:",
                };
                pull.pull_any(archive, None, Some(named(prefix, file, &None)?))
            };
            open().with_context(|| format!("archive {file:?}"))
        }
        Source::Stdin(tag) => pull.pull_stdin(tag.as_deref()).context("archive on stdin"),
        Source::Path(_) => unreachable!("taken above"),
    }
}

const NEITHER: &str = "neither an OCI nor a docker archive, and only those have tags";
const NOT_A_ROOT: &str =
    "--cmd, --entrypoint, --env, --workdir and --user are for the tar archive of a root (leave them out)";

/// An archive's name in the record: as given, made absolute.
fn named(prefix: &str, path: &Path, tag: &Option<String>) -> anyhow::Result<String> {
    let tag = tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
    Ok(format!("{prefix}{}{tag}", path::absolute(path)?.display()))
}

/// What an archive holds, as far as its names tell.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Content {
    Root,
    Layout,
    Docker,
}

impl Content {
    /// A root may have files of any name, so its directories decide before the documents of images do.
    fn of(files: &Files) -> Self {
        match files {
            _ if files.is_root() => Self::Root,
            _ if Layout::is_in(files) => Self::Layout,
            _ if DockerArchive::is_in(files) => Self::Docker,
            _ => Self::Root,
        }
    }
}

/// One pull.
struct Pull<'a> {
    config: &'a Config,
    store: &'a Store,
    budget: Budget,
}

impl Pull<'_> {
    fn wanted(&self) -> Platform {
        self.config.platform.clone().unwrap_or_else(Platform::host)
    }

    fn archive(&self, path: &Path) -> anyhow::Result<Files> {
        Files::tar(path, &self.store.scratch("archive"), &self.budget)
    }

    /// Pulls the first of `names` that is there.
    fn pull_registry(&self, registries: &Registries, names: &[Reference]) -> anyhow::Result<Record> {
        let of_image = |name: &Reference| format!("image {:?}", name.whole());
        for name in names {
            if let Some(record) = self.stored(name).with_context(|| of_image(name))? {
                return Ok(record);
            }
        }
        ensure!(
            self.config.policy != Policy::Never,
            "image {:?}: it is not in the store, and the registry is not to be asked (pull it first, or leave --policy out)",
            names[0].whole()
        );
        let mut failures = Vec::new();
        for name in names {
            let resolve = || {
                let (options, authfile) = (&self.config.registry, self.config.authfile.as_deref());
                let endpoints = Endpoints::new(registries, registries.endpoints(name)?, options, authfile);
                let digest = name.digest.clone().map_or_else(|| endpoints.resolve(), Ok)?;
                let found = find(&endpoints, self.store, &digest.clone().into(), &self.wanted())?;
                anyhow::Ok((endpoints, digest, found))
            };
            match resolve() {
                Ok((endpoints, digest, found)) => {
                    return self.take(&endpoints, found, name.whole(), Some(&digest)).with_context(|| of_image(name));
                }
                Err(error) => failures.push(error.context(of_image(name))),
            }
        }
        let all: Vec<String> = failures.iter().map(|error: &anyhow::Error| format!("{error:#}")).collect();
        if failures.len() == 1 { Err(failures.swap_remove(0)) } else { bail!(all.join("; ")) }
    }

    /// The record of an image that needs no registry: the content of a digest never changes.
    fn stored(&self, name: &Reference) -> anyhow::Result<Option<Record>> {
        let store = self.store;
        let may_be_old = self.config.policy != Policy::Always;
        let Some(digest) = name.digest.clone().or_else(|| store.reference(&name.whole()).filter(|_| may_be_old)) else {
            return Ok(None);
        };
        let Ok(found) = find(&Nowhere, store, &digest.clone().into(), &self.wanted()) else { return Ok(None) };
        let Some(lower) = stack::stored(store, &found.layers) else { return Ok(None) };
        self.verify(&found, &name.whole())?;
        store.refer(&name.whole(), &digest)?;
        Ok(Some(record(name.whole(), found, lower)))
    }

    /// Lets the caller's command decide about an image before any of its layers is fetched.
    fn verify(&self, found: &ResolvedImage, name: &str) -> anyhow::Result<()> {
        let Some(command) = &self.config.verify else { return Ok(()) };
        // The last document is the one that the name stands for: a manifest, or an index that leads to it.
        match found.documents.last() {
            Some((digest, text)) if found.digest.is_some() => verify(command, name, digest, text),
            _ => bail!("--verify: a docker archive and a root's tar archive have no manifest (leave it out)"),
        }
    }

    /// `name` is the image's name in the record; `None` for the one that the archive gives it.
    fn pull_layout(&self, layout: Layout, tag: Option<&str>, name: Option<String>) -> anyhow::Result<Record> {
        let wanted = self.wanted();
        let (start, own_name) = layout.choose(tag, &wanted)?;
        let found = find(&layout, self.store, &start, &wanted)?;
        self.take(&layout, found, name.or(own_name).unwrap_or_else(|| "-".into()), None)
    }

    fn pull_docker(&self, archive: &DockerArchive, tag: Option<&str>, name: Option<String>) -> anyhow::Result<Record> {
        let image = archive.choose(tag)?;
        let configuration = Configuration::parse(&image.configuration)?;
        configuration.check_platform(&self.wanted())?;
        let layers = pair(image.layers, &configuration)?;
        let documents = vec![(Digest::of(&image.configuration), image.configuration)];
        let name = name.or(image.name).unwrap_or_else(|| "-".into());
        self.take(archive, ResolvedImage { digest: None, configuration, layers, documents }, name, None)
    }

    fn pull_root(&self, tar: ArchiveFile, name: String) -> anyhow::Result<Record> {
        let archive = RootArchive::new(tar);
        let config = root::config(self.config.config.clone().unwrap_or_default());
        let (text, blob) = archive.image(&config, &self.wanted())?;
        let configuration = Configuration::parse(&text)?;
        let layers = pair(vec![blob], &configuration)?;
        let documents = vec![(Digest::of(&text), text)];
        self.take(&archive, ResolvedImage { digest: None, configuration, layers, documents }, name, None)
    }

    fn pull_stdin(&self, tag: Option<&str>) -> anyhow::Result<Record> {
        // Some archives have the documents last, so all of it is read before the first layer is checked.
        ensure!(!std::io::stdin().is_terminal(), "stdin is a terminal (pipe an archive in)");
        let stdin = BufReader::with_capacity(1 << 18, File::from(std::io::stdin().as_fd().try_clone_to_owned()?));
        let files = Files::stream(stdin, &self.store.scratch("archive"), &self.budget)?;
        self.pull_any(files, tag, None)
    }

    /// Pulls what an archive turns out to hold. `name` is the image's name in the record; `None` for what the archive says.
    fn pull_any(&self, files: Files, tag: Option<&str>, name: Option<String>) -> anyhow::Result<Record> {
        let content = Content::of(&files);
        if content == Content::Root {
            ensure!(tag.is_none(), NEITHER);
            return self.pull_root(files.whole()?, name.unwrap_or_else(|| "-".into()));
        }
        ensure!(self.config.config.is_none(), NOT_A_ROOT);
        match content {
            Content::Layout => self.pull_layout(Layout::of(files)?, tag, name),
            _ => self.pull_docker(&DockerArchive::of(files)?, tag, name),
        }
    }
}

impl Pull<'_> {
    /// Adds an image to the store. `named` is the digest that `name` stands for; without it, that is the digest of the manifest.
    fn take(
        &self,
        origin: &dyn Origin,
        found: ResolvedImage,
        name: String,
        named: Option<&Digest>,
    ) -> anyhow::Result<Record> {
        self.verify(&found, &name)?;
        let progress = Progress::new(&name, self.config.quiet);
        let fetcher = Fetcher { store: self.store, origin, progress: &progress, budget: &self.budget };
        let stack = fetcher.fetch(&found.layers)?;
        // The first document is the configuration, all that an image from docker's archives has.
        let digest = named.or(found.digest.as_ref()).or(found.documents.first().map(|(digest, _)| digest));
        let reference = if name == "-" { digest.map(Digest::to_string).unwrap_or_default() } else { name.clone() };
        let lower = stack.finish(&found.documents, digest.map(|digest| (reference.as_str(), digest)))?;
        progress.finish();
        Ok(record(name, found, lower))
    }
}

fn record(name: String, found: ResolvedImage, lower: Vec<PathBuf>) -> Record {
    let mut image = Image::new(name);
    image.digest = found.digest.map(|digest| digest.to_string());
    image.platform = Some(found.configuration.platform.to_string()).filter(|platform| platform != "/");
    image.config = found.configuration.config;
    let mut record = Record::new();
    (record.image, record.rootfs) = (Some(image), Some(Rootfs::layers(lower)));
    record
}
