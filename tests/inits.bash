# shellcheck shell=bash
# Seven inits from Debian's packages, each with a service that notes in /srv/note when it starts and when it gets TERM.
# systemd has a second image, with D-Bus and /sbin/init. OpenRC runs under sysvinit as PID 1, and is powered off like it.
#
#   source tests/inits.bash; inits_record systemd mounted >mount.json; msb-boot -r mount.json $(inits_flags systemd)

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/image.bash"

# shellcheck disable=SC2034 # for those who source this
inits_all=(systemd busybox sysvinit openrc runit s6 finit)

# inits_flags NAME: msb-boot's flags for it.
inits_flags() {
    case $1 in
        systemd | busybox | sysvinit | openrc) echo --init auto ;;
        runit) echo --init /lib/runit/runit-init ;;
        s6) echo --init /usr/bin/s6-svscan --init-arg /etc/s6/scan ;;
        finit) echo --init /sbin/finit ;;
    esac
}

# inits_comm NAME: the name of PID 1.
inits_comm() {
    case $1 in
        sysvinit | openrc) echo init ;;
        s6) echo s6-svscan ;;
        systemd_sysv) echo systemd ;;
        *) echo "$1" ;;
    esac
}

# inits_record NAME MOUNTPOINT: prints the record of a mounted image with the init and the service.
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

# inits_ops NAME: prints the operations that add the service.
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

# inits_text PATH [MODE]: prints an operation that writes a file from stdin, and replaces an existing one.
inits_text() {
    jq -Rsc --arg path "$1" --arg mode "${2:-0644}" '{op: "text", $path, $mode, content: ., replace: true}'
}

# inits_link TARGET LINK
inits_link() {
    jq -nc --arg target "$1" --arg link "$2" '{op: "symlink", $target, $link, replace: true}'
}

# inits_empty PATH: prints operations that empty a directory of start-up scripts. They are for hardware that no VM has, and take
# a minute under emulation.
inits_empty() {
    jq -nc --arg path "$1" '{op: "remove", $path}, {op: "mkdir", $path}'
}

# A slow step of the start-up: the init is not usable before it is done.
inits_slow='sleep 1; echo >/srv/booted'

# inits_is_slow NAME: whether the init has that step. s6-svscan alone has no start-up.
inits_is_slow() { [ "$1" != s6 ]; }

# The script is on PATH. Inits that set their own PATH need its full path.
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
    inits_empty /etc/rcS.d
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
    inits_empty /etc/runlevels/sysinit
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
