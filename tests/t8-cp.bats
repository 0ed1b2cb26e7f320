#!/usr/bin/env bats
# Copies between the host and a guest. The guest has no tar: the agent reads and writes its files.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; inner shells expand theirs
bats_require_minimum_version 1.5.0

setup_file() {
    source "$BATS_TEST_DIRNAME/vm.bash"
    BATS_TEST_TMPDIR=$BATS_FILE_TMPDIR vm_setup
    rm "$vm_root/bin/tar"
    jq -c 'del(.mount)' "$vm_record" >"$BATS_FILE_TMPDIR/block.json"
    cd "$BATS_FILE_TMPDIR" || return
    msb-boot -r block.json --name worker >worker.json
}

teardown_file() {
    source "$BATS_TEST_DIRNAME/vm.bash"
    BATS_TEST_TMPDIR=$BATS_FILE_TMPDIR XDG_RUNTIME_DIR=$BATS_FILE_TMPDIR/run
    vm_teardown
}

setup() {
    release=$(cd "$BATS_TEST_DIRNAME/.." && pwd)/target/release
    PATH=$release:$PATH:/usr/sbin
    export MSB_RUN=$BATS_FILE_TMPDIR/run/msb MSB_HOME=$BATS_FILE_TMPDIR/home
    unset MSB_RECORD
    cd "$BATS_TEST_TMPDIR" || return
}

guest() {
    msb-exec -n worker -- sh -c "$1"
}

# listing DIR: names, types, modes, owners, times, links and content of a tree.
listing() {
    (cd "$1" && find . -mindepth 1 ! -type d -printf '%P %y %m %T@ %n %l\n' -o -mindepth 1 -printf '%P %y %m %T@\n' | sed 's/\.[0-9]* / /' | sort
        find . -type f -exec sha256sum {} + | sort)
}

@test "a tree goes into the guest and comes back the same" {
    mkdir -p src/sub/deep src/empty
    echo one >src/sub/one
    head -c 3000000 /dev/urandom >src/big
    truncate -s 1G src/sparse
    echo end >>src/sparse
    ln src/big src/sub/hard
    ln -s ../nowhere src/sub/link
    mkfifo src/fifo
    chmod 2750 src/sub
    chmod 4711 src/sub/one
    setfattr -n user.note -v kept src/sub/one
    touch -d '2001-02-03 04:05:06.789' src/sub/one src/empty
    chown 1234:5678 src/empty
    msb-cp -a src worker:/srv-new
    # The holes are holes there, too: the guest's disk is smaller than all of it.
    [ "$(guest 'du -m /srv-new/sparse | cut -f 1')" -lt 10 ]
    [ "$(guest 'stat -c "%u:%g %a" /srv-new/empty /srv-new/sub/one')" = $'1234:5678 755\n0:0 4711' ]
    [ "$(guest 'stat -c %i /srv-new/big')" = "$(guest 'stat -c %i /srv-new/sub/hard')" ]
    msb-cp -a worker:/srv-new back
    diff <(listing src) <(listing back)
    [ "$(getfattr -n user.note --only-values back/sub/one)" = kept ]
    [ "$(du -m back/sparse | cut -f 1)" -lt 10 ]
    [ "$(stat -c %u:%g back/empty)" = 1234:5678 ]
    # Without -a, owners are the receiver's, and a guest gives no privileges.
    guest 'mknod /srv-new/null c 1 3'
    run --separate-stderr msb-cp worker:srv-new/. plain
    [ "$status" -eq 0 ]
    [ "$stderr" = 'msb-cp: 1 device nodes of the guest were left out' ]
    [ "$(stat -c '%u:%g' plain/empty)" = "$(id -u):$(id -g)" ]
    [ "$(stat -c %a plain/sub/one)" = 711 ]
    [ ! -e plain/null ]
}

@test "targets, symlinks and errors are as with docker cp" {
    mkdir -p d/sub
    echo f >f
    echo in >d/sub/in
    ln -s f l
    guest 'mkdir /t /t/real; ln -s real /t/link; echo old >/t/old; ln -s /proc/1/root/t/old /t/magic'
    msb-cp f worker:/t
    msb-cp f worker:/t/named
    msb-cp f worker:t/old
    msb-cp f worker:/t/link/
    msb-cp d worker:/t
    msb-cp d/. worker:/t/real
    msb-cp l worker:/t/l
    msb-cp -L l worker:/t/followed
    [ "$(guest 'cd /t; cat f named old real/f d/sub/in real/sub/in followed; readlink l')" = $'f\nf\nf\nf\nin\nin\nf\nf' ]
    mkdir out
    msb-cp worker:/t/link out
    msb-cp -L worker:/t/link out/tree
    [ "$(readlink out/link)" = real ]
    [ "$(cat out/tree/sub/in)" = in ]
    msb-cp worker:/proc/version out/version
    [ "$(cat out/version)" = "$(guest 'cat /proc/version')" ]
    fails() {
        run --separate-stderr msb-cp "${@:2}"
        [ "$status" -ne 0 ]
        [[ $stderr == *"$1"* ]] || { echo "$stderr"; return 1; }
    }
    fails 'worker: "/missing": No such file' worker:/missing out
    fails 'the directory "/no"' f worker:/no/where
    fails 'no such directory' f worker:/nowhere/
    fails 'a file is there, and the source is a directory' d worker:/t/old
    fails 'a file is there, and the source is a directory' worker:/t/d f
    fails '"missing": No such file' missing worker:/t
    fails 'both sides are in VMs (use "msb-cp a:/x - | msb-cp - b:/y")' a:/x b:/y
    fails 'no side is in a VM' f g
    fails 'no VM of that name is running' f other:/t
}

@test "archives on stdin and stdout, with paths in any order and none that lead out" {
    mkdir -p a/x/y
    echo 1 >a/x/one
    echo 2 >a/x/y/two
    ln a/x/one a/hard
    truncate -s 300M a/holes
    tar -C a --sort=name -c x/y/two ./x/one hard holes | msb-cp - worker:/unpacked
    [ "$(guest 'cd /unpacked; cat x/one x/y/two hard; stat -c %s holes; stat -c %h hard')" = $'1\n2\n1\n314572800\n2' ]
    msb-cp worker:/unpacked - | tar -t | sort >names
    grep -qx 'unpacked/x/y/two' names
    msb-cp worker:/unpacked/. - >out.tar
    mkdir out
    tar -C out -xf out.tar
    diff -r a/x out/x
    [ out/hard -ef out/x/one ]
    msb-cp worker:/unpacked - | msb-cp - worker:/again
    [ "$(guest 'cd /again/unpacked; cat hard; stat -c %h hard')" = $'1\n2' ]
    run --separate-stderr msb-cp - worker:/unpacked < <(tar -cP --transform 's|one|../../outside|' a/x/one)
    [ "$status" -ne 0 ]
    [[ $stderr == *'it leads out of it'* ]]
    run --separate-stderr msb-cp - worker:/unpacked <names
    [ "$status" -ne 0 ]
}

@test "a guest that swaps directories for symlinks during a copy leads it nowhere else" {
    mkdir target
    echo canary >canary
    before=$(stat -c '%i %s %Y' canary)
    guest "mkdir -p /race/d; for n in \$(seq 200); do echo \$n >/race/d/\$n; done; mkdir /race/real; echo x >/race/real/canary
        (while [ ! -e /stop ]; do mv /race/d /race/e; ln -s $BATS_TEST_TMPDIR /race/d; rm /race/d; mv /race/e /race/d; done) >/dev/null 2>&1 &"
    for n in 1 2 3 4 5; do msb-cp worker:/race target 2>/dev/null || true; done
    for n in 1 2 3 4 5; do msb-cp -a target/. worker:/race 2>/dev/null || true; done
    guest 'touch /stop'
    [ "$(stat -c '%i %s %Y' canary)" = "$before" ]
    [ "$(find . -newer canary ! -path './target*' ! -path . | wc -l)" -eq 0 ]
}

@test "a copy that is interrupted leaves the old file and no half one" {
    echo old >kept
    msb-cp kept worker:/kept
    guest 'head -c 50000000 /dev/zero | tr "\0" x >/half'
    # The archive never ends, so the copy waits in the middle of the file.
    exec 8> >(msb-cp - worker:/ 2>err)
    copier=$!
    head -c 400000 /dev/urandom >kept
    tar -c kept | head -c 300000 >&8
    mkdir got
    msb-cp worker:/half got/half &
    getter=$!
    until [ -n "$(ls -l "/proc/$getter/fd" 2>/dev/null | grep -E 'socket')" ]; do kill -0 "$getter" 2>/dev/null || break; done
    kill -KILL "$getter" 2>/dev/null || true
    wait "$getter" || true
    [ -z "$(ls -A got)" ] || [ "$(stat -c %s got/half)" = 50000000 ]
    kill -KILL "$copier"
    exec 8>&-
    [ "$(guest 'cat /kept')" = old ]
    # The agent notices that the host is gone.
    until [ "$(guest 'ls -A / | grep -c msb-cp')" = 0 ]; do sleep 0.1; done
    msb-cp kept worker:/kept
    [ "$(guest 'sha256sum </kept')" = "$(sha256sum <kept)" ]
}
