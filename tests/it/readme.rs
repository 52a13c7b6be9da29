use std::path::Path;
use std::process::Stdio;

use tempfile::TempDir;
use tokio::process::Command;

use crate::cli::up;
use crate::support::within;

/// What is run elsewhere: the stack by `scripts/compose-test.sh`, the others by `scripts/test.sh` itself.
const ELSEWHERE: [&str; 3] = [
    "docker compose up",
    "scripts/run-demo.sh",
    "./scripts/test.sh",
];

/// The shell blocks of the README, in order.
fn blocks() -> Vec<String> {
    let text = include_str!("../../README.md");
    let blocks = text.split("```sh\n").skip(1);
    blocks
        .map(|block| block.split("```").next().unwrap().trim().to_owned())
        .collect()
}

#[tokio::test]
async fn every_command_of_the_readme_does_what_a_reader_expects() {
    let blocks = blocks();
    for elsewhere in ELSEWHERE {
        assert!(
            blocks.iter().any(|block| block == elsewhere),
            "{elsewhere} is not in the README any more"
        );
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let bin = Path::new(env!("CARGO_BIN_EXE_tailwater"))
        .parent()
        .unwrap()
        .display();
    let up = up(TempDir::new().unwrap(), &[]).await;
    let mut said = String::new();
    for block in blocks
        .iter()
        .filter(|block| !ELSEWHERE.contains(&block.as_str()))
    {
        // The tests have ports of their own.
        let script = format!("PATH={bin}:$PATH\n{block}")
            .replace("http://127.0.0.1:4000", &format!("http://{}", up.addr))
            .replace("nats://127.0.0.1:4222", &up.nats);
        let mut bash = Command::new("bash");
        bash.args(["-euo", "pipefail", "-c", &script])
            .current_dir(root);
        bash.env("TAILWATER_NATS", &up.nats)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let out = within(block, bash.output()).await.unwrap();
        let text = [out.stdout, out.stderr]
            .map(|bytes| String::from_utf8(bytes).unwrap())
            .concat();
        assert!(out.status.success(), "{block}\n{text}");
        said += &text;
    }
    for expected in [
        r#"{"id":"first","job":"first","kind":"demo","status":"queued"}"#,
        r#"{"id":"too-long","job":"too-long","seq":"#,
        r#"{"id":"too-long","job":"too-long","kind":"demo","status":"#,
        "  KIND  STATUS",
        "\nid: ",
        r#"{"id":"plain","job":"plain","kind":"demo","status":"done","attempt":1,"#,
        r#""live":false,"next":""#,
        r#""live":false,"next":null}"#,
        "· missing 0 · duplicated 0 · resumed at seq 21",
        "one\ntwo\nthree\n",
        "1\n2\n3\n4\n5\n",
        "THE QUICK BROWN FOX",
    ] {
        assert!(said.contains(expected), "{expected} is not in:\n{said}");
    }
}
