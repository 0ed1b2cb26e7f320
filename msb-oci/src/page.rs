//! What msb-oci's manual page and `--help` say apart from the flags.

use msb::tool::man::{self, Page};

pub(crate) const PAGE: Page = Page {
    operands: "COMMAND [ARGUMENTS...]",
    forms: &[],
    notes: &[
        ("Commands", commands),
        ("What a container is", container),
        ("What is refused", refused),
        ("What differs", differs),
        ("Annotations", annotations),
    ],
    exit_status: &[
        ("0", "success"),
        ("1", "failure"),
        ("2", "usage error"),
        ("255", "the command of exec did not start"),
        ("N", "that of the command, for run, and for exec without --detach"),
    ],
    environment: &[man::MSB_HOME],
    files: &[
        ("/run/msb-oci/ID", "The state of the container ID; for users $XDG_RUNTIME_DIR/msb-oci/ID"),
        ("PREFIX/share/msb/oci", "Configuration for podman, containerd, Kubernetes and Slurm, to be copied or linked"),
    ],
    examples: &[
        ("a container of podman", "podman --runtime $(which msb-oci) run --rm alpine uname -a"),
        ("a container of containerd", "ctr run --rm --runc-binary $(which msb-oci) $IMAGE c1 uname -a"),
        (
            "make it the runtime msb of podman",
            "cd /etc/containers/containers.conf.d\nln -s /usr/local/share/msb/oci/podman.conf msb.conf",
        ),
    ],
    see_also: &["msb-boot(1)", "msb-exec(1)", "msb-stop(1)", "msb-network(7)", "msb-record(5)", "msb(7)"],
};

fn commands() -> String {
    "  create [-b DIR] [--pid-file FILE] [--console-socket SOCKET] ID
  start ID
  run [-b DIR] ID
  state ID
  kill [--all] ID [SIGNAL]
  delete [--force] ID
  exec [-p FILE] [-d] [-t] [--pid-file FILE] ID [CMD...]
  ps [-f table|json] ID
  pause ID
  resume ID
  update [-r FILE] ID
  list [-f table|json] [-q]
  spec [-b DIR]
  features

Those of runc(8), with the same meaning."
        .into()
}

fn container() -> String {
    "create boots the VM: its root is the bundle's root with the binds of the config on it, shared by virtiofs, so that what is written \
     on either side is seen on the other. The process whose PID the caller gets runs on the host. It lives as long as the command, has \
     its exit status, the container's root, namespaces and cgroup, and holds none of its streams. The VM ends with it, whatever ends it.

     The VM's memory is the memory limit, and its processors are the quota, rounded up. The cgroup has the VMM and all its helper \
     processes in it; its memory limit is higher by the overhead of a VM.

     With --systemd-cgroup the cgroup is a scope of systemd, which systemd-run(1) makes and systemctl(1) changes and ends. Its limits are \
     properties of the unit. Without systemd that is refused.

     An interface of the network namespace is connected to the guest, which gets its Ethernet address, MTU, addresses and routes. That \
     needs ip(8) and tc(8). The default is a TAP interface with filters. With dev.msb.network=macvtap it is a macvtap interface, which \
     only root can create; the namespace itself cannot use the interface then.

     The sandbox of a pod gets no VM: it only holds the namespaces. With --pod-vm or the annotation dev.msb.pod=vm the sandbox boots the \
     VM of the pod, with the pod's network, and all containers of the pod run in it. They share localhost; each has its own root and \
     processes. The sandbox's annotations set memory and processors of the VM. In the guest, each container has its own limits of memory \
     and PIDs and its shares and quota of the processors, which update changes. A container cannot be paused alone.

     A rootless podman calls with the user namespace that it has made, and everything is made in that one. The cgroup is left out where \
     its user may not make one, and with it the limits and pause. That is so with the user's systemd: a process outside of its part of the \
     hierarchy cannot enter a scope in it. The network is that of slirp4netns or of a network of podman; \
     /dev/net/tun must be open to the user, as udev makes it."
        .replace("\n     ", "\n")
}

fn refused() -> String {
    "The PID, IPC and UTS namespace of the host or of another container: a VM has a kernel of its own.

     The network of the host: a VM has interfaces of its own. A network of the engine and published ports work.

     User namespaces and mapped mounts: the files would have the wrong owners in the guest, which has users of its own.

     Mounts of other types than bind, tmpfs and those of the kernel: only directories and files of the host can be shared.

     A second container with a network in one network namespace, as in a pod with a VM for each container: the first container has the \
     interface.

     More memory by update than the VM was booted with, checkpoint, restore, events, descriptors above 2 (--preserve-fds), hooks of \
     startContainer, the option rro with rbind, and a listener for seccomp."
        .replace("\n     ", "\n")
}

fn differs() -> String {
    "AppArmor, SELinux, seccomp, the cgroup's devices and, except in the VM of a pod, the limit of PIDs are accepted and have no effect: \
     they protect the kernel of the host, which a guest does not use. Nothing is mounted on /sys/fs/cgroup.

     Of linux.resources, the memory limit, the shares, quota and period of the processors and the cpuset apply. Its other members, and \
     the cpuset of a container in the VM of a pod, have no effect, and neither have scheduler, ioPriority, personality and time offsets.

     A device is a node of the guest's kernel with the same numbers: no device of the host is behind it. The options nosuid, nodev and \
     noexec of a bind have no effect.

     Sockets of the host in a volume cannot be connected to: another kernel listens. What is mounted on the host later does not appear \
     in a volume. A bind on /dev/shm is a tmpfs of the guest with 64 MiB.

     ps, podman top and events of the memory cgroup show the processes of the host."
        .replace("\n     ", "\n")
}

fn annotations() -> String {
    "  dev.msb.memory    the guest's memory, in MiB or with a suffix M or G
  dev.msb.cpus      virtual processors
  dev.msb.vmm       auto, krun or qemu
  dev.msb.network   tap (default) or macvtap: how to connect an interface
  dev.msb.pod       vm: one VM for the pod, not one for each container
  dev.msb.overhead  memory for the VM's processes [default: 160M]"
        .into()
}
