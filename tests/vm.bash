# shellcheck shell=bash
# VMs for tests: a small root, its record, and checks for leftovers. A plain directory is used in place of a mount, so
# that these tests are about msb-boot and msb-stop alone.
#
#   source tests/vm.bash; vm_setup; vm_boot worker; …; vm_teardown
#
# With MSB_TEST_ROOT=block the root is a block root, not a shared one. A test about a shared root calls vm_needs_share.

vm_here=$(realpath "${BASH_SOURCE[0]%/*}")
vm_launcher=()

# vm_setup: puts our tools on PATH, and makes a scratch directory with its own state, a root and its record ($vm_record).
vm_setup() {
    release=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/target/release
    PATH=$release:$PATH:/usr/sbin
    export MSB_HOME=$BATS_FILE_TMPDIR/home XDG_RUNTIME_DIR=$BATS_TEST_TMPDIR/run
    export MSB_RUN=$XDG_RUNTIME_DIR/msb
    unset MSB_RECORD MSB_AGENTD MSB_LIBKRUNFW
    # t8-net.bats is about the network; elsewhere it would cost time and processes.
    export MSB_NETWORK=none
    mkdir -p "$XDG_RUNTIME_DIR"
    vm_root=$BATS_TEST_TMPDIR/root
    vm_record=$BATS_TEST_TMPDIR/record.json
    mkdir -p "$vm_root"/{bin,dev,etc,proc,root,run,sys,tmp}
    cp "$(command -v busybox)" "$vm_root/bin/busybox"
    "$vm_root/bin/busybox" --install "$vm_root/bin"
    printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$vm_root/etc/passwd"
    printf 'root:x:0:\nnogroup:x:65534:\n' >"$vm_root/etc/group"
    jq -nc --arg root "$vm_root" '{msb: 1, rootfs: {kind: "dir", lower: [$root]},
        mount: {path: $root, pid: 1, fstype: "none"}, later: {kept: true}}' >"$vm_record"
    if [ "${MSB_TEST_ROOT:-share}" = block ]; then
        # The same root as disks. Tests use the same VM names, so each test has its own named disks.
        export MSB_HOME=$BATS_TEST_TMPDIR/home
        jq -c 'del(.mount)' "$vm_record" >"$vm_record.block"
        mv "$vm_record.block" "$vm_record"
    fi
    cd "$BATS_TEST_TMPDIR" || return
}

# vm_needs_share: skips a test that looks into a shared root from the host.
vm_needs_share() {
    [ "${MSB_TEST_ROOT:-share}" = share ] || skip "it looks into a shared root from the host"
}

# vm_needs_qemu: skips a test that boots with QEMU, which the nested host of the machine's own architecture lacks.
vm_needs_qemu() {
    command -v qemu-system-x86_64 qemu-system-aarch64 >/dev/null || skip "QEMU is not installed"
}

# vm_file NAME PATH: prints a file that the guest wrote, once the VM has ended; fails if there is none.
vm_file() {
    if [ "${MSB_TEST_ROOT:-share}" = share ]; then
        cat "$vm_root$2"
    else
        vm_has "$1" "$2" && debugfs -R "cat /upper$2" "$MSB_HOME/sandboxes/$1/top.ext4" 2>/dev/null
    fi
}

# vm_has NAME PATH: whether the guest made that file.
vm_has() {
    if [ "${MSB_TEST_ROOT:-share}" = share ]; then
        [ -e "$vm_root$2" ]
    else
        debugfs -R "stat /upper$2" "$MSB_HOME/sandboxes/$1/top.ext4" 2>/dev/null | grep -q '^Inode:'
    fi
}

# vm_copy_alone PROGRAM: copies one of our programs alone into the directory "alone".
vm_copy_alone() {
    mkdir -p alone
    cp "$release/$1" alone/
}

# vm_show_logs: after a failed test, prints how its VMs ended and the end of their logs. For a teardown.
vm_show_logs() {
    [ "${BATS_TEST_COMPLETED:-}" = 1 ] ||
        tail -n 20 "$XDG_RUNTIME_DIR"/msb/*/{ended.json,kernel.log} "${MSB_HOME:-}"/logs/*/*.log 2>/dev/null || true
}

# vm_teardown: ends this test's VMs.
vm_teardown() {
    local dir
    [ -z "${BATS_TEST_NAME:-}" ] || vm_show_logs
    for dir in "$XDG_RUNTIME_DIR"/msb/*/; do
        [ ! -e "$dir/record.json" ] || vm_kill "$dir/record.json" || true
    done
    "$vm_here/vm-processes.pl" --kill "${XDG_RUNTIME_DIR:?}/msb/"
}

# vm_kill RECORD: kills a VM; msb-stop exits 1 then.
vm_kill() {
    msb-stop -t 0 -r "$1" >/dev/null 2>&1 || [ $? -eq 1 ]
}

# vm_patient [ARG…]: sets the array patient to a flag that lets a boot take long, unless there is such a flag among the arguments.
vm_patient() {
    patient=()
    [[ " $* " == *' --timeout '* ]] || patient=(--timeout 600)
}

# vm_boot NAME [ARG…]: boots, with the record in $BATS_TEST_TMPDIR/NAME.json and the messages in NAME.err. The array vm_launcher, if a
# test sets it, is the command that executes msb-boot.
vm_boot() {
    local name=$1
    shift
    vm_patient "$@"
    "${vm_launcher[@]}" msb-boot -r "$vm_record" --name "$name" "${patient[@]}" "$@" \
        >"$BATS_TEST_TMPDIR/$name.json" 2>"$BATS_TEST_TMPDIR/$name.err" || {
        local status=$?
        cat "$BATS_TEST_TMPDIR/$name.err" >&2
        return "$status"
    }
}

# vm_foreground NAME [ARG…]: boots in the foreground, and returns when the VM is up; msb-boot's process ID is in $front.
vm_foreground() {
    local name=$1
    shift
    vm_patient "$@"
    rm -f "$BATS_TEST_TMPDIR/$name.json"
    # Background jobs of a shell ignore INT.
    env --default-signal=INT msb-boot -r "$vm_record" --name "$name" -f "${patient[@]}" "$@" \
        >"$BATS_TEST_TMPDIR/$name.json" 2>"$BATS_TEST_TMPDIR/$name.err" 3>&- &
    front=$!
    until [ -s "$BATS_TEST_TMPDIR/$name.json" ]; do kill -0 "$front" || return; sleep 0.02; done
}

# vm_exec NAME COMMAND…: runs a command in a VM of vm_boot.
vm_exec() {
    local name=$1
    shift
    msb-exec -r "$BATS_TEST_TMPDIR/$name.json" -- "$@"
}

# vm_pid NAME: prints the supervisor's process ID.
vm_pid() {
    jq .vm.pid "$BATS_TEST_TMPDIR/$1.json"
}

# vm_processes [PREFIX]: all processes of this test's VMs, or of those whose run directory's path starts so.
vm_processes() {
    "$vm_here/vm-processes.pl" "${XDG_RUNTIME_DIR:?}/msb/${1:-}"
}

# vm_members NAME: prints the VM's processes without its supervisor.
vm_members() {
    vm_processes "$1/" | grep -vx "$(vm_pid "$1")"
}

# vm_vmm NAME: prints the VMM's process ID. Its stdout is the guest's console, which the supervisor reads.
vm_vmm() {
    local pid
    for pid in $(vm_members "$1"); do
        case $(readlink "/proc/$pid/fd/1") in
            pipe:*) echo "$pid" ;;
        esac
    done
}

# vm_member_name NAME PID: prints the supervisor's name for one of the VM's processes.
vm_member_name() {
    if [ "$2" = "$(vm_vmm "$1")" ]; then jq -r .vm.vmm "$BATS_TEST_TMPDIR/$1.json"; else basename "$(readlink "/proc/$2/exe")"; fi
}

# vm_has_ended PID: whether a process has ended, reaped or not. A process whose main thread has exited still has its files open while other
# threads run.
vm_has_ended() {
    case $(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null) in
        '' | X*) return 0 ;;
        Z*) [ "$(find "/proc/$1/task" -mindepth 1 -maxdepth 1 2>/dev/null | wc -l)" -le 1 ] ;;
        *) return 1 ;;
    esac
}

# vm_await COMMAND…: waits until it succeeds. It polls, for what has no event, and only a fault reaches the limit: no machine is so slow.
vm_await() {
    local end=$((SECONDS + 180))
    until "$@"; do
        if [ "$SECONDS" -ge "$end" ]; then
            echo "never came true: $*" >&2
            return 1
        fi
        sleep 0.05
    done
}

# vm_await_end PID: waits for a process that is not a child of this shell.
vm_await_end() {
    vm_await vm_has_ended "$1"
}

# vm_await_nothing: waits until nothing of a VM is left, where no process has waited for that.
vm_await_nothing() {
    vm_await vm_assert_nothing 2>/dev/null || vm_assert_nothing
}

# vm_await_log NAME PATTERN: waits until the log of the guest's console has a line. What the guest prints takes its own way there.
vm_await_log() {
    vm_await grep -qi -- "$2" "$XDG_RUNTIME_DIR/msb/$1/kernel.log"
}

# vm_await_restart NAME: waits until the supervisor has started the VM again.
vm_await_restart() {
    until [ "$(jq '.vm.restarts // 0' "$XDG_RUNTIME_DIR/msb/$1/record.json")" = 1 ]; do
        kill -0 "$(vm_pid "$1")" || return
        sleep 0.05
    done
}

# vm_ends_with NAME REASON: the VM ends by itself; msb-exec and msb-stop say why, and nothing is left. The reason is a pattern.
# The message of msb-stop is in $stderr afterwards.
vm_ends_with() {
    vm_await_end "$(vm_pid "$1")"
    [ -z "$(vm_processes)" ]
    run --separate-stderr timeout 120 msb-exec -r "$1.json" -- true
    [ "$status" -eq 125 ]
    # shellcheck disable=SC2053,SC2154 # a pattern; bats sets the variable
    [[ $stderr == "msb-exec: vm \"$1\": it is gone: "$2*'kernel.log'* ]] || { echo "$stderr"; return 1; }
    run --separate-stderr timeout 120 msb-stop -r "$1.json"
    [ "$status" -eq 0 ]
    [[ $stderr == "msb-stop: $1: "*'; tidied up' ]] || { echo "$stderr"; return 1; }
    # shellcheck disable=SC2154 # bats sets it
    jq -e 'has("vm") | not' <<<"$output"
    vm_assert_nothing
}

# vm_assert_nothing: no process, no directory, no socket of a VM.
vm_assert_nothing() {
    local left
    left=$(vm_processes; find "$XDG_RUNTIME_DIR" -mindepth 2)
    [ -z "$left" ] || { echo "left over: $left" >&2; return 1; }
}
