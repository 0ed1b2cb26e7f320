//! What a sandbox is made of, before it is created.

use std::ffi::{OsStr, OsString};

use msb::record::{Boot, Init};

use crate::create::{self, Plan};
use crate::error::Error;
use crate::init::InitBuilder;
use crate::network::NetworkBuilder;
use crate::patch::PatchBuilder;
use crate::sandbox::Sandbox;
use crate::volume::{Mount, VolumeBuilder};

/// A sandbox to create. Values are checked by the tools when it is created.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing before create()"]
pub struct SandboxBuilder {
    image: Option<OsString>,
    pull_args: Vec<OsString>,
    patches: PatchBuilder,
    boot: Boot,
    fresh: bool,
    ephemeral: bool,
}

impl Sandbox {
    /// A sandbox of this name. The name is that of the VM, and the guest's hostname.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), msb_sandbox::Error> {
    /// use msb_sandbox::Sandbox;
    ///
    /// let sb = Sandbox::builder("worker").image("alpine").create().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder(name: impl Into<String>) -> SandboxBuilder {
        let mut boot = Boot::default();
        boot.name = Some(name.into());
        SandboxBuilder {
            image: None,
            pull_args: Vec::new(),
            patches: PatchBuilder::default(),
            boot,
            fresh: false,
            ephemeral: false,
        }
    }
}

impl SandboxBuilder {
    /// Sets the image: `NAME[:TAG]`, an OCI layout `oci:DIR`, an archive, a directory `./DIR` or a disk `./DISK.qcow2`, as msb-pull(1)
    /// takes them.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .image("docker.io/library/alpine:3.20")
    /// # ;
    /// ```
    pub fn image(mut self, image: impl AsRef<OsStr>) -> Self {
        self.image = Some(image.as_ref().to_owned());
        self
    }

    /// Adds arguments of msb-pull(1).
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .image("127.0.0.1:5000/demo:v1")
    /// .pull_args(["--plain-http"])
    /// # ;
    /// ```
    pub fn pull_args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.pull_args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Adds a script: `/.msb/scripts/NAME` in the guest, which is on PATH there.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .script("setup", "#!/bin/sh\napk add git\n")
    /// # ;
    /// ```
    pub fn script(mut self, name: impl Into<String>, content: impl Into<String>) -> Self {
        self.patches = self.patches.script(name.into(), content.into());
        self
    }

    /// Changes the root before the VM boots. The image stays as it is.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .patch(|p| p
    ///     .mkdir("/app", Some(0o755))
    ///     .copy_file("./cert.pem", "/etc/ssl/cert.pem", None, false))
    /// # ;
    /// ```
    pub fn patch(mut self, patches: impl FnOnce(PatchBuilder) -> PatchBuilder) -> Self {
        self.patches = patches(self.patches);
        self
    }

    /// Sets the memory in MiB; 512 by default.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .memory(1024)
    /// # ;
    /// ```
    pub fn memory(mut self, mib: u32) -> Self {
        self.boot.memory_mib = mib;
        self
    }

    /// Sets the number of processors; 1 by default.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .cpus(2)
    /// # ;
    /// ```
    pub fn cpus(mut self, cpus: u8) -> Self {
        self.boot.cpus = cpus;
        self
    }

    /// Hands PID 1 to an init of the image: its absolute path, or `auto`.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .init("auto")
    /// # ;
    /// ```
    pub fn init(mut self, path: impl Into<String>) -> Self {
        self.boot.init = Some(Init::new(path.into()));
        self
    }

    /// Hands PID 1 to an init with arguments and variables.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .init_with("/lib/systemd/systemd", |i| i
    ///     .arg("--unit=multi-user.target")
    ///     .env("container", "microsandbox"))
    /// # ;
    /// ```
    pub fn init_with(mut self, path: impl Into<String>, init: impl FnOnce(InitBuilder) -> InitBuilder) -> Self {
        self.boot.init = Some(init(InitBuilder::new(path.into())).build());
        self
    }

    /// Replaces the image's entrypoint and cmd, which msb-exec runs if it is given no command. [`Sandbox::exec`] runs its command as it is.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .entrypoint(["/usr/bin/python3", "-u"])
    /// # ;
    /// ```
    pub fn entrypoint(mut self, command: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.boot.entrypoint = Some(command.into_iter().map(|word| word.into().into()).collect());
        self
    }

    /// Sets a variable for all commands. Its value is in the sandbox's record, which this user can read.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .env("CI", "1")
    /// # ;
    /// ```
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.boot.env.insert(name.into(), value.into().into());
        self
    }

    /// Sets the directory that commands start in.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .workdir("/app")
    /// # ;
    /// ```
    pub fn workdir(mut self, dir: impl Into<String>) -> Self {
        self.boot.workdir = Some(dir.into());
        self
    }

    /// Sets the user of commands, `USER[:GROUP]`.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .user("nobody:nogroup")
    /// # ;
    /// ```
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.boot.user = Some(user.into());
        self
    }

    /// Sets the hostname, where it is not the sandbox's name.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker-7")
    /// .hostname("worker")
    /// # ;
    /// ```
    pub fn hostname(mut self, name: impl Into<String>) -> Self {
        self.boot.hostname = Some(name.into());
        self
    }

    /// Mounts a directory or file of the host, a volume of the store, or a file system in memory at a path of the guest.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .volume("/src", |v| v.bind("./src").readonly())
    /// .volume("/cache", |v| v.named("cache"))
    /// .volume("/scratch", |v| v.tmpfs().size("64M"))
    /// # ;
    /// ```
    pub fn volume(mut self, target: impl Into<String>, volume: impl FnOnce(VolumeBuilder) -> Mount) -> Self {
        self.boot.volumes.push(volume(VolumeBuilder::new(target.into())).build());
        self
    }

    /// Publishes a TCP port: connections to the port of the host's loopback reach that of the guest.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .port(8080, 80)
    /// # ;
    /// ```
    pub fn port(self, host: u16, guest: u16) -> Self {
        self.publish(format!("{host}:{guest}"))
    }

    /// Publishes a port, as `[IP:]PORT:GUEST[/udp]`.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .publish("0.0.0.0:8080:80")
    /// .publish("5353:53/udp")
    /// # ;
    /// ```
    pub fn publish(mut self, port: impl Into<String>) -> Self {
        self.boot.network.ports.push(port.into());
        self
    }

    /// Sets the network. The default is that of msb-boot: public, if the machine can provide it.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .network(|n| n.public().allow("10.1.2.3:5432"))
    /// # ;
    /// ```
    pub fn network(mut self, network: impl FnOnce(NetworkBuilder) -> NetworkBuilder) -> Self {
        self.boot.network = network(NetworkBuilder::new(self.boot.network)).build();
        self
    }

    /// Sets the size of the disk for what the guest writes, with a suffix K, M, G or T.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .disk("20G")
    /// # ;
    /// ```
    pub fn disk(mut self, size: impl Into<String>) -> Self {
        self.boot.disk = Some(size.into());
        self
    }

    /// Starts with a new disk, and removes the one that an earlier sandbox of this name has left.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .fresh()
    /// # ;
    /// ```
    pub fn fresh(mut self) -> Self {
        self.fresh = true;
        self
    }

    /// Ends the VM with its handle: it is killed when the [`Sandbox`] is dropped or this process ends, and its patches are removed. Its
    /// disk is removed too if [`SandboxBuilder::fresh`] has made it; otherwise it may have been there before, and stays.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), msb_sandbox::Error> {
    /// use msb_sandbox::Sandbox;
    ///
    /// let sb = Sandbox::builder("test").image("alpine").ephemeral().create().await?;
    /// sb.shell("make check").await?;
    /// drop(sb); // also if this panics
    /// # Ok(())
    /// # }
    /// ```
    pub fn ephemeral(mut self) -> Self {
        self.ephemeral = true;
        self
    }

    /// Changes the record's member `boot`, in which msb-boot finds what it is asked for. msb-record(5) has its members.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// use msb_sandbox::record::RestartPolicy;
    ///
    /// # Sandbox::builder("worker")
    /// .boot(|boot| boot.restart = RestartPolicy::OnReboot)
    /// # ;
    /// ```
    pub fn boot(mut self, change: impl FnOnce(&mut Boot)) -> Self {
        change(&mut self.boot);
        self
    }

    /// Fetches and patches the image and boots the VM. Returns when the sandbox can run commands. If the future is dropped, no VM is left.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), msb_sandbox::Error> {
    /// use msb_sandbox::Sandbox;
    ///
    /// let sb = Sandbox::builder("worker").image("debian:12").memory(1024).cpus(2).create().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::NoImage`], [`Error::NoTool`], and [`Error::Tool`] with what msb-pull, msb-patch or msb-boot said.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn create(self) -> Result<Sandbox, Error> {
        let plan = Plan {
            image: self.image.ok_or(Error::NoImage)?,
            pull_args: self.pull_args,
            ops: self.patches.build(),
            boot: self.boot,
            fresh: self.fresh,
            ephemeral: self.ephemeral,
        };
        create::create(plan).await
    }
}
