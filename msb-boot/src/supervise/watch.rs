//! The watch over one VM, from its first process to its end.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use msb::leftovers::Leftovers;
use msb::record::{self, Endpoint, Timings};
use msb::rundir::{self, Ended, Held};
use msb::wire::AGENT_PORT;
use msb::wire::exec::Ready;
use msb::{state, supervisor};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::console::{Console, Words};
use super::crew::{self, Crew};
use super::front::{Front, Said};
use super::{ready, stopping};
use crate::bootshare;
use crate::config::{Config, now};
use crate::launch::Report;
use crate::vmm::Root;

/// How long a VMM may outlive the loss of a process that serves it: if it is ending itself, that is the reason to tell.
const LOSS_GRACE: Duration = Duration::from_secs(1);

/// Where the VM is in its life, and until when.
enum Phase {
    /// The agent has not reported.
    Booting { until: Duration },
    /// The record was told; whoever called has not said that it is printed.
    Reported,
    /// Nothing to wait for.
    Running,
    /// It was asked to stop.
    Stopping { until: Duration, grace: Duration, answer: stopping::Answer },
}

/// The watch.
pub(super) struct Watch<'a> {
    config: &'a Config,
    held: &'a Held,
    front: &'a mut Option<Front>,
    crew: Crew,
    console: Console,
    words: Words,
    report: Option<ready::Report>,
    signals: SignalFd,
    phase: Phase,
    /// What agents made in the root, where it is shared.
    leftovers: Option<Leftovers>,
    /// A process that serves the VM is gone: which and how, and until when the VMM may end by itself.
    lost: Option<(Duration, String)>,
    spawned: Duration,
    /// The disk that takes what the guest writes, for a commit.
    top: Option<OwnedFd>,
}

impl<'a> Watch<'a> {
    /// Starts the VM's processes.
    ///
    /// # Errors
    /// Words for what did not start.
    pub(super) fn start(config: &'a Config, held: &'a Held, front: &'a mut Option<Front>) -> anyhow::Result<Self> {
        let set: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD].into_iter().collect();
        set.thread_block()?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;

        let leftovers = match &config.vm.root {
            Root::Share(root) => Some(Leftovers::hold(&config.vm.dir, root).with_context(|| format!("root {root:?}"))?),
            _ => None,
        };
        let (words, words_in) = std::io::pipe()?;
        let mut crew = Crew::new(words_in, held.show_life()?)?;
        let mut vm = config.vm.clone();
        bootshare::make(&vm.boot_share(), &config.agent, &config.boot, &config.scripts)?;
        state::make_private_dir(&vm.door()).with_context(|| format!("{:?}", vm.door()))?;
        let report = ready::Report::expect_at(&vm.ready_socket())?;
        let mut inherited: Vec<OwnedFd> = vm.open_drives()?;
        let writable = vm.drives.iter().position(|drive| drive.writable && matches!(vm.root, Root::Block(_)));
        let top = writable.map(|place| inherited[place].try_clone()).transpose()?;
        inherited.extend(vm.vmm.vmm().prepare(&mut vm, &mut crew)?);
        let (console, console_in) = std::io::pipe()?;
        let log = log_path(config, held);
        let console = Console::new(console, &log).with_context(|| format!("{log:?}"))?;
        crew.start_vmm(&vm, console_in, &inherited)?;
        Ok(Self {
            config,
            held,
            front,
            crew,
            console,
            words: Words::new(words)?,
            report: Some(report),
            signals,
            phase: Phase::Booting { until: now() + config.timeout },
            leftovers,
            lost: None,
            spawned: now(),
            top,
        })
    }

    /// Ends all that is left of the VM but its disk.
    pub(super) fn into_top(mut self) -> Option<OwnedFd> {
        self.top.take()
    }

    /// Looks after the VM until it has ended.
    ///
    /// # Errors
    /// Words, where there never was a VM for the caller.
    pub(super) fn until_the_end(&mut self) -> anyhow::Result<Ended> {
        loop {
            let happened = self.wait()?;
            if happened.words {
                self.words.drain();
            }
            if happened.console {
                self.read_console();
            }
            if happened.report {
                self.read_report()?;
            }
            if happened.front
                && let Some(talk) = self.front
            {
                let said = talk.listen();
                *self.front = None;
                match said {
                    Said::Printed if matches!(self.phase, Phase::Reported) => self.phase = Phase::Running,
                    Said::Printed => {}
                    Said::Gone => bail!("interrupted"),
                }
            }
            if happened.signal
                && let Some(ended) = self.read_signals()?
            {
                return Ok(ended);
            }
            if let Some(ended) = self.check_time()? {
                return Ok(ended);
            }
        }
    }

    fn wait(&self) -> anyhow::Result<Happened> {
        let until = match self.phase {
            Phase::Booting { until } | Phase::Stopping { until, .. } => Some(until),
            Phase::Reported | Phase::Running => None,
        };
        let until = until.into_iter().chain(self.lost.iter().map(|(until, _)| *until)).min();
        let timeout = until.map(|until| Timespec::try_from(until.saturating_sub(now()))).transpose()?;
        let sources = [
            Some(self.words.as_fd()),
            self.console.is_open().then(|| self.console.as_fd()),
            self.report.as_ref().map(AsFd::as_fd),
            self.front.as_ref().map(AsFd::as_fd),
            Some(self.signals.as_fd()),
        ];
        let mut fds: Vec<PollFd<'_>> =
            sources.iter().flatten().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        match poll(&mut fds, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => return Ok(Happened::default()),
            other => other?,
        };
        let mut results = fds.iter().map(|fd| !fd.revents().is_empty());
        let mut next = sources.iter().map(|source| source.is_some() && results.next() == Some(true));
        let mut next = || next.next() == Some(true);
        Ok(Happened { words: next(), console: next(), report: next(), front: next(), signal: next() })
    }

    fn read_console(&mut self) {
        self.console.drain();
        if self.console.halted() {
            // Its VMM would stay, with nothing in it. SIGCHLD brings the rest.
            self.crew.kill(self.config.vm.vmm.name());
        }
    }

    fn read_report(&mut self) -> anyhow::Result<()> {
        let Some(report) = &mut self.report else { return Ok(()) };
        let taken = report.take();
        let ready = match taken {
            Ok(Some(ready)) => ready,
            Ok(None) => return Ok(()),
            Err(error) => {
                self.read_console();
                return Err(self.failed(&format!("{error:#}")));
            }
        };
        self.report = None;
        if let Some(leftovers) = &mut self.leftovers {
            leftovers.add(&ready.made).context("what the agent made in the root")?;
        }
        if let Some(words) = ready.error {
            bail!("guest: {}", msb::exit::printable(&words));
        }
        self.held.close_door().context("the agent's socket")?;
        let record = self.record(&ready)?;
        let path = self.held.path().join(record::FILE_NAME);
        let mut line = serde_json::to_vec(&record)?;
        line.push(b'\n');
        state::write_file(&path, &line, 0o600).with_context(|| format!("{path:?}"))?;
        if let Some(front) = self.front {
            front.tell(&Report::Ready(Box::new(record)));
        }
        self.phase = Phase::Reported;
        Ok(())
    }

    fn record(&self, ready: &Ready) -> anyhow::Result<record::Record> {
        let Config { name, vm, root_why, record, started, .. } = self.config;
        let since = |time: Duration| u64::try_from(time.saturating_sub(*started).as_millis());
        let spawn = since(self.spawned)?;
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let vm = record::Vm {
            name: name.clone(),
            pid,
            start_time: Some(supervisor::start_time(pid).context("when the supervisor was started")?),
            vmm: vm.vmm.name().into(),
            root: vm.root.name().into(),
            root_why: Some(root_why.clone()),
            top: vm.root.top(),
            cpus: vm.cpus,
            memory_mib: vm.memory_mib,
            init: ready.init.clone(),
            endpoint: self.endpoint(),
            kernel_log: log_path(self.config, self.held),
            timings_ms: Timings {
                spawn,
                kernel: spawn.saturating_add(ready.kernel_ms),
                agent: spawn.saturating_add(ready.agent_ms),
                init: ready.init_ms.map(|init| spawn.saturating_add(init)),
                ready: since(now())?,
                unknown: record::Unknown::new(),
            },
            unknown: record::Unknown::new(),
        };
        Ok(record::Record { vm: Some(vm), ..record.clone() })
    }

    fn endpoint(&self) -> Endpoint {
        let vm = &self.config.vm;
        let handshake = vm.vmm.has_one_socket_for_all_ports();
        Endpoint { unix: vm.agent_socket(), port: AGENT_PORT, handshake, unknown: record::Unknown::new() }
    }

    fn read_signals(&mut self) -> anyhow::Result<Option<Ended>> {
        while let Some(signal) = self.signals.read_signal()? {
            if signal.ssi_signo == Signal::SIGCHLD as u32 {
                continue;
            }
            match &self.phase {
                Phase::Booting { .. } => bail!("stopped by a signal before the agent had reported"),
                Phase::Stopping { .. } => self.hurry(),
                _ => self.ask_to_stop(),
            }
        }
        self.check_crew()
    }

    fn ask_to_stop(&mut self) {
        let grace = stopping::grace(self.held.path());
        let answer = stopping::ask(self.endpoint(), grace);
        self.phase = Phase::Stopping { until: now() + grace, grace, answer };
    }

    /// A second wish to stop counts where it leaves less time than the first.
    fn hurry(&mut self) {
        let wanted = stopping::grace(self.held.path());
        if let Phase::Stopping { until, grace, .. } = &mut self.phase
            && now() + wanted < *until
        {
            (*until, *grace) = (now() + wanted, wanted);
        }
    }

    /// Sees whether a process of the VM has ended, and what that means.
    fn check_crew(&mut self) -> anyhow::Result<Option<Ended>> {
        let vmm = self.config.vm.vmm.name();
        let Some((name, status)) = self.crew.lost(vmm) else { return Ok(None) };
        self.words.drain();
        self.read_console();
        let words = format!("{name} {}", crew::describe(status));
        if name != vmm {
            self.lost.get_or_insert((now() + LOSS_GRACE, words));
            return Ok(None);
        }
        // With -no-reboot QEMU ends by itself; where it would not, the reader of the console has killed it.
        let by_guest = status.success() || self.console.halted();
        let reason = match &self.phase {
            _ if self.console.panicked() => "the guest's kernel panicked".into(),
            Phase::Stopping { answer, .. } if by_guest => match answer.take() {
                Some(words) => return Ok(Some(Ended { reason: format!("{words}, ended by force"), forced: true })),
                None => Ended::STOPPED.into(),
            },
            Phase::Booting { .. } if by_guest => "the guest ended before its agent had reported".into(),
            _ if by_guest => Ended::POWERED_OFF.into(),
            _ => self.with_words(&words),
        };
        self.ended(reason).map(Some)
    }

    /// Does what is due.
    fn check_time(&mut self) -> anyhow::Result<Option<Ended>> {
        let now = now();
        match (&self.phase, &self.lost) {
            (_, Some((until, words))) if *until <= now => self.ended(self.with_words(words)).map(Some),
            (Phase::Booting { until }, _) if *until <= now => {
                let limit = self.config.timeout.as_secs();
                Err(self.failed(&self.with_words(&format!("the agent did not report within {limit} s"))))
            }
            (Phase::Stopping { until, grace, .. }, _) if *until <= now => {
                let reason = format!("did not stop within {} s, killed", grace.as_secs_f32());
                Ok(Some(Ended { reason, forced: true }))
            }
            _ => Ok(None),
        }
    }

    /// The end of a VM; before the agent has reported it is an error.
    fn ended(&self, reason: String) -> anyhow::Result<Ended> {
        match self.phase {
            Phase::Booting { .. } => Err(self.failed(&reason)),
            _ => Ok(Ended { reason, forced: false }),
        }
    }

    /// Words for a VM that did not come up, with what it said last.
    fn failed(&self, words: &str) -> anyhow::Error {
        let mut words = format!("the VM did not come up: {words}");
        for line in self.console.words() {
            words.push_str("\n  guest: ");
            words.push_str(&line);
        }
        anyhow!(words)
    }

    /// Words with what the VM's processes said last.
    fn with_words(&self, words: &str) -> String {
        let said = self.words.words();
        if said.is_empty() { words.to_owned() } else { format!("{words}: {}", said.join("; ")) }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        // Before what is in `leftovers` goes.
        self.crew.end();
    }
}

/// Where the guest's console goes.
fn log_path(config: &Config, held: &Held) -> PathBuf {
    config.kernel_log.clone().unwrap_or_else(|| held.path().join(rundir::KERNEL_LOG))
}

/// Which fds have something.
#[derive(Default)]
struct Happened {
    words: bool,
    console: bool,
    report: bool,
    front: bool,
    signal: bool,
}
