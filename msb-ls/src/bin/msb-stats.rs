//! The program msb-stats; see [`msb_ls::stats`].

use std::process::ExitCode;

fn main() -> ExitCode {
    msb_ls::stats::main()
}
