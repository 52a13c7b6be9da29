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

/// What a connection authenticates with. It does not implement `Debug`, which would show secrets.
#[derive(Default)]
pub(super) struct Secrets {
    pub(super) login: Login,
    /// The content of a credentials file.
    pub(super) creds: Option<String>,
    /// The seed of an nkey.
    pub(super) nkey: Option<String>,
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

impl Credentials {
    /// The servers of `url`, without secrets, and options that authenticate with it.
    ///
    /// # Errors
    /// [`NatsError::BadAddress`] and [`NatsError::BadCredentials`]; neither shows a secret.
    pub(super) async fn options(
        &self,
        url: &str,
    ) -> Result<(ConnectOptions, Vec<ServerAddr>), NatsError> {
        let (secrets, servers) = self.secrets(url).await?;
        let mut options = ConnectOptions::new();
        match secrets.login {
            Login::Anonymous => {}
            Login::Token(token) => options = options.token(token),
            Login::User(user, password) => options = options.user_and_password(user, password),
        }
        if let Some((path, text)) = self.creds.as_ref().zip(secrets.creds) {
            options = options
                .credentials(&text)
                .map_err(|_| unusable(path, "not a credentials file"))?;
        }
        if let Some(seed) = secrets.nkey {
            options = options.nkey(seed);
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
        Ok((options, servers))
    }

    /// The servers of `url`, without secrets, and what to authenticate with.
    ///
    /// # Errors
    /// As [`Self::options`].
    pub(super) async fn secrets(&self, url: &str) -> Result<(Secrets, Vec<ServerAddr>), NatsError> {
        let (mut login, servers) = parse(url)?;
        if let Some(path) = &self.login {
            if login != Login::Anonymous {
                return Err(unusable(
                    path,
                    "the address of the server has a login as well",
                ));
            }
            login = Login::of_file(read(path).await?.trim())
                .ok_or_else(|| unusable(path, "not `user:password`, and not a token"))?;
        }
        let mut secrets = Secrets {
            login,
            ..Secrets::default()
        };
        if let Some(path) = &self.creds {
            secrets.creds = Some(read(path).await?);
        }
        if let Some(path) = &self.nkey {
            let seed = read(path).await?.trim().to_owned();
            nkeys::KeyPair::from_seed(&seed)
                .map_err(|_| unusable(path, "not the seed of an nkey"))?;
            secrets.nkey = Some(seed);
        }
        Ok((secrets, servers))
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
