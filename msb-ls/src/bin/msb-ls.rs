//! The program msb-ls; see [`msb_ls::ls`].

use std::process::ExitCode;

fn main() -> ExitCode {
    msb_ls::ls::main()
}
