//! TLS of an edge: its certificate, which is read again when its files change, and handshakes. It
//! speaks no HTTP.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, version};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{info, warn};

use crate::config::{TLS_BUFFER, TLS_RELOAD_EVERY, TLS_WAIT};

/// HTTP/2, as ALPN names it.
const HTTP_2: &[u8] = b"h2";
/// HTTP/1.1, as ALPN names it.
const HTTP_1: &[u8] = b"http/1.1";

/// The settings of an edge for TLS. Clones share the certificate.
#[derive(Clone, Debug)]
pub struct Tls(Arc<ServerConfig>);

/// Why a certificate or its key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or is not PEM.
    #[error("cannot use {} for TLS: {reason}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The files do not go together, or their contents are not supported.
    #[error("cannot use the certificate in {}: {reason}", file.display())]
    Certificate {
        /// The file with the certificate.
        file: PathBuf,
        /// The TLS library's error.
        reason: rustls::Error,
    },
}

/// A certificate and its key, as their files have them.
#[derive(Debug)]
struct Certificate {
    cert: PathBuf,
    key: PathBuf,
    provider: Arc<CryptoProvider>,
    state: Mutex<CertificateState>,
}

#[derive(Debug)]
struct CertificateState {
    certified: Arc<CertifiedKey>,
    /// The versions of the files that were read last, whether they could be used or not.
    read: [FileVersion; 2],
    checked: Instant,
}

/// What changes when a file is replaced.
type FileVersion = Option<(SystemTime, u64)>;

impl Tls {
    /// Reads a certificate, with those of the authorities between it and the root, and its key, in
    /// PEM.
    ///
    /// # Errors
    /// [`TlsError`]; it does not show the key.
    pub fn load(cert: PathBuf, key: PathBuf) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let read = versions(&cert, &key);
        let certified = certified(&cert, &key, &provider)?;
        let file = cert.clone();
        let certificate = Certificate {
            cert,
            key,
            provider: Arc::clone(&provider),
            state: Mutex::new(CertificateState {
                certified: Arc::new(certified),
                read,
                checked: Instant::now(),
            }),
        };
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13, &version::TLS12])
            .map_err(|reason| TlsError::Certificate { file, reason })?;
        let mut config = config
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(certificate));
        config.alpn_protocols = vec![HTTP_2.to_vec(), HTTP_1.to_vec()];
        Ok(Self(Arc::new(config)))
    }

    /// Makes the handshake with a client. Returns whether the client chose HTTP/2.
    ///
    /// # Errors
    /// When the client does not complete it within [`TLS_WAIT`], or does not speak TLS.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
    ) -> io::Result<(TlsStream<TcpStream>, bool)> {
        let handshake = TlsAcceptor::from(Arc::clone(&self.0)).accept(stream);
        let mut stream = timeout(TLS_WAIT, handshake).await??;
        let (_, session) = stream.get_mut();
        session.set_buffer_limit(Some(TLS_BUFFER));
        let is_http2 = session.alpn_protocol() == Some(HTTP_2);
        Ok((stream, is_http2))
    }
}

impl Certificate {
    /// Reads the files again if they have changed. Until both belong together, the last ones that
    /// did are used.
    fn current(&self) -> Arc<CertifiedKey> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.checked.elapsed() >= TLS_RELOAD_EVERY {
            state.checked = Instant::now();
            let read = versions(&self.cert, &self.key);
            if read != state.read {
                state.read = read;
                match certified(&self.cert, &self.key, &self.provider) {
                    Ok(certified) => {
                        state.certified = Arc::new(certified);
                        info!(file = %self.cert.display(), "uses the new certificate");
                    }
                    Err(error) => warn!(%error, "still uses the previous certificate"),
                }
            }
        }
        Arc::clone(&state.certified)
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

fn versions(cert: &Path, key: &Path) -> [FileVersion; 2] {
    [cert, key].map(|file| {
        let data = fs::metadata(file).ok()?;
        Some((data.modified().ok()?, data.len()))
    })
}

fn certified(cert: &Path, key: &Path, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
    let unusable = |file: &Path, reason: String| TlsError::File {
        file: file.to_owned(),
        reason,
    };
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(|certificates| certificates.collect::<Result<Vec<_>, _>>())
        .map_err(|error| unusable(cert, error.to_string()))?;
    if chain.is_empty() {
        return Err(unusable(cert, "it has no certificate in PEM".into()));
    }
    let key_der =
        PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key, error.to_string()))?;
    CertifiedKey::from_der(chain, key_der, provider).map_err(|reason| TlsError::Certificate {
        file: cert.to_owned(),
        reason,
    })
}
