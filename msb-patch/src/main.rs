//! msb-patch: writes patch operations into the upper directory of a record.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, IsTerminal, Read};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use msb::record::{Record, Rootfs};
use msb::store::layout;
use msb::store::sandbox::{self, Hold, Owner};
use msb::store::staging::{Published, Staging};
use msb::tool::interrupt::{self, DeferExit};
use msb::{
    record::path, store::home, store::layers, tool::cli, tool::exit, tool::start, tool::user_namespace, vm::supervisor,
};
use msb_patch::args::Args;
use msb_patch::op::{Op, Script};
use msb_patch::page::PAGE;
use msb_patch::path_state::PathState;
use msb_patch::report::Report;
use msb_patch::scripts::Scripts;
use msb_patch::stream::{self, StreamItem};
use msb_patch::target::{Done, Settings, Target};
use msb_patch::user::User;

fn main() -> ExitCode {
    start::signals();
    let args: Args = cli::parse(&PAGE, exit::USAGE);
    exit::report_of_store("msb-patch", exit::FAILED, run(&args).map(|()| 0))
}

fn run(args: &Args) -> anyhow::Result<()> {
    let epoch = source_date_epoch()?;
    msb::overlay::raise_open_files();
    args.output.check()?;
    let ops_on_stdin = args.file.as_deref().is_none_or(|file| file == Path::new("-"));
    let is_op = |value: &[u8]| ops_on_stdin && stream::is_operation(value);
    let (mut record, first_op) = args.record.take_before("msb-patch", is_op)?;
    // A dry run reads only, also what a VM has.
    if !args.dry_run {
        supervisor::require_ended(&mut record)?;
    }
    let upper_named = args.upper.as_deref().map(path::absolute).transpose().context("--upper")?;
    let home = home::home()?;
    let lower = match record.rootfs()? {
        Rootfs::Disk { .. } => None,
        Rootfs::Dir { lower, .. } | Rootfs::Layers { lower, .. } => Some(lower.clone()),
    };
    let user = match (record.rootfs()?, user_namespace::enter()) {
        (Rootfs::Disk { .. }, _) => User::of_this_process(),
        (Rootfs::Dir { lower, .. }, Err(user_namespace::Error::Missing(_)))
            if lower.iter().all(|dir| User::of_this_process().owns(dir)) =>
        {
            User::of_this_process()
        }
        (_, entered) => entered.map(|()| User::of_this_process())?,
    };
    let src_dir = args.directory.clone().unwrap_or_default();
    if let Some(dir) = &args.directory
        && !std::fs::metadata(dir).with_context(|| format!("directory {dir:?}"))?.is_dir()
    {
        bail!("directory {dir:?}: not a directory");
    }
    let ops = stream::read(open_ops(args.file.as_deref(), first_op.unwrap_or_default())?);
    let mut report = Report::open(args.dry_run, args.report.as_deref())?;

    let _guard = interrupt::Guard::new("msb-patch")?;
    let begun = DeferExit::new();
    // A dry run makes its upper in the store too, and removes it.
    user_namespace::keep_map()?;
    let _layers = layers::hold(lower.as_deref().unwrap_or_default())?;
    // A patch uses the upper that it continues, so gc keeps that for another day.
    let _sandbox = match &record.upper {
        Some(upper) if !args.dry_run => {
            Hold::take(&upper.dir, |_| ()).with_context(|| format!("upper {:?}", upper.dir))?
        }
        _ => None,
    };
    let (mut target, staging) = match &lower {
        Some(lower) => {
            // A dry run from an empty upper does not look at the one that exists.
            let is_needed = !(args.dry_run && args.fresh);
            let (upper, named) = (record.upper.as_ref(), upper_named.as_deref());
            let (upper, named) = (upper.filter(|_| is_needed), named.filter(|_| is_needed));
            let (staging, layers) =
                Staging::begin(&home, lower, upper, named, args.start()).map_err(|error| user.explain(error.into()))?;
            if let Some(draft) = staging.draft() {
                let marked = sandbox::make_held(&draft.dir).and_then(|()| Owner::of(&record).create(&draft.dir));
                marked.inspect_err(|_| staging.discard()).with_context(|| format!("{:?}", draft.dir))?;
            }
            let settings = Settings { dry_run: args.dry_run, is_reported: report.is_wanted(), epoch, user, src_dir };
            (Some(Target::new(layers, settings)), Some(staging))
        }
        None => (None, None),
    };
    // With --upper, all that this run makes is in that directory.
    let sandboxes = upper_named.as_ref().map_or_else(|| layout::sandboxes(&home), |upper| upper.join("scripts"));
    let scripts = Scripts::of_record(sandboxes, std::mem::take(&mut record.scripts), args.fresh);
    let mut run = Run { record: &record, target: target.as_mut(), staging: staging.as_ref(), scripts };
    let done = run.all(ops, args.dry_run, &mut report);
    let scripts = run.scripts;
    let changed = match done {
        Ok(changed) if !args.dry_run => changed,
        other => {
            scripts.discard();
            if let Some(staging) = &staging {
                staging.discard();
            }
            report.close()?;
            return other.map(drop);
        }
    };
    // Scripts are published first: without the upper, nothing refers to them. The work directory is locked until both are published.
    let scripts = scripts.publish().inspect_err(|_| {
        if let Some(staging) = &staging {
            staging.discard();
        }
    })?;
    let mut upper = match staging.map(|staging| staging.publish(changed || args.fresh)).transpose() {
        Ok(upper) => upper,
        Err(error) => {
            scripts.discard();
            return Err(error.into());
        }
    };
    if let Some(Published { upper, unsynced, .. }) = &upper {
        record.upper = Some(upper.clone());
        if args.copy {
            // It shows the other upper.
            record.mount = None;
        }
        if let Some(error) = unsynced {
            exit::warn(
                "msb-patch",
                &format!("upper {:?}: not synced, so a crash now may restore the old one: {error}", upper.dir),
            );
        }
    }
    record.scripts = scripts.files();
    let closed = report.close();
    // The next stage of a pipe starts as soon as it has read the record, and needs the upper unlocked. Printing there fails only if
    // the reader is gone, and then the upper stays.
    let is_kept = closed.is_ok() && args.output.is_stream();
    if is_kept {
        drop(upper.take().map(Published::keep));
        drop(target.take());
    }
    match closed.and_then(|()| Ok(args.output.put(&record, || summary(&record))?)) {
        Err(error) if !is_kept => {
            // First the scripts: with --upper they are in the directory that goes with the upper.
            scripts.discard();
            if let Some(upper) = upper {
                upper.take_back().context("upper: cannot restore the old one")?;
            }
            Err(error)
        }
        shown => {
            drop(upper.map(Published::keep));
            drop(target);
            begun.finish();
            shown
        }
    }
}

/// The message for a terminal, instead of the record.
fn summary(record: &Record) -> String {
    match &record.upper {
        Some(upper) => format!("{}: patched", upper.dir.display()),
        None => "patched".into(),
    }
}

/// What the operations change.
struct Run<'a> {
    record: &'a Record,
    /// `None`: the root is a disk.
    target: Option<&'a mut Target>,
    staging: Option<&'a Staging>,
    scripts: Scripts,
}

impl Run<'_> {
    /// Runs all operations. True: the root has changed. A dry run continues after an error, so that all errors are reported.
    fn all(
        &mut self,
        ops: impl Iterator<Item = StreamItem>,
        dry_run: bool,
        report: &mut Report,
    ) -> anyhow::Result<bool> {
        let (mut changed, mut count, mut failed) = (false, 0, 0);
        for StreamItem { n, line, op } in ops {
            interrupt::check()?;
            count = n;
            let done = match &op {
                Ok(op) => self.one(n, op).with_context(|| {
                    let (name, subject) = op.subject();
                    format!("op {n}: {name} {subject:?}")
                }),
                Err(error) => Err(anyhow!("op {n}, line {line}: {error}")),
            };
            let error = match (&op, done) {
                (Ok(op), Ok(done)) => {
                    // A script is not a file of the root.
                    changed |= done.changed && !matches!(op, Op::Script(_));
                    report.done(n, op, &done)?;
                    continue;
                }
                (_, Ok(_)) => continue,
                (_, Err(error)) => error,
            };
            report.failed(n, line, op.as_ref().ok(), &format!("{error:#}"))?;
            if !dry_run {
                return Err(error);
            }
            failed += 1;
        }
        if failed > 0 {
            bail!("{failed} of {count} operations would fail");
        }
        if let Some(target) = &mut self.target {
            target.finish()?;
        }
        Ok(changed)
    }

    /// Runs one operation.
    fn one(&mut self, n: usize, op: &Op) -> anyhow::Result<Done> {
        if let Op::Script(script) = op {
            return self.script(n, script);
        }
        let Some(target) = &mut self.target else {
            let Some(Rootfs::Disk { format, .. }) = &self.record.rootfs else {
                unreachable!("other roots have a target")
            };
            bail!("patches need a layered or directory root, and this is a {format} disk");
        };
        op.run(target)
    }

    fn script(&mut self, n: usize, script: &Script) -> anyhow::Result<Done> {
        let Script { name, content, .. } = script;
        let before = PathState::script(name, self.scripts.has(name));
        let changed = self.scripts.add(self.staging, script)?;
        if changed && content.starts_with("#!") && content.split('\n').next().is_some_and(|line| line.ends_with('\r')) {
            let message = format!(
                "op {n}: script {name:?}: line 1 ends with a carriage return, so no interpreter will be before"
            );
            exit::warn("msb-patch", &message);
        }
        let bytes = if changed { content.len() as u64 } else { 0 };
        Ok(Done { changed, bytes, before: Some(before) })
    }
}

/// Opens the stream of operations. `first` was read from stdin while looking for a record.
fn open_ops(file: Option<&Path>, first: Vec<u8>) -> anyhow::Result<Box<dyn BufRead>> {
    match file {
        Some(path) if path != Path::new("-") => {
            let file = File::open(path).with_context(|| format!("{path:?}"))?;
            Ok(Box::new(BufReader::new(file)))
        }
        _ if io::stdin().is_terminal() => {
            bail!("no operations: stdin is a terminal (pipe them in, or name a file with -f)")
        }
        _ => Ok(Box::new(Cursor::new(first).chain(BufReader::new(interrupt::Stdin)))),
    }
}

/// The modification time of new files for reproducible results (reproducible-builds.org's convention).
fn source_date_epoch() -> anyhow::Result<Option<i64>> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Err(_) => Ok(None),
        Ok(text) => match text.parse() {
            Ok(seconds) => Ok(Some(seconds)),
            Err(_) => bail!("SOURCE_DATE_EPOCH {text:?}: not a number of seconds"),
        },
    }
}
