//! Which sandboxes there are, as msb-ls lists them.

use msb::record::{PublishedPort, Unknown};
use serde::Deserialize;

use crate::error::Error;
use crate::sandbox::Sandbox;
use crate::tool;

const TOOL: &str = "msb-ls";

/// A VM of this user. Members are `None` if they are not known.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[non_exhaustive]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// `starting`, `running`, `restarting`, `stopping`, `dead` or `stopped`. A dead VM has ended by itself; a stopped one is a disk
    /// that the next sandbox of the name uses.
    pub state: String,
    /// How a dead VM ended.
    pub reason: Option<String>,
    /// The image, or the directory or disk of its root.
    pub image: Option<String>,
    /// `krun` or `qemu`.
    pub vmm: Option<String>,
    /// Virtual processors.
    pub cpus: Option<u8>,
    /// Memory, in MiB.
    pub memory_mib: Option<u32>,
    /// Seconds since it was started.
    pub age_s: Option<u64>,
    /// The ports of the host that lead to the guest.
    #[serde(default)]
    pub ports: Vec<PublishedPort>,
    /// The other members of msb-ls(1).
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl Sandbox {
    /// Lists the VMs of this user, also those that other programs have started and those that are stopped.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), msb_sandbox::Error> {
    /// use msb_sandbox::Sandbox;
    ///
    /// for vm in Sandbox::list().await? {
    ///     println!("{}: {}", vm.name, vm.state);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Tool`], [`Error::NotUnderstood`].
    pub async fn list() -> Result<Vec<Listed>, Error> {
        parse(&tool::run(TOOL, ["-a", "--json"], &[]).await?.stdout)
    }
}

fn parse(text: &[u8]) -> Result<Vec<Listed>, Error> {
    let vms: Result<_, _> = serde_json::Deserializer::from_slice(text).into_iter().collect();
    vms.map_err(|error| Error::NotUnderstood { tool: TOOL, reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_vm() {
        let text = br#"{"name":"a","state":"running","reason":null,"image":"docker.io/library/alpine:latest","vmm":"qemu","root":"block","cpus":2,"memory_mib":512,"age_s":3,"ports":[{"host":"127.0.0.1:8080","guest":80,"protocol":"tcp"}],"pid":1}
{"name":"b","state":"stopped"}
"#;
        let vms = parse(text).unwrap();
        assert_eq!((vms[0].name.as_str(), vms[0].cpus, vms[0].ports[0].guest), ("a", Some(2), 80));
        assert_eq!(vms[0].unknown["root"], "block");
        assert_eq!((vms[1].state.as_str(), vms[1].memory_mib), ("stopped", None));
        assert!(matches!(parse(b"{"), Err(Error::NotUnderstood { .. })));
    }
}
