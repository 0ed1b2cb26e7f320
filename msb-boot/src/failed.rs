//! The logs of boots that failed. Their run directories go, so the logs move to `$MSB_HOME/logs/NAME`: those of the last few boots, as
//! made-up names would pile up.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use msb::{store::publish, vm::rundir};

use crate::config::Config;

/// The directories that are kept.
const MOST: usize = 16;

/// Keeps the logs in the run directory `run`. Where the one is that says most; `None` where there is none, or it cannot be kept.
pub(crate) fn keep_logs(config: &Config, run: &Path) -> Option<PathBuf> {
    let supervisor = keep(&config.logs, &config.name, run).ok()?;
    let kernel = match &config.kernel_log {
        Some(file) => file.clone(),
        None => supervisor.with_file_name(rundir::KERNEL_LOG),
    };
    let has_content = |log: &PathBuf| fs::metadata(log).is_ok_and(|meta| meta.len() > 0);
    [kernel, supervisor].into_iter().find(has_content)
}

fn keep(logs: &Path, name: &str, run: &Path) -> io::Result<PathBuf> {
    let dir = logs.join(name);
    let staging = publish::staging_path(&dir);
    publish::make_private_dir(&staging)?;
    let kept =
        [rundir::KERNEL_LOG, rundir::OLD_KERNEL_LOG, rundir::SUPERVISOR_LOG].iter().try_for_each(|log| match fs::copy(
            run.join(log),
            staging.join(log),
        ) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map(drop),
        });
    let kept = kept.and_then(|()| {
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::rename(&staging, &dir)
    });
    if kept.is_err() {
        let _ = fs::remove_dir_all(&staging);
    }
    kept?;
    forget_oldest(logs)?;
    Ok(dir.join(rundir::SUPERVISOR_LOG))
}

fn forget_oldest(logs: &Path) -> io::Result<()> {
    let mut dirs: Vec<(SystemTime, PathBuf)> = fs::read_dir(logs)?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.metadata().ok()?.modified().ok()?, entry.path()))
        })
        .collect();
    dirs.sort();
    let surplus = dirs.len().saturating_sub(MOST);
    for (_, dir) in &dirs[..surplus] {
        // Another boot may have been faster.
        let _ = fs::remove_dir_all(dir);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logs_of_the_last_boots_are_kept_by_their_names() {
        let scratch = tempfile::tempdir().unwrap();
        let (logs, run) = (scratch.path().join("logs"), scratch.path().join("run"));
        fs::create_dir(&run).unwrap();
        fs::write(run.join(rundir::SUPERVISOR_LOG), "started").unwrap();
        for number in 0..MOST + 3 {
            fs::write(run.join(rundir::KERNEL_LOG), number.to_string()).unwrap();
            let log = keep(&logs, &format!("vm-{number}"), &run).unwrap();
            assert_eq!(fs::read(&log).unwrap(), b"started");
            // The times of two files may be the same: make them tell which is older.
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(number as u64);
            fs::File::open(log.parent().unwrap()).unwrap().set_modified(time).unwrap();
        }
        // Again, under a name that is there.
        fs::write(run.join(rundir::KERNEL_LOG), "again").unwrap();
        keep(&logs, "vm-10", &run).unwrap();
        let mut names: Vec<_> = fs::read_dir(&logs).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        let mut expected: Vec<_> =
            (3..MOST + 3).map(|number| format!("vm-{number}").into()).collect::<Vec<std::ffi::OsString>>();
        expected.sort();
        assert_eq!(names, expected);
        assert_eq!(fs::read(logs.join("vm-10").join(rundir::KERNEL_LOG)).unwrap(), b"again");
        assert_eq!(fs::read(logs.join("vm-9").join(rundir::KERNEL_LOG)).unwrap(), b"9");
    }
}
