#!/usr/bin/env python3
"""Has msb-pack read a root that a hostile writer changes meanwhile, without regard for its lock.

pack-races.py ROUNDS TARGET…    in an empty directory; a target is a kind: tar, layer, oci, dir, raw, qcow2 or erofs

Names of the upper are exchanged all the time for files of other types, symlinks that lead out of the root, and directories; they vanish
and come back, and so do the directories that they are in. In every second round a file is also rewritten, cut off and extended in place.
Each run has to end with an error that names a path, and leave nothing; or with a target in which every file is one that there was at some
moment, and nothing is of the host. After the rounds, without a writer, every target has to be made. Prints how often each was.
"""

import ctypes
import itertools
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import tarfile
import threading

SECRET = b"a secret of the host"
LIBC = ctypes.CDLL(None, use_errno=True)
EXCHANGE = 2
DIRS = [f"d{n}" for n in range(8)]
FILES = [f"{name}/f{n}" for name in DIRS for n in range(12)]
# It is rewritten in place. A version has one letter, and the next version the next one.
BIG = "d0/big"
BIG_SIZE = 4 << 20
# How long a run may take, in seconds: one that hangs is to fail.
HANGS = 600


def exchange(one, other, parent=-100):
    if LIBC.renameat2(parent, one.encode(), -100, other.encode(), EXCHANGE) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def overwrite(file, letter):
    """Writes a version from the front, page by page: the kernel changes a file's time once in a call."""
    page = letter.encode() * 4096
    for place in range(0, BIG_SIZE, len(page)):
        os.pwrite(file, page, place)


def write(path, content):
    with open(path, "wb") as file:
        file.write(content)


def make_root():
    os.makedirs("outside/dir")
    os.makedirs("aside")
    os.mkdir("work")
    write("outside/secret", SECRET)
    for root in ("lower", "upper"):
        for name in DIRS:
            os.makedirs(f"{root}/{name}")
    for n, path in enumerate(FILES):
        write("outside/dir/" + os.path.basename(path), SECRET)
        write("lower/" + path, b"l" * (100 * n))
        if n % 4:
            write("upper/" + path, b"u" * (700 * n))
    write("upper/" + BIG, b"a" * BIG_SIZE)
    write("outside/dir/big", SECRET)
    os.symlink(os.path.abspath("outside/secret"), "lower/link")
    record = {
        "msb": 1,
        "rootfs": {"kind": "layers", "lower": [os.path.abspath("lower")]},
        "upper": {"dir": os.path.abspath("upper"), "work": os.path.abspath("work")},
    }
    with open("record.json", "w") as file:
        json.dump(record, file)


def make_variants():
    """What names are exchanged for."""
    secret, of_dirs = os.path.abspath("outside/secret"), os.path.abspath("outside/dir")
    makers = [
        lambda path: write(path, b"v" * 300_000),
        lambda path: write(path, b""),
        lambda path: os.symlink(secret, path),
        lambda path: os.symlink("../" * 40 + secret[1:], path),
        lambda path: os.symlink(of_dirs, path),
        lambda path: os.mkfifo(path),
        # /dev/zero, which has no end; and a whiteout.
        lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5)),
        lambda path: os.mknod(path, stat.S_IFCHR | 0o600, 0),
        lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
        lambda path: os.mkdir(path),
        lambda path: [os.mkdir(path), write(path + "/f1", b"w" * 5000), os.symlink(secret, path + "/f2")],
        lambda path: [write(path, b"x" * 9000), os.link(path, path + ".link")],
        lambda path: [os.mkdir(path), os.setxattr(path, "trusted.overlay.opaque", b"y")],
    ]
    for n, make in enumerate(makers * 2):
        make(f"aside/{n}")
    return [f"aside/{n}" for n in range(len(makers) * 2)]


class Writer:
    """Changes the upper in threads, until it is stopped."""

    def __init__(self, seed, variants, rewrites):
        self.over = threading.Event()
        works = [self.exchange_files, self.exchange_dirs] + [self.rewrite] * rewrites
        self.threads = [
            threading.Thread(target=self.repeat, args=(work, random.Random(f"{seed} {work.__name__}"), variants)) for work in works
        ]
        self.letters = itertools.cycle("bcdefghijk")
        for thread in self.threads:
            thread.start()

    def stop(self):
        self.over.set()
        for thread in self.threads:
            thread.join()

    def repeat(self, work, rng, variants):
        while not self.over.is_set():
            try:
                work(rng, variants)
            except OSError:
                pass  # The other thread was faster.

    def exchange_files(self, rng, variants):
        parent, name = os.path.split("upper/" + rng.choice(FILES))
        # Not by its path, which may lead out of the root by now.
        parent = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            self.exchange_file(parent, name, rng, variants)
        finally:
            os.close(parent)

    def exchange_file(self, parent, name, rng, variants):
        how = rng.random()
        if how < 0.6:
            exchange(name, rng.choice(variants), parent)
        elif how < 0.8:
            os.rename(name, "aside/gone", src_dir_fd=parent)
            os.rename("aside/gone", name, dst_dir_fd=parent)
        elif how < 0.9:
            path = f"/proc/self/fd/{parent}/{name}"
            os.setxattr(path, "user.note", b"n" * rng.randrange(1, 1000), follow_symlinks=False)
            os.removexattr(path, "user.note", follow_symlinks=False)
        else:
            # A name more, and an inode that is free again soon.
            write("aside/new", b"n" * 2000)
            os.link("aside/new", name + "x", dst_dir_fd=parent)
            os.rename("aside/new", name, dst_dir_fd=parent)
            os.unlink(name + "x", dir_fd=parent)

    def exchange_dirs(self, rng, _variants):
        name = "upper/" + rng.choice(DIRS[1:])
        if rng.random() < 0.5:
            os.rename(name, "aside/dir")
            os.rename("aside/dir", name)
        else:
            link = "aside/to-dir"
            if not os.path.lexists(link):
                os.symlink(os.path.abspath("outside/dir"), link)
            exchange(name, link)
            exchange(name, link)

    def rewrite(self, rng, _variants):
        file = os.open("upper/" + BIG, os.O_RDWR | os.O_NOFOLLOW)
        try:
            letter = next(self.letters)
            # From the next version on, the first letter begins again.
            if letter == "b":
                os.ftruncate(file, 0)
                overwrite(file, "a")
            overwrite(file, letter)
            if rng.random() < 0.2:
                os.ftruncate(file, rng.randrange(BIG_SIZE))
                overwrite(file, letter)
        finally:
            os.close(file)


def is_of_a_moment(content):
    """Whether a file had this content at some moment: a version, or a part of the next one and the rest of the one before."""
    letters = [chr(letter) for letter, _ in itertools.groupby(content)]
    if len(letters) > 1:
        return len(letters) == 2 and ord(letters[0]) == ord(letters[1]) + 1
    return all(letter.isalpha() for letter in letters)


def check_file(path, content):
    assert SECRET not in content, f"{path}: what the host has"
    assert is_of_a_moment(content), f"{path}: never had this content: {[chr(l) for l, _ in itertools.groupby(content)][:9]}"


def check_archive(path):
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile() and not member.islnk():
                check_file(member.name, archive.extractfile(member).read())


def check_tree(top):
    for parent, _, names in os.walk(top):
        for name in names:
            path = os.path.join(parent, name)
            if stat.S_ISREG(os.lstat(path).st_mode):
                with open(path, "rb") as file:
                    check_file(path, file.read())


def run(*command):
    subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def check_ext4(path):
    run("e2fsck", "-fn", path)
    with open(path, "rb") as file:
        assert SECRET not in file.read(), f"{path}: what the host has"
    os.mkdir("tree")
    # It does not know special files.
    run("debugfs", "-R", "rdump / tree", path)
    check_tree("tree")


def check_qcow2(path):
    run("qemu-img", "check", "-q", path)
    run("qemu-img", "convert", "-O", "raw", path, "converted")
    check_ext4("converted")


def check_erofs(path):
    run("fsck.erofs", "--extract=tree", path)
    check_tree("tree")


def check_layout(path):
    blob = lambda digest: os.path.join(path, "blobs/sha256", digest.split(":")[1])
    with open(os.path.join(path, "index.json")) as index, open(blob(json.load(index)["manifests"][0]["digest"])) as manifest:
        for layer in json.load(manifest)["layers"]:
            check_archive(blob(layer["digest"]))


CHECKS = {
    "tar": check_archive,
    "layer": check_archive,
    "oci": check_layout,
    "dir": check_tree,
    "raw": check_ext4,
    "qcow2": check_qcow2,
    "erofs": check_erofs,
}


def remove(path):
    if os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def pack(kind):
    """Runs msb-pack. Returns whether there is a target now, which is whole."""
    for path in ("target", "tree", "converted"):
        remove(path)
    flags = ["--repack"] if kind == "oci" else []
    done = subprocess.run(["msb-pack", "-q", "-r", "record.json", *flags, f"{kind}:target", "-o", "new.json"], capture_output=True, timeout=HANGS)
    return done.returncode, done.stderr.decode(errors="replace")


def judge(kind, status, message):
    if status == 0:
        CHECKS[kind]("target")
    else:
        assert status == 1 and message.startswith("msb-pack: ") and '"' in message, f"{kind}: status {status}: {message}"
        assert not os.path.lexists("target"), f"{kind}: a target in spite of: {message}"
    left = [name for name in os.listdir(".") if name.startswith(".")]
    assert not left, f"{kind}: left behind: {left}"


def main():
    rounds, kinds = int(sys.argv[1]), sys.argv[2:]
    make_root()
    variants = make_variants()
    for kind in kinds:
        made, messages = 0, {}
        for number in range(rounds):
            writer = Writer(f"{kind} {number}", variants, rewrites=number % 2)
            try:
                status, message = pack(kind)
            finally:
                writer.stop()
            judge(kind, status, message)
            made += status == 0
            if status != 0:
                what = message.strip().rsplit(": ", 1)[-1]
                messages[what] = messages.get(what, 0) + 1
        status, message = pack(kind)
        assert status == 0, f"{kind}: without a writer: {message}"
        judge(kind, status, message)
        print(f"{kind}: {made} of {rounds} made; " + "; ".join(f"{count} {what}" for what, count in sorted(messages.items())), flush=True)


main()
