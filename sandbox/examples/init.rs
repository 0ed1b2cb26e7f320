//! PID 1 is handed to the image's own init.

use msb_sandbox::Sandbox;

#[rustfmt::skip] // as in the documentation
#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sb = Sandbox::builder("worker")
        .image("jrei/systemd-debian:12")
        .memory(1024)
        .cpus(2)
        .init("auto")
        .create()
        .await?;

    print!("{}", sb.exec("cat", ["/proc/1/comm"]).await?.stdout()?);
    sb.stop().await?;
    Ok(())
}
