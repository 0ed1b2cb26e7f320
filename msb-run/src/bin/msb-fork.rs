//! The program msb-fork; see [`msb_run::fork`].

use std::process::ExitCode;

fn main() -> ExitCode {
    msb_run::fork::main()
}
