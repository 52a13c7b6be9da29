//! Reads the key set of a token's issuer over HTTP. It is here because this folder has the HTTP
//! client.

use reqwest::StatusCode;

use super::http::{client, describe, read_at_most};
use crate::config::KEYS_BYTES_MAX;

/// The response of `url`. It follows no redirects and has no time limit.
///
/// # Errors
/// What went wrong, without the address.
pub async fn fetch_key_set(url: &str) -> Result<Vec<u8>, String> {
    let client = client().map_err(|error| error.to_string())?;
    let mut response = client.get(url).send().await.map_err(describe)?;
    if response.status() != StatusCode::OK {
        return Err(format!("the key server answered {}", response.status()));
    }
    // One byte more than the limit, so that a key set that is too large is not cut.
    Ok(read_at_most(&mut response, KEYS_BYTES_MAX + 1).await)
}
