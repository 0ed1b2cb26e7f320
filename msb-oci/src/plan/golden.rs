//! Configs as podman, buildah and containerd write them, and what they become: `tests/configs` and `tests/plans`.
//!
//! After a deliberate change: `MSB_UPDATE_PLANS=1 cargo test -p msb-oci golden`, and read the difference.

use std::fs;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use super::plan;

/// The plan without the process, which is that of the config, or what is refused.
fn outcome(config: &Path) -> Value {
    let spec: Spec = serde_json::from_slice(&fs::read(config).unwrap()).unwrap();
    match plan(&spec, Path::new("/bundle")) {
        Ok(plan) => {
            assert_eq!(Some(&plan.process), spec.process().as_ref());
            let mut plan = serde_json::to_value(plan).unwrap();
            plan.as_object_mut().unwrap().remove("process");
            plan
        }
        Err(refusals) => json!({"refused": refusals.iter().map(ToString::to_string).collect::<Vec<_>>()}),
    }
}

#[test]
fn each_config_becomes_its_plan() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut configs: Vec<PathBuf> =
        fs::read_dir(tests.join("configs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    configs.sort();
    assert!(configs.len() >= 10);
    for config in configs {
        let expected = tests.join("plans").join(config.file_name().unwrap());
        let text = format!("{}\n", serde_json::to_string_pretty(&outcome(&config)).unwrap());
        if std::env::var_os("MSB_UPDATE_PLANS").is_some() {
            fs::write(&expected, &text).unwrap();
        }
        assert_eq!(text, fs::read_to_string(&expected).unwrap_or_default(), "{config:?}");
    }
}
