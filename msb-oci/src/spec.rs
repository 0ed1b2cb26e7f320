//! The commands `spec` and `features`, which print documents.

use std::fs::File;
use std::io::Write;

use anyhow::Context;
use msb::tool::line;
use oci_spec::runtime::Spec as Config;
use serde_json::{Value, json};

use crate::args::Spec;
use crate::state::OCI_VERSION;

/// Writes a config.json.
///
/// # Errors
/// There is one already.
pub(crate) fn spec(args: &Spec) -> anyhow::Result<()> {
    let path = args.bundle.join("config.json");
    let mut file = File::create_new(&path).with_context(|| format!("{path:?}"))?;
    let mut config = serde_json::to_value(Config::default())?;
    config["ociVersion"] = OCI_VERSION.into();
    // The crate's default is another runtime's name.
    config["hostname"] = crate::TOOL.into();
    Ok(writeln!(file, "{}", serde_json::to_string_pretty(&config)?)?)
}

/// Prints the document of the specification about features.
///
/// # Errors
/// Those of stdout.
pub(crate) fn features() -> anyhow::Result<()> {
    Ok(line::put_bytes(format!("{}\n", serde_json::to_string_pretty(&document())?).as_bytes())?)
}

fn document() -> Value {
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": OCI_VERSION,
        "hooks": ["prestart", "createRuntime", "createContainer", "poststart", "poststop"],
        "mountOptions": ["bind", "rbind", "ro", "rw", "nosuid", "nodev", "noexec", "tmpcopyup"],
        "linux": {
            "namespaces": ["pid", "network", "ipc", "uts", "mount"],
            "capabilities": [],
            "cgroup": {"v1": true, "v2": true, "systemd": true, "systemdUser": false, "rdma": false},
            "seccomp": {"enabled": false, "actions": [], "operators": [], "archs": [], "knownFlags": [], "supportedFlags": []},
            "apparmor": {"enabled": false},
            "selinux": {"enabled": false},
            "intelRdt": {"enabled": false},
            "mountExtensions": {"idmap": {"enabled": false}},
        },
        "annotations": {"dev.msb.kind": "microVM"},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_the_types_of_the_specification() {
        let features: oci_spec::runtime::Features = serde_json::from_value(document()).unwrap();
        assert_eq!(features.oci_version_max(), OCI_VERSION);
    }

    #[test]
    fn a_config_is_written_once() {
        let dir = tempfile::tempdir().unwrap();
        let args = Spec { bundle: dir.path().to_owned() };
        spec(&args).unwrap();
        let config = Config::load(dir.path().join("config.json")).unwrap();
        let plan = crate::plan::plan(&config, dir.path()).unwrap();
        assert_eq!((plan.rootfs, plan.hostname.as_deref()), (dir.path().join("rootfs"), Some("msb-oci")));
        assert!(spec(&args).is_err());
    }
}
