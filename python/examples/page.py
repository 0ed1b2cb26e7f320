"""Scripts, patches and an init, all defined when a sandbox is created."""

import asyncio

from msb_sandbox import InitConfig, Patch, Sandbox


async def main() -> None:
    sb = await Sandbox.create(
        "worker",
        image="ubuntu",
        scripts={
            "setup": "#!/bin/bash\napt-get update && apt-get install -y python3 curl\n",
            "start": "#!/bin/bash\nexec python3 /app/main.py\n",
        },
        patches=[
            Patch.text("/etc/greeting.txt", "Hello from a patched rootfs!\n"),
            Patch.text("/etc/motd", "Custom message of the day.\n", replace=True),
            Patch.mkdir("/app", mode=0o755),
            Patch.text("/app/config.json", '{"debug": true}', mode=0o644),
            Patch.copy_file("./cert.pem", "/etc/ssl/cert.pem"),
            Patch.append("/etc/hosts", "127.0.0.1 myapp.local\n"),
        ],
        memory=1024,
        cpus=2,
        init=InitConfig("auto", env={"container": "microsandbox"}),
    )
    await sb.shell("setup")
    print((await sb.shell("start")).stdout_text, end="")
    files = ["/etc/greeting.txt", "/etc/motd", "/app/config.json", "/etc/ssl/cert.pem", "/etc/hosts", "/proc/1/comm"]
    print((await sb.exec("cat", files)).stdout_text, end="")
    await sb.stop()


asyncio.run(main())
