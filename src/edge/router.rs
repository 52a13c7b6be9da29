//! The routes, and the layers that all of them share.

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{any, get};
use axum::{Extension, Router};
use tower_http::cors::{AllowOrigin, Any, CorsLayer};
use tower_http::set_header::SetResponseHeaderLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::app::App;
use super::error::Problem;
use super::openapi::ApiDocument;
use super::{
    admission, chat, console, head, kinds, list, metrics, openai, openapi, ops, rest, session,
    socketio, sse, stats, tickets, ws,
};
use crate::config::PREFLIGHT_AGE;
use crate::wire::Code;
use crate::wire::limits::BODY_MAX;

pub(super) fn router(app: Arc<App>) -> Router {
    let (router, api) = routes().split_for_parts();
    let console = if app.settings.console {
        console::console()
    } else {
        Router::new()
    };
    let no_store = HeaderValue::from_static("no-store");
    router
        .merge(console::client())
        .merge(console)
        // The address that clients of an earlier system still use.
        .route("/api/job/{id}/state", get(rest::state))
        .route("/socket.io/", any(socketio::engine))
        // Some clients and proxies leave the slash out.
        .route("/socket.io", any(socketio::engine))
        .fallback(|| async { Problem::from(Code::NotFound) })
        .method_not_allowed_fallback(|| async { Problem::from(Code::MethodNotAllowed) })
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(from_fn(head::body_is_short_enough))
        .layer(from_fn_with_state(Arc::clone(&app), admission::admit))
        .layer(allowed_origins())
        .layer(from_fn_with_state(Arc::clone(&app), admission::browser))
        .layer(from_fn(head::checked))
        .layer(from_fn(openai::in_openai_form))
        // A cache may keep a response without this header for any time; a job would then seem to
        // run forever.
        .layer(SetResponseHeaderLayer::if_not_present(
            header::CACHE_CONTROL,
            no_store,
        ))
        .layer(security_header(header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .layer(security_header(header::X_FRAME_OPTIONS, "DENY"))
        .layer(security_header(header::REFERRER_POLICY, "no-referrer"))
        .layer(security_header(
            header::CONTENT_SECURITY_POLICY,
            CONTENT_POLICY,
        ))
        .layer(Extension(ApiDocument::new(api)))
        .with_state(app)
}

/// What a page of the edge may load: only files of the edge, and no script or style within the page.
/// Answers that are not pages have it as well, in case a browser takes one for a page.
const CONTENT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

fn security_header(name: HeaderName, value: &'static str) -> SetResponseHeaderLayer<HeaderValue> {
    SetResponseHeaderLayer::if_not_present(name, HeaderValue::from_static(value))
}

/// Lets the pages that `admission` accepts read the answers, without cookies: the edge's own cookie
/// is for pages of its own origin, and a proxy in front of it that authenticates users by a cookie
/// would let in every page that they open.
fn allowed_origins() -> CorsLayer {
    // `*` does not include `Authorization`.
    let headers = [HeaderName::from_static("*"), header::AUTHORIZATION];
    CorsLayer::new()
        .allow_origin(AllowOrigin::mirror_request())
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::DELETE])
        .allow_headers(headers)
        .expose_headers(Any)
        .max_age(PREFLIGHT_AGE)
}

/// The routes that the OpenAPI document describes.
fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(rest::submit, list::jobs))
        .routes(routes!(rest::job, rest::purge))
        .routes(routes!(rest::state))
        .routes(routes!(rest::cancel))
        .routes(routes!(sse::events))
        .routes(routes!(tickets::issue))
        .routes(routes!(session::begin, session::end))
        .routes(routes!(ws::upgrade))
        .routes(routes!(chat::answer))
        .routes(routes!(chat::resume))
        .routes(routes!(chat::stop))
        .routes(routes!(openai::complete))
        .routes(routes!(openai::completion))
        .routes(routes!(openai::respond))
        .routes(routes!(openai::response))
        .routes(routes!(openai::cancel_response))
        .routes(routes!(openai::models))
        .routes(routes!(openai::model))
        .routes(routes!(kinds::kinds))
        .routes(routes!(stats::stats))
        .routes(routes!(stats::socketio))
        .routes(routes!(metrics::metrics))
        .routes(routes!(ops::health))
        .routes(routes!(ops::ready))
        .routes(routes!(openapi::document))
}
