#!/usr/bin/env bats
# Networks of podman with msb-oci: the interfaces that netavark has made, in the guest. The tests run with "make test-oci".

# shellcheck source-path=SCRIPTDIR disable=SC2154,SC2016 # bats sets variables; inner shells expand theirs
bats_require_minimum_version 1.5.0

setup_file() {
    source "$BATS_TEST_DIRNAME/oci.bash"
    [ -e /dev/net/tun ] || skip "/dev/net/tun is missing"
    [ -e /usr/lib/podman/netavark ] && [ -e /usr/lib/podman/aardvark-dns ] || skip "netavark or aardvark-dns is missing (make deps)"
    # shellcheck source-path=SCRIPTDIR
    source "$BATS_TEST_DIRNAME/image.bash"
    oci_start
    cp "$(guest_program udp-echo)" "$oci/udp-echo"
    P network create --ipv6 --subnet 10.90.1.0/24 --subnet fd90:1::/64 one >/dev/null
    P network create --subnet 10.90.2.0/24 two >/dev/null
    cat >"$oci/talk.py" <<'END'
"""talk.py tcp|udp HOST PORT TEXT: sends the text and prints the answer."""
import socket, sys, time

def exchange_datagrams(peer):
    # A datagram may be lost, or arrive before the server listens.
    peer.settimeout(1)
    for _ in range(100):
        try:
            peer.send(text)
            return peer.recv(65536)
        except OSError:
            time.sleep(1)
    sys.exit("no answer")

def exchange_streams(peer):
    peer.send(text)
    return b"".join(iter(lambda: peer.recv(65536), b""))

kind, host, port, text = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4].encode()
family = socket.AF_INET6 if ":" in host else socket.AF_INET
with socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as peer:
    peer.settimeout(120)
    peer.connect((host, port))
    print((exchange_streams if kind == "tcp" else exchange_datagrams)(peer).decode(), end="")
END
    cat >"$oci/many.py" <<'END'
"""A thousand connections to a published port, ten at a time."""
from concurrent.futures import ThreadPoolExecutor
from urllib.request import urlopen

with ThreadPoolExecutor(10) as pool:
    answers = set(pool.map(lambda _: urlopen("http://127.0.0.1:8080/file", timeout=300).read(), range(1000)))
assert answers == {b"content\n"}, answers
END
}

setup() {
    source "$BATS_TEST_DIRNAME/oci.bash"
    source "$BATS_TEST_DIRNAME/vm.bash"
}

teardown_file() {
    source "$BATS_TEST_DIRNAME/oci.bash"
    P rm -fa -t 0 >/dev/null 2>&1
    # It ends with the last container, if nothing has failed.
    in_ns pkill -F /run/containers/networks/aardvark-dns/aardvark.pid 2>/dev/null
    oci_stop
}

talk() { in_ns python3 "$oci/talk.py" "$@"; }
http() { talk tcp "$1" "$2" $'GET /file HTTP/1.0\r\n\r\n' | tail -n 1; }

# bats test_tags=slow
@test "a macvtap interface carries published ports and the guest's own connections, and a second VM cannot have it" {
    echo content >"$oci/file"
    before=$(in_ns ip -o link | wc -l)
    P run -d --name server --annotation dev.msb.network=macvtap --network one -p 8090:80 -v "$oci/file:/data/file" \
        localhost/bb httpd -f -p 80 -h /data
    pid=$(P inspect server --format '{{.State.Pid}}')
    links=$(nsenter -n -t "$pid" ip -d link)
    [[ $links == *'macvtap mode passthru'* ]]
    [ -z "$(nsenter -n -t "$pid" tc filter show dev eth0 ingress)" ]
    one=$(P inspect server --format '{{(index .NetworkSettings.Networks "one").IPAddress}}')
    is_served() { [ "$(http 127.0.0.1 8090 2>/dev/null)" = content ]; }
    vm_await is_served
    [ "$(http "$one" 80)" = content ]
    C run -d --name peer --network one localhost/bb httpd -f -p 80 -h /etc
    peer=$(C inspect peer --format '{{(index .NetworkSettings.Networks "one").IPAddress}}')
    P exec server wget -q -O - "http://$peer/passwd" | grep -q app
    for kind in tap macvtap; do
        capture P run --rm --annotation dev.msb.network=$kind --network container:server localhost/bb true
        [ "$status" != 0 ]
        [[ $stderr == *"the VM of another container has it"* ]]
    done
    P rm -f -t 0 server
    C rm -f -t 0 peer
    [ -z "$(oci_leftovers)" ] || { oci_leftovers; return 1; }
    [ "$(in_ns ip -o link | wc -l)" -le "$before" ]
}

# bats test_tags=slow
@test "two networks: TCP, UDP, IPv6, published ports, and names in both directions" {
    echo content >"$oci/file"
    P run -d --name server --network one,two -p 8080:80 -p 8053:53/udp -v "$oci/file:/data/file" -v "$oci/udp-echo:/udp-echo" \
        localhost/bb sh -c 'httpd -p 80 -h /data && exec /udp-echo 53'
    C run -d --name peer --network one localhost/bb sleep 1000
    address() { P inspect server --format "{{(index .NetworkSettings.Networks \"$1\").$2}}"; }
    one=$(address one IPAddress) two=$(address two IPAddress) six=$(address one GlobalIPv6Address)
    # The guest has both interfaces, with the addresses and the Ethernet addresses that podman knows.
    inside=$(P exec server ip address)
    [[ $inside == *"$one/24"* && $inside == *"$two/24"* && $inside == *"$six/64"* ]]
    [[ $inside == *"$(address one MacAddress)"* && $inside == *"$(address two MacAddress)"* ]]
    P exec server ip route | grep -q '^default via 10.90.'
    until [ "$(http "$one" 80 2>/dev/null)" = content ]; do kill -0 "$(P inspect server --format '{{.State.Pid}}')"; done
    for at in "$two 80" "$six 80" '10.90.1.1 8080' '127.0.0.1 8080'; do
        # shellcheck disable=SC2086 # two words
        [ "$(http $at)" = content ] || { echo "$at"; return 1; }
    done
    for at in "$one 53" "$two 53" "$six 53" '10.90.1.1 8053'; do
        # shellcheck disable=SC2086 # two words
        [ "$(talk udp $at datagram)" = datagram ] || { echo "$at"; return 1; }
    done
    in_ns python3 "$oci/many.py"
    # By name, through aardvark: a container of crun finds the VM, and the VM that container.
    [ "$(C exec peer wget -q -O - http://server/file)" = content ]
    peer=$(C inspect peer --format '{{(index .NetworkSettings.Networks "one").IPAddress}}')
    # aardvark knows on each network the containers of that one. It asks for an address of IPv6 too, which there is not.
    is_found() {
        answer=$(P exec server nslookup peer.dns.podman 10.90.1.1 2>&1) || true
        [[ $answer == *"$peer"* ]]
    }
    vm_await is_found || { echo "$answer"; return 1; }
    P exec server ping -c 1 -W 60 "$peer"
    # The engine counts what passes.
    P stats --no-stream --format '{{.NetIO}}' server | grep -vq '^0B / 0B'
    P rm -f -t 0 server
    C rm -f -t 0 peer
    [ -z "$(oci_leftovers)" ] || { oci_leftovers; return 1; }
}
