//! msb-patch: writes patch operations into the upper directory of a record.

mod apply;
mod args;
mod op;
mod plan;
mod scripts;
mod staging;

use std::fs::File;
use std::io::{self, BufReader, IsTerminal, Read};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use apply::Target;
use args::Args;
use msb::record::{Record, Rootfs};
use msb::{cli, exit, line};
use op::Op;
use plan::Plan;
use scripts::Scripts;
use staging::{Begun, Staging};

fn main() -> ExitCode {
    let args: Args = cli::parse(exit::USAGE);
    exit::report("msb-patch", exit::FAILED, run(&args).map(|()| 0))
}

fn run(args: &Args) -> anyhow::Result<()> {
    let epoch = source_date_epoch()?;
    msb::overlay::raise_open_files();
    let mut record = Record::take(args.record.as_deref())?;
    let upper_named = args.upper.as_deref().map(std::path::absolute).transpose()?;
    let lower = match record.rootfs()? {
        Rootfs::Layers { lower, .. } | Rootfs::Dir { lower, .. } => Some(lower.clone()),
        Rootfs::Disk { .. } => None,
    };
    if lower.is_some() && !rustix::process::geteuid().is_root() {
        bail!("root is needed: an upper has owners, devices and trusted xattrs (run it by sudo)");
    }
    let mut ops = op::read(open_ops(args.file.as_deref())?).enumerate();

    let (target, staging) = match &lower {
        Some(lower) => {
            let begun = Staging::begin(lower, record.upper.as_ref(), upper_named.as_deref())?;
            let Begun { staging, root, writer, borrowed } = begun;
            (Some(Target { root, writer, borrowed, dry_run: args.dry_run, epoch }), Some(staging))
        }
        None => (None, None),
    };
    let mut scripts = Scripts::default();
    let done = ops.try_for_each(|(place, op)| {
        let n = place + 1;
        let op = op.map_err(|error| anyhow!("op {n}: {error}"))?;
        let (name, subject) = op.subject();
        carry_out(&record, n, &op, target.as_ref(), staging.as_ref(), &mut scripts, args.dry_run)
            .with_context(|| format!("op {n}: {name} {subject:?}"))
    });
    if let (Err(_), _) | (_, true) = (&done, args.dry_run) {
        if let Some(staging) = &staging {
            staging.discard();
        }
        scripts.discard();
        return done;
    }
    // The work directory's lock is held until all is in place.
    if let Some(staging) = staging {
        record.upper = Some(staging.publish()?);
    }
    drop(target);
    record.scripts.extend(scripts.publish()?);
    line::put(&record)
}

fn carry_out(
    record: &Record,
    n: usize,
    op: &Op,
    target: Option<&Target>,
    staging: Option<&Staging>,
    scripts: &mut Scripts,
    dry_run: bool,
) -> anyhow::Result<()> {
    if let Op::Script { name, content } = op {
        msb::script::check_name(name).map_err(|why| anyhow!(why))?;
        if record.scripts.contains_key(name) {
            bail!("there is a script of that name already");
        }
        if content.starts_with("#!") && content.split('\n').next().is_some_and(|line| line.ends_with('\r')) {
            let words =
                format!("op {n}: script {name:?}: line 1 ends with a carriage return, so no interpreter will be found");
            exit::warn("msb-patch", &words);
        }
        scripts.add(staging, name, content)?;
        return if dry_run { line::put(&Plan::Script.line(n, op)) } else { Ok(()) };
    }
    let Some(target) = target else {
        let Some(Rootfs::Disk { format, .. }) = &record.rootfs else { unreachable!("other roots have a target") };
        bail!("patches need a layered or directory root, and this is a {format} disk");
    };
    let plan = plan::plan(&target.root, op)?;
    if dry_run {
        line::put(&plan.line(n, op))?;
    }
    target.apply(op, plan)
}

/// Where the operations come from.
fn open_ops(file: Option<&Path>) -> anyhow::Result<Box<dyn Read>> {
    match file {
        Some(path) if path != Path::new("-") => {
            let file = File::open(path).with_context(|| format!("{path:?}"))?;
            Ok(Box::new(BufReader::new(file)))
        }
        _ if io::stdin().is_terminal() => {
            bail!("no operations: stdin is a terminal (pipe them in, or name a file with -f)")
        }
        _ => Ok(Box::new(BufReader::new(io::stdin()))),
    }
}

/// The age of what is made, where the caller wants the same bytes each time (reproducible-builds.org's convention).
fn source_date_epoch() -> anyhow::Result<Option<i64>> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Err(_) => Ok(None),
        Ok(text) => match text.parse() {
            Ok(seconds) => Ok(Some(seconds)),
            Err(_) => bail!("SOURCE_DATE_EPOCH {text:?}: not a number of seconds"),
        },
    }
}
