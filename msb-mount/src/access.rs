//! What the users of a mount may do with it.

use clap::ValueEnum;
use fuser::{MountOption, SessionACL};

/// What the users of a mount may do with it.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(crate) struct Access {
    /// Mount read-only; a record without an upper gets none
    #[arg(long = "ro")]
    pub(crate) is_read_only: bool,

    /// Who can enter the mount: only root, or all users, as far as the modes of its files let them. Programs that act for other users,
    /// such as a VM that shares the root, need "all"
    #[arg(long, value_name = "root|all", default_value = "all", hide_default_value = false)]
    allow: Allow,

    /// Let device nodes work
    #[arg(long = "dev")]
    pub(crate) has_devices: bool,

    /// Let set-id bits and file capabilities take effect. Any user who can enter the mount can then run the programs of the image as
    /// their owner
    #[arg(long = "suid")]
    pub(crate) has_set_id: bool,

    /// Rename directories of the layers as overlayfs does with redirect_dir=on. Without it rename(2) fails with EXDEV, as with
    /// overlayfs's default, and mv(1) copies them. Only root may set redirects, so it has no effect for another user. A VM with a block
    /// root merges such an upper anew at each boot
    #[arg(long = "redirect-dir")]
    pub(crate) can_redirect: bool,

    /// Read whiteouts of layers in OCI's form too
    #[arg(long = "oci-whiteouts", hide = true)]
    pub(crate) has_oci_whiteouts: bool,
}

/// The users who can enter a mount.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Allow {
    Root,
    All,
}

impl Access {
    /// The command line that gives this value.
    pub(crate) fn flags(&self) -> impl Iterator<Item = &'static str> {
        let flags = [
            (self.is_read_only, "--ro"),
            (self.has_devices, "--dev"),
            (self.has_set_id, "--suid"),
            (self.can_redirect, "--redirect-dir"),
            (self.has_oci_whiteouts, "--oci-whiteouts"),
        ];
        let allow = if self.allow == Allow::Root { "--allow=root" } else { "--allow=all" };
        flags.into_iter().filter_map(|(is_set, flag)| is_set.then_some(flag)).chain([allow])
    }

    pub(crate) fn mount_options(&self) -> [MountOption; 3] {
        [
            if self.is_read_only { MountOption::RO } else { MountOption::RW },
            if self.has_devices { MountOption::Dev } else { MountOption::NoDev },
            if self.has_set_id { MountOption::Suid } else { MountOption::NoSuid },
        ]
    }

    /// A flag that only root may give.
    pub(crate) fn flag_of_root(&self) -> Option<&'static str> {
        [(self.has_devices, "--dev"), (self.has_set_id, "--suid")]
            .into_iter()
            .find_map(|(is_set, flag)| is_set.then_some(flag))
    }

    /// What is set and the kernel's overlayfs cannot do.
    pub(crate) fn only_of_fuse(&self) -> Option<&'static str> {
        [(self.allow == Allow::Root, "--allow root"), (self.has_oci_whiteouts, "whiteouts in OCI's form")]
            .into_iter()
            .find_map(|(is_set, what)| is_set.then_some(what))
    }

    /// The mount options for fusermount3, which adds nodev and nosuid.
    pub(crate) fn options_of_user(&self, may_admit_others: bool) -> String {
        let access = if self.is_read_only { "ro" } else { "rw" };
        let others = if self.allow == Allow::All && may_admit_others { ",allow_other" } else { "" };
        format!("fsname=msb,subtype=msb,default_permissions,{access}{others}")
    }

    /// The server's user is root, so the owner is root.
    pub(crate) fn acl(&self) -> SessionACL {
        match self.allow {
            Allow::Root => SessionACL::Owner,
            Allow::All => SessionACL::All,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser, Debug)]
    struct Line {
        #[command(flatten)]
        access: Access,
    }

    #[test]
    fn the_server_gets_what_its_parent_was_given() {
        for given in
            [&["--ro"][..], &["--dev", "--suid"], &["--allow", "root"], &["--redirect-dir", "--oci-whiteouts"], &[]]
        {
            let parse = |flags: &[&str]| Line::try_parse_from([&["x"], flags].concat()).unwrap().access;
            let first = parse(given);
            let second = parse(&first.flags().collect::<Vec<_>>());
            assert_eq!(format!("{first:?}"), format!("{second:?}"));
        }
    }
}
