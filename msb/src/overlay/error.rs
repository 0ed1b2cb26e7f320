//! Why an operation on layers or on the store failed, and whose fault it was.

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
    /// A system call failed, on something that the caller knows.
    #[error(transparent)]
    System(#[from] io::Error),
    /// A system call failed.
    #[error("{subject}")]
    Io {
        /// What failed, or on what.
        subject: String,
        /// Why.
        source: io::Error,
    },
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
            Self::Host(_) | Self::System(_) | Self::Io { .. } => Fault::Host,
            Self::At { source, .. } => source.fault(),
        }
    }

    #[cfg(feature = "store")]
    fn at(self, subject: String) -> Self {
        match self {
            Self::System(source) => Self::Io { subject, source },
            other => Self::At { subject, source: Box::new(other) },
        }
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::System(errno.into())
    }
}

/// Adds to an error what it happened to.
#[cfg(feature = "store")]
pub(crate) trait At<T> {
    /// Names the subject of a failure.
    fn at<S: std::fmt::Display>(self, subject: impl FnOnce() -> S) -> Result<T, Error>;
}

#[cfg(feature = "store")]
impl<T, E: Into<Error>> At<T> for Result<T, E> {
    fn at<S: std::fmt::Display>(self, subject: impl FnOnce() -> S) -> Result<T, Error> {
        self.map_err(|error| error.into().at(subject().to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_its_fault_and_its_causes() {
        let failed: Result<(), _> = Err(Error::Content("not a directory".into()));
        let full: Result<(), _> = Err(rustix::io::Errno::NOSPC);
        for (error, fault, cause) in [
            (failed.at(|| "layer \"a\""), Fault::Content, "not a directory"),
            (full.at(|| "layer \"a\""), Fault::Host, "No space left on device (os error 28)"),
        ] {
            let error = error.at(|| "image \"b\"").unwrap_err();
            assert_eq!(error.fault(), fault);
            let causes: Vec<_> = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source())
                .map(ToString::to_string)
                .collect();
            assert_eq!(causes, ["image \"b\"", "layer \"a\"", cause]);
        }
    }
}
