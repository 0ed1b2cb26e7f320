//! The command line of msb-fork.

use clap::Parser;
use msb::tool::source::VmRecord;
use msb::vm::name;

use super::page::PAGE;

/// Start copies of a running microVM
///
/// Saves the VM as msb-snapshot does, starts copies from the snapshot, and removes it. The VM keeps running. Prints the record of each copy
/// on a line of its own.
#[derive(Debug, Parser)]
#[command(name = "msb-fork", version, after_help = PAGE.help())]
pub struct Args {
    #[command(flatten)]
    pub record: VmRecord,

    /// How many copies
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub count: u16,

    /// The prefix of the copies' names: NAME-1, NAME-2 and so on [default: the VM's name]
    #[arg(long, value_name = "NAME", value_parser = name::parse)]
    pub name: Option<String>,

    /// Give each copy another /etc/machine-id
    #[arg(long)]
    pub new_machine_id: bool,

    /// Print errors and warnings only
    #[arg(short, long)]
    pub quiet: bool,

    /// The name of a running VM, or a file with its record
    #[arg(value_name = "VM", conflicts_with = "record")]
    pub vm: Option<String>,
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
