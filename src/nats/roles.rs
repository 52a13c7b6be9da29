//! What each role may do in NATS, as `nats/roles.json` declares it. It does no I/O.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

use super::names::Names;
use crate::wire::Kind;

/// What a process does with the broker. It selects the prefix of its inboxes, so that a user that
/// may subscribe only to the inboxes of its role sees no answers to others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Everything, in one process: `up`, `bench` and tests. It uses the inboxes that every NATS
    /// client uses.
    All,
    /// Creates the streams and declares kinds.
    Setup,
    /// Serves clients.
    Edge,
    /// Submits, cancels and purges jobs, for edges or for a command.
    Recorder,
    /// Runs jobs of one kind. As a user: of any kind, without one.
    Worker(Option<Kind>),
    /// Reads jobs.
    Observer,
}

/// The subjects that a role uses, each with its purpose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolePermissions {
    /// Where it publishes.
    pub publish: BTreeMap<String, String>,
    /// What it subscribes to, its inboxes included.
    pub subscribe: BTreeMap<String, String>,
}

/// A role in `nats/roles.json`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RoleDeclaration {
    publish: BTreeMap<String, String>,
    subscribe: BTreeMap<String, String>,
}

/// The role's name: that of its user, and of the folder with its key.
impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Setup => f.write_str("setup"),
            Self::Edge => f.write_str("edge"),
            Self::Recorder => f.write_str("recorder"),
            Self::Worker(None) => f.write_str("worker"),
            Self::Worker(Some(kind)) => write!(f, "worker-{kind}"),
            Self::Observer => f.write_str("observer"),
        }
    }
}

impl Role {
    /// The prefix of its inboxes; `None` for that of the client library. All are below `_INBOX`, so
    /// that users of other configurations may subscribe to them.
    pub(super) fn inbox(&self, names: &Names) -> Option<String> {
        let prefix = names.prefix();
        match self {
            Self::All => None,
            Self::Worker(Some(kind)) => Some(format!("_INBOX.{prefix}.worker.{kind}")),
            Self::Setup | Self::Edge | Self::Recorder | Self::Worker(None) | Self::Observer => {
                Some(format!("_INBOX.{prefix}.{self}"))
            }
        }
    }

    /// The subjects that it uses on streams with these names and this many shards. `None` when it
    /// has no limits.
    pub fn permissions(&self, names: &Names, shards: u32) -> Option<RolePermissions> {
        let inbox = self.inbox(names)?;
        let kind = match self {
            Self::Worker(Some(kind)) => kind.as_str(),
            Self::All
            | Self::Setup
            | Self::Edge
            | Self::Recorder
            | Self::Worker(None)
            | Self::Observer => "*",
        };
        let name = match self {
            Self::Worker(_) => "worker".to_owned(),
            Self::All | Self::Setup | Self::Edge | Self::Recorder | Self::Observer => {
                self.to_string()
            }
        };
        let RoleDeclaration { publish, subscribe } = declarations().remove(&name)?;
        let subjects = |declared: BTreeMap<String, String>| {
            let subjects = declared.into_iter().flat_map(|(subject, purpose)| {
                let subjects = fill_in(&subject, names, shards, kind);
                subjects
                    .into_iter()
                    .map(move |subject| (subject, purpose.clone()))
            });
            subjects.collect::<BTreeMap<_, _>>()
        };
        let mut subscribe = subjects(subscribe);
        subscribe.insert(format!("{inbox}.>"), "answers to its requests".into());
        Some(RolePermissions {
            publish: subjects(publish),
            subscribe,
        })
    }
}

fn declarations() -> BTreeMap<String, RoleDeclaration> {
    serde_json::from_str(include_str!("../../nats/roles.json"))
        .unwrap_or_else(|_| unreachable!("the roles are parsed by a test"))
}

/// The subjects of a declared one: one for each shard, if it names a shard.
fn fill_in(subject: &str, names: &Names, shards: u32, kind: &str) -> Vec<String> {
    let subject = subject
        .replace("{prefix}", names.prefix().as_str())
        .replace("{jobs}", &names.jobs_stream())
        .replace("{auth}", &names.auth_stream())
        .replace("{auth_bucket}", &names.auth_bucket())
        .replace("{tickets}", &names.tickets_stream())
        .replace("{tickets_bucket}", &names.tickets_bucket())
        .replace("{kind}", kind);
    let of_shards = ["{shard}", "{chunks}", "{segments}"];
    if !of_shards.iter().any(|name| subject.contains(name)) {
        return vec![subject];
    }
    let of_shard = |shard: u32| {
        subject
            .replace("{shard}", &shard.to_string())
            .replace("{chunks}", &names.chunks_stream(shard))
            .replace("{segments}", &names.segments_stream(shard))
    };
    (0..shards).map(of_shard).collect()
}

impl RolePermissions {
    /// The same, without the logs and segments of jobs whose ids name no kind: a worker of any kind
    /// can write to them.
    #[must_use]
    pub fn without_plain_ids(mut self, names: &Names, shards: u32) -> Self {
        let prefix = names.prefix();
        for shard in 0..shards {
            self.publish.remove(&format!("{prefix}.chunks.{shard}.*"));
            let segments = format!("{prefix}.segments.{shard}.*.*");
            self.publish.remove(&segments);
        }
        self
    }

    /// As the value of `permissions` of a user in the configuration of a NATS server, each line
    /// indented by `indent`.
    pub(super) fn config(&self, indent: &str) -> String {
        let list = |subjects: &BTreeMap<String, String>| {
            let lines = subjects
                .iter()
                .map(|(subject, purpose)| format!("{indent}    \"{subject}\" # {purpose}\n"));
            lines.collect::<String>()
        };
        // No `allow_responses`: whoever sends a message chooses its reply subject, so that a client
        // could send itself one to be allowed to publish anywhere.
        format!(
            "{{\n{indent}  publish: [\n{}{indent}  ]\n{indent}  subscribe: [\n{}{indent}  ]\n{indent}}}",
            list(&self.publish),
            list(&self.subscribe),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(role: &Role) -> RolePermissions {
        let names = Names::new("tw".parse().unwrap());
        role.permissions(&names, 2).unwrap()
    }

    fn every_role() -> [Role; 6] {
        let kind = Some("chat".parse().unwrap());
        [
            Role::Setup,
            Role::Edge,
            Role::Recorder,
            Role::Worker(None),
            Role::Worker(kind),
            Role::Observer,
        ]
    }

    /// The subjects of logs and segments of shard 1 that a role writes to.
    fn written_in_shard_1(permissions: &RolePermissions) -> Vec<&str> {
        let subjects = permissions.publish.keys().map(String::as_str);
        subjects
            .filter(|subject| {
                subject.starts_with("tw.chunks.1.") || subject.starts_with("tw.segments.1.")
            })
            .collect()
    }

    #[test]
    fn only_the_server_publishes_live_copies() {
        for role in every_role() {
            let permissions = of(&role);
            for subject in permissions.publish.keys() {
                assert!(!subject.starts_with("tw.live"), "{role}: {subject}");
                assert!(!subject.starts_with(['*', '>']), "{role}: {subject}");
                assert!(!subject.contains(['{', '}']), "{role}: {subject}");
            }
        }
        assert_eq!(
            Role::All.permissions(&Names::new("tw".parse().unwrap()), 2),
            None
        );
    }

    #[test]
    fn without_plain_ids_a_worker_of_one_kind_writes_to_logs_of_its_kind_only() {
        let names = Names::new("tw".parse().unwrap());
        for role in every_role() {
            let all = of(&role);
            let qualified = all.clone().without_plain_ids(&names, 2);
            let removed = all.publish.len() - qualified.publish.len();
            let is_worker = matches!(role, Role::Worker(_));
            assert_eq!(removed, if is_worker { 4 } else { 0 }, "{role}");
            assert_eq!(all.subscribe, qualified.subscribe);
        }
        let permissions = of(&Role::Worker(Some("chat".parse().unwrap())));
        let permissions = permissions.without_plain_ids(&names, 2);
        assert_eq!(
            written_in_shard_1(&permissions),
            [
                "tw.chunks.1.callback.*",
                "tw.chunks.1.chat.*",
                "tw.segments.1.chat.*.*",
            ]
        );
    }

    #[test]
    fn a_worker_of_one_kind_claims_no_other_kind() {
        let permissions = of(&Role::Worker(Some("chat".parse().unwrap())));
        let claims: Vec<_> = permissions
            .publish
            .keys()
            .filter(|subject| subject.contains("TW_JOBS") && !subject.contains("STREAM"))
            .map(String::as_str)
            .collect();
        assert_eq!(
            claims,
            [
                "$JS.ACK.*.*.TW_JOBS.chat.>",
                "$JS.ACK.TW_JOBS.chat.>",
                "$JS.API.CONSUMER.CREATE.TW_JOBS.chat.tw.jobs.chat.*",
                "$JS.API.CONSUMER.INFO.TW_JOBS.callback",
                "$JS.API.CONSUMER.INFO.TW_JOBS.chat",
                "$JS.API.CONSUMER.MSG.NEXT.TW_JOBS.chat",
            ]
        );
    }

    #[test]
    fn a_worker_of_one_kind_writes_to_its_own_logs_to_plain_ones_and_to_those_of_callbacks() {
        let permissions = of(&Role::Worker(Some("chat".parse().unwrap())));
        assert_eq!(
            written_in_shard_1(&permissions),
            [
                "tw.chunks.1.*",
                "tw.chunks.1.callback.*",
                "tw.chunks.1.chat.*",
                "tw.segments.1.*.*",
                "tw.segments.1.chat.*.*",
            ]
        );
    }

    #[test]
    fn an_edge_neither_writes_to_logs_nor_queues_nor_removes_jobs() {
        for subject in of(&Role::Edge).publish.keys() {
            let writes = [
                "tw.chunks.",
                "tw.segments.",
                "tw.jobs.",
                "tw.control.",
                "tw.purged.",
            ];
            assert!(
                !writes.iter().any(|of| subject.starts_with(of)),
                "{subject}"
            );
            assert!(
                !subject.contains("PURGE") && !subject.contains("DELETE.TW_"),
                "{subject}"
            );
        }
    }

    #[test]
    fn no_role_publishes_to_an_inbox() {
        for role in every_role() {
            for subject in of(&role).publish.keys() {
                assert!(!subject.starts_with("_INBOX"), "{role}: {subject}");
            }
        }
    }

    #[test]
    fn only_setup_writes_to_the_bucket_of_revocations() {
        for role in every_role() {
            let permissions = of(&role);
            let subjects = permissions.publish.keys().map(String::as_str);
            let buckets: Vec<_> = subjects.filter(|name| name.starts_with("$KV")).collect();
            let expected: &[&str] = if role == Role::Setup {
                &["$KV.TW_AUTH.revoked.>"]
            } else if role == Role::Edge {
                &["$KV.TW_TICKETS.*"]
            } else {
                &[]
            };
            assert_eq!(buckets, expected, "{role}");
        }
    }

    #[test]
    fn no_role_reads_the_inboxes_of_another() {
        let inboxes = every_role().map(|role| {
            let permissions = of(&role);
            let mut inboxes = permissions.subscribe.into_keys();
            let inbox = inboxes.find(|subject| subject.starts_with("_INBOX"));
            inbox.unwrap()
        });
        assert_eq!(
            inboxes,
            [
                "_INBOX.tw.setup.>",
                "_INBOX.tw.edge.>",
                "_INBOX.tw.recorder.>",
                "_INBOX.tw.worker.>",
                "_INBOX.tw.worker.chat.>",
                "_INBOX.tw.observer.>",
            ]
        );
    }
}
