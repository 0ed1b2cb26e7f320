//! Whether a file system can hold layers. Overlayfs as the file system below refuses the marks of another overlayfs, and
//! some file systems have no device nodes or no xattrs.

use std::io;
use std::path::Path;

use msb::overlay::beneath::{Dir, Name};
use msb::overlay::whiteout;
use rustix::fs::Mode;

/// What the file system of the store at `home` lacks, for the error message of a failed pull; `None` if it lacks nothing.
pub(crate) fn missing(home: &Path) -> Option<String> {
    let try_marks = || -> io::Result<Option<(&str, io::Error)>> {
        let temp = Dir::open(&home.join("tmp"))?;
        let name = format!("marks.{}", std::process::id());
        let name = Name::new(name.as_ref())?;
        let dir = temp.mkdir(name, Mode::RWXU)?;
        let whiteout =
            whiteout::make_whiteout(&dir, Name::new("whiteout".as_ref())?).map_err(|error| ("whiteouts", error));
        let opaque = whiteout::make_opaque(&dir).map_err(|error| ("opaque directories", error));
        temp.remove_tree(name)?;
        Ok(whiteout.and(opaque).err())
    };
    let (what, error) = try_marks().ok()??;
    let file_system = rustix::fs::statfs(home).map_or(0, |stat| stat.f_type as u64);
    Some(format!("{} cannot hold overlayfs's {what}: {error}", name(file_system)))
}

/// The name of a file system by its magic (`statfs(2)`).
fn name(magic: u64) -> &'static str {
    match magic {
        0x794c_7630 => "its file system, overlayfs,",
        0x8584_58f6 => "its file system, ramfs,",
        0x4d44 => "its file system, vfat,",
        0x6969 => "its file system, NFS,",
        0x6573_5546 => "its file system, a FUSE one,",
        0x0102_1997 => "its file system, 9p,",
        _ => "its file system",
    }
}
