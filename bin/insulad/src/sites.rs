//! Where host names are served, from flags and the configuration file.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use insula_engine::SiteOptions;

/// Where certificates are looked for.
const CERTIFICATES: &str = "/etc/insula/host-certs";
/// More addresses than anybody has a use for; their sockets go to the proxy in one message.
const MOST: usize = 8;

/// `[IP:]PORT` of each, or `off` alone; `usual` where there are none.
pub(crate) fn places(flag: &str, given: &[String], usual: u16) -> Result<Vec<SocketAddr>> {
    if given == ["off"] {
        return Ok(Vec::new());
    }
    let own = [usual.to_string()];
    let texts = if given.is_empty() { &own[..] } else { given };
    if texts.len() > MOST {
        bail!("{flag}: {} addresses are more than {MOST}", texts.len());
    }
    let mut places = Vec::new();
    for text in texts {
        let wrong = || format!("{flag} {text:?}: [IP:]PORT or off is expected");
        if let Ok(port) = text.parse::<u16>() {
            let all: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
            places.extend(all.map(|ip| SocketAddr::new(ip, port)));
        } else {
            places.push(text.parse::<SocketAddr>().with_context(wrong)?);
        }
        if places.last().is_some_and(|place| place.port() == 0) {
            bail!("{}", wrong());
        }
    }
    Ok(places)
}

/// All of it.
pub(crate) fn options(
    proxy: PathBuf,
    http: &[String],
    https: &[String],
    certificates: Option<PathBuf>,
) -> Result<SiteOptions> {
    let certificates = std::path::absolute(certificates.unwrap_or_else(|| CERTIFICATES.into()))?;
    let (http, https) = (places("publish-host-http", http, 80)?, places("publish-host-https", https, 443)?);
    if let Some(twice) = http.iter().find(|place| https.contains(place)) {
        bail!("publish-host-https {twice}: HTTP without TLS is served there");
    }
    Ok(SiteOptions { proxy, http, https, certificates })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_ports_and_addresses() {
        let shown = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
            places("x", &texts, 80).map(|all| all.iter().map(SocketAddr::to_string).collect::<Vec<_>>())
        };
        assert_eq!(shown(&[]).unwrap(), ["0.0.0.0:80", "[::]:80"]);
        assert_eq!(shown(&["127.0.0.1:8080", "81"]).unwrap(), ["127.0.0.1:8080", "0.0.0.0:81", "[::]:81"]);
        assert!(shown(&["off"]).unwrap().is_empty());
        for bad in ["0", "x", "127.0.0.1", "127.0.0.1:0", "70000"] {
            let error = shown(&[bad]).unwrap_err().to_string();
            assert!(error.contains("[IP:]PORT or off is expected"), "{error}");
        }
        assert!(shown(&["off", "80"]).is_err() && shown(&["80"; 9]).is_err());
        let same = ["80".to_owned()];
        assert!(options("/x".into(), &same, &same, None).is_err());
    }
}
