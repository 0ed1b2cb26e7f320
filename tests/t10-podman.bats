#!/usr/bin/env bats
# podman with msb-oci, compared with crun. The tests with the tag slow are those of "make test-oci".

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats sets variables; inner shells expand theirs
bats_require_minimum_version 1.5.0

setup_file() {
    source "$BATS_TEST_DIRNAME/oci.bash"
    oci_start
}

setup() { source "$BATS_TEST_DIRNAME/oci.bash"; }

teardown() {
    P rm -fa -t 0 >/dev/null 2>&1 || true
    in_ns ip netns del msb-oci-test 2>/dev/null || true
}

teardown_file() {
    source "$BATS_TEST_DIRNAME/oci.bash"
    oci_stop
}

@test "a container runs with its streams apart and its status, and leaves nothing" {
    both run --rm --network none localhost/bb sh -c 'echo out; echo err >&2; exit 7'
    [ "$status" = 7 ]
    [ "$output" = out ]
    [ -z "$(oci_leftovers)" ] || { oci_leftovers; return 1; }
}

@test "a command that is missing or a directory has the status that crun gives, and leaves nothing" {
    for command in nonexistent /etc; do
        both run --rm --network none localhost/bb $command
        [[ $status = 12[67] ]]
    done
    [ -z "$(oci_leftovers)" ] || { oci_leftovers; return 1; }
}

@test "what a VM cannot do is refused with the reason" {
    for flags in '--pid host|--pid host: a VM has a kernel' '--ipc host|--ipc host: a VM has a memory' \
        '--uts host|--uts host: a VM has a name' '--network host|--network host: a VM has interfaces' \
        '--uidmap 0:1000:1000|user namespace: the guest has users' '--annotation dev.msb.cpus=0|annotation dev.msb.cpus'; do
        # shellcheck disable=SC2086 # several words
        capture P run --rm ${flags%%|*} localhost/bb true
        [ "$status" != 0 ]
        [[ $stderr == *"msb-oci: ${flags#*|}"* ]] || { echo "$flags: $stderr"; return 1; }
    done
    [ -z "$(oci_leftovers)" ] || { oci_leftovers; return 1; }
}

@test "one container: exec, volumes, cp, stats, pause, signals, stop and start again" {
    mkdir -p "$oci/vol"
    echo host >"$oci/one"
    P run -d --name one --network none --hostname box -v "$oci/vol:/vol" -v "$oci/one:/etc/one:ro" localhost/bb \
        sh -c 'trap "exit 9" TERM; trap "echo usr1" USR1; echo up; while :; do sleep 0.1; done'
    pid=$(P inspect one --format '{{.State.Pid}}')
    # exec: streams, status, user, and the kernel of the VM.
    capture P exec -i -u 1000:1000 -w /tmp -e A=b one sh -c 'id -u; pwd; echo $A; cat; echo err >&2; exit 3' <<<in
    [ "$status" = 3 ]
    [ "$output" = $'1000\n/tmp\nb\nin' ]
    [ "$stderr" = err ]
    for command in nonexistent /etc; do
        capture P exec one $command
        [[ $status = 12[67] ]]
    done
    [ "$(P exec one uname -r)" != "$(uname -r)" ]
    [ "$(P exec one hostname)" = box ]
    # Volumes are live in both directions, and a read-only one is that.
    P exec one sh -c 'echo guest >/vol/file'
    [ "$(cat "$oci/vol/file")" = guest ]
    run P exec one sh -c 'cat /etc/one; echo x >/etc/one'
    [ "$status" != 0 ]
    [[ $output == host* ]]
    # The process of the container has nothing of the host: podman cp writes into the container, also through its symlinks.
    P exec one sh -c 'ln -s /../../../../../../tmp /escape'
    echo copied >"$oci/msb-cp-$$"
    P cp "$oci/msb-cp-$$" one:/etc/msb-cp-$$
    P cp "$oci/msb-cp-$$" one:/escape/msb-cp-$$
    [ ! -e /etc/msb-cp-$$ ]
    [ ! -e /tmp/msb-cp-$$ ]
    [ "$(P exec one cat /etc/msb-cp-$$ /tmp/msb-cp-$$)" = $'copied\ncopied' ]
    P cp one:/etc/passwd "$oci/passwd"
    grep -q app "$oci/passwd"
    for namespace in mnt net ipc uts pid; do
        [ "$(readlink "/proc/$pid/ns/$namespace")" != "$(readlink "/proc/self/ns/$namespace")" ]
    done
    [ "$(in_ns chroot "/proc/$pid/root" /bin/cat /etc/one)" = host ]
    for stream in 0 1 2; do
        [ "$(readlink "/proc/$pid/fd/$stream")" = /dev/null ]
    done
    P stats --no-stream --format '{{.MemUsage}}' one | grep -q MB
    P pause one
    [ "$(P inspect one --format '{{.State.Status}}')" = paused ]
    P unpause one
    P kill -s USR1 one
    until P logs one 2>&1 | grep -qx usr1; do sleep 0.1; done
    # The stand-in ends with the command's status, and the VM with it.
    P stop -t 60 one
    [ "$(P inspect one --format '{{.State.ExitCode}}')" = 9 ]
    [ -z "$(oci_leftovers | grep -v merged)" ] || { oci_leftovers; return 1; }
    P start one
    [ "$(P exec one echo again)" = again ]
    P rm -f -t 0 one
    [ -z "$(oci_leftovers)" ] || { oci_leftovers; return 1; }
}

# bats test_tags=slow
@test "exit statuses from 0 to 255, and of signals" {
    both run --rm --network none localhost/bb /etc/locked
    for command in true false 'exit 255' 'exit 126' 'exit 127' 'exit 128' 'sh -c "kill -9 \$\$"; exit $?'; do
        both run --rm --network none localhost/bb sh -c "$command"
    done
    [ "$status" = 137 ]
}

# bats test_tags=slow
@test "a terminal: run -it and exec -it have one with its size, and ^C reaches the command" {
    cat >"$oci/terminal.py" <<'END'
import os, pty, select, sys
def talk(command, *steps):
    pid, fd = pty.fork()
    if pid == 0:
        os.execvp(command[0], command)
    out = b""
    def until(word):
        nonlocal out
        while word not in out:
            if not select.select([fd], [], [], 120)[0]:
                sys.exit(f"no {word} in {out}")
            out += os.read(fd, 65536)
        out = out[out.index(word) + len(word):]
    for word, answer in steps:
        until(word.encode())
        os.write(fd, answer.encode())
    try:
        while os.read(fd, 65536):
            pass
    except OSError:
        pass
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
run = ["bash", "-c", 'source tests/oci.bash; P "$@"', "-"]
image = ["--rm", "--network", "none", "localhost/bb", "sh"]
steps = ("# ", "stty size; tty\n"), ("24 80", "\n"), ("/dev/pts/", "sleep 1000\n"), ("sleep 1000", "\x03"), ("# ", "exit 6\n")
assert talk(run + ["run", "-it", *image], *steps) == 6
END
    cd "$BATS_TEST_DIRNAME/.."
    python3 "$oci/terminal.py"
}

# bats test_tags=slow
@test "a hundred megabytes through cat arrive whole" {
    head -c 100M /dev/urandom >"$oci/data"
    expected=$(sha256sum <"$oci/data")
    [ "$(P run --rm -i --network none localhost/bb cat <"$oci/data" | sha256sum)" = "$expected" ]
}

# bats test_tags=slow
@test "memory, processors, user, working directory and umask as asked" {
    run P run --rm --network none -m 200m --cpus 2 --user app --workdir /data --umask 027 localhost/bb \
        sh -c 'grep MemTotal /proc/meminfo; nproc; id -u; pwd; umask'
    [ "$status" = 0 ]
    [[ ${lines[0]} =~ ([0-9]+)\ kB ]]
    [ "${BASH_REMATCH[1]}" -lt $((200 * 1024)) ]
    [ "${lines[*]:1}" = "2 1000 /data 0027" ] || [ "$(nproc)" = 1 ]
}

# bats test_tags=slow
@test "the end of a process of the VM ends the container, and nothing is left" {
    for victim in stand-in vmm command; do
        P run -d --name victim --network none localhost/bb sleep 1000
        pid=$(P inspect victim --format '{{.State.Pid}}')
        case $victim in
            stand-in) kill -9 "$pid" ;;
            vmm) kill -9 "$(jq .vm.pid "/run/msb-oci/$(P inspect victim --format '{{.Id}}')/vm.json")" ;;
            command) pkill -9 -f "msb-exec.*$(P inspect victim --format '{{.Id}}')" ;;
        esac
        run --separate-stderr timeout 300 bash -c "source '$BATS_TEST_DIRNAME/oci.bash'; P wait victim"
        [ "$status" = 0 ]
        [[ $output =~ ^[1-9][0-9]*$ ]]
        P rm -f -t 0 victim
        [ -z "$(oci_leftovers)" ] || { echo "$victim"; oci_leftovers; return 1; }
    done
}

# bats test_tags=slow
@test "a second container in a network namespace is refused, and the first one keeps its interface until it is removed" {
    [ -e /dev/net/tun ] || skip "/dev/net/tun is missing"
    in_ns ip netns add msb-oci-test
    in_ns ip link add msb-oci-test type veth peer name eth0 netns msb-oci-test
    in_ns ip -n msb-oci-test address add 10.99.0.2/24 dev eth0
    in_ns ip -n msb-oci-test link set eth0 up
    in_ns ip link set msb-oci-test up
    links() {
        in_ns ip -n msb-oci-test -o link | cut -d: -f2
        in_ns tc -n msb-oci-test qdisc show
        in_ns tc -n msb-oci-test filter show dev eth0 ingress 2>&1 || true
    }
    before=$(links)
    P run -d --name first --network ns:/run/netns/msb-oci-test localhost/bb sleep 1000
    during=$(links)
    [[ $during == *msb0* ]]
    capture P run --rm --network ns:/run/netns/msb-oci-test localhost/bb true
    [ "$status" != 0 ]
    [[ $stderr == *"the VM of another container has it"* ]]
    [ "$(links)" = "$during" ]
    P rm -f -t 0 first
    [ "$(links)" = "$before" ]
}
