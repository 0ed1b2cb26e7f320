#!/usr/bin/env bats
# msb-patch without root: users can patch their own directories, and everything else is an error.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats sets variables; inner shells expand theirs
bats_require_minimum_version 1.5.0

setup() {
    source "$BATS_TEST_DIRNAME/patch.bash"
    patch_setup
    chmod 0755 "$BATS_RUN_TMPDIR" "$BATS_FILE_TMPDIR" "$BATS_TEST_TMPDIR" "$BATS_TEST_TMPDIR"/.. "$BATS_TEST_TMPDIR"/../..
    mkdir -p own/root/{etc/conf.d,bin} own/tools
    # Where a user can run it from.
    cp "$(type -P msb-patch)" own/tools/
    echo one >own/root/etc/one
    echo old >own/root/etc/conf.d/old
    mkdir -p own/root/lib/deep own/root/opt
    echo lib >own/root/lib/deep/file
    echo moved >own/root/opt/file
    chmod 0600 own/root/etc/one
    jq -nc --arg root "$PWD/own/root" '{msb: 1, rootfs: {kind: "dir", lower: [$root]}}' >own/own.json
    cp image.json own/
    echo host >own/src
    chown -R 65534:65534 own
    cd own || return
}

# as_nobody COMMAND…
as_nobody() {
    setpriv --reuid 65534 --regid 65534 --clear-groups env PATH="$PWD/tools:$PATH" MSB_HOME="$PWD/home" "$@"
}

@test "a user without root patches a directory of their own, and the kernel shows the result in the user's namespace" {
    cat >ops.jsonl <<'END'
{"op":"text","path":"/etc/motd","content":"hi"}
{"op":"append","path":"/etc/one","content":"more\n"}
{"op":"remove","path":"/bin"}
{"op":"remove","path":"/etc/conf.d"}
{"op":"mkdir","path":"/etc/conf.d","mode":"0711","uid":65534}
{"op":"copy_file","src":"src","dst":"/srv/src"}
{"op":"copy_dir","src":"tools","dst":"/srv/tools"}
{"op":"rename","from":"/lib","to":"/usr/lib"}
{"op":"rename","from":"/opt/file","to":"/opt/moved"}
{"op":"hardlink","target":"/opt/moved","link":"/opt/again"}
{"op":"chmod","path":"/opt","mode":"0750"}
{"op":"chown","path":"/opt","uid":65534,"gid":65534,"recursive":true}
{"op":"touch","path":"/opt/moved","mtime":5}
{"op":"edit","path":"/opt/moved","line":"moved","with":"edited"}
{"op":"xattr","path":"/opt","name":"user.note","value":"x"}
END
    as_nobody msb-patch -r own.json -f ops.jsonl >patched.json
    upper=$(jq -r .upper.dir patched.json)
    [ "$(find "$upper" -printf '%U:%G\n' | sort -u)" = 65534:65534 ]
    mkdir merged
    as_nobody unshare -rm sh -euc '
        mount -t overlay overlay -o "userxattr,lowerdir=$1/root,upperdir=$2,workdir=$3" merged
        [ "$(cat merged/etc/motd)" = hi ]
        [ "$(cat merged/etc/one)" = "one
more" ]
        [ "$(stat -c %a merged/etc/one)" = 600 ]
        [ ! -e merged/bin ]
        [ -z "$(ls -A merged/etc/conf.d)" ]
        [ "$(stat -c %a merged/etc/conf.d)" = 711 ]
        [ ! -e merged/lib ]
        [ "$(cat merged/usr/lib/deep/file)" = lib ]
        [ ! -e merged/opt/file ]
        [ "$(cat merged/opt/again)" = moved ]
        [ "$(cat merged/opt/moved)" = edited ]
        [ "$(stat -c %a merged/opt)" = 750 ]
        [ "$(getfattr --only-values -n user.note merged/opt)" = x ]
        cmp src merged/srv/src
        [ -x merged/srv/tools/msb-patch ]' - "$PWD" "$upper" "$(jq -r .upper.work patched.json)"
    # A second run continues it, and finds the directory still empty.
    as_nobody msb-patch -n -r patched.json -f - <<<'{"op":"append","path":"/etc/conf.d/old","content":"x"}' >said || true
    jq -e '.error | contains("does not exist")' said
    # msb-mount, run by root, shows the same.
    mkdir mounted
    msb-mount -r patched.json --ro mounted >/dev/null
    [ -z "$(ls -A mounted/etc/conf.d)" ]
    [ ! -e mounted/bin ]
    msb-mount -u mounted
}

@test "what needs root is an error that says so, and nothing is written" {
    for try in '{"op":"text","path":"/x","content":"","uid":0}|uid 0: only root may give files to other users (run it with sudo)' \
        '{"op":"mkdir","path":"/x","gid":7}|gid 7: this user is not in that group (run it with sudo)' \
        '{"op":"chown","path":"/bin","uid":0}|uid 0: only root may give files to other users (run it with sudo)' \
        '{"op":"copy_dir","src":"tools","dst":"/x","uid":0}|uid 0: only root may give files to other users (run it with sudo)'; do
        run --separate-stderr as_nobody msb-patch -r own.json -f - <<<"${try%%|*}"
        [ "$status" -eq 1 ]
        [[ $stderr == "msb-patch: op 1: "*"${try#*|}" ]] || { echo "$stderr"; return 1; }
        [ -z "$(ls -A home/sandboxes)" ]
    done
    run --separate-stderr as_nobody msb-patch -r own.json -f - <<<'{"op":"capability","path":"/opt/file","caps":"cap_kill=ep"}'
    [ "$status" -eq 1 ]
    [[ $stderr == *'root is needed for files of other users (run it with sudo): capabilities: Operation not permitted'* ]] || { echo "$stderr"; return 1; }
    # Somebody else's file in the user's directory.
    echo theirs >root/etc/theirs
    chmod 0644 root/etc/theirs
    run --separate-stderr as_nobody msb-patch -r own.json -f - <<<'{"op":"append","path":"/etc/theirs","content":"x"}'
    [ "$status" -eq 1 ]
    [[ $stderr == *'root is needed for files of other users (run it with sudo): Operation not permitted'* ]] || { echo "$stderr"; return 1; }
    [ -z "$(ls -A home/sandboxes)" ]
    # An image, and somebody else's directory.
    run --separate-stderr as_nobody msb-patch -r image.json -f - <<<'{"op":"mkdir","path":"/x"}'
    [ "$status" -eq 1 ]
    [[ $stderr == 'msb-patch: without root, a user namespace is needed: nobody has no IDs in /etc/subuid and /etc/subgid'* ]]
    # The user's own directory, with a group that the user is not in.
    chgrp 42 root
    run --separate-stderr as_nobody msb-patch -r own.json -f - <<<'{"op":"mkdir","path":"/x"}'
    [ "$status" -eq 1 ]
    [[ $stderr == *'root is needed for files of other users'*'/upper": owner and mode of the layers'*'Operation not permitted'* ]] || { echo "$stderr"; return 1; }
    chown 0 root
    run --separate-stderr as_nobody msb-patch -r own.json -f - <<<'{"op":"mkdir","path":"/x"}'
    [ "$status" -eq 1 ]
    [[ $stderr == 'msb-patch: without root, a user namespace is needed: '* ]]
    [ -z "$(ls -A home/sandboxes)" ]
}
