//! The barrier at which a prepared command waits in front of its execve(2). Two pipes connect it with the agent: one on which the child
//! reports, and one on which it is started. The child's methods only make system calls.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;

use crate::not_started::{Failed, NotStarted};

/// The child is ready, and waits.
const READY: u8 = 1;
/// The child has failed. The number of the error and the step follow.
const FAILED: u8 = 0;
/// The byte that starts it.
const GO: u8 = 1;

/// Both ends of both pipes.
#[derive(Debug)]
pub struct Barrier {
    report: PipeReader,
    go: PipeWriter,
    child_report: PipeWriter,
    child_go: PipeReader,
}

/// The agent's ends, at which a child waits.
#[derive(Debug)]
pub struct Waiting {
    report: PipeReader,
    go: PipeWriter,
}

impl Barrier {
    /// A barrier for one child.
    ///
    /// # Errors
    /// Those of `pipe(2)`.
    pub fn new() -> io::Result<Self> {
        let (report, child_report) = io::pipe()?;
        let (child_go, go) = io::pipe()?;
        Ok(Self { report, go, child_report, child_go })
    }

    /// The descriptors that the child needs.
    pub fn child_ends(&self) -> [BorrowedFd<'_>; 2] {
        [self.child_report.as_fd(), self.child_go.as_fd()]
    }

    /// In the child: reports that it is ready, and waits. True: it may go.
    pub fn wait(&self) -> bool {
        let mut word = [0];
        let written = rustix::io::write(&self.child_report, &[READY]);
        loop {
            match rustix::io::read(&self.child_go, &mut word) {
                Err(Errno::INTR) => {}
                result => return written.is_ok() && result == Ok(1),
            }
        }
    }

    /// In the child: reports why it ends.
    pub fn fail(&self, (step, why): &Failed) {
        let code = why.raw_os_error().to_ne_bytes();
        for part in [&[FAILED][..], &code, step.unwrap_or_default().as_bytes()] {
            let _ = rustix::io::write(&self.child_report, part);
        }
    }

    /// In the agent, after the child was started: waits until it is ready.
    ///
    /// # Errors
    /// Why it is not.
    pub fn until_ready(self) -> Result<Waiting, NotStarted> {
        let Self { mut report, go, child_report, child_go } = self;
        // Otherwise there would be no end-of-file.
        drop((child_report, child_go));
        let mut first = [FAILED];
        let got = report.read(&mut first).map_err(|error| NotStarted::at("prepare it", error))?;
        match (got, first) {
            (0, _) => Err(NotStarted::at("prepare it", io::Error::other("it was killed"))),
            (_, [READY]) => Ok(Waiting { report, go }),
            _ => Err(read_failure(report)?.unwrap_or_else(|| NotStarted::at("prepare it", io::ErrorKind::Other))),
        }
    }
}

impl Waiting {
    /// Lets the child go, and waits until it has executed its file. A child that was killed meanwhile is no error: its exit follows.
    ///
    /// # Errors
    /// Why it could not execute its file.
    pub fn open(mut self) -> Result<(), NotStarted> {
        let _ = self.go.write_all(&[GO]);
        let mut first = [FAILED];
        // execve(2) closes the child's end.
        match self.report.read(&mut first).map_err(|error| NotStarted::at("start it", error))? {
            0 => Ok(()),
            _ => read_failure(self.report)?.map_or(Ok(()), Err),
        }
    }
}

/// Reads a failure after its first byte. `None`: there is none, because the child was killed.
fn read_failure(mut report: PipeReader) -> Result<Option<NotStarted>, NotStarted> {
    let mut bytes = Vec::new();
    report.read_to_end(&mut bytes).map_err(|error| NotStarted::at("prepare it", error))?;
    let Some((code, step)) = bytes.split_first_chunk() else { return Ok(None) };
    let step = String::from_utf8_lossy(step).into_owned();
    let step = Some(step.into()).filter(|step: &std::borrow::Cow<'_, str>| !step.is_empty());
    Ok(Some(NotStarted { step, why: io::Error::from_raw_os_error(i32::from_ne_bytes(*code)) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The child's copy of a barrier.
    fn child_of(barrier: &Barrier) -> Barrier {
        let (child_report, child_go) =
            (barrier.child_report.try_clone().unwrap(), barrier.child_go.try_clone().unwrap());
        Barrier { child_report, child_go, ..Barrier::new().unwrap() }
    }

    #[test]
    fn a_child_reports_why_it_is_not_ready_and_why_it_does_not_start() {
        let barrier = Barrier::new().unwrap();
        barrier.fail(&(Some("enter the cgroup"), Errno::PERM));
        let failed = barrier.until_ready().unwrap_err();
        assert_eq!((failed.step.as_deref(), failed.why.raw_os_error()), (Some("enter the cgroup"), Some(1)));

        let barrier = Barrier::new().unwrap();
        let child = child_of(&barrier);
        let waiting = std::thread::scope(|scope| {
            let goes = scope.spawn(|| child.wait());
            let waiting = barrier.until_ready().unwrap();
            waiting.go.try_clone().unwrap().write_all(&[GO]).unwrap();
            assert!(goes.join().unwrap());
            waiting
        });
        child.fail(&(None, Errno::NOENT));
        drop(child);
        let failed = waiting.open().unwrap_err();
        assert_eq!((failed.step, failed.why.raw_os_error()), (None, Some(2)));
    }

    #[test]
    fn a_child_does_not_go_without_the_word_and_may_be_killed() {
        let barrier = Barrier::new().unwrap();
        let child = child_of(&barrier);
        std::thread::scope(|scope| {
            let goes = scope.spawn(|| child.wait());
            drop(barrier.until_ready().unwrap());
            assert!(!goes.join().unwrap());
        });
        let barrier = Barrier::new().unwrap();
        rustix::io::write(&barrier.child_report, &[READY]).unwrap();
        assert!(barrier.until_ready().unwrap().open().is_ok());
        let barrier = Barrier::new().unwrap();
        assert!(barrier.until_ready().is_err());
    }
}
