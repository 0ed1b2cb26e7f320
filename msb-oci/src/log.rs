//! The log of `--log`: where containerd's shim, and podman for some runtimes, look for the message of a failure.

use std::fs::File;
use std::io::Write;

use serde_json::json;

use crate::args::{Global, LogFormat};

/// Appends a line. A log that cannot be written is no reason to fail.
pub(crate) fn write(global: &Global, level: &str, message: &str) {
    let Some(path) = &global.log else { return };
    let time = crate::time::now();
    let line = match global.log_format {
        LogFormat::Json => json!({"level": level, "msg": message, "time": time}).to_string(),
        LogFormat::Text => format!("{time} {level}: {message}"),
    };
    if let Ok(mut file) = File::options().append(true).create(true).open(path) {
        let _ = file.write_all(format!("{line}\n").as_bytes());
    }
}
