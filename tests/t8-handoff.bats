#!/usr/bin/env bats
# The handoff of PID 1 to an init: how it is started, how failures are reported, and how the VM ends.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; inner shells expand theirs
bats_require_minimum_version 1.5.0

setup() {
    source "$BATS_TEST_DIRNAME/vm.bash"
    vm_setup
    mkdir -p "$vm_root"/{sbin,srv}
}

teardown() {
    vm_teardown
}

# put PATH: writes an executable file in the root from stdin.
put() {
    cat >"$vm_root$1"
    chmod 0755 "$vm_root$1"
}

# busybox_init [LINE…]: installs BusyBox as /sbin/init, with an inittab.
busybox_init() {
    ln -sf ../bin/busybox "$vm_root/sbin/init"
    printf '%s\n' ::sysinit:/bin/true "$@" >"$vm_root/etc/inittab"
}

# refused MESSAGE FLAG…: the boot fails with this message on stderr and in the log, without a panic, and nothing is left.
refused() {
    local message=$1
    shift
    run --separate-stderr msb-boot -r "$vm_record" --kernel-log log "$@"
    [ "$status" -eq 1 ]
    [ -z "$output" ]
    [ "${stderr_lines[0]}" = "msb-boot: guest: $message" ] || { printf '%s\n' "$stderr"; return 1; }
    grep -qxF "agentd: $message" <(tr -d '\r' <log)
    run ! grep -q panic log
    vm_assert_nothing
}

@test "auto chooses /sbin/init: PID 1 is the init, and exec, scripts and stop work as without one" {
    busybox_init '::shutdown:/bin/touch /srv/shutdown'
    printf '#!/bin/sh\necho "setup ran with $1"\n' >setup.sh
    vm_boot worker --init auto --script setup=setup.sh
    jq -e '.vm.init == "/sbin/init" and .vm.timings_ms.agent <= .vm.timings_ms.init and .vm.timings_ms.init <= .vm.timings_ms.ready' worker.json
    [ "$(vm_exec worker cat /proc/1/comm)" = busybox ]
    [ "$(vm_exec worker readlink /proc/1/exe)" = /bin/busybox ]
    [ "$(vm_exec worker setup me)" = 'setup ran with me' ]
    [ "$(msb-exec -r worker -u nobody --shell 'setup you')" = 'setup ran with you' ]
    run ! vm_exec worker sh -c 'echo >/.msb/scripts/setup'
    # The OOM killer may end commands, but not the agent, which is not PID 1 here.
    [ "$(vm_exec worker cat /proc/self/oom_score_adj)" = 0 ]
    [ "$(vm_exec worker sh -c 'for p in /proc/[0-9]*; do case $(readlink $p/exe) in */agentd) cat $p/oom_score_adj; esac; done')" = -1000 ]
    run --separate-stderr msb-stop -r worker.json
    [ "$stderr" = 'msb-stop: worker: stopped' ]
    vm_has worker /srv/shutdown
    # The agent's mount points are removed, though the init ended the VM. (Those on a disk are not part of a commit.)
    [ "${MSB_TEST_ROOT:-share}" = block ] || [ ! -e "$vm_root/.msb" ]
    vm_assert_nothing
}

@test "an init gets its path and arguments as argv, and --init-env overrides inherited variables" {
    put /bin/init.sh <<'END'
#!/bin/sh
printf '[%s]' "$0" "$@" >/srv/argv
env >/srv/env
exec sleep 100000
END
    jq -c '.image = {ref: "x", config: {Env: ["PATH=/bin", "A=image"]}}' "$vm_record" >image.json
    B=here vm_record=image.json vm_boot worker --init /bin/init.sh --init-arg --unit=x --init-arg 'two words' --init-arg '' \
        --init-env A=init --init-env B
    [ "$(vm_exec worker cat /srv/argv)" = '[/bin/init.sh][--unit=x][two words][]' ]
    [ "$(vm_exec worker grep -E '^(A|B|PATH|HOME)=' /srv/env | sort | xargs)" = 'A=init B=here HOME=/ PATH=/.msb/scripts:/bin' ]
    [ "$(vm_exec worker sh -c 'echo $A ${B-unset}')" = 'image unset' ]
    # PID 1 has no signal blocked, and none of the agent's files open.
    [ "$(vm_exec worker sh -c 'grep SigBlk /proc/1/status; ls /proc/1/fd | xargs')" = $'SigBlk:\t0000000000000000\n0 1 2' ]
}

@test "auto chooses an entrypoint that is an init, with the rest of the command, and msb-exec has no default command then" {
    put /init <<'END'
#!/bin/sh
printf '[%s]' "$0" "$@" >/srv/argv
exec sleep 100000
END
    busybox_init
    jq -c '.image = {ref: "x", config: {Entrypoint: ["/init", "-v"], Cmd: ["app"]}}' "$vm_record" >image.json
    vm_record=image.json vm_boot worker --init auto --init-arg last
    [ "$(vm_exec worker cat /srv/argv)" = '[/init][-v][app][last]' ]
    [ "$(jq -r .vm.init worker.json)" = /init ]
    run --separate-stderr msb-exec -r worker.json
    [ "$status" -eq 125 ]
    # The cmd can be the init too, alone or after an entrypoint that executes it.
    put /start <<<$'#!/bin/sh\nprintf "[%s]" "$@" >/srv/start\nexec "$@"'
    for entrypoint in null '["/start"]'; do
        jq -c --argjson entrypoint "$entrypoint" '.image.config = {Entrypoint: $entrypoint, Cmd: ["/init", "x"]}' image.json >start.json
        vm_record=start.json vm_boot cmd --init auto
        [ "$(vm_exec cmd cat /srv/argv)" = '[/init][x]' ]
        run --separate-stderr msb-exec -r cmd.json
        [ "$status" -eq 125 ]
        vm_kill cmd.json
    done
    # With --entrypoint the command does not affect the init.
    vm_record=image.json vm_boot other --init auto --entrypoint '["echo", "mine"]' -- too
    [ "$(jq -r .vm.init other.json)" = /sbin/init ]
    [ "$(msb-exec -r other.json)" = 'mine too' ]
}

@test "an init that the kernel would not run is refused before it has PID 1" {
    refused 'init auto: none found; looked at /sbin/init: not there, /lib/systemd/systemd: not there, /usr/lib/systemd/systemd: not there (take an image with an init in it, or name one with --init PATH)' --init auto
    refused 'init "/none": not there' --init /none
    put /bin/orphan <<<'#!/bin/none'
    refused 'init "/bin/orphan": a script for "/bin/none", and that is not there' --init /bin/orphan
    # agentd's unit tests cover the other reasons.
    { head -c 18 "$vm_root/bin/busybox"; printf '\267\0'; tail -c +21 "$vm_root/bin/busybox"; } | put /bin/foreign
    refused 'init "/bin/foreign": a program for another processor' --init /bin/foreign
}

@test "an init that ends at once, is killed, or hangs is an error without a kernel panic" {
    put /bin/ends <<<$'#!/bin/sh\nexit 3'
    refused 'init "/bin/ends": it ended at once (exit status 3)' --init /bin/ends
    # An ELF program of one undefined instruction (ud2).
    { head -c 24 "$vm_root/bin/busybox"; printf '\170\0\100\0\0\0\0\0\100\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\100\0\70\0\1\0\0\0\0\0\0\0'
        printf '\1\0\0\0\5\0\0\0\0\0\0\0\0\0\0\0\0\0\100\0\0\0\0\0\0\0\100\0\0\0\0\0\172\0\0\0\0\0\0\0\172\0\0\0\0\0\0\0\0\20\0\0\0\0\0\0'
        printf '\17\13'; } | put /bin/dies
    refused 'init "/bin/dies": it ended at once (killed by SIGILL)' --init /bin/dies
    put /bin/spins <<<$'#!/bin/sh\nwhile :; do :; done'
    # An init may take half of the boot's timeout to start.
    run --separate-stderr msb-boot -r "$vm_record" --init /bin/spins --timeout 50
    [ "$status" -eq 1 ]
    [[ ${stderr_lines[0]} =~ ^'msb-boot: guest: init "/bin/spins": it hangs: after '[0-9]+' s it has not waited for anything yet'$ ]] ||
        { echo "$stderr"; return 1; }
    vm_assert_nothing
}

@test "an init that ends later ends the VM" {
    put /bin/later <<<$'#!/bin/sh\nwhile [ ! -e /srv/end ]; do sleep 0.1; done; exit 0'
    vm_boot worker --init /bin/later
    # The VM may end before the command's status has arrived.
    vm_exec worker touch /srv/end || [ $? -eq 125 ]
    vm_await_end "$(vm_pid worker)"
    run --separate-stderr vm_exec worker true
    [ "$status" -eq 125 ]
    [[ $stderr == *'it is gone: the guest powered off'* ]]
}

@test "an init for containers, which ends when it is asked to, ends the VM in order" {
    # PID 1's file is BusyBox, but a shell that runs a script is not BusyBox's init.
    ln -sf busybox "$vm_root/bin/sh"
    put /bin/tiny <<<$'#!/bin/sh\ntrap "echo ended >/srv/ended; exit 0" TERM\nwhile :; do sleep 1000 & wait $!; done'
    vm_boot worker --init /bin/tiny
    [ "$(vm_exec worker readlink /proc/1/exe)" = /bin/busybox ]
    vm_exec worker sh -c 'echo late >/srv/late'
    run --separate-stderr msb-stop -r worker.json
    [ "$stderr" = 'msb-stop: worker: stopped' ]
    [ "$(vm_file worker /srv/ended; vm_file worker /srv/late)" = $'ended\nlate' ]
    vm_assert_nothing
    # An init that catches another signal gets that signal.
    put /bin/other <<<$'#!/bin/sh\ntrap "echo other >/srv/other; exit 0" PWR\nwhile :; do sleep 1000 & wait $!; done'
    vm_boot other --init /bin/other
    run --separate-stderr msb-stop -r other.json
    [ "$stderr" = 'msb-stop: other: stopped' ]
    [ "$(vm_file other /srv/other)" = other ]
}

@test "msb-boot returns once the init is usable, with --no-wait-init as soon as it runs, and a timeout names what was missing" {
    mkfifo "$vm_root/srv/gate"
    busybox_init '::sysinit:/bin/sh -c "read line </srv/gate"'
    run --separate-stderr msb-boot -r "$vm_record" --init auto --timeout 40
    [ "$status" -eq 1 ]
    [[ $stderr =~ ^'msb-boot: guest: init "/sbin/init": it is not usable after '[0-9]+' s: a sysinit or wait action of /etc/inittab still runs: /bin/sh -c read line </srv/gate (give it more --timeout, or --no-wait-init)' ]] ||
        { echo "$stderr"; return 1; }
    vm_assert_nothing
    vm_boot worker --init auto --no-wait-init
    [ "$(vm_exec worker cat /proc/1/comm)" = busybox ]
    vm_exec worker sh -c 'echo >/srv/gate'
    vm_kill worker.json
}

@test "an init that does not power off within the grace period is ended by force with a message, after commands had their TERM" {
    put /bin/deaf <<<$'#!/bin/sh\nexec sleep 100000'
    vm_boot worker --init /bin/deaf
    vm_exec worker sh -c 'trap "echo ended >/srv/trap; exit" TERM; echo up; while :; do sleep 1 & wait $!; done' >up &
    until grep -q up up; do sleep 0.02; done
    # The agent keeps a quarter of it, at most 2 s, for ending the VM. A busy host may need more than one second.
    run --separate-stderr msb-stop -r worker.json -t 8
    [ "$status" -eq 1 ]
    [[ $stderr =~ ^'msb-stop: worker: the init did not power off within '[0-9]+\.[0-9]' s, ended by force'$ ]] || { echo "$stderr"; return 1; }
    [ "$(vm_file worker /srv/trap)" = ended ]
    wait $! || true
    vm_assert_nothing
}

@test "a poweroff in the guest goes through its init, and the agent does not get in the way" {
    busybox_init '::shutdown:/bin/touch /srv/shutdown'
    vm_boot worker --init auto
    vm_exec worker poweroff || true
    vm_await_end "$(vm_pid worker)"
    jq -e '.reason == "the guest powered off"' "$XDG_RUNTIME_DIR/msb/worker/ended.json"
    vm_has worker /srv/shutdown
}

@test "SIGTERM to every process of a VM, as a host sends it at shutdown, is a graceful stop" {
    busybox_init '::shutdown:/bin/touch /srv/shutdown'
    vm_boot worker --init auto
    # shellcheck disable=SC2046 # a number each
    kill -TERM $(vm_processes)
    vm_await_end "$(vm_pid worker)"
    jq -e '.reason == "stopped"' "$XDG_RUNTIME_DIR/msb/worker/ended.json"
    vm_has worker /srv/shutdown
}

@test "--foreground stays until the VM has ended; Ctrl-C is a graceful stop, a second one does not wait" {
    busybox_init '::shutdown:/bin/touch /srv/shutdown'
    vm_foreground front --init auto
    [ "$(vm_exec front cat /proc/1/comm)" = busybox ]
    vm_exec front sh -c 'echo on the console >/dev/console'
    kill -INT "$front"
    wait "$front"
    # Stdout is for the record.
    grep -qx 'on the console' front.err
    [ "$(tail -n 1 front.err)" = 'msb-boot: front: stopped' ]
    vm_has front /srv/shutdown
    vm_assert_nothing
    put /bin/deaf <<<$'#!/bin/sh\nexec sleep 100000'
    vm_foreground front --init /bin/deaf --kernel-log log
    kill -INT "$front"
    vm_await grep -q 'agentd: asked' log
    # Signals in quick succession count as one, so it is repeated until the second one counts.
    while kill -INT "$front" 2>/dev/null; do sleep 0.2; done
    status=0
    wait "$front" || status=$?
    [ "$status" -eq 1 ]
    [[ $(tail -n 1 front.err) == 'msb-boot: front: '*'killed' ]] || { cat front.err; return 1; }
    vm_assert_nothing
    vm_foreground front
    vm_exec front poweroff -f || true
    wait "$front"
    [ "$(tail -n 1 front.err)" = 'msb-boot: front: the guest powered off' ]
}

@test "scripts are on PATH once: in a login shell, if the image sets a PATH, and under the init" {
    mkdir "$vm_root/etc/profile.d"
    printf 'PATH=/usr/bin:/bin\nfor file in /etc/profile.d/*.sh; do . "$file"; done\n' >"$vm_root/etc/profile"
    busybox_init '::once:/bin/sh -c "exec /.msb/scripts/note"'
    printf '#!/bin/sh\necho "$0" >/srv/note\n' >note.sh
    vm_boot worker --init auto --script note=note.sh
    [ "$(vm_exec worker sh -lc 'echo $PATH; note; cat /srv/note')" = $'/.msb/scripts:/usr/bin:/bin\n/.msb/scripts/note' ]
    [ "$(msb-exec -r worker -e PATH=/bin:/.msb/scripts -- sh -c 'echo $PATH')" = /bin:/.msb/scripts ]
    msb-stop -r worker.json >/dev/null
}

@test "a relative init, and arguments without an init, are usage errors" {
    for call in '--init sbin/init' '--init-arg x' '--init-env A=b' '--init auto --init-env =x' '--entrypoint [1]'; do
        # shellcheck disable=SC2086 # several words
        run --separate-stderr msb-boot -r "$vm_record" $call
        [ "$status" -eq 2 ]
        [[ $stderr == "msb-boot: "* ]]
    done
}
