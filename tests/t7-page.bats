#!/usr/bin/env bats
# The command lines that microsandbox documents for customizing a sandbox, as they stand there, with local images under the names of
# those on Docker Hub. https://docs.microsandbox.dev/sandboxes/customization

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; inner shells expand theirs
bats_require_minimum_version 1.5.0

setup() {
    source "$BATS_TEST_DIRNAME/vm.bash"
    source "$BATS_TEST_DIRNAME/image.bash"
    vm_setup
    export MSB_HOME=$BATS_FILE_TMPDIR/home
    cd "$BATS_TEST_TMPDIR" || return
    mkdir bin
    cp "$release/msb" "$release/msb-run" bin/
    hash -r
}

teardown() { vm_teardown; }

# image_named NAME LAYOUT: makes msb-run find the image in a layout under this name.
image_named() {
    cat >bin/msb-pull <<END
#!/bin/sh
for arg do shift; [ "\$arg" != $1 ] || arg=oci:$2; set -- "\$@" "\$arg"; done
exec $release/msb-pull "\$@"
END
    chmod +x bin/msb-pull
    PATH=$PWD/bin:$PATH
}

# page LINE: runs a line of the page.
page() { run --separate-stderr bash -c "$1"; }

@test "an image with systemd, with --init auto or an explicit init with arguments and variables" {
    image_named jrei/systemd-debian:12 "$(systemd_image):latest"
    page 'msb run jrei/systemd-debian:12 --init auto -- cat /proc/1/comm'
    [ "$status" = 0 ] || { echo "$stderr"; return 1; }
    [ "$output" = systemd ]
    page 'msb run jrei/systemd-debian:12 \
  --init /lib/systemd/systemd \
  --init-arg --unit=multi-user.target \
  --init-env container=microsandbox \
  -- bash <<< "tr \"\\0\" \"\\n\" < /proc/1/environ; cat /proc/1/cmdline"'
    [ "$status" = 0 ] || { echo "$stderr"; return 1; }
    [[ $output == *container=microsandbox* ]]
    [[ $output == *--unit=multi-user.target* ]]
    vm_assert_nothing
}

@test "BusyBox as the init, and an init that the image lacks" {
    umoci_layout=$(tiny_image)
    cp -r "$umoci_layout" layout
    umoci config --image layout:latest --clear config.entrypoint
    mkdir sbin && ln -s ../bin/busybox sbin/init
    umoci insert --image layout:latest sbin/init /sbin/init
    image_named alpine:3.20 layout:latest
    page 'msb run alpine:3.20 --init /sbin/init -- sh -c "cat /proc/1/comm"'
    [ "$status" = 0 ] || { echo "$stderr"; return 1; }
    [ "$output" = busybox ]
    image_named local-systemd:debian "$umoci_layout:latest"
    page 'msb run local-systemd:debian --init /lib/systemd/systemd -- bash'
    [ "$status" = 125 ]
    [[ $stderr == *'/lib/systemd/systemd'* ]] || { echo "$stderr"; false; }
    page 'msb run local-systemd:debian --init=auto'
    [ "$status" = 125 ]
    for path in /sbin/init /lib/systemd/systemd /usr/lib/systemd/systemd; do [[ $stderr == *"$path"* ]]; done
    vm_assert_nothing
}
