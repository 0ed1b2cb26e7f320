# shellcheck shell=bash
# podman with our runtime and with crun, in a mount and network namespace of its own, so that nothing of the host changes.
#
#   setup_file: source tests/oci.bash; oci_start      teardown_file: oci_stop
#   podman_with msb|crun ARGUMENTS…                   both ARGUMENTS…: the same with each

# oci_start: makes the namespaces, podman's directories and the image localhost/bb. Call it in setup_file.
oci_start() {
    local program
    for program in podman conmon crun; do
        command -v "$program" >/dev/null || skip "$program is missing (make deps)"
    done
    oci_here=$(realpath "${BASH_SOURCE[0]%/*}")
    oci=$BATS_FILE_TMPDIR/oci
    mkdir -p "$oci"/{conf,networks,home,cni}
    unshare -m -n --propagation private sh -c 'ip link set lo up; exec sleep 1000000' 3>&- 4>&- >"$oci/log" 2>&1 </dev/null &
    oci_ns=$!
    disown "$oci_ns"
    until [ "$(readlink "/proc/$oci_ns/ns/net")" != "$(readlink /proc/self/ns/net)" ] && [ "$(cat "/proc/$oci_ns/comm")" = sleep ]; do
        kill -0 "$oci_ns" || return
    done
    # crun refuses a machine with both versions of cgroups.
    in_ns sh -c 'umount /sys/fs/cgroup/unified 2>/dev/null; mount -t tmpfs tmpfs /etc/containers/networks 2>/dev/null
        mkdir -p /run/containers && mount -t tmpfs tmpfs /run/containers'
    sed "s|@PREFIX@/bin|$oci_here/../target/release|" "$oci_here/../msb-oci/dist/podman.conf" >"$oci/conf/containers.conf"
    # Limits that an unprivileged test machine can set.
    cat >>"$oci/conf/containers.conf" <<END
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[network]
network_config_dir = "$oci/networks"
END
    export oci oci_ns oci_here
    oci_image | podman_with crun import --change 'CMD ["sleep","1000000"]' - localhost/bb >"$oci/log" 2>&1 || { cat "$oci/log"; return 1; }
}

# oci_image: a tar file of a small root.
oci_image() {
    local root=$oci/bb name
    mkdir -p "$root"/{bin,etc,root,tmp,data}
    cp "$(command -v busybox)" "$root/bin/busybox"
    "$root/bin/busybox" --install -s "$root/bin"
    for name in "$root"/bin/*; do [ ! -L "$name" ] || ln -sf busybox "$name"; done
    printf 'root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/:/bin/sh\n' >"$root/etc/passwd"
    printf 'root:x:0:\napp:x:1000:\n' >"$root/etc/group"
    install -m 000 /dev/null "$root/etc/locked"
    tar -C "$root" -c .
}

in_ns() { nsenter -m -n -t "$oci_ns" "$@"; }

# podman_with RUNTIME ARGUMENTS…
podman_with() {
    local runtime=$1
    shift
    in_ns env CONTAINERS_CONF="$oci/conf/containers.conf" podman --root "$oci/root" --runroot "$oci/run" --tmpdir "$oci/tmp" \
        --cgroup-manager cgroupfs --events-backend file --storage-driver overlay --runtime "$runtime" "$@" 3>&- 4>&-
}

P() { podman_with msb "$@"; }
C() { podman_with crun "$@"; }

# capture COMMAND…: sets $status, $output and $stderr. A status of 127 is a result here.
capture() {
    status=0
    output=$("$@" 2>"$oci/stderr") || status=$?
    # shellcheck disable=SC2034 # for the caller
    stderr=$(cat "$oci/stderr")
}

# both ARGUMENTS…: runs podman with each runtime; stdout, status and whether there is a message must be the same. Sets what capture sets.
both() {
    capture C "$@"
    local expected=("$status" "$output" "${stderr:+message}")
    capture P "$@"
    [ "$status" = "${expected[0]}" ] || { echo "$*: status $status, with crun ${expected[0]}: $stderr"; return 1; }
    [ "$output" = "${expected[1]}" ] || { echo "$*: $output, with crun ${expected[1]}"; return 1; }
    [ "${stderr:+message}" = "${expected[2]}" ] || { echo "$*: $stderr"; return 1; }
}

# oci_leftovers: prints what the containers of this podman have left. Other files run theirs at the same time.
oci_leftovers() {
    grep -oE "[0-9a-f]{64}" "$oci/tmp/events/events.log" 2>/dev/null | sort -u >"$oci/ids"
    # There is one for the image at least.
    [ -s "$oci/ids" ] || echo "podman has written no events to $oci/tmp"
    cut -c 1-12 "$oci/ids" >"$oci/short-ids"
    {
        ls -A /run/msb-oci
        find /run/msb -maxdepth 1 -name 'oci-*'
        find /sys/fs/cgroup -name 'libpod-*' -type d
        pgrep -af '(as-stand-in|msb-exec).*/run/msb-oci/'
    } 2>/dev/null | grep -F -f "$oci/short-ids"
    in_ns grep "$oci/.*/merged" /proc/mounts
}

# oci_stop: removes all containers and the namespaces.
oci_stop() {
    [ -n "${oci_ns:-}" ] || return 0
    P rm -fa -t 0 >/dev/null 2>&1
    in_ns umount "$oci/root/overlay" 2>/dev/null
    kill "$oci_ns"
}

# oci_containerd [CONFIG]: starts a containerd with the image of oci_start. Call it in setup_file, after that.
oci_containerd() {
    local config=${1:-'disabled_plugins = ["io.containerd.grpc.v1.cri"]'}
    cat >"$oci/containerd.toml" <<END
version = 2
root = "$oci/containerd"
state = "$oci/containerd-state"
$config
[grpc]
  address = "$oci/containerd.sock"
[ttrpc]
  address = "$oci/containerd.sock.ttrpc"
END
    oci_containerd_start || return
    P save --quiet --format oci-archive -o "$oci/bb.tar" localhost/bb
    K image import --base-name localhost/bb "$oci/bb.tar" >/dev/null
}

# oci_containerd_start: starts the containerd that oci_containerd has configured.
oci_containerd_start() {
    local pid
    # exec, so that the process has the number that is killed in the end.
    (exec nsenter -m -n -t "$oci_ns" containerd -c "$oci/containerd.toml" 3>&- 4>&- >>"$oci/containerd.log" 2>&1 </dev/null) &
    pid=$!
    disown "$pid"
    echo "$pid" >"$oci/containerd.pid"
    until K version >/dev/null 2>&1; do kill -0 "$pid" || return; sleep 0.1; done
}

# oci_containerd_stop: ends containerd; its shims keep running.
oci_containerd_stop() {
    local pid
    pid=$(cat "$oci/containerd.pid" 2>/dev/null) || return 0
    kill "$pid" 2>/dev/null || return 0
    while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
}

# oci_cri: starts a containerd whose CRI has the runtime of the installed snippet, and a bridge where there are the plugins for one.
oci_cri() {
    mkdir -p "$oci/cni"
    if [ -x /usr/lib/cni/bridge ] && [ -e /dev/net/tun ]; then
        cat >"$oci/cni/10-test.conflist" <<END
{"cniVersion": "0.4.0", "name": "test", "plugins": [{"type": "bridge", "bridge": "cri-test", "isGateway": true, "ipMasq": false,
 "ipam": {"type": "host-local", "dataDir": "$oci/cni-data", "ranges": [[{"subnet": "10.91.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
 {"type": "portmap", "capabilities": {"portMappings": true}}]}
END
    fi
    oci_containerd "[plugins.\"io.containerd.grpc.v1.cri\"]
  sandbox_image = \"localhost/bb:latest\"
  restrict_oom_score_adj = true
[plugins.\"io.containerd.grpc.v1.cri\".cni]
  bin_dir = \"/usr/lib/cni\"
  conf_dir = \"$oci/cni\"
[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]
  runtime_type = \"io.containerd.runc.v2\"
$(sed "s|@PREFIX@/bin|$oci_here/../target/release|" "$oci_here/../msb-oci/dist/containerd.toml")"
    K --namespace k8s.io image import --base-name localhost/bb "$oci/bb.tar" >/dev/null
}

K() { in_ns ctr --address "$oci/containerd.sock" "$@" 3>&- 4>&-; }
