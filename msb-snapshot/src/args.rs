//! The command line.

use clap::Parser;
use msb::tool::output::Output;
use msb::tool::source::VmRecord;

use crate::page::PAGE;

/// Save a running microVM
///
/// Pauses the VM, saves its memory, its devices and what its guest wrote in the store, lets it go on, and prints its record with the
/// member "snapshot" and without "vm". msb-boot starts any number of VMs from that record, each of which goes on where the saved one
/// was.
#[derive(Debug, Parser)]
#[command(name = "msb-snapshot", version, after_help = PAGE.help())]
pub(crate) struct Args {
    #[command(flatten)]
    pub record: VmRecord,

    #[command(flatten)]
    pub output: Output,

    /// End the VM once it is saved. Its guest does nothing after the moment that is saved, and a disk that has its name is left as it
    /// is then
    #[arg(long)]
    pub stop: bool,

    /// The name of a running VM, or a file with its record
    #[arg(value_name = "NAME", conflicts_with = "record")]
    pub name: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }
}
