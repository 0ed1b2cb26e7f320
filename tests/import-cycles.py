#!/usr/bin/env python3
"""Prints the import cycles between the files of crates, one a line: import-cycles.py CRATE...

An import is a path that starts with `crate`, `super`, `self` or a child module, in a `use` or elsewhere; tests are left out. A `mod`
line is not an import.
"""
import re
import sys
from pathlib import Path


def split(tree, prefix=()):
    """The paths of a use tree: `a::{b, c::d}` has a::b and a::c::d."""
    depth, start = 0, 0
    for at, char in enumerate(tree + ","):
        depth += (char == "{") - (char == "}")
        if char != "," or depth:
            continue
        head, brace, rest = tree[start:at].strip().partition("{")
        start = at + 1
        path = prefix + tuple(word for word in head.split(" as ")[0].replace(" ", "").split("::") if word)
        if brace:
            yield from split(rest.rstrip().removesuffix("}"), path)
        elif path:
            yield path


def imports(module, text, modules):
    """The modules that the text of a module names."""
    text = re.sub(r"//.*", "", text.split("#[cfg(test)]")[0])
    use = re.compile(r"^\s*(?:pub(?:\(\w+\))? )?use ([^;]+);", re.M)
    paths = [path for tree in use.findall(text) for path in split(re.sub(r"\s+", " ", tree))]
    paths += [tuple(path.split("::")) for path in re.findall(r"\b(?:crate|super)(?:::\w+)+", use.sub("", text))]
    for path in paths:
        base = module
        if path[0] == "crate":
            base, path = (), path[1:]
        elif path[0] == "self":
            path = path[1:]
        elif path[0] != "super" and module + path[:1] not in modules:
            continue
        while path[:1] == ("super",):
            base, path = base[:-1], path[1:]
        target = base + path
        while target not in modules:
            target = target[:-1]
        if target != module:
            yield target


def main():
    found = False
    for crate in sys.argv[1:]:
        source = Path(crate, "src")
        modules = {}
        for file in source.rglob("*.rs"):
            parts = file.relative_to(source).with_suffix("").parts
            modules[parts[:-1] if parts[-1] in ("mod", "main", "lib") else parts] = file.read_text()
        graph = {module: set(imports(module, text, modules)) for module, text in modules.items()}
        # A module that imports none of the others that are left is in no cycle, and neither is one that none of them imports.
        while True:
            imported = set().union(*graph.values())
            free = {module for module, targets in graph.items() if not targets or module not in imported}
            if not free:
                break
            graph = {module: targets - free for module, targets in graph.items() if module not in free}
        for module, targets in sorted(graph.items()):
            found = True
            print(f"{crate}: {'/'.join(module) or '(root)'} -> {', '.join('/'.join(target) or '(root)' for target in sorted(targets))}")
    return 1 if found else 0


sys.exit(main())
