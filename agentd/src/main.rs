//! agentd: PID 1 of the microVM. It mounts, enters the real root, says that it is ready, runs commands for the host,
//! and ends the machine.
//!
//! The order matters: signals are blocked before a thread exists, the host hears "ready" only when connections are
//! taken, and from [`enter`] on this process may not die, for the kernel would panic.

mod child;
mod early;
mod listen;
mod reap;
mod session;
mod sessions;
mod shutdown;
mod sys;
mod user;

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use msb::boot::{self, Boot, Defaults};
use msb::wire::exec::Ready;
use nix::sys::signal::{SigSet, Signal};
use nix::time::{ClockId, clock_gettime};
use rustix::process::{Resource, Rlimit};

use early::Made;
use reap::Reaper;
use sessions::Sessions;
use shutdown::Wish;

/// How long sessions may take to send what is left of an output, and the exit, when the machine ends.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// The largest boot.json, in bytes.
const MAX_BOOT_JSON: u64 = 8 << 20;

/// What sessions share.
#[derive(Debug)]
struct Agent {
    reaper: Reaper,
    sessions: Sessions,
    defaults: Defaults,
    shutdown: Wish,
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

fn main() -> ExitCode {
    if std::process::id() != 1 {
        println!("agentd {} is PID 1 of a microVM; msb-boot starts it there", env!("CARGO_PKG_VERSION"));
        return if std::env::args().nth(1).as_deref() == Some("--version") { 0.into() } else { 2.into() };
    }
    let kernel_ms = uptime_ms();
    let signals = handled_signals();
    // Every thread inherits the mask; children get an empty one.
    let _ = SigSet::all().thread_block();
    let mut made = Made::new();
    let agent = match enter(&mut made) {
        Ok(agent) => agent,
        Err(error) => give_up(&error.to_string(), kernel_ms, &made),
    };
    let ready = Ready { kernel_ms, agent_ms: uptime_ms(), ..Ready::default() };
    if let Err(error) = listen::report(ready) {
        say(&format!("tell the host: {error}"));
    }
    let cause = agent.reaper.run(&signals);
    say(&format!("shutting down ({cause})"));
    let reaping = Arc::clone(&agent);
    // This thread goes on reaping, so that the other one sees when nobody is left.
    thread::spawn(move || -> ! {
        shutdown::end_processes(&reaping.reaper, reaping.shutdown.grace());
        // Callers hear how their commands ended.
        reaping.sessions.wait_until_none(LAST_WORDS);
        shutdown::end_machine(&made)
    });
    loop {
        agent.reaper.run(&signals);
    }
}

/// Everything up to "ready".
fn enter(made: &mut Made) -> Result<Arc<Agent>, Error> {
    early::mount_kernel_file_systems()?;
    let boot = read_boot_json()?;
    *made = early::enter_root(&boot)?;
    let files = Rlimit { current: Some(sys::OPEN_FILES), maximum: Some(sys::OPEN_FILES) };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, files) {
        say(&format!("raise the number of open files: {error}"));
    }
    nix::unistd::sethostname(&boot.hostname).map_err(|error| Error::step("set the hostname".into(), error.into()))?;
    if let Err(error) = sys::bring_loopback_up() {
        say(&format!("bring lo up: {error}"));
    }
    let agent = Arc::new(Agent {
        reaper: Reaper::default(),
        sessions: Sessions::default(),
        defaults: boot.defaults,
        shutdown: Wish::default(),
    });
    listen::start(&agent)?;
    Ok(agent)
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
    say(words);
    let ready = Ready { error: Some(words.to_owned()), kernel_ms, agent_ms: uptime_ms(), init: None };
    if let Err(error) = listen::report(ready) {
        say(&format!("tell the host: {error}"));
    }
    shutdown::end_machine(made)
}

/// SIGCHLD, and what people and programs send to PID 1 to end a machine.
fn handled_signals() -> SigSet {
    [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGPWR]
        .into_iter()
        .collect()
}
