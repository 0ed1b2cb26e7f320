//! agentd: PID 1 of the microVM. It mounts file systems, enters the real root, reports that it is ready, runs commands for the host, and
//! ends the machine. With an init, it hands PID 1 to that and does the rest beside it.
//!
//! The order matters: signals are blocked before there is a second thread, and the host is told "ready" only when connections are
//! accepted. From [`enter`] on, this process must not exit while it is PID 1, because that would end the machine.

mod agent;
mod barrier;
mod cgroup;
mod channel;
mod child;
mod cleanup;
mod clock;
mod commit;
mod console;
mod container;
mod copy;
mod early;
mod environment;
mod error;
mod etc;
mod execs;
mod group;
mod init;
mod limited;
mod link;
mod listen;
mod netlink;
mod network;
mod not_started;
mod output;
mod path;
mod process;
mod program;
mod reap;
mod recorder;
mod resume;
mod run;
mod session;
mod sessions;
mod shutdown;
mod shutdown_request;
mod stamp;
mod streams;
mod sys;
mod sysctl;
mod thrash;
mod user;
mod visit;
mod volume;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, RwLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use msb::vm::boot::{self, Boot};
use msb::wire::exec::Ready;
use nix::sys::signal::{SigSet, Signal};
use rustix::process::{Resource, Rlimit};

use agent::Agent;
use cleanup::Cleanup;
use clock::uptime_ms;
use error::Error;
use execs::Execs;
use init::{find, handoff, systemd};
use reap::Reaper;
use recorder::Recorder;
use sessions::Sessions;
use shutdown_request::ShutdownRequest;
use sys::Side;

/// The largest boot.json, in bytes.
const MAX_BOOT_JSON: u64 = 8 << 20;

/// How long this boot has taken, if the host requested it at `requested_at` and waits for `limit`. The guest's own clock starts late: an
/// emulated kernel may need seconds before it has one. The uptime counts alone if the request is older than `limit`, or the wall clock is
/// wrong.
fn time_since_request(requested_at: SystemTime, limit: Duration) -> Duration {
    let uptime = Duration::from_millis(uptime_ms());
    requested_at.elapsed().ok().filter(|since| *since < limit).map_or(uptime, |since| since.max(uptime))
}

fn main() -> ExitCode {
    if std::process::id() != 1 {
        println!("agentd {} is PID 1 of a microVM; msb-boot starts it there", env!("CARGO_PKG_VERSION"));
        return if std::env::args().nth(1).as_deref() == Some("--version") { 0.into() } else { 2.into() };
    }
    let kernel_ms = uptime_ms();
    sys::limit_malloc();
    let signals = handled_signals();
    // Threads inherit the mask. Commands get an empty one.
    let _ = SigSet::all().thread_block();
    let mut cleanup = Cleanup::default();
    let (agent, requested, network, requested_at) = match enter(&mut cleanup) {
        Ok(entered) => entered,
        Err(error) => give_up(&error.to_string(), kernel_ms, &cleanup),
    };
    let ready = Ready { kernel_ms, agent_ms: uptime_ms(), made: cleanup.mount_points.clone(), ..Ready::default() };
    match requested {
        None => be_pid_1(agent, &signals, ready, cleanup),
        Some(requested) => hand_over(agent, &requested, network.as_ref(), &signals, ready, &cleanup, requested_at),
    }
}

/// Stays PID 1 until the end of the machine.
fn be_pid_1(agent: Agent, signals: &SigSet, ready: Ready, cleanup: Cleanup) -> ! {
    let agent = Arc::new(agent);
    if let Err(error) = listen::start(&agent) {
        give_up(&error.to_string(), ready.kernel_ms, &cleanup);
    }
    tell_host(ready);
    let cause = match shutdown::await_cause(&agent, signals) {
        Ok(cause) => cause,
        Err(error) => give_up(&format!("signalfd: {error}"), 0, &cleanup),
    };
    console::log(&format!("shutting down ({})", cause.signal));
    let reaping = Arc::clone(&agent);
    // This thread continues to reap, and the other one waits until no process is left.
    thread::spawn(move || -> ! { shutdown::as_pid_1(&reaping, &cleanup, cause.next) });
    loop {
        agent.reaper.run(signals);
    }
}

/// Hands PID 1 to the image's init, and continues beside it.
fn hand_over(
    agent: Agent,
    requested: &boot::Init,
    network: Option<&boot::Network>,
    signals: &SigSet,
    ready: Ready,
    cleanup: &Cleanup,
    requested_at: SystemTime,
) -> ! {
    let kernel_ms = ready.kernel_ms;
    let init = match find::find(requested, Path::new("/")) {
        Ok(init) => init,
        Err(message) => give_up(&message, kernel_ms, cleanup),
    };
    let env = handoff::environment(&agent.defaults(), &requested.env, init.is_systemd());
    let probe = handoff::probe_before_start(&init, &env).unwrap_or_else(|error| {
        console::log(&format!("listen to systemd: {error}"));
        None
    });
    if init.is_systemd() {
        systemd::configure(network);
    }
    let gate = match handoff::fork() {
        Ok((Side::Child, gate)) => gate,
        Ok((Side::Parent, gate)) => {
            let error = handoff::become_init(gate, &init, env);
            give_up(&format!("the agent ended before the init was started: {error}"), kernel_ms, cleanup)
        }
        Err(error) => give_up(&format!("start the agent beside the init: {error}"), kernel_ms, cleanup),
    };
    let _ = rustix::process::setsid();
    let agent = Arc::new(agent);
    if let Err(error) = listen::start(&agent) {
        give_up(&error.to_string(), kernel_ms, cleanup);
    }
    let start = Duration::from_millis(requested.limit_ms);
    let since_request = time_since_request(requested_at, start * 2);
    let limits = handoff::Limits {
        // The host waits for twice this time. After a slow boot there is less, so that the host still learns why the init is late.
        start: start.min((start * 3 / 2).saturating_sub(since_request)),
        usable: requested.usable_ms.map(|limit| Duration::from_millis(limit).saturating_sub(since_request)),
    };
    let started = match handoff::start(gate, &limits, probe) {
        Ok(started) => started,
        Err(message) => give_up(&format!("init {:?}: {message}", init.path), kernel_ms, cleanup),
    };
    let init = Some(init.path.to_string_lossy().into_owned());
    tell_host(Ready { init, init_ms: Some(started.since_ms), warning: started.warning, ..ready });
    shutdown::beside_init(&agent, cleanup, signals)
}

fn tell_host(ready: Ready) {
    if let Err(error) = listen::report(Ready { sent_ms: Some(uptime_ms()), ..ready }) {
        console::log(&format!("tell the host: {error}"));
    }
}

/// Everything before connections are accepted, without a second thread. Returns the init that is requested and the network, if there
/// are, and when the boot was requested.
fn enter(cleanup: &mut Cleanup) -> Result<(Agent, Option<boot::Init>, Option<boot::Network>, SystemTime), Error> {
    early::leave_rootfs()?;
    early::mount_kernel_file_systems()?;
    let boot = read_boot_json()?;
    if boot.port {
        channel::use_port().map_err(|why| Error::step("open the port to the host".into(), why))?;
    }
    if boot.commit {
        let since = Instant::now();
        commit::run(&boot)?;
        shutdown::end_machine(cleanup, since, None, shutdown::Next::Off);
    }
    shutdown::show_kernel_messages(shutdown::NOTICES);
    early::enter_root(&boot, cleanup)?;
    let files = Rlimit { current: Some(sys::OPEN_FILES), maximum: Some(sys::OPEN_FILES) };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, files) {
        console::log(&format!("raise the number of open files: {error}"));
    }
    nix::unistd::sethostname(&boot.hostname).map_err(|error| Error::step("set the hostname".into(), error.into()))?;
    sysctl::set_for_commands();
    if let Err(error) = network::bring_loopback_up() {
        console::log(&format!("bring lo up: {error}"));
    }
    for card in boot.network.iter().flat_map(|network| &network.cards) {
        network::configure(card).map_err(|error| Error::step("configure the network".into(), error))?;
    }
    let agent = Agent {
        guest_root: Path::new(if boot.bare { boot::NEW_ROOT } else { "/" }),
        reaper: Reaper::default(),
        sessions: Sessions::default(),
        execs: Execs::default(),
        recorder: Recorder::default(),
        defaults: RwLock::new(Arc::new(boot.defaults)),
        init_stop_signal: boot.init.as_ref().map_or(Signal::SIGTERM as i32, |init| init.stop_signal),
        shutdown: ShutdownRequest::default(),
    };
    Ok((agent, boot.init, boot.network, SystemTime::UNIX_EPOCH + Duration::from_millis(boot.requested_at_ms)))
}

/// Reads boot.json, and removes it: it may hold secrets, and the initramfs stays in memory.
fn read_boot_json() -> Result<Boot, Error> {
    let failed = |why: io::Error| Error::step(format!("read {}", boot::FILE_NAME), why);
    let mut text = Vec::new();
    let path = Path::new("/").join(boot::FILE_NAME);
    let file = File::open(&path).map_err(failed)?;
    std::fs::remove_file(&path).map_err(failed)?;
    file.take(MAX_BOOT_JSON).read_to_end(&mut text).map_err(failed)?;
    let boot: Boot = serde_json::from_slice(&text).map_err(|error| failed(error.into()))?;
    if boot.version != boot::VERSION {
        let message =
            format!("version {} is not {} (use msb-boot and agentd of one release)", boot.version, boot::VERSION);
        return Err(failed(io::Error::other(message)));
    }
    Ok(boot)
}

/// Reports why the agent cannot start, on the console and to the host, and ends the machine.
fn give_up(message: &str, kernel_ms: u64, cleanup: &Cleanup) -> ! {
    let since = Instant::now();
    console::log(message);
    tell_host(Ready {
        error: Some(message.to_owned()),
        kernel_ms,
        agent_ms: uptime_ms(),
        made: cleanup.mount_points.clone(),
        ..Ready::default()
    });
    shutdown::end_machine(cleanup, since, None, shutdown::Next::Off)
}

/// SIGCHLD, and the signals with which programs ask PID 1 to end the machine.
fn handled_signals() -> SigSet {
    [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGPWR]
        .into_iter()
        .collect()
}
