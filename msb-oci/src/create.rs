//! `create`: everything but the user's program. The VM boots here, where callers wait patiently, so that every error is this command's.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Stdio};

use anyhow::{Context, bail};
use msb::store::publish;
use oci_spec::runtime::Spec;
use serde_json::json;

use crate::args::{Create, Global};
use crate::cgroup::{Cgroup, Origin};
use crate::command::{self, Invocation, What};
use crate::delete;
use crate::hooks;
use crate::namespaces::{self, Set};
use crate::net::{self, Cards, Plug};
use crate::plan::{self, Plan};
use crate::pod::{self, Pod};
use crate::process::Identity;
use crate::state::{self, Container, Locked, StateDir, Status};
use crate::{console, inherited, log, role, stand_in, time, tool, tree};

/// The largest config.json, in bytes.
const MAX_CONFIG: u64 = 64 << 20;
/// How long the VM's agent may take to answer, in seconds. Callers give up after four minutes.
const BOOT_SECONDS: &str = "180";

/// Creates a container. Returns the process that stands for it.
///
/// # Errors
/// Why there is none; nothing of it is left then.
pub(crate) fn create(global: &Global, args: &Create) -> anyhow::Result<Child> {
    // Some callers leak copies of their pipes, whose ends they wait for.
    msb::inherited::close(&[]).context("descriptors")?;
    if args.preserve_fds > 0 {
        bail!("--preserve-fds {}: descriptors cannot be passed to another kernel (use 0)", args.preserve_fds);
    }
    let bundle = args.bundle.canonicalize().with_context(|| format!("bundle {:?}", args.bundle))?;
    let mut plan = load(&bundle)?;
    check(&plan, args)?;
    if global.debug {
        plan.warnings.iter().for_each(|warning| log::write(global, "warning", warning));
    }
    let root = global.root()?;
    add_sysctls_of_pod(&mut plan, &root);
    let is_pod_vm = plan.is_sandbox && plan.pod_vm().unwrap_or(global.pod_vm);
    if is_pod_vm {
        plan.size_for_pod();
    }
    let pod = pod::find(&root, &plan)?;
    let cgroup = Cgroup::new(plan.cgroup.as_deref(), &args.id, global.systemd_cgroup)?;
    let locked = StateDir::of(&root, &args.id)?.make()?;
    let mut container = Container {
        id: args.id.clone(),
        bundle,
        rootfs: plan.rootfs.clone(),
        created: time::now(),
        annotations: plan.annotations.clone(),
        is_sandbox: plan.is_sandbox,
        is_pod_vm,
        member: None,
        vm: state::vm_name(&root, &args.id),
        stand_in: None,
        cgroup,
        overhead_mib: plan.machine.overhead_mib,
        exec_id: None,
        command: None,
        memory: plan.limits.memory,
        network: plan.namespaces.network.clone(),
        plugged: Vec::new(),
        sysctl: plan.sysctl.clone(),
        poststart: Vec::new(),
        poststop: Vec::new(),
    };
    let origin = Origin::of_self();
    let built = build(global, args, &plan, pod.as_ref(), &locked, &mut container);
    // "run" goes on, and a cgroup with a process in it cannot be removed.
    origin.enter();
    if built.is_err() {
        let _ = delete::remove(&locked.dir, &container);
    }
    built
}

fn load(bundle: &Path) -> anyhow::Result<Plan> {
    let path = bundle.join("config.json");
    let mut text = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(MAX_CONFIG).read_to_end(&mut text))
        .with_context(|| format!("{path:?}"))?;
    let spec: Spec = serde_json::from_slice(&text).with_context(|| format!("{path:?}"))?;
    plan::plan(&spec, bundle).map_err(|refusals| {
        anyhow::anyhow!("{}", refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
    })
}

/// Engines write the kernel parameters of a pod into the config of its sandbox, which has no kernel of its own.
fn add_sysctls_of_pod(plan: &mut Plan, root: &Path) {
    let sandbox = plan.sandbox().and_then(|id| StateDir::of(root, id).ok()?.load().ok());
    for (name, value) in sandbox.into_iter().flat_map(|sandbox| sandbox.sysctl) {
        plan.sysctl.entry(name).or_insert(value);
    }
}

/// Checks what the plan does not know, before anything is made.
fn check(plan: &Plan, args: &Create) -> anyhow::Result<()> {
    let has_terminal = plan.process.terminal().unwrap_or(false);
    match (&args.console_socket, has_terminal) {
        (None, true) => bail!("process.terminal: a terminal needs a --console-socket"),
        (Some(_), false) => bail!("--console-socket: the config asks for no terminal (leave it out)"),
        _ => Ok(()),
    }
}

fn build(
    global: &Global,
    args: &Create,
    plan: &Plan,
    pod: Option<&Pod>,
    locked: &Locked,
    container: &mut Container,
) -> anyhow::Result<Child> {
    let dir = &locked.dir;
    dir.save(container)?;
    let (alive, is_alive) = inherited::pipe()?;
    let (ended, end) = inherited::pipe()?;
    let scope = container.cgroup.make_scope(&plan.limits)?;
    // After a kill, delete removes what this process makes in the scope.
    dir.save(container)?;
    container.cgroup.enter_with(&plan.limits)?;
    drop(scope);
    let namespaces = namespaces::make(&plan.namespaces, plan.hostname.as_deref())?;
    let stand_in = namespaces.run(|| {
        tree::build(plan, &dir.tree())?;
        start_stand_in(dir, container, &is_alive, &ended)
    })?;
    drop((is_alive, ended));
    container.stand_in = Some(Identity::of(stand_in.id().cast_signed())?);
    dir.save(container)?;
    run_hooks(plan, dir, container, &namespaces)?;
    nix::unistd::mkfifo(&dir.start_fifo(), nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR)
        .context("FIFO")?;
    if container.has_own_vm() && pod.is_none() {
        namespaces.run(|| {
            if container.is_pod_vm {
                tree::share(&dir.tree())?;
            }
            let place = dir.temporary_mount();
            let plug = if plan.has_macvtap() { Plug::Macvtap(&place) } else { Plug::Tap };
            let cards = net::plug(plug, |plugged| {
                container.plugged = plugged.to_vec();
                dir.save(container)
            })?;
            boot(global, plan, dir, container, &cards, &alive)
        })?;
    }
    if let (Some(pod), Some(stand_in)) = (pod, &container.stand_in) {
        let member = pod.member(stand_in);
        container.member = Some(member.clone());
        dir.save(container)?;
        let copy = namespaces.run(|| tree::copy(&dir.tree()))?;
        pod.attach(&member, &copy)?;
    }
    if plan.is_sandbox {
        // Without this message the stand-in ends with this process.
        File::from(end).write_all(stand_in::CREATED).context("process of the container")?;
    } else {
        namespaces.run(|| start_command(args, plan, dir, container, &end))?;
        drop(end);
    }
    if let Some(file) = &args.pid_file {
        publish::write_volatile_file(file, stand_in.id().to_string().as_bytes(), 0o644)
            .with_context(|| format!("PID file {file:?}"))?;
    }
    Ok(stand_in)
}

fn start_stand_in(dir: &StateDir, container: &Container, is_alive: &OwnedFd, ended: &OwnedFd) -> anyhow::Result<Child> {
    let (ready, is_ready) = inherited::pipe()?;
    let description = stand_in::Description {
        tree: dir.tree().join(tree::ROOT),
        bundle: container.bundle.clone(),
        ready: inherited::number(&is_ready),
        is_sandbox: container.is_sandbox,
        has_vm: container.is_pod_vm,
        ended: inherited::number(ended),
        alive: inherited::number(is_alive),
    };
    let mut command = role::in_role(stand_in::ROLE, &description)?;
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = inherited::with(&[&is_ready, is_alive, ended], || {
        namespaces::spawn_in_pid_namespace(&mut command).context("process of the container")
    })?;
    drop(is_ready);
    let mut answer = Vec::new();
    File::from(ready).take(64 << 10).read_to_end(&mut answer)?;
    if answer != stand_in::READY {
        bail!("process of the container: {}", String::from_utf8_lossy(&answer));
    }
    Ok(child)
}

/// Hooks run on the host, but for those of the container, and are told of a container that is being created.
fn run_hooks(plan: &Plan, dir: &StateDir, container: &mut Container, namespaces: &Set) -> anyhow::Result<()> {
    let Some(all) = &plan.hooks else { return Ok(()) };
    container.poststart = all.poststart().clone().unwrap_or_default();
    container.poststop = all.poststop().clone().unwrap_or_default();
    dir.save(container)?;
    let document = dir.document(container, Status::Creating);
    for (name, list) in [("prestart", hooks::prestart(all)), ("createRuntime", all.create_runtime())] {
        hooks::run(name, list.as_deref().unwrap_or_default(), &document)?;
    }
    let in_container = all.create_container().as_deref().unwrap_or_default();
    namespaces.run(|| hooks::run("createContainer", in_container, &document))
}

/// Boots the VM. Its record stays with the state.
fn boot(
    global: &Global,
    plan: &Plan,
    dir: &StateDir,
    container: &Container,
    cards: &Cards,
    alive: &OwnedFd,
) -> anyhow::Result<()> {
    let tree = dir.tree();
    let record = json!({
        "msb": msb::record::VERSION,
        "rootfs": {"kind": "dir", "lower": [tree]},
        "mount": {"path": tree, "pid": std::process::id(), "fstype": "oci"},
    });
    let mut command = tool::command("msb-boot")?;
    command.args(["--root", "share", "--bare", "--timeout", BOOT_SECONDS, "--name", &container.vm]);
    // The VM ends with the process that stands for the container, whatever ends that.
    command.arg("--end-with").arg(format!("fd:{}", inherited::number(alive)));
    if container.is_pod_vm {
        command.arg("--follow-mounts");
    }
    let hostname = plan.hostname.clone().or_else(own_hostname).filter(|name| msb::vm::name::check(name).is_ok());
    if let Some(hostname) = hostname {
        command.arg("--hostname").arg(hostname);
    }
    if let Some(memory) = plan.machine.memory_mib {
        command.arg("--memory").arg(memory.to_string());
    }
    if let Some(cpus) = plan.machine.cpus {
        // The quota of the cgroup is no limit here: a part of a processor becomes a whole one.
        let usable = rustix::thread::sched_getaffinity(None).map_or(cpus, |set| u64::from(set.count()));
        command.arg("--cpus").arg(cpus.min(usable).to_string());
    }
    let flag =
        global.vmm.and_then(|vmm| clap::ValueEnum::to_possible_value(&vmm).map(|value| value.get_name().to_owned()));
    if let Some(vmm) = plan.machine.vmm.clone().or(flag) {
        command.arg("--vmm").arg(vmm);
    }
    match cards.flags.as_slice() {
        [] => {
            command.args(["--network", "none"]);
        }
        cards => {
            command.args(cards.iter().flat_map(|card| ["--network", card]));
        }
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let fds: Vec<&OwnedFd> = cards.fds.iter().chain([alive]).collect();
    let mut child = inherited::with(&fds, || command.spawn().context("msb-boot"))?;
    let mut stdin = child.stdin.take().context("msb-boot")?;
    let _ = stdin.write_all(format!("{record}\n").as_bytes());
    drop(stdin);
    let output = child.wait_with_output().context("msb-boot")?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("{}", tool::message("msb-boot", &error, &output.status.to_string()));
    }
    publish::write_volatile_file(&dir.record(), &output.stdout, 0o600).context("record")
}

/// The name in the UTS namespace, which is that of a pod for its containers.
fn own_hostname() -> Option<String> {
    nix::unistd::gethostname().ok()?.into_string().ok()
}

/// Makes the guest prepare the command up to its execve(2), with the caller's streams or a terminal.
fn start_command(
    args: &Create,
    plan: &Plan,
    dir: &StateDir,
    container: &mut Container,
    end: &OwnedFd,
) -> anyhow::Result<()> {
    let config = dir.guest_config();
    let place = container.member.as_ref().map(|member| format!("/{}", member.tree_name)).unwrap_or_default();
    publish::write_volatile_file(&config, &serde_json::to_vec(&plan.guest_config(&place, tree::ROOT))?, 0o600)
        .with_context(|| format!("{config:?}"))?;
    let terminal = args.console_socket.as_deref().map(|socket| console::open(socket, &plan.process)).transpose()?;
    // Open for reading and writing, it has no end-of-file before the container is started.
    let fifo = File::options().read(true).write(true).open(dir.start_fifo()).context("FIFO")?;
    let running = command::start(Invocation {
        record: &dir.record_for(container),
        what: What::Container(&config),
        terminal,
        is_detached: true,
        cgroup: None,
        start: Some(&fifo.into()),
        end: Some(end),
    })?;
    container.exec_id = Some(running.id);
    if container.member.is_some() {
        container.command = Identity::of(running.child.id().cast_signed()).ok();
    }
    dir.save(container)
}
