//! HTTP requests to one registry: made again where the trouble may pass, authenticated where the registry asks for it, and
//! with a bound on what is kept of an answer. The only module with an async runtime in it: the rest of the tool is threads,
//! and waits here.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, anyhow, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use msb::tool::exit::printable;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Certificate, Method, NoProxy, Proxy, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use tokio::runtime::Runtime;

use crate::challenge::{self, Challenge};
use crate::credentials::{Credentials, Lookup};
use crate::json::null_is_default;
use crate::reference::Reference;
use crate::retry::{Retry, parse_retry_after};

/// How long a registry may be silent before the connection counts as broken.
const PATIENCE: Duration = Duration::from_secs(20);
/// How many bytes of a blob must come within [`PATIENCE`] of waiting.
const FLOOR: u64 = 4096;
/// How long a document may take as a whole.
const DOCUMENT_LIMIT: Duration = Duration::from_secs(120);
/// The largest answer of a token service, in bytes.
const MAX_TOKEN: u64 = 1 << 20;
/// The largest error body that is read, in bytes.
const MAX_ERROR: u64 = 1 << 16;
/// How often one request is authenticated: a token may expire between two requests, but a new one is accepted.
const MAX_AUTHENTICATIONS: usize = 2;

/// How to reach a registry.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) plain_http: bool,
    pub(crate) tls_verify: bool,
    pub(crate) ca_file: Option<PathBuf>,
}

/// A client of one repository.
pub(crate) struct Client {
    runtime: Runtime,
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
pub(crate) struct Answer(Response);

impl Answer {
    pub(crate) fn status(&self) -> StatusCode {
        self.0.status()
    }

    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.0.headers().get(name)?.to_str().ok()
    }
}

/// The body of an answer.
pub(crate) enum Body {
    Whole(Vec<u8>),
    TooLong,
}

/// Why an answer is incomplete.
pub(crate) enum Failure {
    /// The connection broke or stalled.
    Connection(String),
    /// The registry asks for patience.
    Busy { status: StatusCode, after: Option<Duration>, message: String },
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

impl Client {
    /// Sets up TLS and proxies.
    ///
    /// # Errors
    /// A message for certificates that cannot be used, and for a registry on this host that cannot be reached.
    pub(crate) fn new(reference: &Reference, options: &Options, lookup: Lookup) -> anyhow::Result<Self> {
        // reqwest leaves the choice to the program. An error: it is made already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("msb-pull/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(PATIENCE)
            .read_timeout(PATIENCE)
            .tls_danger_accept_invalid_certs(!options.tls_verify);
        if let Some(path) = &options.ca_file {
            builder = builder.tls_certs_merge(certificates(path)?);
        }
        for proxy in proxies()? {
            builder = builder.proxy(proxy);
        }
        let http = builder.build().map_err(|error| anyhow!("cannot set up TLS: {}", deepest(&error)))?;
        // One thread moves the bytes of all connections; the processors are for decompressing and writing.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let Lookup { credentials, warning } = lookup;
        let authorization = match &credentials {
            Some(Credentials::RegistryToken(token)) => Some(format!("Bearer {token}")),
            _ => None,
        };
        let mut client = Self {
            runtime,
            http,
            scheme: if options.plain_http { "http" } else { "https" },
            reference: reference.clone(),
            credentials,
            warning,
            authorization: Mutex::new(authorization),
        };
        let may_be_plain = !options.plain_http && options.ca_file.is_none();
        if may_be_plain && (reference.is_loopback() || !options.tls_verify) && !client.speaks_tls() {
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
    pub(crate) fn send(
        &self,
        method: Method,
        path: &str,
        accept: Option<&[&str]>,
        start: Option<u64>,
        retry: &mut Retry,
    ) -> anyhow::Result<Answer> {
        let url = self.url_of(&format!("v2/{}/{path}", self.reference.repository));
        let mut authentications = 0;
        loop {
            let authorization = self.authorization();
            let mut request = self.http.request(method.clone(), &url);
            if let Some(kinds) = accept {
                // One header: not every proxy passes several on.
                request = request.header(ACCEPT, kinds.join(", "));
            }
            if let Some(start) = start {
                request = request.header(RANGE, format!("bytes={start}-"));
            }
            if let Some(value) = &authorization {
                request = request.header(AUTHORIZATION, value);
            }
            let response = match self.exchange(request) {
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
                StatusCode::UNAUTHORIZED if authentications < MAX_AUTHENTICATIONS => {
                    authentications += 1;
                    self.authenticate(response.headers(), authorization, retry)?;
                }
                StatusCode::UNAUTHORIZED => return Err(self.unauthorized()),
                // The link to a blob's storage expires, and the registry gives a new one.
                StatusCode::FORBIDDEN if response.url().host_str() != Url::parse(&url)?.host_str() => {
                    self.pause(self.busy(response), retry, &mut io::sink())?;
                }
                status if is_passing(status) => self.pause(self.busy(response), retry, &mut io::sink())?,
                _ => return Err(self.refusal(response)),
            }
        }
    }

    /// Whether an error of [`Self::send`] is the registry's answer, rather than trouble on the way to it.
    pub(crate) fn is_answer(&self, error: &anyhow::Error) -> bool {
        error.is::<Refused>()
    }

    /// Reads a body of at most `limit` bytes.
    ///
    /// # Errors
    /// [`Failure::Connection`].
    pub(crate) fn read(&self, answer: Answer, limit: u64) -> Result<Body, Failure> {
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
            Ok(body) => body.map_err(|error: reqwest::Error| Failure::Connection(lower(&deepest(&error)))),
            Err(_) => Err(Failure::Connection(TIMED_OUT.to_owned())),
        }
    }

    /// Writes the body to `out`, without its first `skip` bytes, and counts in `done` what was written. Each blob has a
    /// thread of its own, so a writer that blocks holds up only that thread, and the registry slows down with it.
    ///
    /// # Errors
    /// [`Failure::Connection`] also for a body that trickles.
    pub(crate) fn copy(
        &self,
        answer: Answer,
        mut skip: u64,
        done: &mut u64,
        out: &mut dyn Write,
    ) -> Result<(), Failure> {
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
    pub(crate) fn pause(&self, failure: Failure, retry: &mut Retry, out: &mut dyn Write) -> anyhow::Result<()> {
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
        match failure {
            Failure::Output(error) => error.into(),
            Failure::Connection(why) => anyhow!("registry {registry:?}: {why}"),
            Failure::Busy { status, after, message } => {
                let message = if message.is_empty() { String::new() } else { format!(": {message}") };
                if status != StatusCode::TOO_MANY_REQUESTS {
                    return anyhow!("registry {registry:?}: HTTP status {}{message}", status.as_u16());
                }
                let when = after.map_or_else(|| "later".to_owned(), |after| format!("in {} s", after.as_secs()));
                let advice = if self.credentials.is_some() { "" } else { ", or log in for a higher limit" };
                anyhow!("registry {registry:?}: rate limit reached{message} (try again {when}{advice})")
            }
        }
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

    fn authorization(&self) -> Option<String> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Answers the challenge of a request that was sent with the header `used`.
    fn authenticate(&self, headers: &HeaderMap, used: Option<String>, retry: &mut Retry) -> anyhow::Result<()> {
        // While this is held, the requests of other layers wait for the token instead of fetching one each.
        let mut authorization = self.authorization.lock().unwrap_or_else(PoisonError::into_inner);
        if *authorization != used {
            return Ok(());
        }
        let challenge = match challenge_in(headers) {
            Some(challenge) => Some(challenge),
            // Some registries challenge at the root of the API alone.
            None => {
                let root = self.exchange(self.http.get(self.url_of("v2/")));
                root.ok().and_then(|root| challenge_in(root.headers()))
            }
        };
        let next = match (challenge, &self.credentials) {
            (_, Some(Credentials::RegistryToken(_))) => return Err(self.unauthorized()),
            (Some(Challenge::Bearer { realm, service, scope }), _) => {
                let token = self.token(&realm, service.as_deref(), scope.as_deref(), retry)?;
                Some(format!("Bearer {token}"))
            }
            (Some(Challenge::Basic), Some(Credentials::Password { user, password })) => {
                Some(format!("Basic {}", BASE64.encode(format!("{user}:{password}"))))
            }
            _ => None,
        };
        // A password that was refused once is not sent again.
        if next.is_none() || next.as_ref().is_some_and(|next| next.starts_with("Basic") && used.as_ref() == Some(next))
        {
            return Err(self.unauthorized());
        }
        *authorization = next;
        Ok(())
    }

    /// Asks a token service for a token (the distribution project's "Token Authentication Specification").
    fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
        retry: &mut Retry,
    ) -> anyhow::Result<String> {
        let registry = &self.reference.registry;
        let realm = Url::parse(realm).with_context(|| format!("registry {registry:?}: token service {realm:?}"))?;
        let is_safe = self.scheme == "http" || realm.scheme() == "https" || self.reference.is_loopback();
        ensure!(
            is_safe || self.credentials.is_none(),
            "registry {registry:?}: its token service is not on HTTPS, and would be sent the credentials in clear"
        );
        let own_scope = format!("repository:{}:pull", self.reference.repository);
        let mut fields = vec![("scope", scope.unwrap_or(&own_scope))];
        fields.extend(service.map(|service| ("service", service)));
        let request = |realm: Url| -> RequestBuilder {
            match &self.credentials {
                Some(Credentials::IdentityToken(token)) => {
                    let mut fields = fields.clone();
                    fields.extend([
                        ("grant_type", "refresh_token"),
                        ("client_id", "msb-pull"),
                        ("refresh_token", token),
                    ]);
                    let form = self.http.post(realm).header(CONTENT_TYPE, "application/x-www-form-urlencoded");
                    form.body(encode(&fields))
                }
                credentials => {
                    let mut realm = realm;
                    realm.query_pairs_mut().extend_pairs(&fields);
                    let request = self.http.get(realm);
                    match credentials {
                        Some(Credentials::Password { user, password }) => request.basic_auth(user, Some(password)),
                        _ => request,
                    }
                }
            }
        };
        loop {
            let response = match self.exchange(request(realm.clone())) {
                Ok(response) => response,
                Err(error) => {
                    self.pause(self.failure(&error)?, retry, &mut io::sink())?;
                    continue;
                }
            };
            match response.status() {
                status if status.is_success() => match self.read(Answer(response), MAX_TOKEN) {
                    Ok(Body::Whole(text)) => {
                        return parse_token(&text).with_context(|| format!("registry {registry:?}"));
                    }
                    Ok(Body::TooLong) => bail!("registry {registry:?}: a token of more than {MAX_TOKEN} bytes"),
                    Err(failure) => self.pause(failure, retry, &mut io::sink())?,
                },
                status if is_passing(status) => self.pause(self.busy(response), retry, &mut io::sink())?,
                status if status.is_client_error() && self.credentials.is_some() => {
                    bail!("registry {registry:?}: the credentials were refused (log in again, or use --authfile)")
                }
                StatusCode::UNAUTHORIZED => return Err(self.unauthorized()),
                _ => return Err(self.refusal(response)),
            }
        }
    }

    /// Tells trouble that may pass from trouble that does not.
    fn failure(&self, error: &reqwest::Error) -> anyhow::Result<Failure> {
        let why = match Trouble::of(error) {
            Trouble::Broken(why) => return Ok(Failure::Connection(why)),
            Trouble::Refused => "connection refused (is it running, and is the port right?)".to_owned(),
            Trouble::UnknownHost => "unknown host (is the name right?)".to_owned(),
            Trouble::UnknownAuthority => {
                "its certificate is of an unknown authority (name it with --ca-file)".to_owned()
            }
            Trouble::Certificate(why) => format!("its certificate is not good: {why}"),
            Trouble::NotTls => "it does not speak TLS (use --plain-http if that is meant)".to_owned(),
            Trouble::NotHttp => "it does not speak plain HTTP (leave --plain-http out)".to_owned(),
            Trouble::Other(why) => why,
        };
        bail!("registry {:?}: {why}", self.reference.registry)
    }
}

const TIMED_OUT: &str = "no answer (timed out)";

/// Why there is no answer.
enum Trouble {
    /// It may pass.
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
    fn of(error: &reqwest::Error) -> Self {
        let chain = || std::iter::successors(Some(error as &(dyn std::error::Error + 'static)), |error| error.source());
        let kind = chain().find_map(|error| error.downcast_ref::<io::Error>()).map(io::Error::kind);
        let text = chain().map(ToString::to_string).collect::<Vec<_>>().join(": ");
        let why = lower(&deepest(error));
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

/// An error in the body of an answer.
#[derive(Deserialize)]
struct RegistryError {
    #[serde(default, deserialize_with = "null_is_default")]
    code: String,
    #[serde(default, deserialize_with = "null_is_default")]
    message: String,
}

/// Whether a status is of trouble that may pass.
fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502 | 503 | 504)
}

fn challenge_in(headers: &HeaderMap) -> Option<Challenge> {
    challenge::choose(headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok()))
}

fn parse_token(text: &[u8]) -> anyhow::Result<String> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
    }
    let Answer { token, access_token } = serde_json::from_slice(text).context("malformed token")?;
    let token = [token, access_token].into_iter().flatten().find(|token| !token.is_empty());
    let token = token.context("the token service gave no token")?;
    ensure!(token.bytes().all(|byte| byte.is_ascii_graphic()), "malformed token");
    Ok(token)
}

/// Fields as a form (`application/x-www-form-urlencoded`).
fn encode(fields: &[(&str, &str)]) -> String {
    let mut url = Url::parse("form:").expect("the URL is well-formed");
    url.query_pairs_mut().extend_pairs(fields);
    url.query().unwrap_or_default().to_owned()
}

/// The proxies of the environment. Loopback needs none, as for docker and skopeo.
fn proxies() -> anyhow::Result<Vec<Proxy>> {
    let variable = |upper: &str| {
        let value = std::env::var(upper.to_lowercase()).or_else(|_| std::env::var(upper)).ok();
        value.filter(|value| !value.is_empty())
    };
    let none = [variable("NO_PROXY").as_deref().unwrap_or_default(), "localhost,127.0.0.0/8,::1"].join(",");
    let none = NoProxy::from_string(&none);
    let all = variable("ALL_PROXY");
    let mut proxies = Vec::new();
    type Make = fn(&str) -> reqwest::Result<Proxy>;
    for (name, make) in [("HTTPS_PROXY", (|url| Proxy::https(url)) as Make), ("HTTP_PROXY", |url| Proxy::http(url))] {
        if let Some(url) = variable(name).or_else(|| all.clone()) {
            let proxy = make(&url).with_context(|| format!("proxy {url:?} (from {name} or ALL_PROXY)"))?;
            proxies.push(proxy.no_proxy(none.clone()));
        }
    }
    Ok(proxies)
}

fn certificates(path: &Path) -> anyhow::Result<Vec<Certificate>> {
    let text = std::fs::read(path).with_context(|| format!("--ca-file {path:?}"))?;
    let certificates = Certificate::from_pem_bundle(&text).with_context(|| format!("--ca-file {path:?}"))?;
    ensure!(!certificates.is_empty(), "--ca-file {path:?}: no PEM certificate in it");
    Ok(certificates)
}

fn deepest(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |error| error.source()).last().unwrap_or(error).to_string()
}

/// A message of somebody else, which may quote the registry, in the grammar of ours.
fn lower(message: &str) -> String {
    let message = printable(message);
    let mut chars = message.trim_end_matches('.').chars();
    chars.next().map_or_else(String::new, |first| first.to_ascii_lowercase().to_string() + chars.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_two_names() {
        for (text, expected) in [
            (r#"{"token":"t"}"#, Some("t")),
            (r#"{"token":"","access_token":"a"}"#, Some("a")),
            (r#"{"token":null,"access_token":"a","expires_in":300}"#, Some("a")),
            (r#"{"token":"a\nb"}"#, None),
            ("{}", None),
            ("[", None),
        ] {
            assert_eq!(parse_token(text.as_bytes()).ok().as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_form_is_encoded() {
        assert_eq!(
            encode(&[("scope", "repository:a/b:pull"), ("t", "a+b&c")]),
            "scope=repository%3Aa%2Fb%3Apull&t=a%2Bb%26c"
        );
    }
}
