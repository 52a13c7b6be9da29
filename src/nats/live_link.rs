//! Opens the connection for live copies: TLS and authentication, as the client library does them.

use std::fmt::Display;
use std::io;
use std::path::Path;
use std::sync::Arc;

use async_nats::ServerAddr;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64_URL;
use nkeys::KeyPair;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::credentials::{Credentials, Login, Secrets, UserCreds};
use super::live_protocol::{ProtocolError, ServerOp};

/// A connection to a server that has accepted the client, and what it sent since.
pub(super) struct LiveLink {
    pub(super) stream: Box<dyn LinkStream>,
    pub(super) received: Vec<u8>,
}

/// TCP, or TLS over it.
pub(super) trait LinkStream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> LinkStream for T {}

/// What a server says about itself.
#[derive(Deserialize)]
struct ServerHello {
    #[serde(default)]
    tls_required: bool,
    #[serde(default)]
    nonce: String,
}

impl LiveLink {
    /// Connects to this server, with this name.
    pub(super) async fn open(
        server: &ServerAddr,
        name: &str,
        credentials: &Credentials,
        secrets: &Secrets,
    ) -> io::Result<Self> {
        let tcp = TcpStream::connect((server.host(), server.port())).await?;
        tcp.set_nodelay(true)?;
        let mut link = Self {
            stream: Box::new(tcp),
            received: Vec::new(),
        };
        let hello: ServerHello = match link.receive().await? {
            HandshakeAnswer::Info(json) => serde_json::from_slice(&json)?,
            HandshakeAnswer::Accepted => return Err(ProtocolError.into()),
        };
        let wants_tls = credentials.ca.is_some() || credentials.identity.is_some();
        let is_secured = wants_tls || server.tls_required() || hello.tls_required;
        if is_secured {
            let config = tls_config(credentials).await?;
            let host = ServerName::try_from(server.host().to_owned()).map_err(io::Error::other)?;
            let stream = TlsConnector::from(Arc::new(config)).connect(host, link.stream);
            link = Self {
                stream: Box::new(stream.await?),
                received: Vec::new(),
            };
        }
        let connect = connect_line(name, secrets, &hello.nonce, is_secured)?;
        link.stream.write_all(connect.as_bytes()).await?;
        link.stream.flush().await?;
        match link.receive().await? {
            HandshakeAnswer::Accepted => Ok(link),
            HandshakeAnswer::Info(_) => Err(ProtocolError.into()),
        }
    }

    /// Reads the server's answer.
    async fn receive(&mut self) -> io::Result<HandshakeAnswer> {
        loop {
            if let Some((op, length)) = ServerOp::parse(&self.received)? {
                let answer = match op {
                    ServerOp::Info(json) => Some(HandshakeAnswer::Info(json.to_vec())),
                    ServerOp::Pong => Some(HandshakeAnswer::Accepted),
                    ServerOp::Ok | ServerOp::Ping => None,
                    ServerOp::Error(error) => {
                        let error = String::from_utf8_lossy(error).into_owned();
                        return Err(io::Error::other(error));
                    }
                    ServerOp::Message(_) => return Err(ProtocolError.into()),
                };
                self.received.drain(..length);
                if let Some(answer) = answer {
                    return Ok(answer);
                }
            } else if self.stream.read_buf(&mut self.received).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// What a server sends while a connection is opened.
enum HandshakeAnswer {
    Info(Vec<u8>),
    /// It has accepted the client.
    Accepted,
}

impl From<ProtocolError> for io::Error {
    fn from(error: ProtocolError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// The first line that a client sends, and a ping.
fn connect_line(
    name: &str,
    secrets: &Secrets,
    nonce: &str,
    is_secured: bool,
) -> io::Result<String> {
    let mut options = json!({
        "verbose": false,
        "pedantic": false,
        "tls_required": is_secured,
        "name": name,
        "lang": "rust",
        "version": env!("CARGO_PKG_VERSION"),
        "protocol": 1,
        "echo": true,
        "headers": true,
        "no_responders": true,
    });
    match &secrets.login {
        Login::Anonymous => {}
        Login::Token(token) => options["auth_token"] = json!(token),
        Login::User(user, password) => {
            options["user"] = json!(user);
            options["pass"] = json!(password);
        }
    }
    let sign = |seed: &str| {
        let pair = KeyPair::from_seed(seed).map_err(io::Error::other)?;
        let signature = pair.sign(nonce.as_bytes()).map_err(io::Error::other)?;
        io::Result::Ok((pair.public_key(), BASE64_URL.encode(signature)))
    };
    if let Some(seed) = &secrets.nkey {
        let (key, signature) = sign(seed)?;
        options["nkey"] = json!(key);
        options["sig"] = json!(signature);
    }
    if let Some(UserCreds { jwt, seed }) = &secrets.creds {
        let (_, signature) = sign(seed)?;
        options["jwt"] = json!(jwt);
        options["sig"] = json!(signature);
    }
    Ok(format!("CONNECT {options}\r\nPING\r\n"))
}

async fn tls_config(credentials: &Credentials) -> io::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    match &credentials.ca {
        Some(path) => {
            for certificate in certificates(path).await? {
                roots.add(certificate).map_err(io::Error::other)?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            if let Some(error) = found.errors.first() {
                let reason = format!("cannot read the system's certificates: {error}");
                return Err(io::Error::other(reason));
            }
            roots.add_parsable_certificates(found.certs);
        }
    }
    let config = ClientConfig::builder().with_root_certificates(roots);
    let Some((certificate, key)) = &credentials.identity else {
        return Ok(config.with_no_client_auth());
    };
    let pem = tokio::fs::read(key)
        .await
        .map_err(|error| unusable(key, error))?;
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| unusable(key, error))?;
    let chain = certificates(certificate).await?;
    config
        .with_client_auth_cert(chain, key)
        .map_err(io::Error::other)
}

async fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let pem = tokio::fs::read(path)
        .await
        .map_err(|error| unusable(path, error))?;
    let certificates = CertificateDer::pem_slice_iter(&pem);
    certificates
        .collect::<Result<_, _>>()
        .map_err(|error| unusable(path, error))
}

fn unusable(file: &Path, reason: impl Display) -> io::Error {
    io::Error::other(format!("cannot use {}: {reason}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nonce_is_signed_with_the_key_of_the_user() {
        let pair = KeyPair::new_user();
        let secrets = Secrets {
            nkey: Some(pair.seed().unwrap()),
            ..Secrets::default()
        };
        let line = connect_line("edge", &secrets, "nonce", false).unwrap();
        let json = line
            .strip_prefix("CONNECT ")
            .and_then(|line| line.strip_suffix("\r\nPING\r\n"));
        let options: serde_json::Value = serde_json::from_str(json.unwrap()).unwrap();
        assert_eq!(options["nkey"], pair.public_key());
        let signature = BASE64_URL.decode(options["sig"].as_str().unwrap()).unwrap();
        pair.verify(b"nonce", &signature).unwrap();
    }
}
