"""Ends a VM together with an object of this process.

A shell waits for the end of its stdin, a pipe from this process, and then stops the VM. The kernel closes the pipe when the object is
collected, and also when this process ends in any other way.
"""

from __future__ import annotations

import os
import subprocess
import weakref
from typing import Sequence

from . import tool

# The record comes through the pipe, so the VM is the one that it describes and not a later one of the same name.
SCRIPT = r'''record=$(cat); printf '%s\n' "$record" | "$0" -q -t 0 -r -; [ $# = 0 ] || exec "$@"'''


class Keeper:
    """Kills a VM when it is collected or this process ends, and removes the sandboxes of the store with the names of ``remove``."""

    def __init__(self, record: bytes, remove: Sequence[str]) -> None:
        removing = [tool.find("msb-rm"), *remove] if remove else []
        reader, writer = os.pipe()
        try:
            # A signal of the terminal is for the process group of the caller, and must not end this shell.
            self._shell = subprocess.Popen(
                ["/bin/sh", "-c", SCRIPT, tool.find("msb-stop"), *removing],
                stdin=reader,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=tool.environment(),
                start_new_session=True,
            )
        except BaseException:
            os.close(writer)
            raise
        finally:
            os.close(reader)
        self._finalizer = weakref.finalize(self, os.close, writer)
        with open(writer, "wb", closefd=False) as pipe:
            pipe.write(record)

    def dismiss(self) -> None:
        """Leaves the VM running, or to what has stopped it."""
        self._shell.kill()
        self._shell.wait()
        self._finalizer()
