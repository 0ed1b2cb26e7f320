//! QEMU's machines `microvm` and `virt`, with libkrunfw's kernel and helper processes for the shares and the vsock device. It
//! emulates the processor if KVM is not usable, or if the guest is for another one.
//!
//! Tried for the guest's memory, emulated on Linux 6.18, without a gain:
//!
//! - Huge pages. QEMU requests them (`madvise(2)`), and gets none: the memory is shared with the helper processes, and the kernel gives
//!   shared memory huge pages only where `shmem_enabled` in /sys/kernel/mm/transparent_hugepage is not `never`, the default, and only to an
//!   aligned mapping, which takes `memory-backend-file` with `align=2M`. With both, all of the memory was in huge pages, and a boot took as
//!   much processor time as before (1.28 and 1.24 s to the first process), writing and reading 192 MiB too (3.7 s both), while a guest that
//!   had just booted held 68 MiB instead of 61. It was not measured with KVM, where huge pages save VM exits.
//! - Reporting smaller free areas than the guest's huge pages (`page_reporting_order` 5 and 2 in place of 9): an idle guest of 128 MiB held
//!   57 MiB either way. With the default, the host has 150 of 200 MiB that a guest frees back after 2 s, and 190 after 20 s.
//! - Mapping the kernel. QEMU can only copy the 21 MiB of the ELF file's segments into the guest's memory. libkrun can map it, but that was
//!   slower, see [`kernel::write`].

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use msb::architecture::{Architecture, QemuMachine};
use msb::jail::Profile;
use msb::record::{self, DiskFormat};
use msb::vm::boot;
use serde::{Deserialize, Serialize};

use crate::guest_memory;
use crate::helper_process::{Device, DeviceKind, Programs};
use crate::jail;
use crate::kernel::{self, BootProtocol};
use crate::processes::Processes;
use crate::program;
use crate::tsc::Reading;
use crate::unusable::Unusable;
use crate::vm::{Saving, Vm};
use crate::vmm::{Vmm, kvm};

/// The kernel's command line, besides what the machine needs. `quiet`, because the console is slow. The kernel skips `jent_mod_init`:
/// the self-test of the jitter entropy source takes 45 ms of an emulated boot, and the kernel has the processor's random numbers.
const COMMAND_LINE: &str = "panic=-1 quiet random.trust_cpu=on initcall_blacklist=jent_mod_init rdinit=/agentd";

/// QEMU, with the programs that it needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Qemu {
    architecture: Architecture,
    program: PathBuf,
    helpers: Programs,
    /// The vhost-user devices whose helper processes run.
    devices: Vec<Device>,
    /// The time-stamp counter before those were started.
    counter: Option<Reading>,
}

/// Finds the program that emulates an architecture.
///
/// # Errors
/// The package to install.
pub(crate) fn find_program(architecture: Architecture) -> Result<PathBuf, Unusable> {
    let machine = architecture.qemu();
    program::find(machine.program, &[], machine.remedy)
}

impl Qemu {
    /// Whether the processor of this machine executes the guest.
    fn is_accelerated(&self) -> bool {
        self.architecture == Architecture::HOST && kvm::probe().is_ok()
    }
}

impl Vmm for Qemu {
    fn find(architecture: Architecture) -> Result<Self, Unusable> {
        kernel::library(architecture)?;
        let program = find_program(architecture)?;
        Ok(Self { architecture, program, helpers: Programs::find()?, devices: Vec::new(), counter: None })
    }

    fn name(&self) -> &'static str {
        "qemu"
    }

    fn in_record(&self) -> record::Vmm {
        record::Vmm::Qemu
    }

    fn acceleration(&self) -> &'static str {
        if self.is_accelerated() { "on KVM" } else { "software emulation" }
    }

    fn is_emulator(&self) -> bool {
        !self.is_accelerated()
    }

    fn boot_protocol(&self) -> BootProtocol {
        BootProtocol::Pvh
    }

    fn has_vsock_handshake(&self) -> bool {
        true
    }

    fn copies_initramfs(&self) -> bool {
        false
    }

    fn max_devices(&self) -> usize {
        self.architecture.qemu().buses.len()
    }

    fn check_shares(&self) -> Result<(), Unusable> {
        self.helpers.virtiofsd().map(drop)
    }

    fn processor(&self) -> Option<String> {
        Some(match self.is_accelerated() {
            true => format!("host: {}", kvm::processor()),
            false => self.architecture.qemu().cpu.to_owned(),
        })
    }

    fn start_helpers(&mut self, vm: &Vm, processes: &mut Processes) -> anyhow::Result<Vec<OwnedFd>> {
        self.counter = Reading::take();
        let (devices, sockets) = self.helpers.start(vm, processes)?;
        self.devices = devices;
        Ok(sockets)
    }

    fn run(&self, vm: &Vm) -> anyhow::Error {
        if let Some(saving) = vm.saving.filter(Saving::loads)
            && let Err(error) = guest_memory::install(saving.monitor)
        {
            return error;
        }
        let kvm = self.is_accelerated();
        let kernel = Path::new(jail::KERNEL);
        // With KVM the guest's kernel asks its host. The counter of another architecture is not that of this machine.
        let first = self.counter.filter(|_| !kvm && self.architecture == Architecture::HOST);
        let khz = first.zip(Reading::take()).and_then(|(first, second)| first.khz_until(second));
        let profile = if vm.has_private_base() { Profile::QemuPrivateDisk } else { Profile::Qemu };
        let mut jail = vm.jail(profile).ro_bind_program(&self.program).ro_bind(&vm.kernel, kernel);
        let descriptors = Path::new("/proc/self/fd");
        jail = jail.ro_bind(descriptors, descriptors);
        if kvm {
            jail = jail.dev_bind_try(Path::new(kvm::DEVICE));
        }
        for file in vm.drives.iter().filter_map(|drive| drive.backing_file.as_deref()) {
            jail = jail.ro_bind(file, file);
        }
        jail.execute(&self.program, &arguments(vm, self.architecture.qemu(), &self.devices, kernel, kvm, khz)).into()
    }
}

/// QEMU's command line. The guest's time-stamp counter has the frequency `khz`, if that is known.
fn arguments(
    vm: &Vm,
    machine: &QemuMachine,
    devices: &[Device],
    kernel: &Path,
    kvm: bool,
    khz: Option<u32>,
) -> Vec<OsString> {
    let mut args: Vec<OsString> = Vec::new();
    let mut push = |more: &[&str]| args.extend(more.iter().map(OsString::from));
    push(&["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"]);
    push(&["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
    let kind = if kvm { machine.accelerated } else { machine.emulated };
    // A saved state does not need QEMU's JSON description of it.
    push(&["-M", &format!("{kind},suppress-vmdesc=on")]);
    // With the default, true, virtiofsd refuses the device, and the guest hangs without a message.
    push(&["-global", "virtio-mmio.force-legacy=false"]);
    if kvm {
        push(&["-accel", "kvm", "-cpu", "host"]);
    } else {
        push(&["-accel", "tcg,thread=multi", "-cpu", machine.cpu]);
    }
    push(&["-smp", &vm.cpus.to_string(), "-m", &vm.memory_mib.to_string()]);
    let memory = match vm.saving.map(|saving| saving.memory) {
        Some(Some(file)) => format!("memory-backend-file,share=on,mem-path={}", file.path().display()),
        Some(None) => format!("memory-backend-file,share=off,merge=off,mem-path={}", guest_memory::PATH),
        None => "memory-backend-memfd,share=on".into(),
    };
    push(&["-object", &format!("{memory},id=memory,size={}M", vm.memory_mib)]);
    if let Some(saving) = &vm.saving {
        // Only the state of the devices is saved.
        push(&["-global", "migration.send-configuration=off"]);
        push(&[
            "-chardev",
            &format!("socket,id=monitor,fd={}", saving.monitor),
            "-mon",
            "chardev=monitor,mode=control",
        ]);
        if saving.loads() {
            push(&["-incoming", "defer"]);
        }
    }
    let mut buses = machine.buses.iter().map(|number| format!("bus=virtio-mmio-bus.{number}"));
    let mut bus = || buses.next().unwrap_or_default();
    push(&["-chardev", "stdio,id=console,signal=off", "-device", &format!("virtio-serial-device,{}", bus())]);
    push(&["-device", "virtconsole,chardev=console"]);
    if let Some(port) = vm.port {
        push(&["-chardev", &format!("socket,id=agent,fd={port}"), "-device", "virtserialport,chardev=agent,nr=1"]);
    }

    for (number, drive) in vm.drives.iter().enumerate() {
        // An I/O error is reported to the guest; QEMU would else pause the machine. A flush of the guest reaches the host's disk.
        let (file, format) = (drive.fd.path(), drive.format);
        let file = file.display();
        let writable = if drive.writable { "readonly=off,discard=unmap" } else { "readonly=on" };
        // msb-boot holds the locks. QEMU would open /dev/null, which its jail lacks, to find out how to lock, and complain.
        let unlocked = match format {
            DiskFormat::Raw | DiskFormat::Erofs => "file.locking=off",
            DiskFormat::Qcow2 => "file.locking=off,backing.file.locking=off",
        };
        let options = format!("cache=writeback,werror=report,rerror=report,{unlocked}");
        push(&["-drive", &format!("if=none,id=drive{number},format={format},file={file},{writable},{options}")]);
        push(&["-device", &format!("virtio-blk-device,drive=drive{number},{}", bus())]);
    }
    for (number, device) in devices.iter().enumerate() {
        let name = match &device.kind {
            DeviceKind::Vsock => "vhost-user-vsock-device".to_owned(),
            DeviceKind::Fs(tag) => format!("vhost-user-fs-device,tag={tag}"),
        };
        push(&["-chardev", &format!("socket,id=socket{number},fd={}", device.socket)]);
        push(&["-device", &format!("{name},chardev=socket{number},{}", bus())]);
    }
    for (number, card) in vm.cards.iter().enumerate() {
        let mac = boot::format_mac(card.mac);
        push(&["-netdev", &format!("stream,id=net{number},server=off,addr.type=fd,addr.str={}", card.fd)]);
        push(&["-device", &format!("virtio-net-device,netdev=net{number},mac={mac},{}", bus())]);
    }
    // The guest's free memory goes back to the host. The guest runs without that too if its cards have taken all buses.
    if let Some(bus) = buses.next() {
        push(&["-device", &format!("virtio-balloon-device,free-page-reporting=on,{bus}")]);
    }
    // A guest that is restored has its kernel in memory. QEMU's arm64 machine does not start without a kernel file.
    if vm.saving.is_some_and(|saving| saving.loads()) && vm.architecture == Architecture::X86_64 {
        return args;
    }
    let counter = khz.map(|khz| format!("tsc_early_khz={khz}")).unwrap_or_default();
    // A kernel that the emulator has led astray, see `supervisor::restart::KernelFault`, would otherwise go on without the thread
    // that it was in, and wait for it.
    let oops = if kvm { "" } else { "oops=panic" };
    let uniprocessor = if kvm || vm.cpus > 1 { "" } else { machine.uniprocessor };
    push(&["-append", &[machine.command_line, uniprocessor, COMMAND_LINE, oops, &counter].join(" ")]);
    args.extend(["-kernel".into(), kernel.into(), "-initrd".into(), vm.initramfs.path().into()]);
    args
}
