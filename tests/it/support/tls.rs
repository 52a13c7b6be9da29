//! Certificates for tests, and connections with TLS to an edge: single ones, and a tunnel through which clients without TLS
//! reach it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tailwater::runtime::Tasks;
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use super::within;

/// An authority that issues certificates for 127.0.0.1.
pub struct Authority {
    dir: TempDir,
}

impl Authority {
    pub fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let new =
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=ca";
        openssl(dir.path(), &format!("{new} -keyout ca.key -out ca.pem"));
        Self { dir }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Issues a certificate with this name: `<name>.pem` and `<name>.key`.
    pub fn issue(&self, name: &str) {
        let new = "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -addext subjectAltName=IP:127.0.0.1";
        let sign =
            "x509 -req -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -copy_extensions copy";
        let openssl = |args: String| openssl(self.dir.path(), &args);
        openssl(format!(
            "{new} -subj /CN={name} -keyout {name}.key -out {name}.csr"
        ));
        openssl(format!("{sign} -in {name}.csr -out {name}.pem"));
    }

    /// Connects with TLS, as a client that trusts this authority and speaks this protocol.
    pub async fn connect(&self, addr: &str, protocol: &str) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(addr).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let connected = self.connector(protocol).connect(name, stream);
        within("a TLS handshake", connected).await.unwrap()
    }

    fn connector(&self, protocol: &str) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(self.file("ca.pem")).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider);
        let config = config.with_safe_default_protocol_versions().unwrap();
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        TlsConnector::from(Arc::new(config))
    }
}

/// Passes connections without TLS on to an edge with TLS, until it is dropped.
pub struct Tunnel {
    /// Where it listens.
    pub addr: String,
    tasks: Tasks,
}

impl Tunnel {
    pub async fn to(authority: &Authority, addr: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().to_string();
        let tasks = Tasks::new(CancellationToken::new());
        let connector = authority.connector("http/1.1");
        let addr = addr.to_owned();
        let connections = tasks.clone();
        tasks.spawn_until_stop(async move {
            while let Ok((mut plain, _)) = listener.accept().await {
                let connector = connector.clone();
                let addr = addr.clone();
                connections.spawn_until_stop(async move {
                    let stream = TcpStream::connect(addr).await.unwrap();
                    let name = ServerName::try_from("127.0.0.1").unwrap();
                    let mut secured = connector.connect(name, stream).await.unwrap();
                    // Either side may end without a farewell.
                    let _ = copy_bidirectional(&mut plain, &mut secured).await;
                });
            }
        });
        Self { addr: own, tasks }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.tasks.stop().cancel();
    }
}

/// Replaces a certificate and its key by another of the same authority.
pub fn replace(authority: &Authority, old: &str, new: &str) {
    for end in ["pem", "key"] {
        let from = authority.file(&format!("{new}.{end}"));
        fs::copy(from, authority.file(&format!("{old}.{end}"))).unwrap();
    }
}

/// Runs openssl in a folder.
pub fn openssl(dir: &Path, args: &str) {
    let mut command = Command::new("openssl");
    let out = command
        .args(args.split_whitespace())
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(out.status.success(), "{args}: {out:?}");
}
