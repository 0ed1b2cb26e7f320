"""The tools of msb: where they are, and how one runs to its end."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from dataclasses import dataclass
from typing import Any, Awaitable, Callable, Coroutine, Dict, List, Optional, Sequence, TypeVar

from .errors import NotUnderstood, SandboxError, ToolError, ToolNotFound

T = TypeVar("T")

#: The longest record, in bytes.
MAX_STDOUT = 16 << 20
#: How much is kept of a tool's messages, in bytes.
MAX_STDERR = 16 << 10


def find(tool: str) -> str:
    """The path of a tool: in $MSB_BIN if that is set, else beside the running Python, else on PATH."""
    chosen = os.environ.get("MSB_BIN")
    if chosen:
        dirs, place = [chosen], f'in $MSB_BIN, "{chosen}"'
    else:
        path = os.environ.get("PATH", os.defpath).split(os.pathsep)
        dirs = [os.path.dirname(sys.executable), *(entry for entry in path if os.path.isabs(entry))]
        place = "beside this program or on PATH"
    for entry in dirs:
        file = os.path.join(entry, tool)
        if os.path.isfile(file) and os.access(file, os.X_OK):
            return os.path.abspath(file)
    raise ToolNotFound(tool, place)


def environment(**variables: str) -> Dict[str, str]:
    """The environment of a tool. $MSB_RECORD is of no use to it: its record is named."""
    return {**{name: value for name, value in os.environ.items() if name != "MSB_RECORD"}, **variables}


@dataclass(frozen=True)
class Finished:
    """A tool that has ended."""

    tool: str
    #: Its exit status; negative for a signal.
    status: int
    stdout: bytes
    stderr: bytes

    def failure(self) -> ToolError:
        """The error of a tool that has failed."""
        return failure(self.tool, self.status, self.stderr)

    def check(self) -> bytes:
        """What it printed, if it succeeded."""
        if self.status != 0:
            raise self.failure()
        return self.stdout

    def warnings(self) -> List[str]:
        """The lines of its stderr."""
        return [line for line in self.stderr.decode(errors="replace").splitlines() if line]


def failure(tool: str, status: int, stderr: bytes) -> ToolError:
    """The error of a tool with this exit status and these messages."""
    message = stderr.decode(errors="replace").strip()
    if not message:
        how = f"exit status {status}, and no message" if status >= 0 else f"signal {-status} ended it"
        message = f"{tool}: {how}"
    return ToolError(tool, status if status >= 0 else None, message)


class TooLong(Exception):
    """A stream was longer than its limit."""


async def read(stream: asyncio.StreamReader, limit: int) -> bytes:
    """Reads a stream to its end."""
    text = bytearray()
    while True:
        chunk = await stream.read(1 << 16)
        if not chunk:
            return bytes(text)
        text += chunk
        if len(text) > limit:
            raise TooLong


async def read_tail(stream: asyncio.StreamReader, limit: int) -> bytes:
    """Reads a stream to its end, and returns the last ``limit`` bytes."""
    tail = bytearray()
    while True:
        chunk = await stream.read(1 << 16)
        if not chunk:
            return bytes(tail[-limit:])
        tail += chunk
        del tail[: -2 * limit]


async def give(stream: asyncio.StreamWriter, data: bytes) -> None:
    """Writes to the stdin of a process and closes it. A process that does not read its stdin says why on stderr."""
    try:
        stream.write(data)
        await stream.drain()
    except (BrokenPipeError, ConnectionResetError):
        pass
    finally:
        stream.close()


async def start(tool: str, args: Sequence[str]) -> Process:
    """Starts a tool with pipes."""
    try:
        return await asyncio.create_subprocess_exec(
            find(tool), *args, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environment()
        )
    except (OSError, ValueError) as error:
        raise SandboxError(f"{tool}: {error}") from error


async def finish(tool: str, process: Process, data: bytes) -> Finished:
    """Gives a tool its input, and waits for its end."""
    assert process.stdin and process.stdout and process.stderr
    try:
        _, stdout, stderr, status = await together(
            give(process.stdin, data),
            read(process.stdout, MAX_STDOUT),
            read_tail(process.stderr, MAX_STDERR),
            process.wait(),
        )
    except TooLong:
        raise NotUnderstood(tool, f"it printed more than {MAX_STDOUT} bytes") from None
    return Finished(tool, status, stdout, stderr)


async def run(tool: str, args: Sequence[str], data: bytes = b"") -> Finished:
    """Runs a tool to its end. It is killed if this is cancelled."""
    process = await start(tool, args)
    try:
        return await finish(tool, process, data)
    finally:
        end(process)


async def uninterrupted(part: Coroutine[Any, Any, T], when_cancelled: Callable[[], object] = lambda: None) -> T:
    """Runs a part to its end in a task of its own, also if this is cancelled meanwhile; ``when_cancelled`` is called then."""
    task = asyncio.ensure_future(part)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        when_cancelled()
        await asyncio.wait([task])
        raise


async def remove(names: Sequence[str], *flags: str) -> None:
    """Removes sandboxes from the store: disks and uppers."""
    if names:
        (await run("msb-rm", [*flags, *names])).check()


async def together(*parts: Awaitable[object]) -> list:  # type: ignore[type-arg]
    """Runs all parts. If one fails or this is cancelled, the others are cancelled."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def kill(process: Process) -> None:
    """Kills a process unless it has ended."""
    if process.returncode is None:
        try:
            process.kill()
        except ProcessLookupError:
            pass


def end(process: Process) -> None:
    """Kills a process unless it has ended, and closes its pipes, which asyncio closes only at their end."""
    transport: Optional[asyncio.SubprocessTransport] = getattr(process, "_transport", None)
    if transport is not None:
        transport.close()
    else:
        kill(process)
