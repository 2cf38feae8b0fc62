//! Whom to trust, and as whom to appear, for each registry (`certs.d` as Docker has it).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::options::Options;
use crate::{Error, Result};

/// Bytes of a file of certificates.
const FILE_MAX: u64 = 4 << 20;

/// The host's authorities, read once.
#[derive(Debug, Default)]
pub(crate) struct Trust {
    host: OnceLock<Arc<RootCertStore>>,
}

impl Trust {
    fn host(&self) -> Arc<RootCertStore> {
        let read = || {
            let found = rustls_native_certs::load_native_certs();
            for error in &found.errors {
                tracing::warn!(%error, "an authority of the host is left out");
            }
            let mut store = RootCertStore::empty();
            store.add_parsable_certificates(found.certs);
            Arc::new(store)
        };
        self.host.get_or_init(read).clone()
    }

    /// What TLS to a registry (`HOST[:PORT]`) is like.
    pub(crate) fn configuration(&self, options: &Options, domain: &str) -> Result<ClientConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let failed = |source| Error::Tls { host: domain.to_owned(), source };
        let private = Private::read(options, domain)?;
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(failed)?;
        let builder = if options.is_insecure(domain) && private.authorities.is_empty() {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified(provider)))
        } else {
            let mut roots = (*self.host()).clone();
            for (path, authority) in private.authorities {
                roots.add(authority).map_err(|error| certificate(&path, error))?;
            }
            builder.with_root_certificates(roots)
        };
        match private.own {
            Some((path, chain, key)) => {
                builder.with_client_auth_cert(chain, key).map_err(|error| certificate(&path, error))
            }
            None => Ok(builder.with_no_client_auth()),
        }
    }
}

/// What a registry's folder holds.
#[derive(Default)]
struct Private {
    authorities: Vec<(PathBuf, CertificateDer<'static>)>,
    own: Option<(PathBuf, Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
}

impl Private {
    /// The first folder that there is.
    fn read(options: &Options, domain: &str) -> Result<Self> {
        // It becomes the name of a folder.
        if domain.contains('/') || domain.starts_with('.') {
            return Ok(Self::default());
        }
        let mut folders = options.certificates.iter().map(|folder| folder.join(domain));
        let Some(folder) = folders.find(|folder| folder.is_dir()) else { return Ok(Self::default()) };
        let entries = fs::read_dir(&folder).map_err(|error| certificate(&folder, error))?;
        let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        files.sort();
        let mut private = Self::default();
        for file in files {
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => {
                    let found = certificates(&file)?.into_iter().map(|found| (file.clone(), found));
                    private.authorities.extend(found);
                }
                Some("cert") if private.own.is_none() => {
                    let key = file.with_extension("key");
                    let parsed = PrivateKeyDer::from_pem_slice(&bounded(&key)?);
                    let parsed = parsed.map_err(|error| certificate(&key, error))?;
                    private.own = Some((file.clone(), certificates(&file)?, parsed));
                }
                _ => {}
            }
        }
        Ok(private)
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let bytes = bounded(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|error| certificate(path, error))?;
    if found.is_empty() { Err(certificate(path, "there is no certificate in it")) } else { Ok(found) }
}

fn bounded(path: &Path) -> Result<Vec<u8>> {
    let metadata = fs::metadata(path).map_err(|error| certificate(path, error))?;
    if metadata.len() > FILE_MAX {
        return Err(certificate(path, format!("it has more than {FILE_MAX} bytes")));
    }
    fs::read(path).map_err(|error| certificate(path, error))
}

fn certificate(path: &Path, why: impl ToString) -> Error {
    Error::Certificate { path: path.to_owned(), why: why.to_string() }
}

/// For registries that are configured so: whoever answers is believed. Its signatures are still
/// checked, for a handshake that is broken is.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
