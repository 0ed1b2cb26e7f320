//! HTTP requests to one registry: retried after transient failures, authenticated if the registry asks for it, and with a limit
//! on what is kept of an answer. This is the only module with an async runtime: the rest of the tool is threads, which wait here.

mod authenticate;
mod certificates;
mod proxies;
mod transport;
mod trouble;
mod upload;

use std::io::{self, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{anyhow, bail};
use msb::tool::exit::printable;
use reqwest::header::{ACCEPT, AUTHORIZATION, RANGE, RETRY_AFTER};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use tokio::runtime::Runtime;

pub use self::transport::Options;
use self::transport::{PATIENCE, Transport};
use self::trouble::{TIMED_OUT, Trouble, decapitalize, deepest};
use crate::credentials::{Credentials, Lookup};
use crate::json::null_is_default;
use crate::reference::Reference;
use crate::retry::{Retry, parse_retry_after};

/// How many bytes of a blob must come within [`PATIENCE`] of waiting.
const FLOOR: u64 = 4096;
/// How long a document may take as a whole.
const DOCUMENT_LIMIT: Duration = Duration::from_secs(120);
/// The largest error body that is read, in bytes.
const MAX_ERROR: u64 = 1 << 16;
/// How often one request is authenticated: a token may expire between two requests, but a new one is accepted.
const MAX_AUTHENTICATIONS: usize = 2;

/// A client of one repository.
pub struct Client {
    runtime: Runtime,
    transport: Transport,
    http: reqwest::Client,
    scheme: &'static str,
    reference: Reference,
    credentials: Option<Credentials>,
    /// Why credentials may be missing.
    warning: Option<String>,
    /// The `Authorization` header of the next request.
    authorization: Mutex<Option<String>>,
}

/// An answer whose body is not read yet.
pub struct Answer(Response);

impl Answer {
    /// Its HTTP status.
    pub fn status(&self) -> StatusCode {
        self.0.status()
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.0.headers().get(name)?.to_str().ok()
    }
}

/// The body of an answer.
pub enum Body {
    /// All of it.
    Whole(Vec<u8>),
    /// It is longer than the limit.
    TooLong,
}

/// Why an answer is incomplete.
pub enum Failure {
    /// The connection broke or stalled.
    Connection(String),
    /// The registry asks for patience.
    Busy {
        /// The HTTP status.
        status: StatusCode,
        /// Its `Retry-After`.
        after: Option<Duration>,
        /// What it says.
        message: String,
    },
    /// The writer failed.
    Output(io::Error),
}

/// The registry answered with a status that is an error.
#[derive(Debug)]
struct Refused(String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// The last of the failures after which a retry might have helped.
#[derive(Debug)]
struct Transient(String);

impl std::fmt::Display for Transient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Transient {}

impl Client {
    /// Sets up TLS and proxies.
    ///
    /// # Errors
    /// A message for certificates that cannot be used, and for a registry on this host that cannot be reached.
    pub fn new(reference: &Reference, options: &Options, lookup: Lookup) -> anyhow::Result<Self> {
        let transport = Transport::find(&reference.registry, options)?;
        let tls_verify = options.tls_verify.unwrap_or(true);
        let may_be_plain = !options.plain_http && transport.needs_no_tls();
        let http = transport.client(Some(PATIENCE))?;
        // One thread moves the bytes of all connections; the processors are for decompressing and writing.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let Lookup { credentials, warning } = lookup;
        let authorization = match &credentials {
            Some(Credentials::RegistryToken(token)) => Some(format!("Bearer {token}")),
            _ => None,
        };
        let mut client = Self {
            runtime,
            transport,
            http,
            scheme: if options.plain_http { "http" } else { "https" },
            reference: reference.clone(),
            credentials,
            warning,
            authorization: Mutex::new(authorization),
        };
        if may_be_plain && (reference.is_loopback() || !tls_verify) && !client.speaks_tls() {
            client.scheme = "http";
        }
        Ok(client)
    }

    /// Whether the registry speaks TLS, as far as one attempt tells. Trouble of another kind is left to the first request.
    fn speaks_tls(&self) -> bool {
        match self.exchange(self.http.get(self.url_of("v2/"))) {
            Ok(_) => true,
            Err(error) => match Trouble::of(&error) {
                Trouble::NotTls => false,
                // A server that does not understand the handshake may close the connection instead.
                Trouble::Broken(_) => !error.is_connect(),
                _ => true,
            },
        }
    }

    fn exchange(&self, request: RequestBuilder) -> reqwest::Result<Response> {
        self.runtime.block_on(async { request.send().await })
    }

    fn url_of(&self, path: &str) -> String {
        format!("{}://{}/{path}", self.scheme, self.reference.host())
    }

    /// Requests `path` below the repository, until there is an answer that counts: success, or a range that cannot be
    /// satisfied.
    ///
    /// # Errors
    /// A message that names the registry.
    pub fn send(
        &self,
        method: Method,
        path: &str,
        accept: Option<&[&str]>,
        start: Option<u64>,
        retry: &mut Retry,
    ) -> anyhow::Result<Answer> {
        let build = |mut request: RequestBuilder| {
            if let Some(kinds) = accept {
                // One header: not every proxy passes several on.
                request = request.header(ACCEPT, kinds.join(", "));
            }
            if let Some(start) = start {
                request = request.header(RANGE, format!("bytes={start}-"));
            }
            request
        };
        self.request(method, &self.url(path), &build, retry)
    }

    /// The URL of `path` below the repository.
    pub fn url(&self, path: &str) -> String {
        self.url_of(&format!("v2/{}/{path}", self.reference.repository))
    }

    /// As [`Self::send`], for any URL and with what `build` adds to the request. Only the registry's own host gets the
    /// credentials.
    ///
    /// # Errors
    /// A message that names the registry.
    pub fn request(
        &self,
        method: Method,
        url: &str,
        build: &dyn Fn(RequestBuilder) -> RequestBuilder,
        retry: &mut Retry,
    ) -> anyhow::Result<Answer> {
        self.request_with(&self.http, method, url, build, &|request| Ok(self.exchange(request)), retry)
    }

    /// As [`Self::request`], by another client, whose answers `exchange` awaits.
    fn request_with(
        &self,
        http: &reqwest::Client,
        method: Method,
        url: &str,
        build: &dyn Fn(RequestBuilder) -> RequestBuilder,
        exchange: &dyn Fn(RequestBuilder) -> anyhow::Result<reqwest::Result<Response>>,
        retry: &mut Retry,
    ) -> anyhow::Result<Answer> {
        let is_own = Url::parse(url)?.origin() == Url::parse(&self.url_of(""))?.origin();
        let mut authentications = 0;
        loop {
            let authorization = self.authorization();
            let mut request = build(http.request(method.clone(), url));
            if let Some(value) = authorization.as_ref().filter(|_| is_own) {
                request = request.header(AUTHORIZATION, value);
            }
            let response = match exchange(request)? {
                Ok(response) => response,
                Err(error) => {
                    self.pause(self.failure(&error)?, retry, &mut io::sink())?;
                    continue;
                }
            };
            match response.status() {
                status if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE => {
                    return Ok(Answer(response));
                }
                StatusCode::UNAUTHORIZED if is_own && authentications < MAX_AUTHENTICATIONS => {
                    authentications += 1;
                    self.authenticate(response.headers(), authorization, retry)?;
                }
                StatusCode::UNAUTHORIZED => return Err(self.unauthorized()),
                // The link to a blob's storage expires, and the registry gives a new one.
                StatusCode::FORBIDDEN if response.url().host_str() != Url::parse(url)?.host_str() => {
                    self.pause(self.busy(response), retry, &mut io::sink())?;
                }
                status if is_transient(status) => self.pause(self.busy(response), retry, &mut io::sink())?,
                _ => return Err(self.refusal(response)),
            }
        }
    }

    /// Whether an error of [`Self::send`] is the registry's answer, rather than trouble on the way to it.
    pub fn is_answer(&self, error: &anyhow::Error) -> bool {
        error.is::<Refused>()
    }

    /// Whether an error of [`Self::send`] ended its attempts, although another one might have helped.
    pub fn is_transient(&self, error: &anyhow::Error) -> bool {
        error.is::<Transient>()
    }

    /// Reads a body of at most `limit` bytes.
    ///
    /// # Errors
    /// [`Failure::Connection`].
    pub fn read(&self, answer: Answer, limit: u64) -> Result<Body, Failure> {
        let Answer(mut response) = answer;
        let read = async {
            let mut text = Vec::new();
            while let Some(chunk) = response.chunk().await? {
                if (text.len() + chunk.len()) as u64 > limit {
                    return Ok(Body::TooLong);
                }
                text.extend_from_slice(&chunk);
            }
            Ok(Body::Whole(text))
        };
        match self.runtime.block_on(async { tokio::time::timeout(DOCUMENT_LIMIT, read).await }) {
            Ok(body) => body.map_err(|error: reqwest::Error| Failure::Connection(decapitalize(&deepest(&error)))),
            Err(_) => Err(Failure::Connection(TIMED_OUT.to_owned())),
        }
    }

    /// Writes the body to `out`, without its first `skip` bytes, and counts in `done` what was written. Each blob has a
    /// thread of its own, so a writer that blocks holds up only that thread, and the registry slows down with it.
    ///
    /// # Errors
    /// [`Failure::Connection`] also for a body that trickles.
    pub fn copy(&self, answer: Answer, mut skip: u64, done: &mut u64, out: &mut dyn Write) -> Result<(), Failure> {
        let Answer(mut response) = answer;
        self.runtime.block_on(async {
            let (mut waited, mut received) = (Duration::ZERO, 0);
            loop {
                let start = Instant::now();
                let chunk = match response.chunk().await {
                    Ok(Some(chunk)) => chunk,
                    Ok(None) => return Ok(()),
                    Err(error) if error.is_timeout() => return Err(Failure::Connection(TIMED_OUT.to_owned())),
                    Err(_) => return Err(Failure::Connection("the connection broke".to_owned())),
                };
                waited += start.elapsed();
                received += chunk.len() as u64;
                if received >= FLOOR {
                    (waited, received) = (Duration::ZERO, 0);
                } else if waited > PATIENCE {
                    return Err(Failure::Connection("less than 200 bytes a second came".to_owned()));
                }
                let skipped = skip.min(chunk.len() as u64);
                skip -= skipped;
                let rest = &chunk[usize::try_from(skipped).unwrap_or(chunk.len())..];
                out.write_all(rest).map_err(Failure::Output)?;
                *done += rest.len() as u64;
            }
        })
    }

    /// Waits before the next attempt. A flush of `out` tells whether the result is still wanted.
    ///
    /// # Errors
    /// A message for a failure that was the last; the writer's error.
    pub fn pause(&self, failure: Failure, retry: &mut Retry, out: &mut dyn Write) -> anyhow::Result<()> {
        let after = match &failure {
            Failure::Busy { after, .. } => *after,
            _ => None,
        };
        let Some(delay) = retry.next(after) else { return Err(self.last(failure)) };
        let end = Instant::now() + delay;
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            out.flush()?;
            std::thread::sleep(left.min(Duration::from_millis(100)));
        }
        Ok(())
    }

    fn last(&self, failure: Failure) -> anyhow::Error {
        let registry = &self.reference.registry;
        let message = match failure {
            Failure::Output(error) => return error.into(),
            Failure::Connection(why) => format!("registry {registry:?}: {why}"),
            Failure::Busy { status, after, message } => {
                let message = if message.is_empty() { String::new() } else { format!(": {message}") };
                if status == StatusCode::TOO_MANY_REQUESTS {
                    let when = after.map_or_else(|| "later".to_owned(), |after| format!("in {} s", after.as_secs()));
                    let advice = if self.credentials.is_some() { "" } else { ", or log in for a higher limit" };
                    format!("registry {registry:?}: rate limit reached{message} (try again {when}{advice})")
                } else {
                    format!("registry {registry:?}: HTTP status {}{message}", status.as_u16())
                }
            }
        };
        Transient(message).into()
    }

    fn busy(&self, response: Response) -> Failure {
        let after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let after = after.and_then(|value| parse_retry_after(value, SystemTime::now()));
        let status = response.status();
        let message = self.errors(response).into_iter().map(|error| error.message).collect::<Vec<_>>().join(", ");
        Failure::Busy { status, after, message: printable(&message).to_string() }
    }

    /// The errors in a body (distribution specification, "Error Codes"); none where it has none.
    fn errors(&self, response: Response) -> Vec<RegistryError> {
        #[derive(Default, Deserialize)]
        struct Envelope {
            #[serde(default, deserialize_with = "null_is_default")]
            errors: Vec<RegistryError>,
        }
        match self.read(Answer(response), MAX_ERROR) {
            Ok(Body::Whole(text)) => serde_json::from_slice::<Envelope>(&text).unwrap_or_default().errors,
            _ => Vec::new(),
        }
    }

    fn refusal(&self, response: Response) -> anyhow::Error {
        let registry = &self.reference.registry;
        let status = response.status();
        let errors = self.errors(response);
        let has = |codes: &[&str]| errors.iter().any(|error| codes.contains(&error.code.as_str()));
        let message = if has(&["MANIFEST_UNKNOWN", "NAME_UNKNOWN", "NOT_FOUND"]) {
            format!("not found in registry {registry:?} (is name and tag right?)")
        } else if has(&["BLOB_UNKNOWN"]) {
            format!("registry {registry:?} does not have it (push the image again)")
        } else if has(&["DENIED", "UNAUTHORIZED"]) || status == StatusCode::FORBIDDEN {
            format!("registry {registry:?}: access denied ({})", self.login_advice())
        } else if has(&["TOOMANYREQUESTS"]) {
            return self.last(Failure::Busy {
                status: StatusCode::TOO_MANY_REQUESTS,
                after: None,
                message: String::new(),
            });
        } else if errors.iter().any(|error| !error.message.is_empty()) {
            let messages: Vec<&str> = errors.iter().map(|error| error.message.as_str()).collect();
            format!("registry {registry:?}: {}", printable(&messages.join(", ")))
        } else if status == StatusCode::NOT_FOUND {
            format!("not found in registry {registry:?} (is name and tag right?)")
        } else {
            format!("registry {registry:?}: HTTP status {}", status.as_u16())
        };
        Refused(message).into()
    }

    fn login_advice(&self) -> String {
        let warning = self.warning.as_ref().map(|warning| format!("; {warning}")).unwrap_or_default();
        format!("log in, or name credentials with --authfile{warning}")
    }

    fn unauthorized(&self) -> anyhow::Error {
        anyhow!("registry {:?}: not authorized ({})", self.reference.registry, self.login_advice())
    }

    /// Tells transient failures, which are returned, from all others.
    fn failure(&self, error: &reqwest::Error) -> anyhow::Result<Failure> {
        let why = match Trouble::of(error) {
            Trouble::Broken(why) => return Ok(Failure::Connection(why)),
            Trouble::Refused => "connection refused (is it running, and is the port right?)".to_owned(),
            Trouble::UnknownHost => "unknown host (is the name right?)".to_owned(),
            Trouble::UnknownAuthority => {
                "its certificate is of an unknown authority (name it with --ca-file)".to_owned()
            }
            Trouble::Certificate(why) => format!("invalid certificate: {why}"),
            Trouble::NotTls => "it does not speak TLS (use --plain-http if that is meant)".to_owned(),
            Trouble::NotHttp => "it does not speak plain HTTP (leave --plain-http out)".to_owned(),
            Trouble::Other(why) => why,
        };
        bail!("registry {:?}: {why}", self.reference.registry)
    }
}

/// An error in the body of an answer.
#[derive(Deserialize)]
struct RegistryError {
    #[serde(default, deserialize_with = "null_is_default")]
    code: String,
    #[serde(default, deserialize_with = "null_is_default")]
    message: String,
}

/// Whether a retry may help after this status.
fn is_transient(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502 | 503 | 504)
}
