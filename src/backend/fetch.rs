//! Fetches bodies over HTTP: the key set of a token's issuer, and what `top` shows. It is here because
//! this folder has the HTTP client. It runs no jobs.

use reqwest::Client;
use reqwest::header::AUTHORIZATION;

use super::http::{self, NoClient};
use crate::config::KEYS_BYTES_MAX;

/// Fetches bodies.
#[derive(Debug)]
pub(crate) struct Fetcher(Client);

impl Fetcher {
    pub(crate) fn new() -> Result<Self, NoClient> {
        http::client().map(Self)
    }

    /// The body of a successful answer, at most `limit` bytes of it. It follows no redirects and has
    /// no time limit.
    ///
    /// # Errors
    /// Why there is none, for people, without the address. A body that breaks off is none.
    pub(crate) async fn get(
        &self,
        url: &str,
        authorization: Option<String>,
        limit: usize,
    ) -> Result<Vec<u8>, String> {
        let mut request = self.0.get(url);
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let mut response = request.send().await.map_err(http::describe)?;
        let status = response.status();
        if !status.is_success() {
            return Err(format!("it answers {status}"));
        }
        let mut body = Vec::new();
        let read = http::read_at_most(&mut response, limit, &mut body).await;
        read.map_err(http::describe)?;
        Ok(body)
    }
}

/// The response of `url`. It follows no redirects and has no time limit.
///
/// # Errors
/// What went wrong, without the address.
pub async fn fetch_key_set(url: &str) -> Result<Vec<u8>, String> {
    let fetcher = Fetcher::new().map_err(|error| error.to_string())?;
    // One byte more than the limit, so that a key set that is too large is not cut.
    fetcher.get(url, None, KEYS_BYTES_MAX + 1).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    /// What is fetched from a server that sends this answer and closes the connection.
    async fn fetched(answer: &str) -> Result<Vec<u8>, String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let serve = async {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                client.read_buf(&mut request).await.unwrap();
            }
            client.write_all(answer.as_bytes()).await.unwrap();
        };
        tokio::join!(fetch_key_set(&url), serve).0
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_an_error() {
        let whole = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(fetched(whole).await, Ok(b"{}".to_vec()));
        let broken = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}";
        assert!(fetched(broken).await.is_err());
        let refused = "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}";
        let error = fetched(refused).await.unwrap_err();
        assert!(error.contains("404"), "{error}");
    }
}
