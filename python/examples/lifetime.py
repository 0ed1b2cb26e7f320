"""How sandboxes end: with their object, with this process, or by a cancelled task.

    lifetime.py drop|hold|cancel|leave IMAGE
"""

import asyncio
import sys

from msb_sandbox import Sandbox


async def main(what: str, image: str, time: float) -> None:
    if what == "drop":
        # The VM is killed when the sandbox is collected, and its disk and its patches are removed.
        scripts = {"hello": "#!/bin/sh\necho in the VM\n"}
        sb = await Sandbox.create("lifetime", image=image, scripts=scripts, fresh=True, ephemeral=True)
        print((await sb.shell("hello")).stdout_text, end="")
        del sb
    elif what == "hold":
        # The VM is killed with this process, whatever ends it.
        sb = await Sandbox.create("lifetime", image=image, fresh=True, ephemeral=True)
        print("up", flush=True)
        await sb.exec("sleep", ["86400"])
    elif what == "cancel":
        # No VM is left of a boot that takes too long.
        try:
            async with await asyncio.wait_for(Sandbox.create("lifetime", image=image), time / 1000):
                print("up")
        except asyncio.TimeoutError:
            print("cancelled")
    elif what == "leave":
        # The VM stays.
        sb = await Sandbox.create("lifetime", image=image)
        print(f"msb-exec {sb.name} -- sh")
    else:
        sys.exit("usage: lifetime.py drop|hold|cancel|leave IMAGE")


asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3]) if len(sys.argv) > 3 else 1000))
