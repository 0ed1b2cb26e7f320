# shellcheck shell=bash disable=SC2154 # bats and vm.bash set variables
# A VM with one of the inits of inits.bash as PID 1, for a file of tests.
#
#   source "$BATS_TEST_DIRNAME/init-vm.bash"; becomes systemd --init auto; goes_down

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/vm.bash"
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/inits.bash"

setup() { vm_setup; }

teardown() {
    vm_teardown
    ! mountpoint -q "$BATS_TEST_TMPDIR/mounted" || msb-mount -u "$BATS_TEST_TMPDIR/mounted"
}

# becomes NAME FLAG…: a VM whose PID 1 is that init; the service is up.
becomes() {
    local name=$1
    shift
    inits_record "$name" mounted >mount.json
    vm_record=mount.json vm_boot worker --timeout 120 "$@"
    # What it does at boot is done when msb-boot returns.
    ! inits_is_slow "$name" || [ -e mounted/srv/booted ]
    [ "$(vm_exec worker cat /proc/1/comm)" = "$(inits_comm "$name")" ]
    [ "$(vm_exec worker sh -c 'hostname; cat /etc/hostname' | xargs)" = 'worker worker' ]
    timeout 180 msb-exec -r worker.json -- sh -c 'until [ -e /srv/note ]; do sleep 0.1; done'
    [ "$(cat mounted/srv/note)" = started ]
}

# goes_down: the init powers the VM off, and ends the service before that.
goes_down() {
    run --separate-stderr msb-stop -r worker.json -t 240
    [ "$status" -eq 0 ]
    [ "$stderr" = 'msb-stop: worker: stopped' ] || { echo "$stderr"; return 1; }
    diff mounted/srv/note <(printf "started\nstopped\n")
    [ ! -e mounted/.msb ]
    vm_assert_nothing
}
