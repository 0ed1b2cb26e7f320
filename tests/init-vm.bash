# shellcheck shell=bash disable=SC2154 # bats and vm.bash set variables
# A VM with one of the inits of inits.bash as PID 1.
#
#   source "$BATS_TEST_DIRNAME/init-vm.bash"; boot_init systemd --init auto; stop_init

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/vm.bash"
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/inits.bash"

setup() { vm_setup; }

teardown() {
    vm_teardown
    ! mountpoint -q "$BATS_TEST_TMPDIR/mounted" || msb-mount -u "$BATS_TEST_TMPDIR/mounted"
}

# boot_init NAME FLAG…: boots a VM with that init as PID 1, and waits until the service is up.
boot_init() {
    local name=$1
    shift
    inits_record "$name" mounted >mount.json
    vm_record=mount.json vm_boot worker --timeout 900 "$@"
    # Its start-up is complete when msb-boot returns.
    ! inits_is_slow "$name" || [ -e mounted/srv/booted ]
    [ "$(vm_exec worker cat /proc/1/comm)" = "$(inits_comm "$name")" ]
    [ "$(vm_exec worker sh -c 'hostname; cat /etc/hostname' | xargs)" = 'worker worker' ]
    timeout 600 msb-exec -r worker.json -- sh -c 'until [ -e /srv/note ]; do sleep 0.1; done'
    [ "$(cat mounted/srv/note)" = started ]
}

# stop_init: stops the VM; the init ends the service and powers off.
stop_init() {
    run --separate-stderr msb-stop -r worker.json -t 240
    [ "$status" -eq 0 ]
    [ "$stderr" = 'msb-stop: worker: stopped' ] || { echo "$stderr"; return 1; }
    diff mounted/srv/note <(printf "started\nstopped\n")
    [ ! -e mounted/.msb ]
    vm_assert_nothing
}
