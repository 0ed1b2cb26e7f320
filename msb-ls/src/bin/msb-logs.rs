//! The program msb-logs; see [`msb_ls::logs`].

use std::process::ExitCode;

fn main() -> ExitCode {
    msb_ls::logs::main()
}
