//! Who may use an edge: the flags of `edge` and `up` about tokens, pages and proxies, and of `token`
//! about the secret that signs.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, ValueEnum};
use ipnet::IpNet;
use url::{Host, Url};

use super::args::{given, listed};
use crate::auth::{Expected, SigningSecret, StaticTokens, TokenKeys};
use crate::config::{SUBJECT_CONNECTIONS, SUBJECT_JOBS, SUBJECT_SUBMITS_PER_S};
use crate::edge::{AllowedOrigins, BrowserPolicy, Gate, KeySource, SubjectLimits, TrustedProxies};

/// Who may use an edge.
#[derive(Clone, Debug, Args)]
pub(super) struct AuthArgs {
    /// Whether clients need a token. Required, unless the edge listens on a loopback address only;
    /// the default is then `none`.
    #[arg(long, env = "TAILWATER_AUTH", value_name = "MODE")]
    auth: Option<AuthMode>,
    /// With `--auth token`: a JSON file with static tokens.
    #[arg(long, env = "TAILWATER_AUTH_TOKENS", value_name = "FILE")]
    auth_tokens: Option<PathBuf>,
    /// A file with a secret that signs and verifies HS256 tokens. With it, the answer to a submit has
    /// a token for watching that job.
    #[arg(long, env = "TAILWATER_AUTH_SECRET", value_name = "FILE")]
    auth_secret: Option<PathBuf>,
    /// With `--auth jwt`: the JWK set of the issuer, as a file or an http(s) address.
    #[arg(long, env = "TAILWATER_AUTH_JWKS", value_name = "FILE|URL")]
    auth_jwks: Option<String>,
    /// The `iss` that a token must have.
    #[arg(long, env = "TAILWATER_AUTH_ISSUER", value_name = "TEXT")]
    auth_issuer: Option<String>,
    /// The `aud` that a token must have.
    #[arg(long, env = "TAILWATER_AUTH_AUDIENCE", value_name = "TEXT")]
    auth_audience: Option<String>,
    /// Origins whose pages may use the edge, separated by commas, each `scheme://host[:port]`; `*`
    /// for all. By default pages of the edge's own origin, and with tokens all.
    #[arg(long, env = "TAILWATER_ALLOW_ORIGIN", value_name = "ORIGINS")]
    #[arg(value_delimiter = ',')]
    allow_origin: Vec<String>,
    /// Host names under which clients reach the edge, separated by commas; `*` for any. Addresses
    /// and `localhost` are always accepted.
    #[arg(long, env = "TAILWATER_PUBLIC_HOST", value_name = "HOSTS")]
    #[arg(value_delimiter = ',')]
    public_host: Vec<String>,
    /// How many streams one subject may have open at this edge.
    #[arg(long, env = "TAILWATER_SUBJECT_CONNECTIONS", value_name = "N", default_value_t = SUBJECT_CONNECTIONS)]
    subject_connections: usize,
    /// How many jobs one subject may submit per second at this edge.
    #[arg(long, env = "TAILWATER_SUBJECT_SUBMITS", value_name = "N", default_value_t = SUBJECT_SUBMITS_PER_S,
          value_parser = clap::value_parser!(u32).range(1..))]
    subject_submits: u32,
    /// How many jobs that one subject submitted at this edge may be queued or running.
    #[arg(long, env = "TAILWATER_SUBJECT_JOBS", value_name = "N", default_value_t = SUBJECT_JOBS)]
    subject_jobs: usize,
    /// Networks of proxies whose `X-Forwarded-For` or `Forwarded` names the client, separated by
    /// commas, each `address/bits`.
    #[arg(long, env = "TAILWATER_TRUSTED_PROXY", value_name = "NETWORKS")]
    #[arg(value_delimiter = ',')]
    trusted_proxy: Vec<String>,
}

/// Whether clients need a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AuthMode {
    /// Every client may do everything.
    None,
    /// Clients send a static token of `--auth-tokens`.
    Token,
    /// Clients send a JSON Web Token of `--auth-secret` or `--auth-jwks`.
    Jwt,
}

impl AuthArgs {
    /// Whether the clients of an edge that listens here need a token.
    pub(super) fn gate(&self, listen: SocketAddr) -> anyhow::Result<Gate> {
        let mode = match self.auth {
            Some(mode) => mode,
            None if listen.ip().to_canonical().is_loopback() => AuthMode::None,
            None => bail!(
                "{listen} can be reached by others. Say who may use this edge: \
                 `--auth jwt` or `--auth token`, or `--auth none` for everybody"
            ),
        };
        let secret = given(self.auth_secret.as_deref())
            .map(read_secret)
            .transpose()?;
        let tokens = given(self.auth_tokens.as_deref())
            .map(read_tokens)
            .transpose()?;
        let source = self.key_source()?;
        match mode {
            AuthMode::None => {
                let is_unused = secret.is_none() && tokens.is_none() && source.is_none();
                ensure!(
                    is_unused,
                    "`--auth none` uses no keys: remove --auth-tokens, --auth-secret and --auth-jwks, \
                     or choose `--auth token` or `--auth jwt`"
                );
                return Ok(Gate::open());
            }
            AuthMode::Token => {
                ensure!(tokens.is_some(), "`--auth token` needs --auth-tokens FILE");
                ensure!(source.is_none(), "--auth-jwks needs `--auth jwt`");
            }
            AuthMode::Jwt => {
                ensure!(
                    secret.is_some() || source.is_some(),
                    "`--auth jwt` needs --auth-secret FILE or --auth-jwks FILE|URL"
                );
                ensure!(tokens.is_none(), "--auth-tokens needs `--auth token`");
            }
        }
        let keys = TokenKeys {
            tokens: tokens.unwrap_or_default(),
            secret,
            expected: Expected {
                issuer: given(self.auth_issuer.clone()),
                audience: given(self.auth_audience.clone()),
            },
        };
        let limits = SubjectLimits {
            connections: self.subject_connections,
            submits_per_s: self.subject_submits,
            jobs: self.subject_jobs,
        };
        Ok(Gate::checked(keys, source, limits))
    }

    fn key_source(&self) -> anyhow::Result<Option<KeySource>> {
        let Some(source) = given(self.auth_jwks.clone()) else {
            return Ok(None);
        };
        match Url::parse(&source) {
            Ok(url) if matches!(url.scheme(), "http" | "https") => {
                let is_local = match url.host() {
                    Some(Host::Ipv4(address)) => address.is_loopback(),
                    Some(Host::Ipv6(address)) => address.is_loopback(),
                    Some(Host::Domain(name)) => name == "localhost",
                    None => false,
                };
                ensure!(
                    url.scheme() == "https" || is_local,
                    "--auth-jwks: {source}: whoever is between could replace the keys; use https"
                );
                Ok(Some(KeySource::Url(source)))
            }
            _ => {
                let path = PathBuf::from(source);
                let is_file = path.is_file();
                ensure!(is_file, "--auth-jwks: {} is not a file", path.display());
                Ok(Some(KeySource::File(path)))
            }
        }
    }

    /// Which host names and pages are served. A page can do nothing without a token, so with tokens
    /// all pages may try.
    pub(super) fn browsers(&self, gate: &Gate) -> anyhow::Result<BrowserPolicy> {
        let origins = listed(&self.allow_origin);
        for origin in &origins {
            let is_origin = origin == "*"
                || origin == "null"
                || Url::parse(origin).is_ok_and(|url| {
                    matches!(url.scheme(), "http" | "https")
                        && url.has_host()
                        && url.path() == "/"
                        && url.query().is_none()
                        && url.fragment().is_none()
                });
            ensure!(
                is_origin,
                "--allow-origin: {origin} is not an origin such as https://app.example"
            );
        }
        let origins = match &origins[..] {
            [] if gate.is_checked() => AllowedOrigins::Any,
            [] => AllowedOrigins::SameOrigin,
            all if all.iter().any(|origin| origin == "*") => AllowedOrigins::Any,
            _ => AllowedOrigins::Listed(origins),
        };
        Ok(BrowserPolicy {
            public_hosts: listed(&self.public_host),
            origins,
        })
    }

    /// The proxies that report their clients' addresses.
    pub(super) fn proxies(&self) -> anyhow::Result<TrustedProxies> {
        let networks = listed(&self.trusted_proxy).into_iter().map(|network| {
            let parsed = network.parse::<IpNet>().or_else(|_| {
                network
                    .parse()
                    .map(|address: std::net::IpAddr| address.into())
            });
            parsed.with_context(|| {
                format!("--trusted-proxy: {network} is not a network such as 10.0.0.0/8")
            })
        });
        Ok(TrustedProxies(networks.collect::<anyhow::Result<_>>()?))
    }
}

/// The secret of a file.
pub(super) fn read_secret(path: &Path) -> anyhow::Result<SigningSecret> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    SigningSecret::new(&bytes).with_context(|| format!("cannot use {}", path.display()))
}

fn read_tokens(path: &Path) -> anyhow::Result<StaticTokens> {
    let json = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    StaticTokens::from_json(&json).with_context(|| format!("cannot use {}", path.display()))
}
