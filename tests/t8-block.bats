#!/usr/bin/env bats
# Block roots: the image as an EROFS disk that is made once, the patches as a small one, and an ext4 scratch disk for what the
# guest writes. The image never changes, whatever happens to the VM.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; inner shells expand theirs
bats_require_minimum_version 1.5.0
source "$BATS_TEST_DIRNAME/block.bash"

lower_of() {
    vm_exec "$1" sed -n 's/^overlay \/ .*lowerdir=\([^,]*\).*/\1/p' /proc/mounts
}

@test "the guest sees the merged layers: whiteouts, opaque directories, links, xattrs, devices, owners, times" {
    msb-pull -q "oci:$(layered_image)" >layered.json
    merged layered.json
    program=$(guest_program manifest)
    vm_record=layered.json vm_boot worker --script manifest="$program"
    vm_exec worker manifest / | without_bound_files >guest
    "$program" merged | without_bound_files >host
    [ "$(grep -c . host)" -gt 20 ]
    diff host guest
}

@test "the guest sees the layers with the upper, which is one more disk" {
    cat >ops <<'END'
{"op":"text","path":"/etc/new","content":"new\n","uid":12,"gid":34,"mode":"0640"}
{"op":"remove","path":"/etc/one"}
{"op":"remove","path":"/etc/two"}
{"op":"remove","path":"/opt/kept"}
{"op":"mkdir","path":"/opt/kept","mode":"0711"}
{"op":"append","path":"/opt/link-a","content":"more\n"}
{"op":"symlink","target":"nowhere","link":"/opt/dangling","replace":true}
END
    { msb-pull -q "oci:$(layered_image)"; cat ops; } | msb-patch >patched.json
    merged patched.json
    program=$(guest_program manifest)
    vm_record=patched.json vm_boot worker --script manifest="$program" --script sed="$(command -v busybox)"
    [ "$(lower_of worker)" = /patches:/base ]
    vm_exec worker manifest / | without_bound_files >guest
    "$program" merged | without_bound_files >host
    grep -q '^/opt/kept 40711' host
    run ! grep -q '^/opt/kept/' host
    diff host guest
}

@test "layers on top of an image that has a disk are disks of their own, and the guest sees the same tree" {
    msb-pull -q "oci:$(layered_image)" >layered.json
    merged layered.json
    jq '.rootfs.lower |= .[2:]' layered.json >lower.json
    vm_record=lower.json vm_boot base
    program=$(guest_program manifest)
    vm_record=layered.json vm_boot worker --script manifest="$program" --script sed="$(command -v busybox)"
    [ "$(grep -c 'making the disk of a layer' worker.err)" = 2 ]
    [ "$(lower_of worker)" = /layer2:/layer1:/base ]
    vm_exec worker manifest / | without_bound_files >guest
    "$program" merged | without_bound_files >host
    [ "$(grep -c . host)" -gt 20 ]
    diff host guest
    msb-store gc -n >listed
    jq -se 'map(select(.type == "erofs")) | length == 3 and all(.state == "kept")' listed
}

@test "a directory without a mount is copied to a disk for each boot, and does not change" {
    before=$(cd "$vm_root" && find . -printf '%p %y %m %T@ %s\n' | sort | sha256sum)
    jq -nc --arg root "$vm_root" '{msb: 1, rootfs: {kind: "dir", lower: [$root]}}' >dir.json
    vm_record=dir.json vm_boot worker
    vm_exec worker sh -c 'echo new >/etc/new; rm /etc/group'
    vm_exec worker sync
    [ "$(cd "$vm_root" && find . -printf '%p %y %m %T@ %s\n' | sort | sha256sum)" = "$before" ]
    [ -z "$(find "$MSB_HOME/erofs" -name '*.erofs' -newer dir.json)" ]
}

@test "a directory that a user without root has made opaque is opaque in the guest" {
    mkdir -p own/root own/tools
    cp -a "$vm_root/." own/root/
    mkdir -p own/root/srv/conf.d
    touch own/root/srv/conf.d/old
    cp "$(type -P msb-patch)" own/tools/
    jq -nc --arg root "$PWD/own/root" '{msb: 1, rootfs: {kind: "dir", lower: [$root]}}' >own/own.json
    chmod 0755 "$BATS_RUN_TMPDIR" "$BATS_FILE_TMPDIR" "$BATS_TEST_TMPDIR" "$BATS_TEST_TMPDIR"/.. "$BATS_TEST_TMPDIR"/../..
    chown -R 65534:65534 own
    printf '%s\n' '{"op":"remove","path":"/srv/conf.d"}' '{"op":"text","path":"/srv/conf.d/new","content":"new"}' |
        setpriv --reuid 65534 --regid 65534 --clear-groups env MSB_HOME="$PWD/own/home" own/tools/msb-patch -r own/own.json -f - >patched.json
    upper=$(jq -r .upper.dir patched.json)
    [ "$(getfattr --only-values -n user.overlay.opaque "$upper/srv/conf.d" 2>/dev/null)" = y ]
    vm_record=patched.json vm_boot worker
    [ "$(vm_exec worker ls /srv/conf.d)" = new ]
}

@test "-v and the record name the kind of root that was chosen, and the reason" {
    vm_boot worker --verbose
    grep -qx 'msb-boot: root: block (the record has layers and no mount)' worker.err
    # Without it the guest only reads more slowly, which no other test notices.
    [ "$(vm_exec worker cat /sys/block/vda/queue/read_ahead_kb)" = 1024 ]
    jq -e '.vm | .root == "block" and .root_why == "the record has layers and no mount" and .top.kind == "disk"' worker.json
    [ "$(jq -r .vm.top.path worker.json)" = "$MSB_HOME/sandboxes/worker/top.ext4" ]
}

@test "an empty upper needs no disk" {
    echo '{"op":"remove","path":"/not-there"}' | msb-patch -r "$vm_record" -f - >patched.json
    jq -e .upper patched.json
    vm_record=patched.json vm_boot worker
    [ "$(lower_of worker)" = /base ]
}

@test "an EROFS image for several boots is made once, and a damaged one is made again" {
    vm_boot one &
    first=$!
    vm_boot two
    wait "$first"
    [ "$(cat one.err two.err | grep -c 'making the image')" = 1 ]
    [ "$(find "$MSB_HOME/erofs" -name '*.erofs' | wc -l)" = 1 ]
    vm_kill one
    truncate -s -4096 "$MSB_HOME"/erofs/*.erofs
    vm_boot three
    grep -q 'making the image' three.err
    [ "$(vm_exec three cat /etc/passwd)" = "$(vm_exec two cat /etc/passwd)" ]
}

@test "the VM of a name finds its disk again, with nothing to recover" {
    vm_boot again
    vm_exec again sh -c 'echo kept >/root/kept; rm /etc/group'
    msb-stop -r again >/dev/null
    vm_boot again
    [ "$(vm_exec again cat /root/kept)" = kept ]
    run vm_exec again cat /etc/group
    [ "$status" -ne 0 ]
    run ! grep -q 'EXT4-fs.*recovery' <(vm_exec again dmesg)
}

@test "reusing a disk causes a message with its usage; --fresh starts a new one, unless the old one is in use" {
    vm_boot again
    run ! grep -q reusing again.err
    vm_exec again sh -c 'dd if=/dev/urandom of=/root/big bs=1M count=6 2>/dev/null; echo old >/root/kept'
    run --separate-stderr msb-boot -r "$vm_record" --name again --fresh
    [ "$status" -eq 1 ]
    [[ $stderr == *'a VM of that name is running'* ]]
    msb-stop -r again >/dev/null
    vm_boot again
    [[ $(cat again.err) =~ ^'msb-boot: again: reusing its disk, '([0-9]+)'.'[0-9]' MiB written; --fresh starts a new one'$ ]] ||
        { cat again.err; return 1; }
    [ "${BASH_REMATCH[1]}" -ge 6 ]
    [ "${BASH_REMATCH[1]}" -lt 60 ]
    [ "$(vm_exec again cat /root/kept)" = old ]
    mkdir other-run
    run --separate-stderr env XDG_RUNTIME_DIR="$PWD/other-run" MSB_RUN="$PWD/other-run" msb-boot -r "$vm_record" --name again --fresh
    [ "$status" -eq 1 ]
    [[ $stderr == *'again/top.ext4": another VM has it'* ]]
    msb-stop -r again >/dev/null
    # The patches are newer than the disk.
    echo '{"op":"text","path":"/etc/group","content":"patched\n","replace":true}' | msb-patch -r "$vm_record" -f - >patched.json
    vm_record=patched.json vm_boot again
    grep -q 'reusing its disk, .*, which hides patches that were made since to the same files; --fresh' again.err
    msb-stop -r again >/dev/null
    vm_record=patched.json vm_boot again --fresh --disk 1G
    run ! grep -q reusing again.err
    [ "$(vm_exec again sh -c 'cat /etc/group; ls /root')" = patched ]
    [ "$(ls "$MSB_HOME/sandboxes/again")" = $'top.base\ntop.ext4\ntop.needs' ]
    # A boot that fails leaves the disk that is there.
    vm_exec again sh -c 'echo kept >/root/kept'
    msb-stop -r again >/dev/null
    run --separate-stderr env MSB_AGENTD=/etc/passwd msb-boot -r patched.json --name again --fresh
    [ "$status" -eq 1 ]
    vm_record=patched.json vm_boot again
    [ "$(vm_exec again cat /root/kept)" = kept ]
    msb-stop -r again >/dev/null
    # The upper stays as long as a VM that is stopped needs it, also if another VM was the last one that used it.
    sandbox=$(dirname "$(jq -r .upper.dir patched.json)")
    vm_record=patched.json vm_boot other
    msb-rm -f other
    touch -d '3 days ago' "$sandbox/hold"
    msb-store gc | jq -se --arg path "$sandbox" 'any(.path == $path and .state == "kept" and .why == "a VM or a snapshot has it")'
    run --separate-stderr msb-store rm -t sandbox "${sandbox##*/}"
    [ "$status" -eq 1 ]
    [[ $stderr == *'the stopped VM "again" needs it (remove the VM with "msb-rm again")' ]]
    msb-rm again
    [ ! -e "$sandbox" ]
}

@test "a boot that is bound to fail does so before an image is made" {
    for try in \
        "--kernel-log=$PWD/missing/log|missing/log\": its directory: No such file" \
        "--kernel-log=$PWD|is a directory (name a file)" \
        "--kernel-log=$vm_record/log|is not a directory" \
        "--memory=900G|MiB of swap (ask for less with --memory)" \
        "--env-file=missing|missing" \
        "--script=x=missing|script \"x\""; do
        run --separate-stderr msb-boot -r "$vm_record" "${try%%|*}"
        [ "$status" -eq 1 ]
        [[ $stderr == "msb-boot: "*"${try#*|}"* ]] || { echo "${try%%|*}: $stderr"; return 1; }
    done
    jq -c --arg dir "$PWD/gone" '.upper = {dir: "\($dir)/upper", work: "\($dir)/work"}' "$vm_record" >gone.json
    run --separate-stderr msb-boot -r gone.json
    [ "$status" -eq 1 ]
    [[ $stderr == 'msb-boot: '*'upper "'*'/gone/upper" is gone (run msb-patch again)' ]]
    mkdir -p "$MSB_HOME/sandboxes/taken"
    printf other >"$MSB_HOME/sandboxes/taken/top.base"
    truncate -s 4G "$MSB_HOME/sandboxes/taken/top.ext4"
    run --separate-stderr msb-boot -r "$vm_record" --name taken
    [ "$status" -eq 1 ]
    [[ $stderr == *'it belongs to "other"'*'--fresh'* ]]
    [ ! -e "$MSB_HOME/erofs" ]
    [ ! -e "$MSB_HOME/kernel" ]
    vm_assert_nothing
}

@test "an interrupt stops the making of an image at once, and leaves nothing" {
    # A large file takes a while.
    truncate -s 3G "$(jq -r '.rootfs.lower[0]' "$vm_record")/large"
    cp -a "$vm_root" large
    truncate -s 3G large/file
    # mkfs.erofs has the image as its stdin, and its jail has no other name for it.
    mkfs() {
        local pid
        for pid in $(pgrep -f '^[^ ]*mkfs.erofs .* /tree$'); do
            [[ $(readlink "/proc/$pid/fd/0") != "$MSB_HOME"/* ]] || echo "$pid"
        done
    }
    jq -nc --arg root "$PWD/large" '{msb: 1, rootfs: {kind: "dir", lower: [$root]}}' >dir.json
    for record in "$vm_record" dir.json; do
        for signal in INT TERM HUP; do
            env --default-signal=INT msb-boot -r "$record" --name half >half.json 2>half.err 3>&- &
            boot=$!
            until mkfs=$(mkfs) && [ -n "$mkfs" ]; do kill -0 "$boot"; sleep 0.02; done
            kill -"$signal" "$boot"
            status=0
            wait "$boot" || status=$?
            [ "$status" -eq $((128 + $(kill -l "$signal"))) ] || { echo "$record $signal: $status"; cat half.err; return 1; }
            grep -q '^msb-boot: interrupted' half.err
            [ ! -s half.json ]
            vm_await_end "$mkfs"
            vm_assert_nothing
        done
    done
    [ -z "$(find "$MSB_HOME" -name '*.erofs' -o -name '.*')" ]
    [ ! -e "$MSB_HOME/sandboxes/half" ]
    [ ! -e "$MSB_HOME/logs" ]
}

@test "neither the disk of an unnamed VM nor --ephemeral leaves anything" {
    before=$(find "$MSB_HOME/sandboxes" 2>/dev/null | sort)
    msb-boot -r "$vm_record" >unnamed.json
    jq -e '.vm.top == {kind: "disk"}' unnamed.json
    vm_boot memory --ephemeral
    jq -e '.vm.top == {kind: "memory"}' memory.json
    for record in unnamed memory; do
        [ "$(msb-exec -r $record.json -- sh -c 'echo new >/root/new; cat /root/new')" = new ]
        msb-stop -r $record.json >/dev/null
    done
    [ "$(find "$MSB_HOME/sandboxes" | sort | grep -vx "$MSB_HOME/sandboxes")" = "$(grep -vx "$MSB_HOME/sandboxes" <<<"$before")" ]
}

@test "a disk that is in use, or is of another image or size, is refused" {
    vm_boot disk
    mkdir other-run
    run --separate-stderr env MSB_RUN="$PWD/other-run" msb-boot -r "$vm_record" --name disk
    [ "$status" -eq 1 ]
    [[ $stderr == *"disk \"$MSB_HOME/sandboxes/disk/top.ext4\": another VM has it"* ]]
    [ "$(vm_exec disk echo on)" = on ]
    vm_kill disk
    run --separate-stderr msb-boot -r "$vm_record" --name disk --disk 1G
    [ "$status" -eq 1 ]
    [[ $stderr == *'it has 4096 MiB already'* ]]
    msb-pull -q "oci:$(layered_image)" >layered.json
    run --separate-stderr msb-boot -r layered.json --name disk
    [ "$status" -eq 1 ]
    [[ $stderr == *'it belongs to "sha256:'*'take another --name'* ]]
    [ -z "$(vm_processes)" ]
}

# bats test_tags=vmm-slow
@test "what the guest has synced survives a kill of the VMM during writes" {
    vm_boot crash
    vm_exec crash sh -c 'dd if=/dev/urandom of=/root/synced bs=64k count=16 2>/dev/null; sync; sha256sum /root/synced' >sum
    vm_exec crash sh -c 'echo up; while :; do dd if=/dev/zero of=/root/more bs=64k count=64 2>/dev/null; done' >up &
    until grep -q up up; do sleep 0.02; done
    kill -KILL "$(vm_vmm crash)"
    vm_await_end "$(vm_pid crash)"
    wait $! || true
    vm_boot crash
    vm_exec crash dmesg | grep -q 'EXT4-fs.*recovery complete'
    vm_exec crash sha256sum -c <sum
}

@test "a full disk is an error in the guest, which keeps running" {
    vm_boot worker --disk 256M
    run vm_exec worker dd if=/dev/zero of=/root/big bs=1M count=400
    [ "$status" -ne 0 ]
    [[ $output == *'No space left on device'* ]]
    vm_exec worker rm /root/big
    [ "$(vm_exec worker sh -c 'echo room >/root/small; sync; cat /root/small')" = room ]
}

@test "a full disk of the host is an error in the guest and in its log, and the image does not change" {
    mkdir small
    mount -t tmpfs -o size=80m none small
    export MSB_HOME=$PWD/small/home
    msb-pull -q "oci:$(tiny_image)" >"$vm_record"
    vm_boot worker
    sum=$(sha256sum "$MSB_HOME"/erofs/*.erofs)
    dd if=/dev/zero of=small/filler bs=1M 2>/dev/null || true
    vm_exec worker sh -c 'dd if=/dev/urandom of=/root/big bs=1M count=20; sync' || true
    vm_await_log worker 'I/O error, dev vdb'
    [ "$(sha256sum "$MSB_HOME"/erofs/*.erofs)" = "$sum" ]
    [ "$(vm_exec worker cat /etc/group)" = "$(cat "$(jq -r '.rootfs.lower[0]' "$vm_record")/etc/group")" ]
}

@test "a hundred patches are one more disk, as one patch is" {
    seq 100 | jq -c '{op: "text", path: "/srv/dir\(. % 10)/file\(.)", content: "\(.)\n"}' |
        msb-patch -r "$vm_record" -f - >patched.json
    vm_record=patched.json vm_boot hundred --ephemeral
    [ "$(vm_exec hundred sh -c 'cat /srv/*/* | wc -l')" = 100 ]
    [ "$(lower_of hundred)" = /patches:/base ]
    # The image, the patches; what the guest writes is in its memory.
    [ "$(vm_exec hundred sh -c 'echo /dev/vd*')" = '/dev/vda /dev/vdb' ]
}

@test "files with holes that would fill the host's disk are refused before it is full" {
    truncate -s 4T huge
    echo '{"op":"copy_file","src":"huge","dst":"/srv/huge"}' | msb-patch -r "$vm_record" -f - >patched.json
    run --separate-stderr msb-boot -r patched.json --name worker
    [ "$status" -eq 1 ]
    [[ $stderr == *'no space left for the image'*'4194304 of them in "/srv/huge"'*'make room'* ]]
    [ ! -e "$XDG_RUNTIME_DIR/msb/worker" ]
    [ ! -e "$MSB_HOME/sandboxes/worker" ]
    # The same for files of the image.
    cp -a "$vm_root" own
    mv huge own/srv-huge
    jq -nc --arg root "$PWD/own" '{msb: 1, rootfs: {kind: "dir", lower: [$root]}}' >own.json
    run --separate-stderr msb-boot -r own.json --name other
    [ "$status" -eq 1 ]
    [[ $stderr == *'no space left for the image'*'4194304 of them in "/srv-huge"'* ]]
    # If there is room, it is copied as any other file.
    truncate -s 64M huge
    echo '{"op":"copy_file","src":"huge","dst":"/srv/huge","replace":true}' | msb-patch -r patched.json -f - >less.json
    vm_record=less.json vm_boot worker
    [ "$(vm_exec worker stat -c %s /srv/huge)" = $((64 << 20)) ]
}
