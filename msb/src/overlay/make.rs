//! Making new files in the upper, also over whiteouts.

use std::io;

use rustix::fs::{Mode, RenameFlags, XattrFlags};
use rustix::io::Errno;

use super::attributes::DEFAULT_ACL;
use super::beneath::{Dir, Name};
use super::merged::{Merged, Node};
use super::upper::{Writer, upper_of};
use super::whiteout;

impl Writer {
    /// Makes a file at `name` with `make`. If a whiteout has the name, `make` is called again, in the work directory, and the file
    /// replaces the whiteout.
    ///
    /// # Errors
    /// The error of `make`: EEXIST if a visible file has the name.
    pub fn make<T>(
        &self,
        parent: &Merged,
        name: Name<'_>,
        make: impl Fn(&Dir, Name<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        let upper = upper_of(parent)?;
        match make(upper, name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_whited_out(upper, name)? => {
                self.replace(upper, name, |work, staged| self.inheriting(upper, work, staged, &make))
            }
            other => other,
        }
    }

    /// Makes a directory as [`Self::make`] does. One that replaces a whiteout is opaque if a lower layer has a directory there.
    ///
    /// # Errors
    /// The error of `mkdir(2)`: EEXIST.
    pub fn make_dir(&self, parent: &Merged, name: Name<'_>, mode: Mode) -> io::Result<()> {
        let upper = upper_of(parent)?;
        match rustix::fs::mkdirat(upper, name.as_os_str(), mode) {
            Err(Errno::EXIST) if is_whited_out(upper, name)? => {
                let hides_lower = matches!(parent.lookup_lower(name)?, Some(Node::Dir(_)));
                self.replace(upper, name, |work, staged| {
                    let dir =
                        self.inheriting(upper, work, staged, &|dir: &Dir, name: Name<'_>| dir.mkdir(name, mode))?;
                    if hides_lower { whiteout::make_opaque(&dir) } else { Ok(()) }
                })
            }
            other => Ok(other?),
        }
    }

    /// Makes a file in the work directory that inherits what it would inherit in `parent`. Only the file system applies a default ACL,
    /// so the file is made in a temporary directory that has it.
    fn inheriting<T>(
        &self,
        parent: &Dir,
        work: &Dir,
        staged: Name<'_>,
        make: &impl Fn(&Dir, Name<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        let Ok(acl) = parent.to_entry()?.xattr(DEFAULT_ACL.as_ref()) else { return make(work, staged) };
        let dir_name = self.fresh_name();
        let dir_name = Name::new(&dir_name)?;
        let dir = work.mkdir(dir_name, Mode::RWXU)?;
        let made = (|| {
            dir.to_entry()?.set_xattr(DEFAULT_ACL.as_ref(), &acl, XattrFlags::empty())?;
            let made = make(&dir, staged)?;
            dir.rename(staged, work, staged, RenameFlags::empty())?;
            Ok(made)
        })();
        work.remove_tree(dir_name)?;
        made
    }
}

fn is_whited_out(upper: &Dir, name: Name<'_>) -> io::Result<bool> {
    upper.entry(name)?.map_or(Ok(false), |entry| whiteout::is_either_whiteout(&entry))
}
