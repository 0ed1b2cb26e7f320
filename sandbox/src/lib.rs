//! MicroVM sandboxes: boot an image in a VM of its own, and run commands there.
//!
//! ```no_run
//! use msb_sandbox::Sandbox;
//!
//! # async fn example() -> Result<(), msb_sandbox::Error> {
//! let sb = Sandbox::builder("worker")
//!     .image("alpine")
//!     .script("hello", "#!/bin/sh\necho \"hello from $(hostname)\"\n")
//!     .patch(|p| p.text("/etc/motd", "Patched before boot.\n", None, true))
//!     .memory(1024)
//!     .cpus(2)
//!     .create()
//!     .await?;
//! let output = sb.shell("hello && cat /etc/motd").await?;
//! print!("{}", output.stdout()?);
//! sb.stop().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # The tools do the work
//!
//! This crate starts the tools of msb and passes records between them: `msb-pull | msb-patch | msb-boot` creates a sandbox, msb-exec runs
//! a command, msb-ls lists VMs, and msb-stop and msb-rm end one. It decides nothing that a tool decides, so the manual pages of the tools hold here too, and the
//! sandboxes of a program are those of the command line: `msb-exec worker -- sh`. A tool is looked for in the directory `$MSB_BIN`; if that
//! is not set, beside the running program, and then on PATH. What is requested of msb-boot is data in its record ([`record::Boot`]).
//! Operations, the scripts of the builder and the values of variables go through pipes. The command of `exec` and the line of `shell` are
//! on the command line of msb-exec, which other users of the host can read: pass secrets as variables or on stdin.
//!
//! # What dropping does
//!
//! | dropped | effect |
//! | --- | --- |
//! | a [`Sandbox`] | None: the VM stays, as that of msb-boot does. [`Sandbox::get`] finds it again. |
//! | a [`Sandbox`] of [`SandboxBuilder::ephemeral`] | The VM is killed, also if this process ends in any way, even by SIGKILL. |
//! | the future of [`SandboxBuilder::create`] | The boot is ended, and no VM is left. |
//! | the future of [`Sandbox::exec`] and its kin, or a [`Process`] | The command in the guest is killed. |
//! | the future of [`Sandbox::stop`] | msb-stop goes on. |
//!
//! # Requirements
//!
//! A tokio runtime with I/O, and what the tools need: Linux, and root.

mod builder;
mod create;
mod error;
mod exec;
mod init;
mod keeper;
mod list;
mod memory_file;
mod network;
mod output;
mod patch;
mod process;
mod sandbox;
mod tool;
mod volume;

pub use builder::SandboxBuilder;
pub use error::Error;
pub use exec::ExecOptions;
pub use init::InitBuilder;
pub use list::Listed;
/// The record that the tools pass on; msb-record(5) describes it.
pub use msb::record;
pub use network::NetworkBuilder;
pub use output::{ExitStatus, Output};
pub use patch::PatchBuilder;
pub use process::{Process, Signal};
pub use sandbox::Sandbox;
pub use volume::{Mount, VolumeBuilder};
