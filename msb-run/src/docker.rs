//! Flags of `docker run` that msb-run does not have, and what to use instead.

use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// The flags, and the advice for each.
const ADVICE: &[(&[&str], &str)] = &[
    (
        &["--privileged", "--cap-add", "--cap-drop", "--security-opt", "--userns", "--group-add"],
        "root in the guest has a kernel of its own and every capability; leave it out",
    ),
    (&["--device", "--gpus", "--device-cgroup-rule"], "a VM has no devices of the host"),
    (
        &["--net", "--link", "--network-alias", "--ip", "--ip6"],
        "use --network none|public|private|deny, --allow and --deny (msb-network(7))",
    ),
    (&["-P", "--publish-all", "--expose"], "publish each port with -p PORT:GUEST"),
    (
        &[
            "--memory-swap",
            "--memory-reservation",
            "--memory-swappiness",
            "--kernel-memory",
            "--oom-kill-disable",
            "--oom-score-adj",
        ],
        "the guest has the memory of -m, and nothing else",
    ),
    (
        &["--cpu-shares", "--cpu-quota", "--cpu-period", "--cpuset-cpus", "--cpuset-mems"],
        "-c N is the number of the guest's processors",
    ),
    (&["--ulimit"], "use --rlimit NAME=SOFT[:HARD]"),
    (&["--shm-size"], "/dev/shm of the guest takes up to half of its memory: use -m"),
    (&["--pids-limit"], "use --rlimit nproc=N"),
    (&["--read-only"], "the image never changes; --ephemeral keeps what the guest writes in its memory"),
    (&["--storage-opt"], "use --disk SIZE"),
    (&["--volumes-from"], "name the volumes with -v"),
    (&["-l", "--label", "--label-file", "--annotation"], "a VM has only its name: use --name"),
    (&["--log-driver", "--log-opt"], "use msb-logs NAME, or --kernel-log FILE"),
    (&["--cidfile"], "choose the --name, or use -d, which prints it"),
    (
        &["--health-cmd", "--health-interval", "--health-retries", "--health-timeout", "--no-healthcheck"],
        "run the check with msb-exec NAME",
    ),
    (&["--stop-timeout"], "stop the VM with msb-stop -t SECONDS NAME"),
    (&["--dns-option", "--dns-opt"], "write the guest's /etc/resolv.conf with --patch"),
    (&["--mac-address"], "use --mac ADDR"),
    (
        &["-a", "--attach", "--sig-proxy", "--detach-keys"],
        "the command has the caller's streams and signals; -d detaches it",
    ),
    (
        &[
            "--pid",
            "--ipc",
            "--uts",
            "--cgroupns",
            "--cgroup-parent",
            "--isolation",
            "--runtime",
            "--sysctl",
            "--volume-driver",
        ],
        "a VM shares no namespace with the host; leave it out",
    ),
];

/// The error for an unknown flag that docker has; other errors are returned as they are.
pub fn explain<A: CommandFactory>(error: clap::Error) -> clap::Error {
    let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg) else { return error };
    let flag = flag.split('=').next().unwrap_or(flag);
    match advice(flag) {
        Some(advice) if error.kind() == ErrorKind::UnknownArgument => {
            A::command().error(ErrorKind::UnknownArgument, format!("{flag} is docker's ({advice})"))
        }
        _ => error,
    }
}

fn advice(flag: &str) -> Option<&'static str> {
    ADVICE.iter().find(|(flags, _)| flags.contains(&flag)).map(|(_, advice)| *advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_has_one_advice() {
        let mut flags: Vec<_> = ADVICE.iter().flat_map(|(flags, _)| flags.iter()).collect();
        let count = flags.len();
        flags.sort();
        flags.dedup();
        assert_eq!(flags.len(), count);
        assert!(advice("--privileged").is_some() && advice("--nonsense").is_none());
    }
}
