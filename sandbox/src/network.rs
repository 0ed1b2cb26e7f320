//! The network that is requested for a sandbox.

use std::net::IpAddr;

use msb::record::{Network, NetworkMode, NetworkRule};

/// What a guest may reach; see [`SandboxBuilder::network`](crate::SandboxBuilder::network). msb-network(7) has the modes and rules.
#[derive(Clone, Debug)]
pub struct NetworkBuilder(Network);

impl NetworkBuilder {
    pub(crate) fn new(network: Network) -> Self {
        Self(network)
    }

    pub(crate) fn build(self) -> Network {
        self.0
    }

    /// What the guest may reach where no rule matches.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// use msb_sandbox::record::NetworkMode;
    ///
    /// # Sandbox::builder("worker")
    /// .network(|n| n.mode(NetworkMode::Deny).allow("pypi.org:443"))
    /// # ;
    /// ```
    #[must_use]
    pub fn mode(mut self, mode: NetworkMode) -> Self {
        self.0.mode = Some(mode);
        self
    }

    /// The internet, and no private network.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .network(|n| n.public())
    /// # ;
    /// ```
    #[must_use]
    pub fn public(self) -> Self {
        self.mode(NetworkMode::Public)
    }

    /// Adds a rule that allows what it matches: `WHAT[:PORT[-PORT]][/tcp|/udp]`. The first rule that matches decides.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .network(|n| n.public().allow("10.1.2.0/24:5432/tcp"))
    /// # ;
    /// ```
    #[must_use]
    pub fn allow(mut self, rule: impl Into<String>) -> Self {
        self.0.rules.push(NetworkRule::Allow(rule.into()));
        self
    }

    /// Adds a rule that denies what it matches.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .network(|n| n.public().deny("203.0.113.0/24"))
    /// # ;
    /// ```
    #[must_use]
    pub fn deny(mut self, rule: impl Into<String>) -> Self {
        self.0.rules.push(NetworkRule::Deny(rule.into()));
        self
    }

    /// Adds a name server, in place of the host's.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .network(|n| n.public().dns([9, 9, 9, 9]))
    /// # ;
    /// ```
    #[must_use]
    pub fn dns(mut self, server: impl Into<IpAddr>) -> Self {
        self.0.dns.push(server.into());
        self
    }

    /// Adds a line to the guest's hosts(5). The address may be `host-gateway`.
    ///
    /// ```
    /// # use msb_sandbox::Sandbox;
    /// # Sandbox::builder("worker")
    /// .network(|n| n.public().host("registry.local", "10.1.2.3"))
    /// # ;
    /// ```
    #[must_use]
    pub fn host(mut self, name: &str, address: &str) -> Self {
        self.0.hosts.push(format!("{name}:{address}"));
        self
    }
}
