#!/usr/bin/env bats
# msb-boot: from a record to a VM whose agent answers, and what a failed boot leaves behind.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; inner shells expand theirs
bats_require_minimum_version 1.5.0

setup() {
    source "$BATS_TEST_DIRNAME/vm.bash"
    vm_setup
}

teardown() {
    vm_teardown
    for place in small mounted; do
        if grep -q " $BATS_TEST_TMPDIR/$place " /proc/self/mountinfo; then umount -l "$place"; fi
    done
}

# idle_agent FILE: writes the smallest program that never ends: an ELF header, one segment, pause(2) in a loop.
idle_agent() {
    {
        printf '\177ELF\2\1\1\0\0\0\0\0\0\0\0\0' # 64 bits, little-endian
        printf '\2\0\76\0\1\0\0\0\170\0\100\0\0\0\0\0' # an executable for x86-64, its entry
        printf '\100\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0' # where the program header is
        printf '\0\0\0\0\100\0\70\0\1\0\0\0\0\0\0\0' # sizes
        printf '\1\0\0\0\5\0\0\0\0\0\0\0\0\0\0\0' # load and execute the file from its start
        printf '\0\0\100\0\0\0\0\0\0\0\100\0\0\0\0\0' # at 4 MiB
        printf '\201\0\0\0\0\0\0\0\201\0\0\0\0\0\0\0\0\20\0\0\0\0\0\0' # all of it, in pages
        printf '\270\42\0\0\0\17\5\353\367' # mov $34, %eax; syscall; jmp back
    } >"$1"
}

# Starts msb-boot in the background ($boot), and returns once it starts the VM's processes.
boot_halfway() {
    env --default-signal=INT msb-boot -r "$vm_record" --name half >half.json 2>half.err 3>&- &
    boot=$!
    until [ -S "$XDG_RUNTIME_DIR/msb/half/door/agent.sock" ]; do
        kill -0 "$boot" || return
        sleep 0.01
    done
}

# bats test_tags=vmm
@test "the record gets the member vm, the same on stdout and in the run directory" {
    vm_boot worker
    diff worker.json "$XDG_RUNTIME_DIR/msb/worker/record.json"
    [ "$(wc -l <worker.json)" -eq 1 ]
    diff <(jq -S 'del(.vm, .boot)' worker.json) <(jq -S . "$vm_record")
    jq -e --arg root "${MSB_TEST_ROOT:-share}" '.vm | .name == "worker" and .root == $root and .init == null and (.endpoint.handshake | type) == "boolean"' worker.json
    jq -e '.vm.timings_ms | 0 < .spawn and .spawn < .kernel and .kernel <= .agent and .agent <= .ready' worker.json
    [ ! -s worker.err ]
}

@test "only the owner can read the run directory, and the VM's user reads what it needs with any umask" {
    export MSB_HOME=$BATS_TEST_TMPDIR/fresh
    umask 077
    vm_boot worker
    [ "$(stat -c %a "$XDG_RUNTIME_DIR/msb/worker")" = 700 ]
    [ -z "$(find "$XDG_RUNTIME_DIR/msb/worker" -maxdepth 1 ! -type d ! -perm /077 -prune -o ! -type d -print)" ]
    # The VMM reads the initramfs as a user of its own, and nobody else finds it.
    initramfs=$(find "/proc/$(vm_vmm worker)/fd" -lname '*/initramfs (deleted)')
    [ "$(stat -Lc '%a %u' "$initramfs")" = "600 $((0x70000000 + $(vm_pid worker)))" ]
}

@test "two VMs run at the same time, each with its own name" {
    vm_boot one &
    vm_boot two
    wait $!
    [ "$(vm_exec one hostname)" = one ]
    [ "$(vm_exec two hostname)" = two ]
}

@test "VMs that share a root keep the agent's mount points in it until the last one ends, which removes them" {
    vm_needs_share
    rmdir "$vm_root"/{dev,proc,run,sys}
    mkdir -p "$vm_root/etc/profile.d"
    before=$(cd "$vm_root" && find . | sort)
    printf '#!/bin/sh\necho hello\n' >hello
    # A killed VM leaves a list of its agent's mount points. It is stale when the next one boots.
    vm_boot killed
    kill -KILL "$(vm_pid killed)"
    vm_await_end "$(vm_pid killed)"
    rmdir "$vm_root"/{dev,proc,run,sys,.msb}
    rm "$vm_root/etc/profile.d/msb-scripts.sh" "$vm_root"/etc/{hosts,hostname,resolv.conf}
    for name in one two three; do vm_boot "$name" --script hello=hello & done
    wait
    for name in one two; do
        msb-stop -r "$name" >/dev/null
        # Longer than a guest caches entries of a shared directory.
        sleep 2
        [ "$(vm_exec three sh -lc 'hello; ls -d /proc/self /dev/null /sys/fs /run/..' | xargs)" = \
            'hello /dev/null /proc/self /run/.. /sys/fs' ]
    done
    msb-stop -r three >/dev/null
    [ "$(cd "$vm_root" && find . | sort)" = "$before" ]
    [ ! -e "$XDG_RUNTIME_DIR/msb/.roots" ]
}

@test "a VM without a name gets one of its own" {
    msb-boot -r "$vm_record" >worker.json
    name=$(jq -r .vm.name worker.json)
    [[ $name == vm-* ]]
    [ "$(msb-exec -r "$name" -- hostname)" = "$name" ]
}

@test "a name in use is refused, and the VM of that name keeps running" {
    vm_boot worker
    run --separate-stderr msb-boot -r "$vm_record" --name worker
    [ "$status" -eq 1 ]
    [ -z "$output" ]
    [[ $stderr == 'msb-boot: name "worker": a VM of that name is running (take another --name, or run "msb-stop -r worker")' ]]
    [ "$(vm_exec worker hostname)" = worker ]
}

@test "leftovers of a killed VM are removed by the next VM of its name, with a message" {
    vm_boot worker
    kill -KILL "$(vm_pid worker)"
    vm_await_end "$(vm_pid worker)"
    vm_boot worker
    [ "$(cat worker.err)" = 'msb-boot: removed what an earlier VM "worker" had left' ]
    [ "$(vm_exec worker hostname)" = worker ]
}

# bats test_tags=vmm-slow
@test "the guest's memory is aligned for huge pages" {
    local pid range ends=()
    vm_boot worker -m 256
    for pid in $(pgrep -P "$(vm_pid worker)"); do
        while read -r range _; do
            [ $((16#${range#*-} - 16#${range%-*})) -lt $((256 << 20)) ] || ends+=($((16#${range#*-} % (2 << 20))))
        done <"/proc/$pid/maps"
    done
    [[ " ${ends[*]} " == *' 0 '* ]] || { echo "none of: ${ends[*]}"; false; }
}

# bats test_tags=vmm
@test "the guest has the processors and the memory that were asked for" {
    vm_boot worker -c 2 -m 1G
    [ "$(vm_exec worker nproc)" -eq 2 ]
    memory=$(vm_exec worker awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo)
    [ "$memory" -gt 900 ]
    [ "$memory" -le 1024 ]
    jq -e '.vm.cpus == 2 and .vm.memory_mib == 1024' worker.json
    # An emulated guest has no use for virtualization, and setting it up takes a tenth of the boot.
    [[ $MSB_VMM != qemu || $(msb-boot --probe) != *"software emulation"* ]] || [ -n "$(vm_exec worker sh -c 'ls /dev/kvm 2>&1 >/dev/null')" ]
}

# bats test_tags=vmm-slow
@test "what the guest writes is visible on the host at once, and the other way round" {
    vm_needs_share
    vm_boot worker
    vm_exec worker sh -c 'echo from the guest >/tmp/guest'
    [ "$(cat "$vm_root/tmp/guest")" = 'from the guest' ]
    echo from the host >"$vm_root/tmp/host"
    [ "$(vm_exec worker cat /tmp/host)" = 'from the host' ]
}

# bats test_tags=slow
@test "--follow-mounts shows the guest later mounts below a shared mount of its root, until they are unmounted" {
    vm_needs_share
    mkdir "$vm_root/later"
    # shellcheck disable=SC2016 # the inner shell expands them
    vm_launcher=(unshare -m --propagation private sh -c 'mount --bind "$0" "$0" && mount --make-shared "$0" && exec "$@"' "$vm_root")
    vm_boot following --follow-mounts
    vm_boot other
    for name in following other; do
        inside() { nsenter -m -t "$(vm_pid "$name")" "$@"; }
        inside mount -t tmpfs tmpfs "$vm_root/later"
        inside sh -c 'echo mounted >"$1/later/file"' - "$vm_root"
    done
    [ "$(vm_exec following cat /later/file)" = mounted ]
    [ -z "$(vm_exec other ls /later)" ]
    [ ! -e "$vm_root/later/file" ]
    name=following
    # virtiofsd still has it open.
    inside umount -l "$vm_root/later"
    is_gone() { [ -z "$(vm_exec following ls /later)" ]; }
    vm_await is_gone
    run msb-boot -r "$vm_record" --root block --follow-mounts
    [ "$status" = 1 ]
    [[ $output == *'--follow-mounts is for a shared root'* ]]
}

@test "a root whose path has commas, spaces and backslashes boots" {
    vm_needs_share
    odd="$BATS_TEST_TMPDIR/a,b \\c"
    mv "$vm_root" "$odd"
    jq -c --arg root "$odd" '.mount.path = $root | .rootfs.lower = [$root]' "$vm_record" >odd.json
    vm_record=odd.json vm_boot worker
    [ "$(vm_exec worker cat /etc/group)" = "$(cat "$odd/etc/group")" ]
}

@test "flags override the image's environment, directory, user and command" {
    jq -c '.image = {ref: "x", config: {Env: ["PATH=/bin", "A=image", "B=image"], Entrypoint: ["/bin/echo"], Cmd: ["cmd"],
        WorkingDir: "/tmp", User: ""}}' "$vm_record" >image.json
    export FROM_HERE=here
    vm_record=image.json vm_boot plain
    vm_record=image.json vm_boot flags -e A=flag -e FROM_HERE -e NOT_SET -w /etc -u nobody --entrypoint /bin/pwd
    [ "$(msb-exec -r plain.json)" = cmd ]
    [ "$(vm_exec plain pwd)" = /tmp ]
    [ "$(msb-exec -r flags.json)" = /etc ]
    [ "$(vm_exec flags id -un)" = nobody ]
    [ "$(vm_exec flags sh -c 'echo "$A $B $FROM_HERE ${NOT_SET-unset}"')" = 'flag image here unset' ]
}

@test "scripts from the record and from flags are on the guest's PATH" {
    printf '#!/bin/sh\necho setup ran with $1\n' >setup.sh
    printf '#!/bin/sh\necho of the record\n' >old.sh
    printf '#!/bin/sh\necho of the flag\n' >new.sh
    jq -c --arg dir "$PWD" '.scripts = {setup: "\($dir)/setup.sh", both: "\($dir)/old.sh"}' "$vm_record" >scripts.json
    vm_record=scripts.json vm_boot worker --script both=new.sh
    [ "$(vm_exec worker setup me)" = 'setup ran with me' ]
    [ "$(vm_exec worker both)" = 'of the flag' ]
}

@test "a script whose first line ends in CR LF causes a warning" {
    printf '#!/bin/sh\r\necho\r\n' >dos.sh
    vm_boot worker --script dos=dos.sh
    grep -q 'script "dos": its first line ends in CR LF' worker.err
}

@test "a boot that is interrupted leaves no process, no directory, no socket" {
    boot_halfway
    kill -INT "$boot"
    status=0
    wait "$boot" || status=$?
    [ "$status" -eq 130 ]
    grep -q 'interrupted' half.err
    [ ! -s half.json ]
    vm_assert_nothing
}

@test "a boot that waits for a reader of its record can be interrupted, and leaves nothing" {
    mkfifo out
    exec {out}<>out
    head -c 65536 /dev/zero >&"$out"
    env --default-signal=INT msb-boot -r "$vm_record" --name half >out 2>half.err 3>&- &
    boot=$!
    until [ -e "$XDG_RUNTIME_DIR/msb/half/record.json" ]; do kill -0 "$boot"; sleep 0.02; done
    kill -INT "$boot"
    status=0
    wait "$boot" || status=$?
    [ "$status" -eq 130 ]
    vm_assert_nothing
    exec {out}>&-
}

@test "a boot that is killed leaves no process, no directory, no socket" {
    boot_halfway
    kill -KILL "$boot"
    vm_await_nothing
}

@test "a record that cannot be printed ends the VM" {
    run --separate-stderr bash -c 'msb-boot -r "$1" >/dev/full' - "$vm_record"
    [ "$status" -eq 1 ]
    [[ $stderr == "msb-boot: stdout: No space left on device"* ]]
    vm_assert_nothing
}

@test "a closed pipe ends the VM without a message" {
    run --separate-stderr bash -c 'msb-boot -r "$1" | true; exit "${PIPESTATUS[0]}"' - "$vm_record"
    [ "$status" -eq 141 ]
    [ -z "$stderr" ]
    vm_assert_nothing
}

@test "a VM inherits no open file of its caller" {
    exec {open}<>held
    vm_boot worker
    for pid in $(vm_processes); do
        [ -z "$(find "/proc/$pid/fd" -lname "$PWD/held")" ]
    done
    exec {open}>&-
}

@test "if a guest ends before it is ready, the error shows the end of its console" {
    run --separate-stderr env MSB_AGENTD="$vm_root/bin/busybox" msb-boot -r "$vm_record"
    [ "$status" -eq 1 ]
    [ -z "$output" ]
    [ "${stderr_lines[0]}" = 'msb-boot: the VM did not come up: the guest ended before its agent had reported' ]
    [ "${stderr_lines[1]}" = '  guest: agentd: applet not found' ]
    vm_assert_nothing
}

@test "an emulated guest that ends before it has a console is started twice more, and its error says when it ended" {
    [[ $MSB_VMM = qemu && $(msb-boot --probe) == *"software emulation"* ]] || skip "it is about emulated guests"
    mkdir bin
    echo 'int main(void) { return 0; }' | gcc -x c -static -o "bin/qemu-system-$(uname -m)" -
    run --separate-stderr env PATH="$PWD/bin:$PATH" msb-boot -r "$vm_record"
    [ "$status" -eq 1 ]
    [ -z "$output" ]
    [[ $stderr == *'the guest ended before its agent had reported, without a message, '*' s after its start (qemu ended with 0)'* ]]
    [ "$(grep -c 'starting it again$' "${stderr##*log: }")" = 2 ]
    vm_assert_nothing
}

@test "it is started again, too, if the end of a helper process is noticed before that of the VMM" {
    [[ $MSB_VMM = qemu && $(msb-boot --probe) == *"software emulation"* ]] || skip "it is about emulated guests"
    mkdir bin
    gcc -x c -static -o "bin/qemu-system-$(uname -m)" - <<<'#include <unistd.h>
        int main(void) { sleep(1); }'
    env PATH="$PWD/bin:$PATH" msb-boot -r "$vm_record" --network public --name worker 2>stderr 3>&- &
    boot=$!
    kill_resolver() {
        local pid
        for pid in $(vm_processes worker/); do
            if grep -qz '^--as-resolver' "/proc/$pid/cmdline"; then kill -9 "$pid" && return; fi
        done
        return 1
    }
    vm_await kill_resolver
    if wait "$boot"; then return 1; fi
    grep -qF '(qemu ended with 0)' stderr
    [ "$(grep -c 'starting it again$' "$(sed -n 's/^  log: //p' stderr)")" = 2 ]
    vm_assert_nothing
}

# bats test_tags=vmm-slow
@test "if a guest's kernel panics, the error shows the panic" {
    # An ELF file without a segment: msb-boot accepts its header, and no kernel can run it.
    { head -c 56 "$release/agentd"; head -c 4096 /dev/zero; } >hollow
    run --separate-stderr env MSB_AGENTD=hollow msb-boot -r "$vm_record"
    [ "$status" -eq 1 ]
    [ "${stderr_lines[0]}" = "msb-boot: the VM did not come up: the guest's kernel panicked" ]
    [[ $stderr == *'  guest: '*'Kernel panic - not syncing: '* ]]
    vm_assert_nothing
}

@test "a guest that does not report in time is an error" {
    idle_agent idle
    run --separate-stderr env MSB_AGENTD=idle msb-boot -r "$vm_record" --timeout 3
    [ "$status" -eq 1 ]
    [ "${stderr_lines[0]}" = 'msb-boot: the VM did not come up: the agent did not report within 3 s' ]
    run ! grep -qi virtio <<<"$stderr"
    vm_assert_nothing
}

# bats test_tags=vmm-slow
@test "a failed boot keeps the guest's log, and names it" {
    agent=$(source "$BATS_TEST_DIRNAME/image.bash" && guest_program failing-agent)
    run --separate-stderr env MSB_AGENTD="$agent" msb-boot -r "$vm_record" --name failing
    [ "$status" -eq 1 ]
    [[ $stderr == *$'\n  guest: FATAL: config missing\n'* ]]
    [ "$(grep -c '^  guest: ' <<<"$stderr")" -le 11 ]
    log=$MSB_HOME/logs/failing/kernel.log
    [ "${stderr_lines[-1]}" = "  log: $log" ]
    grep -q '^line 1.$' "$log"
    grep -q 'supervisor .* of "failing" started' "$MSB_HOME/logs/failing/supervisor.log"
    vm_assert_nothing
    run --separate-stderr env MSB_AGENTD="$agent" msb-boot -r "$vm_record" --kernel-log own.log
    [ "${stderr_lines[-1]}" = "  log: $PWD/own.log" ]
    grep -q '^FATAL' own.log
}

@test "a missing or unusable component is an error that names it and the remedy" {
    for try in \
        'MSB_LIBKRUNFW=/nonexistent|guest kernel "/nonexistent"' \
        'MSB_LIBKRUNFW=/etc/passwd|guest kernel "/etc/passwd"' \
        'MSB_AGENTD=/nonexistent|agentd "/nonexistent": No such file' \
        'MSB_AGENTD=/etc/passwd|agentd "/etc/passwd": it is not a 64-bit ELF program' \
        "MSB_AGENTD=$release/msb-boot|it is dynamically linked"; do
        run --separate-stderr env "${try%%|*}" msb-boot -r "$vm_record"
        [ "$status" -eq 1 ]
        [ -z "$output" ]
        [[ $stderr == "msb-boot: "*"${try#*|}"* ]] || { echo "${try%%|*}: $stderr"; return 1; }
    done
    vm_copy_alone msb-boot
    run --separate-stderr env MSB_LIBKRUNFW="$release/libkrunfw.so.5" alone/msb-boot -r "$vm_record"
    [ "$status" -eq 1 ]
    [[ $stderr == *'agentd: not beside msb-boot'*'make build'* ]]
    vm_assert_nothing
}

@test "a record that cannot be booted says which stage is missing" {
    for try in \
        '{"msb":1}|the record has no rootfs (start with msb-pull)' \
        '{"msb":1,"rootfs":{"kind":"layers","lower":["/nonexistent"]}}|rootfs "/nonexistent" is gone' \
        '{"msb":1,"rootfs":{"kind":"disk","path":"/nonexistent","format":"raw"}}|rootfs "/nonexistent" is gone' \
        '{"msb":1,"mount":{"path":"/nonexistent","pid":1,"fstype":"x"}}|mount "/nonexistent": No such file' \
        '{"msb":1,"mount":{"path":"/etc/passwd","pid":1,"fstype":"x"}}|mount "/etc/passwd": not a directory' \
        '{"msb":2}|record version 2 is not supported' \
        'words|not a record'; do
        run --separate-stderr msb-boot <<<"${try%%|*}"
        [ "$status" -eq 1 ]
        [ -z "$output" ]
        [[ $stderr == "msb-boot: "*"${try#*|}"* ]]
    done
    run --separate-stderr msb-boot </dev/null
    [ "$status" -eq 1 ]
    [[ $stderr == *'no record on stdin'* ]]
    vm_assert_nothing
}

@test "a full disk is an error, and no partial file is left" {
    mkdir small
    mount -t tmpfs -o size=512k none small
    run --separate-stderr env MSB_RUN="$PWD/small/msb" msb-boot -r "$vm_record"
    [ "$status" -eq 1 ]
    [[ $stderr == "msb-boot: "*"No space left on device"* ]]
    [ -z "$(find small -mindepth 2)" ]
    vm_assert_nothing
}

@test "a mount whose msb-mount was killed is an error that names the remedy" {
    mkdir mounted
    jq -c 'del(.mount)' "$vm_record" | msb-mount mounted >mount.json
    kill -KILL "$(jq .mount.pid mount.json)"
    vm_await_end "$(jq .mount.pid mount.json)"
    run --separate-stderr msb-boot -r mount.json
    [ "$status" -eq 1 ]
    echo "$stderr"
    # ENOTCONN, or ECONNABORTED if the last thread of msb-mount ends just now.
    [[ $stderr == 'msb-boot: mount "'*'/mounted": '*" connect"*'(run msb-mount again)' ]]
    vm_assert_nothing
}

@test "a record whose VM is running is refused; once it has ended, it boots again in the same way, and flags override that" {
    vm_boot worker -c 2 -m 200M --hostname host -e GREETING=hi -w /tmp -u nobody --timeout 500 -- sh -c 'echo "$GREETING $PWD $(id -un) $(hostname) $(nproc)"'
    jq -e '.boot == {name: "worker", hostname: "host", cpus: 2, memory_mib: 200, root: "auto", bare: false, init: null, entrypoint: null,
        cmd: ["sh", "-c", .boot.cmd[2]], env: {GREETING: "hi"}, workdir: "/tmp", user: "nobody", stop_signal: null, disk: null, ephemeral: false,
        commit_on_stop: false, overlay: null, restart: "no", vmm: null, channel: null,
        network: {mode: null, rules: [], ports: [], dns: [], dns_search: [], hosts: [], mac: null}, volumes: [], kernel_log: null, timeout_s: 500,
        limits: {cpu_quota_percent: null, cpu_weight: null, io_weight: null, memory_max_mib: null, pids_max: null}}' worker.json
    [ "$(msb-exec worker)" = 'hi /tmp nobody host 2' ]
    run --separate-stderr msb-boot -r worker.json --name other
    [ "$status" -eq 1 ]
    [[ $stderr == *'the record has a VM already, "worker", and it is running (stop it with "msb-stop worker"'* ]]
    cp worker.json first.json
    msb-stop worker >stopped.json
    jq -e '.boot.cpus == 2 and (has("vm") | not)' stopped.json

    # The printed record of the ended VM.
    msb-boot -r first.json -o again.json
    [ "$(msb-exec worker)" = 'hi /tmp nobody host 2' ]
    jq -e --slurpfile first first.json '.boot == $first[0].boot and .vm.pid != $first[0].vm.pid and .vm.cpus == 2' again.json
    msb-stop -q worker >/dev/null

    # The record that msb-stop prints, changed by hand and by a flag.
    jq '.boot.cpus = 1 | .boot.network = {mode: "none"}' stopped.json | msb-boot -e GREETING=you >changed.json
    [ "$(msb-exec worker)" = 'you /tmp nobody host 1' ]
    jq -e '.boot.network.mode == "none" and .boot.env.GREETING == "you" and .boot.memory_mib == 200' changed.json
    # The VM has ended by itself, and msb-stop has not cleaned up yet.
    msb-exec -u root worker -- poweroff -f || true
    vm_await_end "$(jq .vm.pid changed.json)"
    msb-boot -q -r worker --hostname other --vmm qemu -o last.json
    [ "$(msb-exec worker)" = 'you /tmp nobody other 1' ]
}

@test "a generated name is kept when the VM boots again, and the record's member boot is checked" {
    msb-boot -q -r "$vm_record" -o vm.json
    name=$(jq -r .vm.name vm.json)
    jq -e '.boot.name == null' vm.json
    kill -KILL "$(jq .vm.pid vm.json)"
    vm_await_end "$(jq .vm.pid vm.json)"
    msb-boot -q -r vm.json -o vm.json
    [ "$(jq -r .vm.name vm.json)" = "$name" ]
    [ "$(msb-exec "$name" -- hostname)" = "$name" ]
    for wrong in '.cpus = 0' '.cpus = "2"' '.memory_mib = 1' '.init = {path: "x"}' '.root = "tape"' '.workdir = "x"' '.env = {"A=": "b"}'; do
        jq -c ".boot |= ({} | $wrong)" "$vm_record" >wrong.json
        run --separate-stderr msb-boot -r wrong.json
        [ "$status" -eq 1 ]
        [[ $stderr == *"boot.$(sed 's/\.\([a-z_]*\).*/\1/' <<<"$wrong")"* ]]
    done
}

@test "a run directory whose path is too long for a socket is refused" {
    run --separate-stderr env MSB_RUN="/tmp/$(printf 'x%.0s' {1..90})" msb-boot -r "$vm_record"
    [ "$status" -eq 1 ]
    [[ $stderr == *'too long for the sockets in it'* ]]
}

@test "a usage error ends with 2 and says what is wrong" {
    for call in '--name ../up' '-c 0' '-m 1X' '-m 5' '-w etc' '--script x' '--vmm xen' '--timeout 0' 'positional'; do
        # shellcheck disable=SC2086 # several words
        run --separate-stderr msb-boot -r "$vm_record" $call
        [ "$status" -eq 2 ]
        [ -z "$output" ]
        [[ $stderr == "msb-boot: "* ]]
    done
}
