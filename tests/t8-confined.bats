#!/usr/bin/env bats
# The processes that serve a VM are confined: a guest that sends virtiofs requests of its own reaches only its root.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; inner shells expand theirs
bats_require_minimum_version 1.5.0

setup() {
    source "$BATS_TEST_DIRNAME/vm.bash"
    source "$BATS_TEST_DIRNAME/image.bash"
    vm_setup
}

teardown() {
    vm_teardown
    ! mountpoint -q "$vm_root/data" || umount -l "$vm_root/data"
}

# Lists what the hostile guest tries to reach, and what it would leave there.
elsewhere() {
    find outside -printf '%p %m %u %s %l\n' | sort
    # t8-user, which may run at the same time, adds a user, and changes the mode of /dev/fuse.
    find / /etc /root /dev -xdev -maxdepth 1 -regextype posix-extended ! -name 'tty*' ! -path /dev/fuse \
        ! -regex '/etc/(\.pwd\.lock|fuse\.conf|sed[A-Za-z0-9]{6}|(passwd|group|shadow|gshadow|subuid|subgid)[-+.0-9a-z]*)' \
        -printf '%p %m %u %l\n' | sort
}

# Prepares a guest program that sends virtiofs requests of its own, a file of the host for it to find, and a file in its root.
prepare_hostile_guest() {
    program=$(guest_program virtiofs-escape)
    word=secret-$RANDOM$RANDOM$RANDOM
    mkdir outside
    echo "$word" >outside/canary
    echo "$PWD/outside/canary" >canary
    echo 'this is inside' >"$vm_root/inside"
}

# bats test_tags=vmm
@test "a guest with full control of both virtiofs devices reaches its root and nothing else" {
    prepare_hostile_guest
    before=$(elsewhere)
    mkdir vol
    echo 'this is inside too' >vol/inside
    run --separate-stderr env MSB_AGENTD="$program" msb-boot -r "$vm_record" --script canary=canary -v "$PWD/vol:/vol:ro"
    echo "$stderr"
    [ "$status" -eq 1 ]
    # It had full control: all its requests were answered, and one made a file.
    [[ $stderr == *'READ inside: this is inside'* ]]
    [[ $stderr == *'guest: done'* ]]
    [ "$(grep -c 'attempts: .*, silent: 0$' <<<"$stderr")" -eq 2 ]
    [ -f "$vm_root/made-by-hand" ]
    # It read nothing outside its root, and left nothing there.
    [[ $stderr != *"$word"* ]]
    [ "$(grep 'guest: READ ' <<<"$stderr" | grep -cv 'READ inside')" -eq 0 ]
    [ "$(cat outside/canary)" = "$word" ]
    [ "$(elsewhere)" = "$before" ]
    [ "$(ls vol; cat vol/inside)" = $'inside\nthis is inside too' ]
    vm_assert_nothing
}

# bats test_tags=vmm-slow
@test "the same guest can read the host's files under an unconfined libkrun" {
    [ -n "${MSB_KVM_HOST:-}" ] || skip "a guest that gets out is for a host that is thrown away, as tests/kvm-host makes one"
    prepare_hostile_guest
    mkdir -p share/{mnt,dev,proc,sys,msb/scripts}
    cp canary share/msb/scripts/
    cp "$program" share/init.krun
    coproc krun { exec timeout 600 "$release/examples/bare-krun" "$release/libkrunfw.so.5" share "$vm_root" 256 2>/dev/null; }
    # libkrun's process outlives the guest.
    sed /^done/q <&"${krun[0]}" >said
    kill "$krun_PID" || true
    grep -aF "$word" said
    grep -a '^READ /etc/passwd: root:' said
}

# bats test_tags=vmm
@test "a guest's root changes its own copy of a script, and no device of the host has the agent or its configuration" {
    printf '#!/bin/sh\necho mine\n' >mine
    vm_boot worker --script mine=mine
    [ "$(vm_exec worker mine)" = mine ]
    vm_exec worker sh -c 'mkdir /tmp/boot
        for tag in volumes /dev/root; do ! mount -t virtiofs $tag /tmp/boot || exit; done
        ! echo x >/.msb/scripts/mine || exit
        mount -o remount,bind,rw /.msb && echo "echo changed" >/.msb/scripts/mine' 2>/dev/null
    [ "$(vm_exec worker sh /.msb/scripts/mine)" = changed ]
    [ "$(sh ./mine)" = mine ]
}

# bats test_tags=vmm
@test "each process that serves a VM has a jail: root, processes, network, capabilities" {
    vm_boot worker
    members=$(vm_members worker)
    [ -n "$members" ]
    for pid in $members; do
        for space in mnt pid net ipc uts; do
            [ "$(readlink "/proc/$pid/ns/$space")" != "$(readlink "/proc/self/ns/$space")" ]
        done
        [ ! -e "/proc/$pid/root$BATS_TEST_TMPDIR" ]
        [ ! -e "/proc/$pid/root/etc/passwd" ] || [ "/proc/$pid/root/etc/passwd" -ef "$vm_root/etc/passwd" ]
        grep -q '^NoNewPrivs:.*1$' "/proc/$pid/status"
        # chown, dac_override, fowner, fsetid, setgid, setuid, mknod, setfcap, or none.
        grep -qE '^CapPrm:.*(00000000880000db|0000000000000000)$' "/proc/$pid/status"
        grep -q '^Max core file size  *0  *0 ' "/proc/$pid/limits"
        grep -q '^Max locked memory  *0  *0 ' "/proc/$pid/limits"
        grep -q '^Seccomp:.*2$' "/proc/$pid/status"
        # A process without capabilities is the VM's own user.
        ! grep -q '^CapPrm:.*0000000000000000$' "/proc/$pid/status" ||
            grep -q "^Uid:.*$((0x70000000 + $(vm_pid worker)))$" "/proc/$pid/status"
        [ "$(tr '\0' '\n' <"/proc/$pid/environ" | cut -d= -f1)" = PATH ]
    done
    # The socket directory is gone, so nothing can be created in it any more.
    [ ! -e "$XDG_RUNTIME_DIR/msb/worker/door" ]
    [ -S "$XDG_RUNTIME_DIR/msb/worker/agent.sock" ]
}

# role PID: prints what a process of a VM is.
role() {
    local args
    mapfile -d '' -t args <"/proc/$1/cmdline"
    case ${args[1]:-} in
        --as-*) echo "${args[1]#--as-}" ;;
        # passt has left the file system of its program.
        *) basename "${args[0]}" ;;
    esac
}

# assert_limits NAME: the resource limits, and the number of filters, of each process of a VM.
assert_limits() {
    local pid files threads filters own=$((0x70000000 + $(vm_pid "$1"))) most
    # What nothing limits further: the host's limit where root may raise its own, which takes CAP_SYS_RESOURCE.
    most=$(awk '/^Max open files/ { print $5 }' "/proc/$(vm_pid "$1")/limits")
    ((16#$(awk '/^CapEff:/ { print $2 }' /proc/self/status) >> 24 & 1)) && most=$(cat /proc/sys/fs/nr_open)
    for pid in $(vm_members "$1"); do
        # Two filters are of the jail. QEMU adds one, and passt and virtiofsd one that forbids what the jail has let them do.
        filters=2
        case $(role "$pid") in
            gate) files=64 ;;
            resolver) files=256 ;;
            qemu-system-*) files=4096 filters=3 ;;
            vmm) if grep -q "^Uid:.*$own$" "/proc/$pid/status"; then files=4096; else files=$most; fi ;;
            channel | vhost-device-vsock) files=16384 ;;
            passt* | virtiofsd) files=$most filters=3 ;;
            *) echo "which limits does $(role "$pid") have?"; return 1 ;;
        esac
        [ "$files" -le "$most" ] || files=$most
        # Those of root are counted together.
        threads=1024
        grep -q "^Uid:.*$own$" "/proc/$pid/status" || threads=$(awk '/^Max processes/ { print $4 }' "/proc/$(vm_pid "$1")/limits")
        echo "$(role "$pid"): $files files, $threads threads, $filters filters"
        diff <(printf '%s\n' "core 0 0" "processes $threads $threads" "files $files $files" "locked 0 0" "$filters") \
            <(awk '/^Max core file/ { print "core", $5, $6 } /^Max processes/ { print "processes", $3, $4 }
                /^Max open files/ { print "files", $4, $5 } /^Max locked memory/ { print "locked", $4, $5 }
                /^Seccomp_filters:/ { print $2 }' "/proc/$pid/limits" "/proc/$pid/status") || return
    done
}

# bats test_tags=vmm-slow
@test "each process that serves a VM has the limits of its jail, and an empty session keyring in the place of the caller's" {
    command -v passt >/dev/null || skip "passt is not installed"
    vm_launcher=("$(guest_program with-key)")
    # A container may have no keyrings.
    "${vm_launcher[@]}" true || vm_launcher=()
    # The numbers of empty session keyrings that more than $1 processes have.
    sessions() { awk -v least="$1" '/ _ses: empty$/ && $3 > least { print $1 }' /proc/keys | sort; }
    [ -z "${vm_launcher[*]}" ] || sessions 0 >before
    MSB_NETWORK='' vm_boot worker
    assert_limits worker >limits || { cat limits; return 1; }
    cat limits
    # The gate, the resolver, passt, and the VMM with its helpers. The nested host has no network.
    least=4
    [ -z "${MSB_KVM_HOST:-}" ] || least=1
    [ "$(grep -cE '^(gate|resolver|passt|vmm|qemu-system-.*|virtiofsd|vhost-device-vsock): ' limits)" -ge "$least" ]
    # All of them have the supervisor's, and the caller's key is in none that is called so.
    if [ -n "${vm_launcher[*]}" ]; then
        sessions "$(vm_members worker | wc -l)" >after
        [ -n "$(comm -13 before after)" ]
    fi
    msb-stop -r worker.json >stopped.json
    vm_assert_nothing
}

# may PROFILE: prints what a hostile program in that jail reaches: all that it may do beyond the use of its own memory, of its
# descriptors, and of the files that everybody may read.
may() {
    local -A may=(
        [krun-private-disk]="reading another user's file"
        [krun-shares]=serve
        [qemu-private-disk]="reading another user's file"
        # It confines itself once more, and so do the next ones; their own filters forbid these calls then.
        [virtiofsd]="serve;another root;execve: Bad address"
        [resolver]="IPv4: success;IPv6: success"
        [passt]="network"
        [passt-low-port]="network;a port below 1024"
        [mkfs]="reading another user's file"
        [mkfs-trusted]="reading another user's file;trusted xattrs"
    )
    local serve="reading another user's file;writing another user's file;making a file;making a device node;changing a mode"
    serve+=";changing an owner;another user"
    local network="IPv4: success;IPv6: success;netfilter: success;execve: Bad address;umount2: Bad address;another program;a user namespace: success"
    # These depend on the host: from which port on every user may have one, Landlock's rule for abstract sockets (Linux 6.12), and
    # whether there is another program at all, and user namespaces.
    [ "$(cat /proc/sys/net/ipv4/ip_unprivileged_port_start)" -gt 7 ] || network+=";a port below 1024"
    jq -e '.parts.landlock | .usable and (.by | ltrimstr("ABI ") | tonumber >= 6)' probe >/dev/null || network+=";a socket of the host"
    [ -e second ] || network=${network/;another program/}
    unshare --user true || network=${network/;a user namespace: success/}
    local list=${may[$1]:-}
    list=${list/serve/$serve}
    list=${list/network/$network}
    tr ';' '\n' <<<"$list" | sed '/./!d; s/^/reached: /'
}

@test "a hostile program in the jail of any process reaches nothing of the kernel, of the host or of another VM but what the jail is for" {
    command -v cc >/dev/null || skip "there is no compiler for the library"
    attempts=$(guest_program jail-attempts)
    keyed=("$(guest_program with-key)")
    "${keyed[@]}" true || keyed=(env MSB_TEST_KEY=1)
    cc -Os -DLIBRARY -shared -fPIC -o attempts.so "$BATS_TEST_DIRNAME/guest/jail-attempts.c"
    vm_boot worker
    msb-boot --probe >probe
    mkdir -p jail data given
    echo public | tee data/public >given/public
    echo private | tee data/private >given/private
    chmod 0600 data/private given/private
    setfattr -n trusted.msb-test -v x data/public
    mknod -m 0666 data/zero c 1 5
    chown -R 12345 data given
    binds=$(jq -nc --arg program "$attempts" --arg data "$PWD/data" --arg given "$PWD/given" '
        [[$program, $program, false], [$data, "/data", true], [$given, "/given", false]] |
        map({source: {path: .[0]}, target: .[1], writable: .[2], follows: false})')
    # A filter sees no paths, so it takes Landlock to refuse another program.
    if jq -e .parts.landlock.usable probe; then
        cp "$attempts" second
        binds=$(jq -c --arg second "$PWD/second" '. + [{source: {path: $second}, target: "/second", writable: false, follows: false}]' <<<"$binds")
    fi
    run -1 msb-boot --as-jailed-process '{}' "$attempts"
    [[ $output == 'jail: its description: missing field'* ]]
    # The table of the profiles itself, so that a new one cannot be forgotten.
    run -1 msb-boot --as-jailed-process '{"profile": ""}' "$attempts"
    profiles=$(grep -o '`[a-z0-9-]*`' <<<"${output#*expected one of}" | tr -d '`')
    [[ $(sort <<<"$profiles" | xargs) == 'channel gate krun krun-private-disk krun-shares mkfs mkfs-trusted passt passt-low-port qemu '* ]]
    # A socket of the host that is in no directory.
    perl -MSocket -e 'socket(my $s, AF_UNIX, SOCK_STREAM, 0); bind($s, pack_sockaddr_un("\0msb-test-$ARGV[0]")) or die; listen($s, 64);
        print "up\n"; close(STDOUT); sleep' "$$" >abstract 3>&- &
    abstract=$!
    vm_await test -s abstract
    for profile in $profiles; do
        echo "== $profile"
        jail=$(jq -nc --arg profile "$profile" --argjson binds "$binds" --arg mount_point "$PWD/jail" '{profile: $profile, user: 1879048193,
            binds: $binds, dirs: [], mount_point: $mount_point}')
        run "${keyed[@]}" sh -c 'exec unshare --pid --fork env LD_PRELOAD="$PWD/attempts.so" msb-boot --as-jailed-process "$@" "key:$MSB_TEST_KEY"' - \
            "$jail" "$attempts" "@msb-test-$$" "$XDG_RUNTIME_DIR" "$XDG_RUNTIME_DIR/msb/worker/agent.sock" "$MSB_HOME" "$vm_root" "$PWD" \
            /etc/passwd /root /proc/self/root /dev/kvm </dev/null
        echo "$output"
        [ "$status" -eq 0 ]
        diff <(may "$profile" | sort) <(grep '^reached: ' <<<"$output" | sort -u)
        case $profile in
            krun-shares | virtiofsd | mkfs*) user=0 ;;
            *) user=1879048193 ;;
        esac
        [ "$(grep -c '^attempts: ' <<<"$output")" -eq 1 ]
        # A program of our own may not ask which signal it gets.
        grep -qE "^attempts: [0-9]+, user: $user, .*, at the parent's death: (9|-1)$" <<<"$output"
        rm -rf data/made data/node
        chown -R 12345 data
        chmod 0644 data/public
    done
    kill "$abstract"
}

@test "a program in the place of mkfs.erofs or mke2fs reads its tree, inherits nothing, and ends with the tool" {
    program=$(guest_program jail-attempts)
    # msb-pack finds programs also below the directory of its output.
    mkdir -p out/bin
    cp "$program" out/bin/mkfs.erofs
    cp "$program" out/bin/mke2fs
    msb-pull -q "oci:$(tiny_image)" >record.json
    for command in "msb-pull -q --erofs oci:$(tiny_image)" 'msb-pack -q -r record.json raw:out/disk.raw' 'msb-pack -q -r record.json erofs:out/disk.erofs'; do
        # shellcheck disable=SC2086 # the words of a command
        run env PATH="$PWD/out/bin:$PATH" $command 7</etc/passwd
        echo "$output"
        [ "$status" -eq 1 ]
        [[ $output != *'reached: '* ]]
        [[ $output == *': attempts: '*", user: 0, descriptors: 0, at the parent's death: 9" ]]
        [ "$(ls out)" = bin ]
    done
}

# bats test_tags=vmm
@test "the guest sees mounts below the root, and the host's jail does not open their device nodes" {
    mkdir "$vm_root/data"
    mount -t tmpfs none "$vm_root/data"
    mknod -m 666 "$vm_root/data/zero" c 1 5
    echo below >"$vm_root/data/file"
    vm_boot worker
    [ "$(vm_exec worker cat /data/file)" = below ]
    # As seen by the process that serves it.
    opened=0
    for pid in $(vm_members worker); do
        for path in "/proc/$pid/root/data/zero" "/proc/$pid/root/msb/root/data/zero"; do
            if [ -c "$path" ]; then
                opened=$((opened + 1))
                run head -c 1 "$path"
                [[ $output == *'Permission denied'* ]]
            fi
        done
    done
    [ "$opened" -ge 1 ]
    msb-stop -r worker.json >stopped.json
    umount "$vm_root/data"
}
