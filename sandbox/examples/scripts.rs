//! Scripts are files in `/.msb/scripts`, which is on PATH in the guest.

use indoc::indoc;
use msb_sandbox::Sandbox;

#[rustfmt::skip] // as in the documentation
#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sb = Sandbox::builder("worker")
        .image("ubuntu")
        .script("setup", indoc! {"
            #!/bin/bash
            apt-get update && apt-get install -y python3 curl
        "})
        .script("start", indoc! {"
            #!/bin/bash
            exec python3 /app/main.py
        "})
        .create()
        .await?;

    sb.shell("setup").await?;
    let output = sb.shell("start").await?;

    print!("{}", output.stdout()?);
    sb.stop().await?;
    Ok(())
}
