//! The operations of msb-patch, as data.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

/// Operations that change the root before the VM boots; see [`SandboxBuilder::patch`](crate::SandboxBuilder::patch). They are applied in
/// order, in a layer on top of the image, all or none. msb-ops(5) describes them.
///
/// A path that exists in the image is an error unless `replace` is true. A mode is that of chmod(2), and `None` stands for 0644, or 0755
/// of a directory. Paths on the host are relative to the working directory.
///
/// ```no_run
/// # use msb_sandbox::Sandbox;
/// # async fn example() -> Result<(), msb_sandbox::Error> {
/// let sb = Sandbox::builder("worker")
///     .image("alpine")
///     .patch(|p| p
///         .mkdir("/app", Some(0o755))
///         .text("/app/config.json", r#"{"debug": true}"#, Some(0o644), false)
///         .append("/etc/hosts", "127.0.0.1 myapp.local\n"))
///     .create()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct PatchBuilder(Vec<Value>);

/// An operation whose members are being set.
struct Op(Map<String, Value>);

impl Op {
    fn new(name: &str) -> Self {
        Self(Map::from_iter([("op".to_owned(), name.into())]))
    }

    fn with(mut self, member: &str, value: impl Into<Value>) -> Self {
        self.0.insert(member.to_owned(), value.into());
        self
    }

    /// A path. One that is not UTF-8 has a member of its own.
    fn path(self, member: &str, path: impl AsRef<Path>) -> Self {
        let path = path.as_ref();
        match path.to_str() {
            Some(text) => self.with(member, text),
            None => self.with(&format!("{member}_base64"), STANDARD.encode(path.as_os_str().as_bytes())),
        }
    }

    fn mode(self, mode: Option<u32>) -> Self {
        match mode {
            Some(mode) => self.with("mode", format!("{mode:04o}")),
            None => self,
        }
    }

    fn replace(self, replace: bool) -> Self {
        if replace { self.with("replace", true) } else { self }
    }
}

impl PatchBuilder {
    fn push(mut self, op: Op) -> Self {
        self.0.push(Value::Object(op.0));
        self
    }

    /// The operations in order.
    pub(crate) fn build(self) -> Vec<Value> {
        self.0
    }

    /// Writes a text file.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .patch(|p| p.text("/etc/motd", "Custom message of the day.\n", None, true))
    /// # ;
    /// ```
    #[must_use]
    pub fn text(self, path: impl AsRef<Path>, content: impl Into<String>, mode: Option<u32>, replace: bool) -> Self {
        self.push(Op::new("text").path("path", path).with("content", content.into()).mode(mode).replace(replace))
    }

    /// Writes a file of any bytes.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .patch(|p| p.file("/etc/key", [0, 1, 2], Some(0o600), false))
    /// # ;
    /// ```
    #[must_use]
    pub fn file(self, path: impl AsRef<Path>, content: impl AsRef<[u8]>, mode: Option<u32>, replace: bool) -> Self {
        let content = STANDARD.encode(content);
        self.push(Op::new("file").path("path", path).with("content_base64", content).mode(mode).replace(replace))
    }

    /// Makes a directory and its parents. An existing one is not an error.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .patch(|p| p.mkdir("/app/data", Some(0o700)))
    /// # ;
    /// ```
    #[must_use]
    pub fn mkdir(self, path: impl AsRef<Path>, mode: Option<u32>) -> Self {
        self.push(Op::new("mkdir").path("path", path).mode(mode))
    }

    /// Appends to an existing file.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .patch(|p| p.append("/etc/hosts", "127.0.0.1 myapp.local\n"))
    /// # ;
    /// ```
    #[must_use]
    pub fn append(self, path: impl AsRef<Path>, content: impl Into<String>) -> Self {
        self.push(Op::new("append").path("path", path).with("content", content.into()))
    }

    /// Copies a file of the host. Without a mode it keeps its permissions.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .patch(|p| p.copy_file("./cert.pem", "/etc/ssl/cert.pem", None, false))
    /// # ;
    /// ```
    #[must_use]
    pub fn copy_file(self, src: impl AsRef<Path>, dst: impl AsRef<Path>, mode: Option<u32>, replace: bool) -> Self {
        self.push(Op::new("copy_file").path("src", src).path("dst", dst).mode(mode).replace(replace))
    }

    /// Copies the content of a directory of the host into a directory of the guest, which is made if it is missing.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .patch(|p| p.copy_dir("./site", "/srv/www", false))
    /// # ;
    /// ```
    #[must_use]
    pub fn copy_dir(self, src: impl AsRef<Path>, dst: impl AsRef<Path>, replace: bool) -> Self {
        self.push(Op::new("copy_dir").path("src", src).path("dst", dst).replace(replace))
    }

    /// Makes a symlink at `link` that points to `target`, which need not exist.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .patch(|p| p.symlink("/usr/share/zoneinfo/UTC", "/etc/localtime", true))
    /// # ;
    /// ```
    #[must_use]
    pub fn symlink(self, target: impl AsRef<Path>, link: impl AsRef<Path>, replace: bool) -> Self {
        self.push(Op::new("symlink").path("target", target).path("link", link).replace(replace))
    }

    /// Removes a file, or a directory with all below it. A missing one is not an error.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .patch(|p| p.remove("/var/cache/apk"))
    /// # ;
    /// ```
    #[must_use]
    pub fn remove(self, path: impl AsRef<Path>) -> Self {
        self.push(Op::new("remove").path("path", path))
    }

    /// Any operation of msb-ops(5), such as `edit`, `chown` or `rename`, as JSON.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// use serde_json::json;
    ///
    /// # Sandbox::builder("worker")
    /// .patch(|p| p.op(json!({"op": "chown", "path": "/app", "uid": 1000, "gid": 1000, "recursive": true})))
    /// # ;
    /// ```
    #[must_use]
    pub fn op(mut self, op: Value) -> Self {
        self.0.push(op);
        self
    }

    /// A script for `/.msb/scripts`.
    pub(crate) fn script(self, name: String, content: String) -> Self {
        self.push(Op::new("script").with("name", name).with("content", content))
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use serde_json::json;

    use super::*;

    #[test]
    fn each_call_is_an_operation_of_msb_ops() {
        let ops = PatchBuilder::default()
            .text("/a", "x", None, false)
            .text("/b", "y", Some(0o4755), true)
            .file("/c", [0, 1, 2], Some(0o600), false)
            .mkdir("/d", Some(0o7))
            .append("/e", "z")
            .copy_file("./f", "/f", None, true)
            .copy_dir("g", "/g", false)
            .symlink("../h", "/h", true)
            .remove("/i")
            .script("s".into(), "#!/bin/sh\n".into())
            .op(json!({"op": "touch", "path": "/j"}))
            .build();
        let expected = [
            json!({"op": "text", "path": "/a", "content": "x"}),
            json!({"op": "text", "path": "/b", "content": "y", "mode": "4755", "replace": true}),
            json!({"op": "file", "path": "/c", "content_base64": "AAEC", "mode": "0600"}),
            json!({"op": "mkdir", "path": "/d", "mode": "0007"}),
            json!({"op": "append", "path": "/e", "content": "z"}),
            json!({"op": "copy_file", "src": "./f", "dst": "/f", "replace": true}),
            json!({"op": "copy_dir", "src": "g", "dst": "/g"}),
            json!({"op": "symlink", "target": "../h", "link": "/h", "replace": true}),
            json!({"op": "remove", "path": "/i"}),
            json!({"op": "script", "name": "s", "content": "#!/bin/sh\n"}),
            json!({"op": "touch", "path": "/j"}),
        ];
        assert_eq!(ops, expected);
    }

    #[test]
    fn a_path_that_is_not_utf8_is_in_base64() {
        let ops = PatchBuilder::default().remove(OsStr::from_bytes(b"/caf\xe9")).build();
        assert_eq!(ops, [json!({"op": "remove", "path_base64": "L2NhZuk="})]);
    }
}
