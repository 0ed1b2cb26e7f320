//! The program msb-run; see the library's `run`.

use std::process::ExitCode;

fn main() -> ExitCode {
    msb_run::run::main()
}
