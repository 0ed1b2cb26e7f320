//! Creates a sandbox: msb-pull | msb-patch | msb-boot, with the records in between.

use std::ffi::OsString;
use std::future::Future;

use msb::record::{Boot, Record};
use serde_json::Value;
use tokio::sync::oneshot;

use crate::error::Error;
use crate::keeper::Keeper;
use crate::sandbox::Sandbox;
use crate::tool::{self, Answer, Running};

/// What a sandbox is made of.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The image, for msb-pull.
    pub(crate) image: OsString,
    /// Further arguments of msb-pull.
    pub(crate) pull_args: Vec<OsString>,
    /// The operations, for msb-patch.
    pub(crate) ops: Vec<Value>,
    /// What msb-boot is asked for.
    pub(crate) boot: Boot,
    /// Whether an existing disk of the name is replaced.
    pub(crate) fresh: bool,
    /// Whether the VM ends with the handle.
    pub(crate) ephemeral: bool,
}

/// A VM that is up. It is killed when this is dropped.
struct Booted {
    record: Record,
    warnings: Vec<String>,
    /// What it alone has in the store.
    made: Vec<String>,
    keeper: Keeper,
}

/// Runs the pipe in a task of its own. If this future is dropped, the task undoes what it has done.
///
/// # Errors
/// See [`Error`].
pub(crate) async fn create(plan: Plan) -> Result<Sandbox, Error> {
    let (mut sender, receiver) = oneshot::channel();
    let ephemeral = plan.ephemeral;
    tokio::spawn(async move {
        let result = run(&plan, sender.closed()).await;
        if let Some(result) = result {
            // Nobody receives it any more: dropping it ends the VM.
            let _ = sender.send(result);
        }
    });
    let booted: Booted = receiver.await.map_err(|_| Error::ShuttingDown)??;
    let name = booted.record.vm.as_ref().map(|vm| vm.name.clone());
    let name = name.ok_or_else(|| not_understood("msb-boot", "its record has no VM"))?;
    let record = to_json(&booted.record)?;
    let keeper = if ephemeral {
        Some(booted.keeper)
    } else {
        booted.keeper.dismiss();
        None
    };
    Ok(Sandbox::new(name, record, booted.warnings, booted.made, keeper))
}

/// Boots the VM; `None` if it was cancelled.
async fn run(plan: &Plan, cancelled: impl Future<Output = ()>) -> Option<Result<Booted, Error>> {
    let mut cancelled = std::pin::pin!(cancelled);
    // What these two leave half-made is not visible, and the next run of the tool removes it.
    let patched = tokio::select! {
        result = patched(plan) => result,
        () = &mut cancelled => return None,
    };
    let (record, warnings) = match patched {
        Ok(patched) => patched,
        Err(error) => return Some(Err(error)),
    };
    let upper = upper(plan, &record);
    let disk = plan.boot.name.clone().filter(|_| plan.fresh);
    let made: Vec<String> = upper.iter().cloned().chain(disk).collect();
    let booted = boot(plan, record, warnings, &made, cancelled).await;
    if booted.is_err() {
        // The reason for the failure is of more interest than one why this remains.
        let _ = tool::remove(&[], upper.as_slice()).await;
    }
    Some(booted)
}

/// The name in the store of the upper that msb-patch has made.
fn upper(plan: &Plan, record: &Record) -> Option<String> {
    let upper = record.upper.as_ref().filter(|_| !plan.ops.is_empty())?;
    Some(upper.dir.parent()?.file_name()?.to_str()?.to_owned())
}

/// The record of the patched image, and warnings.
async fn patched(plan: &Plan) -> Result<(Record, Vec<String>), Error> {
    let mut args: Vec<OsString> = vec!["-q".into()];
    args.extend(plan.pull_args.iter().cloned());
    args.extend(["--".into(), plan.image.clone()]);
    let Answer { stdout, mut warnings } = tool::run("msb-pull", args, &[]).await?;
    if plan.ops.is_empty() {
        return Ok((parse("msb-pull", &stdout)?, warnings));
    }
    let mut input = stdout;
    for op in &plan.ops {
        input.extend(op.to_string().into_bytes());
        input.push(b'\n');
    }
    let answer = tool::run("msb-patch", ["-q", "-r", "-"], &input).await?;
    warnings.extend(answer.warnings);
    Ok((parse("msb-patch", &answer.stdout)?, warnings))
}

/// msb-boot ends a VM whose record it cannot print, and the VM ends with an msb-boot that is killed before. A record that was printed
/// all the same is that of a VM to stop, which dropping the result does.
async fn boot(
    plan: &Plan,
    mut record: Record,
    mut warnings: Vec<String>,
    made: &[String],
    cancelled: impl Future<Output = ()>,
) -> Result<Booted, Error> {
    const TOOL: &str = "msb-boot";
    record.boot = Some(plan.boot.clone());
    let input = to_json(&record)?;
    let mut command = tool::command(TOOL)?;
    command.args(["-q", "-r", "-"]).args(plan.fresh.then_some("--fresh"));
    let ended = Running::start(TOOL, command, &input)?.finish(cancelled).await?;
    let keeper = match parse(TOOL, &ended.stdout) {
        Ok(record) => match Keeper::start(&record, made) {
            Ok(keeper) => Some((keeper, record)),
            Err(error) => {
                // The error is that of the keeper, whatever msb-stop says.
                let _ = tool::run("msb-stop", &["-q", "-t", "0", "-r", "-"], &ended.stdout).await;
                return Err(error);
            }
        },
        Err(_) => None,
    };
    let answer = ended.answer()?;
    warnings.extend(answer.warnings);
    match keeper {
        Some((keeper, record)) => Ok(Booted { record, warnings, made: made.to_vec(), keeper }),
        None => Err(not_understood(TOOL, "it printed no record")),
    }
}

fn to_json(record: &Record) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(record).map_err(|error| not_understood("msb-boot", &error.to_string()))
}

fn parse(tool: &'static str, stdout: &[u8]) -> Result<Record, Error> {
    Record::parse(stdout).map_err(|error| not_understood(tool, &error.to_string()))
}

fn not_understood(tool: &'static str, reason: &str) -> Error {
    Error::NotUnderstood { tool, reason: reason.to_owned() }
}
