//! The command line, and the checked configuration that it becomes.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use msb::store::home;
use msb::tool::{duration, exit};
use serde::Serialize;

use crate::page::PAGE;

/// Show and clean the store of images
///
/// Shows what is in $MSB_HOME, which outlives VMs, and removes what is not needed. On a terminal it prints tables, otherwise a
/// line of JSON for each thing.
#[derive(Debug, Parser)]
#[command(name = "msb-store", version, after_help = PAGE.help())]
pub(crate) struct Args {
    /// Things of this type only [default for rm: image]
    #[arg(short = 't', long = "type", value_name = "TYPE", value_enum)]
    kind: Option<Type>,
    /// For gc: keep what was used within this time, e.g. 7d or 12h
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    older_than: Option<Duration>,
    /// For gc: also remove images that have a reference, unless a VM or a sandbox uses them
    #[arg(short, long)]
    all: bool,
    /// For gc and rm: remove nothing, and show what would go
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// For rm: ignore names that are not there, and remove a layer although an image has it
    #[arg(short, long)]
    force: bool,
    /// Print JSON on a terminal too
    #[arg(long)]
    json: bool,
    /// What to do
    #[arg(value_name = "ACTION", value_enum)]
    action: Action,
    /// For ls and check: these things only. For rm: what to remove, by the names that ls prints; an image of Docker Hub also by
    /// its short name
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Action {
    /// List what is in the store
    Ls,
    /// Remove things by name, and what only they needed
    Rm,
    /// Remove what nothing refers to
    Gc,
    /// Compare layers with the checksums of the day they were unpacked, and images with their digests
    Check,
    /// Show how much space things take, and how much of it gc would free
    Du,
}

/// A type of things in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Type {
    /// An image, by its reference
    Image,
    /// An unpacked layer
    Layer,
    /// An EROFS image of a stack of layers, or of its topmost layer
    Erofs,
    /// An upper, with its scripts
    Sandbox,
    /// The scratch disk of a VM with a name
    Disk,
    /// A saved VM
    Snapshot,
    /// A volume
    Volume,
    /// A manifest or configuration of an image
    #[value(skip)]
    Blob,
    /// agentd as the first part of an initramfs
    #[value(skip)]
    Initramfs,
    /// What a pull or another tool left unfinished
    #[value(skip)]
    Unfinished,
}

impl Type {
    /// Its name, as in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Layer => "layer",
            Self::Erofs => "erofs",
            Self::Sandbox => "sandbox",
            Self::Disk => "disk",
            Self::Snapshot => "snapshot",
            Self::Volume => "volume",
            Self::Blob => "blob",
            Self::Initramfs => "initramfs",
            Self::Unfinished => "unfinished",
        }
    }
}

impl Serialize for Type {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// What to do, checked.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) home: PathBuf,
    pub(crate) action: Action,
    pub(crate) kind: Option<Type>,
    pub(crate) names: Vec<String>,
    pub(crate) older_than: Duration,
    pub(crate) all: bool,
    pub(crate) dry_run: bool,
    pub(crate) force: bool,
    pub(crate) json: bool,
}

impl TryFrom<Args> for Config {
    type Error = anyhow::Error;

    fn try_from(args: Args) -> anyhow::Result<Self> {
        let action = args.action;
        let refused = [
            (args.older_than.is_some(), "--older-than", &[Action::Gc][..]),
            (args.all, "--all", &[Action::Gc]),
            (args.dry_run, "--dry-run", &[Action::Gc, Action::Rm]),
            (args.force, "--force", &[Action::Rm]),
            (args.kind.is_some(), "--type", &[Action::Ls, Action::Rm]),
            (!args.names.is_empty(), "NAME", &[Action::Ls, Action::Rm, Action::Check]),
        ];
        for (is_given, flag, actions) in refused {
            if is_given && !actions.contains(&action) {
                let names: Vec<_> = actions.iter().filter_map(|action| action.to_possible_value()).collect();
                let names: Vec<_> = names.iter().map(|value| value.get_name()).collect();
                return Err(exit::coded(exit::USAGE, format!("{flag} is for {}", names.join(" and "))).into());
            }
        }
        if action == Action::Rm && args.names.is_empty() {
            return Err(exit::coded(exit::USAGE, "rm needs a NAME (\"msb-store ls\" prints them)".to_owned()).into());
        }
        Ok(Self {
            home: home::home()?,
            action,
            kind: args.kind,
            names: args.names,
            older_than: args.older_than.unwrap_or_default(),
            all: args.all,
            dry_run: args.dry_run,
            force: args.force,
            json: args.json,
        })
    }
}
