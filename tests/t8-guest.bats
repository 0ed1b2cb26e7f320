#!/usr/bin/env bats
# What msb adds to an image at boot: the files of /etc that docker binds too, /run, the directories that an
# image declares, and the signal by which commands are stopped.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; inner shells expand theirs
bats_require_minimum_version 1.5.0

setup() {
    source "$BATS_TEST_DIRNAME/vm.bash"
    vm_setup
}

teardown() {
    vm_teardown
}

# in_vm LINE: runs a line with the guest's shell.
in_vm() {
    msb-exec -n -r worker.json --shell "$1"
}

@test "localhost and the VM's name resolve in an image without /etc/hosts, and nothing of it stays in the root" {
    before=$(cd "$vm_root" && find . | sort; stat -c %y etc)
    vm_boot worker
    [ "$(in_vm 'for name in localhost worker; do ping -c 1 -W 120 $name | head -n 1; done' | cut -d' ' -f2,3 | xargs)" = 'localhost (127.0.0.1): worker (127.0.0.1):' ]
    [ "$(in_vm 'cat /etc/hostname; hostname; grep -c "^nameserver" /etc/resolv.conf' | xargs)" = 'worker worker 0' ]
    [ "$(in_vm 'stat -c "%a %u %g" /etc/hosts /etc/hostname /etc/resolv.conf | sort -u')" = '644 0 0' ]
    # The guest can change them until it ends.
    in_vm 'for file in hosts hostname resolv.conf; do echo "10.0.0.9 changed" >>/etc/$file || exit; done; echo >/srv 2>/dev/null'
    msb-stop -r worker.json >/dev/null
    for file in hosts hostname resolv.conf; do run ! vm_has worker "/etc/$file"; done
    [ "${MSB_TEST_ROOT:-share}" = block ] || [ "$(cd "$vm_root" && rm -f srv && find . | sort; stat -c %y etc)" = "$before" ]
    vm_assert_nothing
}

@test "an image's own lines, owner and mode of these files stay, and symlinks to nowhere are followed inside the root" {
    printf '192.0.2.7 mine' >"$vm_root/etc/hosts"
    chown 7:8 "$vm_root/etc/hosts"
    chmod 0640 "$vm_root/etc/hosts"
    ln -s /data/name "$vm_root/etc/hostname"
    ln -s ../run/systemd/resolve/stub-resolv.conf "$vm_root/etc/resolv.conf"
    vm_boot worker
    [ "$(in_vm 'cat /etc/hosts')" = $'192.0.2.7 mine\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.0.1\tworker' ]
    [ "$(in_vm 'stat -c "%a %u %g" /etc/hosts; cat /data/name; readlink /etc/hostname' | xargs)" = '640 7 8 worker /data/name' ]
    [ "$(in_vm 'echo nameserver 192.0.2.1 >/etc/resolv.conf && cat /run/systemd/resolve/stub-resolv.conf')" = 'nameserver 192.0.2.1' ]
    msb-stop -r worker.json >/dev/null
    [ "$(cat "$vm_root/etc/hosts")" = '192.0.2.7 mine' ]
    [ ! -e "$vm_root/data" ]
    run ! vm_has worker /data
}

@test "what cannot be bound there is left alone with a message, and the VM boots" {
    ln -s /proc/1/environ "$vm_root/etc/hosts"
    mkdir "$vm_root/etc/hostname"
    ln -s resolv.conf "$vm_root/etc/resolv.conf"
    vm_boot worker --kernel-log log
    [ "$(in_vm 'hostname; readlink /etc/hosts; ls -d /etc/hostname' | xargs)" = 'worker /proc/1/environ /etc/hostname' ]
    tr -d '\r' <log >lines
    grep -qF 'agentd: /etc/hosts: left alone: the image has a symlink to "/proc/1/environ" there' lines
    grep -qF 'agentd: /etc/hostname: left alone: the image has a directory there' lines
    grep -q '^agentd: /etc/resolv.conf: ELOOP\|^agentd: /etc/resolv.conf: .*symbolic' lines
    msb-stop -r worker.json >/dev/null
    # A FIFO without a writer is not opened, and a large file is not read.
    rm -r "$vm_root"/etc/{hosts,hostname,resolv.conf}
    mkfifo "$vm_root/etc/hosts"
    truncate -s 1G "$vm_root/etc/resolv.conf"
    vm_boot other --timeout 600
    [ "$(vm_exec other sh -c 'grep -c localhost /etc/hosts; stat -c %s /etc/resolv.conf' | xargs)" = '2 1073741824' ]
}

@test "/run is a tmpfs with a copy of the image's files, and changes to it end with the VM" {
    mkdir -p "$vm_root"/run/{app/inner,secrets} "$vm_root/var"
    ln -s /run "$vm_root/var/run"
    chown 999:998 "$vm_root/run/app"
    chmod 2775 "$vm_root/run/app"
    printf 's3cret\n' >"$vm_root/run/secrets/token"
    chmod 0600 "$vm_root/run/secrets/token"
    setfattr -n trusted.note -v kept "$vm_root/run/secrets/token"
    touch -d '2001-02-03 04:05:06' "$vm_root/run/secrets/token"
    ln -s nowhere "$vm_root/run/link"
    mkfifo -m 0622 "$vm_root/run/fifo"
    python3 -c 'import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])' "$vm_root/run/socket"
    vm_boot worker
    [ "$(in_vm 'stat -f -c %T /run; stat -c "%a %u %g" /var/run/app' | xargs)" = 'tmpfs 2775 999 998' ]
    [ "$(in_vm 'stat -c "%a %Y" /run/secrets/token; cat /run/secrets/token' | xargs)" = "600 $(date -d '2001-02-03 04:05:06' +%s) s3cret" ]
    [ "$(in_vm 'stat -c "%a %F" /run/fifo; readlink /run/link; ls -d /run/app/inner; ls /run/socket 2>&1 | grep -c "No such"' | xargs)" = '622 fifo nowhere /run/app/inner 1' ]
    in_vm 'echo >/run/made && rm /run/secrets/token'
    msb-stop -r worker.json >/dev/null
    run ! vm_has worker /run/made
    [ -e "$vm_root/run/secrets/token" ]
}

@test "/run is followed if it is a symlink, and is not copied beyond a limit" {
    rmdir "$vm_root/run"
    mkdir -p "$vm_root/var/run/app"
    ln -s /var/run "$vm_root/run"
    vm_boot worker
    [ "$(in_vm 'stat -f -c %T /run/; ls -d /run/app; grep -c " /var/run tmpfs" /proc/mounts' | xargs)" = 'tmpfs /run/app 1' ]
    msb-stop -r worker.json >/dev/null
    # A dangling symlink: its target is made, and removed at the end.
    rm -r "$vm_root"/{run,var}
    ln -s data/run "$vm_root/run"
    vm_boot worker
    [ "$(in_vm 'stat -f -c %T /data/run')" = tmpfs ]
    msb-stop -r worker.json >/dev/null
    [ ! -e "$vm_root/data" ]
    # Too large to be copied: /run is the image's directory then.
    rm "$vm_root/run"
    mkdir "$vm_root/run"
    truncate -s 100M "$vm_root/run/large"
    vm_boot worker --kernel-log log
    [ "$(in_vm 'stat -c %s /run/large; grep -c " /run tmpfs" /proc/mounts' | xargs)" = '104857600 0' ]
    grep -q "agentd: /run stays the image's directory instead of a tmpfs" log
    msb-stop -r worker.json >/dev/null
    # What is no directory stays as it is.
    rm -r "$vm_root/run"
    ln -s /proc "$vm_root/run"
    vm_boot worker --kernel-log log
    [ "$(in_vm 'readlink /run')" = /proc ]
    grep -q 'agentd: /run stays as the image has it, without a tmpfs: it is a symlink to "/proc"' log
    msb-stop -r worker.json >/dev/null
    rm "$vm_root/run"
    echo file >"$vm_root/run"
    vm_boot worker
    [ "$(in_vm 'cat /run')" = file ]
}

@test "an image's working directory and volumes are created, and an empty string is no entrypoint" {
    ln -s /data/real "$vm_root/linked"
    jq -c '.image = {ref: "x", platform: "linux/amd64", config: {Env: ["PATH=/bin"], Entrypoint: [""], Cmd: ["pwd"], WorkingDir: "/linked/app",
        User: "nobody", Volumes: {"/var/lib/data": {}, "/etc/passwd": {}, "/proc/x": {}, "var/relative": {}}}}' "$vm_record" >image.json
    uname -m | grep -q x86_64 || sed -i 's,linux/amd64,linux/arm64,' image.json
    vm_record=image.json vm_boot worker
    [ "$(msb-exec -r worker.json)" = /data/real/app ]
    [ "$(in_vm 'stat -c "%a %u %g" /data/real /data/real/app /var /var/lib/data /var/relative | sort -u')" = '755 0 0' ]
    [ "$(in_vm 'head -n 1 /etc/passwd')" = 'root:x:0:0:root:/root:/bin/sh' ]
    # As with docker exec, the directory of -w must exist.
    run --separate-stderr msb-exec -r worker.json -w /none -- true
    [ "$status" -eq 125 ]
    [[ $stderr == *'workdir "/none": No such file or directory'* ]]
    vm_record=image.json vm_boot other -w /none/../made/./here
    [ "$(msb-exec -r other.json)" = /made/here ]
    # An image for another architecture is refused before anything is made.
    jq -c '.image.platform = "linux/s390x"' image.json >foreign.json
    run --separate-stderr msb-boot -r foreign.json
    [ "$status" -eq 1 ]
    [[ $stderr == 'msb-boot: the image is for linux/s390x, and guests run linux/'* ]]
}

@test "commands get the image's stop signal or the flag's, and then TERM if they have not ended" {
    listen='for signal in QUIT TERM INT; do trap "echo $signal >>/tmp/heard.$0; [ $signal = $1 ] && exit 0" $signal; done; echo up; while :; do sleep 100 & wait $!; done'
    jq -c '.image = {ref: "x", config: {Env: ["PATH=/bin"], StopSignal: "SIGQUIT"}}' "$vm_record" >quit.json
    # stop_two NAME SIGNAL: stops a VM with two commands, of which one ends on SIGNAL, the other only on TERM. Of the 30 s the
    # commands have 28, and TERM is sent when 7 are left of those.
    stop_two() {
        local name=$1 first=$2
        msb-exec -n -r "$name.json" -- sh -c "$listen" "$name.first" "$first" >"$name.one" 3>&- &
        msb-exec -n -r "$name.json" -- sh -c "$listen" "$name.last" TERM >"$name.two" 3>&- &
        vm_await grep -q up "$name.one"
        vm_await grep -q up "$name.two"
        msb-stop -r "$name.json" -t 30 2>"$name.stopped" 3>&-
        wait
    }
    # heard NAME: the signals that the two commands got.
    heard() {
        [ "$(cat "$1.stopped")" = "msb-stop: $1: stopped" ] || cat "$1.stopped"
        { vm_file "$1" "/tmp/heard.$1.first"; vm_file "$1" "/tmp/heard.$1.last"; } | xargs
    }
    vm_record=quit.json vm_boot image
    vm_record=quit.json vm_boot flag --stop-signal INT
    stop_two image QUIT &
    stop_two flag INT
    wait
    [ "$(heard image)" = 'QUIT QUIT TERM' ]
    [ "$(heard flag)" = 'INT INT TERM' ]
    # An unknown signal counts as none.
    jq -c '.image.config.StopSignal = "SIGNONE"' quit.json >bad.json
    vm_record=bad.json vm_boot unknown
    stop_two unknown TERM
    [ "$(heard unknown)" = 'TERM TERM' ]
    [ "$(cat unknown.err)" = "msb-boot: the image's stop signal \"SIGNONE\" does not exist: commands get SIGTERM (set --stop-signal)" ]
}

@test "--bare leaves the root alone, and --end-with stops the VM with a process or a descriptor" {
    vm_needs_share
    # Names of 64 characters need a short directory for the sockets.
    MSB_RUN=$(mktemp -d /tmp/msb.XXX)
    XDG_RUNTIME_DIR=$MSB_RUN
    mkdir -p "$vm_root/ctr/bin"
    cp "$vm_root/bin/busybox" "$vm_root/ctr/bin/sh"
    before=$(cd "$vm_root" && find . | sort; stat -c %y . ctr)
    name=$(printf 'x%.0s' {1..64})
    sleep 1000 3>&- &
    vm_boot "$name" --bare --hostname box --end-with $! --restart always
    mv "$name.json" worker.json
    [ "$(cd "$vm_root" && find . | sort; stat -c %y . ctr)" = "$before" ]
    run --separate-stderr in_vm true
    [ "$status" = 125 ]
    [[ $stderr == *'booted with --bare'* ]]
    jq -n '{root: {path: "ctr"}, process: {args: ["sh", "-c", "echo /*; hostname"], cwd: "/", env: []}}' > container.json
    [ "$(msb-exec -n -r worker.json --container container.json)" = $'/bin\nbox' ]
    [ "$(cd "$vm_root" && find . | sort)" = "$(head -n -2 <<< "$before")" ]
    kill $!
    exec_ended() { [ "$(jq -r .reason "$MSB_RUN/$name/ended.json" 2>/dev/null)" = stopped ]; }
    until exec_ended; do kill -0 "$(jq .vm.pid worker.json)" || exec_ended; sleep 0.1; done
    msb-stop -r worker.json > /dev/null
    vm_assert_nothing
    rmdir "$MSB_RUN"
    # Usage errors, before anything is booted.
    for arg in --end-with=0 --end-with=fd:2 "--end-with=$!" --end-with=fd:77 --bare\ --init=auto; do
        # shellcheck disable=SC2086 # words
        run ! msb-boot -r "$vm_record" $arg
    done
}
