//! QEMU's microvm, with libkrunfw's kernel, virtiofsd for the shares and vhost-device-vsock for the agent. In software
//! where KVM is not usable.

mod beside;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use msb::record::DiskFormat;
use serde::{Deserialize, Serialize};

use crate::cell::{self, Powers};
use crate::supervise::crew::Crew;
use crate::vmm::{Root, Vm, Vmm, Why, kvm};
use crate::{kernel, programs};

/// The guest's context identifier; the device is the guest's own, so it need not be unique.
const GUEST_CID: u32 = 3;

/// Quiet, because every line of the kernel's costs a walk through the console. `reboot=t` with `-no-reboot` is how the
/// machine ends, by a triple fault: there is no way to switch a microvm off, and the kernel would spend a second on
/// asking a keyboard controller that is not there.
const COMMAND_LINE: &str = "console=hvc0 reboot=t panic=-1 rootfstype=virtiofs root=/dev/root rw quiet \
                            tsc=reliable no_timer_check random.trust_cpu=on init=/init.krun";

/// What QEMU needs, as found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Parts {
    qemu: PathBuf,
    virtiofsd: PathBuf,
    vsock: PathBuf,
}

impl Parts {
    /// Finds them.
    ///
    /// # Errors
    /// Words for the first that is missing.
    pub(crate) fn find() -> Result<Self, Why> {
        Ok(Self { qemu: qemu()?, virtiofsd: virtiofsd()?, vsock: vsock()? })
    }
}

/// Where QEMU is.
pub(crate) fn qemu() -> Result<PathBuf, Why> {
    programs::find("qemu-system-x86_64", &[], "apt-get install qemu-system-x86")
}

/// Where virtiofsd is: Debian has QEMU's own, and the one in Rust that came after it, where no PATH leads.
pub(crate) fn virtiofsd() -> Result<PathBuf, Why> {
    let dirs = ["/usr/libexec", "/usr/lib/qemu"];
    programs::find("virtiofsd", &dirs, "apt-get install virtiofsd; on Debian 12: qemu-system-common")
}

/// Where vhost-device-vsock is.
pub(crate) fn vsock() -> Result<PathBuf, Why> {
    programs::find("vhost-device-vsock", &[], "make deps build; else: cargo install vhost-device-vsock")
}

/// The room.
pub(crate) struct Qemu;

impl Vmm for Qemu {
    fn probe(&self) -> Result<&'static str, Why> {
        kernel::library()?;
        qemu()?;
        virtiofsd()?;
        vsock()?;
        Ok(if kvm::probe().is_ok() { "on KVM" } else { "software emulation" })
    }

    fn prepare(&self, vm: &mut Vm, crew: &mut Crew) -> anyhow::Result<Vec<OwnedFd>> {
        beside::start(vm, crew)
    }

    fn enter(&self, vm: &Vm) -> anyhow::Error {
        let Some(parts) = &vm.qemu else { return anyhow::anyhow!("its parts were not looked for") };
        let kvm = kvm::probe().is_ok();
        let kernel = Path::new(cell::KERNEL);
        let mut cell = vm.cell(Powers::None).show_program(&parts.qemu).show(&vm.kernel, kernel, false);
        if kvm {
            cell = cell.show_device(kvm::DEVICE);
        }
        if let Root::Disk(disk) = &vm.root {
            cell = cell.show(&disk.base, &disk.base, false);
        }
        if !vm.drives.is_empty() {
            let descriptors = Path::new("/proc/self/fd");
            cell = cell.show(descriptors, descriptors, false);
        }
        if let Err(error) = cell.enter() {
            return error;
        }
        Command::new(&parts.qemu).args(arguments(vm, kernel, kvm)).exec().into()
    }
}

/// QEMU's command line. The order of `vm.links` is that of [`beside::start`].
fn arguments(vm: &Vm, kernel: &Path, kvm: bool) -> Vec<OsString> {
    let mut args: Vec<OsString> = Vec::new();
    let mut put = |words: &[&str]| args.extend(words.iter().map(OsString::from));
    put(&["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"]);
    put(&["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
    put(&[
        "-M",
        "microvm,acpi=off,rtc=on,isa-serial=off,x-option-roms=off,memory-backend=memory,auto-kernel-cmdline=on",
    ]);
    // Without it virtiofsd refuses the device, and the guest hangs without a word.
    put(&["-global", "virtio-mmio.force-legacy=false"]);
    if kvm {
        put(&["-accel", "kvm", "-cpu", "host"]);
    } else {
        // A fifth level of page tables makes every miss of the emulated TLB dearer, and no guest here needs it. A kernel that
        // is told of fast string instructions (erms) copies by `rep movsb`, of which each byte is a step of its own here: a
        // guest's pipe is three times as fast without.
        put(&["-accel", "tcg,thread=multi", "-cpu", "max,la57=off,erms=off"]);
    }
    put(&["-smp", &vm.cpus.to_string(), "-m", &vm.memory_mib.to_string()]);
    put(&["-object", &format!("memory-backend-memfd,id=memory,size={}M,share=on", vm.memory_mib)]);
    // Explicitly, as QEMU itself would take them, but for the one whose interrupt is the clock's: one of the two would get none.
    let mut buses = [7, 6, 5, 4, 2, 1, 0].into_iter().map(|number| format!("bus=virtio-mmio-bus.{number}"));
    let mut bus = || buses.next().unwrap_or_default();
    put(&["-chardev", "stdio,id=console,signal=off", "-device", &format!("virtio-serial-device,{}", bus())]);
    put(&["-device", "virtconsole,chardev=console"]);

    let mut devices = vec!["vhost-user-vsock-device", "vhost-user-fs-device,tag=/dev/root"];
    if let Root::Share(_) = &vm.root {
        devices.push("vhost-user-fs-device,tag=rootfs");
    }
    for (number, drive) in vm.drives.iter().enumerate() {
        // The guest is told of a full or broken disk; the machine would stop by itself. What it flushes is on the host's disk.
        let (file, format) = (drive.path(), drive.format);
        let writable = if drive.writable { "readonly=off,discard=unmap" } else { "readonly=on" };
        // msb-boot holds the locks. QEMU would look on /dev/null, which its cell lacks, for how to lock, and complain.
        let unlocked = match format {
            DiskFormat::Raw => "file.locking=off",
            DiskFormat::Qcow2 => "file.locking=off,backing.file.locking=off",
        };
        let options = format!("cache=writeback,werror=report,rerror=report,{unlocked}");
        put(&["-drive", &format!("if=none,id=drive{number},format={format},file={file},{writable},{options}")]);
        put(&["-device", &format!("virtio-blk-device,drive=drive{number},{}", bus())]);
    }
    for (number, (device, fd)) in devices.into_iter().zip(&vm.links).enumerate() {
        put(&["-chardev", &format!("socket,id=link{number},fd={fd}")]);
        put(&["-device", &format!("{device},chardev=link{number},{}", bus())]);
    }
    put(&["-append", COMMAND_LINE]);
    args.extend(["-kernel".into(), kernel.into()]);
    args
}
