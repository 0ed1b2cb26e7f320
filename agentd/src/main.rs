//! agentd: PID 1 of the microVM. It mounts, enters the real root, says that it is ready, runs commands for the host,
//! and ends the machine. Or it hands PID 1 to the image's init, and does the rest beside that.
//!
//! The order matters: signals are blocked before a thread exists, the host hears "ready" only when connections are
//! taken, and from [`enter`] on this process may not die while it is PID 1, for the machine would with it.

mod cgroup;
mod child;
mod clock;
mod commit;
mod early;
mod etc;
mod execs;
mod group;
mod init;
mod link;
mod listen;
mod output;
mod path;
mod reap;
mod run;
mod session;
mod sessions;
mod shutdown;
mod sys;
mod sysctl;
mod thrash;
mod user;
mod visit;

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use msb::vm::boot::{self, Boot, Defaults};
use msb::wire::exec::Ready;
use nix::sys::signal::{SigSet, Signal};
use nix::time::{ClockId, clock_gettime};
use rustix::process::{Resource, Rlimit};

use early::Made;
use execs::Execs;
use init::{find, handoff};
use reap::Reaper;
use sessions::Sessions;
use shutdown::Wish;
use sys::Side;

/// How long sessions may take to send what is left of an output, and the exit, when the machine ends.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// The largest boot.json, in bytes.
const MAX_BOOT_JSON: u64 = 8 << 20;

/// What sessions share.
#[derive(Debug)]
struct Agent {
    reaper: Reaper,
    sessions: Sessions,
    execs: Execs,
    defaults: Defaults,
    /// The number of the signal that the image wants its init to be stopped by.
    init_stop_signal: i32,
    shutdown: Wish,
}

impl AsRef<Sessions> for Agent {
    fn as_ref(&self) -> &Sessions {
        &self.sessions
    }
}

/// A step of the start that failed.
#[derive(Debug)]
struct Error {
    step: String,
    why: io::Error,
}

impl Error {
    fn step(step: String, why: io::Error) -> Self {
        Self { step, why }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.why)
    }
}

/// Says a line on the console, which is the host's kernel.log.
fn say(words: &str) {
    let _ = io::stderr().write_all(format!("agentd: {words}\n").as_bytes());
}

fn uptime_ms() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// How long this boot takes already, if the host wrote boot.json at `asked` and waits for `limit`. The guest's own clock starts late: an
/// emulated kernel may need seconds before it has one. It counts alone if the file is from before a restart, or the time is wrong.
fn since_power_on(asked: Option<SystemTime>, limit: Duration) -> Duration {
    let uptime = Duration::from_millis(uptime_ms());
    asked
        .and_then(|asked| asked.elapsed().ok())
        .filter(|since| *since < limit)
        .map_or(uptime, |since| since.max(uptime))
}

fn main() -> ExitCode {
    if std::process::id() != 1 {
        println!("agentd {} is PID 1 of a microVM; msb-boot starts it there", env!("CARGO_PKG_VERSION"));
        return if std::env::args().nth(1).as_deref() == Some("--version") { 0.into() } else { 2.into() };
    }
    let kernel_ms = uptime_ms();
    let asked = std::fs::metadata(Path::new("/").join(boot::FILE_NAME)).and_then(|file| file.modified()).ok();
    // The kernel has named this process after the file in the boot share.
    let _ = rustix::thread::set_name(c"agentd");
    sys::keep_memory_small();
    let signals = handled_signals();
    // Every thread inherits the mask; children get an empty one.
    let _ = SigSet::all().thread_block();
    let mut made = Made::new();
    let (agent, wanted) = match enter(&mut made) {
        Ok(entered) => entered,
        Err(error) => give_up(&error.to_string(), kernel_ms, &made),
    };
    let ready = Ready { kernel_ms, agent_ms: uptime_ms(), made: made.points.clone(), ..Ready::default() };
    match wanted {
        None => be_pid_1(agent, &signals, ready, made),
        Some(wanted) => hand_over(agent, &wanted, &signals, ready, &made, asked),
    }
}

/// Stays PID 1 to the end.
fn be_pid_1(agent: Agent, signals: &SigSet, ready: Ready, made: Made) -> ! {
    let agent = Arc::new(agent);
    if let Err(error) = listen::start(&agent) {
        give_up(&error.to_string(), ready.kernel_ms, &made);
    }
    tell_host(ready);
    let cause = match shutdown::await_cause(&agent, signals) {
        Ok(cause) => cause,
        Err(error) => give_up(&format!("signalfd: {error}"), 0, &made),
    };
    say(&format!("shutting down ({})", cause.signal));
    let reaping = Arc::clone(&agent);
    // This thread goes on reaping, so that the other one sees when nobody is left.
    thread::spawn(move || -> ! { shutdown::as_pid_1(&reaping, &made, cause.next) });
    loop {
        agent.reaper.run(signals);
    }
}

/// Hands PID 1 to the image's init, and goes on beside it.
fn hand_over(
    agent: Agent,
    wanted: &boot::Init,
    signals: &SigSet,
    ready: Ready,
    made: &Made,
    asked: Option<SystemTime>,
) -> ! {
    let kernel_ms = ready.kernel_ms;
    let init = match find::find(wanted, Path::new("/")) {
        Ok(init) => init,
        Err(words) => give_up(&words, kernel_ms, made),
    };
    let env = handoff::environment(&agent.defaults, &wanted.env, init.is_systemd());
    let sign = handoff::sign_of(&init, &env).unwrap_or_else(|error| {
        say(&format!("listen to systemd: {error}"));
        None
    });
    handoff::prepare(&init);
    let gate = match handoff::fork() {
        Ok((Side::Child, gate)) => gate,
        Ok((Side::Parent, gate)) => {
            let error = handoff::become_init(gate, &init, env);
            give_up(&format!("the agent ended before the init was started: {error}"), kernel_ms, made)
        }
        Err(error) => give_up(&format!("start the agent beside the init: {error}"), kernel_ms, made),
    };
    let _ = rustix::process::setsid();
    let agent = Arc::new(agent);
    if let Err(error) = listen::start(&agent) {
        give_up(&error.to_string(), kernel_ms, made);
    }
    let start = Duration::from_millis(wanted.limit_ms);
    let since_power_on = since_power_on(asked, start * 2);
    let limits = handoff::Limits {
        // It is half of what the host waits for. After a slow boot there is less, or the host would not hear why the init is late.
        start: start.min((start * 3 / 2).saturating_sub(since_power_on)),
        usable: wanted.usable_ms.map(|limit| Duration::from_millis(limit).saturating_sub(since_power_on)),
    };
    let started = match handoff::start(gate, &limits, sign) {
        Ok(started) => started,
        Err(words) => give_up(&format!("init {:?}: {words}", init.path), kernel_ms, made),
    };
    let init = Some(init.path.to_string_lossy().into_owned());
    tell_host(Ready { init, init_ms: Some(started.since_ms), warning: started.warning, ..ready });
    shutdown::beside_init(&agent, made, signals)
}

fn tell_host(ready: Ready) {
    if let Err(error) = listen::report(Ready { sent_ms: Some(uptime_ms()), ..ready }) {
        say(&format!("tell the host: {error}"));
    }
}

/// Everything up to where connections are taken, without a thread. The init, where there is to be one.
fn enter(made: &mut Made) -> Result<(Agent, Option<boot::Init>), Error> {
    early::mount_kernel_file_systems()?;
    let boot = read_boot_json()?;
    if boot.commit {
        let since = Instant::now();
        commit::run(&boot)?;
        shutdown::end_machine(made, since, None, shutdown::Next::Off);
    }
    shutdown::show_kernel_messages(shutdown::REBOOTS);
    early::enter_root(&boot, made)?;
    let files = Rlimit { current: Some(sys::OPEN_FILES), maximum: Some(sys::OPEN_FILES) };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, files) {
        say(&format!("raise the number of open files: {error}"));
    }
    nix::unistd::sethostname(&boot.hostname).map_err(|error| Error::step("set the hostname".into(), error.into()))?;
    sysctl::open_to_commands();
    if let Err(error) = sys::bring_loopback_up() {
        say(&format!("bring lo up: {error}"));
    }
    let agent = Agent {
        reaper: Reaper::default(),
        sessions: Sessions::default(),
        execs: Execs::default(),
        defaults: boot.defaults,
        init_stop_signal: boot.init.as_ref().map_or(Signal::SIGTERM as i32, |init| init.stop_signal),
        shutdown: Wish::default(),
    };
    Ok((agent, boot.init))
}

fn read_boot_json() -> Result<Boot, Error> {
    let failed = |why: io::Error| Error::step(format!("read {}", boot::FILE_NAME), why);
    let mut text = Vec::new();
    let file = File::open(format!("/{}", boot::FILE_NAME)).map_err(failed)?;
    file.take(MAX_BOOT_JSON).read_to_end(&mut text).map_err(failed)?;
    let boot: Boot = serde_json::from_slice(&text).map_err(|error| failed(error.into()))?;
    if boot.version != boot::VERSION {
        let words =
            format!("version {} is not {} (use msb-boot and agentd of one release)", boot.version, boot::VERSION);
        return Err(failed(io::Error::other(words)));
    }
    Ok(boot)
}

/// Says why there will be no agent, on the console and to the host, and ends the machine.
fn give_up(words: &str, kernel_ms: u64, made: &Made) -> ! {
    let since = Instant::now();
    say(words);
    let made_points = made.points.clone();
    tell_host(Ready {
        error: Some(words.to_owned()),
        kernel_ms,
        agent_ms: uptime_ms(),
        made: made_points,
        ..Ready::default()
    });
    shutdown::end_machine(made, since, None, shutdown::Next::Off)
}

/// SIGCHLD, and what people and programs send to PID 1 to end a machine.
fn handled_signals() -> SigSet {
    [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGPWR]
        .into_iter()
        .collect()
}
