//! What routes use to describe themselves in OpenAPI: tags, and the problems that they answer with.
//! `openapi` makes the document.

use std::collections::BTreeMap;

use utoipa::openapi::response::Response;
use utoipa::openapi::schema::{AllOfBuilder, ObjectBuilder, Type};
use utoipa::openapi::{Content, Ref, RefOr, ResponseBuilder};

use crate::wire::Code;

/// The tag of routes for clients.
pub(super) const JOBS: &str = "jobs";
/// The tag of routes that speak the protocol of the AI SDK.
pub(super) const CHAT: &str = "chat";
/// The tag of routes that speak the protocol of OpenAI.
pub(super) const OPENAI: &str = "openai";
/// The tag of routes for operators.
pub(super) const OPERATION: &str = "operation";

/// Declares the problems that a route answers with, by their codes.
macro_rules! problems {
    ($name:ident: $($code:ident),+ $(,)?) => {
        struct $name;
        impl utoipa::IntoResponses for $name {
            fn responses() -> std::collections::BTreeMap<
                String,
                utoipa::openapi::RefOr<utoipa::openapi::response::Response>,
            > {
                $crate::edge::describe::responses(&[$($crate::wire::Code::$code),+])
            }
        }
    };
}
pub(super) use problems;

/// A response for each status that these codes have.
pub(super) fn responses(codes: &[Code]) -> BTreeMap<String, RefOr<Response>> {
    let mut by_status = BTreeMap::<u16, Vec<Code>>::new();
    for code in codes {
        by_status.entry(code.info().status).or_default().push(*code);
    }
    by_status
        .into_iter()
        .map(|(status, codes)| (status.to_string(), problem(&codes).into()))
        .collect()
}

fn problem(codes: &[Code]) -> Response {
    let texts: Vec<_> = codes
        .iter()
        .map(|code| format!("`{}`: {}", code.as_str(), code.info().text))
        .collect();
    let names: Vec<_> = codes.iter().map(|code| code.as_str()).collect();
    let code = ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some(names));
    let schema = AllOfBuilder::new()
        .item(Ref::from_schema_name("Problem"))
        .item(ObjectBuilder::new().property("code", code));
    ResponseBuilder::new()
        .description(texts.join(" "))
        .content("application/problem+json", Content::new(Some(schema)))
        .build()
}
