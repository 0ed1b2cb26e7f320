//! Volumes: what of the host is mounted in the guest's root. All of them are in one tree, which is one device of the guest. Nobody but the
//! jail of the process that serves it has that tree.
//!
//! A source is resolved once. It is opened again for each start of the VM, and must be the same file then.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use msb::jail::PinnedPath;
use msb::overlay::mountinfo;
use msb::record::{self, Mount, MountedVolume, VolumeContent, check_volume_name};
use msb::store::{home, layout, publish};
use msb::tool::size;
use msb::vm::boot::{self, MountStep, VolumeSource};
use msb::vm::name;
use rustix::fs::{AtFlags, FileType, StatxFlags};
use serde::{Deserialize, Serialize};

use crate::notice::Notice;
use crate::vm::SharedVolume;

/// A volume, as it was checked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Volume {
    target: String,
    readonly: bool,
    content: Content,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Content {
    /// A directory or a file of the host.
    Source { source: PinnedPath, is_dir: bool },
    /// A directory in the store, which may not exist yet.
    Named(PathBuf),
    /// A file system in memory, with its options.
    Tmpfs(String),
}

/// Checks the volumes of a request. Returns them in the order in which they are mounted: a volume can be inside another one.
///
/// # Errors
/// The first volume that the guest cannot have, and why.
pub(crate) fn check(request: &record::Boot, notices: &mut Vec<Notice>) -> anyhow::Result<Vec<Volume>> {
    let mut volumes: Vec<Volume> = Vec::new();
    for volume in &request.volumes {
        let subject = || format!("volume for {:?}", volume.target);
        let target = check_target(&volume.target).map_err(|why| anyhow!(why)).with_context(subject)?;
        if volumes.iter().any(|other| other.target == target) {
            bail!("{}: another volume has this target (leave one of them out)", subject());
        }
        let content = match &volume.content {
            VolumeContent::Source(source) => check_source(source, volume.readonly, notices)?,
            VolumeContent::Volume(name) => {
                check_volume_name(name).map_err(|why| anyhow!("volume {name:?}: {why}"))?;
                let dir = layout::volume(&home::home()?, name);
                match fs::symlink_metadata(&dir) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Ok(meta) if meta.is_dir() => {}
                    Ok(_) => bail!("volume {name:?}: {dir:?} is not a directory"),
                    Err(error) => return Err(error).with_context(|| format!("volume {name:?}: {dir:?}")),
                }
                Content::Named(dir)
            }
            VolumeContent::Tmpfs(_) if volume.readonly => {
                bail!("{}: a tmpfs that is read-only stays empty (leave ro out)", subject())
            }
            VolumeContent::Tmpfs(tmpfs) => Content::Tmpfs(
                tmpfs_options(tmpfs.size.as_deref(), tmpfs.mode.as_deref())
                    .map_err(|why| anyhow!(why))
                    .with_context(subject)?,
            ),
        };
        volumes.push(Volume { target, readonly: volume.readonly, content });
    }
    volumes.sort_by_key(|volume| Path::new(&volume.target).components().count());
    Ok(volumes)
}

/// Checks a target, and returns it without superfluous slashes.
pub(crate) fn check_target(target: &str) -> Result<String, &'static str> {
    let path = Path::new(target);
    if !path.is_absolute() || target.contains('\0') {
        return Err("a target is an absolute path in the guest");
    }
    let path: PathBuf = path.components().collect();
    if path.components().any(|component| component == Component::ParentDir) {
        return Err("a target has no \"..\" in it");
    }
    boot::check_volume_target(&path)?;
    path.into_os_string().into_string().map_err(|_| "a target is UTF-8")
}

/// The options of tmpfs(5).
pub(crate) fn tmpfs_options(size: Option<&str>, mode: Option<&str>) -> Result<String, String> {
    let mode = mode.unwrap_or("1777");
    match u32::from_str_radix(mode, 8) {
        Ok(bits) if bits <= 0o7777 && !mode.starts_with('+') => {}
        _ => return Err(format!("mode {mode:?}: permissions in octal are expected, as in 1777")),
    }
    match size
        .map(size::parse_bytes)
        .transpose()
        .map_err(|why| format!("size {:?}: {why}", size.unwrap_or_default()))?
    {
        // The kernel would take it for "no limit".
        Some(0) => Err("size 0: a tmpfs of this size holds nothing".into()),
        Some(bytes) => Ok(format!("mode={mode},size={bytes}")),
        None => Ok(format!("mode={mode}")),
    }
}

/// Checks a directory or file of the host.
fn check_source(path: &Path, readonly: bool, notices: &mut Vec<Notice>) -> anyhow::Result<Content> {
    let subject = || format!("volume {path:?}");
    let (source, fd, stat) = match path.canonicalize() {
        // The last component of "/" and of a path that ends in "..".
        Ok(real) if path.file_name().is_none() => PinnedPath::pin(&real),
        _ => PinnedPath::pin(path),
    }
    .map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            anyhow!(
                "{}: it does not exist (create it, or give a name without \"/\" for a volume in the store)",
                subject()
            )
        }
        _ => anyhow!(error).context(subject()),
    })?;
    let is_dir = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => true,
        FileType::RegularFile => false,
        FileType::Symlink => {
            let target = fs::read_link(path).unwrap_or_default();
            bail!("{}: it is a symlink to {target:?} (name what it leads to)", subject())
        }
        FileType::Socket => {
            bail!("{}: it is a socket, and nobody in the guest could listen or connect to it", subject())
        }
        _ => bail!("{}: only directories and regular files can be shared", subject()),
    };
    refuse_own(&source, is_dir, readonly, notices).with_context(subject)?;
    if is_served_by_msb_mount(&fd).with_context(subject)? {
        bail!("{}: it is in a root that msb-mount has mounted (copy it, or share another directory)", subject());
    }
    Ok(Content::Source { source, is_dir })
}

/// Refuses the directories with which msb works: the store without its volumes, and the run directories.
fn refuse_own(source: &PinnedPath, is_dir: bool, readonly: bool, notices: &mut Vec<Notice>) -> anyhow::Result<()> {
    let store = home::home()?;
    let volumes = layout::volumes(&store);
    let path = source.path();
    for (what, dir) in [("the store", &store), ("the directory of the running VMs", &name::run_base()?)] {
        let Ok((pinned, ..)) = dir.canonicalize().and_then(|dir| PinnedPath::pin(&dir)) else { continue };
        let is_volume = volumes.canonicalize().is_ok_and(|volumes| path.starts_with(&volumes) && path != volumes);
        if source.is_same_file(&pinned) || (path.starts_with(pinned.path()) && !is_volume) {
            bail!("{what} of msb, {dir:?}, cannot be a volume (share another directory)");
        }
        if is_dir && !readonly && pinned.path().starts_with(path) {
            let why =
                format!("volume {path:?}: {what} of msb, {dir:?}, is in it, and the guest can change it (add :ro)");
            notices.push(Notice::Warning(why));
        }
    }
    Ok(())
}

/// Whether the file is in a mount of msb-mount. Its server would wait for the VM that waits for it.
fn is_served_by_msb_mount(fd: &OwnedFd) -> io::Result<bool> {
    let found = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    let table = fs::read("/proc/self/mountinfo")?;
    Ok(mountinfo::mounts(&table).any(|mount| mount.id == found.stx_mnt_id && mount.fstype == Mount::FSTYPE))
}

impl Volume {
    /// Creates the directory of a volume in the store, if it is missing.
    ///
    /// # Errors
    /// Those of `mkdir(2)`.
    pub(crate) fn make(&self) -> anyhow::Result<()> {
        let Content::Named(dir) = &self.content else { return Ok(()) };
        let make = || -> io::Result<()> {
            publish::make_private_dir(dir.parent().unwrap_or(dir))?;
            match DirBuilder::new().mode(0o755).create(dir) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                made => made.and_then(|()| fs::set_permissions(dir, Permissions::from_mode(0o755))),
            }
        };
        make().with_context(|| format!("volume {dir:?}"))
    }

    fn source(&self) -> Option<&Path> {
        match &self.content {
            Content::Source { source, .. } => Some(source.path()),
            Content::Named(dir) => Some(dir),
            Content::Tmpfs(_) => None,
        }
    }

    /// The volume in the record of a running VM.
    pub(crate) fn in_record(&self) -> MountedVolume {
        MountedVolume::new(self.source().map(Path::to_owned), self.target.clone(), self.readonly)
    }
}

/// Whether the guest has a share with volumes of the host.
pub(crate) fn is_shared(volumes: &[Volume]) -> bool {
    volumes.iter().any(|volume| volume.source().is_some())
}

/// The mount with which the agent reaches the volumes of the host, if there are any.
pub(crate) fn mount_step(volumes: &[Volume]) -> Option<MountStep> {
    is_shared(volumes).then(|| MountStep {
        source: boot::VOLUMES_DIR.into(),
        target: Path::new("/").join(boot::VOLUMES_DIR),
        fstype: "virtiofs".into(),
        options: Vec::new(),
        directories: Vec::new(),
    })
}

/// Makes the directory `dir` with the mount points of the volumes of the host, if there are any.
///
/// # Errors
/// Those of `mkdir(2)` and `open(2)`.
pub(crate) fn make_mount_points(dir: &Path, volumes: &[boot::Volume]) -> io::Result<()> {
    let make_dir = |dir: &Path| {
        DirBuilder::new().mode(0o755).create(dir)?;
        fs::set_permissions(dir, Permissions::from_mode(0o755))
    };
    let mut is_made = false;
    for volume in volumes {
        let (number, is_dir) = match &volume.source {
            VolumeSource::Directory(number) => (number, true),
            VolumeSource::File(number) => (number, false),
            VolumeSource::Tmpfs(_) => continue,
        };
        if !std::mem::replace(&mut is_made, true) {
            make_dir(dir)?;
        }
        let mount_point = dir.join(number.to_string());
        if is_dir { make_dir(&mount_point) } else { File::create_new(&mount_point).map(drop) }?;
    }
    Ok(())
}

/// What the agent mounts.
pub(crate) fn for_guest(volumes: &[Volume]) -> Vec<boot::Volume> {
    let volume = |(number, volume): (usize, &Volume)| boot::Volume {
        target: volume.target.clone(),
        source: match &volume.content {
            Content::Source { is_dir: false, .. } => VolumeSource::File(number),
            Content::Source { is_dir: true, .. } | Content::Named(_) => VolumeSource::Directory(number),
            Content::Tmpfs(options) => VolumeSource::Tmpfs(options.clone()),
        },
        readonly: volume.readonly,
    };
    volumes.iter().enumerate().map(volume).collect()
}

/// What the VM's processes share with the guest. The sources are those that were checked.
///
/// # Errors
/// A source that has disappeared, or that is another file now.
pub(crate) fn shared(volumes: &[Volume]) -> anyhow::Result<Vec<SharedVolume>> {
    let mut shared = Vec::new();
    for (number, volume) in volumes.iter().enumerate() {
        let source = match &volume.content {
            Content::Source { source, .. } => source.open().map(|_| source.clone()),
            Content::Named(dir) => PinnedPath::pin(dir).and_then(|(pinned, _, stat)| {
                let is_dir = FileType::from_raw_mode(stat.st_mode).is_dir();
                if is_dir { Ok(pinned) } else { Err(rustix::io::Errno::NOTDIR.into()) }
            }),
            Content::Tmpfs(_) => continue,
        };
        let source = source.with_context(|| format!("volume {:?}", volume.source().unwrap_or(Path::new(""))))?;
        shared.push(SharedVolume { number, source, readonly: volume.readonly });
    }
    Ok(shared)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn checked(volumes: Value) -> Result<Vec<Volume>, String> {
        let request: record::Boot = serde_json::from_value(json!({ "volumes": volumes })).unwrap();
        check(&request, &mut Vec::new()).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_target_is_absolute_and_neither_the_root_nor_msbs() {
        for (target, clean) in [("/a", "/a"), ("//a/./b/", "/a/b"), ("/.msbx", "/.msbx")] {
            assert_eq!(check_target(target).unwrap(), clean);
        }
        for bad in ["", "a", "/", "//", "/.", "/a/../b", "/..", "/.msb", "/.msb/scripts", "/a\0", "/proc/"] {
            assert!(check_target(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn volumes_are_mounted_from_the_outside_in() {
        let tmpfs = |target: &str| json!({"tmpfs": {}, "target": target});
        let volumes = checked(json!([tmpfs("/a/b/c"), tmpfs("/z"), tmpfs("/a/b"), tmpfs("/a")])).unwrap();
        let targets: Vec<_> = volumes.iter().map(|volume| volume.target.as_str()).collect();
        assert_eq!(targets, ["/z", "/a", "/a/b", "/a/b/c"]);
        assert!(checked(json!([tmpfs("/a"), tmpfs("/a/")])).unwrap_err().contains("another volume has this target"));
    }

    #[test]
    fn the_options_of_a_tmpfs_are_its_size_and_mode() {
        assert_eq!(tmpfs_options(None, None).unwrap(), "mode=1777");
        assert_eq!(tmpfs_options(Some("64M"), Some("0700")).unwrap(), "mode=0700,size=67108864");
        for (size, mode) in
            [(Some("0"), None), (Some("x"), None), (None, Some("9")), (None, Some("17777")), (None, Some("+7"))]
        {
            assert!(tmpfs_options(size, mode).is_err(), "{size:?} {mode:?}");
        }
    }

    #[test]
    fn what_cannot_be_shared_is_refused_with_a_reason() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        std::os::unix::fs::symlink("there", at("link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        for (name, expected) in [
            ("missing", "it does not exist"),
            ("link", "a symlink to \"there\""),
            ("socket", "it is a socket"),
            ("link/x", "it does not exist"),
        ] {
            let error = checked(json!([{"source": at(name), "target": "/x"}])).unwrap_err();
            assert!(error.contains(expected), "{name}: {error}");
        }
        let error = checked(json!([{"source": "/dev/null", "target": "/x"}])).unwrap_err();
        assert!(error.contains("only directories and regular files"), "{error}");
        let error = checked(json!([{"volume": "../x", "target": "/x"}])).unwrap_err();
        assert!(error.contains("a volume's name is"), "{error}");
        let error = checked(json!([{"tmpfs": {}, "target": "/x", "readonly": true}])).unwrap_err();
        assert!(error.contains("stays empty"), "{error}");
    }

    #[test]
    fn the_guest_gets_numbers_and_the_jail_gets_paths() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("file");
        fs::write(&file, "").unwrap();
        let volumes = checked(json!([
            {"source": scratch.path(), "target": "/a", "readonly": true},
            {"tmpfs": {}, "target": "/b"},
            {"source": file, "target": "/c"},
        ]))
        .unwrap();
        let sources: Vec<_> = for_guest(&volumes).into_iter().map(|volume| volume.source).collect();
        let tmpfs = VolumeSource::Tmpfs("mode=1777".into());
        assert_eq!(sources, [VolumeSource::Directory(0), tmpfs, VolumeSource::File(2)]);
        let shared = shared(&volumes).unwrap();
        assert_eq!(
            shared.iter().map(|volume| (volume.number, volume.readonly)).collect::<Vec<_>>(),
            [(0, true), (2, false)]
        );
        fs::remove_file(&file).unwrap();
        assert!(format!("{:#}", super::shared(&volumes).unwrap_err()).contains("it disappeared"));
    }
}
