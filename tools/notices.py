#!/usr/bin/env python3
"""Prints which crates the programs for an architecture contain, and the licences that have to go with them.

    tools/notices.py x86_64|aarch64 [NAME MANIFEST]

The programs are those of this workspace, or those of another package: its name, and the path of its Cargo.toml.

For a crate that can be had under Apache-2.0, as msb itself, that is its NOTICE, if it has one; for every other crate all of its texts.
"""

import json
import pathlib
import re
import subprocess
import sys

TEXTS = re.compile(r"(licen[cs]e|copying|copyright|unlicense|notice)", re.IGNORECASE)


def crates(machine, flags):
    """The packages that are linked into a program of a workspace, without those that only build or test it."""
    command = ["cargo", "metadata", "--quiet", "--locked", "--format-version", "1", *flags]
    command += ["--filter-platform", f"{machine}-unknown-linux-gnu"]
    metadata = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    found, left = set(), list(metadata["workspace_members"])
    while left:
        package = left.pop()
        if package not in found:
            found.add(package)
            dependencies = nodes[package]["deps"]
            left += [one["pkg"] for one in dependencies if any(kind["kind"] is None for kind in one["dep_kinds"])]
    external = [packages[package] for package in found if packages[package]["source"]]
    return sorted(external, key=lambda package: (package["name"], package["version"]))


def texts(package):
    """The texts that have to go with a package, each with the name of its file."""
    # In an expression without "AND" all licences are a choice.
    is_apache = "Apache-2.0" in package["license"] and "AND" not in package["license"]
    directory = pathlib.Path(package["manifest_path"]).parent
    for path in sorted(directory.iterdir()):
        is_wanted = TEXTS.match(path.name) and path.suffix != ".rs" and path.is_file()
        if is_wanted and (not is_apache or path.name.upper().startswith("NOTICE")):
            yield path.name, path.read_text(errors="replace").strip()


def main():
    if len(sys.argv) == 2:
        programs, flags = "the programs of msb", ["--offline"]
    elif len(sys.argv) == 4:
        programs, flags = sys.argv[2], ["--manifest-path", sys.argv[3]]
    else:
        sys.exit(__doc__)
    print(f"The crates that are linked into {programs}, and their licences.\n")
    users = {}
    for package in crates(sys.argv[1], flags):
        name = f"{package['name']} {package['version']}"
        print(f"{name}: {package['license']}")
        for file, text in texts(package):
            users.setdefault(text, []).append(f"{name}: {file}")
    for text, names in users.items():
        print("\n" + "-" * 80)
        print("\n".join(names))
        print(f"\n{text}")


if __name__ == "__main__":
    main()
