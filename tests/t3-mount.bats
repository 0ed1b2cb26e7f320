#!/usr/bin/env bats
# msb-mount: a record's layers as one tree, judged by the kernel's overlayfs on the same directories. Needs root and
# /dev/fuse.

bats_require_minimum_version 1.5.0

setup_file() {
    export TOOLS=$BATS_TEST_DIRNAME/../target/release
    export DEMO=$BATS_FILE_TMPDIR/demo
    # shellcheck source=tests/image.bash
    source "$BATS_TEST_DIRNAME/image.bash"
    umoci raw unpack --image "$(demo_image):latest" "$DEMO" >/dev/null
}

setup() {
    # shellcheck source=tests/tree.bash
    source "$BATS_TEST_DIRNAME/tree.bash"
    PATH=$TOOLS:$PATH
    unset MSB_RECORD
    cd "$BATS_TEST_TMPDIR" || return
    export MSB_HOME=$PWD/home
    mkdir top bottom kernel
    mkdir -p bottom/etc/conf.d bottom/bin top/etc
    echo bottom >bottom/etc/motd
    echo one >bottom/etc/conf.d/one
    echo two >bottom/etc/conf.d/two
    echo tool >bottom/bin/tool
    ln bottom/bin/tool bottom/bin/link
    ln -s tool bottom/bin/symlink
    echo top >top/etc/hosts
    chmod 0755 top bottom
    jq -nc --arg dir "$PWD" '{msb: 1, rootfs: {kind: "layers", lower: [$dir + "/top", $dir + "/bottom"]}}' >record
}

teardown() {
    local point
    for point in "$BATS_TEST_TMPDIR"/{root,other,kernel,one/root,two/root}; do
        umount -l "$point" 2>/dev/null || true
    done
}

# mounted: mounts the record on ./root; $pid, $upper and $work are those of the printed record.
mounted() {
    msb-mount -r record "$@" ./root >mounted 3>&-
    pid=$(jq .mount.pid mounted)
    upper=$(jq -r '.upper.dir // empty' mounted)
    work=$(jq -r '.upper.work // empty' mounted)
}

# with_descriptors COUNT COMMAND...: runs the command with a limit of open files that it cannot raise.
with_descriptors() {
    (
        ulimit -Sn "$1"
        ulimit -Hn "$1"
        exec setpriv --bounding-set -sys_resource --inh-caps -sys_resource "${@:2}"
    )
}

kernel_overlay() {
    mount -t overlay overlay -o "nosuid,nodev,lowerdir=$1,upperdir=$upper,workdir=$work" kernel
}

@test "the record is printed once the mount answers, with upper and mount, and the caller's streams are closed" {
    run --separate-stderr msb-mount -r record ./root 9<record
    [ "$status" -eq 0 ]
    [ "$(cat root/etc/motd)" = bottom ]
    [ "$(cat root/etc/hosts)" = top ]
    # Neither is a further descriptor of the caller's in the server.
    [[ $(readlink "/proc/$(jq .mount.pid <<<"$output")/fd"/*) != *"$PWD/record"* ]]
    [ "$(jq -r .mount.path <<<"$output")" = "$PWD/root" ]
    [ "$(jq -r .mount.fstype <<<"$output")" = fuse.msb ]
    [ -d "$(jq -r .upper.dir <<<"$output")" ]
    grep -q " $PWD/root .* - fuse.msb msb " /proc/self/mountinfo
    [ "$(readlink "/proc/$(jq .mount.pid <<<"$output")/exe")" = "$(realpath "$TOOLS/msb-mount")" ]
}

@test "without a mount point the root is mounted beside the upper" {
    msb-mount -r record >mounted 3>&-
    point=$(jq -r .mount.path mounted)
    [ "$point" = "$(dirname "$(jq -r .upper.dir mounted)")/root" ]
    [ "$(cat "$point/etc/motd")" = bottom ]
    msb-mount -u "$point"
}

@test "a Debian image looks as it does through the kernel's overlayfs" {
    jq -nc --arg lower "$DEMO" --arg top "$PWD/top" '{msb: 1, rootfs: {kind: "layers", lower: [$top, $lower]}}' >record
    mounted
    tree_manifest root >ours
    msb-mount -u root
    kernel_overlay "$PWD/top:$DEMO"
    tree_manifest kernel >kernels
    [ "$(wc -l <ours)" -gt 5000 ]
    diff ours kernels
}

@test "inode numbers are the layers' and survive a copy-up" {
    mounted
    before=$(stat -c %i root/etc/motd root/etc root/bin/tool root/bin/link)
    [ "$before" = "$(stat -c %i bottom/etc/motd top/etc bottom/bin/tool bottom/bin/link)" ]
    echo more >>root/etc/motd
    [ "$(stat -c %i root/etc/motd root/etc)" = "$(head -n 2 <<<"$before")" ]
    echo 2 >/proc/sys/vm/drop_caches
    [ "$(stat -c %i root/etc/motd root/etc)" = "$(head -n 2 <<<"$before")" ]
    # Also a remount, under another name, and in a listing that looks nothing up; a new file and a copy of one name of two have their own.
    echo new >root/etc/new
    chmod 0700 root/bin/tool root/etc/conf.d/*
    conf=$(stat -c %i root/etc/conf.d/*)
    own=$(stat -c %i root/etc/new root/bin/tool)
    mv root/etc/motd root/etc/moved
    for how in ours kernels; do
        msb-mount -u root
        jq 'del(.mount)' mounted >record
        mounted
        [ "$(stat -c %i root/etc/moved root/etc/new root/bin/tool)" = "$(head -n 1 <<<"$before")"$'\n'"$own" ]
        [ "$(python3 -c 'import os; print(*(entry.inode() for entry in sorted(os.scandir("root/etc/conf.d"), key=lambda e: e.name)), sep="\n")')" = "$conf" ]
        [ "$(stat -c %i root/etc/conf.d/*)" = "$conf" ]
        if [ "$how" = ours ]; then
            # What the kernel has copied up.
            msb-mount -u root
            kernel_overlay "$PWD/top:$PWD/bottom"
            chmod 0700 kernel/bin/symlink 2>/dev/null || true
            touch -h kernel/bin/symlink
            umount kernel
            before=$(head -n 1 <<<"$before")
            mounted
            [ "$(stat -c %i root/bin/symlink)" = "$(stat -c %i bottom/bin/symlink)" ]
        fi
    done
    # The layer's file comes back under its name: it is another one.
    echo other >root/etc/moved
    msb-mount -u root
    rm "$upper/etc/motd"
    mounted
    [ "$(cat root/etc/moved root/etc/motd)" = $'other\nbottom' ]
    [ "$(cat root/etc/motd root/etc/moved)" = $'bottom\nother' ]
}

@test "the kernel's overlayfs shows the same changes afterwards, and the layers are untouched" {
    cp -a "$DEMO" bottom/debian
    tree_manifest top >top.before
    tree_manifest bottom >bottom.before
    mounted
    (
        cd root
        echo new >etc/new
        echo more >>etc/motd
        chmod 0600 etc/hosts
        chown 1000:1000 bin/tool
        mv etc/conf.d/one etc/conf.d/renamed
        ln etc/motd etc/motd.link
        ln -sf elsewhere bin/symlink
        rm etc/conf.d/two
        mkdir etc/conf.d/two
        mkfifo etc/fifo
        rm -rf debian/usr/lib
        mkdir debian/usr/lib
        echo again >debian/usr/lib/again
        rm -r debian/etc
        mv debian/var/lib/dpkg/status status
        cp -a debian/usr/bin copied
        mkdir made
        mv made moved
        truncate -s 3 debian/usr/bin/tail
        touch -d @1000 debian/usr/bin/head
        setfattr -n user.note -v kept debian/usr/bin/sort
        setfacl -m u:1000:rx moved
    )
    tree_manifest root >ours
    msb-mount -u root
    kernel_overlay "$PWD/top:$PWD/bottom"
    tree_manifest kernel >kernels
    diff ours kernels
    umount kernel
    tree_manifest top | diff top.before -
    tree_manifest bottom | diff bottom.before -
}

@test "the whiteouts of a mount are links to one file, and a new one is made when that is gone" {
    mounted
    whiteouts() { find "$upper" -type c -printf '%i %n %P\n' | sort -k 3; }
    rm root/etc/motd root/bin/link
    rm root/etc/hosts
    [ "$(whiteouts | awk '{print $3}' | xargs)" = "bin/link etc/hosts etc/motd" ]
    [ "$(whiteouts | awk '{print $2}' | xargs)" = "3 3 3" ]
    [ "$(whiteouts | awk '{print $1}' | sort -u | wc -l)" -eq 1 ]
    for name in etc/motd bin/link etc/hosts; do echo again >root/$name; done
    [ -z "$(whiteouts)" ]
    # Over a file of the upper, and where no file has the name.
    rm root/etc/motd root/bin/symlink
    [ "$(whiteouts | awk '{print $3}' | xargs)" = "bin/symlink etc/motd" ]
    msb-mount -u root
    kernel_overlay top:bottom
    [ "$(ls kernel/etc kernel/bin | xargs)" = "kernel/bin: link tool kernel/etc: conf.d hosts" ]
}

@test "random operations are answered as the kernel's overlayfs answers them" {
    # Each of these seeds has found a bug: times, set-id bits, copy-ups for a rename that fails.
    for seed in 1 3 27 93 125 176; do
        mkdir -p "$seed"/{upper,work,root,k/upper,k/work,k/root}
        cd "$seed"
        python3 "$BATS_TEST_DIRNAME/mount-diff.py" lower "$seed" .
        cp -a top bottom k
        chmod 0777 upper k/upper
        touch -d @1000000000 upper k/upper
        jq -nc --arg dir "$PWD" '{msb: 1,
            rootfs: {kind: "layers", lower: [$dir + "/top", $dir + "/bottom"]},
            upper: {dir: ($dir + "/upper"), work: ($dir + "/work")}}' >record
        # So few descriptors that most files are closed and opened again.
        limited=()
        case $seed in 27 | 93) limited=(with_descriptors 44) ;; esac
        # In half of them directories of the layers are renamed.
        redirect=off flags=()
        case $seed in 3 | 27 | 176) redirect=on flags=(--redirect-dir) ;; esac
        "${limited[@]}" msb-mount -r record "${flags[@]}" root >/dev/null 3>&-
        mount -t overlay overlay k/root \
            -o "nosuid,nodev,redirect_dir=$redirect,index=off,metacopy=off,lowerdir=k/top:k/bottom,upperdir=k/upper,workdir=k/work"
        python3 "$BATS_TEST_DIRNAME/mount-diff.py" run "$seed" 500 root k/root || failed=$seed
        msb-mount -u root
        mount -t overlay overlay -o "nosuid,nodev,redirect_dir=$redirect,lowerdir=top:bottom,upperdir=upper,workdir=work" root
        [ -n "${failed:-}" ] || python3 "$BATS_TEST_DIRNAME/mount-diff.py" compare root k/root || failed=$seed
        umount root k/root
        [ -z "${failed:-}" ]
        cd ..
    done
}

@test "with --redirect-dir directories of the layers are renamed, and the kernel finds them" {
    mkdir -p bottom/{a/b/c,far/away,plain}
    echo deep >bottom/a/b/c/file
    for dir in far/away plain; do echo "$dir" >"bottom/$dir/file"; done
    mounted
    run ! python3 -c 'import os; os.rename("root/a", "root/b")'
    [[ $output == *'Invalid cross-device link'* ]]
    msb-mount -u root
    jq -c 'del(.mount)' mounted >record
    mounted --redirect-dir
    ino=$(stat -c %i root/a)
    exec 9<root/a/b/c/file
    # Within a directory, to another one, to the place of one that was moved, and below one that was moved.
    python3 - <<'PYTHON'
import os
os.chdir("root")
os.rename("a", "z")
os.mkdir("new")
os.rename("z", "new/z")
os.rename("far/away", "a")
os.rename("new/z/b", "far/away")
os.mkdir("plain/sub")
os.rename("plain", "new/plain")
os.rename("new", "newer")
PYTHON
    [ "$(stat -c %i root/newer/z)" = "$ino" ]
    [ "$(find root/newer -maxdepth 1 -name z -printf %i)" = "$ino" ]
    [ "$(cat <&9)" = deep ]
    exec 9<&-
    echo written >root/far/away/c/more
    rmdir root/newer/plain/sub
    mkdir root/plain
    tree_manifest root >ours
    [ "$(cat root/far/away/c/file root/a/file root/newer/plain/file)" = $'deep\nfar/away\nplain' ]
    msb-mount -u root
    kernel_follows "$PWD/top:$PWD/bottom" "$upper" "$work"
    tree_manifest kernel | diff ours -
    umount kernel
    jq -c 'del(.mount)' mounted >record
    mounted
    tree_manifest root | diff ours -
    # It is the redirect that is kept, so it can be renamed again only with the flag.
    run ! python3 -c 'import os; os.rename("root/a", "root/q")'
}

# Mounts the layers and the upper with the kernel's overlayfs, read-only, with all features on.
kernel_follows() {
    mount -t overlay overlay kernel \
        -o "ro,nosuid,nodev,redirect_dir=on,metacopy=on,index=off,lowerdir=$1,upperdir=$2,workdir=$3"
}

# mark FILE NAME VALUE: sets one of overlayfs's own xattrs.
mark() {
    setfattr -h -n "trusted.overlay.$2" -v "$3" "$1"
}

@test "redirects, metacopies and whiteouts that are xattrs mean what they mean to the kernel, and lead nowhere outside" {
    mkdir -p upper work kernel-work bottom/{rel-from,chain-from,abs-from/in,far-from,hidden/deep,plain,self,xw} \
        top/{rel,mid,x/abs,y/far,opaque/below,dangling,link,loop,xw} upper/{chain,far,self/self}
    for dir in rel-from chain-from abs-from/in far-from hidden/deep plain; do echo "$dir" >"bottom/$dir/f"; done
    echo content >bottom/file
    touch bottom/xw/{gone,stays} top/xw/gone top/empty
    ln -s /etc bottom/sym
    # As a rename leaves it: the old name is a whiteout.
    for name in top/rel-from top/chain-from top/abs-from top/far-from top/hidden upper/mid upper/y upper/m-top; do mknod "$name" c 0 0; done
    mark top/rel redirect rel-from
    mark top/mid redirect chain-from
    mark upper/chain redirect mid
    mark top/x/abs redirect /abs-from/in
    mark top/y/far redirect /far-from
    mark upper/far redirect /y/far
    mark top/opaque opaque y
    mark top/opaque redirect /plain
    mark top/opaque/below redirect /hidden/deep
    mark top/dangling redirect /none/at/all
    mark top/link redirect /sym
    mark top/loop redirect /loop
    mark upper/self/self redirect /self
    mark top/xw opaque x
    mark top/xw/gone whiteout y
    for file in top/m-top upper/m-upper top/empty upper/lost; do
        truncate -s 8 "$file"
        mark "$file" metacopy ''
    done
    chmod 0640 top/m-top
    mark top/m-top redirect /file
    mark upper/m-upper redirect /m-top
    ln upper/m-upper upper/linked
    # Redirects that the kernel refuses: they name no directory, or lead out of the root.
    bad=(dots up down both empty-way slashes)
    for name in "${bad[@]}"; do mkdir "upper/$name"; done
    mark upper/dots redirect ..
    mark upper/up redirect /../../etc
    mark upper/down redirect /plain/../..
    mark upper/both redirect a/b
    mark upper/empty-way redirect ''
    mark upper/slashes redirect //plain
    # A file's owner can set these, so they are refused.
    mkdir upper/users
    setfattr -n user.overlay.redirect -v /plain upper/users
    truncate -s 8 upper/users-file
    setfattr -n user.overlay.metacopy -v '' upper/users-file
    jq -c --arg dir "$PWD" '.upper = {dir: ($dir + "/upper"), work: ($dir + "/work")}' record >marked
    kernel_follows "$PWD/top:$PWD/bottom" upper kernel-work
    msb-mount --ro -r marked root >/dev/null 3>&-
    for name in "${bad[@]}"; do
        run ! ls "root/$name"
        run ! ls "kernel/$name"
    done
    for name in users users-file empty lost; do run ! cp -r "root/$name" copied; done
    for name in empty lost; do run ! cat "kernel/$name"; done
    # An unreadable one does not hide the others.
    diff <(ls root) <(ls kernel)
    [ "$(cat root/{rel,chain,x/abs,far,opaque/below}/f)" = $'rel-from\nchain-from\nabs-from/in\nfar-from\nhidden/deep' ]
    [ "$(cat root/m-upper root/linked)" = $'content\ncontent' ]
    [ "$(stat -c '%a %s %b' root/m-upper)" = "$(stat -c '%a %s %b' kernel/m-upper)" ]
    [ "$(ls root/xw)" = stays ]
    for path in rel chain x far opaque dangling link loop xw plain etc bin; do
        python3 "$BATS_TEST_DIRNAME/mount-diff.py" compare "root/$path" "kernel/$path"
    done
    for file in m-upper linked file; do cmp "root/$file" "kernel/$file"; done
    # There is no endless loop.
    timeout 120 find root/self root/loop -maxdepth 5 >/dev/null
    msb-mount -u root
    umount kernel
    # msb-patch and the mount continue it: a written file gets its own data, and everything else is unchanged.
    msb-patch -r marked -f - >patched <<'END'
{"op":"append","path":"/m-upper","content":"more\n"} {"op":"text","path":"/chain/new","content":"new\n"}
END
    msb-mount -r patched root >/dev/null 3>&-
    echo through >>root/linked
    echo written >root/far/f
    mv root/x/abs/f root/plain/moved
    msb-mount -u root
    kernel_follows "$PWD/top:$PWD/bottom" upper kernel-work
    [ "$(cat kernel/m-upper)" = $'content\nmore\nthrough' ]
    cmp kernel/m-upper kernel/linked
    [ "$(cat kernel/chain/new kernel/chain/f kernel/far/f kernel/plain/moved)" = $'new\nchain-from\nwritten\nabs-from/in' ]
    [ ! -e kernel/x/abs/f ]
}

@test "an upper with the kernel's redirects and metacopies reads the same, also after msb-patch and after writes" {
    for seed in 2 13 36; do
        mkdir -p "$seed"/{upper,work,root,kernel}
        cd "$seed"
        python3 "$BATS_TEST_DIRNAME/mount-diff.py" lower "$seed" .
        chmod 0777 upper
        layers="lowerdir=top:bottom,upperdir=upper,workdir=work"
        mount -t overlay overlay kernel -o "nosuid,nodev,redirect_dir=on,metacopy=on,index=off,$layers"
        python3 "$BATS_TEST_DIRNAME/mount-diff.py" change "$seed" 150 kernel
        umount kernel
        getfattr -R -h -m 'trusted.overlay.(redirect|metacopy)' upper | grep -q redirect
        jq -nc --arg dir "$PWD" '{msb: 1, rootfs: {kind: "layers", lower: [$dir + "/top", $dir + "/bottom"]},
            upper: {dir: ($dir + "/upper"), work: ($dir + "/work")}}' >record
        for writer in kernel patch mount; do
            case $writer in
                patch) msb-patch -r record -f - <<<'{"op":"text","path":"/of-patch","content":"new"}' >/dev/null ;;
                mount)
                    msb-mount -r record root >/dev/null 3>&-
                    python3 "$BATS_TEST_DIRNAME/mount-diff.py" change "$((seed + 1))" 200 root
                    msb-mount -u root
                    ;;
            esac
            kernel_follows top:bottom upper work
            msb-mount --ro -r record root >/dev/null 3>&-
            python3 "$BATS_TEST_DIRNAME/mount-diff.py" compare root kernel
            msb-mount -u root
            # What the kernel showed before must still be visible.
            case $writer in
                kernel) cp -a kernel before ;;
                patch) [ "$(diff -r --no-dereference before kernel | grep -vE ' is a (.+) while file .* is a \1$')" = 'Only in kernel: of-patch' ] ;;
            esac
            umount kernel
        done
        cd ..
    done
}

@test "an open file outlives its name, and a reader sees what is written after the copy-up" {
    mounted
    python3 - root/etc <<'EOF'
import mmap, os, sys
os.chdir(sys.argv[1])
reader = os.open("motd", os.O_RDONLY)
assert os.pread(reader, 100, 0) == b"bottom\n"
with open("motd", "ab") as writer:
    writer.write(b"more\n")
assert os.pread(reader, 100, 0) == b"bottom\nmore\n"
os.unlink("motd")
assert os.pread(reader, 100, 0) == b"bottom\nmore\n"
lower = os.open("conf.d/one", os.O_RDONLY)
os.unlink("conf.d/one")
os.fchmod(lower, 0o600)
assert os.fstat(lower).st_mode & 0o777 == 0o600 and os.pread(lower, 9, 0) == b"one\n"
with open("over", "wb") as file:
    file.write(b"over\n")
held = os.open("conf.d/two", os.O_RDONLY)
os.rename("over", "conf.d/two")
assert os.pread(held, 9, 0) == b"two\n" and open("conf.d/two").read() == "over\n"
with open("hosts", "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
    view[0:3] = b"TOP"
    view.flush()
assert open("hosts").read() == "TOP\n"
EOF
    [ "$(cat top/etc/hosts)" = top ]
    [ "$(cat bottom/etc/conf.d/two)" = two ]
    msb-mount -u root
    [ "$(cat "$upper/etc/hosts")" = TOP ]
}

@test "two writers that copy one file up at once both get through" {
    head -c 20M /dev/urandom >bottom/big
    mounted
    printf a | dd of=root/big conv=notrunc bs=1 seek=0 status=none 3>&- &
    one=$!
    printf b | dd of=root/big conv=notrunc bs=1 seek=20000000 status=none 3>&-
    wait "$one"
    cp bottom/big expected
    printf a | dd of=expected conv=notrunc bs=1 seek=0 status=none
    printf b | dd of=expected conv=notrunc bs=1 seek=20000000 status=none
    cmp root/big expected
}

@test "5000 files can be open at once" {
    mounted
    python3 - root <<'EOF'
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (6000, 6000))
files = [open(os.path.join(sys.argv[1], f"file{n}"), "w+") for n in range(5000)]
for number, file in enumerate(files):
    file.write(str(number))
    file.flush()
for number, file in enumerate(files):
    file.seek(0)
    assert file.read() == str(number)
EOF
    [ "$(find root -name 'file*' | wc -l)" -eq 5000 ]
}

# many_files COUNT: with a limit of 1024 open files, a tree of many files is listed, changed, renamed, linked and removed.
many_files() {
    mkdir bottom/many bottom/tree
    (cd bottom/many && seq "$1" | xargs touch)
    (cd bottom/tree && seq 300 | xargs mkdir && for dir in *; do mkdir "$dir/below" && echo "$dir" >"$dir/below/file"; done)
    with_descriptors 1024 msb-mount -r record root >mounted 3>&-
    pid=$(jq .mount.pid mounted)
    [ "$(find root/many -type f -printf '%s\n' | sort | uniq -c | xargs)" = "$1 0" ]
    exec {held}<root/tree/7/below/file
    cp -a root/tree root/copy
    cp -al root/copy root/linked
    find root/copy -type f -print0 | xargs -0 chmod 600
    mv root/copy root/moved
    mv root/moved/9/below/file root/moved/8/below/renamed
    mv -f root/moved/11/below/file root/moved/12/below/file
    find root/many root/linked -printf '%m\n' >/dev/null
    [ "$(cat root/linked/9/below/file root/moved/8/below/renamed root/moved/12/below/file | xargs)" = '9 9 11' ]
    [ "$(find root/linked -type f -perm 600 | wc -l)" -eq 300 ]
    rm -r root/moved/8
    diff -r bottom/tree root/linked
    rm -r root/linked root/tree
    find root/many -printf '%m\n' >/dev/null
    [ "$(cat <&"$held")" = 7 ]
    exec {held}<&-
    [ "$(find "/proc/$pid/fd" -type l | wc -l)" -lt 700 ]
    (cd root/many && seq 1000 | xargs chmod 600 && seq 500 | xargs rm)
    [ "$(find root/many -type f | wc -l)" -eq $(($1 - 500)) ]
    [ "$(find root/many -perm 600 | wc -l)" -eq 500 ]
}

@test "more files than the server may have descriptors" {
    many_files 3000
}

# bats test_tags=slow
@test "a million files, with 1024 descriptors" {
    many_files 1000000
    tar cf - root | wc -c
    rm -r root/many
}

@test "a long copy-up holds up only its own file" {
    # The copies cannot end: their data comes from a file system whose server is stopped.
    mkdir -p slow/{data,mount}
    for name in one two three four; do head -c 2M /dev/urandom >slow/data/$name; done
    jq -nc --arg dir "$PWD" '{msb: 1, rootfs: {kind: "dir", lower: [$dir + "/slow/data"]}}' |
        msb-mount --ro ./slow/mount >slow/record 3>&-
    jq -nc --arg dir "$PWD" '{msb: 1,
        rootfs: {kind: "layers", lower: [$dir + "/slow/mount", $dir + "/bottom"]}}' >record
    mounted
    stat root/one root/two root/three root/four root/etc >/dev/null
    kill -STOP "$(jq .mount.pid slow/record)"
    copies=()
    for name in one two three four; do
        (echo more >>root/$name) 3>&- &
        copies+=("$!")
    done
    [ "$(cat root/etc/motd)" = bottom ]
    echo new >root/etc/new
    kill -CONT "$(jq .mount.pid slow/record)"
    wait "${copies[@]}"
    [ "$(tail -c 5 root/four)" = more ]
    msb-mount -u root
    msb-mount -u slow/mount
}

@test "a request that hangs holds up no other" {
    # The lookup of a new name cannot end: one layer is on a file system whose server is stopped.
    mkdir -p slow/{data,mount}
    jq -nc --arg dir "$PWD" '{msb: 1, rootfs: {kind: "dir", lower: [$dir + "/slow/data"]}}' |
        msb-mount --ro ./slow/mount >slow/record 3>&-
    jq -nc --arg dir "$PWD" '{msb: 1,
        rootfs: {kind: "layers", lower: [$dir + "/slow/mount", $dir + "/bottom"]}}' >record
    mounted
    mkdir root/etc/made
    kill -STOP "$(jq .mount.pid slow/record)"
    stat root/absent >hung 2>&1 3>&- &
    hung=$!
    for name in {1..200}; do echo "$name" >root/etc/made/"$name"; done
    [ "$(cat root/etc/made/* | wc -l)" -eq 200 ]
    # It waits for the stopped server still.
    kill -0 "$hung"
    kill -CONT "$(jq .mount.pid slow/record)"
    # Not with run, whose shell has no such child.
    if wait "$hung"; then return 1; fi
    grep -q 'No such file' hung
    msb-mount -u root
    msb-mount -u slow/mount
}

@test "the server of an idle mount does not run" {
    mounted
    for name in {1..50}; do echo "$name" >root/etc/"$name"; done
    # How often its threads have run: the timer for the last request is the last thing.
    runs() { awk '/ctxt_switches/ {sum += $2} END {print sum}' "/proc/$pid"/task/*/status; }
    for _ in {1..10}; do
        before=$(runs)
        sleep 1
        [ "$(runs)" -ne "$before" ] || break
    done
    [ "$(runs)" -eq "$before" ]
    cat root/etc/50
    [ "$(runs)" -gt "$before" ]
}

@test "what is mounted in a layer is not in the root, nor is the mount itself" {
    mkdir bottom/inner bottom/root
    mount -t tmpfs tmpfs bottom/inner
    touch bottom/inner/of-tmpfs
    msb-mount -r record ./bottom/root >mounted 3>&-
    [ -z "$(ls bottom/root/inner bottom/root/root | grep -v :)" ]
    [ "$(find bottom/root | wc -l)" -gt 5 ]
    msb-mount -u ./bottom/root
    umount bottom/inner
}

@test "other users get their own files and no more" {
    mounted
    mkdir -m 1777 root/tmp
    chmod 2777 root/bin
    setpriv --reuid=1000 --regid=1000 --clear-groups touch root/tmp/mine root/bin/ours
    [ "$(stat -c %u:%g root/tmp/mine)" = 1000:1000 ]
    [ "$(stat -c %u:%g root/bin/ours)" = 1000:0 ]
    run setpriv --reuid=1000 --regid=1000 --clear-groups sh -c 'echo x >>root/etc/motd'
    [ "$status" -ne 0 ]
    run setpriv --reuid=1001 --regid=1001 --clear-groups rm -f root/tmp/mine
    [ "$status" -ne 0 ]
    [ "$(cat root/etc/motd)" = bottom ]
}

@test "a write by another user than root clears set-id bits, also those set after the open" {
    mounted
    mkdir -m 1777 root/tmp
    python3 - root/tmp/file <<'EOF'
import os, sys
path = sys.argv[1]
def mode_after(change, is_late, root_flags=None):
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o777))
    os.chown(path, 1000, 1000)
    os.chmod(path, 0o777 if is_late else 0o6777)
    of_root = [] if root_flags is None else [os.open(path, root_flags)]
    os.seteuid(1000)
    fd = os.open(path, os.O_RDWR)
    os.seteuid(0)
    reader = os.open(path, os.O_RDONLY)
    if is_late:
        os.chmod(path, 0o6777)
    os.seteuid(1000)
    change(fd)
    os.seteuid(0)
    mode = os.stat(path).st_mode & 0o7777
    for opened in (reader, fd, *of_root):
        os.close(opened)
    os.unlink(path)
    return mode
for change in (
    lambda fd: os.write(fd, b"data"),
    lambda fd: os.ftruncate(fd, 3),
    lambda fd: os.posix_fallocate(fd, 0, 100),
    lambda fd: os.write(fd, b"data") and os.chmod(path, 0o6777) or os.copy_file_range(fd, fd, 1, 0, 50),
):
    for is_late in (False, True):
        for root_flags in (None, os.O_RDONLY, os.O_RDWR):
            assert mode_after(change, is_late, root_flags) == 0o777, (change, is_late, root_flags)
EOF
}

@test "the attributes of a file are those of its data after each way to write it" {
    mounted
    python3 - root/etc "$upper/etc" <<'EOF'
import mmap, os, struct, sys, time
shown, own = (path + "/written" for path in sys.argv[1:])
CAPABILITY = struct.pack("<5I", 0x02000000, 1 << 10, 0, 0, 0)
def write(fd):
    os.pwrite(fd, b"further", 4)
def map(fd):
    with mmap.mmap(fd, 0) as view:
        # To map a file changes its access time, so the kernel asks for the attributes.
        os.stat(shown)
        view[0:1] = b"x"
os.close(os.open(shown, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
for flags, change in ((os.O_WRONLY, write), (os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, b"more")),
                      (os.O_WRONLY, lambda fd: os.ftruncate(fd, 3)), (os.O_RDWR, write), (os.O_RDWR, map)):
    # Something that the kernel may have cached.
    os.utime(shown, (1, 1))
    os.setxattr(shown, "security.capability", CAPABILITY)
    assert os.getxattr(shown, "security.capability") == CAPABILITY
    assert os.stat(shown).st_mtime == 1
    fd = os.open(shown, flags)
    change(fd)
    os.close(fd)
    limit = time.monotonic() + 60
    while True:
        now, expected = os.stat(shown), os.stat(own)
        if (now.st_size, now.st_mtime_ns) == (expected.st_size, expected.st_mtime_ns):
            break
        # The kernel does not wait for the release of a file that was mapped.
        assert change is map and time.monotonic() < limit, (flags, now, expected)
    assert expected.st_mtime > 1
    # A write through a mapping does not clear capabilities.
    assert change is map or "security.capability" not in os.listxattr(shown), flags
EOF
}

@test "writes of another user bypass the server where root's do" {
    mounted
    mkdir -m 1777 root/tmp
    # The bytes that the server has read, requests included.
    through_server() {
        local before
        before=$(awk '/^rchar/ {print $2}' "/proc/$pid/io")
        "$@" dd if=/dev/zero of=root/tmp/file bs=4k count=1024 status=none
        rm root/tmp/file
        awk -v before="$before" '/^rchar/ {print ($2 - before > 1000000) ? "yes" : "no"}' "/proc/$pid/io"
    }
    of_root=$(through_server env)
    [ "$of_root" = no ] || skip "this kernel has no FUSE passthrough"
    of_user=$(through_server setpriv --reuid=1000 --regid=1000 --clear-groups)
    [ "$of_user" = no ]
}

@test "what stat, listings, times and xattrs show is what the layers have" {
    setfattr -n trusted.secret -v 1 bottom/etc/motd
    setfattr -n user.open -v 1 bottom/etc/motd
    mounted
    python3 - root <<'EOF'
import os, sys
root = sys.argv[1]
# Hardlinks of a layer, before and after the copy-up of one, and the parent of a directory that was moved.
def same():
    for entry in os.scandir(root + "/bin"):
        assert entry.inode() == os.lstat(entry.path).st_ino, entry.name
same()
os.chmod(root + "/bin/link", 0o600)
same()
assert os.stat(root + "/bin/tool").st_mode & 0o777 != 0o600
os.makedirs(root + "/a/x/deep")
os.makedirs(root + "/b")
os.listdir(root + "/a/x")
os.rename(root + "/a/x", root + "/b/x")
def above(path):
    import ctypes, struct
    fd, block = os.open(path, os.O_RDONLY), ctypes.create_string_buffer(4096)
    length, at, libc = 0, 0, ctypes.CDLL(None)
    libc.getdents64.restype = ctypes.c_ssize_t
    length = libc.getdents64(fd, block, ctypes.c_size_t(4096))
    os.close(fd)
    while at < length:
        ino, _, size, _ = struct.unpack_from("<QqHB", block.raw, at)
        if block.raw[at + 19:at + size].split(b"\0")[0] == b"..":
            return ino
        at += size
assert above(root + "/b/x") == os.stat(root + "/b").st_ino
assert above(root + "/b/x/deep") == os.stat(root + "/b/x").st_ino
open(root + "/old", "w").close()
for ns in (-987654321, -1, -1500000000, -2000000000, 5):
    os.utime(root + "/old", ns=(ns, ns))
    assert os.stat(root + "/old").st_mtime_ns == ns
EOF
    stat -c %Y "$upper/old" | grep -qx 0
    listed() { getfattr --absolute-names -m - "$@" root/etc/motd | grep -v '^#\|^$' | paste -sd' '; }
    [ "$(listed)" = 'trusted.secret user.open' ]
    [ "$(setpriv --bounding-set -sys_admin --inh-caps -sys_admin bash -c "$(declare -f listed); listed")" = user.open ]
    [ "$(setpriv --reuid 1000 --regid 1000 --clear-groups bash -c "$(declare -f listed); listed")" = user.open ]
    python3 - root <<'EOF'
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
handle, mount = (ctypes.c_uint * 40)(128), ctypes.c_int()
assert libc.name_to_handle_at(-100, sys.argv[1].encode() + b"/etc/motd", handle, ctypes.byref(mount), 0) == -1
assert ctypes.get_errno() == errno.EOPNOTSUPP
EOF
}

@test "--allow root keeps others out; --dev and --suid are seen by the kernel" {
    mounted --allow root
    [ "$(cat root/etc/motd)" = bottom ]
    run setpriv --reuid=1000 --regid=1000 --clear-groups ls root/etc
    [ "$status" -ne 0 ]
    [[ "$(findmnt -no OPTIONS root)" == *nosuid,nodev* ]]
    [ "$(find "$MSB_HOME" -name mount.log -printf '%m\n')" = 600 ]
    msb-mount -u root
    mounted --dev --suid
    options=$(findmnt -no OPTIONS root)
    [[ "$options" != *nosuid* && "$options" != *nodev* ]]
    setpriv --reuid=1000 --regid=1000 --clear-groups ls root/etc
}

@test "--type overlay is the kernel's overlayfs under the same locks, and auto takes FUSE where overlayfs cannot be" {
    [ "$(printf '6.7\n%s\n' "$(uname -r)" | sort -V | head -n 1)" = 6.7 ] || skip "this takes Linux 6.7"
    mounted --type overlay
    [ "$(jq -r .mount.fstype mounted)" = overlay ]
    [ "$(findmnt -rno FSTYPE,SOURCE root)" = "overlay msb:$pid" ]
    [[ $(findmnt -no OPTIONS root) == *nosuid*nodev* ]]
    echo more >>root/etc/motd
    rm root/etc/hosts
    run ! msb-mount -r mounted other
    [[ $output == *'in use by msb-patch'* ]]
    run ! msb-mount --type overlay root <record
    [[ $output == *'something is mounted there'* ]]
    msb-mount -u root
    [ ! -e "/proc/$pid/exe" ]
    [ ! -e root ]
    jq 'del(.mount)' mounted >record
    mounted
    [ "$(jq -r .mount.fstype mounted)" = fuse.msb ]
    [ "$(cat root/etc/motd)" = $'bottom\nmore' ]
    [ ! -e root/etc/hosts ]
    msb-mount -u root
    mounted --type auto --ro
    [ "$(findmnt -no FSTYPE root)" = overlay ]
    run ! touch root/new
    kill "$pid"
    tail --pid="$pid" -f /dev/null
    [ ! -e root ]
    # What overlayfs cannot do.
    jq 'del(.upper) | .rootfs.lower = .rootfs.lower[:1]' record >single
    run ! msb-mount -r single --type overlay --ro root
    [[ $output == *'does not mount a single layer read-only (use --type fuse)'* ]]
    for flags in '-r single --ro' '-r record --allow root'; do
        # shellcheck disable=SC2086 # several flags
        [ "$(msb-mount $flags --type auto root | jq -r .mount.fstype)" = fuse.msb ]
        msb-mount -u root
    done
    [ "$(msb-mount -r record --type overlay --in-place -- stat -fc %T .)" = overlayfs ]
}

@test "--type overlay takes directories with names of any length, and one that could not be reported is unmounted" {
    [ "$(printf '6.7\n%s\n' "$(uname -r)" | sort -V | head -n 1)" = 6.7 ] || skip "this takes Linux 6.7"
    # Longer than a string that fsconfig(2) takes, with a character that the kernel takes for an escape in two of its options.
    long=$(printf 'l%.0s' {1..150})'\'
    mkdir -p "$long/$long/home"
    mv top bottom "$long/$long"
    export MSB_HOME=$PWD/$long/$long/home
    jq -c --arg dir "$PWD/$long/$long" '.rootfs.lower = [$dir + "/top", $dir + "/bottom"]' record >longer
    mv longer record
    mounted --type overlay
    [ "${#upper}" -gt 300 ]
    [ "$(findmnt -no FSTYPE root)" = overlay ]
    [ "$(cat root/etc/motd root/etc/hosts)" = $'bottom\ntop' ]
    echo new >root/etc/motd
    [ "$(cat "$upper/etc/motd")" = new ]
    msb-mount -u root
    [ "$(msb-mount -r mounted --type overlay --in-place -- cat etc/motd)" = new ]

    run ! msb-mount -r mounted --type overlay --foreground root -o /dev/full
    [[ $output == *'No space left on device'* ]]
    [ ! -e root ]
    run ! findmnt -t overlay root
    # Its locks are gone with it.
    flock -n "$work" true
}

@test "an upper that cannot have whiteouts is refused, and its files can be read" {
    mkdir -p c/{lower,upper,work,root}
    mount -t overlay overlay c/root -o lowerdir=c/lower,upperdir=c/upper,workdir=c/work
    mkdir c/root/{upper,work}
    jq -c --arg dir "$PWD/c/root" '. + {upper: {dir: ($dir + "/upper"), work: ($dir + "/work")}}' record >with-upper
    run -1 msb-mount -r with-upper root
    [[ "$output" == *whiteouts*MSB_HOME* ]]
    [ -z "$(ls -A c/root/work)" ]
    msb-mount --ro -r with-upper root >/dev/null 3>&-
    [ "$(cat root/etc/motd)" = bottom ]
    msb-mount -u root
    umount c/root
}

@test "a lock on a file keeps others out" {
    mounted
    exec 9>root/lock
    flock 9
    run -1 flock -n root/lock true
    exec 9>&-
    flock -n root/lock true
}

@test "overlayfs's own xattrs are neither shown nor settable" {
    mounted
    rm -r root/etc/conf.d
    mkdir root/etc/conf.d
    [ "$(getfattr -n trusted.overlay.opaque --only-values "$upper/etc/conf.d")" = y ]
    [ -z "$(getfattr -d -m - root/etc/conf.d)" ]
    run ! setfattr -n trusted.overlay.opaque -v y root/etc
}

@test "a default ACL is inherited, also in the place of a whiteout" {
    mounted
    setfacl -d -m u:1000:rwx root/etc/conf.d
    rm root/etc/conf.d/one
    echo again >root/etc/conf.d/one
    echo new >root/etc/conf.d/new
    for file in one new; do
        getfacl -np "root/etc/conf.d/$file" | grep -q '^user:1000:rwx'
    done
}

@test "a program runs in the root, and nothing is left of the mount" {
    busybox=$(command -v busybox)
    cp "$busybox" bottom/bin/busybox
    ln -sf /nowhere/outside bottom/sys
    record=$PWD/record
    in_root() { msb-mount -r "$record" -- /bin/busybox "$@" 3>&-; }
    [ "$(in_root cat /etc/motd </dev/null)" = bottom ]
    [ "$(echo in | in_root cat)" = in ]
    in_root sh -c '[ -c /dev/null ] && [ -d /proc/self ] && [ -d /run ] && [ "$PWD" = / ] && [ ! -e /nowhere ] && cat /etc/resolv.conf' >conf
    cmp conf /etc/resolv.conf
    status=0; in_root sh -c 'exit 7' || status=$?; [ "$status" -eq 7 ]
    status=0; in_root sh -c 'kill -9 $$' || status=$?; [ "$status" -eq 137 ]
    run -127 msb-mount -r "$record" -- /no/such
    [[ "$output" == 'msb-mount: "/no/such":'* ]]
    run -126 msb-mount -r "$record" -- /etc/motd
    run -125 msb-mount -r /no/record -- /bin/busybox
    # A record without an upper leaves none, and -o keeps it.
    [ -z "$(ls -A "$MSB_HOME/sandboxes")" ]
    msb-mount -r "$record" -o kept -- /bin/busybox touch /etc/new 3>&-
    [ -e "$(jq -r .upper.dir kept)/etc/new" ]
    jq -e '.mount == null' kept
    run ! grep " $PWD/.* - fuse.msb " /proc/self/mountinfo
    # The next use sees it, and the upper is free.
    [ "$(msb-mount -r kept --in-place -- ls etc/new 3>&-)" = etc/new ]
    # Signals are passed on, and processes that the program leaves do not keep the mount.
    msb-mount -r kept -- /bin/busybox sh -c 'trap "exit 5" TERM; sleep 30 & echo >/ready; wait' 3>&- & tool=$!
    until [ -e "$(jq -r .upper.dir kept)/ready" ]; do sleep 0.1; done
    kill "$tool"
    status=0; wait "$tool" || status=$?; [ "$status" -eq 5 ]
    msb-mount -r kept --ro -- /bin/busybox true 3>&-
    # A killed tool takes the program and the mount with it.
    msb-mount -r kept -- /bin/busybox sh -c 'rm /ready; echo >/again; exec sleep 1000' 3>&- & tool=$!
    until [ -e "$(jq -r .upper.dir kept)/again" ]; do sleep 0.1; done
    kill -9 "$tool"
    wait "$tool" || true
    until msb-mount -r kept -- /bin/busybox true 2>err 3>&-; do grep -q 'in use' err; sleep 0.1; done
}

@test "layers in mount options are mounted without a record, also by mount(8)'s helper" {
    mkdir upper work 'with:colon' target
    echo colon >with:colon/of-colon
    msb-mount -o "lowerdir=with\\:colon:top:$PWD/bottom,upperdir=upper,workdir=work,nosuid" target >out 3>&-
    [ ! -s out ]
    [ "$(cat target/of-colon target/etc/hosts target/etc/motd | xargs)" = 'colon top bottom' ]
    echo new >target/new
    [[ "$(findmnt -no OPTIONS target)" == *nosuid* && "$(findmnt -no OPTIONS target)" != *nodev* ]]
    msb-mount -u target
    [ "$(cat upper/new)" = new ]
    ln -s "$TOOLS/msb-mount" mount.fuse.msb
    ./mount.fuse.msb msb "$PWD/target" -s -o "rw,nofail,lowerdir=$PWD/top:$PWD/bottom" 3>&-
    [ "$(cat target/etc/motd)" = bottom ]
    run ! touch target/new
    umount target
    # OCI's whiteouts, as podman leaves them in the layers for a mount program.
    mkdir -p oci/{bin,etc/conf.d,.wh..wh.plnk}
    touch oci/etc/{.wh.motd,.wh.hosts,conf.d/.wh..wh..opq} oci/bin/.wh.tool
    echo new >oci/bin/tool
    msb-mount -o lowerdir=oci:top:bottom,upperdir=upper,workdir=work target 3>&-
    [ "$(find target -mindepth 1 -printf '%P\n' | sort | xargs)" = 'bin bin/link bin/symlink bin/tool etc etc/conf.d new' ]
    [ "$(cat target/bin/tool)" = new ]
    run ! cat target/etc/motd
    run ! cat target/etc/conf.d/one
    echo again >target/etc/motd
    rm -r target/etc
    msb-mount -u target
    [ "$(stat -c %F upper/etc)" = 'character special file' ]
    run -2 msb-mount -o lowerdir=top,frob target
    [[ "$output" == *'"frob" is not known'* ]]
}

@test "--ro refuses writes and makes no upper" {
    mounted --ro
    [ -z "$upper" ]
    [ "$(cat root/etc/motd)" = bottom ]
    run touch root/etc/motd
    [[ "$output" == *"Read-only file system"* ]]
    msb-mount -u root
    [ ! -e home ]
}

@test "a read-only mount of an upper excludes writers, and not other readers" {
    mounted
    msb-mount -u root
    jq -c 'del(.mount)' mounted > with-upper
    msb-mount -r with-upper --ro ./root > /dev/null 3>&-
    run -1 msb-patch -r with-upper -f /dev/null
    [[ "$output" == *"in use by msb-patch, msb-mount, msb-pack or a running VM"* ]]
    msb-mount -r with-upper --ro ./second > /dev/null 3>&-
    [ "$(cat second/etc/motd)" = bottom ]
    msb-mount -u second
    msb-mount -u root
    msb-patch -r with-upper -f /dev/null > /dev/null
}

@test "-u ends the server and removes a mount point that msb-mount made; without a mount it is an error" {
    mounted
    msb-mount -u root
    [ ! -e "/proc/$pid/exe" ]
    [ ! -e root ]
    mkdir root
    jq -c 'del(.mount)' mounted >record
    mounted
    msb-mount -u root
    [ -z "$(ls -A root)" ]
    run -1 msb-mount -u root
    [[ "$output" == *"nothing is mounted there"* ]]
}

@test "-u refuses a mount in use" {
    mounted
    exec 9<root/etc/motd
    run -1 msb-mount -u root
    [[ "$output" == *"in use"* ]]
    exec 9<&-
    msb-mount -u root
}

@test "SIGTERM unmounts" {
    mounted
    kill "$pid"
    tail --pid="$pid" -f /dev/null
    [ ! -e root ]
}

@test "-f serves in the foreground until SIGTERM" {
    mkfifo out
    msb-mount -f -r record root >out 3>&- &
    server=$!
    read -r line <out
    [ "$(jq .mount.pid <<<"$line")" -eq "$server" ]
    [ "$(cat root/etc/motd)" = bottom ]
    kill "$server"
    wait "$server"
    [ ! -e root ]
}

@test "a mount whose server was killed is cleared by -u and by the next mount, which shows what was written" {
    mounted
    echo kept >root/kept
    kill -9 "$pid"
    tail --pid="$pid" -f /dev/null
    run --separate-stderr msb-mount -u root
    [ "$status" -eq 0 ]
    [[ "$stderr" == *"its server is gone"* ]]
    jq -c 'del(.mount)' mounted >record
    mounted
    [ "$(cat root/kept)" = kept ]
    kill -9 "$pid"
    tail --pid="$pid" -f /dev/null
    run --separate-stderr msb-mount -r record root
    [ "$status" -eq 0 ]
    [[ "$stderr" == *"without a server, cleared"* ]]
    [ "$(cat root/kept)" = kept ]
}

# It would be too early in three of four rounds.
@test "whoever sees that a killed mount fails can lock its upper at once" {
    for _ in {1..10}; do
        mounted
        python3 - "$pid" root/none "$work" <<'EOF'
import errno, fcntl, os, signal, sys
pid, path, work = sys.argv[1:]
work = os.open(work, os.O_RDONLY)
os.kill(int(pid), signal.SIGKILL)
while True:
    try:
        os.stat(path)
    except FileNotFoundError:
        continue
    except OSError as error:
        assert error.errno in (errno.ENOTCONN, errno.ECONNABORTED), error
        break
fcntl.flock(work, fcntl.LOCK_EX | fcntl.LOCK_NB)
EOF
        umount root
        jq -c 'del(.mount)' mounted >record
    done
}

# make test-kill has more moments.
# bats test_tags=kill
@test "killed at many moments of a copy-up, the server leaves the layer's file or the changed one, and the next mount shows it" {
    moments=${MSB_KILLS:-20}
    never=$PWD/never
    mkfifo "$never"
    head -c 32M /dev/urandom >bottom/etc/big
    (cat bottom/etc/big; echo changed) | sha256sum >changed
    sha256sum <bottom/etc/big >unchanged
    setfattr -n user.note -v kept bottom/etc/big
    chown 12:34 bottom/etc/big
    msb-mount -r record root | jq -c 'del(.mount)' >mount.json
    upper=$(jq -r .upper.dir mount.json)
    start=${EPOCHREALTIME/./}
    echo changed >>root/etc/big
    longest=$((${EPOCHREALTIME/./} - start))
    olds=0 news=0
    for moment in $(seq "$moments"); do
        rm -f root/etc/big
        msb-mount -u root
        # A whiteout of the last round would hide the layer's file.
        rm -rf "${upper:?}"/*
        msb-mount -r mount.json root >again.json
        # The machine may have become faster since it was timed: the first kill comes at once.
        delay=$((moment == 1 ? 0 : RANDOM * longest * 3 / 2 / 32768))
        # No process is started between the write and the kill: that can take longer than the copy-up.
        server=$(jq .mount.pid again.json)
        printf -v delay '%d.%06d' $((delay / 1000000)) $((delay % 1000000))
        echo changed 2>/dev/null >>root/etc/big &
        writer=$!
        read -rt "$delay" <>"$never" || true
        kill -KILL "$server"
        wait "$writer" || true
        msb-mount -r mount.json root >again.json
        sha256sum <root/etc/big >now
        if cmp -s now unchanged; then olds=$((olds + 1)); elif cmp -s now changed; then news=$((news + 1)); else
            echo "at moment $moment: $(stat -c %s root/etc/big) bytes"
            return 1
        fi
        [ "$(stat -c '%u %g' root/etc/big; getfattr --only-values -n user.note root/etc/big)" = $'12 34\nkept' ]
        [ -z "$(find "$(jq -r .upper.work mount.json)" -mindepth 1 -type f)" ]
    done
    echo "unchanged: $olds, changed: $news"
    [ "$olds" -gt 0 ]
    msb-mount -u root
}

@test "an upper has one mount at a time, and so does a mount point" {
    mounted
    run -1 msb-mount -r mounted other
    [[ "$output" == *"in use by msb-patch, msb-mount, msb-pack or a running VM"* ]]
    run -1 msb-mount -r record root
    [[ "$output" == *"something is mounted there"* ]]
}

@test "what cannot be mounted is refused" {
    echo '{"msb":1,"rootfs":{"kind":"disk","path":"/dev/null","format":"qcow2"}}' >disk
    run -1 msb-mount -r disk root
    [[ "$output" == *"a mount needs a layered or directory root, and this is a qcow2 disk"* ]]
    echo '{"msb":1,"rootfs":{"kind":"dir","lower":["/nowhere"]}}' >gone
    run -1 msb-mount -r gone root
    [[ "$output" == *'"/nowhere" is gone'* ]]
    run -1 msb-mount -r record no/parent/root
    [[ "$output" == *"no/parent/root"* ]]
    [ ! -e home/sandboxes ] || [ -z "$(ls -A home/sandboxes)" ]
    run -2 msb-mount --nonsense
    [ ! -e root ]
    # The tools would no longer find the store.
    mkdir -p home/sandboxes
    for hidden in home home/sandboxes .; do
        run msb-mount -r record "$hidden"
        [ "$status" -eq 1 ]
        [[ "$output" == *"would hide the store"* ]]
    done
    [ -z "$(ls -A home/sandboxes)" ]
    # There is no command.
    run msb-mount -r record ./root --
    [ "$status" -eq 2 ]
    [[ "$output" == *"no CMD"* ]]
    [ ! -e root ]
}

@test "a full disk is an error, and no partial copy is visible" {
    mkdir small
    mount -t tmpfs -o size=1M tmpfs small
    mkdir small/{upper,work}
    head -c 4M /dev/urandom >bottom/big
    jq -c --arg dir "$PWD/small" '. + {upper: {dir: ($dir + "/upper"), work: ($dir + "/work")}}' record >full
    msb-mount -r full root >/dev/null 3>&-
    run bash -c 'echo x >>root/big'
    [[ "$output" == *"No space left"* ]]
    cmp root/big bottom/big
    [ -z "$(ls small/upper)" ]
    msb-mount -u root
    umount small
}

@test "an interrupt during a mount leaves a mount with a printed record, or none" {
    for moment in 0.004 0.008 0.012 0.016 0.02 0.03 0.05; do
        for signal in INT TERM HUP; do
            status=0
            timeout --preserve-status -s "$signal" "$moment" msb-mount -r record ./root >out.json 2>err 3>&- || status=$?
            if [ -s out.json ]; then
                [ "$(cat root/etc/hosts)" = top ]
                msb-mount -u ./root
                rm -r "$MSB_HOME"
            else
                [ "$status" -gt 128 ] || { cat err; return 1; }
            fi
            run mountpoint -q root
            [ "$status" -ne 0 ]
            [ -z "$(find "$MSB_HOME/sandboxes" -mindepth 1 2>/dev/null)" ] || { find "$MSB_HOME"; cat err; return 1; }
        done
    done
}

@test "a copy of the mount in another mount namespace does not keep its server, and loses the files" {
    mounted
    # It says that it has its copy, and lives until it is told to read.
    mkfifo lives has
    unshare -m sh -c 'echo >has; read line; cat root/etc/motd' <lives >copy 2>&1 3>&- & other=$!
    exec {hold}>lives
    read -r <has
    echo written >root/written
    msb-mount -u root
    jq -c 'del(.mount)' mounted >record
    mounted
    [ "$(cat root/written)" = written ]
    echo >&"$hold"
    status=0; wait "$other" || status=$?; [ "$status" -ne 0 ]
    [ -s copy ]
}
