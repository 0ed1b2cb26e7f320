//! `state`, `ps` and `list`: what there is.

use msb::tool::line;
use serde_json::{Value, json};

use crate::args::{Global, List, ListFormat, Ps};
use crate::state::{self, StateDir, Status};

/// `state`: the document of the specification.
///
/// # Errors
/// There is no such container.
pub(crate) fn state(global: &Global, id: &str) -> anyhow::Result<()> {
    let dir = StateDir::of(&global.root()?, id)?;
    let container = dir.load()?;
    let document = dir.document(&container, dir.status(&container));
    print(&format!("{}\n", serde_json::to_string_pretty(&document)?))
}

/// `ps`: the process that stands for the container. Those in the guest have no PID here.
///
/// # Errors
/// There is no such container.
pub(crate) fn ps(global: &Global, args: &Ps) -> anyhow::Result<()> {
    let dir = StateDir::of(&global.root()?, &args.id)?;
    let container = dir.load()?;
    let has_ended = dir.status(&container) == Status::Stopped;
    let pids: Vec<i32> = container.stand_in.iter().filter(|_| !has_ended).map(|stand_in| stand_in.pid).collect();
    match args.format {
        ListFormat::Json => print(&format!("{}\n", json!(pids))),
        ListFormat::Table => print(
            &["PID".to_owned()]
                .into_iter()
                .chain(pids.iter().map(ToString::to_string))
                .map(|line| line + "\n")
                .collect::<String>(),
        ),
    }
}

/// `list`: all containers.
///
/// # Errors
/// Those of reading the state.
pub(crate) fn list(global: &Global, args: &List) -> anyhow::Result<()> {
    let all = state::all(&global.root()?)?;
    let documents: Vec<Value> =
        all.iter().map(|(dir, container)| dir.document(container, dir.status(container))).collect();
    if args.quiet {
        return print(&all.iter().map(|(_, container)| format!("{}\n", container.id)).collect::<String>());
    }
    if args.format == ListFormat::Json {
        return print(&format!("{}\n", json!(documents)));
    }
    let mut text = String::from("ID\tPID\tSTATUS\tBUNDLE\tCREATED\n");
    for document in documents {
        let fields = ["id", "pid", "status", "bundle", "created"].map(|key| match &document[key] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        });
        text.push_str(&format!("{}\n", fields.join("\t")));
    }
    print(&text)
}

fn print(text: &str) -> anyhow::Result<()> {
    Ok(line::put_bytes(text.as_bytes())?)
}
