//! Files for browsers: the client, and the console, a page for the person who runs an edge. They
//! are part of the program; nothing is read from a disk.

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::app::App;

/// The same file that the npm package ships.
const CLIENT: &str = include_str!("../../clients/typescript/dist/client.js");
const PAGE: &str = include_str!("console/index.html");
const SCRIPT: &str = include_str!("console/console.js");
const STYLE: &str = include_str!("console/console.css");

/// The client, for pages of any origin.
pub(super) fn client() -> Router<Arc<App>> {
    Router::new().route(
        "/client.js",
        get(|headers: HeaderMap| async move { script(&headers, CLIENT) }),
    )
}

/// The console.
pub(super) fn console() -> Router<Arc<App>> {
    Router::new()
        .route("/", get(page))
        .route(
            "/console.js",
            get(|headers: HeaderMap| async move { script(&headers, SCRIPT) }),
        )
        .route(
            "/console.css",
            get(|headers: HeaderMap| async move { file(&headers, "text/css; charset=utf-8", STYLE) }),
        )
}

async fn page(headers: HeaderMap) -> Response {
    file(&headers, "text/html; charset=utf-8", PAGE)
}

fn script(headers: &HeaderMap, text: &'static str) -> Response {
    file(headers, "text/javascript; charset=utf-8", text)
}

/// A file, or 304 if the browser has it: it asks each time, because the next edge may have another
/// version.
fn file(headers: &HeaderMap, content_type: &'static str, text: &'static str) -> Response {
    let tag = tag(text);
    let common: [(HeaderName, &str); 2] =
        [(header::ETAG, &tag), (header::CACHE_CONTROL, "no-cache")];
    let known = headers.get(header::IF_NONE_MATCH);
    if known.is_some_and(|known| known.as_bytes() == tag.as_bytes()) {
        return (StatusCode::NOT_MODIFIED, common).into_response();
    }
    let content_type: [(HeaderName, &str); 1] = [(header::CONTENT_TYPE, content_type)];
    (common, content_type, text).into_response()
}

/// A short text that differs between files: their length and a sum (FNV-1a) of their bytes.
fn tag(text: &str) -> String {
    let sum = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("\"{sum:016x}\"")
}
