//! How long an answer of a guest is awaited.
//!
//! A limit in seconds would take the guest of a busy host for one that hangs. So the time in which the VM's processes wait for a
//! processor of the host does not count. A guest that computes has at least the limit in time on processors, and one that waits for
//! anything else has the limit itself. The kernel counts both for each thread, in `/proc/PID/task/TID/schedstat` (the kernel's
//! `Documentation/scheduler/sched-stats.rst`); without that file all time counts. The processes are looked at when an answer is late,
//! and not before.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::record::{self, Endpoint};

/// After how long an answer is late, or a quarter of a limit that is shorter than four times this.
const LATE: Duration = Duration::from_secs(1);
/// The shortest time between two looks.
const PAUSE: Duration = Duration::from_millis(500);

/// The work of threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// How long they have run.
    pub ran: Duration,
    /// How long they have waited for a processor.
    pub waited: Duration,
}

impl Work {
    /// The work of the living threads of a process; `None` if it does not exist.
    pub fn of(pid: u32) -> Option<Self> {
        let threads = Threads::of(pid)?;
        Some(threads.since(&Threads::default()))
    }

    /// Reads a `schedstat`: nanoseconds on a processor, nanoseconds of waiting for one, and a count.
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split_ascii_whitespace().map_while(|number| number.parse().ok());
        let (ran, waited) = (numbers.next()?, numbers.next()?);
        Some(Self { ran: Duration::from_nanos(ran), waited: Duration::from_nanos(waited) })
    }

    /// How much of `elapsed` counts, in which this was the work.
    fn counted(self, elapsed: Duration) -> Duration {
        self.ran.max(elapsed.saturating_sub(self.waited)).min(elapsed)
    }
}

/// The work of each thread, by its ID.
#[derive(Clone, Debug, Default)]
struct Threads(HashMap<u32, Work>);

impl Threads {
    fn of(pid: u32) -> Option<Self> {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten().filter_map(|thread| {
            let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
            Some((thread.file_name().to_str()?.parse().ok()?, Work::parse(&text)?))
        });
        Some(Self(threads.collect()))
    }

    /// The threads of the children of a process.
    fn of_children(parent: u32) -> Self {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let children = pids.filter(|pid| parent_of(*pid) == Some(parent));
        Self(children.filter_map(Self::of).flat_map(|threads| threads.0).collect())
    }

    /// The work since an earlier look, of the threads that still live.
    fn since(&self, earlier: &Self) -> Work {
        self.0.iter().fold(Work::default(), |sum, (thread, now)| {
            let before = earlier.0.get(thread).copied().unwrap_or_default();
            Work {
                ran: sum.ran + now.ran.saturating_sub(before.ran),
                waited: sum.waited + now.waited.saturating_sub(before.waited),
            }
        })
    }
}

/// Field 4 of `/proc/PID/stat`. The second field is the process's name in parentheses, which may hold anything.
fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let name_end = stat.iter().rposition(|&byte| byte == b')')?;
    std::str::from_utf8(&stat[name_end + 1..]).ok()?.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Whose processes are looked at.
#[derive(Clone, Debug)]
enum Supervisor {
    Process(u32),
    /// The one that the record in this directory names.
    OfRunDir(PathBuf),
}

impl Supervisor {
    fn pid(&self) -> Option<u32> {
        #[derive(Deserialize)]
        struct Named {
            vm: Pid,
        }
        #[derive(Deserialize)]
        struct Pid {
            pid: u32,
        }
        match self {
            Self::Process(pid) => Some(*pid),
            Self::OfRunDir(dir) => {
                let named: Named = serde_json::from_slice(&fs::read(dir.join(record::FILE_NAME)).ok()?).ok()?;
                Some(named.vm.pid)
            }
        }
    }
}

/// A limit for the answer of a guest, as the module's documentation explains it.
#[derive(Clone, Debug)]
pub struct Patience {
    limit: Duration,
    began: Instant,
    supervisor: Supervisor,
    /// What had counted at the first look, when that was, and what the threads had done.
    first: Option<(Duration, Instant, Threads)>,
}

impl Patience {
    /// With a VM that runs, from now on.
    pub fn with(endpoint: &Endpoint, limit: Duration) -> Self {
        let dir = endpoint.unix.parent().unwrap_or(Path::new("/"));
        Self { limit, began: Instant::now(), supervisor: Supervisor::OfRunDir(dir.to_owned()), first: None }
    }

    /// With processes that the calling process starts, from now on.
    pub fn with_new_children(limit: Duration) -> Self {
        let (began, supervisor) = (Instant::now(), Supervisor::Process(std::process::id()));
        Self { limit, began, supervisor, first: Some((Duration::ZERO, began, Threads::default())) }
    }

    /// How long to wait until this is called again; `None` if the limit has passed.
    pub fn left(&mut self) -> Option<Duration> {
        self.left_at(Instant::now(), |supervisor| supervisor.pid().map(Threads::of_children).unwrap_or_default())
    }

    fn left_at(&mut self, now: Instant, look: impl Fn(&Supervisor) -> Threads) -> Option<Duration> {
        let late = LATE.min(self.limit / 4);
        let elapsed = now - self.began;
        if self.first.is_none() && elapsed >= late {
            // How busy the host was until now is not known. A caller that waits for a processor itself comes late.
            self.first = Some((late, now, look(&self.supervisor)));
        }
        let Some((before, since, threads)) = &self.first else { return Some(late - elapsed) };
        let elapsed = now - *since;
        let mut counted = *before + elapsed;
        if counted >= self.limit {
            counted = *before + look(&self.supervisor).since(threads).counted(elapsed);
        }
        let left = self.limit.saturating_sub(counted);
        (!left.is_zero()).then(|| left.max(PAUSE.min(late)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn time_in_which_processes_wait_for_a_processor_does_not_count() {
        for (ran, waited, elapsed, counted) in [
            // It hangs, and has no work; or it computes in vain.
            (0, 0, 60, 60),
            (60, 0, 60, 60),
            // Four processors of its own.
            (240, 0, 60, 60),
            // A host that gives it a tenth of what it asks for.
            (6, 54, 60, 6),
            (60, 540, 600, 60),
            // Its threads wait at the same time.
            (6, 200, 60, 6),
            // Most of the time it waits for a disk.
            (1, 9, 60, 51),
        ] {
            let work = Work { ran: SECOND * ran, waited: SECOND * waited };
            assert_eq!(work.counted(SECOND * elapsed), SECOND * counted, "{ran} {waited} {elapsed}");
        }
    }

    #[test]
    fn the_kernels_numbers_are_read() {
        let work = Work { ran: Duration::from_nanos(7_000_000_001), waited: Duration::from_nanos(42) };
        assert_eq!(Work::parse("7000000001 42 9\n"), Some(work));
        assert!(Work::parse("7").is_none() && Work::parse("").is_none() && Work::parse("a 1 1").is_none());
        assert!(Work::of(std::process::id()).is_some());
        assert!(Work::of(u32::MAX).is_none());
    }

    #[test]
    fn the_work_is_that_of_threads_that_live_since_the_earlier_look() {
        let work = |ran, waited| Work { ran: SECOND * ran, waited: SECOND * waited };
        let earlier = Threads([(1, work(10, 1)), (2, work(100, 100))].into());
        let now = Threads([(1, work(15, 3)), (3, work(2, 2))].into());
        assert_eq!(now.since(&earlier), work(7, 4));
    }

    /// A process that runs until it is dropped.
    struct Child(std::process::Child);

    impl Child {
        fn start(script: &str) -> Self {
            Self(Command::new("sh").args(["-c", script]).spawn().unwrap())
        }
    }

    impl Drop for Child {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn the_children_of_a_process_are_found_and_their_work_is_seen() {
        let child = Child::start("while :; do :; done");
        let earlier = Threads::of_children(std::process::id());
        assert!(earlier.0.contains_key(&child.0.id()));
        while Threads::of_children(std::process::id()).since(&earlier).ran.is_zero() {}
        assert!(Threads::of_children(child.0.id()).0.is_empty());
    }

    #[test]
    fn without_a_vm_that_is_seen_all_time_counts() {
        let endpoint = Endpoint::new("/nowhere/agent.sock".into(), 1, false);
        let limit = Duration::from_millis(40);
        let mut patience = Patience::with(&endpoint, limit);
        let began = Instant::now();
        while let Some(left) = patience.left() {
            assert!(left <= limit);
            std::thread::sleep(left);
        }
        assert!(began.elapsed() >= limit);
        assert_eq!(patience.left(), None);
    }

    #[test]
    fn a_vm_that_waits_for_processors_has_more_time_and_one_that_hangs_has_none() {
        let endpoint = Endpoint::new("/nowhere/agent.sock".into(), 1, false);
        let limit = SECOND * 60;
        let work = |ran: u32, waited: u32| {
            let work = Work { ran: SECOND * ran, waited: SECOND * waited };
            move |_: &Supervisor| Threads([(1, work)].into())
        };
        let at = |patience: &Patience, second: u32| patience.began + SECOND * second;
        let unseen = |_: &Supervisor| -> Threads { panic!("an answer that is not late yet") };
        let mut patience = Patience::with(&endpoint, limit);
        assert_eq!(patience.left_at(at(&patience, 0), unseen), Some(LATE));
        // What the VM did before does not count. The next look is when the limit has passed.
        assert_eq!(patience.left_at(at(&patience, 1), work(500, 500)), Some(SECOND * 59));
        assert_eq!(patience.left_at(at(&patience, 30), unseen), Some(SECOND * 30));
        let hung = patience.clone();
        assert_eq!(hung.clone().left_at(at(&hung, 60), work(500, 500)), None);
        assert_eq!(hung.clone().left_at(at(&hung, 60), work(559, 500)), None);
        assert_eq!(patience.left_at(at(&patience, 60), work(509, 550)), Some(SECOND * 50));
        assert_eq!(patience.left_at(at(&patience, 110), work(514, 595)), Some(SECOND * 45));
        assert_eq!(patience.left_at(at(&patience, 600), work(558, 1041)), Some(SECOND));
        assert_eq!(patience.left_at(at(&patience, 601), work(559, 1041)), None);
        // A caller that came late itself.
        let mut patience = Patience::with(&endpoint, limit);
        assert_eq!(patience.left_at(at(&patience, 100), work(0, 0)), Some(SECOND * 59));
        // A process that was started just now is known from its beginning.
        let mut patience = Patience::with_new_children(limit);
        assert_eq!(patience.left_at(at(&patience, 59), unseen), Some(SECOND));
        assert_eq!(patience.left_at(at(&patience, 60), work(10, 49)), Some(SECOND * 49));
    }
}
