//! What the processes of a VM use: the supervisor and all its descendants.

use std::collections::HashMap;
use std::fs;

/// The kernel's clock ticks a second as user space sees them (USER_HZ), which Linux has fixed at 100.
const TICKS_PER_SECOND: f64 = 100.0;

/// What processes use together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Time on processors, in seconds.
    pub cpu_s: f64,
    /// Memory, in bytes. A page that n processes share counts as 1/n in each.
    pub memory: u64,
    /// Bytes that were read from disks.
    pub disk_read: u64,
    /// Bytes that were written to disks.
    pub disk_written: u64,
}

/// The usage of a process and its descendants. Processes that end meanwhile are left out.
pub fn usage(root: i32) -> Usage {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
        if let Some(stat) = stat(pid) {
            children.entry(stat.parent).or_default().push(pid);
        }
    }
    let (mut usage, mut ticks, mut left) = (Usage::default(), 0, vec![root]);
    while let Some(pid) = left.pop() {
        left.extend(children.remove(&pid).unwrap_or_default());
        let Some(stat) = stat(pid) else { continue };
        let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        let memory = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        ticks += stat.ticks;
        usage.memory += member(&memory, "Pss:") * 1024;
        usage.disk_read += member(&io, "read_bytes:");
        usage.disk_written += member(&io, "write_bytes:");
    }
    // One division: a sum of fractions would be 3.1999999999999993.
    usage.cpu_s = ticks as f64 / TICKS_PER_SECOND;
    usage
}

struct Stat {
    parent: i32,
    /// Time on processors of the process and of its children that have ended.
    ticks: u64,
}

fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// proc_pid_stat(5). The name in parentheses may hold anything; fields are counted from the one after it, which is the third.
fn parse_stat(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_ascii_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let ticks = number(14)? + number(15)? + number(16)? + number(17)?;
    Some(Stat { parent: fields.get(1)?.parse().ok()?, ticks })
}

/// The number after a name at the begin of a line; 0 if there is none.
fn member(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_from_its_files() {
        let stat = parse_stat("7 (a) b) S 3 7 7 0 -1 4194560 1 2 3 4 10 20 30 40 20 0 1 0 99").unwrap();
        assert_eq!((stat.parent, stat.ticks), (3, 100));
        assert!(parse_stat("7 (a) S").is_none() && parse_stat("").is_none());
        assert_eq!(member("rchar: 1\nread_bytes: 4096\n", "read_bytes:"), 4096);
        assert_eq!(member("Pss:    12 kB\n", "Pss:"), 12);
        assert_eq!(member("", "Pss:"), 0);
    }

    #[test]
    fn this_process_uses_memory() {
        assert!(usage(i32::try_from(std::process::id()).unwrap()).memory > 0);
    }
}
