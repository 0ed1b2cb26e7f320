#!/usr/bin/env bats
# msb-patch: how paths are resolved, what a change preserves, and that a hostile image gains nothing. Judged by the kernel.

# shellcheck source-path=SCRIPTDIR disable=SC2154 # bats sets variables
bats_require_minimum_version 1.5.0

setup() {
    source "$BATS_TEST_DIRNAME/patch.bash"
    patch_setup
}

teardown() {
    patch_teardown
    [ -z "${racer:-}" ] || kill "$racer" 2>/dev/null || true
}

# refused MESSAGE OP: the operation fails with the message, and nothing is left.
refused() {
    run --separate-stderr patch "$2"
    [ "$status" -eq 1 ]
    [[ $stderr == "msb-patch: op 1: "*"$1"* ]] || { echo "$stderr"; return 1; }
    [ -z "$(sandboxes)" ]
}

@test "a path is resolved as the guest's kernel would: ., // and .. are honoured, and .. stops at the root" {
    ln -s ../../../../../../../../etc top/climb
    for way in /a1 //a2 /./a3 /etc/../a4 /../../a5 /etc/./..//a6 /climb/../a7 /bin/../a8; do
        printf '{"op":"text","path":"%s","content":"%s"}\n' "$way" "${way##*/}"
    done | patch_stdin
    show
    [ "$(cat merged/a1 merged/a2 merged/a3 merged/a4 merged/a5 merged/a6 merged/a7)" = a1a2a3a4a5a6a7 ]
    # /bin is /usr/bin, and its parent is /usr.
    [ "$(cat merged/usr/a8)" = a8 ]
}

@test "a path that ends with / names a directory, and is refused for a file" {
    patch '{"op":"mkdir","path":"/new/"}' '{"op":"mkdir","path":"/etc//"}' '{"op":"remove","path":"/var/cache/"}'
    show
    [ -d merged/new ]
    [ ! -e merged/var/cache ]
    rm -r "$MSB_HOME"
    refused 'does not end with "/"' '{"op":"text","path":"/x/","content":""}'
    refused '"/etc/motd" is not a directory' '{"op":"text","path":"/etc/motd/","content":"","replace":true}'
    refused '"/etc/motd" is not a directory' '{"op":"remove","path":"/etc/motd/"}'
    refused '"/bin" is not a directory' '{"op":"remove","path":"/bin/"}'
    refused 'does not end with "/"' '{"op":"symlink","link":"/x/","target":"y"}'
    refused '"/etc/motd" is not a directory' '{"op":"append","path":"/etc/motd/","content":"x"}'
}

@test "names of 255 bytes and paths of 4095 are accepted, and longer ones refused" {
    name=$(printf 'n%.0s' {1..255})
    patch '{"op":"text","path":"/'"$name"'","content":"long"}'
    show
    [ "$(cat "merged/$name")" = long ]
    umount merged
    rm -r "$MSB_HOME"
    refused 'longer than 255 bytes' '{"op":"text","path":"/'"$name"'n","content":""}'
    # 31 directories of 127 bytes, and a file whose name fills the path up.
    dir=$(printf 'd%.0s' {1..127})
    path=$(printf "/$dir%.0s" {1..31})
    path+=/$(printf 'f%.0s' $(seq $((4095 - ${#path} - 1))))
    [ ${#path} -eq 4095 ]
    patch '{"op":"text","path":"'"$path"'","content":"deep"}'
    show
    # A path below merged would be too long for a system call.
    [ "$(cd merged && python3 -c 'import os, sys
*dirs, name = sys.argv[1].strip("/").split("/")
for dir in dirs: os.chdir(dir)
print(open(name).read(), end="")' "$path")" = deep ]
    umount merged
    rm -r "$MSB_HOME"
    refused 'longer than 4095 bytes' '{"op":"text","path":"'"$path"'f","content":""}'
}

@test "a symlink loop is an error, wherever it is" {
    ln -s two top/one
    ln -s one top/two
    ln -s self/x top/self
    for path in /one /one/x /self /etc/../two; do
        refused 'too many' '{"op":"text","path":"'$path'","content":"","replace":true}'
        refused 'too many' '{"op":"append","path":"'$path'","content":"x"}'
    done
    # The link itself can be removed.
    patch '{"op":"remove","path":"/one"}' '{"op":"symlink","link":"/two","target":"etc","replace":true}' '{"op":"text","path":"/two/x","content":"x"}'
    show
    [ ! -L merged/one ]
    [ "$(cat merged/etc/x)" = x ]
}

@test "a parent that is a symlink in another layer leads to the merged directory" {
    mkdir -p bottom/data/store top/data
    echo below >bottom/data/store/file
    ln -s ../data/store top/link
    ln -s ../../link bottom/data/again
    patch '{"op":"append","path":"/link/file","content":"more\n"}' '{"op":"text","path":"/data/again/new","content":"new"}'
    show
    [ "$(cat merged/data/store/file)" = $'below\nmore' ]
    [ "$(cat merged/data/store/new)" = new ]
    [ -L merged/link ]
}

@test "a parent that is a file, a FIFO or a device is an error" {
    mkfifo top/pipe
    mknod top/null c 1 3
    for parent in /etc/motd /pipe /null; do
        refused "\"$parent\" is not a directory" '{"op":"text","path":"'$parent'/x","content":""}'
        refused "\"$parent\" is not a directory" '{"op":"mkdir","path":"'$parent'/x/y"}'
    done
    patch '{"op":"remove","path":"/etc/motd/x"}'
    rm -r "$MSB_HOME"
    refused 'is a FIFO' '{"op":"append","path":"/pipe","content":"x"}'
    refused 'is a device' '{"op":"append","path":"/null","content":"x"}'
}

@test "whiteouts and opaque directories of the layers are honoured" {
    mkdir -p bottom/opt/{a,b} top/opt/a
    echo hidden | tee bottom/opt/a/file bottom/opt/b/file >bottom/opt/gone
    mknod top/opt/gone c 0 0
    mknod top/opt/b c 0 0
    setfattr -n trusted.overlay.opaque -v y top/opt/a
    for path in /opt/gone /opt/a/file /opt/b/file; do
        refused 'does not exist' '{"op":"append","path":"'$path'","content":"x"}'
    done
    patch '{"op":"text","path":"/opt/gone","content":"new"}' '{"op":"text","path":"/opt/a/file","content":"new"}' '{"op":"mkdir","path":"/opt/b"}'
    show
    [ "$(cat merged/opt/gone merged/opt/a/file)" = newnew ]
    [ -z "$(ls -A merged/opt/b)" ]
}

@test "append to a hard-linked file of a layer changes only the copy of that name" {
    echo one >bottom/etc/first
    ln bottom/etc/first bottom/etc/second
    patch '{"op":"append","path":"/etc/first","content":"two\n"}'
    show
    [ "$(cat merged/etc/first)" = $'one\ntwo' ]
    [ "$(cat merged/etc/second)" = one ]
}

@test "append to a hard-linked file of the upper changes both names, as in the guest" {
    mkdir tree
    echo one >tree/first
    ln tree/first tree/second
    patch '{"op":"copy_dir","src":"tree","dst":"/tree"}' '{"op":"append","path":"/tree/first","content":"two\n"}'
    show
    [ "$(cat merged/tree/second)" = $'one\ntwo' ]
    [ "$(stat -c %h merged/tree/first)" -eq 2 ]
}

@test "a directory is copied up with its default ACL, and a file made in it gets the mode that was asked for" {
    setfacl -d -m u:7:rwx,g::r-x,o::--- bottom/var/cache
    setfacl -m u:7:r-x bottom/var/cache
    getfacl -np bottom/var/cache | tail -n +2 >acl
    patch '{"op":"text","path":"/var/cache/file","content":"x","mode":"0640"}' '{"op":"mkdir","path":"/var/cache/dir","mode":"0751"}'
    show
    getfacl -np merged/var/cache | tail -n +2 | diff acl -
    [ "$(stat -c %a merged/var/cache/file merged/var/cache/dir | xargs)" = '640 751' ]
}

@test "append keeps set-id bits and drops capabilities, as root's write in the guest would" {
    cp "$(type -P true)" bottom/usr/bin/cap
    setcap cap_net_raw+ep bottom/usr/bin/cap 2>/dev/null || setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 bottom/usr/bin/cap
    cp "$(type -P true)" bottom/usr/bin/setuid
    chmod 4755 bottom/usr/bin/setuid
    mkdir direct
    mkdir -p kernel/{upper,work}
    mount -t overlay overlay -o "lowerdir=$PWD/top:$PWD/bottom,upperdir=$PWD/kernel/upper,workdir=$PWD/kernel/work" merged
    echo x >>merged/usr/bin/cap
    echo x >>merged/usr/bin/setuid
    cp -a merged/usr/bin/. direct/
    umount merged
    patch '{"op":"append","path":"/bin/cap","content":"x\n"}' '{"op":"append","path":"/bin/setuid","content":"x\n"}'
    show
    [ -z "$(getfattr -n security.capability merged/usr/bin/cap 2>/dev/null)" ]
    [ "$(stat -c %a merged/usr/bin/setuid)" = "$(stat -c %a direct/setuid)" ]
    [ "$(getfattr -d -m security.capability direct/cap)" = '' ]
    cmp direct/cap merged/usr/bin/cap
}

@test "a sparse file stays sparse: appended to, copied, and copied with its directory" {
    mkdir tree
    truncate -s 64M bottom/etc/sparse
    echo x >>bottom/etc/sparse
    cp --sparse=always bottom/etc/sparse tree/sparse
    patch '{"op":"append","path":"/etc/sparse","content":"y"}' '{"op":"copy_file","src":"tree/sparse","dst":"/copy"}' '{"op":"copy_dir","src":"tree","dst":"/tree"}'
    upper=$(jq -r .upper.dir patched.json)
    for file in etc/sparse copy tree/sparse; do
        [ "$(stat -c %b "$upper/$file")" -lt 200 ]
        cmp -n $((64 << 20)) "$upper/$file" bottom/etc/sparse
    done
}

@test "names and symlink targets of an image need not be UTF-8" {
    bad=$(printf 'b\377d')
    mkdir "bottom/$bad" tree
    ln -s "$bad" bottom/good
    echo x >"tree/$bad"
    patch '{"op":"text","path":"/good/file","content":"found"}' '{"op":"copy_dir","src":"tree","dst":"/good"}'
    show
    [ "$(cat "merged/$bad/file")" = found ]
    [ "$(cat "merged/$bad/$bad")" = x ]
}

@test "copy_dir refuses a tree with a FIFO, a socket or a device, and nothing is visible" {
    mkdir -p tree/sub
    echo x >tree/a
    mkfifo tree/sub/pipe
    refused 'pipe": "/t/sub/pipe": is a FIFO, socket or device' '{"op":"copy_dir","src":"tree","dst":"/t"}'
    rm tree/sub/pipe
    python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("tree/sub/sock")'
    refused 'is a FIFO, socket or device' '{"op":"copy_dir","src":"tree","dst":"/t"}'
    rm tree/sub/sock
    mknod tree/sub/null c 1 3
    refused 'is a FIFO, socket or device' '{"op":"copy_dir","src":"tree","dst":"/t"}'
}

# All files of the host that the tests below try to reach.
outside() {
    # t8-user, which may run at the same time, adds a user.
    find /etc "$PWD/secret" -xdev -regextype posix-extended \
        ! -regex '/etc(/(\.pwd\.lock|fuse\.conf|sed[A-Za-z0-9]{6}|(passwd|group|shadow|gshadow|subuid|subgid)[-+.0-9a-z]*))?' \
        -printf '%p %m %U %G %s %T@ %l\n' | sort
}

@test "symlinks to the host's files, absolute or through .., stay inside the image, and nothing of the host is read or written" {
    mkdir secret
    echo secret >secret/file
    ln -s "$PWD/secret" top/abs
    ln -s "../../../../../../../../../..$PWD/secret" top/rel
    ln -s "$PWD/secret/file" top/file
    ln -s /etc/nsswitch.conf top/passwd
    ln -s /proc/self/root top/process
    outside >before
    for path in /abs/file /rel/file /file /process/etc/nsswitch.conf; do
        refused 'does not exist' '{"op":"append","path":"'$path'","content":"x"}'
    done
    patch '{"op":"text","path":"/abs/new","content":"x"}' '{"op":"text","path":"/rel/other","content":"x"}' '{"op":"text","path":"/file","content":"mine"}' \
        '{"op":"text","path":"/passwd","content":"mine"}' '{"op":"mkdir","path":"/process/etc"}' '{"op":"remove","path":"/abs"}' '{"op":"copy_dir","src":"bottom","dst":"/rel/deep"}'
    outside | diff before -
    show
    [ "$(cat merged/etc/nsswitch.conf)" = mine ]
    [ "$(cat "merged$PWD/secret/new" "merged$PWD/secret/other" "merged$PWD/secret/file")" = xxmine ]
}

@test "an upper with planted symlinks leads nowhere outside" {
    mkdir -p secret upper/etc upper.work
    echo secret >secret/file
    ln -s "$PWD/secret" upper/dir
    ln -s "$PWD/secret/file" upper/file
    ln -s "$PWD/secret" upper.work/msb.0
    ln -s "$PWD/secret" upper.work/msb.upper
    outside >before
    msb-patch -r image.json --upper "$PWD/upper" -f - >patched.json <<'END'
{"op":"text","path":"/dir/x","content":"x"}
{"op":"text","path":"/file","content":"x","replace":true}
{"op":"remove","path":"/dir"}
{"op":"mkdir","path":"/etc/y"}
END
    outside | diff before -
    [ "$(cat "upper$PWD/secret/x")" = x ]
    rm -r upper
    ln -s secret upper
    run --separate-stderr msb-patch -r image.json --upper "$PWD/upper" -f - <<<'{"op":"text","path":"/x","content":"x"}'
    outside | diff before - || [ "$status" -eq 0 ]
}

@test "a directory that another process keeps swapping for a symlink leads nowhere outside" {
    mkdir secret
    echo secret >secret/file
    patch '{"op":"text","path":"/swap/dir/file","content":"x"}'
    upper=$(jq -r .upper.dir patched.json)
    for i in $(seq 40); do
        printf '{"op":"text","path":"/swap/dir/file","content":"%s","replace":true}\n{"op":"append","path":"/swap/dir/file","content":"x"}\n' "$i"
        printf '{"op":"mkdir","path":"/swap/dir/sub","mode":"0777"}\n{"op":"remove","path":"/swap/dir/sub"}\n'
    done >ops.jsonl
    outside >before
    # It attacks the upper that is being made, and the layers.
    mkdir -p bottom/swap/dir
    python3 - "$PWD/secret" "$(dirname "$upper")/work/msb.upper/swap" "$PWD/bottom/swap" "$upper/swap" <<'END' &
import ctypes, os, sys
libc = ctypes.CDLL(None)
secret, places = sys.argv[1], sys.argv[2:]
spare = secret + ".link"
os.symlink(secret, spare)
swaps = 0
while True:
    for place in places:
        # RENAME_EXCHANGE, there and back.
        for _ in range(2):
            if libc.renameat2(-100, (place + "/dir").encode(), -100, spare.encode(), 2) == 0:
                swaps += 1
    if swaps and swaps % 500 < 3:
        # The kill may come at any time.
        with open(secret + ".aside", "w") as count:
            count.write(str(swaps))
        os.replace(secret + ".aside", secret + ".swaps")
END
    racer=$!
    # As often as it takes until there were enough swaps.
    for ((runs = 0; runs < 100 || (runs < 5000 && $(cat secret.swaps 2>/dev/null || echo 0) <= 2000); runs++)); do
        msb-patch -r patched.json -f ops.jsonl >/dev/null 2>&1 || true
    done
    kill "$racer"
    wait "$racer" || true
    rm -rf secret.link secret.aside
    echo "swaps: $(cat secret.swaps)"
    [ "$(cat secret.swaps)" -gt 2000 ]
    outside | diff before -
}
