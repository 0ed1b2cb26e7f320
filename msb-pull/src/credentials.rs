//! Who to be at a registry: the `auths`, `credHelpers` and `credsStore` of containers-auth.json(5) or docker's
//! config.json, found as skopeo finds them.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, anyhow, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use msb::tool::exit::printable;
use serde::Deserialize;

/// A name and a password.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) user: String,
    pub(crate) password: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    auths: HashMap<String, Auth>,
    cred_helpers: HashMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

const NO_TOKENS: &str = "identity tokens are not supported (log in with a name and a password)";
/// What docker's helpers call a user whose secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// The credentials for `image`, a registry and a repository in it; `None` to be anonymous. A file that was named must be
/// there; of the usual ones the first that knows the image counts.
///
/// # Errors
/// Words for a file that cannot be read, and for a helper that fails.
pub(crate) fn find(image: &str, authfile: Option<&Path>) -> anyhow::Result<Option<Credentials>> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(named) = authfile.map(Path::to_owned).or_else(|| variable("REGISTRY_AUTH_FILE")) {
        let text = std::fs::read(&named).with_context(|| format!("credentials {named:?}"))?;
        return find_in(&named, &text, image);
    }
    let containers = variable("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json"));
    let docker = variable("DOCKER_CONFIG").or_else(|| Some(variable("HOME")?.join(".docker")));
    for path in containers.into_iter().chain(docker.map(|dir| dir.join("config.json"))) {
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.with_context(|| format!("credentials {path:?}"))?,
        };
        if let Some(found) = find_in(&path, &text, image)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn find_in(path: &Path, text: &[u8], image: &str) -> anyhow::Result<Option<Credentials>> {
    let find = || serde_json::from_slice::<File>(text)?.find(image);
    find().with_context(|| format!("credentials {path:?}"))
}

impl File {
    fn find(&self, image: &str) -> anyhow::Result<Option<Credentials>> {
        let registry = image.split('/').next().unwrap_or_default();
        let helper = closest(&self.cred_helpers, image).map(|(_, helper)| helper);
        if let Some(helper) = helper.or(self.creds_store.as_ref())
            && let Some(found) = ask(helper, registry)?
        {
            return Ok(Some(found));
        }
        closest(&self.auths, image).map_or(Ok(None), |(key, auth)| auth.read().with_context(|| format!("{key:?}")))
    }
}

/// The entry whose key is the longest prefix of `image`; of two spellings of one, always the same.
fn closest<'a, T>(entries: &'a HashMap<String, T>, image: &str) -> Option<(&'a String, &'a T)> {
    let matching = entries.iter().filter_map(|entry| Some((covers(entry.0, image)?, entry)));
    matching.max_by_key(|(length, (key, _))| (*length, *key)).map(|(_, entry)| entry)
}

impl Auth {
    fn read(&self) -> anyhow::Result<Option<Credentials>> {
        if self.identitytoken.as_ref().is_some_and(|token| !token.is_empty()) {
            bail!("{NO_TOKENS}");
        }
        if let Some(auth) = self.auth.as_ref().filter(|auth| !auth.is_empty()) {
            let bad = || anyhow!("\"auth\" is not base64 of USER:PASSWORD");
            let plain = String::from_utf8(STANDARD.decode(auth).map_err(|_| bad())?).map_err(|_| bad())?;
            let (user, password) = plain.split_once(':').ok_or_else(bad)?;
            return Ok(Some(Credentials { user: user.into(), password: password.trim_end_matches('\0').into() }));
        }
        Ok(match (&self.username, &self.password) {
            (Some(user), Some(password)) => Some(Credentials { user: user.clone(), password: password.clone() }),
            _ => None,
        })
    }
}

/// How much of `image` (`host:5000/a/b`) a key of the file covers, in bytes: a registry as docker writes it
/// (`https://index.docker.io/v1/`), or one with the repository or a namespace in it, as containers-auth.json(5) has it.
fn covers(key: &str, image: &str) -> Option<usize> {
    let (key, image) = (plain(key), plain(image));
    let rest = image.strip_prefix(&key)?;
    (rest.is_empty() || rest.starts_with('/')).then_some(key.len())
}

/// Without scheme, and with the one name that docker's own registry has here. Behind a scheme the path is that of an API.
fn plain(text: &str) -> String {
    let of_url = text.strip_prefix("https://").or(text.strip_prefix("http://"));
    let (host, path) = match of_url {
        Some(url) => (url.split('/').next().unwrap_or_default(), ""),
        None => text.split_at(text.find('/').unwrap_or(text.len())),
    };
    let host = match host.to_ascii_lowercase() {
        host if matches!(host.as_str(), "docker.io" | "registry-1.docker.io") => "index.docker.io".into(),
        host => host,
    };
    host + path.trim_end_matches('/')
}

/// Asks `docker-credential-HELPER get`; `None` where it knows nothing of the registry.
fn ask(helper: &str, registry: &str) -> anyhow::Result<Option<Credentials>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let program = format!("docker-credential-{helper}");
    ensure!(!helper.contains('/'), "helper {helper:?}: not a name");
    let key = if plain(registry) == plain("docker.io") { "https://index.docker.io/v1/" } else { registry };
    let answer = (|| {
        let mut child = Command::new(&program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        // A helper that needs no input may be gone already; its answer counts.
        let _ = child.stdin.take().map(|mut stdin| stdin.write_all(key.as_bytes()));
        child.wait_with_output()
    })();
    let answer = answer.with_context(|| format!("helper {program:?}"))?;
    let words = String::from_utf8_lossy(&answer.stdout);
    if !answer.status.success() {
        // The word for it in docker's own helpers.
        if words.contains("credentials not found") {
            return Ok(None);
        }
        let words = format!("{} {}", words.trim(), String::from_utf8_lossy(&answer.stderr).trim());
        return Err(anyhow!("helper {program:?}: {}", printable(words.trim())));
    }
    let Answer { username: user, secret: password } =
        serde_json::from_slice(&answer.stdout).with_context(|| format!("helper {program:?}"))?;
    ensure!(user != TOKEN_USER, "helper {program:?}: {NO_TOKENS}");
    Ok(Some(Credentials { user, password }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_in_several_forms() {
        for (key, image, length) in [
            ("host:5000", "host:5000/a/b", Some(9)),
            ("https://host:5000", "host:5000/a/b", Some(9)),
            ("http://HOST:5000/v2/", "host:5000/a/b", Some(9)),
            ("https://index.docker.io/v1/", "docker.io/library/a", Some(15)),
            ("host:5000/a", "host:5000/a/b", Some(11)),
            ("host:5000/a/b", "host:5000/a/b", Some(13)),
            ("host:5000/a/bc", "host:5000/a/b", None),
            ("host:5000/a/b", "host:5000/a/bc", None),
            ("host", "host:5000/a/b", None),
            ("evil.host:5000", "host:5000/a/b", None),
        ] {
            assert_eq!(covers(key, image), length, "{key} {image}");
        }
    }

    #[test]
    fn the_closest_key_wins() {
        let auths = [("h", "dTph"), ("h/a", "dTpi"), ("h/a/b", "dTpj"), ("https://h/v1/", "dTpk")];
        let auths = auths.map(|(key, auth)| format!(r#""{key}":{{"auth":"{auth}"}}"#)).join(",");
        for _ in 0..8 {
            let file: File = serde_json::from_str(&format!(r#"{{"auths":{{{auths}}}}}"#)).unwrap();
            for (image, password) in [("h/a/b", "c"), ("h/a/x", "b"), ("h/x", "d")] {
                assert_eq!(file.find(image).unwrap().unwrap().password, password, "{image}");
            }
        }
    }

    #[test]
    fn auths_are_read_in_both_spellings() {
        let file = |auth: &str| -> File { serde_json::from_str(&format!(r#"{{"auths":{{"h":{auth}}}}}"#)).unwrap() };
        for (auth, found) in [
            (r#"{"auth":"dTpwOnE="}"#, Some(("u", "p:q"))),
            (r#"{"username":"u","password":"p"}"#, Some(("u", "p"))),
            ("{}", None),
            (r#"{"auth":""}"#, None),
        ] {
            let credentials = file(auth).find("h").unwrap();
            assert_eq!(credentials.as_ref().map(|c| (c.user.as_str(), c.password.as_str())), found, "{auth}");
        }
        assert!(file(r#"{"auth":"?"}"#).find("h").is_err());
        let token = file(r#"{"auth":"dTo=","identitytoken":"t"}"#).find("h").err().unwrap();
        assert!(format!("{token:#}").contains("identity tokens are not supported"));
        assert!(file(r#"{"auth":"dTpwOnE="}"#).find("other").unwrap().is_none());
    }
}
