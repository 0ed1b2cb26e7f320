# shellcheck shell=bash disable=SC2154,SC2016 # vm.bash sets variables; the guest's shells expand theirs
# One VM for a file of tests about msb-exec, and what such tests ask of its guest.
#
#   source "$BATS_TEST_DIRNAME/exec.bash"; setup_file() { exec_root; exec_boot [ARG…]; }

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/vm.bash"

# What files of such tests have alike. One with needs of its own says so after it has read this.
teardown_file() { vm_teardown; }
setup() { cd "$BATS_TEST_TMPDIR" || return; }
teardown() { vm_show; }

# exec_root: a root for the VM, to be changed before exec_boot.
exec_root() {
    # What a guest has is counted.
    export BATS_NO_PARALLELIZE_WITHIN_FILE=true
    BATS_TEST_TMPDIR=$BATS_FILE_TMPDIR
    vm_setup
    mkdir -p "$vm_root/home/app"
    chown 1000:1001 "$vm_root/home/app"
    echo 'app:x:1000:1001::/home/app:/bin/sh' >>"$vm_root/etc/passwd"
    printf 'app:x:1001:\naudio:x:29:app\n' >>"$vm_root/etc/group"
}

# exec_install PROGRAM…: this machine's programs and their libraries, for the root.
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

# exec_boot [ARG…]: the VM "worker" on that root; all calls of msb-exec mean it.
exec_boot() {
    vm_boot worker "$@"
    export MSB_RECORD=$BATS_FILE_TMPDIR/worker.json vm_record
}

# exec_count NAME: how many processes of that name the guest has.
exec_count() {
    msb-exec -- sh -c 'cat /proc/[0-9]*/comm 2>/dev/null | grep -cx "$1" || true' sh "$1"
}

# exec_agent: the agent's process ID in the guest, which is not 1 where an init has that.
exec_agent() {
    msb-exec -- sh -c 'for p in /proc/[0-9]*; do case $(readlink $p/exe) in */init.krun) echo ${p#/proc/}; exit;; esac; done; echo 1'
}

# exec_await COMMAND…: waits until it succeeds. Nothing tells this side what the guest's processes do.
exec_await() {
    local tries
    for ((tries = 0; tries < 600; tries++)); do
        ! "$@" || return 0
        sleep 0.1
    done
    echo "never came true: $*" >&2
    return 1
}

# exec_has COUNT NAME: whether the guest has so many processes of that name.
exec_has() { [ "$(exec_count "$2")" = "$1" ]; }
