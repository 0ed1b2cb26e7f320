//! The credentials for a registry: the `auths`, `credHelpers` and `credsStore` of containers-auth.json(5) or docker's
//! config.json, found as skopeo finds them.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, anyhow, ensure};
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use msb::tool::exit::printable;
use serde::Deserialize;

use crate::json::null_is_default;

/// How to authenticate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// A name and a password.
    Password {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
    /// A refresh token, which the registry's token service exchanges for an access token.
    IdentityToken(String),
    /// An access token.
    RegistryToken(String),
}

/// The result of the search for an image.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Lookup {
    /// `None` to be anonymous.
    pub credentials: Option<Credentials>,
    /// Why credentials may be missing. A public image needs none, so this is not an error.
    pub warning: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    #[serde(deserialize_with = "null_is_default")]
    auths: HashMap<String, Option<Auth>>,
    #[serde(deserialize_with = "null_is_default")]
    cred_helpers: HashMap<String, Option<String>>,
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

/// What docker's helpers call a user whose secret is an identity token.
const TOKEN_USER: &str = "<token>";
/// Some tools leave the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Looks up the credentials for `image`, a registry and a repository in it, at each of `helpers`, where `None` stands for the
/// files.
///
/// # Errors
/// A message for a file that the caller names and that cannot be read.
pub fn find(image: &str, authfile: Option<&Path>, helpers: &[Option<&str>]) -> anyhow::Result<Lookup> {
    let mut warning = None;
    for helper in helpers {
        let lookup = match helper {
            None => find_in_files(image, authfile)?,
            Some(helper) => match ask(helper, image.split('/').next().unwrap_or_default()) {
                Ok(credentials) => Lookup { credentials, warning: None },
                Err(error) => Lookup { credentials: None, warning: Some(format!("{error:#}")) },
            },
        };
        if lookup.credentials.is_some() {
            return Ok(lookup);
        }
        warning = warning.or(lookup.warning);
    }
    Ok(Lookup { credentials: None, warning })
}

/// A file that the caller names must exist and be well-formed. Of the usual files, the first that has an entry for the image is
/// used.
///
/// # Errors
/// A message for a named file that cannot be read.
fn find_in_files(image: &str, authfile: Option<&Path>) -> anyhow::Result<Lookup> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(named) = authfile.map(Path::to_owned).or_else(|| variable("REGISTRY_AUTH_FILE")) {
        let text = std::fs::read(&named).with_context(|| format!("credentials {named:?}"))?;
        return find_in(&named, &text, image);
    }
    let containers = variable("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json"));
    let docker = variable("DOCKER_CONFIG").or_else(|| Some(variable("HOME")?.join(".docker")));
    let mut warning = None;
    for path in containers.into_iter().chain(docker.map(|dir| dir.join("config.json"))) {
        let found = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => Err(anyhow!(error).context(format!("credentials {path:?}"))),
            Ok(text) => find_in(&path, &text, image),
        };
        match found {
            Ok(Lookup { credentials: Some(credentials), .. }) => {
                return Ok(Lookup { credentials: Some(credentials), warning: None });
            }
            Ok(lookup) => warning = warning.or(lookup.warning),
            Err(error) => warning = warning.or(Some(format!("{error:#}"))),
        }
    }
    Ok(Lookup { credentials: None, warning })
}

fn find_in(path: &Path, text: &[u8], image: &str) -> anyhow::Result<Lookup> {
    // docker leaves an empty file after a full disk.
    if text.trim_ascii().is_empty() {
        return Ok(Lookup::default());
    }
    let find = || serde_json::from_slice::<Option<File>>(text)?.unwrap_or_default().find(image);
    find().with_context(|| format!("credentials {path:?}"))
}

impl File {
    fn find(&self, image: &str) -> anyhow::Result<Lookup> {
        let registry = image.split('/').next().unwrap_or_default();
        let helper = closest(&self.cred_helpers, image).map(|(_, helper)| helper);
        let helper = helper.or(self.creds_store.as_ref()).filter(|helper| !helper.is_empty());
        let mut warning = None;
        if let Some(helper) = helper {
            match ask(helper, registry) {
                Ok(Some(credentials)) => return Ok(Lookup { credentials: Some(credentials), warning: None }),
                Ok(None) => {}
                // The helper may be of another machine or need a desktop session, and the image may be public.
                Err(error) => warning = Some(format!("{error:#}")),
            }
        }
        let credentials = match closest(&self.auths, image) {
            Some((key, auth)) => auth.read().with_context(|| format!("{key:?}"))?,
            None => None,
        };
        Ok(Lookup { credentials, warning })
    }
}

/// The entry whose key is the longest prefix of `image`; of two spellings of one, always the same.
fn closest<'a, T>(entries: &'a HashMap<String, Option<T>>, image: &str) -> Option<(&'a String, &'a T)> {
    let matching = entries.iter().filter_map(|(key, value)| Some((covers(key, image)?, (key, value.as_ref()?))));
    matching.max_by_key(|(length, (key, _))| (*length, *key)).map(|(_, entry)| entry)
}

impl Auth {
    fn read(&self) -> anyhow::Result<Option<Credentials>> {
        let given = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
        if let Some(token) = given(&self.registrytoken) {
            return Ok(Some(Credentials::RegistryToken(token)));
        }
        if let Some(token) = given(&self.identitytoken) {
            return Ok(Some(Credentials::IdentityToken(token)));
        }
        if let Some(auth) = given(&self.auth) {
            let bad = || anyhow!("\"auth\" is not base64 of USER:PASSWORD");
            let plain = String::from_utf8(BASE64.decode(auth.trim()).map_err(|_| bad())?).map_err(|_| bad())?;
            let (user, password) = plain.split_once(':').ok_or_else(bad)?;
            return Ok(Some(credentials(user.to_owned(), password.trim_end_matches('\0').to_owned())));
        }
        Ok(match (given(&self.username), &self.password) {
            (Some(user), Some(password)) => Some(credentials(user, password.clone())),
            _ => None,
        })
    }
}

fn credentials(user: String, password: String) -> Credentials {
    match user.as_str() {
        TOKEN_USER => Credentials::IdentityToken(password),
        _ => Credentials::Password { user, password },
    }
}

/// How much of `image` (`host:5000/a/b`) a key of the file covers, in bytes: a registry as docker writes it
/// (`https://index.docker.io/v1/`), or one with the repository or a namespace in it, as containers-auth.json(5) has it.
fn covers(key: &str, image: &str) -> Option<usize> {
    let (key, image) = (plain(key), plain(image));
    let rest = image.strip_prefix(&key)?;
    (rest.is_empty() || rest.starts_with('/')).then_some(key.len())
}

/// Without the scheme, and with one name for docker's own registry. With a scheme, the path is that of an API and is left out.
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

/// Asks `docker-credential-HELPER get`; `None` if it does not know the registry.
fn ask(helper: &str, registry: &str) -> anyhow::Result<Option<Credentials>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        #[serde(default, deserialize_with = "null_is_default")]
        username: String,
        #[serde(default, deserialize_with = "null_is_default")]
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
        // A helper that needs no input may have ended already. Its output is used.
        let _ = child.stdin.take().map(|mut stdin| stdin.write_all(key.as_bytes()));
        child.wait_with_output()
    })();
    let answer = answer.with_context(|| format!("helper {program:?}"))?;
    let output = String::from_utf8_lossy(&answer.stdout);
    if !answer.status.success() {
        // The message of docker's own helpers.
        if output.contains("credentials not found") {
            return Ok(None);
        }
        let message = format!("{} {}", output.trim(), String::from_utf8_lossy(&answer.stderr).trim());
        return Err(anyhow!("helper {program:?}: {}", printable(message.trim())));
    }
    let Answer { username, secret } =
        serde_json::from_slice(&answer.stdout).with_context(|| format!("helper {program:?}"))?;
    Ok((!username.is_empty() || !secret.is_empty()).then(|| credentials(username, secret)))
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
                let expected = Credentials::Password { user: "u".into(), password: password.into() };
                assert_eq!(file.find(image).unwrap().credentials, Some(expected), "{image}");
            }
        }
    }

    #[test]
    fn auths_are_read_in_all_spellings() {
        let password = |user: &str, password: &str| {
            Some(Credentials::Password { user: user.to_owned(), password: password.to_owned() })
        };
        let find = |auth: &str, image: &str| find_in(Path::new("f"), auth.as_bytes(), image);
        for (auth, expected) in [
            (r#"{"auth":"dTpwOnE="}"#, password("u", "p:q")),
            (r#"{"auth":"dTpwOnE"}"#, password("u", "p:q")),
            (r#"{"username":"u","password":"p"}"#, password("u", "p")),
            (r#"{"auth":"dTo=","identitytoken":"t"}"#, Some(Credentials::IdentityToken("t".into()))),
            (r#"{"username":"<token>","password":"t"}"#, Some(Credentials::IdentityToken("t".into()))),
            (r#"{"registrytoken":"t"}"#, Some(Credentials::RegistryToken("t".into()))),
            (r#"{"auth":null,"identitytoken":null,"username":null}"#, None),
            ("{}", None),
            ("null", None),
            (r#"{"auth":""}"#, None),
        ] {
            let lookup = find(&format!(r#"{{"auths":{{"h":{auth}}}}}"#), "h").unwrap();
            assert_eq!(lookup, Lookup { credentials: expected, warning: None }, "{auth}");
        }
        assert!(find(r#"{"auths":{"h":{"auth":"?"}}}"#, "h").is_err());
        assert_eq!(find(r#"{"auths":{"h":{"auth":"dTpwOnE="}}}"#, "other").unwrap(), Lookup::default());
    }

    #[test]
    fn a_file_without_credentials_is_no_obstacle() {
        for text in [
            "",
            " \n",
            "{}",
            "null",
            r#"{"auths":null,"credHelpers":null,"credsStore":null}"#,
            r#"{"credHelpers":{"h":null},"credsStore":""}"#,
        ] {
            assert_eq!(find_in(Path::new("f"), text.as_bytes(), "h").unwrap(), Lookup::default(), "{text:?}");
        }
        let missing = find_in(Path::new("f"), br#"{"credsStore":"no-such-helper"}"#, "h").unwrap();
        assert!(missing.credentials.is_none() && missing.warning.unwrap().contains("docker-credential-no-such-helper"));
        assert!(find_in(Path::new("f"), b"[", "h").is_err());
    }
}
