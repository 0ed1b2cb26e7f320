//! `msb doctor`: the probe of msb-boot for a person, a line for each item.

use std::collections::BTreeMap;
use std::process::Stdio;

use anyhow::Context;
use msb::tool::exit;
use msb::tool::line;
use serde::Deserialize;

use crate::programs;

/// What `msb-boot --probe` prints.
#[derive(Debug, Deserialize)]
struct Probe {
    vmm: Option<String>,
    #[serde(rename = "words")]
    message: String,
    vmms: BTreeMap<String, Finding>,
    parts: BTreeMap<String, Finding>,
    #[serde(default)]
    guests: BTreeMap<String, Finding>,
}

#[derive(Debug, Deserialize)]
struct Finding {
    usable: bool,
    by: Option<String>,
    found: Option<String>,
    remedy: Option<String>,
}

/// Prints what this machine has for VMs. Returns 1 if no VM would run.
///
/// # Errors
/// A probe that fails.
pub fn run() -> anyhow::Result<u8> {
    let mut command = programs::command("msb-boot")?;
    let output = command.arg("--probe").stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("msb-boot")?;
    let probe: Probe = serde_json::from_slice(&output.stdout).context("msb-boot --probe")?;
    let is_good = output.status.success();
    line::put_bytes(report(&probe, is_good).as_bytes())?;
    Ok(if is_good { 0 } else { exit::FAILED })
}

fn report(probe: &Probe, is_good: bool) -> String {
    let items = probe.vmms.iter().map(|(name, item)| (format!("VMM {name}"), item));
    let items = items.chain(probe.parts.iter().map(|(name, item)| (name.clone(), item)));
    let items: Vec<_> = items.chain(probe.guests.iter().map(|(name, item)| (format!("{name} guests"), item))).collect();
    let width = items.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut text: String = items.iter().map(|(name, item)| format!("{name:width$}  {}\n", describe(item))).collect();
    text.push_str(&match (is_good, &probe.vmm) {
        (true, Some(vmm)) => format!("VMs run with {vmm}: {}\n", probe.message),
        _ => format!("no VM would run: {}\n", probe.message),
    });
    text
}

fn describe(item: &Finding) -> String {
    if item.usable {
        return format!("ok       {}", item.by.as_deref().unwrap_or_default()).trim_end().to_owned();
    }
    let remedy = item.remedy.as_deref().map(|remedy| format!(" ({remedy})")).unwrap_or_default();
    format!("missing  {}{remedy}", item.found.as_deref().unwrap_or("not usable"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_has_a_line_and_what_is_missing_its_remedy() {
        let probe: Probe = serde_json::from_str(
            r#"{"vmm": "qemu", "words": "no KVM here",
                "vmms": {"krun": {"usable": false, "found": "no /dev/kvm", "remedy": "enable it"}},
                "parts": {"qemu": {"usable": true, "by": "/usr/bin/qemu-system-x86_64"}},
                "guests": {"linux/arm64": {"usable": false, "found": "no agentd", "remedy": "make it"}}}"#,
        )
        .unwrap();
        let expected = "VMM krun            missing  no /dev/kvm (enable it)\n\
                        qemu                ok       /usr/bin/qemu-system-x86_64\n\
                        linux/arm64 guests  missing  no agentd (make it)\n\
                        VMs run with qemu: no KVM here\n";
        assert_eq!(report(&probe, true), expected);
    }
}
