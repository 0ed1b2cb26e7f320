//! Who to be at a registry: the `auths`, `credHelpers` and `credsStore` of docker's config.json, found as docker and
//! skopeo find it.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, anyhow, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
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
}

/// The credentials for `registry`; `None` to be anonymous. A file that was named must be there.
///
/// # Errors
/// Words for a file that cannot be read, and for a helper that fails.
pub(crate) fn find(registry: &str, authfile: Option<&Path>) -> anyhow::Result<Option<Credentials>> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let named = authfile.map(Path::to_owned).or_else(|| variable("REGISTRY_AUTH_FILE"));
    let is_named = named.is_some();
    let usual = || variable("DOCKER_CONFIG").or_else(|| Some(variable("HOME")?.join(".docker")));
    let Some(path) = named.or_else(|| Some(usual()?.join("config.json"))) else { return Ok(None) };
    let text = match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !is_named => return Ok(None),
        other => other.with_context(|| format!("credentials {path:?}"))?,
    };
    let file: File = serde_json::from_slice(&text).with_context(|| format!("credentials {path:?}"))?;
    file.find(registry).with_context(|| format!("credentials {path:?}"))
}

impl File {
    fn find(&self, registry: &str) -> anyhow::Result<Option<Credentials>> {
        let is_it = |key: &String| same_registry(key, registry);
        let helper = self.cred_helpers.iter().find(|(key, _)| is_it(key)).map(|(_, helper)| helper);
        if let Some(helper) = helper.or(self.creds_store.as_ref())
            && let Some(found) = ask(helper, registry)?
        {
            return Ok(Some(found));
        }
        self.auths
            .iter()
            .find(|(key, _)| is_it(key))
            .map_or(Ok(None), |(key, auth)| auth.read().with_context(|| format!("{key:?}")))
    }
}

impl Auth {
    fn read(&self) -> anyhow::Result<Option<Credentials>> {
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

/// Whether a key of the file names a registry: keys come with scheme and path (`https://index.docker.io/v1/`) or without.
fn same_registry(key: &str, registry: &str) -> bool {
    let host = |text: &str| {
        let text = text.strip_prefix("https://").or(text.strip_prefix("http://")).unwrap_or(text);
        let host = text.split('/').next().unwrap_or_default().to_ascii_lowercase();
        if matches!(host.as_str(), "docker.io" | "registry-1.docker.io") { "index.docker.io".into() } else { host }
    };
    host(key) == host(registry)
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
    let key = if same_registry("docker.io", registry) { "https://index.docker.io/v1/" } else { registry };
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
        return Err(anyhow!("helper {program:?}: {}", words.trim()));
    }
    let Answer { username: user, secret: password } =
        serde_json::from_slice(&answer.stdout).with_context(|| format!("helper {program:?}"))?;
    Ok(Some(Credentials { user, password }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_in_several_forms() {
        for (key, registry, is_same) in [
            ("host:5000", "host:5000", true),
            ("https://host:5000", "host:5000", true),
            ("http://HOST:5000/v2/", "host:5000", true),
            ("https://index.docker.io/v1/", "docker.io", true),
            ("host", "host:5000", false),
            ("evil.host:5000", "host:5000", false),
        ] {
            assert_eq!(same_registry(key, registry), is_same, "{key} {registry}");
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
        assert!(file(r#"{"auth":"dTpwOnE="}"#).find("other").unwrap().is_none());
    }
}
