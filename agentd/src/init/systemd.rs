//! systemd: its configuration for this boot, its readiness message, and its units.

use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use msb::record::script;
use msb::vm::boot::{self, Card, Network};
use msb::wire::exec::DEFAULT_PATH;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{console, sysctl};

/// The value of `$NOTIFY_SOCKET` (`sd_notify(3)`) for systemd: an abstract socket, so no file is left over.
pub const NOTIFY_SOCKET: &str = "@msb-init";

/// The drop-in that sets the variables of services. systemd gives them a PATH of its own otherwise.
const DROP_IN: &str = "/run/systemd/system.conf.d/50-msb.conf";
/// Where each card's configuration for systemd-networkd is, which would drop what it does not have in a file. The names sort before the
/// image's.
const NETWORK: &str = "/run/systemd/network/00-msb";
/// The name servers for systemd-resolved.
const RESOLVED: &str = "/run/systemd/resolved.conf.d/50-msb.conf";
/// A unit that is masked. Without udev, systemd would wait a minute and a half for the console's device, and nobody can log in there.
const CONSOLE_GETTY: &str = "/run/systemd/system/serial-getty@hvc0.service";

/// How long systemctl may take.
const SYSTEMCTL_TIMEOUT: Duration = Duration::from_secs(5);
/// The most units that are named in a message, and the largest list of them, in bytes.
const MAX_UNITS: usize = 5;
const MAX_LIST: usize = 64 << 10;

/// Writes systemd's configuration for this boot. An error is only logged.
pub fn configure(network: Option<&Network>) {
    let _ = fs::create_dir_all("/run/systemd/system");
    let _ = symlink("/dev/null", CONSOLE_GETTY);
    let drop_in = format!("[Manager]\nDefaultEnvironment=PATH={}:{DEFAULT_PATH}\n", script::GUEST_DIR);
    write(DROP_IN, &drop_in);
    if let Some(network) = network {
        for (number, card) in network.cards.iter().enumerate() {
            write(&format!("{NETWORK}-{number}.network"), &network_file(card, network));
        }
        if !network.nameservers.is_empty() {
            write(RESOLVED, &format!("[Resolve]\n{}", resolver_lines(network)));
        }
    }
    if let Err(error) = sysctl::override_pid_max() {
        console::log(&format!("kernel.pid_max: {error}"));
    }
}

fn write(file: &str, content: &str) {
    let dir = Path::new(file).parent().unwrap_or(Path::new("/run"));
    if let Err(error) = fs::create_dir_all(dir).and_then(|()| fs::write(file, content)) {
        console::log(&format!("{file}: {error}"));
    }
}

/// systemd.network(5): what the agent has configured already.
fn network_file(card: &Card, network: &Network) -> String {
    let mac = boot::format_mac(card.mac);
    let mut lines = format!("[Match]\nMACAddress={mac}\n[Link]\nMTUBytes={}\n[Network]\n", card.mtu);
    lines.push_str("LinkLocalAddressing=no\nIPv6AcceptRA=no\n");
    for address in &card.addresses {
        lines.push_str(&format!("Address={address}\n"));
    }
    lines.push_str(&resolver_lines(network));
    for route in &card.routes {
        lines.push_str(&format!("[Route]\nDestination={}\nGateway={}\nGatewayOnLink=yes\n", route.to, route.via));
    }
    lines
}

fn resolver_lines(network: &Network) -> String {
    let mut lines: String = network.nameservers.iter().map(|address| format!("DNS={address}\n")).collect();
    if !network.search.is_empty() {
        lines.push_str(&format!("Domains={}\n", network.search.join(" ")));
    }
    lines
}

/// Binds the socket for the readiness message.
///
/// # Errors
/// Those of `bind(2)`.
pub fn bind_notify_socket() -> io::Result<UnixDatagram> {
    let name = NOTIFY_SOCKET.strip_prefix('@').unwrap_or(NOTIFY_SOCKET);
    let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Reads the messages that have arrived. systemd sends READY=1 when the jobs of its first transaction, the default target, are done, even
/// if some failed (systemd(1), "NOTIFY_SOCKET").
///
/// # Errors
/// A message if it has not sent READY=1.
pub fn is_ready(socket: &UnixDatagram) -> Result<(), String> {
    let mut message = [0; 4096];
    while let Ok(length) = socket.recv(&mut message) {
        if message[..length].split(|&byte| byte == b'\n').any(|line| line == b"READY=1") {
            return Ok(());
        }
    }
    Err("systemd's jobs at boot are not done".into())
}

/// The jobs that are not done. `None`: systemctl cannot tell.
pub fn pending_jobs() -> Option<String> {
    systemctl(&["list-jobs"], 1).ok().filter(|units| !units.is_empty()).map(|units| some_of(&units))
}

/// The units that failed. `None`: there are none.
pub fn failed_units() -> Option<String> {
    match systemctl(&["list-units", "--state=failed", "--full"], 0) {
        Ok(units) => (!units.is_empty()).then(|| some_of(&units)),
        Err(error) => {
            console::log(&format!("systemctl: {error}"));
            None
        }
    }
}

/// The units in a list of systemctl: the field at `place` of each line.
fn systemctl(arguments: &[&str], place: usize) -> io::Result<Vec<String>> {
    let program = ["/usr/bin/systemctl", "/bin/systemctl"].map(PathBuf::from).into_iter().find(|path| path.exists());
    let Some(program) = program else { return Ok(Vec::new()) };
    let mut child = Command::new(program)
        .args(arguments)
        .args(["--plain", "--no-legend", "--no-pager"])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let list = read_list(&mut child);
    // This has no effect if it has ended.
    let _ = child.kill();
    child.wait()?;
    let text = String::from_utf8_lossy(&list?).into_owned();
    Ok(text.lines().filter_map(|line| line.split_whitespace().nth(place)).map(str::to_owned).collect())
}

/// Reads what a program prints until it ends, up to a time and a size.
fn read_list(child: &mut Child) -> io::Result<Vec<u8>> {
    let Some(mut stdout) = child.stdout.take() else { return Ok(Vec::new()) };
    let deadline = Instant::now() + SYSTEMCTL_TIMEOUT;
    let mut list = Vec::new();
    let mut buffer = [0; 4096];
    while list.len() < MAX_LIST {
        let left =
            PollTimeout::try_from(deadline.saturating_duration_since(Instant::now())).unwrap_or(PollTimeout::ZERO);
        if poll(&mut [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)], left)? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match stdout.read(&mut buffer)? {
            0 => break,
            length => list.extend_from_slice(&buffer[..length]),
        }
    }
    Ok(list)
}

/// The first units, and how many more there are.
fn some_of(units: &[String]) -> String {
    let more = units.len().saturating_sub(MAX_UNITS);
    let mut names: Vec<&str> = units.iter().take(MAX_UNITS).map(String::as_str).collect();
    let rest = format!("{more} more");
    if more > 0 {
        names.push(&rest);
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networkd_gets_what_the_agent_has_configured() {
        let network: Network =
            serde_json::from_value(serde_json::json!({"cards": [{"mac": [0x52, 0x55, 0, 0, 0, 2], "mtu": 16384,
            "addresses": [{"address": "10.0.2.15", "prefix": 24}],
            "routes": [{"to": {"address": "0.0.0.0", "prefix": 0}, "via": "10.0.2.2"}]}],
            "nameservers": ["10.0.2.3"], "search": ["a.test", "b.test"], "hosts": []}))
            .unwrap();
        let expected = "[Match]\nMACAddress=52:55:00:00:00:02\n[Link]\nMTUBytes=16384\n[Network]\nLinkLocalAddressing=no\n\
             IPv6AcceptRA=no\nAddress=10.0.2.15/24\nDNS=10.0.2.3\nDomains=a.test b.test\n[Route]\nDestination=0.0.0.0/0\n\
             Gateway=10.0.2.2\nGatewayOnLink=yes\n";
        assert_eq!(network_file(&network.cards[0], &network), expected);
    }

    #[test]
    fn systemd_is_usable_when_it_has_said_so() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        assert!(is_ready(&ours).is_err());
        theirs.send(b"STATUS=x READY=1\nREADY=10").unwrap();
        assert!(is_ready(&ours).is_err());
        theirs.send(b"X=1").unwrap();
        theirs.send(b"READY=1\nSTATUS=Startup finished").unwrap();
        assert_eq!(is_ready(&ours), Ok(()));
    }

    #[test]
    fn of_many_units_some_are_named() {
        let units = |count: usize| (0..count).map(|number| format!("u{number}")).collect::<Vec<_>>();
        assert_eq!(some_of(&units(1)), "u0");
        assert_eq!(some_of(&units(5)), "u0, u1, u2, u3, u4");
        assert_eq!(some_of(&units(7)), "u0, u1, u2, u3, u4, 2 more");
    }
}
