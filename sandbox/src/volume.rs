//! Volumes of a sandbox.

use std::path::Path;

use msb::record::{Tmpfs, Volume, VolumeContent};

/// What is mounted at a path of the guest; see [`SandboxBuilder::volume`](crate::SandboxBuilder::volume).
#[derive(Clone, Debug)]
pub struct VolumeBuilder(String);

/// A volume.
#[derive(Clone, Debug, PartialEq)]
pub struct Mount(Volume);

impl VolumeBuilder {
    pub(crate) fn new(target: String) -> Self {
        Self(target)
    }

    /// A directory or a file of the host, live in both directions. Owners are numbers, the same on both sides.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .volume("/src", |v| v.bind("./src"))
    /// # ;
    /// ```
    #[must_use]
    pub fn bind(self, source: impl AsRef<Path>) -> Mount {
        let source = source.as_ref();
        // msb-boot says what is wrong with a path that cannot be made absolute.
        let source = std::path::absolute(source).unwrap_or_else(|_| source.to_owned());
        Mount(Volume::new(VolumeContent::Source(source), self.0))
    }

    /// A volume of the store, which is created if it is missing.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .volume("/cache", |v| v.named("cache"))
    /// # ;
    /// ```
    #[must_use]
    pub fn named(self, name: impl Into<String>) -> Mount {
        Mount(Volume::new(VolumeContent::Volume(name.into()), self.0))
    }

    /// An empty file system in the guest's memory.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .volume("/scratch", |v| v.tmpfs())
    /// # ;
    /// ```
    #[must_use]
    pub fn tmpfs(self) -> Mount {
        Mount(Volume::new(VolumeContent::Tmpfs(Tmpfs::default()), self.0))
    }
}

impl Mount {
    pub(crate) fn build(self) -> Volume {
        self.0
    }

    /// The guest can only read it.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .volume("/etc/app.conf", |v| v.bind("./app.conf").readonly())
    /// # ;
    /// ```
    #[must_use]
    pub fn readonly(mut self) -> Self {
        self.0.readonly = true;
        self
    }

    /// The most that a file system in memory holds, with a suffix K, M, G or T. It does nothing to other volumes.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .volume("/scratch", |v| v.tmpfs().size("64M"))
    /// # ;
    /// ```
    #[must_use]
    pub fn size(mut self, size: impl Into<String>) -> Self {
        if let VolumeContent::Tmpfs(tmpfs) = &mut self.0.content {
            tmpfs.size = Some(size.into());
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_data_of_the_record() {
        let json = |mount: Mount| serde_json::to_string(&mount.build()).unwrap();
        let at = || VolumeBuilder::new("/t".into());
        assert_eq!(json(at().bind("/src").readonly()), r#"{"source":"/src","target":"/t","readonly":true}"#);
        assert_eq!(json(at().named("cache")), r#"{"volume":"cache","target":"/t","readonly":false}"#);
        assert_eq!(
            json(at().tmpfs().size("64M")),
            r#"{"tmpfs":{"size":"64M","mode":null},"target":"/t","readonly":false}"#
        );
        assert!(json(at().bind("src")).contains(r#""source":"/"#));
    }
}
