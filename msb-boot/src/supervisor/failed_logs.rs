//! The logs of failed boots. The run directory is removed, so the logs are copied to `$MSB_HOME/logs/NAME`. Only those of the last
//! boots are kept, because generated names would pile up.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use msb::{store::publish, vm::rundir};

use crate::config::Config;

/// How many boots' logs are kept.
const MAX_LOGS: usize = 16;

/// Copies the logs in the run directory `run`. Returns the path of the most useful one; `None` if there is none, or it cannot be copied.
pub(crate) fn keep(config: &Config, run: &Path) -> Option<PathBuf> {
    let supervisor = copy(&config.logs, &config.name, run).ok()?;
    let kernel = match &config.kernel_log {
        Some(file) => file.clone(),
        None => supervisor.with_file_name(rundir::KERNEL_LOG),
    };
    let has_content = |log: &PathBuf| fs::metadata(log).is_ok_and(|meta| meta.len() > 0);
    [kernel, supervisor].into_iter().find(has_content)
}

fn copy(logs: &Path, name: &str, run: &Path) -> io::Result<PathBuf> {
    let dir = logs.join(name);
    let staging = publish::staging_path(&dir);
    publish::make_private_dir(&staging)?;
    let copied =
        [rundir::KERNEL_LOG, rundir::OLD_KERNEL_LOG, rundir::SUPERVISOR_LOG].iter().try_for_each(|log| match fs::copy(
            run.join(log),
            staging.join(log),
        ) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map(drop),
        });
    let copied = copied.and_then(|()| {
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::rename(&staging, &dir)
    });
    if copied.is_err() {
        let _ = fs::remove_dir_all(&staging);
    }
    copied?;
    remove_oldest(logs)?;
    Ok(dir.join(rundir::SUPERVISOR_LOG))
}

fn remove_oldest(logs: &Path) -> io::Result<()> {
    let mut dirs: Vec<(SystemTime, PathBuf)> = fs::read_dir(logs)?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.metadata().ok()?.modified().ok()?, entry.path()))
        })
        .collect();
    dirs.sort();
    let surplus = dirs.len().saturating_sub(MAX_LOGS);
    for (_, dir) in &dirs[..surplus] {
        // Another boot may have removed it already.
        let _ = fs::remove_dir_all(dir);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logs_of_the_last_boots_are_kept_by_name() {
        let scratch = tempfile::tempdir().unwrap();
        let (logs, run) = (scratch.path().join("logs"), scratch.path().join("run"));
        fs::create_dir(&run).unwrap();
        fs::write(run.join(rundir::SUPERVISOR_LOG), "started").unwrap();
        for number in 0..MAX_LOGS + 3 {
            fs::write(run.join(rundir::KERNEL_LOG), number.to_string()).unwrap();
            let log = copy(&logs, &format!("vm-{number}"), &run).unwrap();
            assert_eq!(fs::read(&log).unwrap(), b"started");
            // Two directories may have the same time, so set it.
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(number as u64);
            fs::File::open(log.parent().unwrap()).unwrap().set_modified(time).unwrap();
        }
        // Again, with a name that exists.
        fs::write(run.join(rundir::KERNEL_LOG), "again").unwrap();
        copy(&logs, "vm-10", &run).unwrap();
        let mut names: Vec<_> = fs::read_dir(&logs).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        let mut expected: Vec<_> =
            (3..MAX_LOGS + 3).map(|number| format!("vm-{number}").into()).collect::<Vec<std::ffi::OsString>>();
        expected.sort();
        assert_eq!(names, expected);
        assert_eq!(fs::read(logs.join("vm-10").join(rundir::KERNEL_LOG)).unwrap(), b"again");
        assert_eq!(fs::read(logs.join("vm-9").join(rundir::KERNEL_LOG)).unwrap(), b"9");
    }
}
