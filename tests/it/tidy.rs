mod map;

use std::collections::BTreeMap;
use std::fmt::Debug;

use map::{CrateMap, rust_files, without_comments_and_literals};

/// Today's circles, by their module and their number of files. The list may only shrink.
const CIRCLES: [(&str, usize); 0] = [];

/// Today's type names that are declared more than once. The list may only shrink.
const REPEATED_TYPES: [&str; 0] = [];

/// Requires that a list of exceptions names exactly what is there.
fn assert_exact<T: Copy + Debug + PartialEq>(what: &str, found: &[T], listed: &[T]) {
    let missing = |from: &[T], list: &[T]| -> Vec<T> {
        let mut rest = list.to_vec();
        from.iter()
            .filter(|item| match rest.iter().position(|other| other == *item) {
                Some(at) => {
                    rest.remove(at);
                    false
                }
                None => true,
            })
            .copied()
            .collect()
    };
    let new = missing(found, listed);
    let fixed = missing(listed, found);
    assert!(
        new.is_empty() && fixed.is_empty(),
        "{what}: fix what is new: {new:?}; remove from the list what is fixed: {fixed:?}"
    );
}

/// A parent counts like any other file; declaring or re-exporting a child is not a use of it.
#[test]
fn no_two_files_use_each_other() {
    let map = CrateMap::get();
    let circles = map.circles();
    for circle in &circles {
        println!("{} files use each other:", circle.files.len());
        for (user, used) in &circle.uses {
            println!("    {user} uses {used}");
        }
    }
    let found: Vec<_> = circles
        .iter()
        .map(|circle| (circle.module, circle.files.len()))
        .collect();
    assert_exact("circles", &found, &CIRCLES);
}

#[test]
fn a_module_uses_only_those_above_it_in_the_table() {
    let map = CrateMap::get();
    let table: Vec<_> = map
        .text("lib.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("//! | [`")?.split('`').next())
        .collect();
    let row = |module: &str| {
        let row = table.iter().position(|name| *name == module);
        row.unwrap_or_else(|| panic!("{module} is missing from the table in lib.rs"))
    };
    let uses = map.module_uses();
    assert!(
        uses.len() > 40,
        "{} uses: they are written otherwise now",
        uses.len()
    );
    let found: Vec<_> = uses
        .into_iter()
        .filter(|(user, used)| *user != "lib" && row(user) <= row(used))
        .collect();
    assert!(found.is_empty(), "uses of a module further down: {found:?}");
}

#[test]
fn a_type_name_is_declared_once() {
    let map = CrateMap::get();
    let mut declared: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for file in &map.files {
        for name in file.declared_types() {
            declared.entry(name).or_default().push(&file.path);
        }
    }
    declared.retain(|_, files| files.len() > 1);
    println!("{declared:#?}");
    let found: Vec<_> = declared.into_keys().collect();
    assert_exact("repeated type names", &found, &REPEATED_TYPES);
}

/// Requires that only these modules name these words.
fn only(allowed: &[&str], words: &[&str]) {
    for file in &CrateMap::get().files {
        for word in words {
            assert!(
                !file.code.contains(word) || allowed.contains(&file.top()),
                "{} names {word}, which only {allowed:?} may",
                file.path
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
            "h2::",
            "utoipa::",
        ],
    );
    only(&["backend"], &["reqwest"]);
    only(&["backend", "edge", "nats"], &["rustls::"]);
    only(&["metrics"], &["prometheus_client"]);
    only(&["cli"], &["anyhow", "println!"]);
}

#[test]
fn the_pure_folders_know_no_runtime_and_no_clock() {
    for file in &CrateMap::get().files {
        if matches!(file.top(), "wire" | "resume") {
            for word in ["tokio", "async fn", "Instant", "SystemTime"] {
                assert!(!file.code.contains(word), "{} names {word}", file.path);
            }
        }
    }
}

#[test]
fn a_backend_knows_no_broker() {
    let map = CrateMap::get();
    let uses = map.module_uses();
    for used in ["nats", "edge", "worker"] {
        assert!(!uses.contains(&("backend", used)), "backend uses {used}");
    }
}

#[test]
fn every_file_says_what_it_owns() {
    for file in &CrateMap::get().files {
        let first = file.text.lines().next().unwrap_or_default();
        assert!(
            first.starts_with("//!") || first.starts_with("#![doc"),
            "{} has no module doc",
            file.path
        );
    }
}

#[test]
fn no_file_has_more_than_400_lines_of_code() {
    let files = CrateMap::get().files.iter();
    let long = files.filter(|file| {
        let lines = file.code.lines();
        lines.filter(|line| !line.trim().is_empty()).count() > 400
    });
    let found: Vec<_> = long.map(|file| file.path.as_str()).collect();
    assert!(found.is_empty(), "long files: {found:?}");
}

#[test]
fn a_test_module_imports_from_support_only() {
    for (path, text) in rust_files("tests/it") {
        if path.contains('/') {
            continue;
        }
        let code = without_comments_and_literals(&text);
        for item in code.split("crate::").skip(1) {
            let end = item.find("::").unwrap_or(item.len());
            assert_eq!(&item[..end], "support", "in {path}");
        }
    }
}

/// Whether the code has a `let (a, b) = (x, y);`.
fn packs_bindings(code: &str) -> bool {
    // What follows the parenthesis that closes the one before the text.
    let after_closing = |text: &str| {
        let mut depth = 1;
        let end = text.find(|c| {
            match c {
                '(' => depth += 1,
                ')' => depth -= 1,
                _ => {}
            }
            depth == 0
        })?;
        Some(text[end + 1..].to_owned())
    };
    let is_packed = |pattern: &str| {
        let rest = after_closing(pattern)?;
        let (_, value) = rest.split_once('=')?;
        let value = value.trim_start();
        let rest = value.strip_prefix('(').and_then(after_closing);
        let is_tuple = rest.is_some_and(|rest| rest.starts_with(';'));
        Some(is_tuple || value.starts_with("Default::default()"))
    };
    code.split("let (")
        .skip(1)
        .any(|pattern| is_packed(pattern) == Some(true))
}

#[test]
fn each_binding_has_its_own_line() {
    for packed in [
        "let (a, mut b) = (f(1), (2, 3));",
        "let (a, b): (_, u8) =\n (1, 2);",
    ] {
        assert!(packs_bindings(packed), "{packed}");
    }
    for plain in [
        "let (a, b) = f((1, 2));",
        "let (Some(a), Some(b)) = (c, d) else {",
    ] {
        assert!(!packs_bindings(plain), "{plain}");
    }
    let files = ["src", "tests"].map(rust_files).concat();
    let found: Vec<_> = files
        .into_iter()
        .filter(|(_, text)| packs_bindings(&without_comments_and_literals(text)))
        .map(|(path, _)| path)
        .collect();
    assert!(found.is_empty(), "several bindings in one `let`: {found:?}");
}

/// Limits are in `config`, with their reasons; limits of the protocol are in `wire`.
#[test]
fn durations_are_named_in_config() {
    let units = ["from_millis(", "from_secs(", "from_micros("];
    let is_literal = |argument: &str| {
        let argument = argument.split(')').next().unwrap_or_default();
        argument
            .chars()
            .all(|c| c.is_ascii_digit() || "_ *".contains(c))
    };
    let is_constant = |line: &str| {
        let declared = line
            .split_once("const ")
            .and_then(|(_, rest)| rest.split_once(": "));
        declared.is_some_and(|(name, kind)| !name.contains('(') && kind.starts_with("Duration"))
    };
    let holds_duration = |code: &str| {
        units
            .iter()
            .any(|unit| code.split(unit).skip(1).any(is_literal))
            || code.lines().any(is_constant)
    };
    let files = CrateMap::get().files.iter();
    let found: Vec<_> = files
        .filter(|file| !matches!(file.top(), "config" | "wire") && holds_duration(&file.code))
        .map(|file| file.path.as_str())
        .collect();
    assert!(found.is_empty(), "durations outside of config: {found:?}");
}
