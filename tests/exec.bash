# shellcheck shell=bash disable=SC2154,SC2016 # vm.bash sets variables; the guest's shells expand theirs
# One VM for a file of tests about msb-exec, and helpers that look into its guest.
#
#   source "$BATS_TEST_DIRNAME/exec.bash"; setup_file() { exec_root; exec_boot [ARG…]; }

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/vm.bash"

# Defaults for such files; a file can redefine them after it has sourced this one.
teardown_file() { vm_teardown; }
setup() { cd "$BATS_TEST_TMPDIR" || return; }
teardown() { vm_show_logs; }

# exec_root: makes a root for the VM, which can be changed before exec_boot.
exec_root() {
    # The tests count the guest's processes and files.
    export BATS_NO_PARALLELIZE_WITHIN_FILE=true
    BATS_TEST_TMPDIR=$BATS_FILE_TMPDIR
    vm_setup
    mkdir -p "$vm_root/home/app"
    chown 1000:1001 "$vm_root/home/app"
    echo 'app:x:1000:1001::/home/app:/bin/sh' >>"$vm_root/etc/passwd"
    printf 'app:x:1001:\naudio:x:29:app\n' >>"$vm_root/etc/group"
}

# exec_install PROGRAM…: copies this machine's programs and their libraries into the root.
exec_install() {
    local program file
    for program in "$@"; do
        program=$(command -v "$program") || return
        for file in $program $(ldd "$program" | grep -o '/[^ ]*'); do
            mkdir -p "$vm_root${file%/*}"
            cp -L "$file" "$vm_root$file"
        done
        [ "${program%/*}" = /bin ] || ln -sf "$program" "$vm_root/bin/"
    done
}

# exec_boot [ARG…]: boots the VM "worker" on that root; msb-exec uses it through MSB_RECORD.
exec_boot() {
    vm_boot worker "$@"
    export MSB_RECORD=$BATS_FILE_TMPDIR/worker.json vm_record
}

# exec_count NAME: prints how many processes of that name the guest has.
exec_count() {
    msb-exec -- sh -c 'cat /proc/[0-9]*/comm 2>/dev/null | grep -cx "$1" || true' sh "$1"
}

# exec_agent: prints the agent's process ID in the guest; it is not 1 if an init is PID 1.
exec_agent() {
    msb-exec -- sh -c 'for p in /proc/[0-9]*; do case $(readlink $p/exe) in /agentd) echo ${p#/proc/}; exit;; esac; done; echo 1'
}

# exec_await COMMAND…: waits until it succeeds. It polls, since no event tells the host about the guest's processes.
exec_await() { vm_await "$@"; }

# exec_has COUNT NAME: whether the guest has COUNT processes of that name.
exec_has() { [ "$(exec_count "$2")" = "$1" ]; }
