#!/usr/bin/env bats
# What podman's options ask of msb-oci, compared with crun. The tests run with "make test-oci".

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats sets variables; inner shells expand theirs
bats_require_minimum_version 1.5.0

setup_file() {
    source "$BATS_TEST_DIRNAME/oci.bash"
    oci_start
}

setup() {
    source "$BATS_TEST_DIRNAME/oci.bash"
    source "$BATS_TEST_DIRNAME/vm.bash"
}

teardown() {
    P pod rm -fa -t 0 >/dev/null 2>&1 || true
    P rm -fa -t 0 >/dev/null 2>&1 || true
}

teardown_file() {
    source "$BATS_TEST_DIRNAME/oci.bash"
    oci_stop
}

# logged RUNTIME NAME LINE: waits until a container has written a line.
logged() {
    until podman_with "$1" logs "$2" 2>/dev/null | grep -qx "$3"; do
        [ "$(podman_with "$1" inspect "$2" --format '{{.State.Status}}')" = running ] || { podman_with "$1" logs "$2"; return 1; }
        sleep 0.1
    done
}

exit_code() { P inspect "$1" --format '{{.State.ExitCode}}'; }

# bats test_tags=slow
@test "users, groups, capabilities, limits, names and the environment are as with crun" {
    both run --rm --network none --user app --group-add 5000 --umask 027 --workdir /data --env 'A=b c' --hostname box \
        --ulimit nofile=100:200 --ulimit nproc=1024:1024 --add-host name:192.0.2.1 localhost/bb sh -c '
        grep -E "^(Uid|Gid|Groups|Umask|Cap...|NoNewPrivs)" /proc/self/status
        pwd; echo "$A"; hostname; ulimit -n; ulimit -Hn; grep name /etc/hosts; env | grep -v ^HOSTNAME= | sort'
    [[ $output == *Groups:*5000* ]]
    both run --rm --network none --cap-drop all --security-opt no-new-privileges localhost/bb \
        grep -E '^(Cap...|NoNewPrivs)' /proc/self/status
    [[ $output == *CapEff:*0000000000000000* ]]
    both run --rm --network none --cap-add sys_time --cap-drop chown localhost/bb grep -E '^Cap...' /proc/self/status
    [ "$status" = 0 ]
    # The container and what is executed in it have one kernel, which is not the host's.
    P run -d --name one --network none localhost/bb sh -c 'uname -r; sleep 1000'
    kernel=$(P exec one uname -r)
    logged msb one "$kernel"
    [ "$kernel" != "$(uname -r)" ]
}

# bats test_tags=slow
@test "a named volume, a secret, tmpfs and a read-only root are as with crun" {
    P volume create shared >/dev/null
    echo hidden | P secret create word - >/dev/null
    both run --rm --network none --read-only -v shared:/vol --secret word --tmpfs /t:size=1m,mode=1770 localhost/bb sh -c '
        cat /run/secrets/word; stat -c %a /t; dd if=/dev/zero of=/t/file bs=1024 count=2000 2>/dev/null; echo $?
        stat -f -c %T /t; touch /x 2>/dev/null; echo $?; touch /tmp/x; echo $?; cat /vol/* 2>/dev/null'
    [[ $output == *hidden* && $output == *1770* ]]
    [ "$(P run --rm --network none -v shared:/vol localhost/bb sh -c 'echo kept >/vol/file; echo $?')" = 0 ]
    [ "$(C run --rm --network none -v shared:/vol localhost/bb cat /vol/file)" = kept ]
}

# bats test_tags=slow
@test "each signal from 1 to 64 arrives as with crun" {
    local script='for n in $(seq 1 64); do case $n in 9 | 17 | 19) ;; *) trap "echo got $n" $n ;; esac; done 2>/dev/null
        echo ready; until [ -e /end ]; do sleep 0.05; done; sleep 0.1; echo end'
    for runtime in crun msb; do
        with() { podman_with $runtime "$@"; }
        with run -d --name signals --network none localhost/bb sh -c "$script" >/dev/null
        logged $runtime signals ready
        for n in {1..64}; do
            # The shell needs CHLD; KILL and STOP cannot be caught.
            case $n in 9 | 17 | 19) ;; *) with kill -s "$n" signals >/dev/null 2>&1 || true ;; esac
        done
        with exec signals touch /end
        with wait signals
        with logs signals | sort >"$oci/$runtime.signals"
        with rm signals
    done
    [ "$(grep -c got "$oci/crun.signals")" -gt 50 ]
    diff "$oci/crun.signals" "$oci/msb.signals"
}

# bats test_tags=slow
@test "stop kills a command without a handler after the grace period, and sends the signal of --stop-signal" {
    for runtime in crun msb; do
        podman_with $runtime run -d --name plain --network none localhost/bb sleep 1000
        podman_with $runtime stop -t 1 plain
        [ "$(exit_code plain)" = 137 ]
        podman_with $runtime rm plain
        podman_with $runtime run -d --name other --network none --stop-signal RTMIN+3 localhost/bb \
            sh -c 'trap "exit 5" 37; echo up; while :; do sleep 0.1; done'
        logged $runtime other up
        podman_with $runtime stop -t 60 other
        [ "$(exit_code other)" = 5 ]
        podman_with $runtime rm other
    done
}

# bats test_tags=slow
@test "the end of stdin ends a command, and output that nobody reads stalls no other command" {
    both run --rm -i --network none localhost/bb cat </dev/null
    [ "$status" = 0 ]
    P run -d --name one --network none localhost/bb sleep 1000
    mkfifo "$oci/unread"
    P exec one head -c 104857600 /dev/zero >"$oci/unread" &
    writer=$!
    # Open it without reading.
    exec 9<"$oci/unread"
    until P exec one ps | grep -q '[h]ead -c'; do kill -0 $writer; done
    [ "$(timeout 120 bash -c 'source tests/oci.bash; P exec one echo goes on')" = 'goes on' ]
    [ "$(wc -c <&9)" = 104857600 ]
    exec 9<&-
    wait $writer
}

# bats test_tags=slow
@test "a command that takes all memory is killed, and podman reports OOMKilled" {
    status=0
    P run --name hog --network none -m 128m localhost/bb tail /dev/zero || status=$?
    [ "$status" = 137 ]
    [ "$(P inspect hog --format '{{.State.OOMKilled}}')" = true ]
}

# bats test_tags=slow
@test "restarts, a health check, and what diff and commit see" {
    P run -d --name again --network none --restart on-failure:2 localhost/bb sh -c 'echo run; exit 3'
    is_over() { [ "$(P inspect again --format '{{.RestartCount}} {{.State.Status}}')" = '2 exited' ]; }
    vm_await is_over
    [ "$(P logs again)" = $'run\nrun\nrun' ]
    for runtime in crun msb; do
        podman_with $runtime run -d --name one --network none --health-cmd 'test -e /data/ok' --health-interval disable localhost/bb \
            sh -c 'mkdir /new; echo x >/new/file; rm /etc/locked; echo up; sleep 1000'
        logged $runtime one up
        if podman_with $runtime healthcheck run one; then return 1; fi
        podman_with $runtime exec one touch /data/ok
        podman_with $runtime healthcheck run one
        podman_with $runtime diff one | sort >"$oci/$runtime.diff"
        podman_with $runtime commit --quiet one localhost/committed-$runtime
        podman_with $runtime rm -f -t 0 one
    done
    diff "$oci/crun.diff" "$oci/msb.diff"
    [ "$(C run --rm --network none localhost/committed-msb sh -c 'cat /new/file; ls /etc/locked 2>/dev/null || echo gone')" = $'x\ngone' ]
}

# bats test_tags=slow
@test "podman build runs its steps in VMs, also after USER" {
    cat >"$oci/Containerfile" <<'END'
FROM localhost/bb
RUN uname -r >/kernel
RUN mkdir -p /made && chown app /made && echo one >/made/one
USER app
RUN id -u >/made/two
END
    in_ns env CONTAINERS_CONF="$oci/conf/containers.conf" podman --root "$oci/root" --runroot "$oci/run" --tmpdir "$oci/tmp" \
        --cgroup-manager cgroupfs --events-backend file --storage-driver overlay --runtime "$oci_here/../target/release/msb-oci" \
        build --isolation oci --network none --quiet -t localhost/built -f "$oci/Containerfile" "$oci/conf" 3>&- 4>&-
    built=$(C run --rm --network none localhost/built cat /kernel /made/one /made/two)
    [ "${built#*$'\n'}" = $'one\n1000' ]
    [ "${built%%$'\n'*}" != "$(uname -r)" ]
}

# bats test_tags=slow
@test "a hostile image and its volumes reach nothing outside of its root" {
    outside=$BATS_TEST_TMPDIR/outside
    mkdir "$outside"
    up=../../../../../../../../../../..
    cp -a "$oci/bb" "$oci/hostile"
    mkdir "$oci/hostile/run"
    ln -s "$up$outside" "$oci/hostile/etc/link"
    ln -s "$up$outside" "$oci/hostile/run/secrets"
    ln -s "$up$outside/made" "$oci/hostile/vol"
    ln -s "/proc/1/root$BATS_TEST_TMPDIR" "$oci/hostile/proc-root"
    mknod "$oci/hostile/zero" c 1 5 || true
    tar -C "$oci/hostile" -c . | C import - localhost/hostile >/dev/null
    echo hidden | P secret create hostile - >/dev/null
    P run --rm --network none localhost/hostile true
    written=
    for volume in /vol/file /etc/link/file /proc-root/outside/file /run/secrets/other; do
        for secret in '' --secret=hostile; do
            echo content >"$oci/content"
            # shellcheck disable=SC2086 # none, or one
            capture P run --rm --network none $secret -v "$oci/content:$volume" localhost/hostile sh -c "cat $volume; echo x >$volume"
            echo "$volume $secret: $status $output $stderr"
            [ -z "$(ls -A "$outside")" ]
            # A volume may have written to its source, and to nothing else.
            case $(cat "$oci/content") in
                x) [ "$status" != 0 ] || written+=" $volume" ;;
                content) ;;
                *) return 1 ;;
            esac
        done
    done
    echo "written:$written"
    [ -n "$written" ]
    # podman itself refuses an image whose /etc leads nowhere.
    rm -r "$oci/hostile/etc"
    ln -s "$up$outside" "$oci/hostile/etc"
    tar -C "$oci/hostile" -c . | C import - localhost/hostile >/dev/null
    for runtime in crun msb; do
        capture podman_with $runtime run --rm --network none localhost/hostile true
        [ "$status" = 127 ]
        [ -z "$(ls -A "$outside")" ]
    done
    [ -z "$(oci_leftovers)" ] || { oci_leftovers; return 1; }
}

# bats test_tags=slow
@test "a pod of podman: a VM for each container, or one for all of them, which share localhost" {
    # The cgroup that podman 4.3 makes for a pod, if it is one of version 2 and not systemd's, refuses all devices.
    C pod create --name pod --network none >/dev/null
    C run --rm --pod pod localhost/bb true || skip "crun cannot run a container in a pod here, either"
    C pod rm -f -t 0 pod >/dev/null
    for flags in '' '--runtime-flag pod-vm'; do
        with() {
            # shellcheck disable=SC2086 # two words
            P $flags "$@"
        }
        with pod create --name pod --network none >/dev/null
        with run -d --pod pod --name one localhost/bb \
            sh -c 'echo served >/data/file; httpd -p 127.0.0.1:8080 -h /data; trap "exit 4" TERM; while :; do sleep 0.1; done'
        with run -d --pod pod --name two localhost/bb sleep 1000
        kernel() { P exec "$1" cat /proc/sys/kernel/random/boot_id; }
        if [ -z "$flags" ]; then
            [ "$(kernel one)" != "$(kernel two)" ]
        else
            [ "$(kernel one)" = "$(kernel two)" ]
            until [ "$(P exec two wget -q -O - http://127.0.0.1:8080/file)" = served ]; do P exec one true; done
            run P pause two
            [[ $output == *'shares the VM of its pod'* ]]
        fi
        P stop -t 60 one
        [ "$(exit_code one)" = 4 ]
        with start one
        [ "$(P exec one echo again)" = again ]
        [ "$(P exec two echo on)" = on ]
        P pod rm -f -t 0 pod
        [ -z "$(oci_leftovers)" ] || { oci_leftovers; return 1; }
    done
}

# bats test_tags=slow
@test "a terminal is resized and detached from, and exec has one too" {
    cat >"$oci/resize.py" <<'END'
import array, fcntl, os, pty, select, struct, subprocess, sys, termios, time

def talk(command, *steps):
    fd, slave = pty.openpty()
    take = lambda: (os.setsid(), fcntl.ioctl(0, termios.TIOCSCTTY))
    child = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, preexec_fn=take)
    out = b""
    for word, answer in steps:
        while word.encode() not in out:
            if not select.select([fd], [], [], 240)[0]:
                sys.exit(f"no {word} in {out}")
            out += os.read(fd, 65536)
        out = out[out.index(word.encode()) + len(word):]
        if callable(answer):
            answer(fd, slave)
        else:
            os.write(fd, answer.encode())
    os.close(slave)
    try:
        while os.read(fd, 65536):
            pass
    except OSError:
        pass
    return child.wait()

def resize(fd, slave):
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
    # A signal tells the shell the new size. It asks until it has that.
    os.write(fd, b"until stty size | grep '33 99'; do sleep 0.1; done; echo seen$((1 + 1))\n")

def detach(fd, slave):
    # podman takes keys that it reads one by one.
    for key in b"\x10", b"\x11":
        os.write(fd, key)
        unread = array.array("i", [1])
        while unread[0]:
            fcntl.ioctl(slave, termios.FIONREAD, unread)
            time.sleep(0.01)

podman = ["bash", "-c", 'source tests/oci.bash; P "$@"', "-"]
detached = talk(podman + ["run", "-it", "--name", "terminal", "--network", "none", "localhost/bb", "sh"],
                ("# ", resize), ("seen2", detach))
assert detached == 0, detached
assert talk(podman + ["exec", "-it", "terminal", "sh"], ("# ", resize), ("seen2", "tty\n"), ("/dev/pts/", "exit 5\n")) == 5
END
    cd "$BATS_TEST_DIRNAME/.."
    python3 "$oci/resize.py"
    [ "$(P inspect terminal --format '{{.State.Status}}')" = running ]
}
