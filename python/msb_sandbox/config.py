"""Values of the arguments of Sandbox.create and exec."""

from __future__ import annotations

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
        """The member ``boot.init`` of a record."""
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
        """The member ``boot.network`` of a record."""
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
    def of(stdin: Union[None, str, bytes, Stdin]) -> Stdin:
        """From text, bytes or an object."""
        if isinstance(stdin, Stdin):
            return stdin
        return Stdin(stdin.encode() if isinstance(stdin, str) else stdin)
