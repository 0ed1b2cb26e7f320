#!/usr/bin/env bats
# msb-run and the tools for VMs that exist: msb, msb-ls, msb-logs, msb-stats and msb-rm.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016,SC2030,SC2031 # bats and vm.bash set variables; inner shells expand theirs
bats_require_minimum_version 1.5.0

setup() {
    source "$BATS_TEST_DIRNAME/vm.bash"
    source "$BATS_TEST_DIRNAME/image.bash"
    source "$BATS_TEST_DIRNAME/registry.bash"
    vm_setup
    export MSB_HOME=$BATS_TEST_TMPDIR/home
}

teardown() {
    vm_teardown
    registry_stop registry
}

no_vm() { msb-ls >list && [ ! -s list ]; }

# nothing_left: no process, directory or disk of a VM.
nothing_left() {
    vm_assert_nothing || return
    [ -z "$(ls -A "$MSB_HOME/sandboxes" 2>/dev/null)" ] || { ls -AR "$MSB_HOME/sandboxes" >&2; return 1; }
}

@test "msb run runs a command with the caller's streams and status, flags before and behind the image, and leaves nothing" {
    printf '#!/bin/sh\necho "script $1"\n' >hello.sh
    run --separate-stderr bash -c "printf 'in\0put' | msb run -e A=1 ./root -w /tmp --script hello=hello.sh -q -- \
        sh -c 'cat; pwd; echo \$A; hello there; echo err >&2; exit 7' | od -c; exit \${PIPESTATUS[1]}"
    [ "$status" = 7 ]
    [ "$output" = "$(printf 'in\0put/tmp\n1\nscript there\n' | od -c)" ]
    [ "$stderr" = err ]
    nothing_left
}

@test "msb run pulls what is missing, patches it, and -x prints the pipe, which a shell runs" {
    registry_start registry
    skopeo copy --quiet --dest-tls-verify=false "oci:$(tiny_image):latest" "docker://$registry_host/demo:v1"
    image=$registry_host/demo:v1
    echo '{"op":"text","path":"/etc/motd","content":"patched\n"}' >ops.jsonl
    echo '{"op":"script","name":"motd","content":"#!/bin/sh\ncat /etc/motd\n"}' >>ops.jsonl
    run --separate-stderr msb-run --pull never --plain-http "$image"
    [ "$status" = 125 ]
    [[ $stderr == *'it is not in the store'* ]]
    # The image's entrypoint is /bin/echo, and its cmd hello.
    [ "$(msb-run -q --plain-http "$image")" = hello ]
    nothing_left
    registry_stop registry
    msb-run -q -x --patch ops.jsonl --entrypoint '' "$image" -- motd >script
    [ "$(sh -u script)" = patched ]
    nothing_left
    # With -d and --rm the VM ends with the command. Without any command it goes on.
    msb-run -q -x -d --rm "$image" >script
    [[ $(sh -u script) == vm-* ]]
    vm_await no_vm
    name=$(msb-run -q -d --rm --entrypoint '' "$image")
    msb-exec "$name" --list >list
    [ ! -s list ]
    msb-stop -q "$name" >stopped
    nothing_left
}

@test "what is wrong with a run is said by the tool that it is for, with status 125, and leaves nothing" {
    registry_start registry
    # refused MESSAGE ARGUMENT…: msb-run fails with the message.
    refused() {
        local message=$1
        shift
        run --separate-stderr msb-run "$@"
        [ "$status" = 125 ] && [ -z "$output" ] && [[ $stderr == *"$message"* ]] || { echo "$*: $status $stderr"; return 1; }
    }
    refused "msb-run: the following required arguments were not provided"
    refused "msb-run: --privileged is docker's (root in the guest has a kernel of its own" --privileged alpine true
    refused "use --rlimit" --ulimit nofile=1 alpine true
    refused "unexpected argument '--no-such-flag'" --no-such-flag alpine true
    refused "msb-boot: invalid value 'open' for '--network <MODE|tap:NAME|tap:FD|unix:PATH>'" --network open ./root true
    refused "msb-boot: invalid value 'sbin/init' for '--init" ./root --init sbin/init -- true
    refused "msb-boot: invalid value '1P' for '--memory" -m 1P ./root true
    refused 'msb-boot: script "x"' --script x=missing ./root true
    refused 'msb-patch: "missing.jsonl"' --patch missing.jsonl ./root true
    refused 'msb-pull: image "' --plain-http "$registry_host/missing" true
    refused 'msb-pull: source "./missing"' ./missing true
    refused "invalid value 'sometimes' for '--pull <WHEN>'" --pull sometimes ./root true
    refused "invalid value 'a/b' for '--name <NAME>'" --name a/b ./root true
    refused "--name" --replace ./root true
    run --separate-stderr sh -c 'msb-run -q -d ./root -- sleep 1000 >/dev/full'
    [ "$status" = 125 ]
    # One message for an image that is not there.
    run --separate-stderr msb-run ./missing true
    [ "${#stderr_lines[@]}" = 1 ]
    # A pull that still waits ends without one.
    mkfifo archive
    exec {archive}<> archive
    run --separate-stderr msb-run -m 1P - true < archive
    exec {archive}>&-
    [ "$status" = 125 ] && [[ $stderr == "msb-boot: invalid value '1P'"* && $stderr != *signal* ]] || { echo "$stderr"; return 1; }
    nothing_left
}

@test "a VM with a name: listed, logged, measured, replaced, stopped with its disk, and removed" {
    [ "$(msb run -d -q --name web ./root -- sleep 1000)" = web ]
    vm=$(msb ls)
    jq -e '.name == "web" and .state == "running" and .memory_mib == 512 and .pid and .age_s >= 0 and .reason == null' <<<"$vm"
    [ "$(jq -r .image <<<"$vm")" = "$PWD/root" ]
    script -qec 'msb-ls' /dev/null | tr -d '\r' >table
    [[ $(sed -n 1p table) == NAME*IMAGE*STATE*MEMORY* ]]
    [[ $(sed -n 2p table) == "web "*running*512M* ]]
    msb exec web --list | jq -e 'select(.command == ["sleep", "1000"]) | .detached'
    # The output of a detached command is kept on the host, its newest part, and outlives the VM.
    id=$(msb exec web -d -- sh -c 'echo from a command; echo an error >&2; head -c 400000 /dev/zero | tr "\0" x' | jq -r .id)
    msb logs -f web "$id" >output 2>errors
    [ "$(cat errors)" = 'an error' ]
    [ "$(head -n 1 output)" = 'from a command' ]
    [ "$(stat -c %s output)" = 400015 ]
    long=$(msb exec web -d -- sh -c 'yes | head -c 3000000; echo the end' | jq -r .id)
    [ "$(msb logs -f web "$long" | tail -n 1)" = 'the end' ]
    [ "$(stat -c %s "$MSB_RUN"/web/execs/"$long"* | awk '{ sum += $1 } END { print (sum > 260000 && sum <= 2 * 262144) }')" = 1 ]
    run --separate-stderr msb logs web 99
    [ "$status" = 1 ]
    [ "$stderr" = 'msb-logs: no output of a detached command 99 is kept (msb-exec --list web lists commands)' ]
    last=$(msb exec web -d -- sh -c 'echo last words; sleep 1000' | jq -r .id)
    read -r line < <(msb logs -f web "$last" 3>&-)
    [ "$line" = 'last words' ]
    msb logs -f web >followed 3>&- &
    follower=$!
    msb exec web -- sh -c 'echo on the console > /dev/console'
    msb stats | jq -e '.name == "web" and .memory > 0 and .cpu_s > 0 and .memory_limit == 536870912'
    run --separate-stderr msb run --name web ./root true
    [ "$status" = 125 ]
    [[ $stderr == *'a VM of that name is running'* ]]
    # Neither a script of -x that fails to boot, nor a --replace without an image, touches the VM that has the name.
    run sh -c "$(msb-run -q -x --name web --rm ./root true)"
    [ "$status" = 125 ]
    run --separate-stderr msb-run -q --name web --replace ./missing true
    [ "$status" = 125 ]
    run --separate-stderr msb-run -q --name web --replace -v ./missing:/x ./root true
    [ "$status" = 125 ]
    [[ $stderr == *missing* ]]
    run --separate-stderr sh -c "$(msb-run -q -x --name web --replace -m 900G ./root true)"
    [ "$status" = 125 ]
    msb exec web -- true
    run --separate-stderr msb rm web
    [ "$status" = 1 ]
    [[ $stderr == 'msb-rm: web: it is running (stop it with "msb-stop web", or remove it with -f)' ]]
    msb exec web -- sh -c 'echo kept > /kept; sync'
    kill -KILL "$(jq -r .pid <<<"$vm")"
    # It ends with the VM.
    wait $follower
    grep -qx 'on the console' followed
    [ "$(msb logs web)" = "$(cat followed)" ]
    [ "$(msb logs web "$last")" = 'last words' ]
    msb logs web "$id" | cmp - output
    msb ls | jq -e '.state == "dead" and .reason == "its supervisor was killed"'
    # The next VM of the name has the disk, a replaced one does not, and one that is stopped is listed with -a only.
    [ "$(msb-run -q --name web ./root -- ls /kept)" = /kept ]
    run msb-run -q --name web --replace ./root -- ls /kept
    [ "$status" = 1 ]
    no_vm
    [ "$(msb ls -a | jq -c '[.name, .state]')" = '["web","stopped"]' ]
    msb rm web
    run --separate-stderr msb rm web
    [ "$stderr" = 'msb-rm: web: no VM of that name (msb-ls -a lists all)' ]
    msb rm -f web
    nothing_left
}

@test "a signal reaches the command, and one before it ends the boot; both leave nothing" {
    mkfifo out
    msb-run -q ./root -- sh -c 'trap "exit 9" TERM; echo ready; while :; do sleep 1; done' >out 3>&- &
    run=$!
    exec 9<out
    read -r said <&9
    [ "$said" = ready ]
    kill -TERM $run
    status=0
    wait $run || status=$?
    [ "$status" = 9 ]
    nothing_left
    msb-run -q ./root -- true 3>&- &
    run=$!
    # Before its exec it is a copy of this shell.
    vm_await grep -qx msb-run "/proc/$run/comm"
    kill -TERM $run
    status=0
    wait $run || status=$?
    [ "$status" = 143 ]
    nothing_left
    # One during the pull for a snapshot.
    mkfifo in
    msb-run -q --snapshot web - -- true <in 3>&- &
    run=$!
    exec 8>in
    vm_await pgrep -P $run -f -- 'msb-pull .*--policy' >pulling
    kill -TERM $run
    status=0
    wait $run || status=$?
    [ "$status" = 143 ]
    nothing_left
}

@test "a VM with a name ends also if msb-run is killed between its boot and the command" {
    mkdir tools
    ln -s "$release"/msb* tools/
    for tool in msb-run msb-boot; do rm tools/$tool; done
    cp "$release/msb-run" tools/
    {
        echo '#!/bin/sh'
        echo "\"$release/msb-boot\" \"\$@\" || exit"
        echo '[ "$1" = --generate ] || kill -KILL "$PPID"'
    } >tools/msb-boot
    chmod +x tools/msb-boot
    run tools/msb-run -q --name web -m 128M ./root -- sleep 1000
    [ "$status" = 137 ]
    # Its caretaker stops the VM and keeps its disk.
    is_stopped() { msb-ls -a | jq -e '.name == "web" and .state == "stopped"'; }
    vm_await is_stopped
    msb-rm web
    nothing_left
}

@test "several runs at the same time do not disturb one another" {
    local runs=${MSB_RUNS:-3} pids=() n
    for ((n = 0; n < runs; n++)); do
        msb-run -q -m 128M ./root -- echo "run $n" >"out.$n" 3>&- &
        pids+=($!)
    done
    for ((n = 0; n < runs; n++)); do
        wait "${pids[n]}"
        [ "$(cat "out.$n")" = "run $n" ]
    done
    nothing_left
}

# descendants PID: prints a process and all below it.
descendants() {
    local child
    echo "$1"
    for child in $(cat "/proc/$1/task/"*/children 2>/dev/null); do descendants "$child"; done
}

# bats test_tags=kill
@test "whichever process of a run is killed at whatever moment, nothing is left" {
    local rounds=$(((${MSB_KILLS:-100} + 19) / 20)) n victim all
    for ((n = 0; n < rounds; n++)); do
        msb-run -q -m 128M ./root -- sleep 1000 >/dev/null 2>"err.$n" 3>&- &
        run=$!
        # A boot takes 2 to 4 seconds on an idle machine.
        sleep "$((RANDOM % 5)).$((RANDOM % 10))"
        mapfile -t all < <({ descendants $run; vm_processes; } | sort -u)
        victim=${all[RANDOM % ${#all[@]}]}
        echo "round $n: $(tr '\0' ' ' <"/proc/$victim/cmdline" | cut -c 1-60)"
        kill -KILL "$victim" 2>/dev/null || true
        [ "$victim" = $run ] || kill -TERM $run 2>/dev/null || true
        wait $run || true
        # What a killed process has left is removed by the caretaker or the supervisor, which outlive it.
        vm_await nothing_left 2>/dev/null || nothing_left
    done
}

# bats test_tags=slow
@test "msb run --snapshot boots and saves a VM once for an image and its patches, and later runs start from it" {
    vm_needs_qemu
    # again ARG…: msb-run with the snapshot web.
    again() { msb-run -m 128M --snapshot web ./root "$@" 3>&-; }
    # A digest of the kernel's boot messages: their times differ in every boot.
    log='dmesg | head -n 60 | sha256sum'
    names() { msb-store ls --json -t snapshot | jq -r .name; }
    again -e KIND=first -- sh -c "$log; echo \$KIND" >first 2>first.err
    [ "$(<first.err)" = 'msb-run: snapshot "web": booting under QEMU, with --root block and --channel serial, to make it' ]
    [ "$(tail -n 1 first)" = first ]
    again -e KIND=second -- sh -c "$log; echo \$KIND; echo kept >/file" >second 2>second.err
    [ ! -s second.err ]
    [ "$(head -n 1 second)" = "$(head -n 1 first)" ]
    [ "$(tail -n 1 second)" = second ]
    made=$(names)

    # A changed patch makes a new snapshot, which replaces the old one. Two concurrent runs make one.
    echo '{"op":"script","name":"greet","content":"#!/bin/sh\necho patched\n"}' >ops.jsonl
    again --patch ops.jsonl -q -- greet >greeted &
    other=$!
    run -7 again --patch ops.jsonl -q -- sh -c 'greet; [ ! -e /file ] && exit 7'
    [ "$output" = patched ]
    wait "$other"
    [ "$(<greeted)" = patched ]
    [ "$(names | wc -l)" = 1 ]
    [ "$(names)" != "$made" ]
    [ "$(ls -A "$MSB_HOME/sandboxes" | wc -l)" = 1 ]
    [ "$(again --patch ops.jsonl -- greet 2>&1)" = patched ]

    # A kill during the save leaves the snapshot that was there.
    msb-run -q -m 128M --snapshot web --tmpfs /t ./root -- true 3>&- &
    killed=$!
    vm_await compgen -G "$MSB_HOME/snapshots/.[0-9a-f]*" >found
    kill -9 "$killed"
    wait "$killed" || true
    vm_await sh -c '[ "$(ls -A "$MSB_HOME/snapshots" | wc -l)" = 1 ]'
    vm_await no_vm
    [ "$(again --patch ops.jsonl -- greet 2>&1)" = patched ]

    # A file that is changed during the save may be in the snapshot or not, so no snapshot is kept.
    echo old >file
    printf '{"op":"copy_file","src":"%s","dst":"/file"}\n' "$PWD/file" >files.jsonl
    msb-run -q -m 128M --snapshot web --patch files.jsonl ./root -- true 2>changed.err 3>&- &
    run=$!
    vm_await compgen -G "$MSB_HOME/snapshots/.[0-9a-f]*" >found
    echo new >file
    status=0
    wait $run || status=$?
    [ "$status" = 125 ]
    [ "$(<changed.err)" = 'msb-run: snapshot "web": what it depends on has changed while it was made (run the command again)' ]
    [ "$(ls -A "$MSB_HOME/snapshots" | wc -l)" = 1 ]
    no_vm
    [ "$(again --patch ops.jsonl -- greet 2>&1)" = patched ]

    # What the caretaker of a killed run does: it removes a replaced snapshot, once that has lost its name.
    replaced=$(jq -r .digest "$MSB_HOME/snapshot-names/web")
    msb-run --as-cleanup snapshot-000000000000 "$replaced"
    [ "$(ls "$MSB_HOME/snapshots")" = "${replaced#sha256:}" ]
    mv "$MSB_HOME/snapshot-names/web" name
    msb-run --as-cleanup snapshot-000000000000 "$replaced"
    [ -z "$(ls -A "$MSB_HOME/snapshots" "$MSB_HOME/sandboxes" | grep -v :)" ]
    [ "$(again -q --patch ops.jsonl -- greet 2>&1)" = patched ]

    # refused MESSAGE ARG…: nothing is made or started.
    refused() {
        run --separate-stderr again "${@:2}"
        [ "$status" = 125 ] && [[ $stderr == *"$1"* ]] || { echo "$*: $status $stderr"; return 1; }
    }
    refused '--volume cannot be used with --snapshot (copy files with msb-cp' -v cache:/cache -- true
    refused '--restart cannot be used with --snapshot' --restart always -- true
    refused '--vmm krun cannot be used with --snapshot (it needs qemu; leave --vmm out)' --vmm krun -- true
    refused '--root share cannot be used with --snapshot (it needs block' --root share -- true
    refused "cannot be used with '--print'" -x -- true
    msb-store ls --json -t snapshot web | jq -e '.used_by | index("msb-run --snapshot web")'
    msb-store rm -t snapshot web
    [ -z "$(names)$(ls -A "$MSB_HOME/snapshot-names")" ]
    nothing_left
}
