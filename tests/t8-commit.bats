#!/usr/bin/env bats
# msb-stop --commit: what the guest wrote to its disk is put into the record's upper, all or nothing. The judge is the kernel's
# overlayfs on the host.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; inner shells expand theirs
bats_require_minimum_version 1.5.0
source "$BATS_TEST_DIRNAME/block.bash"

# Changes of every kind to a tree with patches.
changes='set -e
echo new >/root/new; echo more >>/etc/group; rm /bin/yes /srv/patched; mkdir -p /srv/deep/er; echo deep >/srv/deep/er/file
mv /srv/dir /srv/moved; rm -r /srv/replaced; mkdir /srv/replaced; echo inside >/srv/replaced/inside
rm -r /usr/bin; echo a file now >/usr/bin; rm /etc/passwd; mkdir /etc/passwd
ln -s nowhere /root/link; echo linked >/root/a; ln /root/a /root/b; ln /root/a /root/c; mkfifo -m 0620 /root/fifo; mknod /root/null c 1 3
chmod 0700 /srv; chown 12:34 /root/new; chmod 4711 /root/new; touch -d 2001-02-03 /root/new
dd if=/dev/urandom of=/root/sparse bs=4096 count=1 seek=5000 2>/dev/null; dd if=/dev/urandom of=/root/big bs=1M count=5 2>/dev/null'

patched() {
    cat >ops <<'END'
{"op":"text","path":"/srv/patched","content":"by msb-patch\n"}
{"op":"text","path":"/srv/dir/file","content":"in a directory\n"}
{"op":"text","path":"/srv/replaced/old","content":"old\n"}
{"op":"remove","path":"/etc/nothing"}
END
    msb-patch -r "$vm_record" -f ops >patched.json
    vm_record=$PWD/patched.json
}

@test "a commit gives the host the tree that the guest had" {
    patched
    program=$(guest_program manifest)
    vm_boot worker --script manifest="$program"
    vm_exec worker sh -c "$changes" >/dev/null
    vm_exec worker manifest / | without_bound_files >guest
    msb-stop -r worker.json --commit >stopped.json
    jq -e '.vm == null' stopped.json
    [ "$(jq -r .upper.dir stopped.json)" = "$(jq -r .upper.dir patched.json)" ]
    merged stopped.json
    "$program" merged | without_bound_files >host
    diff guest host
    grep -q '^/root/b .* links 3 ' host
    [ -z "$(find "$(jq -r .upper.dir stopped.json)" -printf '%f\n' | grep '^\.wh')" ]
    [ ! -e "$MSB_HOME/sandboxes/worker" ]
    vm_assert_nothing
}

@test "a record whose VM is running is neither patched nor mounted, and one whose VM has ended is" {
    echo '{"op":"text","path":"/q","content":"q"}' >ops
    vm_boot worker
    for tool in "msb-patch -f ops" "msb-mount ./mnt" "msb-mount --ro ./mnt"; do
        run -1 $tool -r worker.json
        [[ "$output" == *': VM "worker" is running on this record'*'"msb-stop worker --commit"'* ]]
    done
    [ ! -e mnt ]
    # A dry run only reads.
    [ "$(msb-patch -n -r worker.json -f ops | jq -r .action)" = create ]
    [ "$(ls "$MSB_HOME/sandboxes")" = worker ]
    kill -KILL "$(vm_pid worker)"
    vm_await_end "$(vm_pid worker)"
    msb-patch -r worker.json -f ops >ended.json
    jq -e '.vm == null and .upper != null' ended.json
    msb-mount --ro ./mnt -r worker.json >mounted.json
    jq -e '.vm == null' mounted.json
    msb-mount -u ./mnt
}

@test "a guest reads an upper with the kernel's redirects and metacopies, and its commit continues that upper" {
    # Only root can enter bats's own directories.
    open=$(mktemp -d /tmp/msb-open.XXXXXX)
    chmod 0755 "$open"
    mkdir -p "$open"/{upper,work} kernel
    mkdir -p layer/srv/tree/dir/in
    echo inner >layer/srv/tree/dir/in/f
    echo content >layer/srv/tree/file
    layers="lowerdir=$PWD/layer:$(jq -r '.rootfs.lower | join(":")' "$vm_record"),upperdir=$open/upper,workdir=$open/work"
    mount -t overlay overlay kernel -o "redirect_dir=on,metacopy=on,$layers"
    mv kernel/srv/tree/dir kernel/srv/tree/moved
    chmod 0600 kernel/srv/tree/file
    umount kernel
    jq -c --arg dir "$open" --arg layer "$PWD/layer" '.rootfs.lower |= [$layer] + .
        | .upper = {dir: ($dir + "/upper"), work: ($dir + "/work")}' "$vm_record" >kernels.json
    # Other users can enter it: refused before anything boots or stops.
    run -1 msb-boot -r kernels.json --commit-on-stop
    [[ "$output" == *"--commit-on-stop: upper \"$open/upper\": other users of this machine can enter it"* ]]
    vm_assert_nothing
    vm_record=$PWD/kernels.json
    vm_boot worker
    [ "$(vm_exec worker sh -c 'cd /srv/tree; cat moved/in/f file; stat -c %a file; ls')" = $'inner\ncontent\n600\nfile\nmoved' ]
    vm_exec worker sh -c 'cd /srv/tree; echo more >>file; echo new >moved/in/new; rm moved/in/f'
    run -1 msb-stop -r worker.json --commit
    [[ "$output" == *"worker: not stopped: --commit: upper \"$open/upper\""*"chmod 0700 $open"* ]]
    vm_exec worker true
    chmod 0700 "$open"
    msb-stop -r worker.json --commit >stopped.json
    mount -t overlay overlay kernel -o "ro,redirect_dir=on,metacopy=on,$layers"
    [ "$(cat kernel/srv/tree/file kernel/srv/tree/moved/in/new)" = $'content\nmore\nnew' ]
    [ "$(cd kernel/srv/tree && find . | sort | tr '\n' ' ')" = '. ./file ./moved ./moved/in ./moved/in/new ' ]
    umount kernel
}

@test "a commit gives the record an upper, which msb-mount shows, msb-patch continues and the next VM uses" {
    vm_boot worker
    vm_exec worker sh -c 'echo one >/root/one; rm /etc/group; mkdir /etc/profile.d'
    msb-stop -r worker.json --commit >one.json
    msb-mount -r one.json mounted >mount.json
    [ "$(cat mounted/root/one)" = one ]
    [ ! -e mounted/etc/group ]
    msb-mount -u mounted
    echo '{"op":"append","path":"/root/one","content":"two\n"}' | msb-patch -r one.json -f - >two.json
    upper=$(jq -r .upper.dir two.json)
    times=$(stat -c '%n %y' "$upper" "$upper"/etc{,/profile.d})
    vm_record=two.json vm_boot worker
    [ "$(vm_exec worker cat /root/one)" = $'one\ntwo' ]
    run vm_exec worker cat /etc/group
    [ "$status" -ne 0 ]
    vm_exec worker sh -c 'rm /root/one; echo three >/root/three'
    msb-stop -r worker.json --commit >three.json
    upper=$(jq -r .upper.dir three.json)
    [ "$(find "$upper" -type f -printf '%f\n')" = three ]
    # The agent's mount points were made and removed there.
    [ "$(stat -c '%n %y' "$upper" "$upper"/etc{,/profile.d})" = "$times" ]
}

# bats test_tags=vmm-slow
@test "--commit-on-stop commits also if the guest powers off, and the disk of an unnamed VM too" {
    msb-boot -r "$vm_record" --commit-on-stop >worker.json
    msb-exec -r worker.json -- sh -c 'echo kept >/root/kept'
    msb-exec -r worker.json -- poweroff -f || true
    vm_await_end "$(vm_pid worker)"
    msb-stop -r worker.json >stopped.json
    [ "$(cat "$(jq -r .upper.dir stopped.json)/root/kept")" = kept ]
}

@test "the agent's mount points are not part of a commit, also if the guest powers off" {
    echo '{"op":"text","path":"/etc/profile.d/other.sh","content":"true\n"}' >ops
    msb-patch -r "$vm_record" -f ops >patched.json
    vm_record=patched.json vm_boot worker --script tool=ops --commit-on-stop
    vm_exec worker sh -c 'cat /etc/profile.d/msb-scripts.sh; ls /.msb; echo kept >/etc/profile.d/kept.sh
        for file in hosts hostname resolv.conf; do echo changed >>/etc/$file; done; sync'
    vm_exec worker poweroff -f || true
    vm_await_end "$(vm_pid worker)"
    msb-stop -r worker.json >stopped.json
    cd "$(jq -r .upper.dir stopped.json)"
    [ "$(find . -path './.msb*' -o -path './etc/*' -type f | sort)" = $'./etc/profile.d/kept.sh\n./etc/profile.d/other.sh' ]
}

@test "after a crash the disk is still there, and the next VM of that name can commit it" {
    vm_boot worker
    vm_exec worker sh -c 'echo synced >/root/synced; sync'
    kill -KILL "$(vm_vmm worker)"
    vm_await_end "$(vm_pid worker)"
    run --separate-stderr msb-stop -r worker.json --commit
    [ "$status" -eq 1 ]
    [[ $stderr == *'not committed: it had ended before (its disk is still there'* ]]
    vm_boot worker
    msb-stop -r worker.json --commit >stopped.json
    [ "$(cat "$(jq -r .upper.dir stopped.json)/root/synced")" = synced ]
    run --separate-stderr msb-stop -r worker.json --commit
    [ "$status" -eq 1 ]
    [[ $stderr == *'not committed: it had ended before, and its disk is gone (a commit removes it)' ]]
}

@test "a commit that was asked for is made, even if others ask for the stop again without it" {
    vm_boot worker
    vm_exec worker sh -c 'trap "sleep 1; echo kept >/root/kept; exit" TERM; echo up; while :; do sleep 1 & wait $!; done' >up &
    until grep -q up up; do sleep 0.02; done
    msb-stop -r worker --commit >stopped.json 2>stopped.err &
    stop=$!
    until [ -e "$XDG_RUNTIME_DIR/msb/worker/stop.json" ]; do sleep 0.01; done
    msb-stop -r worker -t 120 >again.json 2>again.err &
    kill -TERM "$(vm_pid worker)"
    wait "$stop" || { cat stopped.err; return 1; }
    wait
    # Both report it, whichever cleans up.
    for record in stopped again; do
        [ "$(cat "$(jq -r .upper.dir $record.json)/root/kept")" = kept ]
    done
    vm_assert_nothing
}

@test "--commit of a VM that has to be killed keeps its disk, and says how to continue" {
    vm_boot worker
    vm_exec worker sh -c 'echo kept >/root/kept; sync'
    kill -STOP "$(vm_vmm worker)"
    run --separate-stderr msb-stop -r worker -t 0.5 --commit
    [ "$status" -eq 1 ]
    [[ ${stderr_lines[0]} == 'msb-stop: worker: did not stop within 0.5 s, killed' ]]
    [[ $stderr == *"kept in \"$MSB_HOME/sandboxes/worker/top.ext4\" (to commit it: \"msb-boot --name worker\" with this record, then \"msb-stop -r worker --commit\")"* ]]
    jq -e '.upper == null' <<<"$output"
    msb-boot --name worker <<<"$output" >worker.json
    msb-stop -r worker --commit >stopped.json
    [ "$(cat "$(jq -r .upper.dir stopped.json)/root/kept")" = kept ]
    # An unnamed one gets a name.
    msb-boot -r "$vm_record" >unnamed.json
    name=$(jq -r .vm.name unnamed.json)
    run --separate-stderr msb-stop -r unnamed.json -t 0 --commit
    [ "$status" -eq 1 ]
    [[ $stderr == *"\"msb-boot --name $name\""* ]]
    [ -e "$MSB_HOME/sandboxes/$name/top.ext4" ]
}

@test "a commit uses the agent that its VM was booted with, even if the file was replaced" {
    cp "$release/agentd" agentd
    export MSB_AGENTD=$PWD/agentd
    vm_boot worker
    vm_exec worker sh -c 'echo kept >/root/kept'
    echo gone >agentd
    msb-stop -r worker --commit >stopped.json
    [ "$(cat "$(jq -r .upper.dir stopped.json)/root/kept")" = kept ]
}

@test "a failed commit leaves the upper unchanged, and keeps the disk" {
    patched
    vm_boot worker
    vm_exec worker sh -c 'echo new >/root/new'
    msb-mount -r patched.json mounted >mount.json
    run --separate-stderr msb-stop -r worker.json --commit
    [ "$status" -eq 1 ]
    jq -e '.vm == null' <<<"$output"
    [[ $stderr == *'worker: not committed: '*'in use by msb-patch, msb-mount, msb-pack or a running VM'* ]]
    [ ! -e "$(jq -r .upper.dir patched.json)/root" ]
    msb-mount -u mounted
    vm_boot worker
    [ "$(vm_exec worker cat /root/new)" = new ]
}

@test "--commit is refused for a shared root and for --ephemeral, before anything stops" {
    jq -nc --arg root "$vm_root" '{msb: 1, rootfs: {kind: "dir", lower: [$root]}, mount: {path: $root, pid: 1, fstype: "none"}}' >shared.json
    vm_record=shared.json vm_boot share
    run --separate-stderr msb-stop -r share.json --commit
    [ "$status" -eq 1 ]
    [[ $stderr == *'--commit is for a block root'* ]]
    vm_boot memory --ephemeral
    run --separate-stderr msb-stop -r memory.json --commit
    [ "$status" -eq 1 ]
    [[ $stderr == *'keeps what it writes in its memory'* ]]
    [ "$(vm_exec memory echo on)" = on ]
}

# bats test_tags=slow
@test "in the foreground --commit-on-stop reports its result, also for a VMM that was killed" {
    patched
    vm_foreground front --commit-on-stop
    vm_exec front sh -c 'echo one >/root/one'
    kill -INT "$front"
    wait "$front" || { cat front.err; false; }
    upper=$(jq -r .upper.dir patched.json)
    [[ $(tail -n 2 front.err) == 'msb-boot: front: stopped'$'\n'"msb-boot: front: committed into upper \"$upper\"" ]]
    [ "$(cat "$upper/root/one")" = one ]
    vm_assert_nothing
    vm_foreground front --commit-on-stop
    vm_exec front sh -c 'echo two >/root/two; sync'
    kill -KILL "$(vm_vmm front)"
    status=0
    wait "$front" || status=$?
    [ "$status" -eq 1 ]
    [[ $(tail -n 2 front.err) == "msb-boot: front: committed into upper \"$upper\""$'\n''msb-boot: front: '*' was killed by SIGKILL'* ]]
    [ "$(cat "$upper/root/two")" = two ]
    vm_assert_nothing
}

# bats test_tags=slow
@test "a commit that takes longer than the grace period is not cut short" {
    vm_boot worker
    # Not synced: writing it back is part of the shutdown, which extends the grace period.
    vm_exec worker sh -c 'dd if=/dev/urandom of=/root/big bs=1M count=64 2>/dev/null; sha256sum </root/big' >sum
    msb-stop -r worker.json -t 1 --commit >stopped.json
    sha256sum <"$(jq -r .upper.dir stopped.json)/root/big" | diff sum -
}

# make test-kill has more moments.
# bats test_tags=kill
@test "killed at many moments of a commit, a VM leaves the old upper or the new one, and the next VM has what it wrote" {
    moments=$((${MSB_KILLS:-20} / 20))
    patched
    olds=0 news=0
    for moment in $(seq "$moments"); do
        upper=$(jq -r .upper.dir "$vm_record")
        find "$upper" -printf '%P %y %s\n' | sort >before
        vm_boot worker
        vm_exec worker sh -c "mkdir /root/$moment; for n in 1 2 3 4 5 6 7 8 9; do echo \$n >/root/$moment/\$n; done"
        msb-stop -r worker.json --commit >stopped.json 2>stopped.err &
        stop=$!
        until [ -e "$XDG_RUNTIME_DIR/msb/worker/committed.json" ] || ! kill -0 "$stop" 2>/dev/null; do sleep 0.01; done
        # A commit takes a few seconds, most of them until its machine is up.
        sleep "$((RANDOM % 5)).$((RANDOM % 10))"
        # All processes of the VM at once, as if the host lost its power.
        "$vm_here/vm-processes.pl" --kill "$MSB_RUN/worker/"
        wait "$stop" || true
        msb-stop -r worker.json >/dev/null 2>&1 || true
        case $(find "$upper" -path "*/root/$moment/?" | wc -l) in
            0)
                olds=$((olds + 1))
                find "$upper" -printf '%P %y %s\n' | sort | diff before -
                # Nothing is lost: what it wrote is on its disk.
                vm_boot worker
                msb-stop -r worker.json --commit >stopped.json
                [ "$(find "$upper" -path "*/root/$moment/?" | wc -l)" = 9 ]
                ;;
            9) news=$((news + 1)) ;;
            *) ls -R "$upper/root"; return 1 ;;
        esac
        vm_assert_nothing
    done
    echo "old: $olds, new: $news"
}

@test "a guest that corrupts its disk on purpose changes nothing, and the error says why" {
    patched
    upper=$(jq -r .upper.dir patched.json)
    find "$upper" | sort >before
    # The third disk is the scratch disk, after image and patches.
    for harm in \
        'mount -t ext4 /dev/vdc /mnt; mv /mnt/upper /mnt/real; ln -s / /mnt/upper; sync' \
        'dd if=/dev/urandom of=/dev/vdc bs=64k count=64; sync'; do
        vm_boot worker --commit-on-stop
        vm_exec worker sh -c "mkdir -p /mnt; echo new >/root/new; sync; $harm" 2>/dev/null
        kill -KILL "$(vm_vmm worker)"
        vm_await_end "$(vm_pid worker)"
        run --separate-stderr msb-stop -r worker.json
        [ "$status" -eq 1 ]
        [[ $stderr == *"worker: not committed: commit"*": guest: "*' (os error '*"; what it wrote is kept in \"$MSB_HOME/sandboxes/worker/"* ]] ||
            { echo "$stderr"; return 1; }
        find "$upper" | sort | diff before -
        rm -r "$MSB_HOME/sandboxes/worker"
        vm_assert_nothing
    done
}
