"""The package against tools that are shell scripts: what they are given, and what becomes of their answers. No VM is needed."""

from __future__ import annotations

import asyncio
import doctest
import json
import os
import tempfile
import unittest
from pathlib import Path
from typing import Any, List

from msb_sandbox import (
    InitConfig,
    Network,
    NotStarted,
    NotUnderstood,
    OutputLimit,
    Patch,
    Sandbox,
    SandboxError,
    Stdin,
    ToolError,
    ToolNotFound,
    Volume,
    config,
    listed,
    output,
    patch,
)

RECORD = {"msb": 1, "vm": {"name": "worker", "pid": 1}}

#: Notes its arguments and its stdin, and prints what a file says.
TOOL = """#!/bin/sh
printf '%s\\n' "$@" >{dir}/{name}.args
cat >{dir}/{name}.stdin
cat {dir}/{name}.stdout
"""


class Tools(unittest.IsolatedAsyncioTestCase):
    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.dir = Path(scratch.name)
        before = dict(os.environ)
        self.addCleanup(os.environ.update, before)
        self.addCleanup(os.environ.clear)
        os.environ["MSB_BIN"] = scratch.name
        for name in ("msb-pull", "msb-patch", "msb-boot", "msb-stop", "msb-rm"):
            self.tool(name, TOOL.format(dir=self.dir, name=name))
            (self.dir / f"{name}.stdout").write_text(json.dumps(RECORD) + "\n")

    def tool(self, name: str, text: str) -> None:
        file = self.dir / name
        file.write_text(text)
        file.chmod(0o755)

    def exec_tool(self, status: str, body: str = "") -> None:
        """An msb-exec that writes this status, once it has done something."""
        self.tool(
            "msb-exec",
            f"#!/bin/sh\nprintf '%s\\n' \"$@\" >{self.dir}/msb-exec.args\n"
            f'while [ "$1" != --json-status ]; do shift; done\nstatus=$2\n{body}\necho \'{status}\' >"$status"\n',
        )

    def args(self, name: str) -> List[str]:
        return (self.dir / f"{name}.args").read_text().splitlines()

    def given(self, name: str) -> List[Any]:
        return [json.loads(line) for line in (self.dir / f"{name}.stdin").read_text().splitlines()]

    async def test_a_stop_that_is_cancelled_finishes(self) -> None:
        self.tool("msb-stop", f"#!/bin/sh\ntouch {self.dir}/begun\nread -r _ <{self.dir}/go\necho '{{}}'\ntouch {self.dir}/done\n")
        os.mkfifo(self.dir / "go")
        for end in (Sandbox("worker").stop(), Sandbox("worker").kill()):
            for name in ("begun", "done"):
                (self.dir / name).unlink(missing_ok=True)
            stopping = asyncio.ensure_future(end)
            while not (self.dir / "begun").exists():
                await asyncio.sleep(0.01)
            stopping.cancel()
            await asyncio.sleep(0)
            (self.dir / "go").write_text("\n")
            with self.assertRaises(asyncio.CancelledError):
                await stopping
            self.assertTrue((self.dir / "done").exists())

    async def test_memory_and_processors_are_the_tools_defaults(self) -> None:
        await Sandbox.create("worker", image="alpine")
        (record,) = self.given("msb-boot")
        self.assertFalse({"memory_mib", "cpus"} & set(record["boot"]))

    async def test_what_is_requested_goes_through_the_pipe_as_data(self) -> None:
        sb = await Sandbox.create(
            "worker",
            image="alpine",
            scripts={"setup": "#!/bin/sh\n"},
            patches=[Patch.text("/etc/key", "secret", mode=0o600)],
            memory=1024,
            cpus=2,
            init=InitConfig("/sbin/init", args=["5"], env={"A": "b"}),
            env={"TOKEN": "secret"},
            ports={8080: 80},
            network=Network("public", rules=[{"deny": "10.0.0.0/8"}]),
            volumes={"/src": Volume.bind("/srv", readonly=True), "/cache": Volume.named("cache")},
            boot={"restart": "always"},
            fresh=True,
            pull_args=["--plain-http"],
        )
        self.assertEqual(sb.name, "worker")
        self.assertEqual(self.args("msb-pull"), ["-q", "--plain-http", "--", "alpine"])
        self.assertEqual(
            self.given("msb-patch"),
            [
                RECORD,
                {"op": "script", "name": "setup", "content": "#!/bin/sh\n"},
                {"op": "text", "path": "/etc/key", "content": "secret", "mode": "0600"},
            ],
        )
        (record,) = self.given("msb-boot")
        boot = record["boot"]
        self.assertEqual((boot["name"], boot["memory_mib"], boot["cpus"], boot["restart"]), ("worker", 1024, 2, "always"))
        self.assertEqual(boot["init"], {"path": "/sbin/init", "args": ["5"], "env": {"A": "b"}, "wait": True})
        self.assertEqual(boot["env"], {"TOKEN": "secret"})
        self.assertEqual(boot["network"]["ports"], ["8080:80"])
        self.assertEqual(boot["network"]["rules"], [{"deny": "10.0.0.0/8"}])
        self.assertEqual(
            boot["volumes"],
            [
                {"source": "/srv", "readonly": True, "target": "/src"},
                {"volume": "cache", "readonly": False, "target": "/cache"},
            ],
        )
        self.assertEqual(self.args("msb-boot"), ["-q", "-r", "-", "--fresh"])
        await sb.stop(timeout=1.5)
        self.assertEqual(self.args("msb-stop"), ["-q", "-r", "-", "--time=1500ms"])
        self.assertEqual(self.given("msb-stop"), [RECORD])

    async def test_without_operations_there_is_no_patch(self) -> None:
        await Sandbox.create("worker", image="alpine")
        self.assertFalse((self.dir / "msb-patch.args").exists())

    async def test_a_failure_is_an_error_with_the_tools_message(self) -> None:
        self.tool("msb-pull", "#!/bin/sh\necho 'msb-pull: image \"x\": no such image' >&2\nexit 1\n")
        with self.assertRaises(ToolError) as caught:
            await Sandbox.create("worker", image="x")
        self.assertEqual((caught.exception.tool, caught.exception.status), ("msb-pull", 1))
        self.assertEqual(str(caught.exception), 'msb-pull: image "x": no such image')
        self.tool("msb-pull", "#!/bin/sh\nyes 'msb-pull: no' | head -c 100000 >&2\nexit 1\n")
        with self.assertRaises(ToolError) as caught:
            await Sandbox.create("worker", image="x")
        self.assertLessEqual(len(str(caught.exception)), 16 << 10)
        self.tool("msb-pull", "#!/bin/sh\necho no record\n")
        with self.assertRaises(NotUnderstood):
            await Sandbox.create("worker", image="x")
        (self.dir / "msb-pull").unlink()
        with self.assertRaises(ToolNotFound) as missing:
            await Sandbox.create("worker", image="x")
        self.assertIn("MSB_BIN", str(missing.exception))

    async def test_a_vm_that_came_up_despite_a_cancellation_is_stopped(self) -> None:
        # As an msb-boot that has just printed its record.
        self.tool("msb-boot", f"#!/bin/sh\ncat {self.dir}/msb-boot.stdout\n: >{self.dir}/up\nexec sleep 60\n")
        task = asyncio.ensure_future(Sandbox.create("worker", image="alpine"))
        while not (self.dir / "up").exists():
            await asyncio.sleep(0.01)
        task.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await task
        self.assertEqual(self.given("msb-stop"), [RECORD])

    async def test_an_ephemeral_vm_is_stopped_when_it_is_collected(self) -> None:
        sb = await Sandbox.create("worker", image="alpine", ephemeral=True)
        self.assertFalse((self.dir / "msb-stop.stdin").exists())
        del sb
        while not (self.dir / "msb-stop.stdin").exists() or not self.given("msb-stop"):
            await asyncio.sleep(0.01)
        self.assertEqual(self.args("msb-stop"), ["-q", "-t", "0", "-r", "-"])
        (self.dir / "msb-stop.stdin").unlink()
        self.assertFalse((self.dir / "msb-rm.args").exists())
        sb = await Sandbox.create("worker", image="alpine", ephemeral=True)
        sb.detach()
        del sb
        await asyncio.sleep(0.1)
        self.assertFalse((self.dir / "msb-stop.stdin").exists())

    async def test_what_only_an_ephemeral_sandbox_has_is_removed_and_so_is_the_upper_of_a_failed_boot(self) -> None:
        upper = {"upper": {"dir": "/store/sandboxes/0a1b/upper", "work": "/store/sandboxes/0a1b/work"}}
        (self.dir / "msb-patch.stdout").write_text(json.dumps({**RECORD, **upper}))
        patches = [Patch.mkdir("/app")]
        sb = await Sandbox.create("worker", image="alpine", patches=patches, ephemeral=True)
        await sb.stop()
        self.assertEqual(self.args("msb-rm"), ["0a1b"])
        sb = await Sandbox.create("worker", image="alpine", patches=patches, ephemeral=True, fresh=True)
        await sb.stop()
        self.assertEqual(self.args("msb-rm"), ["0a1b", "worker"])
        (self.dir / "msb-rm.args").unlink()
        sb = await Sandbox.create("worker", image="alpine", patches=patches)
        await sb.stop()
        self.assertFalse((self.dir / "msb-rm.args").exists())
        await sb.remove()
        self.assertEqual(self.args("msb-rm"), ["--ignore", "0a1b", "worker"])
        self.tool("msb-boot", "#!/bin/sh\necho 'msb-boot: no' >&2\nexit 1\n")
        with self.assertRaises(ToolError):
            await Sandbox.create("worker", image="alpine", patches=patches, fresh=True)
        self.assertEqual(self.args("msb-rm"), ["0a1b"])

    async def test_values_of_variables_are_not_on_the_command_line(self) -> None:
        # The file of variables is read as msb-exec reads it.
        self.exec_tool(
            '{"status":0,"exit":0,"signal":null}',
            'while [ $# -gt 0 ]; do [ "$1" != --env-file ] || cat "$2"; shift; done; echo "$KEY"',
        )
        ran = await Sandbox("worker").exec("true", ["-x"], env={"A": "s=ecret", "KEY": "two\nlines"}, cwd="/w", timeout=0.5)
        self.assertEqual(ran.stdout_text, "A=s=ecret\ntwo\nlines\n")
        args = self.args("msb-exec")
        self.assertEqual(args[:3] + args[5:6], ["-q", "-r", "worker", "-T"])
        self.assertEqual(args[6:], ["--env=KEY", "--env-file", args[8], "--workdir=/w", "--timeout=500ms", "-n", "--", "true", "-x"])
        self.assertNotIn("ecret", "".join(args))
        for name in ("", "A=B", "A\nHOME", "#A", " A", "A\0"):
            with self.assertRaisesRegex(SandboxError, "is not the name of a variable"):
                await Sandbox("worker").exec("true", env={name: ""})

    async def test_the_status_of_a_command(self) -> None:
        sb = Sandbox("worker")
        self.exec_tool('{"status":7,"exit":7,"signal":null,"timed_out":false}', "echo out; echo err >&2")
        ran = await sb.exec("x")
        self.assertEqual((ran.exit_code, ran.stdout_text, ran.stderr_text), (7, "out\n", "err\n"))
        self.exec_tool('{"status":137,"exit":null,"signal":9,"timed_out":false}')
        self.assertEqual((await sb.shell("x")).exit_code, 137)
        self.exec_tool('{"status":127,"error":"\\"x\\": not found"}')
        with self.assertRaises(NotStarted) as not_started:
            await sb.exec("x")
        self.assertEqual((not_started.exception.code, str(not_started.exception)), (127, 'msb-exec: "x": not found'))
        self.exec_tool('{"status":125,"error":"it is gone"}')
        with self.assertRaises(ToolError):
            await sb.exec("x")
        self.tool("msb-exec", "#!/bin/sh\necho 'msb-exec: no record' >&2\nexit 125\n")
        with self.assertRaisesRegex(ToolError, "^msb-exec: no record$"):
            await sb.exec("x")

    async def test_output_is_bounded_and_streamed(self) -> None:
        sb = Sandbox("worker")
        self.exec_tool('{"status":0,"exit":0}', "exec yes")
        with self.assertRaises(OutputLimit):
            await sb.exec("x", output_limit=100_000)
        self.exec_tool('{"status":0,"exit":0}', "cat; echo end")
        self.assertEqual((await sb.exec("cat", stdin=b"x" * 1_000_000)).stdout_bytes, b"x" * 1_000_000 + b"end\n")
        handle = await sb.exec_stream("cat", stdin=Stdin.pipe())
        assert handle.stdin
        handle.stdin.write(b"one\n")
        self.assertEqual(await handle.stdout.readline(), b"one\n")
        self.assertEqual((await handle.collect()).stdout_bytes, b"end\n")
        events = [event async for event in await sb.exec_stream("cat", stdin="text")]
        self.assertEqual(b"".join(event.data or b"" for event in events), b"textend\n")
        self.assertEqual((events[-1].event_type, events[-1].code), ("exited", 0))


class Docs(unittest.TestCase):
    def test_the_examples_in_the_documentation(self) -> None:
        for module in (config, listed, output, patch):
            self.assertEqual(doctest.testmod(module).failed, 0)


if __name__ == "__main__":
    unittest.main()
