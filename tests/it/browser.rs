use std::path::Path;

use serde_json::json;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::support::process::run_program;
use crate::support::root;
use crate::support::third_party::ThirdParty;
use crate::support::tokens::SIGNING;
use crate::support::up::{up, up_with};

/// How many of these tests run at once. The test runner starts neighbours together, so that there would be a browser on
/// each of its threads; two keep two cores busy, since scenarios mostly wait.
static TURNS: Semaphore = Semaphore::const_new(2);

async fn turn() -> SemaphorePermit<'static> {
    TURNS.acquire().await.unwrap()
}

/// Runs scenarios of a file of `tests/clients/browser` in Chromium, against a `tailwater up` whose
/// jobs of the kind `exec` end when the scenario wants it.
async fn run(file: &str, names: &[&str]) {
    // The pages of the scenarios are of another origin than the edge.
    run_with("words.sh", file, &["--allow-origin", "*"], names).await;
}

/// The same, with another program for these jobs, and with these flags.
async fn run_with(program: &str, file: &str, flags: &[&str], names: &[&str]) {
    let _turn = turn().await;
    let words = root().join("tests/clients/browser").join(program);
    let up = up_with(
        TempDir::new().unwrap(),
        flags,
        &["bash", words.to_str().expect("a path of the tree is text")],
    )
    .await;
    let given = json!({
        "names": names, "addr": up.addr, "nats": up.nats, "bin": env!("CARGO_BIN_EXE_tailwater"),
        "secret": std::str::from_utf8(SIGNING).unwrap(),
    });
    let file = Path::new("browser").join(file);
    let reports = ThirdParty::node(&file, &given).ends().await;
    let mut ran: Vec<_> = reports.iter().map(|report| &report["name"]).collect();
    ran.sort_by_key(|name| name.as_str());
    let mut names = names.to_vec();
    names.sort_unstable();
    assert_eq!(ran, names);
}

#[tokio::test]
async fn the_client_in_node_resumes_over_each_transport() {
    let _turn = turn().await;
    let up = up(TempDir::new().unwrap(), &[]).await;
    let given = json!({"url": format!("http://{}", up.addr)});
    let reports = ThirdParty::node(Path::new("tailwater.mjs"), &given)
        .ends()
        .await;
    let whole = |transport: &str| json!({"transport": transport, "isWhole": true, "isSame": true, "missing": 0});
    assert_eq!(reports, [whole("sse"), whole("websocket")]);
}

#[tokio::test]
async fn a_page_loses_nothing_when_its_network_or_its_edge_fails() {
    run(
        "client.mjs",
        &["offline", "dead_network", "killed_edge", "event_streams"],
    )
    .await;
}

#[tokio::test]
async fn a_page_that_is_reloaded_continues_where_it_was() {
    run(
        "client.mjs",
        &["reload", "iterators", "back_and_forward", "submit_offline"],
    )
    .await;
}

#[tokio::test]
async fn a_hidden_page_connects_at_once_when_it_becomes_visible() {
    run("client.mjs", &["hidden"]).await;
}

#[tokio::test]
async fn a_page_renews_its_tokens_and_loses_no_event_when_one_expires() {
    run("client.mjs", &["token_renewed", "token_expired"]).await;
}

#[tokio::test]
async fn tabs_show_the_same_whether_they_share_a_connection_or_not() {
    run(
        "client.mjs",
        &["tabs", "separate_tabs", "cancel", "example"],
    )
    .await;
}

#[tokio::test]
async fn the_hooks_of_react_render_on_a_server_and_survive_strict_mode() {
    run("react.mjs", &["react"]).await;
}

#[tokio::test]
async fn use_chat_shows_the_whole_answer_after_a_reload_and_a_lost_network() {
    run(
        "chats.mjs",
        &["version_6", "version_7", "version_7_websocket"],
    )
    .await;
}

#[tokio::test]
async fn the_console_runs_shows_and_stops_jobs_and_resumes_them() {
    run("console.mjs", &["submit", "cut", "stop", "keyboard"]).await;
}

#[tokio::test]
async fn the_console_is_accessible_in_both_themes_and_on_a_phone() {
    run("console.mjs", &["accessible"]).await;
}

#[tokio::test]
async fn the_pages_of_the_examples_show_a_whole_job() {
    run(
        "examples.mjs",
        &["plain", "fastapi", "nextjs_route", "chat"],
    )
    .await;
}

#[tokio::test]
async fn events_arrive_as_they_are_made_through_nginx_and_compressing_servers() {
    let names = [
        "nginx_by_default",
        "nginx_with_websockets",
        "compressing_dev_server",
        "webpack_dev_server",
    ];
    run_with("steps.sh", "proxies.mjs", &[], &names).await;
}

#[tokio::test]
async fn a_page_of_another_origin_can_neither_read_nor_submit_nor_be_rebound() {
    let run = async |names| run_with("words.sh", "origins.mjs", &[], names).await;
    run(&["foreign", "rebound"]).await;
    // What the page of the edge itself can do shows that the others were refused.
    run(&["own"]).await;
}

#[tokio::test]
async fn a_cookie_opens_event_streams_of_the_edges_own_pages_only() {
    let dir = TempDir::new().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, SIGNING).unwrap();
    let secret = secret.display().to_string();
    let flags = ["--auth", "jwt", "--auth-secret", &secret];
    run_with("words.sh", "origins.mjs", &flags, &["cookie"]).await;
}

#[tokio::test]
async fn the_console_shows_a_job_as_a_timeline_and_never_as_markup() {
    run(
        "console.mjs",
        &["timeline", "sources", "cancelled_elsewhere"],
    )
    .await;
}

#[tokio::test]
async fn the_console_keeps_its_list_and_its_numbers_live() {
    run("console.mjs", &["list", "numbers"]).await;
}

#[tokio::test]
async fn the_console_offers_each_kind_with_its_queue_and_an_example() {
    run("console.mjs", &["kinds"]).await;
}

#[tokio::test]
async fn a_console_that_was_left_open_asks_for_little() {
    run("console.mjs", &["hidden", "away"]).await;
}

#[tokio::test]
async fn the_console_opens_and_stops_jobs_by_keyboard_and_on_a_phone() {
    run("console.mjs", &["keyboard_job", "phone"]).await;
}

#[tokio::test]
async fn the_console_asks_for_a_token_and_keeps_it_in_memory() {
    run("console_access.mjs", &["jwt", "token"]).await;
}

#[tokio::test]
async fn the_console_says_what_a_token_does_not_allow_and_asks_again_when_it_expires() {
    run("console_access.mjs", &["expiry", "one_job", "late"]).await;
}

#[tokio::test]
async fn the_pictures_show_the_console_as_it_is() {
    let mut check = Command::new("node");
    check.args(["scripts/pictures.mjs", "--check"]);
    run_program(check.current_dir(root())).await.prints();
}
