"""A command that runs in the guest, with its streams."""

from __future__ import annotations

import asyncio
import signal as signals
from asyncio.subprocess import DEVNULL, PIPE, Process
from typing import AsyncIterator, List, Mapping, Optional, Sequence, Set, Tuple

from . import tool
from .config import Stdin
from .errors import OutputLimit, SandboxError, ToolError
from .memory_file import MemoryFile
from .output import ExecEvent, ExecOutput, ExitStatus, exit_code, read_status

TOOL = "msb-exec"
#: The default of output_limit, in bytes.
OUTPUT_LIMIT = 64 << 20
#: How much of a stream is passed on at a time, in bytes.
CHUNK = 1 << 16


async def start(
    vm: str,
    line: Sequence[str],
    *,
    stdin: Stdin,
    cwd: Optional[str] = None,
    user: Optional[str] = None,
    env: Optional[Mapping[str, str]] = None,
    timeout: Optional[float] = None,
    tty: bool = False,
    rlimits: Sequence[str] = (),
) -> ExecHandle:
    """Starts msb-exec. ``line`` is ``--``, the program and its arguments, or ``--shell=LINE``."""
    status = MemoryFile()
    args = ["-q", "-r", vm, "--json-status", status.path, "-t" if tty else "-T"]
    variables, env_args, passed = _variables(env or {})
    args += env_args
    if cwd is not None:
        args.append(f"--workdir={cwd}")
    if user is not None:
        args.append(f"--user={user}")
    if timeout is not None:
        args.append(f"--timeout={round(timeout * 1000)}ms")
    args += [f"--rlimit={limit}" for limit in rlimits]
    if stdin.is_null:
        args.append("-n")
    try:
        process = await asyncio.create_subprocess_exec(
            tool.find(TOOL),
            *args,
            *line,
            stdin=DEVNULL if stdin.is_null else PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env=tool.environment(**passed),
        )
    except (OSError, ValueError) as error:
        raise SandboxError(f"{TOOL}: {error}") from error
    return ExecHandle(process, status, variables, stdin)


def _variables(env: Mapping[str, str]) -> Tuple[Optional[MemoryFile], List[str], Mapping[str, str]]:
    """Passes variables to msb-exec in a file. A line of it cannot hold a newline or end in CR, so such a value goes through the
    environment of msb-exec. Values are never on its command line."""
    for name in env:
        # Another name could define more than one variable, or take a value from the host.
        if not name or name != name.strip() or name.startswith("#") or any(char in name for char in "=\n\0"):
            raise SandboxError(f"env: {name!r} is not the name of a variable")
    passed = {name: value for name, value in env.items() if "\n" in value or value.endswith("\r")}
    args = [f"--env={name}" for name in passed]
    lines = [f"{name}={value}\n" for name, value in env.items() if name not in passed]
    if not lines:
        return None, args, passed
    file = MemoryFile("".join(lines).encode(errors="surrogateescape"))
    return file, [*args, "--env-file", file.path], passed


class ExecHandle:
    """A running command. Iterate over it for its output as it comes, or read its streams.

        process = await sb.exec_stream("apt-get", ["update"])
        async for event in process:
            if event.event_type == "stdout":
                print(event.data)
            elif event.event_type == "exited":
                print(event.code)

    The command stalls while its output is not read. It is killed with all that it has started when msb-exec ends: by ``kill``, or with
    this process.
    """

    def __init__(self, process: Process, status: MemoryFile, variables: Optional[MemoryFile], stdin: Stdin) -> None:
        assert process.stdout and process.stderr
        self._process = process
        self._status = status
        # Read by msb-exec when it starts.
        self._variables = variables
        # The signals that this process has sent.
        self._sent: Set[int] = set()
        #: Its stdout: an asyncio.StreamReader.
        self.stdout: asyncio.StreamReader = process.stdout
        #: Its stderr, and the messages of msb-exec.
        self.stderr: asyncio.StreamReader = process.stderr
        #: Its stdin, an asyncio.StreamWriter, with Stdin.pipe(). The command sees end-of-file when this is closed.
        self.stdin: Optional[asyncio.StreamWriter] = process.stdin if stdin.is_pipe else None
        self._giving: Optional[asyncio.Task[None]] = None
        if stdin.data is not None and process.stdin is not None:
            self._giving = asyncio.ensure_future(tool.give(process.stdin, stdin.data))

    async def wait(self) -> ExitStatus:
        """Closes stdin and waits for the command's end. Its output must be read meanwhile, or be short.

            status = await process.wait()

        Raises NotStarted for a program that the guest does not have, and ToolError if the VM is gone, for example.
        """
        if self.stdin is not None:
            self.stdin.close()
        return self._ended(await self._process.wait(), b"msb-exec failed (its message is in the stream stderr)")

    def _ended(self, status: int, message: bytes) -> ExitStatus:
        failure = tool.failure(TOOL, status, message)
        try:
            return read_status(self._status.read(), failure)
        except ToolError as error:
            # It ended msb-exec, before that could forward it. The command has ended with it, or was not started.
            if error is failure and -status in self._sent:
                return ExitStatus(signal=-status)
            raise

    def signal(self, signal: int) -> None:
        """Sends a signal to the command's process group: SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 or SIGUSR2.

            process.signal(signal.SIGHUP)
        """
        self._sent.add(int(signal))
        self._process.send_signal(signal)

    async def kill(self) -> None:
        """Kills the command and all that it has started.

            await process.kill()
        """
        self._sent.add(signals.SIGKILL)
        tool.kill(self._process)
        await self._process.wait()

    async def collect(self, output_limit: int = OUTPUT_LIMIT) -> ExecOutput:
        """Closes stdin, waits for the command's end, and returns the rest of its output.

            output = await process.collect()

        Raises OutputLimit, and what ``wait`` raises.
        """
        if self.stdin is not None:
            self.stdin.close()
        try:
            stdout, stderr, status = await tool.together(
                tool.read(self.stdout, output_limit), tool.read(self.stderr, output_limit), self._process.wait()
            )
        except tool.TooLong:
            raise OutputLimit(output_limit) from None
        finally:
            tool.end(self._process)
        return ExecOutput(self._ended(status, stderr), stdout, stderr)

    async def __aiter__(self) -> AsyncIterator[ExecEvent]:
        events: asyncio.Queue[Optional[ExecEvent]] = asyncio.Queue(1)

        async def pump(name: str, stream: asyncio.StreamReader) -> None:
            while True:
                chunk = await stream.read(CHUNK)
                if not chunk:
                    break
                await events.put(ExecEvent(name, data=chunk))
            await events.put(None)

        pumps = [asyncio.ensure_future(pump("stdout", self.stdout)), asyncio.ensure_future(pump("stderr", self.stderr))]
        try:
            open_streams = len(pumps)
            while open_streams:
                event = await events.get()
                if event is None:
                    open_streams -= 1
                else:
                    yield event
        finally:
            for task in pumps:
                task.cancel()
        yield ExecEvent("exited", code=exit_code(await self.wait()))
