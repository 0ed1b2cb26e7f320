//! Mount options as the OCI runtime specification lists them: those of `mount(2)`'s flags, and those that the file system gets.

use nix::mount::MsFlags;

/// Parsed options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The flags, without `MS_BIND`, `MS_REC` and `MS_RDONLY`.
    pub flags: MsFlags,
    /// Whether it is a bind mount.
    pub is_bind: bool,
    /// Whether a bind mount includes the mounts below its source.
    pub is_recursive: bool,
    /// Whether it is read-only.
    pub is_read_only: bool,
    /// Whether a tmpfs begins with a copy of what it covers.
    pub copies_up: bool,
    /// The options for the file system.
    pub data: String,
}

impl Options {
    /// Parses the options. A later one overrides an earlier one. Propagation has no meaning in a namespace of which nobody has a copy, and
    /// is ignored, and so are options about the host's kernel.
    pub fn parse(options: &[String]) -> Self {
        let mut parsed = Self {
            flags: MsFlags::empty(),
            is_bind: false,
            is_recursive: false,
            is_read_only: false,
            copies_up: false,
            data: String::new(),
        };
        for option in options {
            parsed.add(option);
        }
        parsed
    }

    fn add(&mut self, option: &str) {
        let (flag, is_set) = match option {
            "nosuid" => (MsFlags::MS_NOSUID, true),
            "suid" => (MsFlags::MS_NOSUID, false),
            "nodev" => (MsFlags::MS_NODEV, true),
            "dev" => (MsFlags::MS_NODEV, false),
            "noexec" => (MsFlags::MS_NOEXEC, true),
            "exec" => (MsFlags::MS_NOEXEC, false),
            "noatime" => (MsFlags::MS_NOATIME, true),
            "atime" => (MsFlags::MS_NOATIME, false),
            "nodiratime" => (MsFlags::MS_NODIRATIME, true),
            "diratime" => (MsFlags::MS_NODIRATIME, false),
            "relatime" => (MsFlags::MS_RELATIME, true),
            "norelatime" => (MsFlags::MS_RELATIME, false),
            "strictatime" => (MsFlags::MS_STRICTATIME, true),
            "nostrictatime" => (MsFlags::MS_STRICTATIME, false),
            "sync" => (MsFlags::MS_SYNCHRONOUS, true),
            "async" => (MsFlags::MS_SYNCHRONOUS, false),
            "dirsync" => (MsFlags::MS_DIRSYNC, true),
            "bind" => return self.is_bind = true,
            "rbind" => return (self.is_bind, self.is_recursive) = (true, true),
            "ro" | "rro" => return self.is_read_only = true,
            "rw" | "rrw" => return self.is_read_only = false,
            "tmpcopyup" => return self.copies_up = true,
            "defaults" | "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave" | "unbindable"
            | "runbindable" | "z" | "Z" | "U" | "idmap" | "ridmap" | "nosymfollow" => return,
            _ => {
                if !self.data.is_empty() {
                    self.data.push(',');
                }
                return self.data.push_str(option);
            }
        };
        self.flags.set(flag, is_set);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &str) -> Options {
        Options::parse(&options.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_flags_or_data() {
        let shm = parse("nosuid,noexec,nodev,mode=1777,size=65536k");
        assert_eq!(shm.flags, MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV);
        assert_eq!((shm.data.as_str(), shm.is_bind, shm.is_read_only), ("mode=1777,size=65536k", false, false));
        let bind = parse("rbind,rprivate,ro,noatime");
        assert_eq!((bind.is_bind, bind.is_recursive, bind.is_read_only), (true, true, true));
        assert_eq!((bind.flags, bind.data.as_str()), (MsFlags::MS_NOATIME, ""));
        let last = parse("bind,ro,rw,nosuid,suid,tmpcopyup");
        assert_eq!((last.is_bind, last.is_recursive, last.is_read_only, last.copies_up), (true, false, false, true));
        assert_eq!(last.flags, MsFlags::empty());
    }
}
