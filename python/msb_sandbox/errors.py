"""Errors: which tool failed, and what it said."""

from __future__ import annotations

from typing import Optional


class SandboxError(Exception):
    """The base of this package's errors."""


class ToolNotFound(SandboxError):
    """A tool is not installed."""

    def __init__(self, tool: str, place: str) -> None:
        super().__init__(f"{tool}: not found {place} (install msb, or set MSB_BIN to the directory of its tools)")
        self.tool = tool


class ToolError(SandboxError):
    """A tool failed. The text is what it said, at most the last 16 KiB; it begins with the tool's name."""

    def __init__(self, tool: str, status: Optional[int], message: str) -> None:
        super().__init__(message)
        self.tool = tool
        #: The exit status of the tool; None if a signal ended it.
        self.status = status


class NotUnderstood(SandboxError):
    """A tool printed something else than it should: the tools and this package are of different releases."""

    def __init__(self, tool: str, reason: str) -> None:
        super().__init__(f"{tool}: its output is not understood: {reason} (use tools of the same release)")
        self.tool = tool


class NotStarted(SandboxError):
    """A command was not started: the guest has no such program (127), or cannot execute it (126)."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        #: 126 or 127.
        self.code = code


class OutputLimit(SandboxError):
    """A command wrote more than the limit, and was killed."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the command wrote more than {limit} bytes (set output_limit, or read its output with exec_stream)")
        #: In bytes.
        self.limit = limit
