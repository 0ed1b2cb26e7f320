//! The filter for system calls of a jail. Each list is in [`super::syscalls`], and [`super::profile`] says which process has which.
//!
//! A filter is one of two kinds. A program of our own has one that allows a list and answers ENOSYS to the rest, as an older kernel
//! would. A program of others may need in its next release what it does not need today, so its filter allows everything but a list,
//! to which it answers EPERM.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::RawFd;

use nix::libc;
use seccompiler::SeccompCmpArgLen::Dword;
use seccompiler::SeccompCmpOp::{Eq, MaskedEq, Ne};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter, sock_filter,
};

use super::profile::{Execution, Rules, Syscalls};
use super::syscalls::{FORBIDDEN, Syscall};

/// The flags of `clone(2)` and `unshare(2)` that make a namespace.
const NEW_NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];
/// The same for time, which is a flag of `unshare(2)` alone.
const NEW_TIME: u64 = 0x80;

/// The operations of `ioctl(2)` that type into a terminal.
const TERMINAL_INPUT: [u64; 2] = [libc::TIOCSTI, libc::TIOCLINUX];
/// Operations that a VMM may use: those of descriptors, and those that ask for a terminal's size and modes.
const IOCTLS: [u64; 7] =
    [libc::TCGETS, libc::TIOCGWINSZ, libc::FIONBIO, libc::FIONREAD, libc::FIOCLEX, libc::FIONCLEX, libc::FICLONE];
/// Types of operations that it may use: those of KVM, of block devices, and of files.
const IOCTL_TYPES: [u64; 3] = [0xae, 0x12, b'f' as u64];

/// The options of `prctl(2)` that the C library and the standard library of Rust use: names of threads and of memory, and capabilities.
const PRCTL_OPTIONS: [libc::c_int; 5] =
    [libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_VMA, libc::PR_CAPBSET_READ, libc::PR_CAP_AMBIENT];

/// The operations of `fcntl(2)` that choose who gets a signal, and which: F_SETOWN, F_SETSIG and F_SETOWN_EX.
const SIGNAL_OWNERS: [u64; 3] = [8, 10, 15];

/// The numbers from here on are those of the x32 ABI, which has the same architecture.
const X32: u32 = 0x4000_0000;

/// Instructions of a filter, see `linux/bpf_common.h`: BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JEQ, BPF_JMP | BPF_JGE, and BPF_RET.
const LOAD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

type Conditions = Vec<SeccompRule>;

fn one(argument: u8, length: SeccompCmpArgLen, operator: SeccompCmpOp, value: u64) -> io::Result<SeccompCondition> {
    SeccompCondition::new(argument, length, operator, value).map_err(io::Error::other)
}

/// A rule for each value, of which one must fit.
fn any(argument: u8, operator: impl Fn(u64) -> (SeccompCmpOp, u64), values: &[u64]) -> io::Result<Conditions> {
    let rule = |&value: &u64| {
        let (operator, value) = operator(value);
        SeccompRule::new(vec![one(argument, Dword, operator, value)?]).map_err(io::Error::other)
    };
    values.iter().map(rule).collect()
}

/// One rule with a condition for each value, all of which must fit.
fn none_of(argument: u8, values: &[u64]) -> io::Result<Conditions> {
    let conditions = values.iter().map(|&value| one(argument, Dword, Ne, value)).collect::<io::Result<_>>()?;
    Ok(vec![SeccompRule::new(conditions).map_err(io::Error::other)?])
}

fn flags() -> Vec<u64> {
    NEW_NAMESPACES.iter().map(|flag| u64::from(flag.cast_unsigned())).collect()
}

/// The calls of a list, without conditions.
fn unconditional<'a>(calls: impl IntoIterator<Item = &'a Syscall>) -> BTreeMap<i64, Conditions> {
    calls.into_iter().filter_map(|call| Some((call.number?, Vec::new()))).collect()
}

/// What the filter of other people's programs refuses. `program` is the descriptor that may be executed.
fn refused(rules: &Rules, program: Option<RawFd>) -> io::Result<BTreeMap<i64, Conditions>> {
    let has_all = |flag| (MaskedEq(flag), flag);
    let mut refused = unconditional(FORBIDDEN);
    refused.insert(libc::SYS_clone, any(0, has_all, &flags())?);
    refused.insert(libc::SYS_unshare, any(0, has_all, &[flags(), vec![NEW_TIME]].concat())?);
    refused.insert(libc::SYS_ioctl, any(1, |operation| (Eq, operation), &TERMINAL_INPUT)?);
    let families: Vec<u64> = rules.sockets.iter().map(|family| family.number()).collect();
    refused.insert(libc::SYS_socket, if families.is_empty() { Vec::new() } else { none_of(0, &families)? });
    for number in rules.own_sandbox.iter().filter_map(|call| call.number) {
        refused.remove(&number);
    }
    if rules.execution != Execution::Free {
        refused.insert(libc::SYS_execve, Vec::new());
        let other = program.map(|program| none_of(0, &[u64::from(program.cast_unsigned())])).transpose()?;
        refused.insert(libc::SYS_execveat, other.unwrap_or_default());
    }
    Ok(refused)
}

/// What the filter of our own programs allows.
fn allowed(rules: &Rules, lists: &[&[Syscall]]) -> io::Result<BTreeMap<i64, Conditions>> {
    let mut allowed = unconditional(lists.iter().copied().flatten());
    let all_flags = flags().into_iter().fold(0, |all, flag| all | flag);
    allowed.insert(libc::SYS_clone, any(0, |none| (MaskedEq(all_flags), none), &[0])?);
    allowed.insert(
        libc::SYS_prctl,
        any(0, |option| (Eq, option), &PRCTL_OPTIONS.map(|option| u64::from(option.cast_unsigned())))?,
    );
    // A process that shares a PID namespace could otherwise signal others as their user: by itself, or by a descriptor's owner.
    let own = u64::from(std::process::id());
    allowed.insert(libc::SYS_tgkill, any(0, |own| (Eq, own), &[own])?);
    allowed.insert(libc::SYS_fcntl, none_of(1, &SIGNAL_OWNERS)?);
    if !rules.sockets.is_empty() {
        let families: Vec<u64> = rules.sockets.iter().map(|family| family.number()).collect();
        allowed.insert(libc::SYS_socket, any(0, |family| (Eq, family), &families)?);
    }
    let mut ioctls = any(1, |operation| (Eq, operation), &IOCTLS)?;
    if lists.contains(&super::syscalls::VMM) {
        ioctls.extend(any(1, |kind| (MaskedEq(0xff00), kind << 8), &IOCTL_TYPES)?);
    }
    allowed.insert(libc::SYS_ioctl, ioctls);
    Ok(allowed)
}

/// Answers ENOSYS to `clone3(2)`, whose flags a filter cannot see, so that the C library takes `clone(2)`, and to the x32 ABI.
fn without_clone3() -> BpfProgram {
    let statement = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    let clone3 = u32::try_from(libc::SYS_clone3).unwrap_or(u32::MAX);
    vec![
        statement(LOAD, 0, 0, 0),
        statement(JUMP_IF_EQUAL, 1, 0, clone3),
        statement(JUMP_IF_AT_LEAST, 0, 1, X32),
        statement(RETURN, 0, 0, u32::from(SeccompAction::Errno(libc::ENOSYS.cast_unsigned()))),
        statement(RETURN, 0, 0, u32::from(SeccompAction::Allow)),
    ]
}

/// Compiles the filters of a process, in the order in which they are to be applied.
fn compile(rules: &Rules, program: Option<RawFd>) -> io::Result<[BpfProgram; 2]> {
    let errno = |errno: i32| SeccompAction::Errno(errno.cast_unsigned());
    let (calls, otherwise, action) = match rules.syscalls {
        Syscalls::AllBut => (refused(rules, program)?, SeccompAction::Allow, errno(libc::EPERM)),
        Syscalls::Only(lists) => (allowed(rules, lists)?, errno(libc::ENOSYS), SeccompAction::Allow),
    };
    let architecture = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
    let filter = SeccompFilter::new(calls, otherwise, action, architecture).map_err(io::Error::other)?;
    Ok([without_clone3(), filter.try_into().map_err(io::Error::other)?])
}

/// Puts this thread, and what it starts, under the filter of a process. `program` is the descriptor that may be executed, once.
///
/// # Errors
/// Those of `seccomp(2)`: a kernel without filters.
pub(super) fn apply(rules: &Rules, program: Option<RawFd>) -> io::Result<()> {
    compile(rules, program)?.iter().try_for_each(|filter| apply_filter(filter).map_err(io::Error::other))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::unix::net::UnixDatagram;
    use std::process::Command;

    use nix::sched::{CloneFlags, unshare};

    use super::*;
    use crate::jail::Profile;

    /// Runs `tries` in a thread that has the filter of a process.
    fn under<T: Send + 'static>(profile: Profile, tries: impl FnOnce() -> T + Send + 'static) -> T {
        let run = move || {
            apply(&profile.rules(), None).unwrap();
            tries()
        };
        std::thread::spawn(run).join().unwrap()
    }

    fn errno<T>(result: io::Result<T>) -> Option<i32> {
        result.err().and_then(|error| error.raw_os_error())
    }

    #[test]
    fn a_program_of_others_makes_no_namespace_no_program_and_no_socket_of_a_network() {
        let namespaces = || {
            let all = NEW_NAMESPACES.map(CloneFlags::from_bits_retain);
            all.map(|flag| unshare(flag | CloneFlags::CLONE_FS)).to_vec()
        };
        let tried = under(Profile::Qemu, move || {
            assert!(namespaces().iter().all(|result| *result == Err(nix::Error::EPERM)));
            assert_eq!(unshare(CloneFlags::CLONE_FS), Ok(()));
            UnixDatagram::unbound().unwrap();
            assert_eq!(std::thread::spawn(|| 1).join().unwrap(), 1);
            (errno(Command::new("/bin/true").status()), errno(UdpSocket::bind("127.0.0.1:0")))
        });
        assert_eq!(tried, (Some(libc::EPERM), Some(libc::EPERM)));
        let bound = under(Profile::Passt, || UdpSocket::bind("127.0.0.1:0").map(drop));
        assert_eq!(errno(bound), None);
    }

    /// What a filter returns for the words of a `struct seccomp_data`.
    fn result(filter: &BpfProgram, data: &[u32; 16]) -> u32 {
        const JUMP: u16 = 0x05;
        const JUMP_IF_GREATER: u16 = 0x25;
        const AND: u16 = 0x54;
        let (mut at, mut value) = (0, 0);
        loop {
            let &sock_filter { code, jt, jf, k } = &filter[at];
            let jump = |is_taken: bool| usize::from(if is_taken { jt } else { jf });
            at += 1;
            match code {
                LOAD => value = data[k as usize / 4],
                AND => value &= k,
                JUMP => at += k as usize,
                JUMP_IF_EQUAL => at += jump(value == k),
                JUMP_IF_GREATER => at += jump(value > k),
                JUMP_IF_AT_LEAST => at += jump(value >= k),
                RETURN => return k,
                other => panic!("an instruction {other:#x} in a filter"),
            }
        }
    }

    /// What the filters of a process answer to a system call. Of equal answers the kernel takes that of the newest filter.
    fn answer(filters: &[BpfProgram; 2], number: i64, first: u64) -> u32 {
        // A compiled filter begins with a check of the architecture.
        let (load, check) = (&filters[1][0], &filters[1][1]);
        assert_eq!((load.code, load.k, check.code), (LOAD, 4, JUMP_IF_EQUAL));
        let mut data = [0; 16];
        (data[0], data[1]) = (u32::try_from(number).unwrap(), check.k);
        (data[4], data[5]) = (first as u32, (first >> 32) as u32);
        let action = |result: &u32| result & 0xffff_0000;
        filters.iter().rev().map(|filter| result(filter, &data)).min_by_key(action).unwrap()
    }

    #[test]
    fn no_process_has_the_calls_that_reach_past_its_jail_but_those_for_its_own_sandbox() {
        let mut calls: Vec<_> = flags().into_iter().map(|flag| (libc::SYS_clone, flag)).collect();
        calls.extend(flags().into_iter().chain([NEW_TIME]).map(|flag| (libc::SYS_unshare, flag)));
        let others = [
            libc::SYS_clone3,
            libc::SYS_setns,
            libc::SYS_mount,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_keyctl,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_io_uring_setup,
            libc::SYS_userfaultfd,
            libc::SYS_ptrace,
        ];
        calls.extend(others.map(|number| (number, 0)));
        let refusal = |errno: i32| u32::from(SeccompAction::Errno(errno.cast_unsigned()));
        let allowed = u32::from(SeccompAction::Allow);
        for profile in Profile::ALL {
            let rules = profile.rules();
            let filters = compile(&rules, None).unwrap();
            for &(number, first) in &calls {
                let expected = match rules.syscalls {
                    _ if rules.own_sandbox.iter().any(|call| call.number == Some(number)) => {
                        SeccompAction::Allow.into()
                    }
                    Syscalls::AllBut if number != libc::SYS_clone3 => refusal(libc::EPERM),
                    _ => refusal(libc::ENOSYS),
                };
                assert_eq!(answer(&filters, number, first), expected, "{profile:?}: system call {number}, {first:#x}");
            }
            assert_eq!(answer(&filters, libc::SYS_read, 0), allowed, "{profile:?}: read");
        }
    }

    #[test]
    fn every_process_has_a_filter_with_and_without_a_program() {
        for profile in Profile::ALL {
            compile(&profile.rules(), None).unwrap();
            compile(&profile.rules(), Some(4096)).unwrap();
        }
    }

    #[test]
    fn a_program_of_our_own_has_only_its_calls() {
        let tried = under(Profile::Gate, || {
            let opened = errno(std::fs::File::open("/"));
            (opened, errno(UnixDatagram::unbound()), unshare(CloneFlags::CLONE_FS))
        });
        assert_eq!(tried, (Some(libc::ENOSYS), Some(libc::ENOSYS), Err(nix::Error::ENOSYS)));
        let opened = under(Profile::Krun, || {
            assert_eq!(std::thread::spawn(|| 1).join().unwrap(), 1);
            assert_eq!(errno(Command::new("/bin/true").status()), Some(libc::ENOSYS));
            assert_eq!(errno(UdpSocket::bind("127.0.0.1:0")), Some(libc::ENOSYS));
            std::fs::File::open("/").map(drop)
        });
        assert_eq!(errno(opened), None);
    }

    #[test]
    fn the_number_that_may_be_executed_is_one() {
        let run = || {
            apply(&Profile::Vsock.rules(), Some(1000)).unwrap();
            let flags = nix::fcntl::AtFlags::AT_EMPTY_PATH;
            let program = std::fs::File::open("/bin/true").unwrap();
            nix::unistd::execveat(&program, c"", &[c"true"], &[] as &[&std::ffi::CStr], flags)
        };
        let refused = std::thread::spawn(run).join().unwrap();
        assert_eq!(refused, Err(nix::Error::EPERM));
    }
}
