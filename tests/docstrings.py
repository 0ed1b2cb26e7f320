#!/usr/bin/env python3
"""Runs every example in the documentation of the Python package on a real VM, and prints a line for each.

docstrings.py [README]    with the package on PYTHONPATH, and an image for each name that an example has

An example is an indented block of a docstring, or a block "python" of README; those with ">>>" need no VM, and the package's own tests run
them. A public class or method without an example is an error. Prints what the programs print, too.
"""

import ast
import asyncio
import inspect
import re
import signal
import subprocess
import sys

import msb_sandbox
from msb_sandbox import ExecHandle, Sandbox

# What an example of a running command has as "process".
PROCESSES = {
    "wait": ("true", []),
    "collect": ("echo", ["collected"]),
    "signal": ("sleep", ["600"]),
    "kill": ("sleep", ["600"]),
}
# These end the sandbox that they are for.
ENDS = ["stop", "kill", "remove"]


def blocks(item):
    """The indented blocks of a docstring. Its last line has the quotes alone, and the indentation of its text."""
    first, *rest = (item.__doc__ or "").split("\n")
    margin = len(rest[-1]) if rest else 0
    found, block = [], []
    for line in [first, *(line[margin:] for line in rest), "end"]:
        if line.startswith("    ") or (block and not line):
            block.append(line[4:])
            continue
        code = "\n".join(block).strip("\n")
        if code:
            found.append(code)
        block = []
    return found


def methods(cls):
    for name, member in vars(cls).items():
        function = member.__func__ if isinstance(member, staticmethod) else member
        if inspect.isfunction(function) and not name.startswith("_"):
            yield name, function


def require_examples():
    """Fails if a public class or method has neither an example nor a doctest."""
    missing = []
    for name in msb_sandbox.__all__:
        cls = getattr(msb_sandbox, name)
        if not inspect.isclass(cls) or issubclass(cls, Exception):
            continue
        documented = [(name, cls)] + [(f"{name}.{method}", function) for method, function in methods(cls)]
        # A class whose methods have examples needs none of its own.
        if len(documented) > 1 or name == "Listed":
            documented = documented[1:]
        for place, item in documented:
            if ">>>" not in (item.__doc__ or "") and not blocks(item):
                missing.append(place)
    assert not missing, f"without an example: {missing}"


async def run(place, code, names):
    """Runs an example with these names. Returns all that it has then."""
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    scope = {**vars(msb_sandbox), "asyncio": asyncio, "signal": signal, **names}
    result = eval(compile(code, place, "exec", flags), scope)
    if inspect.iscoroutine(result):
        await result
    print(f"ok {place}", flush=True)
    return scope


def run_program(place, code):
    print(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout, end="")
    print(f"ok {place}", flush=True)


async def run_methods():
    examples = {name: blocks(function) for name, function in methods(Sandbox)}
    [creation] = examples.pop("create")
    sb = (await run("Sandbox.create", creation, {}))["sb"]
    for name, codes in examples.items():
        for code in codes if name not in [*ENDS, "detach"] else []:
            await run(f"Sandbox.{name}", code, {"sb": sb})
    for code in blocks(ExecHandle):
        await run("ExecHandle", code, {"sb": sb})
    for name, function in methods(ExecHandle):
        for code in blocks(function):
            command, args = PROCESSES[name]
            process = await sb.exec_stream(command, args)
            scope = await run(f"ExecHandle.{name}", code, {"sb": sb, "process": process})
            if name in ("signal", "kill"):
                assert (await process.wait()).signal == {"signal": 1, "kill": 9}[name]
            elif name == "wait":
                assert scope["status"].code == 0
            else:
                assert scope["output"].stdout_text == "collected\n"
    [code] = examples["kill"]
    await run("Sandbox.kill", code, {"sb": sb})
    for name in ("stop", "remove"):
        sb = await Sandbox.create("worker", image="alpine", fresh=True, ephemeral=True)
        if name == "stop":
            [code] = examples["detach"]
            await run("Sandbox.detach", code, {"sb": sb})
        [code] = examples[name]
        await run(f"Sandbox.{name}", code, {"sb": sb})
    assert "worker" not in [vm.name for vm in await Sandbox.list()], "an example has left its VM or its disk"
    for code in blocks(Sandbox):
        scope = await run("Sandbox", code, {})
        assert scope["output"].stdout_text.startswith("Linux worker ")


def main():
    require_examples()
    asyncio.run(run_methods())
    for code in blocks(msb_sandbox):
        run_program("msb_sandbox", code)
    for readme in sys.argv[1:]:
        with open(readme) as text:
            for code in re.findall(r"^```python\n(.*?)^```", text.read(), re.MULTILINE | re.DOTALL):
                run_program("README", code)


main()
