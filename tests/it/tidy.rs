use std::fs;
use std::path::{Path, PathBuf};

/// Every Rust file of the program, tests aside.
fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut found, mut folders) = (Vec::new(), vec![root.clone()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path
                .components()
                .any(|part| part.as_os_str() == "tests" || part.as_os_str() == "tests.rs")
            {
                // Tests of a module print, and are as long as they are.
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(&root).unwrap_or(&path).to_owned(), text));
            }
        }
    }
    found
}

/// The file without its tests, comments and documentation.
fn code(text: &str) -> String {
    let text = text
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or_default();
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Demands that only files below `allowed` name `word`.
fn only(allowed: &[&str], words: &[&str]) {
    for (path, text) in sources() {
        let text = code(&text);
        for word in words {
            let named = text.contains(word);
            assert!(
                !named || allowed.iter().any(|folder| path.starts_with(folder)),
                "{} names {word}, which only {allowed:?} may",
                path.display()
            );
        }
    }
}

#[test]
fn each_library_is_named_in_one_folder_only() {
    only(&["nats"], &["async_nats"]);
    only(
        &["edge"],
        &[
            "axum::",
            "axum_",
            "socketioxide::",
            "hyper::",
            "hyper_util::",
            "utoipa::",
        ],
    );
    only(&["backend"], &["reqwest", "rustls::"]);
    only(&["cli"], &["anyhow", "println!"]);
}

#[test]
fn the_pure_folders_know_no_runtime_clock_or_broker() {
    for (path, text) in sources() {
        if path.starts_with("wire") || path.starts_with("resume") {
            for word in [
                "tokio",
                "async fn",
                "Instant",
                "SystemTime",
                "crate::nats",
                "crate::edge",
            ] {
                assert!(
                    !code(&text).contains(word),
                    "{} names {word}",
                    path.display()
                );
            }
        }
        if path.starts_with("backend") {
            for word in ["crate::nats", "crate::edge", "crate::worker"] {
                assert!(
                    !code(&text).contains(word),
                    "{} names {word}",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn every_file_says_what_it_owns_and_stays_readable() {
    for (path, text) in sources() {
        let first = text.lines().next().unwrap_or_default();
        assert!(
            first.starts_with("//!") || first.starts_with("#![doc"),
            "{} has no module doc",
            path.display()
        );
        let lines = code(&text).lines().count();
        assert!(lines <= 400, "{} has {lines} lines of code", path.display());
    }
}
