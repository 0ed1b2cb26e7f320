#!/usr/bin/env bats
# Seven inits out of Debian's packages, each as PID 1 of a VM, with a service of ours that it starts, and ends when it goes down.
# OpenRC is behind sysvinit's PID 1 there, so it is asked as sysvinit is.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; inner shells expand theirs
bats_require_minimum_version 1.5.0

setup() {
    source "$BATS_TEST_DIRNAME/vm.bash"
    source "$BATS_TEST_DIRNAME/image.bash"
    vm_setup
    # A service: says when it starts, and when it is told to end.
    jq -Rsc '{op: "script", name: "teller", content: .}' >ops <<'END'
#!/bin/sh
echo started >>/srv/note
trap 'echo stopped >>/srv/note; exit 0' TERM
while :; do sleep 86400 & wait $!; done
END
    echo '{"op":"mkdir","path":"/srv"}' >>ops
}

teardown() {
    vm_teardown
    ! mountpoint -q "$BATS_TEST_TMPDIR/mounted" || msb-mount -u "$BATS_TEST_TMPDIR/mounted"
}

# text PATH [MODE]: an operation that writes a file, from stdin, over what the image has.
text() {
    jq -Rsc --arg path "$1" --arg mode "${2:-0644}" '{op: "text", $path, $mode, content: ., replace: true}' >>ops
}

# link TARGET LINK
link() {
    jq -nc --arg target "$1" --arg link "$2" '{op: "symlink", $target, $link, replace: true}' >>ops
}

# without PATH…: directories of start-up scripts for hardware that no VM has, emptied: they are shell, and take a minute of emulation.
without() {
    jq -nc '$ARGS.positional[] | {op: "remove", path: .}, {op: "mkdir", path: .}' --args "$@" >>ops
}

# becomes COMM IMAGE FLAG…: a VM of the image with the operations, whose PID 1 is called so; the service is up.
becomes() {
    local comm=$1 layout
    layout=$("$2_image")
    shift 2
    msb-pull -q "oci:$layout:latest" | msb-patch -f ops | msb-mount mounted >mount.json
    vm_record=mount.json vm_boot worker "$@"
    [ "$(vm_exec worker cat /proc/1/comm)" = "$comm" ]
    timeout 120 msb-exec -r worker.json -- sh -c 'until [ -e /srv/note ]; do sleep 0.1; done'
    [ "$(cat mounted/srv/note)" = started ]
}

# goes_down: the init powers the VM off, and ends the service before that.
goes_down() {
    local log
    log=$(jq -r .vm.kernel_log worker.json)
    cp "$log" before
    run --separate-stderr msb-stop -r worker.json -t 60
    [ "$status" -eq 0 ]
    [ "$stderr" = 'msb-stop: worker: stopped' ] || { echo "$stderr"; return 1; }
    [ "$(cat mounted/srv/note)" = $'started\nstopped' ]
    vm_assert_nothing
}

systemd_unit() {
    text /etc/systemd/system/teller.service <<'END'
[Service]
ExecStart=/bin/sh -c 'exec teller'
END
    link ../teller.service /etc/systemd/system/multi-user.target.wants/teller.service
}

@test "systemd, found by auto, starts a unit of ours and says how it is" {
    systemd_unit
    becomes systemd inits --init auto -m 512M
    [ "$(jq -r .vm.init worker.json)" = /lib/systemd/systemd ]
    run timeout 180 msb-exec -r worker.json -- systemctl is-system-running --wait
    if [ "$output" != running ]; then
        echo "$output:"
        msb-exec -r worker.json -- systemctl --failed --no-legend --plain
        [ "$output" = degraded ]
    fi
    [ "$(vm_exec worker systemctl is-active teller.service)" = active ]
    [ "$(vm_exec worker systemctl show -P Environment teller.service)" = '' ]
    # The scripts are on the PATH of its services by themselves.
    [ "$(vm_exec worker sh -c 'tr "\0" "\n" </proc/$(systemctl show -P MainPID teller.service)/environ | grep ^PATH=/.msb/scripts: | wc -l')" = 1 ]
    goes_down
}

@test "systemd, by its path, goes by the unit that it is told" {
    systemd_unit
    becomes systemd inits --init /lib/systemd/systemd --init-arg --unit=multi-user.target --init-env container=msb
    [ "$(vm_exec worker systemctl list-units --type=target --state=active --plain --no-legend graphical.target | wc -l)" = 0 ]
    [ "$(vm_exec worker systemd-detect-virt --container)" != none ]
    goes_down
}

@test "BusyBox" {
    text /etc/inittab <<'END'
::sysinit:/bin/true
::respawn:/.msb/scripts/teller
END
    link ../bin/busybox /sbin/init
    becomes init tiny --init auto
    goes_down
}

@test "sysvinit" {
    without /etc/rcS.d
    text /etc/inittab <<'END'
id:2:initdefault:
si::sysinit:/etc/init.d/rcS
l2:2:wait:/etc/init.d/rc 2
te:2:respawn:/.msb/scripts/teller
l0:0:wait:/etc/init.d/rc 0
l6:6:wait:/etc/init.d/rc 6
END
    becomes init sysvinit --init auto
    [ "$(vm_exec worker readlink /proc/1/exe)" = /sbin/init ] || [ "$(vm_exec worker readlink /proc/1/exe)" = /usr/sbin/init ]
    [ "$(vm_exec worker runlevel)" = 'N 2' ]
    goes_down
}

@test "OpenRC, behind sysvinit" {
    without /etc/runlevels/sysinit
    text /etc/init.d/teller 0755 <<'END'
#!/sbin/openrc-run
command=/.msb/scripts/teller
command_background=true
pidfile=/run/teller.pid
END
    link /etc/init.d/teller /etc/runlevels/default/teller
    becomes init openrc --init auto
    timeout 60 msb-exec -r worker.json -- sh -c 'until rc-service teller status; do sleep 0.2; done' | grep started
    goes_down
}

@test "runit" {
    text /etc/sv/teller/run 0755 <<'END'
#!/bin/sh
exec /.msb/scripts/teller
END
    link ../sv/teller /etc/service/teller
    link ../../../sv/teller /etc/runit/runsvdir/default/teller
    becomes runit inits --init /lib/runit/runit-init
    goes_down
}

@test "s6" {
    text /etc/s6/scan/teller/run 0755 <<'END'
#!/bin/sh
exec /.msb/scripts/teller
END
    becomes s6-svscan inits --init /usr/bin/s6-svscan --init-arg /etc/s6/scan
    [[ $(vm_exec worker s6-svstat /etc/s6/scan/teller) == up* ]]
    goes_down
}

@test "Finit" {
    text /etc/finit.d/teller.conf <<'END'
service [2345] /.msb/scripts/teller -- Teller
END
    becomes finit inits --init /sbin/finit
    goes_down
}
