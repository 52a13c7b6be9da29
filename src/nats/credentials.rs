//! How a connection authenticates, and which servers it trusts, from the address and from files. It
//! does not connect.

use std::path::{Path, PathBuf};

use async_nats::{ConnectOptions, ServerAddr};
use url::Url;

use super::error::NatsError;

/// The files that a connection is secured with. User and password, or a token, may also be part of
/// the address.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// A credentials file, as `nsc` writes it: a user's JWT and its seed.
    pub creds: Option<PathBuf>,
    /// A file with the seed of an nkey.
    pub nkey: Option<PathBuf>,
    /// A file with `user:password`, or with a token.
    pub login: Option<PathBuf>,
    /// Certificates in PEM of the authorities that are trusted, instead of the system's. Implies
    /// TLS.
    pub ca: Option<PathBuf>,
    /// The client's certificate and its key, in PEM. Implies TLS.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// What all connections of a process are made with. It does not implement `Debug`, which would show
/// secrets.
pub(super) struct BrokerAccess {
    /// Options that authenticate.
    pub(super) options: ConnectOptions,
    pub(super) secrets: Secrets,
    /// Without secrets.
    pub(super) servers: Vec<ServerAddr>,
}

/// What a connection authenticates with. It does not implement `Debug`, which would show secrets.
#[derive(Default)]
pub(super) struct Secrets {
    pub(super) login: Login,
    pub(super) creds: Option<UserCreds>,
    /// The seed of an nkey.
    pub(super) nkey: Option<String>,
}

/// The content of a credentials file. It does not implement `Debug`, which would show the seed.
#[derive(PartialEq, Eq)]
pub(super) struct UserCreds {
    pub(super) jwt: String,
    pub(super) seed: String,
}

/// The login in an address. It does not implement `Debug`, which would show the password.
#[derive(Default, PartialEq, Eq)]
pub(super) enum Login {
    #[default]
    Anonymous,
    Token(String),
    User(String, String),
}

impl Login {
    /// The login in a file; `None` when it has more than one line, or none.
    fn of_file(text: &str) -> Option<Self> {
        if text.is_empty() || text.contains('\n') {
            return None;
        }
        Some(match text.split_once(':') {
            Some((user, password)) => Self::User(user.to_owned(), password.to_owned()),
            None => Self::Token(text.to_owned()),
        })
    }
}

impl UserCreds {
    /// The two entries of a credentials file: each is the line after a `BEGIN`.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().map(str::trim);
        let mut entry = || {
            lines.find(|line| line.starts_with("---") && line.contains("BEGIN"))?;
            lines.find(|line| !line.is_empty()).map(str::to_owned)
        };
        Some(Self {
            jwt: entry()?,
            seed: entry()?,
        })
    }
}

impl Credentials {
    /// Reads the address and the files, each once.
    ///
    /// # Errors
    /// [`NatsError::BadAddress`] and [`NatsError::BadCredentials`]; neither shows a secret.
    pub(super) async fn access(&self, url: &str) -> Result<BrokerAccess, NatsError> {
        let (login, servers) = parse(url)?;
        let mut secrets = Secrets {
            login: self.read_login(login).await?,
            ..Secrets::default()
        };
        let mut options = match &secrets.login {
            Login::Anonymous => ConnectOptions::new(),
            Login::Token(token) => ConnectOptions::new().token(token.clone()),
            Login::User(user, password) => {
                ConnectOptions::new().user_and_password(user.clone(), password.clone())
            }
        };
        if let Some(path) = &self.creds {
            let text = read(path).await?;
            options = options
                .credentials(&text)
                .map_err(|error| unusable(path, &format!("not a credentials file: {error}")))?;
            let creds = UserCreds::parse(&text).ok_or_else(|| {
                unusable(path, "not a credentials file: it lacks a JWT or a seed")
            })?;
            secrets.creds = Some(creds);
        }
        if let Some(path) = &self.nkey {
            let seed = read(path).await?.trim().to_owned();
            nkeys::KeyPair::from_seed(&seed)
                .map_err(|_| unusable(path, "not the seed of an nkey"))?;
            options = options.nkey(seed.clone());
            secrets.nkey = Some(seed);
        }
        if let Some(path) = &self.ca {
            pem(path).await?;
            options = options
                .add_root_certificates(path.clone())
                .require_tls(true);
        }
        if let Some((cert, key)) = &self.identity {
            pem(cert).await?;
            pem(key).await?;
            options = options
                .add_client_certificate(cert.clone(), key.clone())
                .require_tls(true);
        }
        Ok(BrokerAccess {
            options,
            secrets,
            servers,
        })
    }

    /// The login of the file, or else that of the address.
    async fn read_login(&self, of_address: Login) -> Result<Login, NatsError> {
        let Some(path) = &self.login else {
            return Ok(of_address);
        };
        if of_address != Login::Anonymous {
            return Err(unusable(
                path,
                "the address of the server has a login as well",
            ));
        }
        Login::of_file(read(path).await?.trim())
            .ok_or_else(|| unusable(path, "not `user:password`, and not a token"))
    }
}

async fn read(path: &Path) -> Result<String, NatsError> {
    tokio::fs::read_to_string(path)
        .await
        .map_err(|error| unusable(path, &error.to_string()))
}

/// Checks that a file can be read and contains PEM. The client library accepts a file without PEM
/// as an empty list.
async fn pem(path: &Path) -> Result<(), NatsError> {
    if read(path).await?.contains("-----BEGIN ") {
        Ok(())
    } else {
        Err(unusable(path, "not a PEM file"))
    }
}

fn unusable(path: &Path, reason: &str) -> NatsError {
    NatsError::BadCredentials {
        file: path.to_owned(),
        reason: reason.to_owned(),
    }
}

/// Parses a list of addresses. The client library uses one login for all servers, so all logins in
/// the list must be the same.
fn parse(list: &str) -> Result<(Login, Vec<ServerAddr>), NatsError> {
    let bad = |reason: String| NatsError::BadAddress {
        url: redacted(list),
        reason,
    };
    let mut login = Login::Anonymous;
    let mut servers = Vec::new();
    for text in list
        .split(',')
        .map(str::trim)
        .filter(|text| !text.is_empty())
    {
        let text = if text.contains("://") {
            text.to_owned()
        } else {
            format!("nats://{text}")
        };
        let mut url = Url::parse(&text).map_err(|error| bad(error.to_string()))?;
        if !matches!(url.scheme(), "nats" | "tls") {
            return Err(bad("the scheme must be nats:// or tls://".into()));
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(bad("the host is missing".into()));
        }
        let decoded = |text: &str| {
            percent_encoding::percent_decode_str(text)
                .decode_utf8()
                .map(Into::into)
                .map_err(|_| bad("the user or password is not UTF-8".into()))
        };
        let found = match (url.username(), url.password()) {
            ("", None) => Login::Anonymous,
            (token, None) => Login::Token(decoded(token)?),
            (user, Some(password)) => Login::User(decoded(user)?, decoded(password)?),
        };
        if found != Login::Anonymous {
            if login != Login::Anonymous && login != found {
                return Err(bad(
                    "the addresses have different credentials; use the same for all servers".into(),
                ));
            }
            login = found;
        }
        // The login is in the options. The library would show it in its log.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        servers.push(ServerAddr::from_url(url).map_err(|error| bad(error.to_string()))?);
    }
    if servers.is_empty() {
        return Err(bad("the server is missing".into()));
    }
    Ok((login, servers))
}

/// The address without user, password and token.
pub fn redacted(url: &str) -> String {
    url.split(',')
        .map(|url| match url.rsplit_once('@') {
            Some((_, host)) => format!("nats://…@{host}"),
            None => url.to_owned(),
        })
        .collect::<Vec<_>>()
        .join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(user: &str, password: &str) -> Login {
        Login::User(user.into(), password.into())
    }

    #[test]
    fn a_login_is_moved_out_of_the_address() {
        let cases = [
            ("nats://h:1", Login::Anonymous),
            ("h:1", Login::Anonymous),
            ("nats://u:p@h:1", user("u", "p")),
            ("u:p@h:1", user("u", "p")),
            ("tls://u:p%40%2C%25@h:1", user("u", "p@,%")),
            ("nats://s3cret@h:1", Login::Token("s3cret".into())),
            ("nats://u:p@h:1, nats://i:2", user("u", "p")),
            ("nats://h:1,nats://u:p@i:2,u:p@j:3", user("u", "p")),
        ];
        for (url, login) in cases {
            let (found, servers) = parse(url).unwrap();
            assert!(found == login, "{url}");
            assert_eq!(servers.len(), url.split(',').count(), "{url}");
            assert!(
                servers
                    .iter()
                    .all(|server| !server.as_url_str().contains('@')),
                "{servers:?}"
            );
        }
    }

    #[test]
    fn a_credentials_file_has_a_token_and_a_seed() {
        let text = "-----BEGIN NATS USER JWT-----\r\neyJ0.e30.c2ln\r\n------END NATS USER JWT------\r\n\r\n\
            ************************* IMPORTANT *************************\r\nKeep the seed secret.\r\n\r\n\
            -----BEGIN USER NKEY SEED-----\r\nSUAIO3\r\n------END USER NKEY SEED------\r\n";
        let expected = UserCreds {
            jwt: "eyJ0.e30.c2ln".into(),
            seed: "SUAIO3".into(),
        };
        assert!(UserCreds::parse(text) == Some(expected));
        assert!(UserCreds::parse("-----BEGIN NATS USER JWT-----\neyJ0\n").is_none());
    }

    #[test]
    fn a_login_in_a_file_is_one_line() {
        assert!(Login::of_file("u:p:q") == Some(user("u", "p:q")));
        assert!(Login::of_file("s3cret") == Some(Login::Token("s3cret".into())));
        assert!(Login::of_file("").is_none() && Login::of_file("u:p\nv:q").is_none());
    }

    #[test]
    fn an_error_about_an_address_does_not_show_its_password() {
        for url in [
            "",
            " , ",
            "nats://",
            "http://u:s3cret@h:1",
            "nats://u:s3cret@h:port",
            "nats://u:%ff@h:1",
            "ws://h:1",
            "nats://a:s3cret@h:1,nats://b:s3cret@i:1",
        ] {
            let error = parse(url).err().unwrap();
            assert!(matches!(error, NatsError::BadAddress { .. }), "{url}");
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn a_password_in_the_address_is_never_shown() {
        assert_eq!(
            redacted("nats://a:secret@h:1,nats://i:2"),
            "nats://…@h:1,nats://i:2"
        );
    }
}
