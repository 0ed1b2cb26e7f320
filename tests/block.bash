# shellcheck shell=bash disable=SC2154 # vm.bash sets variables
# What tests of block roots have alike: an image of layers, a disk store for each test, and the kernel's overlayfs as judge.
#
#   source "$BATS_TEST_DIRNAME/block.bash"

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/vm.bash"
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/image.bash"

setup() {
    vm_setup
    # What one test leaves on a disk is not for the next.
    export MSB_HOME=$BATS_TEST_TMPDIR/home
    vm_record=$PWD/image.json
    msb-pull -q "oci:$(tiny_image)" >"$vm_record"
}

teardown() {
    vm_teardown
    local place
    for place in kernel merged small mounted; do
        if grep -q " $BATS_TEST_TMPDIR/$place " /proc/self/mountinfo; then umount -l "$BATS_TEST_TMPDIR/$place"; fi
    done
    rm -rf "${open:-}"
}

# merged RECORD: the record's layers and upper in "merged", as the kernel's overlayfs shows them.
merged() {
    mkdir -p merged empty
    mount -t overlay -o "ro,lowerdir=$(jq -r '[.upper.dir, .rootfs.lower[]] | map(select(. != null)) | join(":")' "$1"):empty" overlay merged
}
