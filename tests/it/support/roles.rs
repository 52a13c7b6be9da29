//! The users of the test brokers: one per role, with the permissions of `nats/roles.json` for any prefix. A client without a
//! login may do everything.

use std::fs;
use std::path::PathBuf;

use tailwater::nats::{Names, Role};

/// A prefix that no subject contains by chance. Permissions for any prefix are made from those for this one.
const ANY: &str = "anyprefix";

/// Accounts for the configuration of a broker.
pub fn accounts() -> String {
    let roles = [
        Role::Setup,
        Role::Edge,
        Role::Recorder,
        Role::Worker(None),
        Role::Observer,
    ];
    let users = roles.iter().map(user).collect::<String>();
    format!(
        "accounts {{ T {{ jetstream: enabled, users: [\n  {{ user: all, password: all }}\n{users}] }} }}\nno_auth_user: all\n"
    )
}

/// The user and password of a role.
pub fn login(role: &Role) -> String {
    let user = match role {
        Role::Worker(_) => Role::Worker(None),
        other @ (Role::All | Role::Setup | Role::Edge | Role::Recorder | Role::Observer) => {
            other.clone()
        }
    };
    format!("{user}:{user}")
}

/// The role of a command.
pub fn role_of(command: &str) -> Role {
    match command {
        "setup" => Role::Setup,
        "edge" => Role::Edge,
        "recorder" | "submit" | "cancel" | "purge" => Role::Recorder,
        "worker" | "import" => Role::Worker(None),
        "tail" | "state" | "jobs" | "kinds" | "export" | "top" | "doctor" => Role::Observer,
        _ => Role::All,
    }
}

/// What brokers with these logs have refused, of the subjects and streams of one prefix, or of all.
pub fn refusals(logs: &[PathBuf], prefix: Option<&str>) -> Vec<String> {
    let streams = prefix.map(|prefix| format!(".{}_", prefix.to_uppercase()));
    let subjects = prefix.map(|prefix| [format!("\"{prefix}."), format!(".{prefix}.")]);
    let is_of_prefix = |line: &str| {
        let named = |names: &[String]| names.iter().any(|name| line.contains(name));
        streams.as_ref().is_none_or(|stream| line.contains(stream))
            || subjects.as_ref().is_none_or(|names| named(names))
    };
    // A broker that was removed has no log.
    let logs = logs.iter().filter_map(|log| fs::read_to_string(log).ok());
    logs.flat_map(|log| log.lines().map(str::to_owned).collect::<Vec<_>>())
        .filter(|line| line.contains(" Violation - ") && is_of_prefix(line))
        .collect()
}

fn user(role: &Role) -> String {
    let names = Names::new(ANY.parse().unwrap());
    let permissions = role.permissions(&names, 1).unwrap();
    let list = |subjects: Vec<&String>| {
        let subjects = subjects
            .iter()
            .map(|subject| format!("{:?}", of_any_prefix(subject)));
        subjects.collect::<Vec<_>>().join(", ")
    };
    let publish = list(permissions.publish.keys().collect());
    let subscribe = list(permissions.subscribe.keys().collect());
    format!(
        "  {{ user: {role}, password: {role}, permissions: {{ publish: [{publish}], subscribe: [{subscribe}] }} }}\n"
    )
}

/// A subject of the one prefix and the one shard, for all prefixes and shards.
fn of_any_prefix(subject: &str) -> String {
    let any = |token: &str| match token {
        ANY | "0" => "*".to_owned(),
        stream if stream.starts_with(&ANY.to_uppercase()) => "*".to_owned(),
        other => other.to_owned(),
    };
    subject.split('.').map(any).collect::<Vec<_>>().join(".")
}
