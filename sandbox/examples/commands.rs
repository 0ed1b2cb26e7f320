//! Commands: their status and output, options, streams, and signals.

use std::time::Duration;

use msb_sandbox::{Error, Sandbox, Signal};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let image = std::env::args().nth(1).unwrap_or_else(|| "alpine".to_owned());
    let sb = Sandbox::builder("commands")
        .image(image)
        .env("GREETING", "hello")
        .volume("/work", |v| v.bind("./work"))
        .ephemeral()
        .create()
        .await?;

    // A command that fails is not an error.
    let output = sb.shell("echo $GREETING; echo to stderr >&2; exit 7").await?;
    println!("{:?} {:?} {:?}", output.status().code(), output.stdout()?, output.stderr()?);

    // The value of a variable is on no command line.
    let key = "-----BEGIN KEY-----\nsecret\n";
    let output = sb
        .exec_with("sh", |o| {
            o.args(["-c", "pwd; id -un; echo \"$TOKEN\"; echo \"$KEY\""])
                .workdir("/tmp")
                .user("nobody")
                .env("TOKEN", "s e=cret")
                .env("KEY", key)
        })
        .await?;
    println!("{:?}", output.stdout()?);

    let output = sb.exec_with("tr", |o| o.args(["a-z", "A-Z"]).stdin_bytes("bytes in")).await?;
    println!("{:?}", output.stdout()?);

    match sb.exec("no-such-program", ["x"]).await {
        Err(Error::NotStarted { code, message }) => println!("{code} {message}"),
        other => return Err(format!("{other:?}").into()),
    }
    match sb.exec_with("yes", |o| o.output_limit(1000)).await {
        Err(error @ Error::OutputLimit { .. }) => println!("{error}"),
        other => return Err(format!("{other:?}").into()),
    }
    let output = sb.exec_with("sleep", |o| o.args(["600"]).timeout(Duration::from_millis(50))).await?;
    println!("timed out: {}", output.status().timed_out());

    // Streams: a conversation with a command.
    let mut cat = sb.exec_stream("cat", [""; 0]).await?;
    let (mut stdin, stdout) = (cat.stdin.take().ok_or("no stdin")?, cat.stdout.take().ok_or("no stdout")?);
    let mut lines = BufReader::new(stdout).lines();
    for word in ["one", "two"] {
        stdin.write_all(format!("{word}\n").as_bytes()).await?;
        println!("{:?}", lines.next_line().await?);
    }
    drop(stdin);
    println!("{:?} {:?}", lines.next_line().await?, cat.wait().await?.code());

    let mut trap = sb.shell_stream("trap 'echo got it; exit 3' TERM; echo ready; while :; do sleep 0.1; done").await?;
    let mut stdout = trap.stdout.take().ok_or("no stdout")?;
    let mut ready = [0; 6];
    stdout.read_exact(&mut ready).await?;
    trap.signal(Signal::Term)?;
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).await?;
    println!("{rest:?} {:?}", trap.wait().await?.code());

    let mut sleep = sb.exec_stream("sleep", ["601"]).await?;
    sleep.kill().await?;
    println!("killed by {:?}", sleep.wait().await?.signal());

    sb.shell("echo from the guest >/work/note").await?;
    print!("{}", std::fs::read_to_string("work/note")?);

    for vm in Sandbox::list().await? {
        println!("{} {}", vm.name, vm.state);
    }

    // The same VM through another handle.
    let same = Sandbox::get("commands").await?;
    println!("{}", same.exec("hostname", [""; 0]).await?.stdout()?.trim());
    sb.stop().await?;
    match same.exec("true", [""; 0]).await {
        Err(error @ Error::Tool { tool: "msb-exec", .. }) => println!("{error}"),
        other => return Err(format!("{other:?}").into()),
    }
    Ok(())
}
