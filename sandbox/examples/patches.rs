//! Patches change the root before the VM boots, in a layer on top of the image.

use msb_sandbox::Sandbox;

#[rustfmt::skip] // as in the documentation
#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sb = Sandbox::builder("worker")
        .image("alpine")
        .patch(|p| p
            .text("/etc/greeting.txt", "Hello from a patched rootfs!\n", None, false)
            .text("/etc/motd", "Custom message of the day.\n", None, true) // replace existing
            .mkdir("/app", Some(0o755))
            .text("/app/config.json", r#"{"debug": true}"#, Some(0o644), false)
            .copy_file("./cert.pem", "/etc/ssl/cert.pem", None, false)
            .append("/etc/hosts", "127.0.0.1 myapp.local\n")
        )
        .create()
        .await?;

    let files = ["/etc/greeting.txt", "/etc/motd", "/app/config.json", "/etc/ssl/cert.pem", "/etc/hosts"];
    print!("{}", sb.exec("cat", files).await?.stdout()?);
    sb.stop().await?;
    Ok(())
}
