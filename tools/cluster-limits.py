#!/usr/bin/env python3
"""Simulates the creation of many containers of msb-oci on a node, and prints which limit of the node breaks first.

    tools/cluster-limits.py [--containers N] [--costs FILE] [--node FILE] [--lifetime SECONDS] [--pods]

The costs of a container are those that tests/bench-oci.sh measures and prints as its last line; without --costs they are what it printed
on the machine of docs/CLUSTERS.md. The node is this machine, or a JSON object with members of the same names in FILE. Creates come one
after another, as many at a time as the node has processors; each container holds its resources for its lifetime, or for ever.
With --pods each container is in a pod of its own, whose sandbox holds a process, a network namespace and a port of the bridge.
"""

import argparse
import heapq
import json
import os
import sys

# The costs of an idle container with a guest of 256 MiB and a network, under QEMU in software on two busy processors.
COSTS = {
    "memory_mib": 150,
    "processes": 8,
    "threads": 28,
    "descriptors": 180,
    "create_ms": 3700,
    "cgroups": 1,
    "mount_namespaces": 7,
    "network_namespaces": 6,
    "pid_namespaces": 6,
    "addresses": 1,
    "bridge_ports": 1,
    "state_kib": 2200,
}
# What the engine adds: conmon, or containerd's shim with its share of a pod.
ENGINE = {"memory_mib": 2, "processes": 1, "threads": 2, "descriptors": 20}
POD = {"memory_mib": 1, "processes": 1, "threads": 1, "descriptors": 12, "cgroups": 2, "mount_namespaces": 1, "pid_namespaces": 1}

# The resource that each limit is about, and where the limit comes from.
LIMITS = {
    "memory_mib": "MemTotal less a reserve of a tenth",
    "threads": "kernel.pid_max and threads-max",
    "descriptors": "fs.file-max",
    "cgroups": "65535 of the memory controller",
    "mount_namespaces": "user.max_mnt_namespaces",
    "network_namespaces": "user.max_net_namespaces",
    "pid_namespaces": "user.max_pid_namespaces",
    "bridge_ports": "a Linux bridge has 1024 ports",
    "addresses": "a node's Pod CIDR of /24",
    "state_kib": "/run, as a tmpfs of a fifth of the memory",
}


def number(path: str, default: int) -> int:
    try:
        with open(path, encoding="ascii") as file:
            return min(int(file.read().split()[0]), 1 << 62)
    except (OSError, ValueError, IndexError):
        return default


def this_node() -> dict[str, int]:
    memory_kib = next(int(line.split()[1]) for line in open("/proc/meminfo", encoding="ascii") if line.startswith("MemTotal"))
    pids = number("/proc/sys/kernel/pid_max", 32768)
    return {
        "processors": os.cpu_count() or 1,
        "memory_mib": memory_kib * 9 // 10 // 1024,
        "threads": min(pids, number("/proc/sys/kernel/threads-max", 1 << 20)),
        "descriptors": number("/proc/sys/fs/file-max", 1 << 20),
        "cgroups": 65535,
        "mount_namespaces": number("/proc/sys/user/max_mnt_namespaces", 1 << 16),
        "network_namespaces": number("/proc/sys/user/max_net_namespaces", 1 << 16),
        "pid_namespaces": number("/proc/sys/user/max_pid_namespaces", 1 << 16),
        "bridge_ports": 1024,
        "addresses": 254,
        "state_kib": memory_kib // 5,
    }


def simulate(count: int, cost: dict[str, int], node: dict[str, int], lifetime: float | None, lifted: set[str]):
    """Creates containers until one exceeds a limit. Returns how many were created, how many lived, the time, and the limit, or None."""
    seconds = cost["create_ms"] / 1000
    free = [0.0] * node["processors"]
    ends: list[float] = []
    most = 0
    at = 0.0
    for created in range(count):
        at = heapq.heappop(free) + seconds
        heapq.heappush(free, at)
        while ends and ends[0] <= at:
            heapq.heappop(ends)
        living = len(ends) + 1
        broken = [name for name in LIMITS if name not in lifted and living * cost.get(name, 0) > node.get(name, sys.maxsize)]
        if broken:
            return created, most, at, broken[0]
        heapq.heappush(ends, at + lifetime if lifetime else float("inf"))
        most = max(most, living)
    return count, most, at, None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--containers", type=int, default=10_000)
    parser.add_argument("--costs", type=argparse.FileType())
    parser.add_argument("--node", type=argparse.FileType())
    parser.add_argument("--lifetime", type=float, help="seconds; without it they live for ever")
    parser.add_argument("--pods", action="store_true")
    args = parser.parse_args()
    cost = COSTS | (json.load(args.costs) if args.costs else {})
    node = this_node() | (json.load(args.node) if args.node else {})
    for more in [ENGINE] + ([POD] if args.pods else []):
        for name, value in more.items():
            cost[name] = cost.get(name, 0) + value
    print(f"a container: {json.dumps(cost)}\nthe node: {json.dumps(node)}")
    lifted: set[str] = set()
    while True:
        created, most, at, broken = simulate(args.containers, cost, node, args.lifetime, lifted)
        without = f" without {', '.join(sorted(lifted))}" if lifted else ""
        if broken is None:
            print(f"{created} created in {at / 60:.1f} min, {most} at once{without}: no limit is exceeded")
            return 0
        print(f"{created} created in {at / 60:.1f} min, {most} at once{without}: {broken} ends it ({LIMITS[broken]})")
        lifted.add(broken)


if __name__ == "__main__":
    sys.exit(main())
