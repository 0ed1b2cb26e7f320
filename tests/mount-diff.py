#!/usr/bin/env python3
"""Runs the same random operations on two mounts, and compares their results.

mount-diff.py lower SEED DIR        makes the layers DIR/top and DIR/bottom
mount-diff.py change SEED COUNT A   runs COUNT operations on A alone, and as many on existing files
mount-diff.py run SEED COUNT A B    runs COUNT operations on A and B; compares each result, then the trees
mount-diff.py compare A B           compares the trees

Times that an operation sets to the current time differ. They are compared as "new"; older ones are those of the layers.
"""

import ctypes
import errno
import mmap
import os
import random
import stat
import sys

NAMES = ["a", "b", "c", "d", "e", "dir", "sub"]
OLD = 1_000_000_000
USERS = [(0, 0), (0, 0), (1000, 1000), (1000, 2000), (65534, 65534)]
LIBC = ctypes.CDLL(None, use_errno=True)


def renameat2(a, b, flags):
    if LIBC.renameat2(-100, a.encode(), -100, b.encode(), flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def is_hidden(root, path):
    while path != root:
        if "trusted.overlay.opaque" in os.listxattr(path):
            return True
        path = os.path.dirname(path)
    return False


def make_lower(seed, base):
    rng = random.Random(seed)
    for layer in ("bottom", "top"):
        root = os.path.join(base, layer)
        os.makedirs(root)
        os.chmod(root, 0o777)
        dirs = [root]
        for _ in range(60):
            parent = rng.choice(dirs)
            path = os.path.join(parent, rng.choice(NAMES))
            if os.path.lexists(path):
                continue
            kind = rng.random()
            if kind < 0.4 and parent.count("/") - root.count("/") < 3:
                os.mkdir(path)
                os.chmod(path, rng.choice([0o777, 0o755, 0o2777, 0o1777]))
                dirs.append(path)
                if layer == "top" and rng.random() < 0.15:
                    os.setxattr(path, "trusted.overlay.opaque", b"y")
            elif kind < 0.75:
                with open(path, "wb") as file:
                    file.write(rng.randbytes(rng.choice([0, 10, 5000, 70000])))
                os.chown(path, *rng.choice(USERS))
                os.chmod(path, rng.choice([0o644, 0o666, 0o600, 0o4755, 0o2755]))
                if rng.random() < 0.2:
                    os.setxattr(path, "user.lower", b"value")
            elif kind < 0.85:
                os.symlink(rng.choice(NAMES), path)
            elif kind < 0.92:
                files = [os.path.join(d, n) for d in dirs for n in os.listdir(d)]
                files = [f for f in files if os.path.isfile(f) and not os.path.islink(f)]
                if files:
                    os.link(rng.choice(sorted(files)), path)
            elif layer == "top":
                # A layer has a whiteout only for a name that a lower layer has.
                below = os.path.join(base, "bottom", os.path.relpath(parent, root))
                if os.path.realpath(below) == os.path.normpath(below) and not is_hidden(root, parent):
                    if os.path.lexists(os.path.join(below, os.path.basename(path))):
                        os.mknod(path, stat.S_IFCHR, 0)
            else:
                os.mkfifo(path)
        for parent, subdirs, files in os.walk(root, topdown=False):
            for name in subdirs + files:
                os.utime(os.path.join(parent, name), (OLD, OLD), follow_symlinks=False)
        os.utime(root, (OLD, OLD))


def describe(path, follow=False):
    try:
        st = os.stat(path) if follow else os.lstat(path)
    except OSError as error:
        return errno.errorcode[error.errno]
    is_dir = stat.S_ISDIR(st.st_mode)
    size = None if is_dir else st.st_size
    links = None if is_dir else st.st_nlink
    age = st.st_mtime if st.st_mtime < 2 * OLD - 400_000_000 else "new"
    return (oct(st.st_mode), st.st_uid, st.st_gid, size, links, st.st_rdev, age)


def xattrs(path):
    found = {}
    for name in sorted(os.listxattr(path, follow_symlinks=False)):
        found[name] = os.getxattr(path, name, follow_symlinks=False)
    return found


def snapshot(root):
    tree = {}
    for parent, dirs, files in os.walk(root):
        for name in dirs + files:
            path = os.path.join(parent, name)
            st = os.lstat(path)
            content = None
            if stat.S_ISREG(st.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            elif stat.S_ISLNK(st.st_mode):
                content = os.readlink(path)
            tree[os.path.relpath(path, root)] = (describe(path), xattrs(path), content)
    tree["."] = (describe(root), xattrs(root), None)
    return tree


def compare(one, other):
    left, right = snapshot(one), snapshot(other)
    same = True
    for path in sorted(left.keys() | right.keys()):
        if left.get(path) != right.get(path):
            same = False
            print(f"{path}:\n  {str(left.get(path))[:400]}\n  {str(right.get(path))[:400]}")
    inodes = {}
    for parent, dirs, files in os.walk(one):
        for name in dirs + files:
            path = os.path.join(parent, name)
            st = os.lstat(path)
            if stat.S_ISDIR(st.st_mode) or st.st_nlink == 1:
                if st.st_ino in inodes:
                    same = False
                    print(f"{path} and {inodes[st.st_ino]} have one inode number")
                inodes[st.st_ino] = path
    return same


class Side:
    """One of the two mounts, and the files that are open on it."""

    def __init__(self, root):
        self.root = root
        self.open = {}

    def path(self, relative):
        return os.path.join(self.root, relative)


def operations(rng):
    """A random operation: its description, the function that runs it on a side, and its paths."""

    def path():
        return "/".join(rng.choice(NAMES) for _ in range(rng.choice([1, 1, 2, 2, 3])))

    slot, one, two = rng.randrange(6), path(), path()
    data = rng.randbytes(rng.choice([1, 100, 5000, 40000]))
    offset = rng.choice([0, 0, 10, 4096, 50000])
    mode = rng.choice([0o644, 0o600, 0o755, 0o666, 0o4755, 0o2755, 0o2777, 0o700])
    flags = rng.choice([os.O_RDONLY, os.O_RDWR, os.O_WRONLY])
    flags |= rng.choice([0, 0, os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_CREAT | os.O_TRUNC])
    acl_value = bytes.fromhex("02000000" "01000700ffffffff" "02000700e8030000" "04000500ffffffff" "10000700ffffffff" "20000000ffffffff")

    def open_file(side):
        if slot in side.open:
            os.close(side.open.pop(slot))
        side.open[slot] = os.open(side.path(one), flags | os.O_NONBLOCK | os.O_NOFOLLOW, mode)
        return os.fstat(side.open[slot]).st_size

    def on_open(act):
        def run(side):
            if slot not in side.open:
                return "closed"
            return act(side.open[slot])
        return run

    def write_mapped(fd):
        if not os.fstat(fd).st_size:
            return "empty"
        with mmap.mmap(fd, 0) as view:
            view[0] = 65
        return os.pread(fd, 10, 0)

    def seek_data(fd):
        # File systems differ in how a directory answers to it.
        return os.lseek(fd, 0, os.SEEK_DATA) if stat.S_ISREG(os.fstat(fd).st_mode) else "no file"

    def remove_tree(side):
        # In the same order on both sides. It may stop early, at a file that the user may not remove.
        for parent, dirs, files in os.walk(side.path(one), topdown=False):
            for name in sorted(dirs + files):
                path = os.path.join(parent, name)
                (os.rmdir if stat.S_ISDIR(os.lstat(path).st_mode) else os.unlink)(path)
        os.rmdir(side.path(one))

    def write(side):
        fd = os.open(side.path(one), os.O_RDWR | os.O_NONBLOCK)
        try:
            os.pwrite(fd, data, offset)
        finally:
            os.close(fd)

    def read(side):
        fd = os.open(side.path(one), os.O_RDONLY | os.O_NONBLOCK)
        try:
            return os.read(fd, 1 << 20)
        finally:
            os.close(fd)

    def append(side):
        fd = os.open(side.path(one), os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)

    table = [
        (10, f"open {one} {flags:o} {mode:o} as {slot}", open_file),
        (4, f"pread {slot}", on_open(lambda fd: os.pread(fd, 60000, offset))),
        (4, f"pwrite {slot}", on_open(lambda fd: os.pwrite(fd, data, offset))),
        (2, f"fstat {slot}", on_open(lambda fd: describe(f"/proc/self/fd/{fd}", follow=True))),
        (2, f"ftruncate {slot}", on_open(lambda fd: os.ftruncate(fd, offset))),
        (1, f"fchmod {slot}", on_open(lambda fd: os.fchmod(fd, mode))),
        (1, f"fsync {slot}", on_open(os.fsync)),
        (2, f"mmap {slot}", on_open(write_mapped)),
        (1, f"fallocate {slot}", on_open(lambda fd: os.posix_fallocate(fd, offset, 100))),
        (1, f"lseek {slot}", on_open(seek_data)),
        (5, f"write {one} at {offset}", write),
        (3, f"append {one}", append),
        (3, f"read {one}", read),
        (2, f"truncate {one} {offset}", lambda side: os.truncate(side.path(one), offset)),
        (3, f"chmod {one} {mode:o}", lambda side: os.chmod(side.path(one), mode)),
        (2, f"chown {one}", lambda side: os.chown(side.path(one), 1000, 2000, follow_symlinks=False)),
        (2, f"utime {one}", lambda side: os.utime(side.path(one), (OLD, OLD + 7), follow_symlinks=False)),
        (9, f"rename {one} {two}", lambda side: os.rename(side.path(one), side.path(two))),
        (2, f"exchange {one} {two}", lambda side: renameat2(side.path(one), side.path(two), 2)),
        (2, f"rename-noreplace {one} {two}", lambda side: renameat2(side.path(one), side.path(two), 1)),
        (4, f"link {one} {two}", lambda side: os.link(side.path(one), side.path(two), follow_symlinks=False)),
        (2, f"symlink {one}", lambda side: os.symlink("a/b", side.path(one))),
        (6, f"mkdir {one} {mode:o}", lambda side: os.mkdir(side.path(one), mode)),
        (3, f"rmdir {one}", lambda side: os.rmdir(side.path(one))),
        (5, f"unlink {one}", lambda side: os.unlink(side.path(one))),
        (2, f"rmtree {one}", remove_tree),
        (1, f"mkfifo {one}", lambda side: os.mkfifo(side.path(one), mode)),
        (1, f"mknod {one}", lambda side: os.mknod(side.path(one), 0o600 | stat.S_IFCHR, os.makedev(1, 3))),
        (2, f"setxattr {one}", lambda side: os.setxattr(side.path(one), "user.x", data[:100], follow_symlinks=False)),
        (1, f"removexattr {one}", lambda side: os.removexattr(side.path(one), "user.lower", follow_symlinks=False)),
        (1, f"acl {one}", lambda side: os.setxattr(side.path(one), "system.posix_acl_default", acl_value)),
        (1, f"acl-access {one}", lambda side: os.setxattr(side.path(one), "system.posix_acl_access", acl_value)),
        (3, f"list {one}", lambda side: sorted(os.listdir(side.path(one)))),
        (3, f"stat {one}", lambda side: describe(side.path(one))),
    ]
    _, description, act = rng.choices(table, [weight for weight, *_ in table])[0]
    return description, act, one, two


def result_of(side, act, user, umask):
    os.umask(umask)
    os.setegid(user[1])
    os.seteuid(user[0])
    try:
        return act(side)
    except OSError as error:
        return errno.errorcode.get(error.errno, error.errno)
    except ValueError as error:
        return str(error)
    finally:
        os.seteuid(0)
        os.setegid(0)


def run(seed, count, one, other):
    rng = random.Random(seed)
    os.setgroups([])
    sides = [Side(one), Side(other)]
    log = []
    for number in range(count):
        description, act, first, second = operations(rng)
        # As another user, rmtree would stop at a different file on each side, since the order of the names differs. A file that
        # got a set-id bit after root opened it keeps the bit when another user writes through root's descriptor.
        user, umask = rng.choice(USERS), rng.choice([0, 0o22, 0o77])
        if description.startswith(("pwrite", "mmap", "rmtree")):
            user = (0, 0)
        results = [result_of(side, act, user, umask) for side in sides]
        states = [[describe(side.path(path)) for path in (first, second)] for side in sides]
        log.append(f"{number}: as {user[0]}:{user[1]} umask {umask:o}: {description} -> {str(results[0])[:80]}")
        if results[0] != results[1] or states[0] != states[1]:
            print("\n".join(log[-200:]))
            print(f"  {first} and {second}:")
            for state, reply in zip(states, results):
                print(f"  {str(reply)[:300]}\n    {state}")
            return False
    if not compare(one, other):
        print("\n".join(log[-200:]))
        return False
    return True


def change(seed, count, root):
    rng = random.Random(seed)
    side = Side(root)
    for number in range(count):
        _, act, _, _ = operations(rng)
        result_of(side, act, (0, 0), 0o22)
        paths = sorted(os.path.join(parent, name) for parent, dirs, files in os.walk(root) for name in dirs + files)
        path, beside = rng.choice(paths), os.path.dirname(rng.choice(paths))
        act = rng.choice([
            lambda _: os.rename(path, os.path.join(beside, rng.choice(NAMES) + rng.choice(["", "1", "2"]))),
            lambda _: os.rename(path, os.path.join(beside, rng.choice(NAMES))),
            lambda _: os.chmod(path, rng.choice([0o644, 0o4755, 0o700, 0o777])),
            lambda _: os.chown(path, rng.choice([0, 1000]), 5, follow_symlinks=False),
            lambda _: os.link(path, os.path.join(beside, f"link{number}"), follow_symlinks=False),
            lambda _: os.setxattr(path, "user.changed", b"value"),
            lambda _: os.truncate(path, rng.choice([0, 7])),
        ])
        if not stat.S_ISFIFO(os.lstat(path).st_mode):
            result_of(side, act, (0, 0), 0o22)


def main(argv):
    if argv[:1] == ["lower"] and len(argv) == 3:
        make_lower(int(argv[1]), argv[2])
    elif argv[:1] == ["change"] and len(argv) == 4:
        change(int(argv[1]), int(argv[2]), argv[3])
    elif argv[:1] == ["run"] and len(argv) == 5:
        return 0 if run(int(argv[1]), int(argv[2]), argv[3], argv[4]) else 1
    elif argv[:1] == ["compare"] and len(argv) == 3:
        return 0 if compare(argv[1], argv[2]) else 1
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
