//! The proxies that the HTTP library is given before the first request.

use anyhow::Context;
use reqwest::{NoProxy, Proxy};

/// The proxies that the environment names. Loopback is reached without one, as by docker and skopeo.
pub(super) fn proxies() -> anyhow::Result<Vec<Proxy>> {
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
