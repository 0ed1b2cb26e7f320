# shellcheck shell=bash
# Seven inits out of Debian's packages, each with a service of ours that says on /srv/note when it starts and when it is told to end.
# systemd has a second image, with a D-Bus and an /sbin/init; OpenRC is behind sysvinit's PID 1 there, so it is asked as sysvinit is.
#
#   source tests/inits.bash; inits_record systemd mounted >mount.json; msb-boot -r mount.json $(inits_flags systemd)

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/image.bash"

# shellcheck disable=SC2034 # for those who source this
inits_all=(systemd busybox sysvinit openrc runit s6 finit)

# inits_flags NAME: what msb-boot is told.
inits_flags() {
    case $1 in
        systemd | busybox | sysvinit | openrc) echo --init auto ;;
        runit) echo --init /lib/runit/runit-init ;;
        s6) echo --init /usr/bin/s6-svscan --init-arg /etc/s6/scan ;;
        finit) echo --init /sbin/finit ;;
    esac
}

# inits_comm NAME: what PID 1 is called then.
inits_comm() {
    case $1 in
        sysvinit | openrc) echo init ;;
        s6) echo s6-svscan ;;
        systemd_sysv) echo systemd ;;
        *) echo "$1" ;;
    esac
}

# inits_record NAME MOUNTPOINT: the record of a mounted image with the init and the service.
inits_record() {
    local layout
    case $1 in
        busybox) layout=$(tiny_image) ;;
        sysvinit | openrc) layout=$("${1}_image") ;;
        systemd_sysv) layout=$(systemd_image) ;;
        *) layout=$(inits_image) ;;
    esac
    msb-pull -q "oci:$layout:latest" | msb-patch -f <(inits_ops "$1") | msb-mount "$2"
}

# inits_ops NAME: the operations that give the init the service.
inits_ops() {
    jq -Rsc '{op: "script", name: "teller", content: .}' <<'END'
#!/bin/sh
echo started >>/srv/note
trap 'echo stopped >>/srv/note; exit 0' TERM
while :; do sleep 86400 & wait $!; done
END
    echo '{"op":"mkdir","path":"/srv"}'
    "inits_ops_$1"
}

# inits_text PATH [MODE]: an operation that writes a file, from stdin, over what the image has.
inits_text() {
    jq -Rsc --arg path "$1" --arg mode "${2:-0644}" '{op: "text", $path, $mode, content: ., replace: true}'
}

# inits_link TARGET LINK
inits_link() {
    jq -nc --arg target "$1" --arg link "$2" '{op: "symlink", $target, $link, replace: true}'
}

# inits_without PATH: a directory of start-up scripts for hardware that no VM has, emptied: they are shell, and take a minute of
# emulation.
inits_without() {
    jq -nc --arg path "$1" '{op: "remove", $path}, {op: "mkdir", $path}'
}

# A step of the start-up that takes its time: an init that has one is not usable before that.
inits_slow='sleep 1; echo >/srv/booted'

# inits_is_slow NAME: whether it has one. s6-svscan by itself has no start-up.
inits_is_slow() { [ "$1" != s6 ]; }

# Services that run the script by its name have it from PATH; inits that set a PATH of their own want all of it.
inits_ops_systemd() {
    inits_text /etc/systemd/system/teller.service <<'END'
[Service]
ExecStart=/bin/sh -c 'exec teller'
END
    inits_link ../teller.service /etc/systemd/system/multi-user.target.wants/teller.service
    inits_text /etc/systemd/system/slow.service <<END
[Service]
Type=oneshot
ExecStart=/bin/sh -c '$inits_slow'
END
    inits_link ../slow.service /etc/systemd/system/multi-user.target.wants/slow.service
}

inits_ops_systemd_sysv() { inits_ops_systemd; }

inits_ops_busybox() {
    inits_text /etc/inittab <<END
::sysinit:/bin/sh -c '$inits_slow'
::respawn:/.msb/scripts/teller
END
    inits_link ../bin/busybox /sbin/init
}

inits_ops_sysvinit() {
    inits_without /etc/rcS.d
    inits_text /etc/slow 0755 <<<$'#!/bin/sh\n'"$inits_slow"
    inits_text /etc/inittab <<'END'
id:2:initdefault:
si::sysinit:/etc/init.d/rcS
l2:2:wait:/etc/init.d/rc 2
sl:2:wait:/etc/slow
te:2:respawn:/.msb/scripts/teller
l0:0:wait:/etc/init.d/rc 0
l6:6:wait:/etc/init.d/rc 6
END
}

inits_ops_openrc() {
    inits_without /etc/runlevels/sysinit
    inits_text /etc/init.d/teller 0755 <<'END'
#!/sbin/openrc-run
command=/.msb/scripts/teller
command_background=true
pidfile=/run/teller.pid
END
    inits_link /etc/init.d/teller /etc/runlevels/default/teller
    inits_text /etc/init.d/slow 0755 <<<$'#!/sbin/openrc-run\n'"start() { $inits_slow; }"
    inits_link /etc/init.d/slow /etc/runlevels/default/slow
}

inits_ops_runit() {
    inits_text /etc/sv/teller/run 0755 <<'END'
#!/bin/sh
exec /.msb/scripts/teller
END
    inits_link ../../../sv/teller /etc/runit/runsvdir/default/teller
    inits_text /etc/rcS.d/S99slow 0755 <<<$'#!/bin/sh\n'"$inits_slow"
}

inits_ops_s6() {
    inits_text /etc/s6/scan/teller/run 0755 <<'END'
#!/bin/sh
exec teller
END
}

inits_ops_finit() {
    inits_text /etc/finit.d/teller.conf <<'END'
service [2345] /.msb/scripts/teller -- Teller
run [2345] /etc/slow -- Slow
END
    inits_text /etc/slow 0755 <<<$'#!/bin/sh\n'"$inits_slow"
}
