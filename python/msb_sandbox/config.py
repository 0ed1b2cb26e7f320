"""Values of the arguments of Sandbox.create and exec."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Dict, Mapping, Optional, Sequence, Union


@dataclass(frozen=True)
class InitConfig:
    """An init that PID 1 is handed to.

    >>> InitConfig("/lib/systemd/systemd", args=("--unit=multi-user.target",), env={"container": "microsandbox"}).to_json()["path"]
    '/lib/systemd/systemd'
    """

    #: Its absolute path in the guest, or "auto".
    cmd: str
    #: Its arguments.
    args: Sequence[str] = ()
    #: Variables for it; they override inherited ones.
    env: Mapping[str, str] = field(default_factory=dict)
    #: Whether the sandbox counts as up only when the init is usable; agentd(8) defines it for each init.
    wait: bool = True

    def to_json(self) -> Dict[str, Any]:
        """The member ``boot.init`` of a record.

        >>> InitConfig("auto").to_json()
        {'path': 'auto', 'args': [], 'env': {}, 'wait': True}
        """
        return {"path": self.cmd, "args": list(self.args), "env": dict(self.env), "wait": self.wait}

    @staticmethod
    def of(init: Union[str, InitConfig, Mapping[str, Any]]) -> InitConfig:
        """From a path, an object, or a mapping of its members.

        >>> InitConfig.of("auto").cmd
        'auto'
        >>> InitConfig.of({"cmd": "/sbin/init", "args": ["5"]}).args
        ['5']
        """
        if isinstance(init, InitConfig):
            return init
        return InitConfig(init) if isinstance(init, str) else InitConfig(**init)


@dataclass(frozen=True)
class Network:
    """What a guest may reach; msb-network(7) has the modes and rules.

    >>> Network("deny", rules=[{"allow": "pypi.org:443"}]).to_json()["rules"]
    [{'allow': 'pypi.org:443'}]
    """

    #: "none", "public", "private" or "deny": what holds where no rule matches.
    mode: Optional[str] = None
    #: Rules in order, each ``{"allow": RULE}`` or ``{"deny": RULE}``. The first one that matches decides.
    rules: Sequence[Mapping[str, str]] = ()
    #: Addresses of name servers, in place of the host's.
    dns: Sequence[str] = ()
    #: Lines of the guest's hosts(5), from a name to an address or "host-gateway".
    hosts: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> Dict[str, Any]:
        """The member ``boot.network`` of a record.

        >>> Network("public", hosts={"db": "10.1.2.3"}).to_json()
        {'mode': 'public', 'rules': [], 'dns': [], 'hosts': ['db:10.1.2.3']}
        """
        return {
            "mode": self.mode,
            "rules": [dict(rule) for rule in self.rules],
            "dns": list(self.dns),
            "hosts": [f"{name}:{address}" for name, address in self.hosts.items()],
        }

    @staticmethod
    def of(network: Union[None, str, Network]) -> Network:
        """From a mode or an object.

        >>> Network.of("public").mode
        'public'
        """
        return network if isinstance(network, Network) else Network(network)


#: A volume: the members of an element of ``boot.volumes`` but its target.
MountConfig = Dict[str, Any]


class Volume:
    """What is mounted at a path of the guest, for ``Sandbox.create(volumes={PATH: ...})``."""

    @staticmethod
    def bind(path: Union[str, os.PathLike[str]], *, readonly: bool = False) -> MountConfig:
        """A directory or a file of the host, live in both directions. Owners are numbers, the same on both sides.

        >>> Volume.bind("/srv/data", readonly=True)
        {'source': '/srv/data', 'readonly': True}
        """
        return {"source": os.path.abspath(path), "readonly": readonly}

    @staticmethod
    def named(name: str, *, readonly: bool = False) -> MountConfig:
        """A volume of the store, which is created if it is missing.

        >>> Volume.named("cache")
        {'volume': 'cache', 'readonly': False}
        """
        return {"volume": name, "readonly": readonly}

    @staticmethod
    def tmpfs(*, size_mib: Optional[int] = None, readonly: bool = False) -> MountConfig:
        """An empty file system in the guest's memory.

        >>> Volume.tmpfs(size_mib=64)
        {'tmpfs': {'size': '64M'}, 'readonly': False}
        """
        return {"tmpfs": {} if size_mib is None else {"size": f"{size_mib}M"}, "readonly": readonly}


@dataclass(frozen=True)
class Stdin:
    """What stdin of a command is.

    >>> Stdin.of("text").data
    b'text'
    """

    #: The bytes, if there are any.
    data: Optional[bytes] = None
    #: Whether it is a pipe from the caller.
    is_pipe: bool = False

    @staticmethod
    def null() -> Stdin:
        """``/dev/null``, the default.

        >>> Stdin.null().is_null
        True
        """
        return Stdin()

    @staticmethod
    def pipe() -> Stdin:
        """A pipe; for exec_stream, whose handle has its other end in ``stdin``.

        >>> Stdin.pipe().is_pipe
        True
        """
        return Stdin(is_pipe=True)

    @staticmethod
    def bytes(data: bytes) -> Stdin:
        """These bytes, and then end-of-file.

        >>> Stdin.bytes(b"in").data
        b'in'
        """
        return Stdin(data)

    @property
    def is_null(self) -> bool:
        """Whether it is ``/dev/null``."""
        return self.data is None and not self.is_pipe

    @staticmethod
    def of(stdin: StdinLike) -> Stdin:
        """From text, bytes or an object.

        >>> Stdin.of("in") == Stdin.bytes(b"in")
        True
        """
        if isinstance(stdin, Stdin):
            return stdin
        return Stdin(stdin.encode() if isinstance(stdin, str) else stdin)


#: What may be given as the stdin of a command.
StdinLike = Union[None, str, bytes, Stdin]
