"""MicroVM sandboxes: boot an image in a VM of its own, and run commands there.

    import asyncio
    from msb_sandbox import Patch, Sandbox

    async def main() -> None:
        async with await Sandbox.create(
            "worker",
            image="alpine",
            scripts={"hello": "#!/bin/sh\\necho \\"hello from $(hostname)\\"\\n"},
            patches=[Patch.text("/etc/motd", "Patched before boot.\\n", replace=True)],
            memory=1024,
            cpus=2,
        ) as sb:
            output = await sb.shell("hello && cat /etc/motd")
            print(output.stdout_text, end="")

    asyncio.run(main())

This package starts the tools of msb and passes records between them: ``msb-pull | msb-patch | msb-boot`` creates a sandbox, msb-exec runs a
command, and msb-stop ends it. It decides nothing that a tool decides, so the manual pages of the tools hold here too, and the sandboxes of a
program are those of the command line. A tool is looked for in the directory ``$MSB_BIN``; if that is not set, beside the running Python, and
then on PATH. Operations, the scripts of ``create`` and the values of variables go through pipes. The command of ``exec`` and the line of
``shell`` are on the command line of msb-exec, which other users of the host can read: pass secrets as variables or on stdin.

How a sandbox ends:

- A ``Sandbox`` that is not used as a context manager, and not ephemeral, leaves its VM running. ``Sandbox.get`` finds it again.
- The end of ``async with`` kills the VM.
- With ``ephemeral=True`` the VM is killed when the ``Sandbox`` is collected or this process ends in any way, even by SIGKILL.
- A cancelled ``Sandbox.create`` leaves no VM, and a cancelled ``exec`` kills its command.
"""

from .config import InitConfig, MountConfig, Network, Stdin, Volume
from .errors import NotStarted, NotUnderstood, OutputLimit, SandboxError, ToolError, ToolNotFound
from .listed import Listed
from .output import ExecEvent, ExecOutput
from .patch import Patch, PatchConfig
from .process import ExecHandle
from .sandbox import Sandbox

__all__ = [
    "ExecEvent",
    "ExecHandle",
    "ExecOutput",
    "InitConfig",
    "Listed",
    "MountConfig",
    "Network",
    "NotStarted",
    "NotUnderstood",
    "OutputLimit",
    "Patch",
    "PatchConfig",
    "Sandbox",
    "SandboxError",
    "Stdin",
    "ToolError",
    "ToolNotFound",
    "Volume",
]
