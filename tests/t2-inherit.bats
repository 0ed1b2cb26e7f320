#!/usr/bin/env bats
# msb-patch: what a new file inherits from its directory, from the file that it replaces, and from its source.

# shellcheck source-path=SCRIPTDIR disable=SC2154 # bats sets variables
bats_require_minimum_version 1.5.0

setup() {
    source "$BATS_TEST_DIRNAME/patch.bash"
    patch_setup
}

teardown() {
    patch_teardown
    for dir in mine empty; do
        ! mountpoint -q "$BATS_TEST_TMPDIR/$dir" || umount "$BATS_TEST_TMPDIR/$dir"
    done
}

# acls DIR NAME…: the ACLs of each.
acls() (
    cd "$1" && shift && getfacl -np "$@"
)

@test "a new file in a directory with a default ACL inherits it, as one that the guest makes does; a given mode is set" {
    setfacl -d -m u:7:rwx,g::r-x,o::--- bottom/var/cache
    echo x >bottom/var/cache/gone
    mkdir bottom/var/cache/gone.d
    # As a guest would make them.
    mkdir -p kernel/{upper,work}
    mount -t overlay overlay -o "lowerdir=$PWD/top:$PWD/bottom,upperdir=$PWD/kernel/upper,workdir=$PWD/kernel/work" merged
    (cd merged/var/cache && rm -r gone gone.d && python3 -c 'import os
os.umask(0)
for name, mode in ("file", 0o644), ("gone", 0o644), ("private", 0o600):
    os.close(os.open(name, os.O_CREAT | os.O_WRONLY, mode))
for name, mode in ("dir", 0o755), ("gone.d", 0o755):
    os.mkdir(name, mode)
os.chmod("private", 0o604)')
    acls merged/var/cache file gone private dir gone.d >expected
    umount merged
    patch '{"op":"text","path":"/var/cache/file","content":""}' '{"op":"remove","path":"/var/cache/gone"}' '{"op":"text","path":"/var/cache/gone","content":""}' \
        '{"op":"text","path":"/var/cache/private","content":"","mode":"0604"}' '{"op":"mkdir","path":"/var/cache/dir"}' \
        '{"op":"remove","path":"/var/cache/gone.d"}' '{"op":"mkdir","path":"/var/cache/gone.d"}'
    show
    acls merged/var/cache file gone private dir gone.d | diff expected -
    grep -q 'user:7:rwx' expected
}

@test "a replacement has the ACL of the file it replaces, and a copy of copy_dir that of its source, whatever the default ACL" {
    setfacl -d -m u:7:rwx bottom/var/cache
    echo x >bottom/var/cache/listed
    echo x >bottom/var/cache/plain
    setfacl -b bottom/var/cache/plain
    setfacl -b -m u:9:rw- bottom/var/cache/listed
    mkdir -p tree/dir
    echo x >tree/file
    echo x >tree/dir/listed
    setfacl -m u:5:r-- tree/dir/listed tree/dir
    acls bottom/var/cache listed plain >old
    acls tree file dir dir/listed >copied
    patch '{"op":"text","path":"/var/cache/listed","content":"new","replace":true}' '{"op":"text","path":"/var/cache/plain","content":"new","replace":true}' \
        '{"op":"copy_dir","src":"tree","dst":"/var/cache"}'
    show
    acls merged/var/cache listed plain | diff old -
    acls merged/var/cache file dir dir/listed | diff copied -
}

@test "ACLs and set-group-ID bits of the host's directories do not leak into an upper" {
    mkdir "$MSB_HOME" mine.d
    for dir in "$MSB_HOME" mine.d; do
        chgrp 9 "$dir"
        chmod g+s "$dir"
        setfacl -d -m u:7:rwx "$dir"
    done
    for upper in '' mine.d/upper; do
        msb-patch -r image.json ${upper:+--upper "$upper"} -f - >patched.json <<'END'
{"op":"text","path":"/etc/new","content":"x"}
{"op":"append","path":"/etc/hosts","content":"x"}
{"op":"text","path":"/etc/motd","content":"x","replace":true}
{"op":"mkdir","path":"/new/dir"}
{"op":"symlink","link":"/new/link","target":"x"}
{"op":"copy_dir","src":"bottom/usr","dst":"/copy"}
END
        msb-patch -r patched.json -f - >again.json <<<'{"op":"mkdir","path":"/again"}'
        show
        [ -z "$(find merged -gid 9)" ]
        [ -z "$(getfacl -Rnsp merged)" ]
        umount merged
    done
}

@test "a new file in a set-group-ID directory belongs to the group that the operation asks for, root's by default" {
    chown 0:9 bottom/var/cache
    chmod 2775 bottom/var/cache
    patch '{"op":"text","path":"/var/cache/file","content":"x"}' '{"op":"mkdir","path":"/var/cache/dir"}' '{"op":"text","path":"/var/cache/own","content":"x","gid":4}'
    show
    [ "$(stat -c '%a %u:%g' merged/var/cache/{file,dir,own} | xargs)" = '644 0:0 755 0:0 644 0:4' ]
    [ "$(stat -c '%a %u:%g' merged/var/cache)" = '2775 0:9' ]
}

@test "replacing a file drops its capabilities, and copy_dir copies those of its source" {
    mkdir tree
    for file in bottom/usr/bin/cap tree/cap; do
        cp "$(type -P true)" "$file"
        setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 "$file"
    done
    setfattr -n user.note -v kept bottom/usr/bin/cap
    patch '{"op":"text","path":"/bin/cap","content":"x","replace":true}' '{"op":"copy_dir","src":"tree","dst":"/srv"}' '{"op":"copy_file","src":"tree/cap","dst":"/alone"}'
    show
    [ "$(getfattr -dm - merged/usr/bin/cap | grep -c =)" -eq 1 ]
    [ "$(getfattr --only-values -n user.note merged/usr/bin/cap)" = kept ]
    cmp <(getfattr -n security.capability -e hex --only-values merged/srv/cap) <(getfattr -n security.capability -e hex --only-values tree/cap)
    [ -z "$(getfattr -dm security merged/alone)" ]
}

@test "copy_dir hard-links nothing to a layer's file, even if it is the file that is copied" {
    mkdir -p bottom/srv tree
    echo same >bottom/srv/first
    chmod 0644 bottom/srv/first
    cp -a bottom/srv/first tree/first
    ln tree/first tree/second
    base >before
    patch '{"op":"copy_dir","src":"tree","dst":"/srv","replace":true}' '{"op":"append","path":"/srv/second","content":"more\n"}'
    base | diff before -
    [ "$(stat -c %h bottom/srv/first)" -eq 1 ]
    show
    [ "$(cat merged/srv/first)" = $'same\nmore' ]
    [ "$(cat merged/srv/second)" = $'same\nmore' ]
    [ "$(stat -c %h merged/srv/first)" -eq 2 ]
}

@test "copy_dir hard-links nothing to a file of the old upper, which a failure leaves in place" {
    mkdir tree
    echo same >tree/first
    patch '{"op":"copy_dir","src":"tree","dst":"/srv"}'
    ln tree/first tree/second
    upper=$(jq -r .upper.dir patched.json)
    msb-patch -r patched.json -f - >again.json <<<'{"op":"copy_dir","src":"tree","dst":"/srv","replace":true} {"op":"append","path":"/srv/second","content":"more\n"}'
    [ "$(cat "$upper/srv/first")" = $'same\nmore' ]
    [ "$(stat -c %h "$upper/srv/first")" -eq 2 ]
}

@test "hard links in a continued upper stay hard links" {
    mkdir tree
    echo one >tree/first
    ln tree/first tree/second
    patch '{"op":"copy_dir","src":"tree","dst":"/srv"}'
    cp patched.json image.json
    patch '{"op":"append","path":"/srv/second","content":"two\n"}'
    show
    [ "$(cat merged/srv/first)" = $'one\ntwo' ]
    [ "$(stat -c %h merged/srv/first)" -eq 2 ]
    umount merged
    run patch '{"op":"append","path":"/srv/first","content":"three\n"}' '{"op":"remove","path":"/"}'
    [ "$status" -eq 1 ]
    [ "$(cat "$(jq -r .upper.dir image.json)/srv/second")" = $'one\ntwo' ]
}

@test "an upper that is a mount point is refused and unchanged; an empty mount point can hold a new one" {
    mkdir mine empty
    mount -t tmpfs none empty
    msb-patch -r image.json --upper empty -f - >patched.json <<<'{"op":"mkdir","path":"/x"}'
    [ -d empty/upper/x ]
    mount -t tmpfs none mine
    echo old >mine/file
    run --separate-stderr msb-patch -r image.json --upper "$PWD/mine" -f - <<<'{"op":"mkdir","path":"/x"}'
    [ "$status" -eq 1 ]
    [[ $stderr == *"/mine\" and its work directory "*"are on different file systems (name a directory that is not a mount point)" ]] || { echo "$stderr"; return 1; }
    [ "$(ls -A mine)" = file ]
    [ ! -e mine.work ]
}

@test "scripts are published with the upper or not at all" {
    for upper in '' mine; do
        run msb-patch -r image.json ${upper:+--upper "$upper"} -f - <<<'{"op":"script","name":"setup","content":"x"} {"op":"text","path":"/a","content":"x"} {"op":"append","path":"/none","content":"x"}'
        [ "$status" -eq 1 ]
        [ -z "$(find "$MSB_HOME" -mindepth 2)" ]
        [ ! -e mine ]
    done
    msb-patch -r image.json --upper mine -f - >patched.json <<<'{"op":"script","name":"setup","content":"x"} {"op":"text","path":"/a","content":"x"}'
    [ "$(cat "$(jq -r .scripts.setup patched.json)" mine/upper/a)" = xx ]
    # With --upper, all that msb-patch makes is in that directory.
    [ -z "$(sandboxes)" ]
    # Another upper that fails leaves the script of the first.
    run msb-patch -r patched.json -f - <<<'{"op":"script","name":"more","content":"x"} {"op":"append","path":"/none","content":"x"}'
    [ "$status" -eq 1 ]
    [ "$(cat "$(jq -r .scripts.setup patched.json)")" = x ]
    [ -z "$(sandboxes)" ]
}
