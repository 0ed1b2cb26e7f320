//! `--probe`: what this machine has for a VM, which VMM would be taken, and what to do about the rest.

use std::collections::BTreeMap;
use std::path::PathBuf;

use msb::record::VmmChoice;
use msb::store::erofs::Mkfs;
use serde::Serialize;

use crate::block::top;
use crate::vmm::{self, Vmm, Why, kvm};
use crate::{kernel, krun, programs, qemu};

/// What was found; printed as JSON.
#[derive(Debug, Serialize)]
pub(crate) struct Probe {
    /// The VMM that would be taken; none where no VM would run.
    vmm: Option<&'static str>,
    /// The choice in a line.
    words: String,
    /// The VMMs by name.
    vmms: BTreeMap<&'static str, Found<&'static str>>,
    /// What they need, by name.
    parts: BTreeMap<&'static str, Found<PathBuf>>,
}

/// One thing that is usable, or not.
#[derive(Debug, Serialize)]
struct Found<T> {
    usable: bool,
    /// Where it is, or how it would run.
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<T>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    why: Option<Why>,
}

impl<T> From<Result<T, Why>> for Found<T> {
    fn from(result: Result<T, Why>) -> Self {
        match result {
            Ok(by) => Self { usable: true, by: Some(by), why: None },
            Err(why) => Self { usable: false, by: None, why: Some(why) },
        }
    }
}

impl Probe {
    /// Looks at everything, as a boot would.
    pub(crate) fn run(choice: VmmChoice) -> Self {
        let agent = programs::agent().map_err(|error| Why::new(format!("{error:#}"), "make build"));
        let chosen = agent.clone().map_err(Into::into).and_then(|_| vmm::choose(choice));
        let (vmm, words) = match chosen {
            Ok((kind, words)) => {
                (Some(kind.name()), words.unwrap_or_else(|| format!("using {}, as told", kind.name())))
            }
            Err(error) => (None, format!("{error:#}")),
        };
        let vmms = [("krun", krun::Krun.probe().into()), ("qemu", qemu::Qemu.probe().into())];
        let erofs = Mkfs::find().map(|mkfs| mkfs.program().to_owned());
        let erofs = erofs.map_err(|_| Why::new("mkfs.erofs is not installed", "apt-get install erofs-utils"));
        let parts = [
            ("agentd", agent.into()),
            ("kvm", kvm::probe().map(|()| kvm::DEVICE.into()).into()),
            ("libkrunfw", kernel::library().into()),
            ("mke2fs", top::mke2fs().into()),
            ("mkfs.erofs", erofs.into()),
            ("privileges", vmm::privileges().map(PathBuf::from).into()),
            ("qemu", qemu::qemu().into()),
            ("vhost-device-vsock", qemu::vsock().into()),
            ("virtiofsd", qemu::virtiofsd().into()),
        ];
        Self { vmm, words, vmms: vmms.into(), parts: parts.into() }
    }

    /// Whether a VM would run.
    pub(crate) fn is_good(&self) -> bool {
        self.vmm.is_some() && self.parts.get("privileges").is_some_and(|part| part.usable)
    }
}
