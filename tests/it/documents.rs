//! The documents match the tree: their commands work, their links are valid, and what they quote exists.
//!
//! Conventions of the Markdown files:
//! - An `sh` block is run with bash, in the document's order, beside a `tailwater up` of the document's own. It ends what it starts in
//!   the background.
//! - An `output` block shows what the `sh` block before it prints; `…` stands for any text.
//! - Commands that build, install, test or start everything (`cargo`, `pip`, `scripts/…`, `docker`, `tailwater up`: `NOT_RUN` has all) are
//!   not run here. What they name is looked up instead. A block holds either such commands or others.
//! - `js` blocks of the README and of `docs/clients.md` run in Node, and `rust` and `python` blocks quote a file of `examples/` or `clients/python`.
//! - `ARCHITECTURE.md` and `CONTRIBUTING.md` name paths, types, functions and tests as they are in the tree.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use crate::support::broker::Broker;
use crate::support::http_server::{Exchange, Server};
use crate::support::system::{text, words};
use crate::support::third_party::{ThirdParty, node_folder};
use crate::support::up::up;
use crate::support::{free_port, process, root, within};

/// The documents whose commands are run, each by the test below that names it.
const RUN: [&str; 11] = [
    "README.md",
    "docs/quick-start.md",
    "docs/ai-sdk.md",
    "docs/clients.md",
    "docs/http.md",
    "docs/workers.md",
    "docs/metrics.md",
    "docs/openai.md",
    "docs/operations.md",
    "docs/performance.md",
    "docs/security.md",
];

/// Commands that are looked up instead of run.
const NOT_RUN: [&str; 11] = [
    "cargo ",
    "npm install ",
    "pip install ",
    "uvx ",
    "npx ",
    "node scripts/",
    "node --test ",
    "scripts/",
    "./scripts/",
    "docker ",
    "tailwater up",
];

/// The files below `folder` whose names end in `extension`, and their texts.
fn files(folder: &str, extension: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|other| other == extension) {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root()).unwrap().to_owned(), text));
            }
        }
    }
    found
}

/// Every document of the tree.
fn documents() -> Vec<(PathBuf, String)> {
    let top = fs::read_dir(root()).unwrap().flatten();
    let mut found: Vec<_> = top
        .map(|entry| PathBuf::from(entry.file_name()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .map(|path| {
            let text = fs::read_to_string(root().join(&path)).unwrap();
            (path, text)
        })
        .collect();
    for folder in ["docs", "nats", "src", "clients"] {
        if root().join(folder).exists() {
            found.extend(files(folder, "md"));
        }
    }
    found
}

/// The fenced blocks of a document: the word after the fence, and the text.
fn blocks(document: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    let mut inside = false;
    for line in document.lines() {
        if let Some(tag) = line.strip_prefix("```") {
            inside = !inside;
            if inside {
                found.push((tag.to_owned(), String::new()));
            }
        } else if inside && let Some((_, text)) = found.last_mut() {
            text.push_str(line);
            text.push('\n');
        }
    }
    assert!(!inside, "a block is not closed");
    found
}

/// The lines of a block that are commands.
fn commands(block: &str) -> impl Iterator<Item = &str> {
    block
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Whether a block is looked up instead of run.
fn is_looked_up(block: &str) -> bool {
    commands(block).all(is_not_run)
}

fn is_not_run(line: &str) -> bool {
    NOT_RUN.iter().any(|start| line.starts_with(start))
}

/// An address for a program of a document.
fn free_address() -> String {
    format!("127.0.0.1:{}", free_port())
}

/// A model server that returns the same answer to every question.
async fn model() -> Server {
    Server::start(async |mut exchange: Exchange| {
        let piece = r#"{"choices": [{"index": 0, "delta": {"content": "Because of Rayleigh scattering."}}]}"#;
        let end = r#"{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}"#;
        exchange.begin().await;
        for data in [piece, end, "[DONE]"] {
            exchange.send(format!("data: {data}\n\n")).await;
        }
        exchange.finish().await;
    })
    .await
}

/// Requires that `shown` is what was printed; `…` stands for any text.
fn assert_printed(printed: &str, shown: &str, block: &str) {
    let mut rest = printed;
    let parts = shown.lines().flat_map(|line| line.split('…'));
    for part in parts.map(str::trim).filter(|part| !part.is_empty()) {
        let Some(at) = rest.find(part) else {
            panic!(
                "{part:?} is not printed, or not in this place, by\n{block}\nwhich prints\n{printed}"
            );
        };
        rest = &rest[at + part.len()..];
    }
}

/// Runs the commands of a document as a reader would, in order.
async fn run(document: &str) {
    assert!(RUN.contains(&document), "{document} is not listed");
    let text = fs::read_to_string(root().join(document)).unwrap();
    let bin = Path::new(env!("CARGO_BIN_EXE_tailwater")).parent().unwrap();
    let up = up(TempDir::new().unwrap(), &[]).await;
    let model = model().await;
    // The tests have ports of their own.
    let mut places = vec![
        ("4223", free_port().to_string()),
        ("127.0.0.1:4000", up.addr.clone()),
        ("nats://127.0.0.1:4222", up.nats.clone()),
        ("127.0.0.1:4001", free_address()),
        ("127.0.0.1:9464", free_address()),
        ("8000", free_port().to_string()),
        ("127.0.0.1:11434", model.addr.clone()),
    ];
    let three = "nats://n1:4222,nats://n2:4222,nats://n3:4222";
    if text.contains(three) {
        places.push((three, Broker::shared_three().url()));
    }
    let mut printed = String::new();
    let mut block = String::new();
    for (tag, text) in blocks(&text) {
        match tag.as_str() {
            "sh" if !is_looked_up(&text) => {
                let mixed = commands(&text).find(|line| is_not_run(line));
                assert_eq!(
                    mixed, None,
                    "{document}: give this command a block of its own"
                );
                // Ends the processes that a failed block has started.
                let start = "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT";
                let mut script = format!("PATH={}:$PATH\n{start}\n{text}", bin.display());
                for (place, own) in &places {
                    script = script.replace(place, own);
                }
                // A machine that runs tests is slow.
                script = script.replace("\nsleep 1\n", "\nsleep 5\n");
                script = script.replace("\nsleep 2\n", "\nsleep 10\n");
                let mut bash = Command::new("bash");
                bash.args(["-euo", "pipefail", "-c", &script])
                    .current_dir(root());
                bash.env("TAILWATER_NATS", &up.nats)
                    .stdin(Stdio::null())
                    .kill_on_drop(true);
                let out = within(&text, bash.output()).await.unwrap();
                printed = [out.stdout, out.stderr]
                    .map(|bytes| String::from_utf8(bytes).unwrap())
                    .concat();
                assert!(out.status.success(), "{text}\n{printed}");
                block = text;
            }
            // It is not run, so it has no output.
            "sh" => block.clear(),
            "output" if !block.is_empty() => assert_printed(&printed, &text, &block),
            _ => {}
        }
    }
}

#[tokio::test]
async fn the_commands_of_the_readme_work() {
    run("README.md").await;
}

/// `scripts/install-test.sh` runs both lines as they are written.
#[test]
fn the_readme_begins_with_one_line_that_installs_and_starts_everything() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let blocks = blocks(&readme);
    let mut commands = blocks.iter().filter(|(tag, _)| tag == "sh");
    for program in ["uvx ", "npx "] {
        let (_, block) = commands.next().unwrap();
        let is_one_line = block.trim_end().lines().count() == 1;
        assert!(
            is_one_line && block.starts_with(program) && block.ends_with(" tailwater up\n"),
            "{block}"
        );
    }
}

#[tokio::test]
async fn the_commands_of_the_quick_start_work() {
    run("docs/quick-start.md").await;
}

#[tokio::test]
async fn the_commands_of_a_chat_work() {
    run("docs/ai-sdk.md").await;
}

#[tokio::test]
async fn the_commands_in_the_form_of_openai_work() {
    run("docs/openai.md").await;
}

#[tokio::test]
async fn the_commands_for_clients_work() {
    run("docs/clients.md").await;
}

#[tokio::test]
async fn the_commands_over_http_work() {
    run("docs/http.md").await;
}

#[tokio::test]
async fn the_commands_for_workers_work() {
    run("docs/workers.md").await;
}

#[tokio::test]
async fn the_commands_for_metrics_work() {
    run("docs/metrics.md").await;
}

#[tokio::test]
async fn the_commands_for_operators_work() {
    run("docs/operations.md").await;
}

#[tokio::test]
async fn the_commands_about_performance_work() {
    run("docs/performance.md").await;
}

#[tokio::test]
async fn the_commands_about_access_work() {
    run("docs/security.md").await;
}

/// Browser APIs that Node may lack.
const BROWSER: &str = r#"
import { EventSource } from "eventsource";
import { WebSocket } from "ws";
const body = { set innerText(text) { console.log(text); } };
Object.assign(globalThis, { EventSource, WebSocket, document: { body } });
"#;

#[tokio::test]
async fn the_programs_for_browsers_show_a_whole_job() {
    let up = up(TempDir::new().unwrap(), &[]).await;
    let input = words(30, 30, 5);
    for job in ["hello", "first", "plain"] {
        let submit = format!(
            "submit --kind demo --id {job} --input {input} --nats {}",
            up.nats
        );
        process::tailwater(&submit).await.prints();
    }
    let folder = TempDir::new_in(node_folder()).unwrap();
    let mut found = 0;
    for document in ["README.md", "docs/clients.md"] {
        let document = fs::read_to_string(root().join(document)).unwrap();
        for (_, program) in blocks(&document).iter().filter(|(tag, _)| tag == "js") {
            let program = program
                .replace("localhost:4000", &up.addr)
                .replace("127.0.0.1:4000", &up.addr)
                .replace("\"/api/", &format!("\"http://{}/api/", up.addr));
            let module = folder.path().join(format!("{found}.mjs"));
            fs::write(&module, format!("{BROWSER}{program}")).unwrap();
            let shown = if program.contains("console.log(JSON") {
                "job:done:v1".to_owned()
            } else {
                text(&input)
            };
            ThirdParty::node(&module, &Value::Null).says(&shown).await;
            found += 1;
        }
    }
    assert_eq!(found, 4, "programs in JavaScript");
}

#[test]
fn every_document_with_commands_is_run() {
    for (path, text) in documents() {
        let commands = blocks(&text)
            .iter()
            .any(|(tag, text)| tag == "sh" && !is_looked_up(text));
        assert!(
            !commands || RUN.contains(&path.to_str().unwrap()),
            "no test runs the commands of {}",
            path.display()
        );
    }
}

#[test]
fn a_block_ends_every_program_that_it_starts_in_the_background() {
    let mut found = 0;
    for (path, text) in documents() {
        for (_, block) in blocks(&text).iter().filter(|(tag, _)| tag == "sh") {
            let started = block.lines().filter(|line| line.ends_with('&')).count();
            // `kill "$edge" "$worker"`, or `wait "$receiver"` for a program that ends by itself.
            let ends = |line: &&str| line.starts_with("kill ") || line.starts_with("wait ");
            let ended: usize = block
                .lines()
                .filter(ends)
                .map(|line| line.matches("\"$").count())
                .sum();
            assert_eq!(ended, started, "{}:\n{block}", path.display());
            found += started;
        }
    }
    assert!(
        found > 10,
        "{found} programs: they are started otherwise now"
    );
}

#[test]
fn commands_that_are_not_run_name_what_exists() {
    let sources: String = files("src", "rs")
        .into_iter()
        .chain(files("tests", "rs"))
        .map(|(path, text)| format!("{}\n{text}", path.display()))
        .collect();
    for (path, text) in documents() {
        for (_, block) in blocks(&text).iter().filter(|(tag, _)| tag == "sh") {
            for line in commands(block).filter(|_| is_looked_up(block)) {
                let words: Vec<_> = line.split_whitespace().collect();
                for (index, word) in words.iter().enumerate() {
                    let exists = if word.contains("scripts/") {
                        root().join(word.trim_matches(['$', '(', ')'])).exists()
                    } else if index > 0 && words[index - 1] == "--example" {
                        root().join(format!("examples/{word}.rs")).exists()
                    } else {
                        // The filters of `cargo test` are names of modules and of tests.
                        let is_filter = line.contains("cargo test") && word.contains("::")
                            || word.matches('_').count() > 2;
                        !is_filter
                            || word
                                .split("::")
                                .filter(|name| !name.is_empty())
                                .all(|name| {
                                    sources.contains(&format!("fn {name}("))
                                        || sources.contains(&format!("/{name}.rs"))
                                        || sources.contains(&format!("/{name}/"))
                                })
                    };
                    assert!(exists, "{}: {line}: {word}", path.display());
                }
            }
        }
    }
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let mut found = 0;
    for (page, text) in documents() {
        let links = text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.starts_with("http")) {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = root().join(&page).parent().unwrap().join(file);
            let target = if file.is_empty() {
                root().join(&page)
            } else {
                target
            };
            assert!(target.exists(), "{} links to {link}", page.display());
            if !heading.is_empty() {
                let text = fs::read_to_string(&target).unwrap();
                let anchor = |line: &str| {
                    line.trim_start_matches('#')
                        .trim()
                        .to_lowercase()
                        .replace(' ', "-")
                        .replace(|c: char| !c.is_alphanumeric() && c != '-' && c != '_', "")
                };
                assert!(
                    text.lines()
                        .any(|line| line.starts_with('#') && anchor(line) == heading),
                    "{} links to {link}",
                    page.display()
                );
            }
            found += 1;
        }
    }
    assert!(found > 5, "{found} links: they are written otherwise now");
}

/// The codes in the first column of the tables below a heading.
fn codes(document: &str, heading: &str) -> Vec<String> {
    let (_, rest) = document.split_once(heading).unwrap();
    let section = rest.split("\n## ").next().unwrap();
    let (_, rows) = section.split_once("|---").unwrap();
    let cells = rows
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('|').next());
    cells
        .flat_map(|cell| {
            cell.split('`')
                .step_by(2)
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .filter(|code| !code.trim_matches([',', ' ']).is_empty())
        .collect()
}

#[test]
fn every_code_is_in_the_page_about_trouble() {
    let page = fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap();
    let requests: Vec<_> = tailwater::wire::Code::ALL
        .iter()
        .map(|code| code.as_str().to_owned())
        .collect();
    assert_eq!(codes(&page, "## Codes of refused requests"), requests);
    let protocol = fs::read_to_string(root().join("src/wire/PROTOCOL.md")).unwrap();
    let explained = codes(&page, "## Codes of failed jobs");
    // Two codes mean the same to both kinds of failures.
    let known = codes(&protocol, "## Failure codes");
    let missing: Vec<_> = known
        .iter()
        .filter(|code| !explained.contains(code) && !requests.contains(code))
        .collect();
    assert!(known.len() > 20 && missing.is_empty(), "{missing:?}");
}

/// What is quoted in backticks outside of blocks.
fn quoted(document: &str) -> Vec<&str> {
    let mut inside = false;
    let lines = document.lines().filter(|line| {
        inside ^= line.starts_with("```");
        !inside
    });
    lines
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .collect()
}

#[test]
fn every_name_in_the_documents_about_the_code_exists() {
    let sources: String = ["src", "tests", "examples"]
        .iter()
        .flat_map(|folder| files(folder, "rs"))
        .map(|(_, text)| text)
        .collect();
    let declares = |name: &str| {
        ["fn", "struct", "enum", "trait", "type"]
            .iter()
            .flat_map(|word| ["(", "<", " ", ":", ";"].map(|end| format!("{word} {name}{end}")))
            .any(|declaration| sources.contains(&declaration))
    };
    let is_name = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
            && text.contains(|c: char| c == '_' || c.is_ascii_uppercase())
            && text.contains(|c: char| c.is_ascii_lowercase())
    };
    let mut found = 0;
    for document in ["ARCHITECTURE.md", "CONTRIBUTING.md"] {
        let text = fs::read_to_string(root().join(document)).unwrap();
        for name in quoted(&text) {
            let name = name.strip_prefix("trait ").unwrap_or(name);
            let is_path = !name.contains([' ', '<', '*'])
                && (name.contains('/') || name.ends_with(".md") || name.ends_with(".toml"));
            let exists = if is_path {
                root().join(name).exists()
            } else if is_name(name) {
                // Codes and crates look like names of the tree.
                let known = ["cursor_not_in_log", "async_nats"].contains(&name);
                known || name.split("::").all(declares)
            } else {
                continue;
            };
            assert!(exists, "{document} names `{name}`");
            found += 1;
        }
    }
    assert!(found > 30, "{found} names: they are written otherwise now");
}

#[test]
fn every_quoted_program_stands_in_an_example() {
    let lines = |text: &str| -> Vec<String> {
        let lines = text.lines().map(|line| line.trim().to_owned());
        lines.filter(|line| !line.is_empty()).collect()
    };
    let python = files("clients/python/src", "py");
    let examples = [files("examples", "rs"), files("examples", "py"), python].concat();
    let mut found = 0;
    for (path, text) in documents() {
        for (tag, block) in blocks(&text) {
            if tag != "rust" && tag != "python" {
                continue;
            }
            let block = lines(&block);
            assert!(
                examples.iter().any(|(_, example)| lines(example)
                    .windows(block.len())
                    .any(|window| window == block)),
                "{}: {block:#?}",
                path.display()
            );
            found += 1;
        }
    }
    assert!(found > 1, "{found} quotes: they are written otherwise now");
}
