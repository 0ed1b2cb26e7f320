# shellcheck shell=bash disable=SC2154 # vm.bash sets variables
# What tests of block roots share: a layered image, a state directory for each test, and the kernel's overlayfs as the judge.
#
#   source "$BATS_TEST_DIRNAME/block.bash"

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/vm.bash"
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/image.bash"

setup() {
    vm_setup
    # Named disks are not shared between tests.
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

# merged RECORD: mounts the record's layers and upper on "merged" with the kernel's overlayfs.
merged() {
    mkdir -p merged empty
    mount -t overlay -o "ro,lowerdir=$(jq -r '[.upper.dir, .rootfs.lower[]] | map(select(. != null)) | join(":")' "$1"):empty" overlay merged
}

# without_bound_files: filters the files that the agent binds over the image's from a manifest.
without_bound_files() {
    grep -Ev '^/etc/(hosts|hostname|resolv\.conf) '
}
