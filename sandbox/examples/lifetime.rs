//! How sandboxes end: with their handle, with this process, or by a future that is dropped.
//!
//!     lifetime drop|hold|cancel|leave IMAGE

use std::time::Duration;

use msb_sandbox::Sandbox;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let what = args.next().unwrap_or_default();
    let builder = Sandbox::builder("lifetime").image(args.next().unwrap_or_else(|| "alpine".to_owned()));
    match what.as_str() {
        // The VM is killed with its handle, and its disk and its patches are removed.
        "drop" => {
            let builder = builder.fresh().ephemeral().script("hello", "#!/bin/sh\necho in the VM\n");
            let sb = builder.create().await?;
            print!("{}", sb.shell("hello").await?.stdout()?);
            drop(sb);
        }
        // The VM is killed with this process, whatever ends it.
        "hold" => {
            let sb = builder.ephemeral().create().await?;
            println!("up");
            sb.exec("sleep", ["86400"]).await?;
        }
        // No VM is left of a boot that takes too long.
        "cancel" => {
            let time = args.next().unwrap_or_default().parse().unwrap_or(1000);
            let up = tokio::time::timeout(Duration::from_millis(time), builder.create()).await;
            println!("{}", if up.is_ok() { "up" } else { "cancelled" });
            if let Ok(sb) = up {
                sb?.kill().await?;
            }
        }
        // The VM stays.
        "leave" => {
            let sb = builder.create().await?;
            println!("msb-exec {} -- sh", sb.name());
        }
        _ => return Err("usage: lifetime drop|hold|cancel|leave IMAGE".into()),
    }
    Ok(())
}
