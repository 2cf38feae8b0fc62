//! Certificates, found by the names that stand in them.

use std::collections::HashMap;
use std::sync::Arc;

use insula_spec::sites::{Certificate, HostName};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

/// A certificate with its key.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) key: Arc<CertifiedKey>,
    names: Vec<String>,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Identities(HashMap<String, Arc<Identity>>);

impl Identity {
    fn new(certificate: &Certificate, provider: &CryptoProvider) -> Result<Self, String> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate.chain.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| format!("its certificates cannot be read: {error}"))?;
        let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes())
            .map_err(|error| format!("its key cannot be read: {error}"))?;
        let first = chain.first().ok_or("it has no certificate")?;
        let parsed = webpki::EndEntityCert::try_from(first)
            .map_err(|error| format!("its certificate cannot be understood: {error}"))?;
        let names: Vec<String> = parsed.valid_dns_names().map(str::to_ascii_lowercase).collect();
        if names.is_empty() {
            return Err("its certificate has no DNS name (subjectAltName)".to_owned());
        }
        let key = CertifiedKey::from_der(chain, key, provider)
            .map_err(|error| format!("certificate and key do not belong together: {error}"))?;
        Ok(Self { key: Arc::new(key), names })
    }

    /// Whether it is this name's.
    pub(crate) fn covers(&self, name: &HostName) -> bool {
        forms(name).any(|form| self.names.contains(&form))
    }
}

/// How a certificate may call it: a wildcard stands for one label (RFC 9525).
fn forms(name: &HostName) -> impl Iterator<Item = String> {
    let wild = name.as_str().split_once('.').map(|(_, parent)| format!("*.{parent}"));
    std::iter::once(name.to_string()).chain(wild)
}

impl Identities {
    /// Those that can be used, and what is wrong with the others. Of two with one name the last is taken.
    pub(crate) fn new(certificates: &[Certificate], provider: &CryptoProvider) -> (Self, Vec<String>) {
        let (mut known, mut warnings) = (HashMap::new(), Vec::new());
        for certificate in certificates {
            match Identity::new(certificate, provider) {
                Ok(identity) => {
                    let identity = Arc::new(identity);
                    known.extend(identity.names.iter().map(|name| (name.clone(), identity.clone())));
                }
                Err(why) => {
                    warnings.push(format!("the certificate {} is not used: {why}", certificate.source))
                }
            }
        }
        (Self(known), warnings)
    }

    pub(crate) fn of(&self, name: &HostName) -> Option<Arc<Identity>> {
        forms(name).find_map(|form| self.0.get(&form)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(source: &str, names: &[&str]) -> Certificate {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        Certificate { source: source.into(), chain: made.cert.pem(), key: made.signing_key.serialize_pem() }
    }

    #[test]
    fn certificates_are_found_by_the_names_in_them() {
        let (one, two) = (made("one", &["a.org", "*.a.org"]), made("two", &["b.a.org"]));
        let mixed = Certificate { source: "mixed".into(), key: two.key.clone(), ..one.clone() };
        let empty = Certificate { source: "empty".into(), chain: String::new(), ..one.clone() };
        let provider = rustls::crypto::ring::default_provider();
        let (known, warnings) = Identities::new(&[one, two, mixed, empty], &provider);
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(
            warnings[0].starts_with("the certificate mixed is not used: certificate and key"),
            "{warnings:?}"
        );
        let names = |text: &str| known.of(&text.parse().unwrap()).map(|found| found.names.len());
        assert_eq!([names("a.org"), names("x.a.org"), names("b.a.org")], [Some(2), Some(2), Some(1)]);
        assert_eq!([names("x.y.a.org"), names("org")], [None, None]);
        assert!(known.of(&"a.org".parse().unwrap()).unwrap().covers(&"b.a.org".parse().unwrap()));
    }
}
