//! Fetches a text over HTTP. It runs no jobs.

use reqwest::Client;
use reqwest::header::AUTHORIZATION;

use super::http::{self, NoClient};

/// Fetches texts.
#[derive(Debug)]
pub(crate) struct TextFetcher(Client);

impl TextFetcher {
    pub(crate) fn new() -> Result<Self, NoClient> {
        http::client().map(Self)
    }

    /// The body of a successful answer, at most `limit` bytes of it. It has no time limit.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub(crate) async fn get(
        &self,
        url: &str,
        authorization: Option<String>,
        limit: usize,
    ) -> Result<String, String> {
        let mut request = self.0.get(url);
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let mut response = request.send().await.map_err(http::describe)?;
        let status = response.status();
        if !status.is_success() {
            return Err(format!("it answers {status}"));
        }
        let body = http::read_at_most(&mut response, limit).await;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }
}
