//! Verifies signed requests with the reference library of Standard Webhooks, in Python.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use super::http_server::Request;
use super::system::SECRET;
use super::{python, root, within};

/// Requires that each request has a valid signature, and none once it was changed.
pub async fn assert_signed(requests: &[Request]) {
    let script = root().join("tests/clients/webhooks.py");
    let mut verifier = tokio::process::Command::new(python("python"))
        .arg(script)
        .arg(SECRET)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let list: Vec<_> = requests
        .iter()
        .map(|request| json!({"headers": request.headers, "body": request.body}))
        .collect();
    let mut stdin = verifier.stdin.take().unwrap();
    let list = Value::from(list).to_string();
    stdin.write_all(list.as_bytes()).await.unwrap();
    drop(stdin);
    let out = within("the verifier", verifier.wait_with_output())
        .await
        .unwrap();
    let said = String::from_utf8(out.stdout).unwrap();
    let found = (out.status.code(), said);
    assert_eq!(found, (Some(0), format!("{} valid\n", requests.len())));
}
