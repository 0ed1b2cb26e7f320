"""Commands: their status and output, options, streams, and signals."""

import asyncio
import signal
import sys

from msb_sandbox import NotStarted, OutputLimit, Sandbox, Stdin, ToolError, Volume


async def main(image: str) -> None:
    volumes = {"/work": Volume.bind("./work")}
    async with await Sandbox.create("commands", image=image, env={"GREETING": "hello"}, volumes=volumes) as sb:
        # A command that fails is no error.
        output = await sb.shell("echo $GREETING; echo to stderr >&2; exit 7")
        print(output.exit_code, repr(output.stdout_text), repr(output.stderr_text))

        # The value of a variable is on no command line.
        env = {"TOKEN": "s e=cret", "KEY": "-----BEGIN KEY-----\nsecret\n"}
        args = ["-c", 'pwd; id -un; echo "$TOKEN"; echo "$KEY"']
        print(repr((await sb.exec("sh", args, cwd="/tmp", user="nobody", env=env)).stdout_text))
        print(repr((await sb.exec("tr", ["a-z", "A-Z"], stdin="bytes in")).stdout_bytes))

        try:
            await sb.exec("no-such-program", ["x"])
        except NotStarted as error:
            print(error.code, error)
        try:
            await sb.exec("yes", output_limit=1000)
        except OutputLimit as error:
            print(error)
        print("timed out:", (await sb.exec("sleep", ["600"], timeout=0.05)).timed_out)

        # Streams: a conversation with a command.
        cat = await sb.exec_stream("cat", stdin=Stdin.pipe())
        assert cat.stdin
        for word in (b"one\n", b"two\n"):
            cat.stdin.write(word)
            print(await cat.stdout.readline())
        print(await cat.wait())

        # Output as it comes.
        events = await sb.shell_stream("echo out; echo err >&2; exit 3")
        got = {"stdout": b"", "stderr": b""}
        async for event in events:
            if event.data:
                got[event.event_type] += event.data
            else:
                print(got, event.event_type, event.code)

        trap = await sb.shell_stream("trap 'echo got it; exit 3' TERM; echo ready; while :; do sleep 0.1; done")
        await trap.stdout.readline()
        trap.signal(signal.SIGTERM)
        print(await trap.stdout.read(), (await trap.wait()).code)

        sleep = await sb.exec_stream("sleep", ["601"])
        await sleep.kill()
        print("killed by", (await sleep.wait()).signal)

        # A cancelled command is killed.
        try:
            await asyncio.wait_for(sb.exec("sleep", ["602"]), 1)
        except asyncio.TimeoutError:
            print("cancelled")
        while (await sb.shell("pidof sleep")).success:
            await asyncio.sleep(0.1)

        await sb.shell("echo from the guest >/work/note")
        with open("work/note") as note:
            print(note.read(), end="")
        for vm in await Sandbox.list():
            print(vm.name, vm.state)

        same = await Sandbox.get("commands")
        print((await same.exec("hostname")).stdout_text, end="")
    try:
        await same.exec("true")
    except ToolError as error:
        print(error.tool)


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "alpine"))
