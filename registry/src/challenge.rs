//! `WWW-Authenticate` (RFC 9110, section 11.6.1): a registry may name several schemes, in one header or in several. Pure.

/// How to authenticate to a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// With a token of the service at `realm`.
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
    /// With a user name and a password.
    Basic,
}

/// The challenge to answer: a token is preferred to a password. `None` if no scheme is known.
pub fn choose<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let challenges: Vec<Challenge> = headers.flat_map(parse).collect();
    let bearer = challenges.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
    bearer.or(challenges.first()).cloned()
}

/// The challenges of one header whose schemes are known.
fn parse(header: &str) -> Vec<Challenge> {
    let mut schemes: Vec<(String, Vec<(String, String)>)> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        if end == 0 {
            break;
        }
        let (word, after) = rest.split_at(end);
        let value = after.trim_start_matches([' ', '\t']).strip_prefix('=').map(|value| value.trim_start_matches('='));
        match (value, schemes.last_mut()) {
            (Some(value), Some((_, parameters))) => {
                let (value, after) = split_value(value.trim_start_matches([' ', '\t']));
                parameters.push((word.to_ascii_lowercase(), value));
                rest = after;
            }
            (Some(_), None) => break,
            (None, _) => {
                schemes.push((word.to_ascii_lowercase(), Vec::new()));
                rest = after;
            }
        }
    }
    schemes.into_iter().filter_map(|(scheme, parameters)| challenge(&scheme, &parameters)).collect()
}

/// A token, or a quoted string with its escapes undone, and what follows it.
fn split_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, char)| char)),
            char => value.push(char),
        }
    }
    (value, "")
}

fn challenge(scheme: &str, parameters: &[(String, String)]) -> Option<Challenge> {
    let get = |name: &str| {
        let found = parameters.iter().find(|(key, value)| key == name && !value.is_empty());
        found.map(|(_, value)| value.clone())
    };
    match scheme {
        "bearer" => Some(Challenge::Bearer { realm: get("realm")?, service: get("service"), scope: get("scope") }),
        "basic" => Some(Challenge::Basic),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_found_among_others() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            let (service, scope) = (service.map(str::to_owned), scope.map(str::to_owned));
            Some(Challenge::Bearer { realm: realm.to_owned(), service, scope })
        };
        let plain = || bearer("https://a/t", Some("s"), None);
        for (headers, expected) in [
            (
                &[r#"Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push""#][..],
                bearer("https://a/t", Some("s"), Some("repository:a/b:pull,push")),
            ),
            (&[r#"Basic realm="x", Bearer realm="https://a/t", service="s""#], plain()),
            (&[r#"Bearer realm="https://a/t",service="s",Basic realm="x""#], plain()),
            (&[r#"Basic realm="a, b=c \"d\" Bearer""#], Some(Challenge::Basic)),
            (&["Basic realm=x", r#"bearer Realm = "https://a/t" , SERVICE=s"#], plain()),
            (&["Negotiate", r#"Bearer realm="https://a/t",service="s""#], plain()),
            (&[r#"Negotiate abc==, Bearer realm="https://a/t",service=s"#], plain()),
            (&[r#"Bearer realm="https://a/t",error="invalid_token""#], bearer("https://a/t", None, None)),
            (&["Basic"], Some(Challenge::Basic)),
            (&["Bearer service=x", "Basic"], Some(Challenge::Basic)),
            (&["Negotiate", r#"Digest realm="x""#], None),
            (&["", "=,", "realm=x"], None),
            (&[r#"Bearer realm="unclosed"#], bearer("unclosed", None, None)),
        ] {
            assert_eq!(choose(headers.iter().copied()), expected, "{headers:?}");
        }
    }
}
