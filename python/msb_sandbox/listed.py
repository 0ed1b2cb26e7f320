"""Which sandboxes there are, as msb-ls lists them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional

from .errors import NotUnderstood


@dataclass(frozen=True)
class Listed:
    """A VM of this user. Members are None if they are not known."""

    name: str
    #: "starting", "running", "restarting", "stopping", "dead" or "stopped". A dead VM has ended by itself; a stopped one is a disk that the
    #: next sandbox of the name uses.
    state: str
    #: How a dead VM ended.
    reason: Optional[str]
    #: The image, or the directory or disk of its root.
    image: Optional[str]
    #: "krun" or "qemu".
    vmm: Optional[str]
    cpus: Optional[int]
    memory_mib: Optional[int]
    #: Seconds since it was started.
    age_s: Optional[int]
    #: Objects with host, guest and protocol.
    ports: List[Dict[str, Any]]
    #: All members that msb-ls(1) has.
    members: Mapping[str, Any]


def parse_list(text: bytes) -> List[Listed]:
    """The VMs, one a line.

    >>> parse_list(b'{"name":"a","state":"running","cpus":2}\\n')[0].cpus
    2
    """
    try:
        return [_parse(json.loads(line)) for line in text.splitlines()]
    except (ValueError, KeyError, TypeError) as error:
        raise NotUnderstood("msb-ls", repr(error)) from None


def _parse(vm: Mapping[str, Any]) -> Listed:
    known = {member: vm.get(member) for member in ("reason", "image", "vmm", "cpus", "memory_mib", "age_s")}
    return Listed(name=vm["name"], state=vm["state"], ports=list(vm.get("ports") or []), members=vm, **known)
