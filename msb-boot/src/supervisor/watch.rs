//! The supervision of one start of a VM, from its first process to its end.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use msb::record::{self, Channel, Endpoint};
use msb::store::publish;
use msb::vm::rundir::{self, Cause, Ended, LockedRunDir};
use msb::wire::AGENT_PORT;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::boot_limit::BootLimit;
use super::clock::{self, Clock};
use super::connection::{Answer, Report};
use super::console::{Console, Stderr};
use super::halt::{self, Halt};
use super::machine::Machine;
use super::recording::Recording;
use super::saving::{Loaded, Prepared, Saver};
use super::stopping::Deadline;
use super::timings::timings;
use super::verdict::Verdict;
use super::{ready, restart::KernelFault, running, stopping};
use crate::channel;
use crate::config::{Config, now};
use crate::inherited_fd::InheritedFd;
use crate::log;
use crate::network::control::Control;
use crate::processes::{self, Processes};

mod loss;

/// How long the VMM may outlive a helper process. If the VMM ends in that time, its own end is the one that is reported.
const HELPER_LOSS_GRACE: Duration = Duration::from_secs(3);
/// The message about a guest that does not come up.
const PANICKED: &str = "the guest's kernel panicked";

/// The phase of the VM's life, and the time at which it must have ended.
enum Phase {
    /// The agent has not reported yet.
    Booting(BootLimit),
    /// The record was sent to the client, which has not confirmed that it is printed.
    Reported,
    /// The VM runs, and the client has printed the record.
    Running,
    /// The guest was asked to stop.
    Stopping { deadline: Deadline, answer: Option<stopping::Answer> },
}

/// The supervision of one start of a VM.
pub(super) struct Watch<'a, 'f> {
    config: &'a Config,
    held: &'a LockedRunDir,
    machine: &'a mut Machine<'f>,
    processes: Processes,
    console: Console,
    vmm_stderr: Stderr,
    helper_stderr: Stderr,
    report: Option<ready::Report>,
    recording: Option<Recording>,
    network: Option<Control>,
    /// What keeps the multiplexer of the guest's port running.
    _channel: Option<UnixStream>,
    /// What saves the VM, if it can be saved.
    saver: Option<Saver>,
    /// A saved state is being loaded.
    loaded: Option<Loaded>,
    /// How often a process was started again.
    replacements: BTreeMap<&'static str, u32>,
    phase: Phase,
    /// The initramfs, until the agent has reported.
    initramfs: Option<File>,
    clock: Clock,
    halt: Option<Halt>,
    /// A helper process has ended: the time at which the VM counts as failed, and the reason.
    lost: Option<(Duration, String)>,
    /// When the record was read, or the restart began.
    started: Duration,
    /// When the VMM was started.
    spawned: Duration,
}

/// A descriptor that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Clock,
    VmmStderr,
    HelperStderr,
    Console,
    Report,
    Client,
    Signal,
    EndWith,
    Process,
    /// Of the host's addresses or name servers.
    NetworkChange,
    NetworkControl,
    ShutdownMessage,
    HaltAnswer,
    /// msb-snapshot has connected.
    Snapshot,
    /// The load of a saved state has ended.
    Loaded,
}

impl<'a, 'f> Watch<'a, 'f> {
    /// Starts the VM's processes.
    ///
    /// # Errors
    /// The process that did not start, and why.
    pub(super) fn start(
        config: &'a Config,
        held: &'a LockedRunDir,
        machine: &'a mut Machine<'f>,
    ) -> anyhow::Result<Self> {
        let started = if machine.restarts == 0 { config.started } else { now() };
        let (vmm_stderr, vmm_stderr_in) = std::io::pipe()?;
        let (helper_stderr, helper_stderr_in) = std::io::pipe()?;
        let mut processes = Processes::new(vmm_stderr_in, helper_stderr_in, held.lock_alive()?)?;
        let mut fds = machine.inherited_disks()?;
        let initramfs = machine.initramfs.write(held.path(), &config.boot, machine.vm.user).context("the initramfs")?;
        machine.vm.initramfs = InheritedFd::of(&initramfs);
        let clock = Clock::watch().context("watch the clock")?;
        let vm = &mut machine.vm;
        // The jails check it again. Here the message is complete.
        for volume in &vm.volumes {
            volume.source.open().with_context(|| format!("volume {:?}", volume.source.path()))?;
        }
        publish::make_private_dir(&vm.socket_dir()).with_context(|| format!("{:?}", vm.socket_dir()))?;
        let report = ready::Report::listen(&vm.ready_socket())?;
        let (console, console_in) = std::io::pipe()?;
        let log = config.log_path(held);
        let console = if machine.restarts == 0 { Console::new(console, &log) } else { Console::resume(console, &log) };
        let console = console.with_context(|| format!("{log:?}"))?;
        let (sockets, control) = config.networks.start(vm, &mut processes)?;
        fds.extend(sockets);
        let own_initramfs = File::from(initramfs.try_clone()?);
        fds.push(initramfs);
        let channel = channel::start(vm, &mut fds, &mut processes)?;
        let prepared = Prepared::make(config, vm, &mut fds)?;
        config.vmm.start(vm, fds, console_in, &mut processes)?;
        let saver = match (prepared, &channel) {
            (Some(prepared), Some(channel)) => {
                let vmm = processes.id(config.vmm.name()).context("the VMM has no process")?;
                Some(prepared.started(config, vmm, channel)?)
            }
            _ => None,
        };
        let starting = Endpoint::new(vm.socket_dir().join(rundir::AGENT_SOCKET), AGENT_PORT, false);
        let loaded = saver.as_ref().map(|saver| saver.load(config, starting)).transpose()?.flatten();
        Ok(Self {
            config,
            held,
            machine,
            processes,
            console,
            vmm_stderr: Stderr::new(vmm_stderr, config.vmm.name())?,
            helper_stderr: Stderr::new(helper_stderr, "helper")?,
            report: Some(report),
            recording: None,
            network: control,
            _channel: channel,
            saver,
            loaded,
            replacements: BTreeMap::new(),
            phase: Phase::Booting(BootLimit::new(config.timeout)),
            initramfs: Some(own_initramfs),
            clock,
            halt: None,
            lost: None,
            started,
            spawned: now(),
        })
    }

    /// Supervises the VM until it has ended.
    ///
    /// # Errors
    /// Why the boot failed.
    pub(super) fn until_the_end(&mut self) -> anyhow::Result<Ended> {
        loop {
            for event in self.wait()? {
                if let Some(ended) = self.handle(event)? {
                    return Ok(ended);
                }
            }
            if let Some(ended) = self.check_time()? {
                return Ok(ended);
            }
        }
    }

    /// Whether the host asked the guest to stop.
    pub(super) fn was_asked_to_stop(&self) -> bool {
        matches!(self.phase, Phase::Stopping { .. })
    }

    fn handle(&mut self, event: Event) -> anyhow::Result<Option<Ended>> {
        match event {
            Event::Clock => self.set_guest_clock(),
            Event::VmmStderr => self.vmm_stderr.drain(),
            Event::HelperStderr => self.helper_stderr.drain(),
            Event::Console => self.read_console(),
            Event::Report => self.read_report()?,
            Event::Client => self.read_client()?,
            Event::Signal => self.read_signals()?,
            Event::EndWith => self.end_with()?,
            Event::Process => return self.check_processes(),
            Event::NetworkChange | Event::NetworkControl => self.inform_network()?,
            Event::ShutdownMessage => self.read_shutdown_messages(),
            Event::HaltAnswer => self.read_halt_answer(),
            Event::Snapshot => {
                let endpoint = self.endpoint();
                self.saver.iter().for_each(|saver| saver.accept(endpoint.clone()));
            }
            Event::Loaded => self.check_loaded()?,
        }
        Ok(None)
    }

    fn wait(&self) -> anyhow::Result<Vec<Event>> {
        let until = match self.phase {
            Phase::Booting(BootLimit { until, .. }) => Some(until),
            Phase::Stopping { deadline, .. } => Some(deadline.until),
            Phase::Reported | Phase::Running => None,
        };
        let lost = self.lost.iter().map(|(until, _)| *until);
        let until = until.into_iter().chain(lost).chain(self.halt.iter().map(|halt| halt.until)).min();
        let timeout = until.map(|until| Timespec::try_from(until.saturating_sub(now()))).transpose()?;
        let shutdown = match &self.phase {
            Phase::Stopping { answer, .. } => answer.as_ref().filter(|answer| answer.is_open()).map(AsFd::as_fd),
            _ => None,
        };
        let mut sources: Vec<(Event, BorrowedFd<'_>)> = Vec::new();
        let mut add = |event, fd: Option<_>| sources.extend(fd.map(|fd| (event, fd)));
        add(Event::VmmStderr, self.vmm_stderr.is_open().then(|| self.vmm_stderr.as_fd()));
        add(Event::HelperStderr, self.helper_stderr.is_open().then(|| self.helper_stderr.as_fd()));
        add(Event::Console, self.console.is_open().then(|| self.console.as_fd()));
        add(Event::Report, self.report.as_ref().map(AsFd::as_fd));
        add(Event::Client, self.machine.client.as_ref().map(AsFd::as_fd));
        add(Event::Signal, Some(self.machine.signals.as_fd()));
        add(Event::EndWith, self.machine.end_with.as_ref().map(AsFd::as_fd));
        add(Event::Clock, Some(self.clock.as_fd()));
        add(Event::ShutdownMessage, shutdown);
        add(Event::Snapshot, self.saver.as_ref().and_then(Saver::listener));
        add(Event::Loaded, self.loaded.as_ref().map(AsFd::as_fd));
        add(Event::HaltAnswer, self.halt.as_ref().and_then(Halt::answer));
        if let Some(control) = &self.network {
            sources.extend(control.changes().map(|fd| (Event::NetworkChange, fd)));
            sources.extend(control.waiting().map(|fd| (Event::NetworkControl, fd)));
        }
        sources.extend(self.processes.pidfds().map(|process| (Event::Process, process)));
        let flags = |event: &Event| if *event == Event::NetworkControl { PollFlags::OUT } else { PollFlags::IN };
        let mut fds: Vec<_> = sources.iter().map(|(event, fd)| PollFd::from_borrowed_fd(*fd, flags(event))).collect();
        match poll(&mut fds, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            other => other?,
        };
        let happened = sources.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        let mut happened: Vec<Event> = happened.map(|((event, _), _)| *event).collect();
        happened.dedup();
        Ok(happened)
    }

    /// Sends the time to the guest if its clock may be wrong.
    fn set_guest_clock(&self) {
        if self.clock.has_jumped() && matches!(self.phase, Phase::Reported | Phase::Running) {
            clock::send_time(self.endpoint());
        }
    }

    /// Sends the host's addresses to the gate, which would let the guest reach a new one, and its name servers to the resolver. The VM
    /// ends if the gate cannot be told.
    fn inform_network(&mut self) -> anyhow::Result<()> {
        self.network.as_mut().map_or(Ok(()), Control::update)
    }

    fn read_console(&mut self) {
        self.console.drain();
        match (self.console.verdict(), &self.halt) {
            (Some(Verdict::Halted), None) => {
                let vmm = self.processes.id(self.config.vmm.name());
                self.halt = Some(match self.phase {
                    Phase::Booting(_) => Halt::new(halt::GRACE, vmm, None),
                    Phase::Stopping { .. } => Halt::new(halt::STOPPED_GRACE, vmm, None),
                    _ => Halt::new(halt::GRACE, vmm, Some(self.endpoint())),
                });
            }
            (Some(Verdict::Halted), Some(_)) => {}
            _ => self.halt = None,
        }
    }

    /// After the message of a halt: the agent has answered, or cannot be reached.
    fn read_halt_answer(&mut self) {
        if self.halt.as_mut().is_some_and(Halt::is_forged) {
            log::note("the console says that the guest has halted, but its agent answers: it goes on");
            self.console.dismiss_verdict();
            self.halt = None;
        }
    }

    fn read_report(&mut self) -> anyhow::Result<()> {
        let Some(report) = &mut self.report else { return Ok(()) };
        let taken = report.take();
        let arrived = now();
        let ready = match taken {
            Ok(Some(ready)) => ready,
            Ok(None) => return Ok(()),
            Err(error) => {
                self.read_console();
                return Err(self.failed(&format!("{error:#}")));
            }
        };
        self.report = None;
        self.machine.add_leftovers(&ready.made)?;
        if let Some(error) = ready.error {
            self.read_console();
            let message = format!("guest: {}", msb::tool::exit::printable(&error));
            return Err(anyhow!(self.console.quoted_after(message)));
        }
        self.held.close_socket_dir().context("the agent's socket")?;
        if let Some(initramfs) = self.initramfs.take().filter(|_| self.config.vmm.copies_initramfs()) {
            // The VMM still has it open.
            initramfs.set_len(0).context("the initramfs")?;
        }
        let timings = timings(self.started, self.spawned, arrived, &ready);
        let log = self.config.log_path(self.held);
        let record = running::record(self.config, self.machine, self.endpoint(), log, &ready, timings)?;
        let path = self.held.path().join(record::FILE_NAME);
        let mut line = serde_json::to_vec(&record)?;
        line.push(b'\n');
        publish::write_volatile_file(&path, &line, 0o600).with_context(|| format!("{path:?}"))?;
        let _ = std::fs::remove_file(self.held.path().join(rundir::RESTARTING));
        if let Some(saver) = &mut self.saver {
            saver.listen(self.held.path(), ready.init.clone())?;
        }
        log::note("ready");
        self.recording = Some(Recording::start(self.endpoint(), self.held.path()));
        if let (Some(warning), Some(client)) = (&ready.warning, self.machine.client.as_mut()) {
            client.send(&Report::Say(format!("{}: {}", self.config.name, msb::tool::exit::printable(warning))));
        }
        self.phase = match self.machine.report(record) {
            true => Phase::Reported,
            false => Phase::Running,
        };
        Ok(())
    }

    fn read_client(&mut self) -> anyhow::Result<()> {
        let Some(client) = self.machine.client.as_mut() else { return Ok(()) };
        let answer = client.read();
        *self.machine.client = None;
        match answer {
            Answer::Gone => bail!("interrupted"),
            Answer::Printed => self.machine.is_printed = true,
        }
        if matches!(self.phase, Phase::Reported) {
            self.phase = Phase::Running;
        }
        Ok(())
    }

    fn endpoint(&self) -> Endpoint {
        let vm = &self.machine.vm;
        let handshake = vm.channel == Channel::Vsock && self.config.vmm.has_vsock_handshake();
        Endpoint::new(vm.agent_socket(), AGENT_PORT, handshake)
    }

    fn read_signals(&mut self) -> anyhow::Result<()> {
        while let Some(signal) = self.machine.read_signal()? {
            self.stop(signal.as_ref())?;
        }
        Ok(())
    }

    /// The process or the descriptor of --end-with has ended.
    fn end_with(&mut self) -> anyhow::Result<()> {
        self.machine.end_with = None;
        self.stop("--end-with")
    }

    /// Asks the guest to stop, or to hurry if it was asked before.
    fn stop(&mut self, cause: &str) -> anyhow::Result<()> {
        let grace = stopping::grace(self.held.path());
        match &mut self.phase {
            Phase::Booting(_) => bail!("stopped by {cause} before the agent had reported"),
            Phase::Stopping { deadline, .. } => {
                log::note(format_args!("{cause} again, with a grace of {} s", grace.as_secs_f32()));
                deadline.hurry(now(), grace);
            }
            _ => {
                log::note(format_args!("{cause}: stopping, with a grace of {} s", grace.as_secs_f32()));
                self.phase = Phase::Stopping {
                    deadline: Deadline::new(now(), grace),
                    answer: (!grace.is_zero()).then(|| stopping::request(self.endpoint(), grace)).transpose()?,
                };
            }
        }
        Ok(())
    }

    fn read_shutdown_messages(&mut self) {
        let Phase::Stopping { deadline, answer: Some(answer) } = &mut self.phase else { return };
        if answer.read() && deadline.extend(now()) {
            log::note("the guest is still ending: it has more time");
            // If the file cannot be written, msb-stop does not see the extension, gives up earlier and kills the VM.
            let _ = rundir::write(self.held.path(), rundir::EXTENDED, &deadline.for_msb_stop());
        }
    }

    /// Reaps the processes of the VM that have ended, and decides what their end means.
    fn check_processes(&mut self) -> anyhow::Result<Option<Ended>> {
        let vmm = self.config.vmm.name();
        let ended = self.processes.reap(vmm);
        self.vmm_stderr.drain();
        self.helper_stderr.drain();
        self.console.drain();
        while let Some((name, status)) = self.processes.take_lost() {
            // They end by themselves when the gate or the VMM has ended.
            if ended.is_none() {
                self.lose(name, status);
            }
        }
        let Some((name, status)) = ended else { return Ok(None) };
        let end = format!("{name} {}", processes::describe(status));
        if name != vmm {
            self.lost.get_or_insert((now() + HELPER_LOSS_GRACE, end));
            return Ok(None);
        }
        let message = if processes::was_killed(status) { end.clone() } else { self.vmm_stderr.quoted_after(&end) };
        // QEMU exits by itself when the guest resets (-no-reboot). The VMM of a halted guest was killed by check_time.
        let verdict = self.console.verdict();
        let by_guest = status.success() || verdict == Some(Verdict::Halted);
        let ended = match (&mut self.phase, verdict) {
            (Phase::Booting(_), Some(Verdict::Panicked)) => return Err(self.failed(PANICKED)),
            (Phase::Booting(_), Some(Verdict::Faulted)) => return Err(KernelFault::error(self.failed(PANICKED))),
            (_, Some(Verdict::Panicked | Verdict::Faulted)) => Ended::by(Cause::Panic),
            (Phase::Booting(_), _) if by_guest => return Err(self.early_end(&end)),
            (Phase::Booting(_), _) => return Err(self.failed(&message)),
            (Phase::Stopping { answer: Some(answer), .. }, _) if by_guest => answer.end(),
            (_, Some(Verdict::Rebooting)) if by_guest => Ended::by(Cause::Reboot),
            _ if by_guest => Ended::by(Cause::PowerOff),
            _ => Ended::failure(message),
        };
        Ok(Some(ended))
    }

    /// Acts on the deadlines that have passed.
    fn check_time(&mut self) -> anyhow::Result<Option<Ended>> {
        let now = now();
        if self.halt.as_mut().is_some_and(|halt| halt.until <= now && !halt.spare()) {
            // The end of the process is the next event.
            self.halt = None;
            log::note("the guest has halted, but its VMM still runs: killing it");
            self.processes.kill(self.config.vmm.name());
        }
        let late = if let Phase::Booting(limit) = &mut self.phase { limit.passed() } else { None };
        match (&self.phase, &self.lost) {
            (Phase::Booting(_), Some((until, message))) if *until <= now => Err(self.failed(message)),
            (_, Some((until, message))) if *until <= now => Ok(Some(Ended::failure(message.clone()))),
            (Phase::Stopping { deadline, .. }, _) if deadline.until <= now => {
                let grace = deadline.grace.as_secs_f32();
                let writing = if deadline.is_extended() { " (it was still writing data back)" } else { "" };
                Ok(Some(Ended::forced(format!("did not stop within {grace} s, killed{writing}"))))
            }
            _ => late.map_or(Ok(None), |message| Err(self.failed(&message))),
        }
    }

    /// The error for a VM that did not come up, with the last lines of its console.
    fn failed(&self, message: &str) -> anyhow::Error {
        anyhow!(self.console.quoted_after(format!("the VM did not come up: {message}")))
    }

    /// The error for a guest that has ended before its agent reported. With an empty console, the message has what else is known.
    fn early_end(&self, end: &str) -> anyhow::Error {
        let message = "the guest ended before its agent had reported";
        if !self.console.is_empty() {
            return self.failed(message);
        }
        let (after, end) = (now().saturating_sub(self.spawned).as_secs_f32(), self.vmm_stderr.quoted_after(end));
        let message = format!("{message}, without a message, {after:.1} s after its start ({end})");
        KernelFault::error(self.failed(&message))
    }
}

impl Drop for Watch<'_, '_> {
    fn drop(&mut self) {
        // The processes use the machine's disks, so they end first.
        self.processes.kill_all();
        self.recording = None;
        self.console.drain();
    }
}
