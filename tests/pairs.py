"""Every operation after every other on the same path, whatever was there: layers, operations, and a model of what they do.

    pairs.py layers DIR     makes DIR/bottom and DIR/top, one directory /c/N for each case, and DIR/src to copy from
    pairs.py model DIR      works on DIR/flat, a plain copy of the merged layers: carries out on it, with a plain file system's
                            own calls, what the operations say; writes DIR/all.jsonl, DIR/good.jsonl (without those that fail)
                            and DIR/failing (the numbers of those)

The model is the specification in man/msb-ops.5 a second time, and shares nothing with the tool.
"""

import base64
import itertools
import json
import os
import shutil
import stat
import sys

EPOCH = 1700000000
OLD = 1000000


def put(path, content="", mode=0o640, owner=(5, 6)):
    with open(path, "w") as file:
        file.write(content)
    os.chown(path, *owner)
    os.chmod(path, mode)
    os.setxattr(path, "user.note", b"old")


def directory(path, mode=0o751, owner=(7, 8)):
    os.mkdir(path)
    os.chown(path, *owner)
    os.chmod(path, mode)
    os.setxattr(path, "user.note", b"dir")


# What is at "x" before, from the case's directory in both layers.
def missing(bottom, top):
    pass


def file(bottom, top):
    put(bottom + "/x", "below\n")


def file_of_two_layers(bottom, top):
    put(bottom + "/x", "below\n")
    put(top + "/x", "above\n", 0o600, (9, 9))


def executable(bottom, top):
    put(top + "/x", "T", 0o4755, (0, 0))


def full_directory(bottom, top):
    directory(bottom + "/x")
    put(bottom + "/x/f", "f")
    directory(bottom + "/x/sub")
    put(bottom + "/x/sub/g", "g")
    directory(top + "/x")
    put(top + "/x/h", "h")


def link_to_file(bottom, top):
    put(bottom + "/t", "t")
    os.symlink("t", top + "/x")


def link_to_directory(bottom, top):
    directory(bottom + "/d")
    put(bottom + "/d/f", "f")
    os.symlink("../" + os.path.basename(top) + "/d", bottom + "/x")


def dangling_link(bottom, top):
    os.symlink("nowhere", bottom + "/x")


def removed_file(bottom, top):
    put(bottom + "/x", "below\n")
    os.mknod(top + "/x", stat.S_IFCHR, os.makedev(0, 0))


def opaque_directory(bottom, top):
    directory(bottom + "/x")
    put(bottom + "/x/a", "hidden")
    directory(top + "/x", 0o700)
    os.setxattr(top + "/x", "trusted.overlay.opaque", b"y")
    put(top + "/x/h", "h")


def fifo(bottom, top):
    os.mkfifo(bottom + "/x", 0o622)


def hardlink(bottom, top):
    put(bottom + "/x", "linked\n")
    os.link(bottom + "/x", bottom + "/twin")


STATES = [missing, file, file_of_two_layers, executable, full_directory, link_to_file, link_to_directory, dangling_link,
          removed_file, opaque_directory, fifo, hardlink]


# The operations, and what they do to a plain tree. True: done; False: an error, and nothing has changed.
class keeping_times:
    def __init__(self, path):
        self.path = path

    def __enter__(self):
        self.stat = os.stat(self.path)

    def __exit__(self, *_):
        os.utime(self.path, ns=(self.stat.st_atime_ns, self.stat.st_mtime_ns))


def aged(path):
    os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)


def write(path, content, replace, default_mode, mode=None, uid=None, gid=None):
    path = os.path.realpath(path)
    old = None
    if os.path.lexists(path):
        if os.path.isdir(path) or not replace:
            return False
        old = os.lstat(path)
    regular = old is not None and stat.S_ISREG(old.st_mode)
    if regular:
        same = [mode in (None, stat.S_IMODE(old.st_mode)), uid in (None, old.st_uid), gid in (None, old.st_gid)]
        with open(path, "rb") as now:
            if all(same) and now.read() == content:
                return True
    with keeping_times(os.path.dirname(path)):
        new = path + ".new"
        with open(new, "wb") as to:
            to.write(content)
        if regular:
            shutil.copystat(path, new)
            uid = old.st_uid if uid is None else uid
            gid = old.st_gid if gid is None else gid
            mode = stat.S_IMODE(old.st_mode) if mode is None else mode
        os.chown(new, uid or 0, gid or 0)
        os.chmod(new, default_mode if mode is None else mode)
        aged(new)
        os.rename(new, path)
    return True


def mkdir(path, mode=None, uid=None):
    path = os.path.realpath(path)
    if not os.path.isdir(path):
        if os.path.lexists(path):
            return False
        with keeping_times(os.path.dirname(path)):
            os.mkdir(path)
            aged(path)
        mode = 0o755 if mode is None else mode
    if uid is not None:
        os.chown(path, uid, -1)
    if mode is not None:
        os.chmod(path, mode)
    return True


def append(path, content):
    path = os.path.realpath(path)
    if not os.path.isfile(path):
        return False
    with keeping_times(os.path.dirname(path)):
        new = path + ".new"
        shutil.copy2(path, new)
        was = os.stat(path)
        with open(new, "ab") as to:
            to.write(content)
        os.chown(new, was.st_uid, was.st_gid)
        os.chmod(new, stat.S_IMODE(was.st_mode))
        os.utime(new, ns=(was.st_atime_ns, was.st_mtime_ns))
        os.rename(new, path)
    return True


def copy_dir(path, src, replace):
    path = os.path.realpath(path)
    if os.path.lexists(path) and not os.path.isdir(path):
        return False
    for dir, dirs, files in os.walk(src):
        to = os.path.normpath(os.path.join(path, os.path.relpath(dir, src)))
        if any(os.path.lexists(to + "/" + name) and (not replace or os.path.isdir(to + "/" + name)) for name in files):
            return False
        if any(os.path.lexists(to + "/" + name) and not os.path.isdir(to + "/" + name) for name in dirs):
            return False
    first = {}
    for dir, dirs, files in os.walk(src):
        to = os.path.normpath(os.path.join(path, os.path.relpath(dir, src)))
        if not os.path.isdir(to):
            with keeping_times(os.path.dirname(to)):
                os.mkdir(to)
                shutil.copystat(dir, to)
                aged(to)
        for name in files:
            old, new = dir + "/" + name, to + "/" + name
            with keeping_times(to):
                if os.path.lexists(new):
                    os.unlink(new)
                inode = os.lstat(old).st_ino
                if inode in first:
                    os.link(first[inode], new)
                    continue
                first[inode] = new
                shutil.copy2(old, new, follow_symlinks=False)
                os.chown(new, 0, 0, follow_symlinks=False)
                if not os.path.islink(new):
                    os.chmod(new, stat.S_IMODE(os.stat(old).st_mode))
                aged(new)
    return True


def symlink(path, target, replace):
    if os.path.lexists(path):
        if not os.path.islink(path) and os.path.isdir(path) or not replace:
            return False
        if os.path.islink(path) and os.readlink(path) == target:
            return True
    with keeping_times(os.path.dirname(path)):
        if os.path.lexists(path):
            os.unlink(path)
        os.symlink(target, path)
        aged(path)
    return True


def remove(path):
    with keeping_times(os.path.dirname(path)):
        if os.path.islink(path) or not os.path.isdir(path):
            if os.path.lexists(path):
                os.unlink(path)
        else:
            shutil.rmtree(path)
    return True


def operations(base):
    """Name, members but for the path, the path's member, what it does."""
    one, tree = base + "/src/one", base + "/src/tree"
    data = b"\0\xff"
    coded = base64.b64encode(data).decode()
    return [
        ("text", {"content": "T"}, "path", lambda p: write(p, b"T", False, 0o644)),
        ("text", {"content": "T", "replace": True}, "path", lambda p: write(p, b"T", True, 0o644)),
        ("text", {"content": "T", "replace": True, "mode": "0604", "uid": 3, "gid": 4}, "path",
         lambda p: write(p, b"T", True, 0o644, 0o604, 3, 4)),
        ("file", {"content_base64": coded, "mode": "4711"}, "path", lambda p: write(p, data, False, 0o644, 0o4711)),
        ("file", {"content_base64": coded, "replace": True, "gid": 2}, "path",
         lambda p: write(p, data, True, 0o644, None, None, 2)),
        ("mkdir", {}, "path", mkdir),
        ("mkdir", {"mode": "1711", "uid": 6}, "path", lambda p: mkdir(p, 0o1711, 6)),
        ("append", {"content": "A\n"}, "path", lambda p: append(p, b"A\n")),
        ("copy_file", {"src": one}, "dst", lambda p: write(p, b"one", False, 0o750)),
        ("copy_file", {"src": one, "replace": True, "mode": "0600"}, "dst", lambda p: write(p, b"one", True, 0o750, 0o600)),
        ("copy_dir", {"src": tree}, "dst", lambda p: copy_dir(p, tree, False)),
        ("copy_dir", {"src": tree, "replace": True}, "dst", lambda p: copy_dir(p, tree, True)),
        ("symlink", {"target": "here"}, "link", lambda p: symlink(p, "here", False)),
        ("symlink", {"target": "../there", "replace": True}, "link", lambda p: symlink(p, "../there", True)),
        ("remove", {}, "path", remove),
    ]


def cases(base):
    ops = operations(base)
    return enumerate(itertools.product(STATES, ops, [None, *ops]))


def age(tree):
    for dir, dirs, files in os.walk(tree, topdown=False):
        for name in files + dirs:
            os.utime(dir + "/" + name, (OLD, OLD), follow_symlinks=False)


def make_layers(base):
    os.makedirs(base + "/src/tree/sub")
    put(base + "/src/one", "one", 0o750)
    put(base + "/src/tree/a", "a")
    os.link(base + "/src/tree/a", base + "/src/tree/a2")
    os.symlink("a", base + "/src/tree/s")
    put(base + "/src/tree/sub/b", "b", 0o2755)
    os.chmod(base + "/src/tree/sub", 0o2770)
    os.setxattr(base + "/src/tree", "user.note", b"tree")
    for layer in ("bottom", "top"):
        os.makedirs(f"{base}/{layer}/c")
    for number, (state, _, _) in cases(base):
        dirs = [f"{base}/{layer}/c/{number}" for layer in ("bottom", "top")]
        for dir in dirs:
            directory(dir, 0o755, (1, 1))
        state(*dirs)
    for layer in ("bottom", "top"):
        age(base + "/" + layer)


def make_model(base):
    n = 0
    with open(base + "/all.jsonl", "w") as everything, open(base + "/good.jsonl", "w") as good, open(base + "/failing", "w") as failing:
        for number, (_, *pair) in cases(base):
            for op in filter(None, pair):
                name, members, where, effect = op
                n += 1
                line = json.dumps({"op": name, where: f"/c/{number}/x", **members}) + "\n"
                everything.write(line)
                if effect(f"{base}/flat/c/{number}/x"):
                    good.write(line)
                else:
                    failing.write(f"{n}\n")


{"layers": make_layers, "model": make_model}[sys.argv[1]](os.path.abspath(sys.argv[2]))
