"""Pairs of operations on one path, for each kind of file that may be there before, and a model of their effects.

    pairs.py layers DIR     makes DIR/bottom and DIR/top, one directory /c/N for each case, and DIR/src to copy from
    pairs.py model DIR      applies the operations to DIR/flat, a plain copy of the merged layers, with ordinary calls of the
                            file system. Writes DIR/all.jsonl (all operations), DIR/good.jsonl (those that succeed) and
                            DIR/failing (the numbers of the others)

The model implements the specification in man/msb-ops.5 independently of msb-patch.
"""

import base64
import itertools
import json
import os
import shutil
import stat
import struct
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


# The states of "x" before the operations. Each function takes the case's directory in both layers.
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


# The effect of each operation on a plain tree. The functions return False for an error, after which nothing has changed.
class keeping_times:
    def __init__(self, path):
        self.path = path

    def __enter__(self):
        self.stat = os.stat(self.path)

    def __exit__(self, *_):
        os.utime(self.path, ns=(self.stat.st_atime_ns, self.stat.st_mtime_ns))


def aged(path):
    os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)


def has(path, mode, uid, gid):
    """Whether a file has the attributes that an operation asks for."""
    old = os.lstat(path)
    return all([mode in (None, stat.S_IMODE(old.st_mode)), uid in (None, old.st_uid), gid in (None, old.st_gid)])


def holds(path, content):
    with open(path, "rb") as now:
        return now.read() == content


def break_hardlink(path):
    """Separates a file from its other name before a change: overlayfs copies only one name of a hardlink up."""
    twin = os.path.dirname(path) + "/twin"
    if os.path.lexists(twin) and os.path.lexists(path) and os.path.samefile(twin, path):
        was = os.stat(path)
        new = path + ".new"
        with keeping_times(os.path.dirname(path)):
            shutil.copy2(path, new)
            os.chown(new, was.st_uid, was.st_gid)
            os.chmod(new, stat.S_IMODE(was.st_mode))
            os.utime(new, ns=(was.st_atime_ns, was.st_mtime_ns))
            os.rename(new, path)


def write(path, content, replace, default_mode, mode=None, uid=None, gid=None):
    path = os.path.realpath(path)
    old = None
    if os.path.lexists(path):
        old = os.lstat(path)
        if os.path.isfile(path) and has(path, mode, uid, gid) and holds(path, content):
            return True
        if os.path.isdir(path) or not replace:
            return False
    regular = old is not None and stat.S_ISREG(old.st_mode)
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


def append(path, content, once=False, create=False):
    path = os.path.realpath(path)
    if create and not os.path.lexists(path):
        return write(path, content, False, 0o644)
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as now:
        text = now.read()
        if once and (text.endswith(content) or b"\n" + content in b"\n" + text):
            return True
    break_hardlink(path)
    was = os.stat(path)
    with open(path, "ab") as to:
        to.write(content)
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    return True


def edit(path, text, suffix):
    """Adds a suffix to each line that is equal to the text."""
    path = os.path.realpath(path)
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as now:
        lines = now.read().split(b"\n")
    if text not in lines:
        return any(line.endswith(suffix) for line in lines)
    new = [line + suffix if line == text else line for line in lines]
    return write(path, b"\n".join(new), True, 0o644)


def copy_dir(path, src, replace, mode=None, uid=None):
    path = os.path.realpath(path)
    if os.path.lexists(path) and not os.path.isdir(path):
        return False

    def is_there(old, new):
        """Whether a file does not have to be replaced because it is already what a copy would be."""
        if os.path.islink(old) or os.path.islink(new):
            return os.path.islink(old) and os.path.islink(new) and os.readlink(old) == os.readlink(new)
        with open(old, "rb") as content:
            return os.path.isfile(new) and has(new, mode, uid, None) and holds(new, content.read())

    for dir, dirs, files in os.walk(src):
        to = os.path.normpath(os.path.join(path, os.path.relpath(dir, src)))
        for name in files:
            if os.path.lexists(to + "/" + name) and (os.path.isdir(to + "/" + name) or not replace and not is_there(dir + "/" + name, to + "/" + name)):
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
                if mode is not None:
                    os.chmod(to, mode | (mode & 0o444) >> 2)
                os.chown(to, uid or 0, 0)
                aged(to)
        for name in sorted(files):
            old, new = dir + "/" + name, to + "/" + name
            with keeping_times(to):
                inode = os.lstat(old).st_ino
                if os.path.lexists(new):
                    if not replace:
                        first.setdefault(inode, new)
                        continue
                    os.unlink(new)
                if inode in first:
                    os.link(first[inode], new)
                    continue
                first[inode] = new
                shutil.copy2(old, new, follow_symlinks=False)
                os.chown(new, uid or 0, 0, follow_symlinks=False)
                if not os.path.islink(new):
                    os.chmod(new, stat.S_IMODE(os.stat(old).st_mode) if mode is None else mode)
                aged(new)
    return True


def symlink(path, target, replace):
    if os.path.lexists(path):
        if os.path.islink(path) and os.readlink(path) == target:
            return True
        if not os.path.islink(path) and os.path.isdir(path) or not replace:
            return False
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


def is_directory(path):
    return os.path.isdir(path) and not os.path.islink(path)


def hardlink(target, link, replace):
    if not os.path.lexists(target) or is_directory(target) or is_directory(link):
        return False
    if os.path.lexists(link):
        if os.path.samestat(os.lstat(link), os.lstat(target)):
            return True
        if not replace:
            return False
    break_hardlink(target)
    with keeping_times(os.path.dirname(link)):
        if os.path.lexists(link):
            os.unlink(link)
        os.link(target, link, follow_symlinks=False)
    return True


def rename(old, new, replace):
    if not os.path.lexists(old):
        return os.path.lexists(new)
    with keeping_times(os.path.dirname(old)):
        if os.path.lexists(new):
            if os.path.samestat(os.lstat(old), os.lstat(new)):
                os.unlink(old)
                return True
            if is_directory(old) or is_directory(new) or not replace:
                return False
        break_hardlink(old)
        os.rename(old, new)
    return True


def change(path, change, is_possible=lambda mode: True):
    """Changes an attribute of an existing file."""
    path = os.path.realpath(path)
    if not os.path.lexists(path) or not is_possible(os.stat(path).st_mode):
        return False
    break_hardlink(path)
    change(path)
    return True


def chown(path, uid, gid):
    for dir, dirs, files in os.walk(path):
        for file in [dir] + [dir + "/" + name for name in dirs + files]:
            set_owner(file, uid, gid)
    set_owner(path, uid, gid)


def set_owner(path, uid, gid):
    was = os.lstat(path)
    if (was.st_uid, was.st_gid) != (uid, gid):
        os.chown(path, uid, gid, follow_symlinks=False)


def touch(path, time):
    path = os.path.realpath(path)
    if not os.path.lexists(path):
        write(path, b"", False, 0o644)
    break_hardlink(path)
    os.utime(path, (time, time))
    return True


def removexattr(path, name):
    if name in os.listxattr(path):
        os.removexattr(path, name)


def has_xattrs(mode):
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


KILL = struct.pack("<5I", 0x02000001, 1 << 5, 0, 0, 0)


def operations(base):
    """For each operation: its name, its members without the path, the member that holds the path, and its effect."""
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
        ("append", {"content": "A\n", "once": True, "create": True}, "path", lambda p: append(p, b"A\n", True, True)),
        ("edit", {"regex": "^(below)$", "with": "$1!"}, "path", lambda p: edit(p, b"below", b"!")),
        ("copy_dir", {"src": tree, "mode": "0640", "uid": 3}, "dst", lambda p: copy_dir(p, tree, False, 0o640, 3)),
        ("hardlink", {"link": "CASE/z"}, "target", lambda p: hardlink(p, beside(p, "z"), False)),
        ("hardlink", {"target": "CASE/y", "replace": True}, "link", lambda p: hardlink(beside(p, "y"), p, True)),
        ("rename", {"to": "CASE/z"}, "from", lambda p: rename(p, beside(p, "z"), False)),
        ("rename", {"from": "CASE/y", "replace": True}, "to", lambda p: rename(beside(p, "y"), p, True)),
        ("chmod", {"mode": "2711"}, "path", lambda p: change(p, lambda file: os.chmod(file, 0o2711))),
        ("chown", {"uid": 11, "gid": 12, "recursive": True}, "path", lambda p: change(p, lambda file: chown(file, 11, 12))),
        ("touch", {"mtime": 5}, "path", lambda p: touch(p, 5)),
        ("xattr", {"name": "user.note", "value": "set"}, "path",
         lambda p: change(p, lambda file: os.setxattr(file, "user.note", b"set"), has_xattrs)),
        ("xattr", {"name": "user.note", "remove": True}, "path",
         lambda p: change(p, lambda file: removexattr(file, "user.note"), has_xattrs)),
        ("capability", {"caps": "cap_kill=ep"}, "path",
         lambda p: change(p, lambda file: os.setxattr(file, "security.capability", KILL), stat.S_ISREG)),
    ]


def beside(path, name):
    return os.path.dirname(path) + "/" + name


# The first operations make a file, and each is paired with each. The others change a file. All pairs with those would be too many, so
# each is paired with a few operations, which run before and after it.
MAKING = 15
PARTNERS = [6, 13, 18, 20]


def cases(base):
    ops = operations(base)
    making, changing, partners = ops[:MAKING], ops[MAKING:], [ops[place] for place in PARTNERS]
    pairs = [*itertools.product(making, [None, *making]), *itertools.product(changing, [None, *partners]), *itertools.product(partners, changing)]
    return ((number, (state, *pair)) for number, (state, pair) in enumerate(itertools.product(STATES, pairs)))


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
        put(dirs[0] + "/y", "y\n", 0o444, (3, 3))
    for layer in ("bottom", "top"):
        age(base + "/" + layer)


def make_model(base):
    n = 0
    with open(base + "/all.jsonl", "w") as everything, open(base + "/good.jsonl", "w") as good, open(base + "/failing", "w") as failing:
        for number, (_, *pair) in cases(base):
            for op in filter(None, pair):
                name, members, member, effect = op
                n += 1
                line = json.dumps({"op": name, member: f"/c/{number}/x", **members}).replace("CASE", f"/c/{number}") + "\n"
                everything.write(line)
                if effect(f"{base}/flat/c/{number}/x"):
                    good.write(line)
                else:
                    failing.write(f"{n}\n")


{"layers": make_layers, "model": make_model}[sys.argv[1]](os.path.abspath(sys.argv[2]))
