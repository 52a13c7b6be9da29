//! Sets `TAILWATER_VERSION`: the version and, in a release build, the commit and its date.
#![expect(
    clippy::disallowed_methods,
    reason = "cargo passes the settings of a build as variables"
)]

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=TAILWATER_COMMIT");
    // A debug build does not name its commit: each commit would compile the whole crate again.
    let is_release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    // Outside of a clone, as in an image's build, the variable may have `COMMIT DATE`.
    let given = env::var("TAILWATER_COMMIT")
        .ok()
        .filter(|text| !text.is_empty());
    let commit = given.or_else(|| is_release.then(commit).flatten());
    let version = env!("CARGO_PKG_VERSION");
    let text = commit.map_or_else(
        || version.to_owned(),
        |commit| format!("{version} ({commit})"),
    );
    println!("cargo:rustc-env=TAILWATER_VERSION={text}");
}

/// The commit of this folder and its date. `None` if this is not a clone of its own, or without git.
fn commit() -> Option<String> {
    // A copy of the sources inside another repository has not the commit of that one.
    if !git(&["rev-parse", "--show-prefix"])?.is_empty() {
        return None;
    }
    // Git appends to this file whenever the checked-out commit changes.
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
    if Path::new(&log).exists() {
        println!("cargo:rerun-if-changed={log}");
    }
    let shown = git(&["log", "-1", "--format=%H %cs"])?;
    let (hash, date) = shown.split_once(' ')?;
    Some(format!("{} {date}", hash.get(..9)?))
}

/// What a git command prints, in this folder.
fn git(args: &[&str]) -> Option<String> {
    let out = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    out.status.success().then(|| text.trim().to_owned())
}
