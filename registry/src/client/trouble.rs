//! Why a request got no answer, as far as the errors of the HTTP library tell.

use std::io;

use msb::tool::exit::printable;

/// The message of every timeout.
pub(super) const TIMED_OUT: &str = "no answer (timed out)";

/// Why there is no answer.
pub(super) enum Trouble {
    /// It is transient.
    Broken(String),
    Refused,
    UnknownHost,
    UnknownAuthority,
    Certificate(String),
    NotTls,
    NotHttp,
    Other(String),
}

impl Trouble {
    /// Classifies an error by its causes. Some have no type of their own, only a text.
    pub(super) fn of(error: &reqwest::Error) -> Self {
        let chain = || std::iter::successors(Some(error as &(dyn std::error::Error + 'static)), |error| error.source());
        let kind = chain().find_map(|error| error.downcast_ref::<io::Error>()).map(io::Error::kind);
        let text = chain().map(ToString::to_string).collect::<Vec<_>>().join(": ");
        let why = decapitalize(&deepest(error));
        if kind == Some(io::ErrorKind::ConnectionRefused) {
            Self::Refused
        } else if text.contains("dns error") {
            let is_passing = text.contains("Temporary failure") || text.contains("Try again");
            if is_passing { Self::Broken("unknown host (is the name right?)".to_owned()) } else { Self::UnknownHost }
        } else if text.contains("UnknownIssuer") {
            Self::UnknownAuthority
        } else if text.contains("InvalidContentType") {
            Self::NotTls
        } else if text.contains("certificate") {
            Self::Certificate(why)
        } else if error.is_timeout() || text.contains("timed out") {
            Self::Broken(TIMED_OUT.to_owned())
        } else if text.contains("invalid HTTP") {
            Self::NotHttp
        } else if error.is_connect() || error.is_request() || error.is_body() {
            Self::Broken(why)
        } else {
            Self::Other(why)
        }
    }
}

/// The message of the first cause.
pub(super) fn deepest(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |error| error.source()).last().unwrap_or(error).to_string()
}

/// A message of a library, which may quote the registry, in the form of our messages: printable, lower case, no full stop.
pub(super) fn decapitalize(message: &str) -> String {
    let message = printable(message);
    let mut chars = message.trim_end_matches('.').chars();
    chars.next().map_or_else(String::new, |first| first.to_ascii_lowercase().to_string() + chars.as_str())
}
