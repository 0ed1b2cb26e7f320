"""Creates a VM: msb-pull | msb-patch | msb-boot, with the records in between."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from dataclasses import dataclass
from typing import Any, Dict, List, Sequence

from . import tool
from .errors import NotUnderstood, SandboxError
from .keeper import Keeper
from .patch import PatchConfig
from .tool import Finished

@dataclass(frozen=True)
class Booted:
    """A VM that is up. It is killed when the keeper is collected."""

    name: str
    record: bytes
    warnings: List[str]
    #: The names in the store of what only this sandbox has.
    made: List[str]
    keeper: Keeper

async def create(
    image: str, pull_args: Sequence[str], ops: Sequence[PatchConfig], boot: Dict[str, Any], fresh: bool
) -> Booted:
    """Runs the pipe. If it is cancelled, no VM is left."""
    # What these two leave half-made is not visible, and the next run of the tool removes it.
    pulled = await tool.run("msb-pull", ["-q", *pull_args, "--", image])
    record, warnings = pulled.check(), pulled.warnings()
    if ops:
        lines = b"".join(json.dumps(op).encode() + b"\n" for op in ops)
        patched = await tool.run("msb-patch", ["-q", "-r", "-"], record + lines)
        record = patched.check()
        warnings += patched.warnings()
    asked = {**_parse("msb-patch" if ops else "msb-pull", record), "boot": boot}
    upper = [os.path.basename(os.path.dirname(asked["upper"]["dir"]))] if ops and "upper" in asked else []
    made = [*upper, boot["name"]] if fresh else upper
    is_up = False
    try:
        finished = await _boot(json.dumps(asked).encode(), fresh)
        record = finished.check()
        name = _parse("msb-boot", record).get("vm", {}).get("name")
        if not isinstance(name, str):
            raise NotUnderstood("msb-boot", "its record has no VM")
        is_up = True
    finally:
        if not is_up:
            # The reason for the failure is of more interest than one why this remains.
            with contextlib.suppress(SandboxError):
                await tool.remove(upper)
    return Booted(name, record, warnings + finished.warnings(), made, Keeper(record, made))


async def _boot(record: bytes, fresh: bool) -> Finished:
    """Runs msb-boot in a task of its own, which outlives this one if this is cancelled."""
    cancelled = asyncio.Event()
    return await tool.uninterrupted(_boot_unless(cancelled, record, fresh), cancelled.set)


async def _boot_unless(cancelled: asyncio.Event, record: bytes, fresh: bool) -> Finished:
    """msb-boot ends a VM whose record it cannot print, and the VM ends with an msb-boot that is killed before. A record that was printed
    all the same is that of a VM to stop."""
    process = await tool.start("msb-boot", ["-q", "-r", "-", *(["--fresh"] if fresh else [])])
    finishing = asyncio.ensure_future(tool.finish("msb-boot", process, record))
    waiting = asyncio.ensure_future(cancelled.wait())
    try:
        await asyncio.wait([finishing, waiting], return_when=asyncio.FIRST_COMPLETED)
        if cancelled.is_set():
            tool.kill(process)
        finished = await finishing
    finally:
        waiting.cancel()
        tool.kill(process)
    if finished.stdout and (cancelled.is_set() or finished.status != 0):
        await tool.run("msb-stop", ["-q", "-t", "0", "-r", "-"], finished.stdout)
    return finished


def _parse(name: str, record: bytes) -> Dict[str, Any]:
    try:
        value = json.loads(record)
    except ValueError as error:
        raise NotUnderstood(name, str(error)) from None
    if not isinstance(value, dict) or "msb" not in value:
        raise NotUnderstood(name, "it is no record")
    return value
