#!/usr/bin/env bats
# Which record a tool reads: -r, a pipe, $MSB_RECORD, a name; and where it writes the one that it prints.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; inner shells expand theirs
bats_require_minimum_version 1.5.0

setup() {
    source "$BATS_TEST_DIRNAME/vm.bash"
    vm_setup
    # Two distinguishable roots.
    for name in a b; do
        mkdir -p "roots/$name"
        echo "$name" >"roots/$name/name"
        jq -nc --arg root "$PWD/roots/$name" '{msb: 1, rootfs: {kind: "dir", lower: [$root]}}' >"$name.json"
    done
}

teardown() {
    local mounted
    for mounted in m m1 m2 m3; do
        if mountpoint -q "$BATS_TEST_TMPDIR/$mounted"; then umount -l "$BATS_TEST_TMPDIR/$mounted"; fi
    done
    vm_teardown
}

# lower: prints the root of a record on stdin.
lower() { jq -r '.rootfs.lower[0] | sub(".*/"; "")'; }

op='{"op":"text","path":"/new","content":"x"}'

@test "a stage prefers -r, then a record in a pipe, a socket or a file, then MSB_RECORD" {
    export MSB_RECORD=$PWD/b.json
    [ "$(msb-patch -f /dev/null <a.json | lower)" = a ]
    [ "$(cat a.json | msb-patch -f /dev/null | lower)" = a ]
    [ "$(cat a.json | msb-patch -r b.json -f /dev/null | lower)" = b ]
    [ "$(msb-patch -r - -f /dev/null <a.json | lower)" = a ]
    [ "$(msb-patch -f /dev/null </dev/null | lower)" = b ]
    [ "$(msb-patch -f /dev/null <&- | lower)" = b ]
    [ "$(cat a.json | msb-mount --ro ./m | lower)" = a ]
    [ "$(cat m/name)" = a ]
    msb-mount -u ./m
    msb-mount --ro ./m </dev/null >mounted.json
    [ "$(cat m/name)" = b ]
    msb-mount -u ./m
    python3 -c '
import socket, subprocess, sys
ours, theirs = socket.socketpair()
ours.sendall(open("a.json", "rb").read())
ours.close()
sys.exit(subprocess.run(["msb-patch", "-f", "/dev/null"], stdin=theirs).returncode)' >out
    [ "$(lower <out)" = a ]
    # A wrong value of the variable does not matter: it is not used.
    MSB_RECORD=/nonexistent
    [ "$(msb-patch -f /dev/null <a.json | lower)" = a ]
    run --separate-stderr msb-patch -f /dev/null </dev/null
    [ "$status" -eq 1 ]
    [[ $stderr == 'msb-patch: $MSB_RECORD: record "/nonexistent": No such file'* ]]
}

@test "an empty pipe causes a message if MSB_RECORD is taken instead, and is an error otherwise" {
    run --separate-stderr bash -c ': | msb-patch -f /dev/null'
    [ "$status" -eq 1 ]
    [ "$stderr" = 'msb-patch: no record on stdin (the previous stage failed, or nothing is piped in: use -r FILE)' ]
    run --separate-stderr bash -c ': | MSB_RECORD=b.json msb-patch -f /dev/null'
    [ "$status" -eq 0 ]
    [ "$stderr" = 'msb-patch: nothing came on stdin: taking the record of $MSB_RECORD, "b.json"' ]
    [ "$(lower <<<"$output")" = b ]
    # A tool that failed leaves an empty file.
    : >empty.json
    for call in '-r empty.json' '-r - ' ''; do
        run --separate-stderr bash -c "MSB_RECORD=b.json msb-patch $call -f /dev/null <empty.json"
        [ "$status" -eq 1 ]
        [[ $stderr == *'it is empty: the tool that wrote it failed' ]]
    done
    run --separate-stderr bash -c 'MSB_RECORD=empty.json msb-mount --ro m </dev/null'
    [ "$stderr" = 'msb-mount: $MSB_RECORD: record "empty.json": it is empty: the tool that wrote it failed' ]
    run --separate-stderr msb-stop -r empty.json
    [ "$status" -eq 1 ]
    [[ $stderr == *'it is empty'* ]]
}

@test "operations alone on stdin apply to MSB_RECORD, and those after a record apply to that record" {
    export MSB_RECORD=$PWD/b.json
    [ "$({ cat a.json; echo "$op"; } | msb-patch | tee out | lower)" = a ]
    [ "$(cat "$(jq -r .upper.dir out)/new")" = x ]
    for rest in '' '-f -'; do
        # shellcheck disable=SC2086 # flags
        [ "$(printf '%s\n%s' "$op" "${op/new/two}" | msb-patch $rest | tee out | lower)" = b ]
        [ "$(cat "$(jq -r .upper.dir out)"/{new,two})" = xx ]
    done
    [ "$(msb-patch -f <(echo "$op") <a.json | lower)" = a ]
    [ "$(echo "$op" | msb-patch -r a.json | lower)" = a ]
    # An error names its own line.
    run --separate-stderr msb-patch <<<"$op"$'\n{"op":"none"}'
    [[ $stderr == 'msb-patch: op 2, line 2: '* ]]
    unset MSB_RECORD
    run --separate-stderr msb-patch <<<"$op"
    [ "$status" -eq 1 ]
    [[ $stderr == *'an operation, and no record before it'* ]]
}

@test "a record may be pretty-printed everywhere, and the input after it is left unread" {
    [ "$({ jq . a.json; echo "$op"; } | msb-patch | tee out | lower)" = a ]
    [ -e "$(jq -r .upper.dir out)/new" ]
    [ "$({ jq . a.json | tr -d '\n'; printf %s "$op"; } | msb-patch | lower)" = a ]
    jq . a.json >pretty.json
    [ "$(msb-patch -r pretty.json -f /dev/null | lower)" = a ]
    [ "$(jq . a.json | msb-patch -f /dev/null | jq . | msb-mount --ro ./m | jq . | lower)" = a ]
    [ "$({ printf '\xef\xbb\xbf'; cat a.json; } | msb-patch -f /dev/null | lower)" = a ]
}

@test "-o FILE has the record after success, and its old content after a failure" {
    msb-patch -r a.json -f <(echo "$op") -o patched.json >out
    [ ! -s out ]
    [ "$(lower <patched.json)" = a ]
    cp patched.json before.json
    run msb-patch -r patched.json -f <(echo '{"op":"none"}') -o patched.json
    [ "$status" -eq 1 ]
    cmp patched.json before.json
    [ "$(ls -A | grep -c '^\.')" = 0 ]
    ln -s patched.json link.json
    msb-mount -r patched.json -o link.json ./m
    [ -L link.json ]
    jq -e .mount patched.json
    # The upper is in use, and the directory that was made for the second mount is removed.
    jq -c 'del(.mount)' patched.json >again.json
    run msb-mount -r again.json ./m1
    [ "$status" -eq 1 ]
    [ ! -e m1 ]
    run --separate-stderr msb-boot -r b.json -o none/vm.json
    [ "$status" -eq 1 ]
    [[ $stderr == 'msb-boot: output "'*'/none/vm.json": no directory'* ]]
    vm_assert_nothing
    run msb-boot -r "$vm_record" -o vm.json --root disk
    [ "$status" -eq 1 ]
    [ ! -e vm.json ]
    msb-pull -q ./roots/a -o /dev/stdout | lower
}

@test "on a terminal a tool prints one line for a person, with --json the record, and with -q nothing" {
    on_terminal() { script -qec "$*" /dev/null </dev/null | tr -d '\r'; }
    [ "$(on_terminal msb-pull ./roots/a)" = "$PWD/roots/a: a directory" ]
    [ "$(on_terminal msb-pull --json ./roots/a | lower)" = a ]
    run -0 on_terminal msb-pull -q ./roots/a
    [ -z "$output" ]
    [[ $(on_terminal msb-patch -r a.json -f /dev/null) == */upper:\ patched ]]
    [ "$(on_terminal msb-mount --ro -r a.json ./m)" = "$PWD/m: mounted read-only; to unmount it: msb-mount -u $PWD/m" ]
    run on_terminal msb-boot -q -r "$vm_record" --name worker
    [ -z "$output" ]
    msb-stop -q worker >out
    jq -e .msb out
    run on_terminal msb-boot -r "$vm_record" --name worker -o vm.json
    [[ $output == 'worker: up in '*' s; try: msb-exec worker' ]]
    jq -e '.vm.name == "worker"' vm.json
    [ "$(on_terminal msb-stop worker)" = 'msb-stop: worker: stopped' ]
    # In the foreground a person sees the console, with the end of the VM last.
    on_terminal env --default-signal=INT msb-boot -f -r "$vm_record" --name front >front.out &
    vm_await [ -e "$MSB_RUN/front/record.json" ]
    msb-exec front -- sh -c 'printf "seen \033[1mhere\033[0m\n" >/dev/console; poweroff -f' || true
    wait $!
    grep -q '^front: up in ' front.out
    grep -qx 'seen here' front.out
    [[ $(tail -n 1 front.out) == 'msb-boot: front: the guest powered off' ]]
}

@test "root without CAP_SYS_ADMIN, as in a container, and other users get an error that says what is missing" {
    lacking() { setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin "$@"; }
    for try in 'msb-boot -r a.json|cannot confine a VM' 'msb-mount -r a.json --ro ./m|cannot mount'; do
        # shellcheck disable=SC2086 # words
        run --separate-stderr lacking ${try%|*}
        [ "$status" -eq 1 ]
        [[ $stderr == "${try%% *}: ${try#*|}: the capability CAP_SYS_ADMIN is missing (in a container: docker run --cap-add SYS_ADMIN "*", or --privileged)" ]]
    done
    run --separate-stderr setpriv --reuid 65534 --regid 65534 --clear-groups "$(command -v msb-boot)" -r - \
        <<<'{"msb":1,"rootfs":{"kind":"dir","lower":["/usr"]}}'
    [ "$status" -eq 1 ]
    [[ $stderr == 'msb-boot: without root, a user namespace is needed: nobody has no IDs in /etc/subuid and /etc/subgid'* ]]
}

@test "msb-exec and msb-stop take a name, and prefer a running VM to a file" {
    vm_boot worker -- echo cmd
    vm_boot other
    echo '#!/bin/sh' >worker
    cp worker.json named.json
    export MSB_RECORD=$PWD/other.json
    for call in 'worker -- hostname' 'worker hostname' '-r worker -- hostname' '-r worker hostname' 'named.json -- hostname' \
        './named.json -T -- hostname' '-T worker -w / -- hostname'; do
        # shellcheck disable=SC2086 # words
        [ "$(msb-exec $call)" = worker ]
    done
    [ "$(msb-exec worker)" = cmd ]
    [ "$(msb-exec -- hostname)" = other ]
    # Stages read a piped record; here stdin belongs to the command.
    [ "$(msb-exec -- cat <worker.json)" = "$(cat worker.json)" ]
    run --separate-stderr msb-exec hostname
    [ "$status" -eq 125 ]
    [[ $stderr == *'no VM of that name is running in "'"$MSB_RUN"'" (a command goes after --: msb-exec -- hostname)' ]]
    unset MSB_RECORD
    # The record, then exactly the command's input, from a pipe and from a file, pretty-printed or not.
    head -c 100000 /dev/urandom >data
    for record in worker.json <(jq . worker.json) <(jq -j . worker.json); do
        { cat "$record"; cat data; } >both
        cat both | msb-exec -- cat | cmp - data
        msb-exec -- cat <both | cmp - data
    done
    [ "$({ jq -c . worker.json; echo; } | msb-exec - -- od -An -c | tr -d ' ')" = '\n' ]
    # A running VM is preferred to a file of that name; without such a VM the file is read.
    run --separate-stderr msb-exec -r ./worker -- true
    [ "$status" -eq 125 ]
    [[ $stderr == *'not a record'* ]]
    # Several names, one of which does not exist.
    run --separate-stderr msb-stop worker nobody other
    [ "$status" -eq 1 ]
    [[ $stderr == *'msb-stop: worker: stopped'*'"nobody": no such file'*'msb-stop: other: stopped'* ]]
    [ "$(jq -r .boot.name <<<"$output" | xargs)" = 'worker other' ]
    vm_assert_nothing
}
