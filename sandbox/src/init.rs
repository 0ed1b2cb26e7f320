//! The init that PID 1 is handed to.

use msb::record::Init;

/// The arguments and variables of an init; see [`SandboxBuilder::init_with`](crate::SandboxBuilder::init_with).
#[derive(Clone, Debug)]
pub struct InitBuilder(Init);

impl InitBuilder {
    pub(crate) fn new(path: String) -> Self {
        Self(Init::new(path))
    }

    pub(crate) fn build(self) -> Init {
        self.0
    }

    /// Adds an argument.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .init_with("/lib/systemd/systemd", |i| i.arg("--unit=multi-user.target").arg("--log-level=debug"))
    /// # ;
    /// ```
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.0.args.push(arg.into().into());
        self
    }

    /// Adds arguments.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .init_with("/usr/bin/s6-svscan", |i| i.args(["/etc/s6/scan"]))
    /// # ;
    /// ```
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.0.args.extend(args.into_iter().map(|arg| arg.into().into()));
        self
    }

    /// Sets a variable; it overrides an inherited one.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .init_with("auto", |i| i.env("container", "microsandbox"))
    /// # ;
    /// ```
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.env.insert(name.into(), value.into().into());
        self
    }

    /// Whether the sandbox counts as up only when the init is usable, that is, has started what it starts at boot. The default is true;
    /// agentd(8) defines it for each init.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .init_with("auto", |i| i.wait(false))
    /// # ;
    /// ```
    #[must_use]
    pub fn wait(mut self, wait: bool) -> Self {
        self.0.wait = wait;
        self
    }
}
