#!/usr/bin/env bats
# What passes through msb-exec: every byte and each end of file, in bounded memory; and the programs that
# people run over ssh.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; the guest's shells expand theirs
bats_require_minimum_version 1.5.0
source "$BATS_TEST_DIRNAME/exec.bash"

setup_file() {
    exec_root
    exec_install rsync git
    ln -s git "$vm_root/bin/git-upload-pack"
    mkdir -p "$vm_root/srv"
    exec_boot -c 2
}

# make_tree DIR: makes files of all kinds.
make_tree() {
    mkdir -p "$1"/{a/b,empty}
    head -c 300000 /dev/urandom >"$1/bytes"
    for n in $(seq 40); do echo "$n" >"$1/a/$n"; done
    ln -s ../bytes "$1/a/link"
    chmod 4711 "$1/a/1"
    : >"$1/"$'odd name\n'
}

@test "every byte value passes unchanged in both directions and at any length" {
    for length in 1 2 31739 31740 65536 65537 200000; do
        head -c "$length" /dev/urandom >bytes
        msb-exec -- cat <bytes | cmp - bytes
        msb-exec -- sh -c 'cat >&2' <bytes 2>err >out
        cmp err bytes
        [ ! -s out ]
    done
    printf '%b' "$(printf '\\0%03o' $(seq 0 255))" >all
    msb-exec -T -- cat <all | cmp - all
}

@test "64 MiB there and back are whole" {
    head -c 1M /dev/urandom >block
    for _ in $(seq 64); do cat block; done | tee >(md5sum >here) | msb-exec -- cat | md5sum >back
    exec_await test -s here
    diff here back
}

@test "an end of file is passed on at once, in both directions" {
    coproc EXEC { exec msb-exec -- sh -c 'cat; echo ended; exec >&-; read -r never </dev/zero'; }
    echo word >&"${EXEC[1]}"
    read -r -t 180 word <&"${EXEC[0]}"
    [ "$word" = word ]
    # The end of our stdin arrives while the command runs, and the end of its stdout while it keeps running.
    eval "exec ${EXEC[1]}>&-"
    read -r -t 180 word <&"${EXEC[0]}"
    [ "$word" = ended ]
    kill "$EXEC_PID"
    wait "$EXEC_PID" || true
}

@test "a command that does not read stdin, closes stdout, or leaves a pipe to its children ends as it would here" {
    alike() {
        "$@" 'exec <&-; echo a' </dev/zero | cat
        "$@" 'exec >&-; echo b >&2' 2>&1 | cat
        "$@" '(sleep 0.3; echo late) & echo early' | cat
        "$@" 'head -c 3' < <(echo abc; sleep 0.2) | cat
        "$@" 'read -r a; echo $a' < <(yes) | cat
        "$@" 'printf no-newline' | cat
        status=0; "$@" 'cat; exit 9' </dev/null || status=$?
        echo "$status"
    }
    alike sh -c >here
    alike msb-exec --shell >there
    grep -q late here
    diff here there
}

@test "nothing is lost at the exit, however much is written just before it" {
    for _ in 1 2 3 4 5; do
        [ "$(msb-exec -- sh -c 'head -c 300000 /dev/zero; head -c 200000 /dev/zero >&2; exit 3' 2>err | wc -c)" = 300000 ]
        [ "$(wc -c <err)" = 200000 ]
    done
    # With a slow reader.
    [ "$(msb-exec -- head -c 1000000 /dev/zero | { sleep 0.5; wc -c; })" = 1000000 ]
}

@test "a stopped reader stalls only its own command, and no process grows" {
    rss() { awk '/^VmRSS/ { print $2 }' "/proc/$1/status"; }
    guest_rss() { msb-exec -- awk '/^VmRSS/ { print $2 }' "/proc/$agent/status"; }
    agent=$(exec_agent)
    vmm=$(vm_vmm worker)
    mkfifo pipe
    msb-exec -- yes >pipe &
    reader=$!
    exec 9<pipe
    head -c 1000 <&9 >/dev/null
    for _ in 1 2 3; do [ "$(msb-exec -- echo on)" = on ]; done
    before=$(rss "$reader") before_vmm=$(rss "$vmm") before_guest=$(guest_rss)
    # Other commands are not affected.
    [ "$(msb-exec -- head -c 20000000 /dev/zero | wc -c)" = 20000000 ]
    for n in $(seq 10); do [ "$(msb-exec -- echo "$n")" = "$n" ]; done
    echo "msb-exec $before $(rss "$reader"), VMM $before_vmm $(rss "$vmm"), agent $before_guest $(guest_rss)"
    [ "$(rss "$reader")" -lt $((before + 1000)) ]
    [ "$(rss "$vmm")" -lt $((before_vmm + 40000)) ]
    [ "$(guest_rss)" -lt $((before_guest + 500)) ]
    # The stalled command continues where it was.
    [ "$(head -c 1000001 <&9 | tr -d '\n' | wc -c)" -ge 500000 ]
    exec 9<&-
    wait "$reader" || true
}

@test "a command that does not read stalls only its own writer" {
    (yes || true) | msb-exec -- sleep 600 &
    writer=$!
    for n in 1 2 3 4 5; do [ "$(msb-exec -- cat <<<"$n")" = "$n" ]; done
    [ "$(head -c 5000000 /dev/zero | msb-exec -- wc -c)" = 5000000 ]
    kill "$writer"
    wait "$writer" || true
}

@test "tar copies a tree there and back" {
    make_tree tree
    tar -C tree -c . | msb-exec -w /srv -- sh -c 'mkdir tar && tar -x -C tar'
    mkdir back
    msb-exec -w /srv/tar -- tar -c . | tar -C back -x
    diff -r --no-dereference tree back
    [ "$(stat -c %a back/a/1)" = 4711 ]
}

@test "rsync copies a tree there and back, and then only what is new, with msb-exec as its remote shell" {
    make_tree tree
    rsync -a -e 'msb-exec --rsh' tree/ vm:/srv/rsync/
    rsync -a -e "msb-exec -r $MSB_RECORD --rsh" vm:/srv/rsync/ back
    diff -r --no-dereference tree back
    echo more >>tree/a/7
    rm -r tree/empty
    rsync -a --delete --itemize-changes -e 'msb-exec --rsh' tree/ vm:/srv/rsync/ >changed
    grep -q '^<f.*a/7$' changed
    [ "$(grep -c '^<f' changed)" = 1 ]
    # A relative path is below the user's home, as with ssh.
    rsync -a -e 'msb-exec --rsh' tree/bytes app@vm:copy
    [ "$(msb-exec -- stat -c %U /home/app/copy)" = app ]
    rsync -a -e 'msb-exec --rsh -l app' tree/bytes vm:other
    msb-exec -- cmp /home/app/copy /home/app/other
}

@test "git clones from the guest with msb-exec as its ssh, and through ext::" {
    git init -q here
    (cd here && for n in $(seq 30); do head -c 2000 /dev/urandom >"$n"; done && git add . && git -c user.name=a -c user.email=a@b commit -qm all)
    tar -C here -c . | msb-exec -w /srv -- sh -c 'mkdir repository && tar -x -C repository && chown -R 0:0 repository'
    GIT_SSH_COMMAND="msb-exec --rsh" git clone -q vm:/srv/repository by-ssh
    GIT_SSH_COMMAND="msb-exec --rsh" git clone -q ssh://root@vm/srv/repository by-url
    git -c protocol.ext.allow=always clone -q 'ext::msb-exec -- git-upload-pack /srv/repository' by-ext
    for clone in by-ssh by-url by-ext; do
        [ "$(git -C "$clone" rev-parse HEAD)" = "$(git -C here rev-parse HEAD)" ]
        git -C "$clone" fsck --strict
    done
}

@test "a remote shell's command line is run by the guest's shell, and its status comes back" {
    [ "$(msb-exec --rsh any-host 'echo $HOME;' pwd)" = $'/root\n/root' ]
    [ "$(msb-exec --rsh app@vm -- id -un)" = app ]
    [ "$(msb-exec --rsh -w /etc vm pwd)" = /etc ]
    run msb-exec --rsh vm exit 7
    [ "$status" = 7 ]
    run --separate-stderr msb-exec --rsh vm
    [ "$status" = 125 ]
    [[ $stderr == *'a command is expected after "vm"'* ]]
}
