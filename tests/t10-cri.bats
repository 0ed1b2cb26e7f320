#!/usr/bin/env bats
# containerd's CRI with msb-oci: what kubelet asks of a pod. The tests run with "make test-oci".

# shellcheck source-path=SCRIPTDIR disable=SC2154 # bats sets variables
bats_require_minimum_version 1.5.0

setup_file() {
    source "$BATS_TEST_DIRNAME/oci.bash"
    # The interpreter of the distribution, which has its packages.
    /usr/bin/python3 -c 'import grpc' 2>/dev/null || skip "python3-grpcio is missing (make deps)"
    oci_start
    oci_cri
}

setup() { source "$BATS_TEST_DIRNAME/oci.bash"; }

teardown_file() {
    source "$BATS_TEST_DIRNAME/oci.bash"
    oci_containerd_stop
    oci_stop
}

# bats test_tags=slow
@test "a pod: sandbox, container, probes, logs, a configMap that changes, statistics, limits, stop with a grace, removal" {
    pod=$(in_ns /usr/bin/python3 "$oci_here/cri.py" "$oci/containerd.sock" msb localhost/bb:latest "$oci/pod") ||
        { tail -n 50 "$oci/containerd.log"; return 1; }
    [ ! -e "$oci/cni/10-test.conflist" ] || [[ $pod == *10.91.0.* ]]
    [ -z "$(pgrep -af "$oci/containerd-state.*k8s.io" | grep -v containerd-shim)" ]
}

# bats test_tags=slow
@test "a pod in one VM: two containers share localhost; logs, exec, stop, restart and removal; kills; and nothing is left" {
    vms() { find /run/msb -maxdepth 1 -name 'oci-*' | sort; }
    before=$(vms)
    in_ns /usr/bin/python3 "$oci_here/cri-pod.py" "$oci/containerd.sock" msb localhost/bb:latest "$oci/pod-vm" ||
        { tail -n 50 "$oci/containerd.log"; return 1; }
    [ "$(vms)" = "$before" ]
    [ -z "$(pgrep -af "$oci/containerd-state.*k8s.io" | grep -v containerd-shim)" ]
    [ -z "$(find /sys/fs/cgroup -path '*msb-cri-pod/*' -type d)" ]
}
