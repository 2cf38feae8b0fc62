//! Connections from elsewhere: TLS, and only for clients with a certificate of the configured
//! authority. Whoever reaches this API is root on the host.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

/// PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// Authorities that clients' certificates are of.
    pub authorities: PathBuf,
    /// The daemon's own chain.
    pub chain: PathBuf,
    /// The key of its first certificate.
    pub key: PathBuf,
}

/// TLS cannot be served with these files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("read {what} of {path:?}")]
    Read {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    #[error("{path:?} has no {what}")]
    Empty { what: &'static str, path: PathBuf },
    #[error("take authorities from {path:?}")]
    Authorities {
        path: PathBuf,
        #[source]
        source: rustls::Error,
    },
    #[error("check clients' certificates")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    #[error("use the certificate {chain:?} with the key {key:?}")]
    Certificate {
        chain: PathBuf,
        key: PathBuf,
        #[source]
        source: rustls::Error,
    },
}

/// Reads the files and checks that they fit together.
///
/// # Errors
/// When a file cannot be read, or its content is of no use.
pub fn acceptor(files: &Files) -> Result<TlsAcceptor, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&files.authorities)? {
        let path = || files.authorities.clone();
        roots.add(certificate).map_err(|source| TlsError::Authorities { path: path(), source })?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|source| TlsError::Read {
        what: "the key",
        path: files.key.clone(),
        source,
    })?;
    let refused =
        |source| TlsError::Certificate { chain: files.chain.clone(), key: files.key.clone(), source };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(refused)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&files.chain)?, key)
        .map_err(refused)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = |source| TlsError::Read { what: "the certificates", path: path.to_owned(), source };
    let list: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(read)?.collect::<Result<_, _>>().map_err(read)?;
    if list.is_empty() {
        return Err(TlsError::Empty { what: "certificate", path: path.to_owned() });
    }
    Ok(list)
}
