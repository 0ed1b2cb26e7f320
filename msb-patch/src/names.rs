//! Looking up users and groups in the image's passwd and group files, as they are when the operation runs.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail};
use msb::overlay::resolve::{End, Last, resolve};
use msb::record::owner::Id;
use rustix::fs::FileType;

use crate::attributes::RequestedAttributes;
use crate::member::{Mode, Owner};
use crate::target::Target;

/// The largest passwd or group file that is read, in bytes.
const MAX: u64 = 4 << 20;

impl Target {
    /// The attributes that an operation requests, with names looked up in the image.
    ///
    /// # Errors
    /// A name that the image does not have, or an owner that this user may not set.
    pub(crate) fn requested_attributes(
        &self,
        mode: Option<Mode>,
        uid: Option<&Owner>,
        gid: Option<&Owner>,
    ) -> anyhow::Result<RequestedAttributes> {
        let requested = RequestedAttributes {
            mode: mode.map(|mode| mode.0),
            uid: uid.map(|uid| self.id("uid", uid, "/etc/passwd")).transpose()?,
            gid: gid.map(|gid| self.id("gid", gid, "/etc/group")).transpose()?,
        };
        self.user.check(requested)?;
        Ok(requested)
    }

    fn id(&self, member: &str, owner: &Owner, file: &str) -> anyhow::Result<u32> {
        let name = match owner {
            Owner::Id(id) => return Ok(id.get()),
            Owner::Name(name) => name,
        };
        let listed = self.read_names(file).and_then(|text| find(&text, name));
        let number = name.parse::<Id>().ok();
        match (listed, number) {
            (Ok(Some(id)), _) | (Ok(None) | Err(_), Some(id)) => Ok(id.get()),
            (Ok(None), None) => {
                bail!("{member} {name:?}: the image's {file} has no such name (add it first, or give the number)")
            }
            (Err(error), None) => Err(error.context(format!("{member} {name:?}: the image's {file}"))),
        }
    }

    /// Reads a file of the image.
    fn read_names(&self, path: &str) -> anyhow::Result<Vec<u8>> {
        let at = resolve(&self.root, Path::new(path), Last::Follow)?;
        let End::Leaf(_, leaf) = &at.end else { bail!("does not exist (give the number)") };
        if leaf.entry.file_type() != FileType::RegularFile {
            bail!("is not a regular file");
        }
        let mut text = Vec::new();
        leaf.data().open_to_read()?.take(MAX + 1).read_to_end(&mut text)?;
        if text.len() as u64 > MAX {
            bail!("is larger than {} MiB", MAX >> 20);
        }
        Ok(text)
    }
}

/// The ID of a name: the third field of the first line whose first field is the name, in passwd(5) and in group(5).
///
/// # Errors
/// A line without a valid number.
fn find(text: &[u8], name: &str) -> anyhow::Result<Option<Id>> {
    for line in text.split(|&byte| byte == b'\n') {
        let mut fields = line.split(|&byte| byte == b':');
        if fields.next() != Some(name.as_bytes()) {
            continue;
        }
        let Some(number) = fields.nth(1) else { continue };
        let number = String::from_utf8_lossy(number);
        let id = number.parse::<Id>().with_context(|| format!("its line has the number {number:?}"))?;
        return Ok(Some(id));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_the_number_of_its_first_line() {
        let text = b"root:x:0:0:root:/root:/bin/sh\nbad line\napp\napp:x\napp:x:1000:7::/:\napp:x:1001:7::/:\n\xff:x:5:5\nbig:x:4294967295:\nneg:x:-1:\nnone:x::\nlast:x:9";
        for (name, number) in [
            ("root", Ok(Some(0))),
            ("app", Ok(Some(1000))),
            ("last", Ok(Some(9))),
            ("other", Ok(None)),
            ("bad line", Ok(None)),
            ("x", Ok(None)),
            ("big", Err("its line has the number \"4294967295\": 4294967295 is reserved")),
            ("neg", Err("its line has the number \"-1\": not a decimal number")),
            ("none", Err("its line has the number \"\": not a decimal number")),
        ] {
            match (find(text, name), number) {
                (Ok(found), Ok(number)) => assert_eq!(found.map(Id::get), number, "{name}"),
                (Err(error), Err(message)) => assert!(format!("{error:#}").starts_with(message), "{name}: {error:#}"),
                (found, _) => panic!("{name}: {found:?}"),
            }
        }
    }
}
