//! What of a head is between two neighbours only, and what the proxy adds.

use std::net::IpAddr;

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue, TE,
    TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Uri, Version};
use insula_spec::sites::HostName;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// Whom a request is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) name: HostName,
    /// As the client wrote it, with a port if it did.
    authority: HeaderValue,
}

/// From the target of the request if it names the host (HTTP/2, and HTTP/1.1's absolute form, which RFC 9112, 3.2.2
/// says wins), else from its one `Host`.
pub(crate) fn asked(parts: &Parts) -> Option<Asked> {
    let authority = match parts.uri.authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok()?,
        None => {
            let mut hosts = parts.headers.get_all(HOST).iter();
            let host = hosts.next()?.clone();
            if hosts.next().is_some() {
                return None;
            }
            host
        }
    };
    let name = HostName::of_authority(authority.to_str().ok()?).ok()?;
    Some(Asked { name, authority })
}

/// The protocol that a request of HTTP/1.1 wants to change to.
pub(crate) fn upgrade(parts: &Parts) -> Option<HeaderValue> {
    let wants = parts.version == Version::HTTP_11
        && parts
            .headers
            .get_all(CONNECTION)
            .iter()
            .any(|value| tokens(value).any(|token| token == "upgrade"));
    let protocol = parts.headers.get(UPGRADE)?;
    // To HTTP/2 nobody changes so any more (RFC 9113, 3.1).
    (wants && protocol != "h2c").then(|| protocol.clone())
}

fn tokens(value: &HeaderValue) -> impl Iterator<Item = String> {
    value.to_str().unwrap_or_default().split(',').map(|token| token.trim().to_ascii_lowercase())
}

/// Takes away what is between two neighbours only (RFC 9110, 7.6.1).
pub(crate) fn strip(headers: &mut HeaderMap) {
    let named: Vec<String> = headers.get_all(CONNECTION).iter().flat_map(tokens).collect();
    // Whoever names these means to have them lost on the way, which nobody has a use for.
    let kept = [HOST.as_str(), CONTENT_LENGTH.as_str(), COOKIE.as_str()];
    for name in
        named.iter().filter(|name| !kept.contains(&name.as_str()) && !name.starts_with("x-forwarded-"))
    {
        headers.remove(name.as_str());
    }
    for name in [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
}

/// Makes a request of a client one to a container: HTTP/1.1, with its path alone, and with what the container cannot
/// know of the client. What the client itself says of that is not believed.
pub(crate) fn rewrite(parts: &mut Parts, asked: &Asked, client: IpAddr, secure: bool, port: u16) {
    let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    parts.uri = Uri::from(path);
    parts.version = Version::HTTP_11;
    let headers = &mut parts.headers;
    strip(headers);
    for name in [EXPECT, FORWARDED, X_REAL_IP] {
        headers.remove(name);
    }
    headers.insert(HOST, asked.authority.clone());
    join_cookies(headers);
    let proto = if secure { "https" } else { "http" };
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(proto));
    headers.insert(X_FORWARDED_HOST, asked.authority.clone());
    headers.insert(X_FORWARDED_PORT, HeaderValue::from(port));
    if let Ok(client) = HeaderValue::from_str(&client.to_string()) {
        headers.insert(X_FORWARDED_FOR, client);
    }
}

/// Makes a request that was made one to a container one of HTTP/2, which has its host in its target
/// (RFC 9113, 8.3.1). `trailers` is whether the client takes fields behind the body, as those of gRPC do.
pub(crate) fn to_version_2(parts: &mut Parts, asked: &Asked, trailers: bool) -> Option<()> {
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.scheme = Some(Scheme::HTTP);
    uri.authority = Some(Authority::try_from(asked.authority.as_bytes()).ok()?);
    parts.uri = Uri::from_parts(uri).ok()?;
    parts.version = Version::HTTP_2;
    parts.headers.remove(HOST);
    if trailers {
        parts.headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    Some(())
}

/// Whether a client takes fields behind a body.
pub(crate) fn takes_trailers(headers: &HeaderMap) -> bool {
    headers.get_all(TE).iter().any(|value| tokens(value).any(|token| token == "trailers"))
}

/// Where a request is to be made again: the same with TLS.
pub(crate) fn secured(parts: &Parts, asked: &Asked, port: u16) -> Option<HeaderValue> {
    let path = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let port = if port == 443 { String::new() } else { format!(":{port}") };
    HeaderValue::from_str(&format!("https://{}{port}{path}", asked.name)).ok()
}

/// HTTP/2 may send cookies one by one, HTTP/1.1 in one line only (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let all: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if all.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..]))
    {
        headers.insert(COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn parts(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn one_host_is_asked_for() {
        let name = |uri: &str, headers: &[(&str, &str)]| {
            asked(&parts(uri, headers)).map(|asked| asked.name.to_string())
        };
        assert_eq!(name("/", &[("host", "A.org:81")]).as_deref(), Some("a.org"));
        assert_eq!(name("http://b.org/x", &[("host", "a.org")]).as_deref(), Some("b.org"));
        assert_eq!(name("/", &[]), None);
        assert_eq!(name("/", &[("host", "a.org"), ("host", "b.org")]), None);
        assert_eq!(name("/", &[("host", "a.org, b.org")]), None);
        assert_eq!(name("http://user@a.org/", &[]), None);
    }

    #[test]
    fn only_the_end_to_end_part_reaches_the_container() {
        let mut request = parts(
            "http://a.org:81/x?y=1",
            &[
                ("connection", "close, X-Secret, x-forwarded-for, host"),
                ("x-secret", "1"),
                ("transfer-encoding", "chunked"),
                ("x-forwarded-for", "203.0.113.9"),
                ("forwarded", "for=203.0.113.9"),
                ("x-real-ip", "203.0.113.9"),
                ("cookie", "a=1"),
                ("cookie", "b=2"),
                ("accept", "*/*"),
            ],
        );
        let asked = asked(&request).unwrap();
        rewrite(&mut request, &asked, [192, 0, 2, 1].into(), true, 443);
        assert_eq!(request.uri, "/x?y=1");
        let mut left: Vec<String> = request
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        left.sort();
        assert_eq!(
            left,
            [
                "accept: */*",
                "cookie: a=1; b=2",
                "host: a.org:81",
                "x-forwarded-for: 192.0.2.1",
                "x-forwarded-host: a.org:81",
                "x-forwarded-port: 443",
                "x-forwarded-proto: https",
            ]
        );
    }

    #[test]
    fn an_upgrade_is_asked_for_by_both_headers() {
        let wants = |headers: &[(&str, &str)]| upgrade(&parts("/", headers)).is_some();
        assert!(wants(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]));
        assert!(!wants(&[("upgrade", "websocket")]));
        assert!(!wants(&[("connection", "upgrade")]));
        assert!(!wants(&[("connection", "upgrade"), ("upgrade", "h2c")]));
    }
}
