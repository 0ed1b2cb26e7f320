//! The process that is PID 1 now.

use std::fs::{self, File};
use std::io::{self, Read};

use msb::vm::inits::{self, InitSystem};

/// Its process ID, for calls that take a plain number.
pub const PID: i32 = 1;

/// The most that is read of its program's file, in bytes.
const MAX_PROGRAM: u64 = 8 << 20;

/// The init system that PID 1 runs, and the file name of its program.
///
/// # Errors
/// Those of reading `/proc/1`.
pub fn init_system() -> io::Result<(&'static InitSystem, String)> {
    let program = fs::read_link("/proc/1/exe")?;
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut content = Vec::new();
    if inits::needs_content(&name) {
        File::open("/proc/1/exe")?.take(MAX_PROGRAM).read_to_end(&mut content)?;
    }
    Ok((inits::recognise(&name, &fs::read("/proc/1/cmdline")?, &content), name))
}
