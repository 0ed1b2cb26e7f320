//! The examples of this crate's documentation, one after the other, on real VMs.

mod builder;
mod error;
mod exec;
mod init;
mod introduction;
mod list;
mod network;
mod output;
mod patch;
mod process;
mod sandbox;
mod volume;

use msb_sandbox::{Error, Sandbox};

const NAME: &str = "worker";

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    builder::run().await?;
    error::run().await?;
    exec::run().await?;
    init::run().await?;
    introduction::run().await?;
    list::run().await?;
    network::run().await?;
    output::run().await?;
    patch::run().await?;
    process::run().await?;
    sandbox::run().await?;
    volume::run().await?;
    Ok(clear().await?)
}

/// The sandbox of an example that uses one.
async fn sandbox() -> Result<Sandbox, Error> {
    Sandbox::get(NAME).await
}

/// Creates it if an example has ended it.
async fn ensure() -> Result<(), Error> {
    if sandbox().await.is_err() {
        Sandbox::builder(NAME).image("alpine").script("setup", "#!/bin/sh\n").create().await?;
    }
    Ok(())
}

/// Ends the sandboxes that examples have left.
async fn clear() -> Result<(), Error> {
    for vm in Sandbox::list().await?.iter().filter(|vm| vm.state == "running") {
        // An ephemeral sandbox may have ended meanwhile.
        if let Ok(sandbox) = Sandbox::get(&vm.name).await {
            sandbox.remove().await?;
        }
    }
    Ok(())
}
