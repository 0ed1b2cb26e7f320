# shellcheck shell=bash
# VMs for tests: a small root, a record for it, and what is left of a VM. A plain directory stands in for the mount, so
# that these tests are about msb-boot and msb-stop alone.
#
#   source tests/vm.bash; vm_setup; vm_boot worker; …; vm_teardown
#
# With MSB_TEST_ROOT=block the root is made of disks, not shared. A test that is about a shared root says vm_needs_share.

vm_here=$(realpath "${BASH_SOURCE[0]%/*}")

# vm_setup: our tools on PATH, in a scratch directory with state of this test's own, a root and a record for it ($vm_record).
vm_setup() {
    release=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/target/release
    PATH=$release:$PATH:/usr/sbin
    export MSB_HOME=$BATS_FILE_TMPDIR/home XDG_RUNTIME_DIR=$BATS_TEST_TMPDIR/run
    export MSB_RUN=$XDG_RUNTIME_DIR/msb
    unset MSB_RECORD MSB_AGENTD MSB_LIBKRUNFW
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
        # The same root as a disk. Tests use the same names, and a name's disk is another one's there.
        export MSB_HOME=$BATS_TEST_TMPDIR/home
        jq -c 'del(.mount)' "$vm_record" >"$vm_record.block"
        mv "$vm_record.block" "$vm_record"
    fi
    cd "$BATS_TEST_TMPDIR" || return
}

# vm_needs_share: skips a test that looks from the host at what the guest sees.
vm_needs_share() {
    [ "${MSB_TEST_ROOT:-share}" = share ] || skip "it looks into a shared root from the host"
}

# vm_left NAME PATH: the content of a file that a VM's guest made, once the VM has ended; fails where there is none.
vm_left() {
    if [ "${MSB_TEST_ROOT:-share}" = share ]; then
        cat "$vm_root$2"
    else
        vm_has "$1" "$2" && debugfs -R "cat /upper$2" "$MSB_HOME/sandboxes/$1/top.ext4" 2>/dev/null
    fi
}

# vm_has NAME PATH: whether a guest left something there.
vm_has() {
    if [ "${MSB_TEST_ROOT:-share}" = share ]; then
        [ -e "$vm_root$2" ]
    else
        debugfs -R "stat /upper$2" "$MSB_HOME/sandboxes/$1/top.ext4" 2>/dev/null | grep -q '^Inode:'
    fi
}

# vm_alone PROGRAM: a fresh directory "alone" with only this of our own programs.
vm_alone() {
    mkdir -p alone
    cp "$release/$1" alone/
}

# vm_show: where a test has failed, how its VMs ended and what they said last. For a teardown.
vm_show() {
    [ "${BATS_TEST_COMPLETED:-}" = 1 ] || tail -n 20 "$XDG_RUNTIME_DIR"/msb/*/{ended.json,kernel.log} 2>/dev/null || true
}

# vm_teardown: ends this test's VMs.
vm_teardown() {
    local dir
    [ -z "${BATS_TEST_NAME:-}" ] || vm_show
    for dir in "$XDG_RUNTIME_DIR"/msb/*/; do
        [ ! -e "$dir/record.json" ] || vm_kill "$dir/record.json" || true
    done
    "$vm_here/vm-processes.pl" --kill "${XDG_RUNTIME_DIR:?}/msb/"
}

# vm_kill RECORD: ends a VM by force, which msb-stop reports.
vm_kill() {
    msb-stop -t 0 -r "$1" >/dev/null 2>&1 || [ $? -eq 1 ]
}

# vm_boot NAME [ARG…]: boots, with the record in $BATS_TEST_TMPDIR/NAME.json and the words in NAME.err.
vm_boot() {
    local name=$1
    shift
    msb-boot -r "$vm_record" --name "$name" "$@" >"$BATS_TEST_TMPDIR/$name.json" 2>"$BATS_TEST_TMPDIR/$name.err" || {
        local status=$?
        cat "$BATS_TEST_TMPDIR/$name.err" >&2
        return "$status"
    }
}

# vm_front NAME [ARG…]: boots in the foreground, and returns when the VM is up; msb-boot's process is in $front.
vm_front() {
    local name=$1
    shift
    rm -f "$BATS_TEST_TMPDIR/$name.json"
    # Background jobs of a shell ignore INT.
    env --default-signal=INT msb-boot -r "$vm_record" --name "$name" -f "$@" \
        >"$BATS_TEST_TMPDIR/$name.json" 2>"$BATS_TEST_TMPDIR/$name.err" 3>&- &
    front=$!
    until [ -s "$BATS_TEST_TMPDIR/$name.json" ]; do kill -0 "$front" || return; sleep 0.02; done
}

# vm_exec NAME COMMAND…: a command in a VM of vm_boot.
vm_exec() {
    local name=$1
    shift
    msb-exec -r "$BATS_TEST_TMPDIR/$name.json" -- "$@"
}

# vm_pid NAME: the supervisor.
vm_pid() {
    jq .vm.pid "$BATS_TEST_TMPDIR/$1.json"
}

# vm_processes [PREFIX]: all processes of this test's VMs, or of those whose run directory's path starts so.
vm_processes() {
    "$vm_here/vm-processes.pl" "${XDG_RUNTIME_DIR:?}/msb/${1:-}"
}

# vm_crew NAME: the processes of a VM but for its supervisor.
vm_crew() {
    vm_processes "$1/" | grep -vx "$(vm_pid "$1")"
}

# vm_vmm NAME: the process that is the VMM. Its stdout is the guest's console, which the supervisor reads.
vm_vmm() {
    local pid
    for pid in $(vm_crew "$1"); do
        case $(readlink "/proc/$pid/fd/1") in
            pipe:*) echo "$pid" ;;
        esac
    done
}

# vm_member NAME PID: what the VM's supervisor calls one of its processes.
vm_member() {
    if [ "$2" = "$(vm_vmm "$1")" ]; then jq -r .vm.vmm "$BATS_TEST_TMPDIR/$1.json"; else basename "$(readlink "/proc/$2/exe")"; fi
}

# vm_has_ended PID: whether a process is gone, or only waits to be reaped by somebody else.
vm_has_ended() {
    case $(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null) in
        '' | Z* | X*) return 0 ;;
        *) return 1 ;;
    esac
}

# vm_await_end PID: waits for a process that is no child of this shell.
vm_await_end() {
    local tries=0
    until vm_has_ended "$1"; do
        if [ $((tries += 1)) -gt 1500 ]; then
            echo "process $1 does not end" >&2
            return 1
        fi
        sleep 0.02
    done
}

# vm_assert_nothing: no process, no directory, no socket of a VM.
vm_assert_nothing() {
    local left
    left=$(vm_processes; find "$XDG_RUNTIME_DIR" -mindepth 2)
    [ -z "$left" ] || { echo "left over: $left" >&2; return 1; }
}
