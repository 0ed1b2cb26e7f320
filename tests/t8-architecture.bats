#!/usr/bin/env bats
# Guests of another architecture than this machine's: QEMU emulates the processor.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; inner shells expand theirs
bats_require_minimum_version 1.5.0

setup() {
    source "$BATS_TEST_DIRNAME/vm.bash"
    source "$BATS_TEST_DIRNAME/image.bash"
    vm_setup
    foreign=arm64 machine=aarch64 qemu=qemu-system-arm
    [ "$(uname -m)" = x86_64 ] || foreign=amd64 machine=x86_64 qemu=qemu-system-x86
}

teardown() {
    vm_teardown
    ! mountpoint -q mounted || msb-mount -u mounted
    if [ -n "${server:-}" ]; then kill "$server"; fi
}

# needs_foreign: skips a test if what guests of the other architecture need is missing.
needs_foreign() {
    [ -e "$release/$machine/agentd" ] || skip "there is no agentd for $foreign guests (make guest-$foreign)"
    command -v "qemu-system-$machine" || skip "$qemu is not installed"
}

# foreign: prints the record of an image for the other architecture.
foreign() { msb-pull --platform "linux/$foreign" "oci:$(foreign_image):latest"; }

@test "what a guest of another architecture lacks is named with its remedy, and krun runs none" {
    jq -c --arg platform "linux/$foreign" '.image = {ref: "x", platform: $platform, config: {}}' "$vm_record" >foreign.json
    vm_copy_alone msb-boot
    run --separate-stderr alone/msb-boot -r foreign.json
    [ "$status" -eq 1 ]
    [[ $stderr == "msb-boot: agentd: none for linux/$foreign guests in \"$machine\" beside msb-boot or in \"../libexec/msb/$machine\" (run \"make guest-$foreign\", or name it in MSB_AGENTD)" ]]
    run --separate-stderr env MSB_AGENTD="$release/agentd" alone/msb-boot -r foreign.json
    [ "$status" -eq 1 ]
    [[ $stderr == *"agentd \"$release/agentd\": it is built for another kind of machine"*"make guest-$foreign"* ]]
    # A header is enough to be found.
    mkdir "alone/$machine"
    head -c 4096 "$release/agentd" >"alone/$machine/agentd"
    case $foreign in arm64) printf '\267' ;; *) printf '\076' ;; esac | dd of="alone/$machine/agentd" bs=1 seek=18 conv=notrunc status=none
    run --separate-stderr alone/msb-boot -r foreign.json
    [ "$status" -eq 1 ]
    [[ $stderr == "msb-boot: guest kernel \"libkrunfw.so.5\": none for linux/$foreign guests in "*"make guest-$foreign"* ]]
    cp "$release/libkrunfw.so.5" "alone/$machine/" || skip "libkrunfw is the distribution's"
    run --separate-stderr env PATH=/nonexistent alone/msb-boot -r foreign.json
    [ "$status" -eq 1 ]
    [[ $stderr == *"qemu-system-$machine is not installed (apt-get install $qemu)" ]]
    run --separate-stderr alone/msb-boot -r foreign.json --vmm krun
    [ "$status" -eq 1 ]
    [[ $stderr == *"krun: it runs guests of this machine's own architecture, and this one is for linux/$foreign (use --vmm qemu)" ]]
    vm_assert_nothing
}

@test "an image of another architecture boots from disks: patches, exec, a volume, the network's card, and a commit" {
    needs_foreign
    mkdir volume
    run ! msb-pull "oci:$(foreign_image):latest"
    { foreign; echo '{"op": "text", "path": "/etc/motd", "content": "patched\n"}'; } | msb-patch >patched.json
    msb-boot -r patched.json --name foreign -v "$PWD/volume:/volume" --network public --timeout 1000 -o foreign.json 2>boot.err || { cat boot.err; false; }
    jq -e '.vm.vmm == "qemu" and .vm.root == "block"' foreign.json
    [ "$(vm_exec foreign uname -m)" = "$machine" ]
    [ "$(vm_exec foreign cat /etc/motd)" = patched ]
    [ "$(echo in | msb-exec foreign -- cat)" = in ]
    run msb-exec foreign -- sh -c 'echo "$HOME" >/volume/made; echo kept >/root/kept; exit 7'
    [ "$status" -eq 7 ]
    [ "$(cat volume/made)" = /root ]
    vm_exec foreign cat /sys/class/net/eth0/operstate
    msb-stop foreign --commit >committed.json
    [ "$(cat "$(jq -r .upper.dir committed.json)/root/kept")" = kept ]
    vm_assert_nothing
}

# bats test_tags=slow
@test "a mounted image of another architecture is a guest's root: its init is PID 1, and commands, signals, users and copies work" {
    needs_foreign
    head -c 3000000 /dev/urandom >random
    cat >ops.jsonl <<'END'
{"op": "text", "path": "/etc/inittab", "content": "::sysinit:/bin/true\n::shutdown:/bin/touch /root/shutdown\n"}
{"op": "symlink", "link": "/sbin/init", "target": "../bin/busybox"}
END
    { foreign; cat ops.jsonl; } | msb-patch | msb-mount mounted | msb-boot --name foreign --init auto --timeout 1000 -o foreign.json
    jq -e '.vm.root == "share" and .vm.init == "/sbin/init"' foreign.json
    [ "$(vm_exec foreign cat /proc/1/comm)" = busybox ]
    [ "$(vm_exec foreign uname -m)" = "$machine" ]
    echo host >mounted/root/host
    [ "$(vm_exec foreign cat /root/host)" = host ]
    vm_exec foreign sh -c 'echo guest >/root/guest; chown 5:6 /root/guest; chmod 640 /root/guest'
    [ "$(cat mounted/root/guest; stat -c '%u %g %a' mounted/root/guest)" = $'guest\n5 6 640' ]
    msb-exec foreign -- cat <random | cmp - random
    run -127 msb-exec foreign -- no-such-program
    [ "$(msb-exec -u nobody foreign -- id -u)" = 65534 ]
    mkfifo up
    msb-exec foreign -- sh -c 'echo up; exec sleep 100000' >up 3>&- &
    read -r said <up
    [ "$said" = up ]
    kill "$!"
    status=0
    wait "$!" || status=$?
    [ "$status" -eq 143 ]
    id=$(msb-exec -d foreign -- sh -c 'echo detached; exit 3' | jq .id)
    run -3 msb-exec foreign --wait "$id"
    msb-logs foreign "$id" | grep -x detached
    msb-cp random foreign:/root/copied
    cmp random mounted/root/copied
    msb-cp foreign:/root/copied back
    cmp random back
    run --separate-stderr msb-stop foreign
    [ "$stderr" = 'msb-stop: foreign: stopped' ]
    [ -e mounted/root/shutdown ]
    [ ! -e mounted/.msb ]
    vm_assert_nothing
}

# bats test_tags=slow
@test "a guest of another architecture is committed and packed as an image of that architecture, and msb-run runs it" {
    needs_foreign
    foreign | msb-boot --name foreign --timeout 1000 -o foreign.json
    vm_exec foreign sh -c 'echo kept >/root/kept; mkdir -p /srv/made; chown 5:6 /srv/made'
    msb-stop foreign --commit -o committed.json
    msb-diff -r committed.json >changes || [ $? -eq 1 ]
    grep -q /root/kept changes
    msb-pack -r committed.json oci:packed:v1 -o packed.json
    [ "$(skopeo inspect --config oci:packed:v1 | jq -r .architecture)" = "$foreign" ]
    run msb-run -q --platform "linux/$foreign" --entrypoint '[]' --network none --timeout 1000 oci:packed:v1 -- \
        sh -c 'uname -m; cat /root/kept; stat -c "%u %g" /srv/made; exit 9'
    [ "$status" -eq 9 ]
    [ "$output" = "$machine"$'\nkept\n5 6' ]
    vm_assert_nothing
}

# bats test_tags=slow
@test "a guest of another architecture serves a published port, reaches only what is allowed, and has volumes" {
    needs_foreign
    mkdir volume served
    echo 'from the host' >served/page
    python3 -u -m http.server 0 --bind 127.0.0.1 --directory served >server.log 2>/dev/null 3>&- &
    server=$!
    vm_await grep -q 'port [0-9]' server.log
    port=$(sed -n 's/.* port \([0-9]*\).*/\1/p' server.log)
    foreign | msb-boot --name foreign --network deny --allow "host:$port" --add-host near:host-gateway -p 0:80 -v "$PWD/volume:/volume" \
        -v named:/named --timeout 1000 -o foreign.json
    near=$(vm_exec foreign sh -c 'grep near /etc/hosts' | awk '{ print $1 }')
    # The wget of Debian's static BusyBox for arm64 crashes, and its nc shuts down the connection at the end of stdin.
    fetch() {
        vm_exec foreign sh -c 'rm -f /tmp/in; mkfifo /tmp/in; exec 3<>/tmp/in; printf "GET /page HTTP/1.0\r\n\r\n" >&3; nc "$@" <&3' - "$@"
    }
    fetch "$near" "$port" | grep -x 'from the host'
    run fetch "$near" "$((port - 1))"
    [ "$status" -ne 0 ]
    vm_exec foreign sh -c 'mkdir /tmp/pages; echo "from the guest" >/tmp/pages/index.html; exec httpd -f -p 80 -h /tmp/pages' 3>&- &
    published=$(jq -r '.vm.net.ports[0].host' foreign.json)
    is_page() { [ "$(curl -sS -m 60 "http://$published/")" = 'from the guest' ]; }
    vm_await is_page
    vm_exec foreign sh -c 'echo one >/volume/file; echo two >/named/file'
    [ "$(cat volume/file)" = one ]
    [ "$(cat "$MSB_HOME/volumes/named/file")" = two ]
    msb-stop foreign >/dev/null
    vm_assert_nothing
}
