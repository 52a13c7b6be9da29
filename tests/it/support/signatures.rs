//! Verifies signed requests with the reference library of Standard Webhooks, in Python.

use serde_json::{Value, json};
use tokio::process::Command;

use super::http_server::Request;
use super::process::run_program_on;
use super::system::SECRET;
use super::{python, root};

/// Requires that each request has a valid signature, and none once it was changed.
pub async fn assert_signed(requests: &[Request]) {
    let script = root().join("tests/clients/webhooks.py");
    let mut verifier = Command::new(python("python"));
    let list: Vec<_> = requests
        .iter()
        .map(|request| json!({"headers": request.headers, "body": request.body}))
        .collect();
    let list = Value::from(list).to_string();
    let said = run_program_on(verifier.arg(script).arg(SECRET), &list).await;
    assert_eq!(said.prints(), format!("{} valid\n", requests.len()));
}
