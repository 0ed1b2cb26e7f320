//! The program msb; see [`msb_run::front`].

use std::process::ExitCode;

fn main() -> ExitCode {
    msb_run::front::main()
}
