//! Where the files are that a guest of an architecture needs: its agent and its kernel. Those for this machine's own architecture
//! are beside this program or in a directory of the installation. Those for any architecture are in a directory with its name,
//! beside this program or in `../libexec/msb`.

use std::path::{Path, PathBuf};

use msb::architecture::Architecture;
use msb::program;

/// Finds a file for guests of an architecture. `dir` is the directory of the installation that has this machine's own.
pub(crate) fn find(architecture: Architecture, dir: &str, name: &str) -> Option<PathBuf> {
    let own = program::installed(dir, name).filter(|_| architecture == Architecture::HOST);
    let named = program::installed(program::LIBEXEC, &format!("{}/{name}", architecture.name())).collect::<Vec<_>>();
    own.chain(named).find(|path| path.exists())
}

/// Where [`find`] has searched, for a message.
pub(crate) fn searched(architecture: Architecture, dir: &str) -> String {
    if architecture == Architecture::HOST {
        return format!("not beside msb-boot and not in {dir}");
    }
    let named = Path::new(program::LIBEXEC).join(architecture.name());
    format!("none for {} guests in {:?} beside msb-boot or in {named:?}", architecture.platform(), architecture.name())
}

/// What makes the files.
pub(crate) fn remedy(architecture: Architecture) -> String {
    if architecture == Architecture::HOST {
        return "make build".into();
    }
    format!("make guest-{}", architecture.oci_name())
}
