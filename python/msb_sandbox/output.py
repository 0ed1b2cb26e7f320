"""How a command ended, and what it wrote."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Optional

from .errors import NotStarted, NotUnderstood, SandboxError, ToolError


@dataclass(frozen=True)
class ExitStatus:
    """How a command in the guest ended."""

    #: Its exit status; None if a signal ended it.
    code: Optional[int] = None
    #: The signal that ended it.
    signal: Optional[int] = None
    #: Whether it was ended because its time was over.
    timed_out: bool = False


@dataclass(frozen=True)
class ExecOutput:
    """The result of a command that has ended.

    >>> output = ExecOutput(ExitStatus(code=0), b"hello\\n", b"")
    >>> output.success, output.exit_code, output.stdout_text
    (True, 0, 'hello\\n')
    """

    #: How it ended.
    status: ExitStatus
    #: What it wrote to stdout.
    stdout_bytes: bytes
    #: What it wrote to stderr.
    stderr_bytes: bytes

    @property
    def exit_code(self) -> int:
        """Its exit status; 128 + N if signal N ended it, and 124 if its time was over.

        >>> ExecOutput(ExitStatus(signal=9), b"", b"").exit_code
        137
        """
        return exit_code(self.status)

    @property
    def success(self) -> bool:
        """Whether it exited with 0."""
        return self.exit_code == 0

    @property
    def timed_out(self) -> bool:
        """Whether it was ended because its time was over."""
        return self.status.timed_out

    @property
    def stdout_text(self) -> str:
        """What it wrote to stdout, decoded from UTF-8. Raises UnicodeDecodeError."""
        return self.stdout_bytes.decode()

    @property
    def stderr_text(self) -> str:
        """What it wrote to stderr, decoded from UTF-8. Raises UnicodeDecodeError."""
        return self.stderr_bytes.decode()


@dataclass(frozen=True)
class ExecEvent:
    """What a streamed command did.

    >>> ExecEvent("stdout", data=b"hello\\n").data
    b'hello\\n'
    """

    #: "stdout", "stderr" or "exited".
    event_type: str
    #: The output.
    data: Optional[bytes] = None
    #: The exit status, as ExecOutput.exit_code.
    code: Optional[int] = None


def exit_code(status: ExitStatus) -> int:
    """The exit status in one number, as a shell has it."""
    if status.timed_out:
        return 124
    if status.code is not None:
        return status.code
    return 128 + (status.signal or 0)


def read_status(text: bytes, failure: SandboxError) -> ExitStatus:
    """What ``msb-exec --json-status`` has written. ``failure`` is the error if that is nothing."""
    if not text:
        raise failure
    try:
        status = json.loads(text)
        code = int(status["status"])
    except (ValueError, KeyError, TypeError) as error:
        raise NotUnderstood("msb-exec", f"its status: {error!r}") from None
    message = status.get("error")
    if message is None:
        return ExitStatus(status.get("exit"), status.get("signal"), bool(status.get("timed_out")))
    message = f"msb-exec: {message}"
    raise NotStarted(code, message) if code in (126, 127) else ToolError("msb-exec", code, message)
