//! The commands of a run, as data: what is started is also what `--print` prints.

use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal};
use std::path::Path;

use msb::store::{home, layout, snapshot_name};

use crate::args::Args;

/// A command: the tool, and its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// The tool.
    pub tool: &'static str,
    /// Its arguments.
    pub args: Vec<OsString>,
}

impl Stage {
    /// A tool with arguments.
    pub fn new<A: Into<OsString>>(tool: &'static str, args: impl IntoIterator<Item = A>) -> Self {
        Self { tool, args: args.into_iter().map(Into::into).collect() }
    }

    /// The command with further arguments.
    #[must_use]
    pub fn and(mut self, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }
}

/// How the snapshot that a run starts from is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saving {
    /// The snapshot's name.
    pub name: String,
    /// The name of the VM that is saved, and of the sandbox with its upper.
    pub vm: String,
    /// The flags of msb-boot that the snapshot depends on.
    pub flags: Vec<OsString>,
    /// Boots the VM that is saved.
    pub boot: Stage,
    /// Saves and ends it.
    pub save: Stage,
}

impl Saving {
    fn new(args: &Args, name: &str) -> io::Result<Self> {
        let vm = snapshot_name::fresh_vm()?;
        // These are the same for all snapshots.
        let is_fixed = |flag: &str| ["vmm", "root", "channel"].contains(&flag);
        let flags = args.boot.of(|flag| !is_fixed(flag) && !is_of_run(args, flag));
        let boot = Stage::new("msb-boot", ["-q"].into_iter().filter(|_| args.quiet)).and(["--name", &vm, "--rm"]);
        let boot = boot.and(["--vmm", "qemu", "--root", "block", "--channel", "serial"]);
        let boot = boot.and(args.boot.of(|flag| flag == "timeout")).and(&flags);
        let save = Stage::new("msb-snapshot", ["-q", "--stop", &vm]);
        Ok(Self { name: name.to_owned(), vm, flags, boot, save })
    }
}

/// Whether a flag of msb-boot is for the VM that starts from a snapshot, and not for the one that is saved.
fn is_of_run(args: &Args, flag: &str) -> bool {
    match flag {
        "hostname" | "workdir" | "user" | "stop-signal" | "publish" | "end-with" | "kernel-log" | "timeout"
        | "new-machine-id" | "cpu-quota" | "cpu-weight" | "io-weight" | "memory-max" | "pids-max" => true,
        // An init gets these when it starts, so they are saved with it.
        "env" | "env-file" | "entrypoint" => !args.boot.has("init"),
        _ => false,
    }
}

/// The commands of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The VM's name.
    pub name: String,
    /// Checks whether the VM can boot, and removes one that has the name.
    pub replace: Option<[Stage; 2]>,
    /// Makes the snapshot that the VM starts from, with --snapshot.
    pub saving: Option<Saving>,
    /// Adds the image to a record.
    pub pull: Stage,
    /// Adds an upper.
    pub patch: Option<Stage>,
    /// Boots the VM.
    pub boot: Stage,
    /// Runs the command, or starts it with `-d`. None: there is only the init.
    pub exec: Option<Stage>,
    /// Ends the VM.
    pub end: Stage,
    /// Ends the VM after a command that succeeded, with --commit.
    pub commit: Option<Stage>,
}

impl Plan {
    /// The commands for a command line. A new VM's name is made up here, so that what it leaves can be found whatever happens.
    ///
    /// # Errors
    /// That there is no name for the state directory, or no random number.
    pub fn new(args: &Args) -> io::Result<Self> {
        let quiet = ["-q"].into_iter().filter(|_| args.quiet);
        let name = match &args.name {
            Some(name) => name.clone(),
            None => format!("vm-{}", layout::fresh_id()?),
        };
        let keeps_disk = args.name.is_some() && !args.rm;
        // The image's entrypoint is the init in many images that have one, so it does not precede the command then.
        let follows_entrypoint = !args.boot.has("init") || args.boot.has("entrypoint");
        let (of_boot, of_exec) =
            if follows_entrypoint { (&args.command[..], &[][..]) } else { (&[][..], &args.command[..]) };
        let mut pull = Stage::new("msb-pull", quiet.clone()).and(["--policy", &args.pull.name()]);
        pull = pull.and(args.pulling.args()).and([&args.image]);
        let saving = args.snapshot.as_ref().map(|name| Saving::new(args, name)).transpose()?;
        // A commit changes the upper of the VM, so that is always one of its own.
        let ops = args.patch.as_deref().or(args.commit.then_some(Path::new("/dev/null")));
        let patch = match ops {
            Some(ops) => {
                // With --snapshot the upper belongs to the VM that is saved.
                let upper = layout::sandbox(&home::home()?, saving.as_ref().map_or(&name, |saving| &saving.vm));
                let stage = Stage::new("msb-patch", quiet.clone()).and([OsStr::new("-f"), ops.as_os_str()]);
                let start = if args.commit { "--copy" } else { "--fresh" };
                Some(stage.and([OsStr::new("--upper"), upper.as_os_str()]).and([start]))
            }
            None => None,
        };
        let mut boot = Stage::new("msb-boot", quiet.clone()).and(["--name", &name]);
        boot = boot.and(["--rm"].into_iter().filter(|_| !keeps_disk));
        boot = boot.and(["--root", "block"].into_iter().filter(|_| args.commit && !args.boot.has("root")));
        boot = boot.and(["--entrypoint", ""].into_iter().filter(|_| args.commit && !args.boot.has("entrypoint")));
        // With --snapshot the other flags are in the snapshot's record.
        let flags = args.boot.of(|flag| saving.is_none() || is_of_run(args, flag));
        boot = boot.and(flags).and(separated(of_boot));
        let mut exec = Stage::new("msb-exec", [&name]).and(args.exec.args());
        // Detached from its terminal, the command would end with the VM.
        let is_on_terminal = args.exec.has("tty") || (!args.detach && io::stdin().is_terminal());
        exec = exec.and(["--detach-keys", ""].into_iter().filter(|_| is_on_terminal));
        // A VM that is left running needs no command.
        exec = exec.and(["-d", "--optional"].into_iter().filter(|_| args.detach)).and(separated(of_exec));
        let has_exec = !args.detach || !args.command.is_empty() || !args.boot.has("init");
        let mut check = Stage::new("msb-boot", ["-n"]);
        check.args.extend(boot.args.iter().cloned());
        let end = if keeps_disk { Stage::new("msb-stop", ["-q"]) } else { Stage::new("msb-rm", ["-f"]) };
        Ok(Self {
            replace: args.replace.then(|| [check, Stage::new("msb-rm", ["-f", &name])]),
            saving,
            pull,
            patch,
            boot,
            exec: has_exec.then_some(exec),
            end: end.and([&name]),
            commit: args.commit.then(|| Stage::new("msb-stop", ["-q", "--commit", &name])),
            name,
        })
    }

    /// The commands as text for a shell. With `args.detach` the VM is left running, and with `args.rm` too until its command has ended.
    pub fn script(&self, args: &Args) -> String {
        let pull = match &self.replace {
            Some([check, remove]) => {
                let record = "printf '%s\\n' \"$record\"";
                format!(
                    "{{\n    record=$({}) && {record} | {} && {} && {record}\n}}",
                    line(&self.pull),
                    line(check),
                    line(remove)
                )
            }
            None => line(&self.pull),
        };
        let stages = [Some(pull), self.patch.as_ref().map(line), Some(line(&self.boot))];
        let pipe: Vec<_> = stages.into_iter().flatten().collect();
        let end = format!("{}{}", line(&self.end), if self.end.tool == "msb-stop" { " > /dev/null" } else { "" });
        // A chosen name may be that of another VM, so a run that fails to boot ends nothing.
        let failed = if args.name.is_some() { String::new() } else { format!("    {end}\n") };
        let run = match (&self.exec, args.detach) {
            (None, _) => format!("echo {}", self.name),
            (Some(exec), true) => self.detached(exec, &end, args.rm),
            (Some(exec), false) => format!("{}\n    status=$?\n    {end}\n    (exit $status)", line(exec)),
        };
        format!("if {} > /dev/null\nthen\n    {run}\nelse\n{failed}    (exit 125)\nfi\n", pipe.join(" |\n    "))
    }

    /// Waits for a detached command, whose ID follows.
    pub fn wait(&self) -> Stage {
        Stage::new("msb-exec", [self.name.as_str(), "--wait"])
    }

    /// The commands of a run that leaves the VM running. The ID of the command is the first member of what msb-exec prints, which is
    /// nothing if there is no command.
    fn detached(&self, exec: &Stage, end: &str, removes: bool) -> String {
        let (name, exec) = (&self.name, line(exec));
        let remove = if removes {
            format!(
                "\n        id=${{started#*:}} id=${{id%%,*}}\
                 \n        [ -z \"$id\" ] || {{ {} \"$id\"; {end}; }} < /dev/null > /dev/null 2>&1 &",
                line(&self.wait())
            )
        } else {
            String::new()
        };
        format!(
            "if started=$({exec})\n    then\n        echo {name}{remove}\
             \n    else\n        status=$?\n        {end}\n        (exit $status)\n    fi"
        )
    }
}

/// Arguments that are not flags.
fn separated(words: &[OsString]) -> impl Iterator<Item = &OsStr> {
    [OsStr::new("--")].into_iter().filter(|_| !words.is_empty()).chain(words.iter().map(OsString::as_os_str))
}

fn line(stage: &Stage) -> String {
    let words: Vec<_> = [stage.tool.to_owned()].into_iter().chain(stage.args.iter().map(|arg| quoted(arg))).collect();
    words.join(" ")
}

/// A word for a POSIX shell.
fn quoted(word: &OsStr) -> String {
    let text = word.to_string_lossy();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=,@+%".contains(&byte);
    if !text.is_empty() && text.bytes().all(is_plain) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn a_script_ends_a_vm_of_a_chosen_name_only_after_its_boot() {
        let plan = Plan {
            name: "web".into(),
            replace: Some([Stage::new("msb-boot", ["-n"]), Stage::new("msb-rm", ["-f", "web"])]),
            saving: None,
            pull: Stage::new("msb-pull", ["alpine"]),
            patch: None,
            boot: Stage::new("msb-boot", ["--name", "web"]),
            exec: Some(Stage::new("msb-exec", ["web"])),
            end: Stage::new("msb-rm", ["-f", "web"]),
            commit: None,
        };
        let boot = "if {\n    record=$(msb-pull alpine) && printf '%s\\n' \"$record\" | msb-boot -n && msb-rm -f web && \
                    printf '%s\\n' \"$record\"\n} |\n    msb-boot --name web > /dev/null\nthen\n";
        let run = "    msb-exec web\n    status=$?\n    msb-rm -f web\n    (exit $status)\nelse\n";
        let args = |flags: &[&str]| Args::try_parse_from([&["msb-run"], flags, &["alpine"]].concat()).unwrap();
        assert_eq!(plan.script(&args(&["--name", "web"])), format!("{boot}{run}    (exit 125)\nfi\n"));
        assert_eq!(plan.script(&args(&[])), format!("{boot}{run}    msb-rm -f web\n    (exit 125)\nfi\n"));
        let detached = |removes: &str| {
            let failed = "    else\n        status=$?\n        msb-rm -f web\n        (exit $status)\n    fi\n";
            let run = "    if started=$(msb-exec web)\n    then\n        echo web\n";
            format!("{boot}{run}{removes}{failed}else\n    (exit 125)\nfi\n")
        };
        assert_eq!(plan.script(&args(&["--name", "web", "-d"])), detached(""));
        let removes = "        id=${started#*:} id=${id%%,*}\n        [ -z \"$id\" ] || { msb-exec web --wait \"$id\"; msb-rm -f web; } \
                       < /dev/null > /dev/null 2>&1 &\n";
        assert_eq!(plan.script(&args(&["--name", "web", "-d", "--rm"])), detached(removes));
        let without = Plan { exec: None, ..plan };
        let expected = format!("{boot}    echo web\nelse\n    (exit 125)\nfi\n");
        assert_eq!(without.script(&args(&["--name", "web", "-d"])), expected);
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        for (word, expected) in
            [("a", "a"), ("", "''"), ("a b", "'a b'"), ("it's", r"'it'\''s'"), ("$(x)", "'$(x)'"), ("K=v", "K=v")]
        {
            assert_eq!(quoted(OsStr::new(word)), expected);
        }
    }
}
