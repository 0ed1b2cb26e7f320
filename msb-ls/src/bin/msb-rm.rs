//! The program msb-rm; see [`msb_ls::rm`].

use std::process::ExitCode;

fn main() -> ExitCode {
    msb_ls::rm::main()
}
