#!/usr/bin/env python3
"""A guest's network in one way of three: bench-net.py user|passt|gate KERNEL INITRD MTU MSB-BOOT LINES.

Boots QEMU's microvm from the initrd, whose init prints a line for each figure, and prints these lines. With "passt" and "gate" it also
prints the memory of the processes, in KiB of PSS.

bench-net.py listen PATH MTU passes the first connection on the socket PATH to passt, and waits until passt ends.
"""
import json
import os
import socket
import subprocess
import sys
import tempfile

MAC = "52:55:00:00:00:02"
SEND_BUFFER = 4 << 20
SO_SNDBUFFORCE = 32


def pair():
    """A socket pair as msb-boot makes it."""
    ends = socket.socketpair()
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER)
    return ends


def start_passt(end, mtu):
    command = ["passt", "--foreground", "--quiet", "--ipv4-only", "--address", "10.0.2.15", "--netmask", "24", "--gateway", "10.0.2.2",
               "--no-map-gw", "--no-dhcp", "--mtu", mtu, "--fd", str(end.fileno())]
    return subprocess.Popen(command, pass_fds=[end.fileno()], stderr=subprocess.DEVNULL)


def start_gate(program, directory, guest, passt):
    policy = {"mode": "public", "rules": [], "gateways": ["10.0.2.2"], "own": [], "links": []}
    config = {"ipv4": "10.0.2.15", "ipv6": None, "lease": None, "resolvers": [], "udp_ports": [], "policy": policy}
    jail = {"profile": "gate", "binds": [], "dirs": [], "user": 65534, "mount_point": directory}
    mac = [int(octet, 16) for octet in MAC.split(":")]
    description = {"jail": jail, "config": config, "mac": mac, "log": os.path.join(directory, "net.log"),
                   "traffic": os.path.join(directory, "traffic")}
    control, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    answers, resolver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    message = {"addresses": [], "networks": [], "sockets": ["guest", "passt", "resolver"]}
    socket.send_fds(control, [json.dumps(message).encode()], [guest.fileno(), passt.fileno(), resolver.fileno()])
    process = subprocess.Popen([program, "--as-gate", json.dumps(description)], stdin=end, stderr=subprocess.PIPE)
    return (control, answers), process


def memory(process):
    with open(f"/proc/{process.pid}/smaps_rollup") as rollup:
        return next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))


def listen(path, mtu):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        end, _ = listener.accept()
    end.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER)
    start_passt(end, mtu).wait()


def main():
    if sys.argv[1] == "listen":
        return listen(*sys.argv[2:])
    way, kernel, initrd, mtu, program = sys.argv[1:6]
    lines = int(sys.argv[6])
    with tempfile.TemporaryDirectory() as directory:
        processes, netdev, fds, control = {}, "user,id=net,net=10.0.2.0/24,host=10.0.2.2", [], None
        if way != "user":
            card, near = pair()
            fds = [card.fileno()]
            netdev = f"stream,id=net,server=off,addr.type=fd,addr.str={card.fileno()}"
            if way == "gate":
                ours, theirs = pair()
                control, processes["gate"] = start_gate(program, directory, near, ours)
                processes["passt"] = start_passt(theirs, mtu)
            else:
                processes["passt"] = start_passt(near, mtu)
        accel = "kvm" if os.environ.get("BENCH_KVM") else "tcg,thread=multi"
        qemu = subprocess.Popen(
            ["qemu-system-x86_64", "-M", "microvm,acpi=off,rtc=on,isa-serial=off,x-option-roms=off,auto-kernel-cmdline=on", "-global",
             "virtio-mmio.force-legacy=false", "-accel", accel, "-cpu", "max,la57=off,erms=off", "-m", "512", "-nodefaults",
             "-no-user-config", "-nographic", "-no-reboot", "-kernel", kernel, "-initrd", initrd, "-chardev", "stdio,id=c,signal=off",
             "-device", "virtio-serial-device", "-device", "virtconsole,chardev=c", "-netdev", netdev, "-device",
             f"virtio-net-device,netdev=net,mac={MAC}", "-append",
             f"console=hvc0 reboot=t panic=-1 quiet tsc=reliable no_timer_check init=/init rdinit=/init mtu={mtu}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, pass_fds=fds, text=True)
        for line in qemu.stdout:
            if line.startswith("figure "):
                print(line[len("figure "):].strip(), flush=True)
                lines -= 1
            if lines == 0:
                for name, process in processes.items():
                    print(f"memory-{name} {memory(process)}", flush=True)
                break
        qemu.kill()
        qemu.wait()
        for process in processes.values():
            process.kill()
            process.wait()
        del control
    if lines:
        sys.exit(f"{way}: the guest ended before its last figure")


main()
