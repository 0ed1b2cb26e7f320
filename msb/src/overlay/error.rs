//! Why an operation on layers or on the store failed, and whose fault it was.

use std::fmt;
use std::io;

/// Whose fault an [`Error`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The caller asked for what cannot be had, such as an upper that another process changes.
    Caller,
    /// A tree, an image or a guest is not as it must be.
    Content,
    /// This host failed, or lacks something: a system call, disk space, a program.
    Host,
}

/// Why an operation failed.
///
/// The `Display` form names one cause; the causes below it are its [`source`](std::error::Error::source)s.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The caller's fault.
    #[error("{0}")]
    Caller(String),
    /// The fault of a tree, an image or a guest.
    #[error("{0}")]
    Content(String),
    /// The host's fault.
    #[error("{0}")]
    Host(String),
    /// A system call failed, on something that an outer error names.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// An error, and what it happened to.
    #[error("{subject}")]
    At {
        /// What failed, or on what.
        subject: String,
        /// Why.
        source: Box<Error>,
    },
}

impl Error {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Caller(_) => Fault::Caller,
            Self::Content(_) => Fault::Content,
            Self::Host(_) | Self::Io(_) => Fault::Host,
            Self::At { source, .. } => source.fault(),
        }
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// Adds to an error what it happened to.
pub(crate) trait At<T> {
    /// Names the subject of a failure.
    fn at<S: fmt::Display>(self, subject: impl FnOnce() -> S) -> Result<T, Error>;
}

impl<T, E: Into<Error>> At<T> for Result<T, E> {
    fn at<S: fmt::Display>(self, subject: impl FnOnce() -> S) -> Result<T, Error> {
        self.map_err(|error| Error::At { subject: subject().to_string(), source: Box::new(error.into()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_its_fault_and_its_causes() {
        let failed: Result<(), _> = Err(Error::Content("not a directory".into()));
        let error = failed.at(|| "layer \"a\"").at(|| "image \"b\"").unwrap_err();
        assert_eq!(error.fault(), Fault::Content);
        let causes: Vec<_> = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source())
            .map(ToString::to_string)
            .collect();
        assert_eq!(causes, ["image \"b\"", "layer \"a\"", "not a directory"]);
        let io = Error::from(rustix::io::Errno::NOSPC);
        assert_eq!((io.fault(), io.to_string()), (Fault::Host, "No space left on device (os error 28)".into()));
    }
}
