//! The record: one JSON object on one line, the contract between the stages of the pipe.
//!
//! Each stage adds one member and passes the rest on; members that a stage does not know, at any depth, stay as they
//! were. `man/msb-record.5` specifies it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::boot::Boot;
use super::image::Image;
use super::mount::Mount;
use super::rootfs::Rootfs;
use super::snapshot::Snapshot;
use super::unknown::Unknown;
use super::upper::Upper;
use super::vm::Vm;
use super::volume::VolumeContent;

/// The version that this crate reads and writes, the value of the member `msb`.
pub const VERSION: u64 = 1;

/// The file in a VM's run directory that holds its record.
pub const FILE_NAME: &str = "record.json";

/// Why a record cannot be used. The tool or the person that wrote it is at fault, except where a variant says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is not JSON, or a member has the wrong type.
    #[error("not a record: {0}")]
    NotARecord(serde_json::Error),
    /// A JSON object without the member `msb`.
    #[error("not a record: it has no member \"msb\"")]
    NoVersion,
    /// A record of another version: tools of two releases were mixed.
    #[error("record version {0} is not supported (this is a tool for version {VERSION}; use tools of one release)")]
    OtherVersion(Value),
    /// A wrong value in `boot`, the member that people edit.
    #[error("record: boot.{path}: {error}")]
    Boot {
        /// The path of the wrong member in `boot`.
        path: String,
        /// What is wrong with it.
        error: serde_json::Error,
    },
    /// A path that is not absolute.
    #[error("record: path {0:?} is not absolute")]
    RelativePath(PathBuf),
    /// A rootfs of directories without a directory.
    #[error("record: rootfs has no lower directory")]
    NoLower,
    /// A stage needs a rootfs, and no earlier stage added one.
    #[error("the record has no rootfs (start with msb-pull)")]
    NoRootfs,
    /// A file of the rootfs was removed after the record was written.
    #[error("rootfs {0:?} is gone (run msb-pull again)")]
    RootfsGone(PathBuf),
    /// A tool needs a VM, and the record has none.
    #[error("the record has no running VM (start one with msb-boot)")]
    NoVm,
}

/// What flows through the pipe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Record {
    /// The record's version, [`VERSION`].
    pub msb: u64,
    /// The image that the root came from; added by msb-pull.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
    /// The read-only base of the root; added by msb-pull.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rootfs: Option<Rootfs>,
    /// The writable layer; added by msb-patch, or by msb-mount if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upper: Option<Upper>,
    /// Scripts for `/.msb/scripts` by name, each a file on the host.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub scripts: BTreeMap<String, PathBuf>,
    /// The mounted root; added by msb-mount.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mount: Option<Mount>,
    /// The saved VM to start from; added by msb-snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Snapshot>,
    /// What msb-boot is asked for; msb-boot writes it back with every default filled in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot: Option<Boot>,
    /// The running VM; added by msb-boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm: Option<Vm>,
    /// Members that this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl Record {
    /// A record that holds only its version.
    pub fn new() -> Self {
        Self { msb: VERSION, ..Self::default() }
    }

    /// The paths of its upper and its scripts, which may be in sandboxes.
    pub fn upper_and_scripts(&self) -> impl Iterator<Item = &Path> {
        let upper = self.upper.iter().map(|upper| upper.dir.as_path());
        upper.chain(self.scripts.values().map(PathBuf::as_path))
    }

    /// Whether its upper or one of its scripts is in this sandbox.
    pub fn has_sandbox(&self, sandbox: &Path) -> bool {
        self.upper_and_scripts().any(|path| path.starts_with(sandbox))
    }

    /// Parses a record in JSON. A byte order mark is skipped.
    ///
    /// # Errors
    /// Text that is not JSON, not a record, a record of another version, or one with relative paths.
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        let value: Value = serde_json::from_slice(text).map_err(Error::NotARecord)?;
        match value.get("msb").map(Value::as_u64) {
            None => return Err(Error::NoVersion),
            Some(Some(VERSION)) => {}
            Some(_) => return Err(Error::OtherVersion(value["msb"].clone())),
        }
        if let Some(boot) = value.get("boot").filter(|boot| !boot.is_null()) {
            // Only for an error that names the member.
            serde_path_to_error::deserialize::<_, Boot>(boot)
                .map_err(|error| Error::Boot { path: error.path().to_string(), error: error.into_inner() })?;
        }
        let record: Self = serde_json::from_value(value).map_err(Error::NotARecord)?;
        if let Some(path) = record.paths().into_iter().find(|path| !path.is_absolute()) {
            return Err(Error::RelativePath(path.to_owned()));
        }
        if let Some(Rootfs::Layers { lower, .. } | Rootfs::Dir { lower, .. }) = &record.rootfs
            && lower.is_empty()
        {
            return Err(Error::NoLower);
        }
        Ok(record)
    }

    fn paths(&self) -> Vec<&Path> {
        let mut paths: Vec<&Path> = self.scripts.values().map(PathBuf::as_path).collect();
        match &self.rootfs {
            Some(Rootfs::Layers { lower, .. } | Rootfs::Dir { lower, .. }) => {
                paths.extend(lower.iter().map(PathBuf::as_path))
            }
            Some(Rootfs::Disk { path, .. }) => paths.push(path),
            None => {}
        }
        paths.extend(self.upper.iter().flat_map(|upper| [upper.dir.as_path(), upper.work.as_path()]));
        paths.extend(self.mount.iter().map(|mount| mount.path.as_path()));
        paths.extend(self.snapshot.iter().map(|snapshot| snapshot.path.as_path()));
        paths.extend(self.vm.iter().flat_map(|vm| [vm.endpoint.unix.as_path(), vm.kernel_log.as_path()]));
        paths.extend(self.vm.iter().filter_map(|vm| vm.scratch.as_ref()?.path.as_deref()));
        paths.extend(
            self.boot.iter().flat_map(|boot| [&boot.overlay, &boot.kernel_log]).flatten().map(PathBuf::as_path),
        );
        paths.extend(self.boot.iter().flat_map(|boot| &boot.volumes).filter_map(|volume| match &volume.content {
            VolumeContent::Source(source) => Some(source.as_path()),
            VolumeContent::Volume(_) | VolumeContent::Tmpfs(_) => None,
        }));
        paths
    }

    /// The member `rootfs`, whose files exist.
    ///
    /// # Errors
    /// [`Error::NoRootfs`], [`Error::RootfsGone`].
    pub fn rootfs(&self) -> Result<&Rootfs, Error> {
        let rootfs = self.rootfs.as_ref().ok_or(Error::NoRootfs)?;
        let gone = match rootfs {
            Rootfs::Layers { lower, .. } | Rootfs::Dir { lower, .. } => lower.iter().find(|dir| !dir.is_dir()),
            Rootfs::Disk { path, .. } => Some(path).filter(|path| !path.exists()),
        };
        match gone {
            Some(path) => Err(Error::RootfsGone(path.to_owned())),
            None => Ok(rootfs),
        }
    }

    /// The member `vm`.
    ///
    /// # Errors
    /// [`Error::NoVm`].
    pub fn vm(&self) -> Result<&Vm, Error> {
        self.vm.as_ref().ok_or(Error::NoVm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_members_are_kept_at_any_depth() {
        let text = r#"{"msb":1,"boot":{"init":{"later":3},"network":{"mode":"none"}},"image":{"ref":"a","config":{"Labels":{"x":"y"}},"new":1},"rootfs":{"kind":"layers","lower":["/l"],"new":2},"later":[1,2]}"#;
        let record = Record::parse(text.as_bytes()).unwrap();
        let value = serde_json::to_value(&record).unwrap();
        assert_eq!(value["image"]["config"]["Labels"]["x"], "y");
        assert_eq!(value["image"]["new"], 1);
        assert_eq!(value["rootfs"]["new"], 2);
        assert_eq!(value["later"][1], 2);
        assert_eq!(value["boot"]["network"]["mode"], "none");
        assert_eq!(value["boot"]["init"]["later"], 3);
        assert_eq!((&value["boot"]["init"]["path"], &value["boot"]["cpus"]), (&"auto".into(), &1.into()));
    }

    #[test]
    fn refuses_anything_but_a_record_of_this_version() {
        for (text, message) in [
            ("", "not a record"),
            ("[1]", "no member \"msb\""),
            ("{}", "no member \"msb\""),
            (r#"{"msb":2}"#, "record version 2 is not supported"),
            (r#"{"msb":"1"}"#, "record version \"1\" is not supported"),
            (r#"{"msb":1,"rootfs":{"kind":"tape"}}"#, "unknown variant"),
            (r#"{"msb":1,"rootfs":{"kind":"dir","lower":["rel"]}}"#, "not absolute"),
            (r#"{"msb":1,"rootfs":{"kind":"layers","lower":[]}}"#, "no lower directory"),
            (r#"{"msb":1,"boot":{"cpus":"4"}}"#, "record: boot.cpus: invalid type: string"),
            (r#"{"msb":1,"boot":{"init":{"args":[{}]}}}"#, "record: boot.init.args[0]: "),
            (r#"{"msb":1,"boot":{"root":"tape"}}"#, "record: boot.root: unknown variant"),
            (r#"{"msb":1,"boot":{"overlay":"rel"}}"#, "not absolute"),
            (r#"{"msb":1,"snapshot":{"path":"rel","digest":"sha256:0"}}"#, "not absolute"),
            (r#"{"msb":1,"boot":{"volumes":[{"source":"rel","target":"/x"}]}}"#, "not absolute"),
        ] {
            let error = Record::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn the_files_of_a_rootfs_exist_when_it_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let (there, gone) = (dir.path().to_owned(), dir.path().join("gone"));
        std::fs::write(dir.path().join("file"), "").unwrap();
        let file = || dir.path().join("file");
        let disk = |path| Rootfs::disk(path, crate::record::DiskFormat::Raw);
        for (rootfs, missing) in [
            (Rootfs::layers(vec![there.clone()]), None),
            (Rootfs::layers(vec![there.clone(), gone.clone()]), Some(gone.clone())),
            // A layer is a directory, and a disk may be any file.
            (Rootfs::dir(file()), Some(file())),
            (disk(file()), None),
            (disk(gone.clone()), Some(gone)),
        ] {
            let record = Record { rootfs: Some(rootfs), ..Record::new() };
            match (record.rootfs(), missing) {
                (Ok(_), None) => {}
                (Err(Error::RootfsGone(path)), Some(missing)) => assert_eq!(path, missing),
                (other, missing) => panic!("{missing:?}: {other:?}"),
            }
        }
        assert!(matches!(Record::new().rootfs(), Err(Error::NoRootfs)));
        assert!(matches!(Record::new().vm(), Err(Error::NoVm)));
    }

    #[test]
    fn an_empty_record_holds_only_its_version() {
        assert_eq!(serde_json::to_string(&Record::new()).unwrap(), r#"{"msb":1}"#);
    }
}
