//! Authentication: a registry's challenge is answered with a password, or with a token of its token service.

use std::io;
use std::sync::PoisonError;

use anyhow::{Context, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use reqwest::header::{CONTENT_TYPE, HeaderMap, WWW_AUTHENTICATE};
use reqwest::{RequestBuilder, StatusCode, Url};
use serde::Deserialize;

use super::{Answer, Body, Client, is_transient};
use crate::challenge::{self, Challenge};
use crate::credentials::Credentials;
use crate::retry::Retry;

/// The largest answer of a token service, in bytes.
const MAX_TOKEN: u64 = 1 << 20;

impl Client {
    /// The `Authorization` header of the next request.
    pub(super) fn authorization(&self) -> Option<String> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Answers the challenge of a request that was sent with the header `used`.
    pub(super) fn authenticate(
        &self,
        headers: &HeaderMap,
        used: Option<String>,
        retry: &mut Retry,
    ) -> anyhow::Result<()> {
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
                    fields.extend([("grant_type", "refresh_token"), ("client_id", "msb"), ("refresh_token", token)]);
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
                status if is_transient(status) => self.pause(self.busy(response), retry, &mut io::sink())?,
                status if status.is_client_error() && self.credentials.is_some() => {
                    bail!("registry {registry:?}: the credentials were refused (log in again, or use --authfile)")
                }
                StatusCode::UNAUTHORIZED => return Err(self.unauthorized()),
                _ => return Err(self.refusal(response)),
            }
        }
    }
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
