#!/usr/bin/env python3
"""Compares how msb-pull and umoci unpack generated images: the kernel's overlayfs of msb-pull's layers has to be umoci's tree.

    tests/layers-diff.py [--seed N] [--count N] [--keep]

Needs root. Image I of seed S is the same on every machine. Nothing may differ. Not generated is what the two unpack differently on purpose:

- A layer that removes a directory and has files below it without an entry for the directory itself. msb-pull makes a new directory with
  default attributes, as containerd does; umoci keeps the old one's.
- An opaque marker after entries of the same directory: the image specification leaves open what it does to its own layer.
- A hardlink to a file of a layer below that has several names: the others keep the file below, as with overlayfs's index=off.
- Devices 0/0, which are overlayfs's whiteouts: msb-pull refuses them.
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile

NAMES = ["a", "b", "c", "dir", "usr", "lib", "bin", "etc", "x.conf", "with space", "ünï", "-dash", ".hidden", "n" * 120, "new\nline"]
MODES = [0o755, 0o644, 0o600, 0o700, 0o777, 0o4755, 0o2755, 0o1777, 0o000, 0o444]
IDS = [0, 1, 1000, 65534, 100000, 2000000]
DEPTH = 4


class Layer:
    """A tar archive that is being generated. `below` has the kinds of the paths in the layers below and in this one,
    `linked` those of files with several names."""

    def __init__(self, rng, below, linked):
        self.rng, self.tree, self.linked, self.out = rng, below, linked, io.BytesIO()
        self.format = rng.choice([tarfile.PAX_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
        self.tar = tarfile.open(fileobj=self.out, mode="w", format=self.format, encoding="utf-8")
        self.own = set()

    def put(self, path, kind, data=b"", link="", **more):
        """Adds an entry with random attributes."""
        rng = self.rng
        entry = tarfile.TarInfo(rng.choice(["", "", "./", "/", "a/../"]) + path)
        entry.type, entry.linkname, entry.size = kind, link, len(data)
        entry.mode, entry.uid, entry.gid = rng.choice(MODES), rng.choice(IDS), rng.choice(IDS)
        entry.mtime = rng.randrange(0, 2**31)
        for name, value in more.items():
            setattr(entry, name, value)
        if self.format == tarfile.PAX_FORMAT and rng.random() < 0.2:
            entry.mtime += rng.random()
        if self.format == tarfile.PAX_FORMAT and kind in (tarfile.REGTYPE, tarfile.DIRTYPE) and rng.random() < 0.15:
            entry.pax_headers = {"SCHILY.xattr.user.note": str(rng.randrange(1000))}
        self.tar.addfile(entry, io.BytesIO(data))
        self.own.add(path)

    def directory(self, path):
        """Makes a directory and its parents, so that each has an entry in some layer."""
        for end in range(1, len(path.split("/")) + 1):
            part = "/".join(path.split("/")[:end])
            if self.tree.get(part) != "d":
                self.remove(part)
                self.tree[part] = "d"
                self.put(part, tarfile.DIRTYPE)

    def remove(self, path):
        """Forgets a path and what is below it."""
        for other in [other for other in self.tree if other == path or other.startswith(path + "/")]:
            del self.tree[other]

    def existing(self, kind, own=None):
        paths = [path for path, its in self.tree.items() if its == kind and (own is None or (path in self.own) == own)]
        return self.rng.choice(sorted(paths)) if paths else None

    def fresh(self):
        """A path that may be new or that of something else."""
        rng = self.rng
        parent = self.existing("d") if rng.random() < 0.8 else None
        path = f"{parent}/{rng.choice(NAMES)}" if parent else rng.choice(NAMES)
        return path if path.count("/") < DEPTH and self.tree.get(path) != "d" else None

    def step(self):
        """Adds one entry, or none if its conditions are not met."""
        rng, path = self.rng, self.fresh()
        what = rng.choices(
            ["file", "dir", "symlink", "hardlink", "node", "whiteout", "opaque", "again"], [8, 5, 3, 2, 1, 3, 1, 2]
        )[0]
        if what == "again" and (again := self.existing("d")):
            # New attributes for a directory of a layer below.
            self.put(again, tarfile.DIRTYPE)
        elif what == "whiteout" and (gone := self.existing(rng.choice("dfl"), own=False)):
            parent, _, name = gone.rpartition("/")
            # What this layer has below it would get its parent's attributes from nowhere.
            if not any(own.startswith(gone + "/") for own in self.own):
                self.remove(gone)
                self.put(f"{parent}/.wh.{name}".lstrip("/"), tarfile.REGTYPE)
        elif what == "opaque" and (parent := self.existing("d", own=False)):
            # Only before this layer puts anything into it: what an opaque marker does to its own layer depends on the order.
            if not any(own.startswith(parent + "/") for own in self.own):
                for other in [other for other in self.tree if other.startswith(parent + "/")]:
                    self.tree.pop(other, None)
                self.put(f"{parent}/.wh..wh..opq", tarfile.REGTYPE)
        elif path is None or path in self.own:
            return
        elif what == "dir":
            self.directory(path)
        elif what in ("file", "symlink", "hardlink", "node"):
            self.remove(path)
            if what == "file":
                size = rng.choice([0, 1, 511, 512, 513, 5000, 70000])
                self.tree[path] = "f"
                self.put(path, tarfile.REGTYPE, rng.randbytes(size))
            elif what == "symlink":
                self.tree[path] = "l"
                self.put(path, tarfile.SYMTYPE, link=rng.choice(["a", "../b", "/etc/x.conf", "/", ".", "no/such", "../../.."]))
            elif what == "hardlink" and (to := self.existing("f", own=rng.choice([True, None]))):
                if to not in self.own and to in self.linked:
                    return
                self.tree[path] = "f"
                self.put(path, tarfile.LNKTYPE, link=to)
                # Not hidden later: the link would be to a file that this layer does not show.
                self.own.add(to)
                self.linked.update([path, to])
            elif what == "node":
                self.tree[path] = "n"
                kind = rng.choice([tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
                self.put(path, kind, devmajor=rng.randrange(1, 200), devminor=rng.randrange(0, 200))

    def bytes(self):
        self.tar.close()
        return self.out.getvalue()


def image(rng, path):
    """Writes an image of some layers as an OCI layout."""
    tree, linked, layers = {}, set(), []
    for _ in range(rng.randrange(1, 5)):
        layer = Layer(rng, tree, linked)
        for _ in range(rng.randrange(1, 40)):
            layer.step()
        layers.append(layer.bytes())

    def blob(data, kind):
        name = hashlib.sha256(data).hexdigest()
        with open(f"{path}/blobs/sha256/{name}", "wb") as file:
            file.write(data)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{name}", "size": len(data)}

    os.makedirs(f"{path}/blobs/sha256")
    diff_ids = ["sha256:" + hashlib.sha256(layer).hexdigest() for layer in layers]
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    packed = [
        blob(gzip.compress(layer, 1, mtime=0), "layer.v1.tar+gzip") if rng.random() < 0.5 else blob(layer, "layer.v1.tar")
        for layer in layers
    ]
    manifest = {"schemaVersion": 2, "config": blob(json.dumps(config).encode(), "config.v1+json"), "layers": packed}
    entry = blob(json.dumps(manifest).encode(), "manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    with open(f"{path}/index.json", "w") as file:
        json.dump({"schemaVersion": 2, "manifests": [entry]}, file)
    with open(f"{path}/oci-layout", "w") as file:
        file.write('{"imageLayoutVersion":"1.0.0"}')


def attributes(root):
    """Everything about a tree, by path. Hardlinks are told by the first path of their file."""
    found, first = {}, {}
    for parent, dirs, files in os.walk(os.fsencode(root)):
        dirs.sort()
        for path in [parent] * (parent == os.fsencode(root)) + sorted(os.path.join(parent, name) for name in dirs + files):
            its, name = os.lstat(path), os.path.relpath(path, os.fsencode(root))
            of = {"type": stat.S_IFMT(its.st_mode), "mode": stat.S_IMODE(its.st_mode), "owner": (its.st_uid, its.st_gid)}
            of["mtime"] = its.st_mtime_ns
            if stat.S_ISREG(its.st_mode):
                with open(path, "rb") as file:
                    of["content"] = hashlib.sha256(file.read()).hexdigest()
                of["link"] = first.setdefault(its.st_ino, name)
            elif stat.S_ISLNK(its.st_mode):
                of["target"] = os.readlink(path)
            elif stat.S_ISCHR(its.st_mode) or stat.S_ISBLK(its.st_mode):
                of["device"] = its.st_rdev
            names = [key for key in os.listxattr(path, follow_symlinks=False) if not key.startswith("trusted.overlay.")]
            of["xattrs"] = {key: os.getxattr(path, key, follow_symlinks=False) for key in sorted(names)}
            found[name] = of
    return found


def differences(msb, umoci):
    """What differs: a path, an attribute, and the two values."""
    for path in sorted(msb.keys() | umoci.keys()):
        if path not in msb or path not in umoci:
            yield path, "exists", path in msb, path in umoci
            continue
        for key in sorted(msb[path].keys() | umoci[path].keys()):
            ours, theirs = msb[path].get(key), umoci[path].get(key)
            if ours != theirs:
                yield path, key, ours, theirs


def compare(seed, number, work):
    """Unpacks one image twice. Returns whether the trees are the same."""
    image(random.Random(f"{seed}/{number}"), f"{work}/image")
    run = lambda *command, **more: subprocess.run(command, check=True, stdout=subprocess.PIPE, **more).stdout
    record = json.loads(run("msb-pull", "-q", f"oci:{work}/image", env={**os.environ, "MSB_HOME": f"{work}/home"}))
    run("umoci", "unpack", "--image", f"{work}/image:latest", f"{work}/unpacked", stderr=subprocess.DEVNULL)
    os.makedirs(f"{work}/merged")
    os.makedirs(f"{work}/empty")
    lower = record["rootfs"]["lower"]
    run("mount", "-t", "overlay", "overlay", "-o", "lowerdir=" + ":".join(lower + [f"{work}/empty"] * (len(lower) == 1)), f"{work}/merged")
    try:
        found = list(differences(attributes(f"{work}/merged"), attributes(f"{work}/unpacked/rootfs")))
    finally:
        run("umount", f"{work}/merged")
    for path, key, ours, theirs in found:
        print(f"image {number} of seed {seed}: {os.fsdecode(path)!r}: {key}: msb-pull {ours!r}, umoci {theirs!r}")
    return not found


def main():
    parser = argparse.ArgumentParser(description="compare msb-pull with umoci")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="the number of the first image")
    parser.add_argument("--keep", action="store_true", help="keep the files of images that differ")
    args = parser.parse_args()
    bad = 0
    for number in range(args.first, args.first + args.count):
        work = tempfile.mkdtemp(prefix="layers-diff-")
        try:
            same = compare(args.seed, number, work)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"image {number} of seed {args.seed}: {error}")
            same = False
        bad += not same
        if same or not args.keep:
            shutil.rmtree(work)
        else:
            print(f"kept: {work}")
    print(f"seed {args.seed}: {args.count} images, {bad} differ")
    sys.exit(bad > 0)


main()
