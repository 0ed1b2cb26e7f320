"""A handle to a running sandbox."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Dict, List, Mapping, Optional, Sequence, Type, Union

from . import process, tool
from .config import InitConfig, MountConfig, Network, Stdin, StdinLike
from .create import create
from .keeper import Keeper
from .listed import Listed, parse_list
from .output import ExecOutput
from .patch import PatchConfig, script
from .process import OUTPUT_LIMIT, ExecHandle
from .tool import Finished


class Sandbox:
    """A running sandbox: a microVM, by its name.

        async with await Sandbox.create("worker", image="alpine") as sb:
            output = await sb.exec("uname", ["-a"])

    The end of ``async with`` kills the VM.
    """

    def __init__(
        self,
        name: str,
        record: bytes = b"",
        warnings: Sequence[str] = (),
        made: Sequence[str] = (),
        keeper: Optional[Keeper] = None,
    ) -> None:
        self._name = name
        # The names in the store of what only this sandbox has.
        self._made = list(made)
        # The record of the VM that this program has created; empty for one that it has found.
        self._record = record
        self._warnings = list(warnings)
        # For an ephemeral sandbox.
        self._keeper = keeper

    @staticmethod
    async def create(
        name: str,
        *,
        image: str,
        scripts: Optional[Mapping[str, str]] = None,
        patches: Sequence[PatchConfig] = (),
        memory: Optional[int] = None,
        cpus: Optional[int] = None,
        init: Union[None, str, InitConfig, Mapping[str, Any]] = None,
        entrypoint: Optional[Sequence[str]] = None,
        env: Optional[Mapping[str, str]] = None,
        workdir: Optional[str] = None,
        user: Optional[str] = None,
        hostname: Optional[str] = None,
        ports: Union[Mapping[int, int], Sequence[str]] = (),
        network: Union[None, str, Network] = None,
        volumes: Optional[Mapping[str, MountConfig]] = None,
        disk: Optional[str] = None,
        fresh: bool = False,
        ephemeral: bool = False,
        pull_args: Sequence[str] = (),
        boot: Optional[Mapping[str, Any]] = None,
    ) -> Sandbox:
        """Fetches and patches an image and boots a VM. Returns when the sandbox can run commands. If it is cancelled, no VM is left.

            sb = await Sandbox.create(
                "worker",
                image="debian:12",
                scripts={"setup": "#!/bin/sh\\napt-get update\\n"},
                patches=[Patch.mkdir("/app", mode=0o755)],
                memory=1024,
                cpus=2,
                network="public",
                ports={8080: 80},
            )

        - name: the VM's name, and the guest's hostname unless there is a ``hostname``
        - image: NAME[:TAG], an OCI layout "oci:DIR", an archive, a directory "./DIR" or a disk, as msb-pull(1) takes them
        - scripts: from names to contents; each is /.msb/scripts/NAME in the guest, which is on PATH there
        - patches: changes of the root, see Patch
        - memory: in MiB; the default is that of msb-boot
        - cpus: the number of processors; the default is that of msb-boot
        - init: "auto", a path or an InitConfig: the init that PID 1 is handed to
        - entrypoint: replaces the image's entrypoint and cmd, which msb-exec runs if it is given no command
        - env: variables for all commands; the values are in the sandbox's record, which this user can read
        - workdir, user: the directory of commands, and their user as USER[:GROUP]
        - ports: from ports of the host's loopback to ports of the guest, or strings [IP:]PORT:GUEST[/udp]
        - network: "public", "private", "deny", "none" or a Network; the default is that of msb-boot
        - volumes: from paths of the guest to a Volume: ``{"/src": Volume.bind("./src", readonly=True)}``
        - disk: the size of the disk for what the guest writes, with a suffix K, M, G or T
        - fresh: start with a new disk, and remove the one that an earlier sandbox of this name has left
        - ephemeral: kill the VM when the Sandbox is collected or this process ends, and remove its patches, and its disk with ``fresh``
        - pull_args: further arguments of msb-pull(1), such as "--plain-http"
        - boot: further members of the record's member boot, which msb-record(5) has

        Raises ToolError with what msb-pull, msb-patch or msb-boot said, and ToolNotFound.
        """
        ops = [script(script_name, content) for script_name, content in (scripts or {}).items()]
        ops += patches
        published = [f"{host}:{guest}" for host, guest in ports.items()] if isinstance(ports, Mapping) else list(ports)
        asked: Dict[str, Any] = {
            "name": name,
            **({} if memory is None else {"memory_mib": memory}),
            **({} if cpus is None else {"cpus": cpus}),
            "init": None if init is None else InitConfig.of(init).to_json(),
            "entrypoint": None if entrypoint is None else list(entrypoint),
            "env": dict(env or {}),
            "workdir": workdir,
            "user": user,
            "hostname": hostname,
            "network": {**Network.of(network).to_json(), "ports": published},
            "volumes": [{**mount, "target": target} for target, mount in (volumes or {}).items()],
            "disk": disk,
            **(boot or {}),
        }
        booted = await create(image, pull_args, ops, asked, fresh)
        if not ephemeral:
            booted.keeper.dismiss()
        keeper = booted.keeper if ephemeral else None
        return Sandbox(booted.name, booted.record, booted.warnings, booted.made, keeper)

    @staticmethod
    async def get(name: str) -> Sandbox:
        """Finds a running sandbox by its name, also one that another program or msb-boot has started. Its agent must answer.

            sb = await Sandbox.get("worker")

        Raises ToolError with the reason if there is no such sandbox.
        """
        (await tool.run("msb-exec", ["-q", "-r", name, "--list"])).check()
        return Sandbox(name)

    @staticmethod
    async def list() -> List[Listed]:
        """The VMs of this user, also those that other programs have started and those that are stopped.

            for vm in await Sandbox.list():
                print(vm.name, vm.state)
        """
        return parse_list((await tool.run("msb-ls", ["-a", "--json"])).check())

    @property
    def name(self) -> str:
        """Its name."""
        return self._name

    @property
    def warnings(self) -> List[str]:
        """What the tools warned about while the sandbox was created, such as a boot without KVM."""
        return list(self._warnings)

    async def exec(
        self,
        cmd: str,
        args: Sequence[str] = (),
        *,
        cwd: Optional[str] = None,
        user: Optional[str] = None,
        env: Optional[Mapping[str, str]] = None,
        timeout: Optional[float] = None,
        stdin: StdinLike = None,
        tty: bool = False,
        rlimits: Sequence[str] = (),
        output_limit: int = OUTPUT_LIMIT,
    ) -> ExecOutput:
        """Runs a command to its end, and returns its status and output. If it is cancelled, the command is killed.

            output = await sb.exec("python3", ["-c", "print(6 * 7)"], cwd="/app", env={"CI": "1"}, timeout=30)
            assert output.success and output.stdout_text == "42\\n"

        - cwd, user, env: where the command runs, as whom (USER[:GROUP]), and variables; their values are on no command line
        - timeout: in seconds; then the command is ended, and the output has timed_out
        - stdin: text, bytes or a Stdin; nothing by default
        - tty: whether it has a terminal; its output is all stdout then
        - rlimits: resource limits NAME=SOFT[:HARD], as prlimit(1) names them
        - output_limit: how many bytes of stdout, and of stderr, are collected

        A command that fails is no error. Raises NotStarted for a program that the guest does not have, OutputLimit, and ToolError if the
        VM is gone, for example.
        """
        handle = await process.start(
            self._name,
            ["--", cmd, *args],
            stdin=Stdin.of(stdin),
            cwd=cwd,
            user=user,
            env=env,
            timeout=timeout,
            tty=tty,
            rlimits=rlimits,
        )
        return await handle.collect(output_limit)

    async def exec_stream(
        self,
        cmd: str,
        args: Sequence[str] = (),
        *,
        cwd: Optional[str] = None,
        user: Optional[str] = None,
        env: Optional[Mapping[str, str]] = None,
        timeout: Optional[float] = None,
        stdin: StdinLike = None,
        tty: bool = False,
        rlimits: Sequence[str] = (),
    ) -> ExecHandle:
        """Starts a command and returns a handle with its streams. The arguments are those of ``exec``.

            cat = await sb.exec_stream("cat", stdin=Stdin.pipe())
            cat.stdin.write(b"bytes in")
            cat.stdin.close()
            assert await cat.stdout.read() == b"bytes in"
        """
        return await process.start(
            self._name,
            ["--", cmd, *args],
            stdin=Stdin.of(stdin),
            cwd=cwd,
            user=user,
            env=env,
            timeout=timeout,
            tty=tty,
            rlimits=rlimits,
        )

    async def shell(
        self,
        script: str,
        *,
        cwd: Optional[str] = None,
        user: Optional[str] = None,
        env: Optional[Mapping[str, str]] = None,
        timeout: Optional[float] = None,
        stdin: StdinLike = None,
        tty: bool = False,
        rlimits: Sequence[str] = (),
        output_limit: int = OUTPUT_LIMIT,
    ) -> ExecOutput:
        """Runs a line with the guest's /bin/sh, such as the name of a script. The arguments are those of ``exec``.

            await sb.shell("setup")
            count = (await sb.shell("ls /etc | wc -l")).stdout_text
        """
        handle = await self.shell_stream(
            script, cwd=cwd, user=user, env=env, timeout=timeout, stdin=stdin, tty=tty, rlimits=rlimits
        )
        return await handle.collect(output_limit)

    async def shell_stream(
        self,
        script: str,
        *,
        cwd: Optional[str] = None,
        user: Optional[str] = None,
        env: Optional[Mapping[str, str]] = None,
        timeout: Optional[float] = None,
        stdin: StdinLike = None,
        tty: bool = False,
        rlimits: Sequence[str] = (),
    ) -> ExecHandle:
        """Starts a line with the guest's /bin/sh and returns a handle with its streams. The arguments are those of ``exec``.

            build = await sb.shell_stream("make 2>&1", cwd="/src")
        """
        return await process.start(
            self._name,
            [f"--shell={script}"],
            stdin=Stdin.of(stdin),
            cwd=cwd,
            user=user,
            env=env,
            timeout=timeout,
            tty=tty,
            rlimits=rlimits,
        )

    async def stop(self, timeout: Optional[float] = None) -> None:
        """Asks the guest to stop, and waits until the VM is gone. What the guest has written stays on the disk of that name, and the
        next sandbox of the name has it.

            await sb.stop(timeout=60)

        The guest has ten seconds, or ``timeout``, also if this is cancelled meanwhile. Raises ToolError if it was killed then, or if
        there is no such VM.
        """
        (await self._end(timeout)).check()

    async def kill(self) -> None:
        """Kills the VM. What the guest has not written back is lost.

            await sb.kill()

        Raises ToolError if there is no such VM.
        """
        ended = await self._end(0)
        # msb-stop fails if it had to kill a VM, which is what was asked for. It prints the record of a VM that is gone.
        if not ended.stdout:
            raise ended.failure()

    async def _end(self, timeout: Optional[float]) -> Finished:
        # An msb-stop that is killed would leave a VM that nobody cleans up after.
        return await tool.uninterrupted(self._stop(timeout))

    async def _stop(self, timeout: Optional[float]) -> Finished:
        args = ["-q", "-r", "-" if self._record else self._name]
        if timeout is not None:
            args.append(f"--time={round(timeout * 1000)}ms")
        ended = await tool.run("msb-stop", args, self._record)
        if ended.stdout and self.detach():
            await tool.remove(self._made)
        return ended

    async def remove(self) -> None:
        """Kills the VM, and removes what is kept of it: its disk and its patches.

            await sb.remove()
        """
        await self.kill()
        await tool.remove(list(dict.fromkeys([*self._made, self._name])), "--ignore")

    def detach(self) -> bool:
        """Leaves an ephemeral sandbox running when this is collected. Returns whether it was ephemeral.

            sb.detach()
        """
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.dismiss()
        return keeper is not None

    async def __aenter__(self) -> Sandbox:
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        await self.kill()

    def __repr__(self) -> str:
        return f"Sandbox({self._name!r})"
