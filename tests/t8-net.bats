#!/usr/bin/env bats
# The guest's network. The servers are in a network namespace that the test creates, and msb-boot runs in there, so nothing leaves the
# machine except in the last test.

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats and vm.bash set variables; inner shells expand theirs
bats_require_minimum_version 1.5.0

setup_file() {
    command -v passt >/dev/null || skip "passt is not installed"
    # The other end of the link has addresses of the internet, of a private network and of the metadata service.
    export lab=msb-net-$$ far=msb-far-$$
    ip netns add "$lab"
    ip netns add "$far"
    ip link add eth0 netns "$lab" type veth peer name eth0 netns "$far"
    for namespace in "$lab" "$far"; do
        ip -n "$namespace" link set lo up
        ip -n "$namespace" link set eth0 up
        ip netns exec "$namespace" sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.eth0.accept_dad=0
    done
    ip -n "$lab" addr add 198.51.100.2/24 dev eth0
    ip -n "$lab" -6 addr add 2001:db8:1::2/64 dev eth0 nodad
    ip -n "$far" addr add 198.51.100.1/24 dev eth0
    ip -n "$far" -6 addr add 2001:db8:1::1/64 dev eth0 nodad
    ip -n "$lab" route add default via 198.51.100.1
    ip -n "$lab" -6 route add default via 2001:db8:1::1
    for address in 203.0.113.9 203.0.113.10 10.9.9.9 169.254.169.254; do ip -n "$far" addr add "$address/32" dev lo; done
    for address in 2001:db8:9::9 fd99::9; do ip -n "$far" -6 addr add "$address/128" dev lo nodad; done
    # shellcheck disable=SC2086 # a list
    ip netns exec "$far" python3 "$BATS_TEST_DIRNAME/net-servers.py" far 3>&- &
    echo $! >"$BATS_FILE_TMPDIR/far.pid"
    ip netns exec "$lab" python3 "$BATS_TEST_DIRNAME/net-servers.py" host >"$BATS_FILE_TMPDIR/host.log" 3>&- &
    echo $! >"$BATS_FILE_TMPDIR/host.pid"
    source "$BATS_TEST_DIRNAME/vm.bash"
    vm_await answers 203.0.113.9 80
}

# answers ADDRESS PORT: whether a server does, as seen from the lab.
answers() {
    ip netns exec "$lab" python3 -c 'import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)' "$@" 2>/dev/null
}

teardown_file() {
    [ ! -e "$BATS_FILE_TMPDIR/far.pid" ] || kill "$(cat "$BATS_FILE_TMPDIR/far.pid")" "$(cat "$BATS_FILE_TMPDIR/host.pid")" || true
    ip netns delete "$lab" 2>/dev/null || true
    ip netns delete "$far" 2>/dev/null || true
}

setup() {
    source "$BATS_TEST_DIRNAME/vm.bash"
    vm_setup
    unset MSB_NETWORK
    # Nobody answers at the first one.
    printf 'nameserver 198.51.100.1\nnameserver 203.0.113.9\n' >resolv.conf
    copy_program "$(command -v curl)" /lib/x86_64-linux-gnu/libnss_{files,dns}.so.2
}

teardown() {
    vm_teardown
}

# copy_program FILE…: copies programs or libraries into the root, with the libraries that they need.
copy_program() {
    local file
    for file in "$@" $(ldd "$@" | grep -o '/[^ :]*' | sort -u); do
        [ -e "$vm_root$file" ] || install -D "$file" "$vm_root$file"
    done
}

# net_boot NAME [ARG…]: as vm_boot, in the namespace with the lab's resolver.
net_boot() {
    local vm_launcher=(ip netns exec "$lab" sh -c 'mount --bind resolv.conf /etc/resolv.conf && exec "$@"' sh)
    vm_boot "$@"
}

# net_process NAME PATTERN: prints the process ID of the VM's process with such a command line; waits for it.
net_process() {
    until pgrep -P "$(vm_pid "$1")" -f "$2"; do sleep 0.05; done
}

# fetch NAME URL [ARG…]: prints what the guest gets. A static busybox cannot resolve names, so the guest has curl.
fetch() {
    local name=$1
    shift
    vm_exec "$name" curl -sS -m 120 "$@"
}

# fetch_fails NAME URL [ARG…]: the guest gets nothing; $output says why.
fetch_fails() {
    local name=$1
    shift
    run vm_exec "$name" curl -sS -v -m 120 "$@"
    [ "$status" -ne 0 ]
}

@test "no frame of a hostile guest passes the gate, and no flood makes it larger" {
    # Without a VM, passt and a network.
    python3 "$BATS_TEST_DIRNAME/gate-frames.py" "$(command -v msb-boot)"
}

@test "the resolver asks one name server after another, over TCP what is long, and holds only so many questions" {
    # The same.
    python3 "$BATS_TEST_DIRNAME/resolver-lookups.py" "$(command -v msb-boot)"
}

# bats test_tags=vmm-slow
@test "by default a guest reaches the internet and nothing near, whatever it sends" {
    cp "$(source "$BATS_TEST_DIRNAME/image.bash" && guest_program raw-frames)" "$vm_root/bin/raw-frames"
    net_boot worker -p 0:80
    jq -e '.vm.net | .mode == "public" and .backend == "passt" and .mtu == 16384 and (.addresses | length) == 2' worker.json
    [ ! -s worker.err ]
    [ "$(fetch worker http://203.0.113.9/)" = far ]
    [ "$(fetch worker 'http://[2001:db8:9::9]/')" = far ]
    [ "$(fetch worker http://www.good.test/)" = far ]
    port=$(jq -r '.vm.net.ports[0].host' worker.json)
    for address in 198.51.100.2:9001 "10.0.2.2:${port#*:}" 10.0.2.2:8000 10.9.9.9 169.254.169.254 198.51.100.1 '[fd99::9]' \
        '[2001:db8:1::2]:9001'; do
        fetch_fails worker "http://$address/"
        [[ $output == *"No route to host"* || $output == *"Permission denied"* ]]
    done
    fetch_fails worker http://203.0.113.9:81/
    [[ $output == *"Connection refused"* ]]
    log=$(jq -r .vm.net.log worker.json)
    jq -se 'any(.address == "10.9.9.9" and .protocol == "tcp" and .port == 80 and .reason == "public")' "$log"
    # The answer of a name with a private address is hidden.
    fetch_fails worker http://rebind.test/
    [[ $output == *"Could not resolve host"* ]]
    vm_exec worker ip addr show lo | grep -q UP
    # A DHCP client gets what the agent has configured.
    echo 'echo "$1 $ip/$mask $router $dns $mtu"' | vm_exec worker sh -c 'cat >/tmp/lease; sed -i 1i#!/bin/sh /tmp/lease; chmod +x /tmp/lease'
    [ "$(vm_exec worker udhcpc -i eth0 -t 60 -n -q -f -s /tmp/lease 2>/dev/null | tail -n 1)" = 'bound 10.0.2.15/24 10.0.2.2 10.0.2.3 16384' ]
    # Frames past the guest's own network stack, and many of them.
    passt=$(net_process worker 'passt.*--fd=')
    gate=$(net_process worker 'msb-boot --as-gate')
    python3 "$BATS_TEST_DIRNAME/gate-frames.py" --print >frames
    vm_exec worker raw-frames 20 <frames
    [ ! -s "$BATS_FILE_TMPDIR/host.log" ]
    [ "$(awk '/^VmHWM/ { print $2 }' "/proc/$gate/status")" -lt 24576 ]
    [ "$(awk '/^VmHWM/ { print $2 }' "/proc/$(vm_pid worker)/status")" -lt 32768 ]
    [ "$(stat -c %s "$log")" -lt 2097152 ]
    kill -0 "$passt"
    [ "$(fetch worker http://203.0.113.10/)" = far ]
    # An address that the host gets while the VM runs.
    ip -n "$lab" addr add 203.0.113.10/32 dev lo
    until ! fetch worker http://203.0.113.10/ -m 10; do sleep 0.1; done
    ip -n "$lab" addr del 203.0.113.10/32 dev lo
    # Under a flood the VM stops as usual.
    vm_exec worker raw-frames 1000000 <frames >/dev/null 2>&1 3>&- &
    run --separate-stderr msb-stop worker -t 120
    [ "$status" -eq 0 ]
    [ "$stderr" = 'msb-stop: worker: stopped' ]
    vm_assert_nothing
}

@test "a guest of --network deny reaches what --allow names, and resolves those names alone" {
    net_boot worker --network deny --allow '*.good.test:80' --allow 10.9.9.9:80 --allow host:8000
    [ "$(fetch worker http://www.good.test/)" = far ]
    [ "$(fetch worker http://10.9.9.9/)" = far ]
    # Names are looked up over TCP too, by the same rules.
    [ "$(vm_exec worker env RES_OPTIONS=use-vc curl -sS -m 120 http://www.good.test/)" = far ]
    run vm_exec worker env RES_OPTIONS=use-vc curl -sS -m 120 http://other.test/
    [[ $output == *"Could not resolve host"* ]]
    fetch_fails worker http://other.test/
    [[ $output == *"Could not resolve host"* ]]
    fetch_fails worker http://203.0.113.10/
    [[ $output == *"No route to host"* || $output == *"Permission denied"* ]]
    # An answer that is too long for a datagram.
    [ "$(vm_exec worker env RES_OPTIONS= curl -sS -m 60 http://long.good.test/)" = far ]
    # Another name at an address of an allowed one.
    fetch_fails worker -H 'Host: other.test' http://www.good.test/
    jq -se 'any(.name == "other.test" and .reason == "deny")' "$(jq -r .vm.net.log worker.json)"
    # A port of the host's loopback, and no other.
    [ "$(fetch worker http://host.msb.internal:8000/)" = host ]
    fetch_fails worker http://host.msb.internal:8001/
    # The host's name servers change while the VM runs: the file is written, and then another takes its place.
    echo 'nameserver 198.51.100.1' >resolv.conf
    until ! fetch worker http://www.good.test/; do sleep 0.1; done
    grep -qF 'name servers: [198.51.100.1:53]' "$MSB_RUN/worker/supervisor.log"
    echo 'nameserver 203.0.113.9' >resolv.conf
    until [ "$(fetch worker http://www.good.test/)" = far ]; do sleep 0.1; done
    # The resolver has no file and no capability, and another takes its place when it is lost.
    resolver=$(net_process worker 'msb-boot --as-resolver')
    grep -q '^CapEff:.0*$' "/proc/$resolver/status"
    grep -q '^Seccomp:.2$' "/proc/$resolver/status"
    kill -9 "$resolver"
    until [ "$(fetch worker http://www.good.test/)" = far ]; do sleep 0.1; done
    grep -q "resolver was killed by SIGKILL: the guest's questions are lost" "$MSB_RUN/worker/supervisor.log"
    # The traffic is counted, and the counts are written within a second.
    until msb-stats worker | jq -e '.net_sent > 500 and .net_received > 500'; do sleep 0.1; done
}

@test "-p leads to a server in the guest but not from another guest, a taken port is an error, and passt is replaced" {
    cp "$(source "$BATS_TEST_DIRNAME/image.bash" && guest_program udp-echo)" "$vm_root/bin/udp-echo"
    net_boot worker --network public -p 0:80 -p 127.0.0.1:18080:81 -p 0.0.0.0:18081:80 -p '[::]:18082:80' -p 18083-18085:90-92 \
        -p 0:6/udp -p 18088-18089:7-8/udp -p '[::1]:18086:90' -p 0.0.0.0:18087:91 -p '[::]:18087:91'
    jq -r '.vm.net.ports[] | "\(.host) \(.guest) \(.protocol)"' worker.json >ports
    port=$(awk 'NR == 1 { print $1 }' ports) datagrams=$(awk 'NR == 8 { print $1 }' ports)
    [[ $port == 127.0.0.1:* && $port != *:0 && $datagrams == 127.0.0.1:* && $datagrams != *:0 ]]
    diff ports - <<END
$port 80 tcp
127.0.0.1:18080 81 tcp
0.0.0.0:18081 80 tcp
[::]:18082 80 tcp
127.0.0.1:18083 90 tcp
127.0.0.1:18084 91 tcp
127.0.0.1:18085 92 tcp
$datagrams 6 udp
127.0.0.1:18088 7 udp
127.0.0.1:18089 8 udp
[::1]:18086 90 tcp
0.0.0.0:18087 91 tcp
[::]:18087 91 tcp
END
    # The ports of a range, and for datagrams.
    vm_exec worker sh -c 'for port in 6 7 8; do udp-echo $port & done
        for port in 90 91 92; do mkdir -p /tmp/$port; echo $port >/tmp/$port/index.html; httpd -f -p $port -h /tmp/$port & done; wait' 3>&- &
    for pair in 127.0.0.1:18083=90 127.0.0.1:18084=91 127.0.0.1:18085=92 '[::1]:18086=90' 127.0.0.1:18087=91 \
        '[::1]:18087=91'; do
        is_page() { [ "$(ip netns exec "$lab" curl -sS -g -m 60 "http://${pair%=*}/")" = "${pair#*=}" ]; }
        vm_await is_page
    done
    for address in "$datagrams" 127.0.0.1:18088 127.0.0.1:18089; do
        ip netns exec "$lab" python3 -c '
import socket, sys
host, port = sys.argv[1].split(":")
peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
peer.connect((host, int(port)))
peer.settimeout(1)
for number in range(120):
    try:
        peer.send(b"%d" % number)
        sys.exit(not peer.recv(100))
    except OSError:  # it is lost, or nobody listens yet
        pass
sys.exit(1)' "$address" || { echo "$address"; return 1; }
    done
    vm_exec worker sh -c 'while :; do echo served | nc -l -p 80; done' 3>&- &
    # The client speaks first: passt of 2023 does not acknowledge a connection before.
    is_served() {
        [ "$(ip netns exec "$lab" bash -c "exec 3<>/dev/tcp/${port%:*}/${port#*:}; echo hello >&3; timeout 5 cat <&3")" = served ]
    }
    vm_await is_served
    net_boot second --network public
    for address in "10.0.2.2:${port#*:}" 198.51.100.2:18081 '[fd00:6d73::2]:18082' '[2001:db8:1::2]:18082'; do
        fetch_fails second "http://$address/"
        [[ $output == *"No route to host"* || $output == *"Permission denied"* ]]
    done
    msb-stop -t 0 second || [ $? = 1 ]
    run --separate-stderr net_boot other --network public -p 18080:80
    [ "$status" -eq 1 ]
    [[ $stderr == *"port 127.0.0.1:18080 of -p 127.0.0.1:18080:80: Address already in use"* ]]
    [[ $(chrt -p "$(net_process worker 'msb-boot --as-gate')") == *SCHED_BATCH* ]]
    # passt has a user of its own and no capabilities, and another takes its place when it is lost.
    passt=$(net_process worker 'passt.*--fd=')
    grep -q '^CapEff:.0*$' "/proc/$passt/status"
    grep -q '^NoNewPrivs:.1$' "/proc/$passt/status"
    [ "$(awk '/^Uid:/ { print $2 }' "/proc/$passt/status")" -gt 65535 ]
    kill -9 "$passt"
    until [ "$(fetch worker http://203.0.113.9/ -m 10)" = far ]; do sleep 0.1; done
    grep -q "passt was killed by SIGKILL: the guest's connections are lost" "$MSB_RUN/worker/supervisor.log"
    for _ in 1 2 3; do
        passt=$(net_process worker 'passt.*--fd=')
        kill -9 "$passt"
        vm_await_end "$passt"
    done
    until grep -q 'the guest has no network until the VM is started again' "$MSB_RUN/worker/supervisor.log"; do sleep 0.1; done
    [ "$(vm_exec worker echo alive)" = alive ]
}

@test "cards on a TAP interface and on a socket are configured by their flags, and no gate is before them" {
    for number in 0 1; do
        ip -n "$lab" tuntap add "msbtap$number" mode tap
        ip -n "$lab" addr add "192.0.2.$((number * 128 + 1))/25" dev "msbtap$number"
        ip -n "$lab" link set "msbtap$number" up
    done
    ip netns exec "$lab" passt --foreground --quiet --runas 0 --socket switch --address 10.0.3.15 --netmask 24 --gateway 10.0.3.2 --ipv4-only \
        --no-dhcp --mtu 1500 2>/dev/null 3>&- &
    own_passt=$!
    until [ -S switch ]; do
        kill -0 "$own_passt"
        sleep 0.1
    done
    ip netns exec "$lab" python3 -m http.server 8080 >/dev/null 2>&1 3>&- &
    server=$!
    vm_await answers 198.51.100.2 8080
    # Descriptor 9 is the interface msbtap1.
    local attach='import fcntl, os, struct, sys
fd = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"msbtap1", 0x1002))
os.dup2(fd, 9, True)
os.execvp(sys.argv[1], sys.argv[1:])'
    local cards=(--network 'tap:msbtap0,address=192.0.2.2/25,mac=52:55:00:00:00:07'
        --network 'tap:9,address=192.0.2.130/25,route=198.51.100.0/24=192.0.2.129'
        --network 'unix:switch,address=10.0.3.15/24,route=203.0.113.10/32=10.0.3.2')
    run --separate-stderr ip netns exec "$lab" python3 -c "$attach" msb-boot -r "$vm_record" "${cards[@]}" --network deny \
        --network unix:switch,mtu=9000 -v "$PWD:/volume"
    [ "$status" -eq 1 ]
    [[ $stderr == *"the VM has 9 devices, and qemu has room for 8 (use fewer network cards)"* ]] || [ "$MSB_VMM" != qemu ]
    local vm_launcher=(ip netns exec "$lab" python3 -c "$attach")
    vm_boot worker --network deny "${cards[@]}"
    kill -0 "$server"
    jq -e '.vm.net.mode == "deny" and (.vm.cards | length) == 3 and .vm.cards[0].mac == "52:55:00:00:00:07" and .vm.cards[1].tap == "9" and
        .vm.cards[2].mtu == 1500' worker.json
    for address in 192.0.2.1 192.0.2.129 198.51.100.2; do fetch worker "http://$address:8080/" >/dev/null; done
    [ "$(fetch worker http://203.0.113.10/)" = far ]
    ip netns exec "$lab" busybox ping -c 1 -W 120 192.0.2.2
    fetch_fails worker http://203.0.113.9/
    # Only the relay has the interface: passt, the gate and the VMM do not.
    for pid in $(pgrep -P "$(vm_pid worker)"); do
        readlink "/proc/$pid/fd/"* | grep -qx /dev/net/tun || continue
        grep -qz -- --as-relay "/proc/$pid/cmdline"
    done
    kill "$server" "$own_passt"
}

@test "a network that cannot be had is an error, and a wrong word is named" {
    for words in "--network open" "--network tap:t,mtu=x" "--allow a..b" "-p 80" "--mac x"; do
        # shellcheck disable=SC2086 # two words
        run --separate-stderr msb-boot -r "$vm_record" $words
        [ "$status" -eq 2 ]
        [[ $stderr == *"${words#* }"* ]]
    done
    run --separate-stderr msb-boot -r "$vm_record" -p 127.0.0.1:18090:80 -p 0.0.0.0:18090:81
    [ "$status" -eq 2 ]
    [[ $stderr == *"-p 0.0.0.0:18090:81: port 0.0.0.0:18090 is published twice"* ]]
    for other in '[::1]:18090:80' 127.0.0.2:18090:80; do
        run --separate-stderr msb-boot -r "$vm_record" -p 18090:80 -p "$other"
        [ "$status" -eq 2 ]
        [[ $stderr == *"-p 127.0.0.1:18090:80 and -p $other: passt can listen on a port on one address or on all"* ]]
    done
    for policy in '{"rules":[{"allow":"a..b"}]}' '{"ports":["a..b"]}' '{"hosts":["a..b"]}' '{"mac":"a..b"}' '{"mode":"a..b"}' \
        '{"cards":[{"tap":"lo","addresses":["a..b"]}]}'; do
        run --separate-stderr msb-boot -r "$vm_record" --network-policy <(echo "$policy")
        [ "$status" -eq 2 ]
        [[ $stderr == *"a..b"* ]]
    done
    for words in "--network public" "-p 80:80" "--allow all"; do
        # shellcheck disable=SC2086 # two words
        run --separate-stderr unshare -n msb-boot -r "$vm_record" $words
        [ "$status" -eq 1 ]
        [[ $stderr == *"this machine has no default route"* ]]
    done
    run --separate-stderr unshare -n sh -c 'ip link set lo up && ip route add default dev lo && exec "$@"' - \
        msb-boot -r "$vm_record" -p '[::1]:80:80'
    [ "$status" -eq 1 ]
    [[ $stderr == *'-p [::1]:80:80: the guest has no IPv6 address, since this machine has no default route for IPv6'* ]]
    run --separate-stderr msb-boot -r "$vm_record" --network tap:msb-missing
    [ "$status" -eq 1 ]
    [[ $stderr == *"--network tap:msb-missing (ip tuntap add msb-missing mode tap): "* ]]
    run --separate-stderr msb-boot -r "$vm_record" --network none -p 80:80
    [ "$status" -eq 1 ]
    vm_assert_nothing
    # Nobody asked for one here.
    unshare -n msb-boot -r "$vm_record" --name worker >worker.json 2>worker.err
    [ "$(cat worker.err)" = 'msb-boot: no network for the guest: this machine has no default route (connect it, or boot with --network none)' ]
    jq -e '.vm.net == null' worker.json
}

# bats test_tags=slow
@test "apt-get update and apt-get install work with plain msb-boot, from the mirror that this machine uses" {
    source "$BATS_TEST_DIRNAME/image.bash"
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' 'Component: main' 'Release: bookworm' 2>/dev/null | head -n 1)
    mirror=${mirror%/}
    [ -n "$mirror" ] || skip "apt on this machine has no list of Debian bookworm"
    curl -sf -m 20 -o InRelease "$mirror/dists/bookworm/InRelease" || skip "this machine's Debian mirror does not answer"
    msb-pull -q "oci:$(demo_image):latest" | msb-boot -m 1G --ephemeral --name worker >worker.json
    # Lists of translations only take time.
    vm_exec worker sh -c "echo 'deb $mirror bookworm main' >/etc/apt/sources.list; echo 'Acquire::Languages \"none\";' >/etc/apt/apt.conf.d/lists"
    vm_exec worker sh -c 'apt-get update && apt-get install -y hello' >apt.log 2>&1 || { tail apt.log; return 1; }
    [ "$(vm_exec worker hello)" = 'Hello, world!' ]
    # The programs that configure a network in Debian leave what the agent has configured.
    vm_exec worker sh -c 'apt-get install -y --no-install-recommends ifupdown isc-dhcp-client' >apt.log 2>&1 || { tail apt.log; return 1; }
    vm_exec worker sh -c 'printf "auto lo eth0\niface lo inet loopback\niface eth0 inet dhcp\n" >/etc/network/interfaces; ifup -a'
    for command in true 'dhclient -r eth0; dhclient -1 eth0'; do
        vm_exec worker sh -c "$command"
        [ "$(vm_exec worker ip -4 -o addr show dev eth0 | awk '{ print $4 }')" = 10.0.2.15/24 ]
        vm_exec worker /usr/lib/apt/apt-helper download-file "$mirror/dists/bookworm/InRelease" /tmp/InRelease
    done
}
