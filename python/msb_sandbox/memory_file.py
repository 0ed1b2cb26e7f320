"""A file in memory that a tool opens by its path below /proc. It has no name in a file system, and is readable by this user alone."""

from __future__ import annotations

import os
import weakref

#: The most that is read of what a tool wrote, in bytes.
MAX_SIZE = 1 << 20


class MemoryFile:
    """A file in memory, closed when this is collected."""

    def __init__(self, content: bytes = b"") -> None:
        fd = os.memfd_create("msb-sandbox", os.MFD_CLOEXEC)
        self._fd = fd
        self._finalizer = weakref.finalize(self, os.close, fd)
        with open(fd, "wb", closefd=False) as file:
            file.write(content)
        #: Where a child process opens it.
        self.path = f"/proc/{os.getpid()}/fd/{fd}"

    def read(self) -> bytes:
        """What a tool wrote into an empty file."""
        return os.pread(self._fd, MAX_SIZE, 0)
