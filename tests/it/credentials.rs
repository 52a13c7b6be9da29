use std::fs;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde_json::{Value, json};
use tailwater::process_group::Signal;
use tempfile::TempDir;

use crate::support::broker::Broker;
use crate::support::client::follow;
use crate::support::process::{Process, run};
use crate::support::within;

/// Runs every command against a broker: each must be able to connect with `flags`.
async fn every_command_works(flags: &[&str]) {
    let tailwater = async |args: &[&str]| run([args, flags].concat()).await;
    let (code, out, err) =
        tailwater(&["setup", "--max-bytes", "1048576", "--kind", "declared"]).await;
    assert_eq!(
        (code, out.as_str()),
        (0, "ready: 4 shards\nkind declared\n"),
        "{err}"
    );
    let mut worker = Process::start([&["worker", "--kind", "demo"], flags, &["demo"]].concat());
    let mut edge = Process::start([&["edge", "--listen", "127.0.0.1:0"], flags].concat());
    let addr = edge.says("ready http://").await;
    let submit = [
        "submit",
        "--kind",
        "demo",
        "--input",
        r#"{"words":3,"rate":0}"#,
        "--id",
        "j",
        "--watch",
    ];
    within("a job", async {
        // The worker registers its kind first.
        while tailwater(&submit).await.0 != 0 {}
    })
    .await;
    follow(&addr, "j").await.assert_whole();
    for (args, expected) in [
        (&["tail", "j"][..], 0),
        (&["state", "j"], 0),
        (&["jobs"], 0),
        (&["cancel", "j"], 2),
    ] {
        let (code, _, err) = tailwater(args).await;
        assert_eq!(code, expected, "{args:?}: {err}");
    }
    for process in [&mut worker, &mut edge] {
        process.signal(Signal::TERM);
        process
            .ends_within(std::time::Duration::from_secs(15))
            .await;
    }
    let up = [&["up", "--listen", "127.0.0.1:0"], flags].concat();
    let mut up = Process::start(up);
    assert!(!up.says("nats ").await.contains("s3cret"));
    up.says("ready ").await;
    up.signal(Signal::INT);
    up.ends_within(std::time::Duration::from_secs(10)).await;
}

/// The error line of a command that the broker refuses. It appears soon and shows no secret.
async fn is_refused(flags: &[&str]) -> String {
    let (code, out, err) = run([&["state", "j", "--nats-wait", "5s"], flags].concat()).await;
    assert_eq!(
        (code, out.as_str(), err.lines().count()),
        (2, "", 1),
        "{err}"
    );
    assert!(!err.contains("s3cret") && !err.contains("wr0ng"), "{err}");
    err
}

fn with_login(broker: &Broker, login: &str) -> String {
    broker.url().replace("nats://", &format!("nats://{login}@"))
}

#[tokio::test]
async fn every_command_uses_a_user_and_password_from_the_url() {
    let broker = Broker::with_config(r#"authorization { user: "worker", password: "s3cret,@/" }"#);
    every_command_works(&["--nats", &with_login(&broker, "worker:s3cret%2C%40%2F")]).await;
    for login in ["worker:wr0ng", "wr0ng"] {
        let err = is_refused(&["--nats", &with_login(&broker, login)]).await;
        assert!(
            err.contains("refused the connection: wrong or missing credentials"),
            "{err}"
        );
    }
    let err = is_refused(&["--nats", &broker.url()]).await;
    assert!(err.contains("wrong or missing credentials"), "{err}");
}

#[tokio::test]
async fn every_command_uses_a_token_from_the_url() {
    let broker = Broker::with_config(r#"authorization { token: "s3cret" }"#);
    every_command_works(&["--nats", &with_login(&broker, "s3cret")]).await;
    is_refused(&["--nats", &with_login(&broker, "wr0ng")]).await;
}

#[tokio::test]
async fn the_seed_of_an_nkey_is_read_from_a_file() {
    let dir = TempDir::new().unwrap();
    let key = nkeys::KeyPair::new_user();
    let (seed, other) = (dir.path().join("seed"), dir.path().join("other"));
    fs::write(&seed, format!("{}\n", key.seed().unwrap())).unwrap();
    fs::write(&other, nkeys::KeyPair::new_user().seed().unwrap()).unwrap();
    let broker = Broker::with_config(&format!(
        "authorization {{ users: [{{ nkey: {} }}] }}",
        key.public_key()
    ));
    let url = broker.url();
    every_command_works(&["--nats", &url, "--nats-nkey", path(&seed)]).await;
    is_refused(&["--nats", &url, "--nats-nkey", path(&other)]).await;
    fs::write(&other, "no seed").unwrap();
    let err = is_refused(&["--nats", &url, "--nats-nkey", path(&other)]).await;
    assert!(err.contains("not the seed of an nkey"), "{err}");
    let err = is_refused(&["--nats", &url, "--nats-nkey", "/no/such/file"]).await;
    assert!(err.contains("cannot use /no/such/file for NATS"), "{err}");
}

#[tokio::test]
async fn every_command_uses_a_credentials_file() {
    let dir = TempDir::new().unwrap();
    let (operator, account, user) = (
        nkeys::KeyPair::new_operator(),
        nkeys::KeyPair::new_account(),
        nkeys::KeyPair::new_user(),
    );
    let nats = |kind: &str| json!({"type": kind, "version": 2});
    let operator_jwt = jwt(&operator, &operator, &nats("operator"));
    let limits = json!({"type": "account", "version": 2, "limits": {"subs": -1, "data": -1, "payload": -1,
        "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1, "mem_storage": -1,
        "disk_storage": -1, "streams": -1, "consumer": -1}});
    let account_jwt = jwt(&operator, &account, &limits);
    let system = nkeys::KeyPair::new_account();
    let system_jwt = jwt(&operator, &system, &nats("account"));
    let may = json!({"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1});
    let creds = dir.path().join("user.creds");
    let text = format!(
        "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
        jwt(&account, &user, &may),
        user.seed().unwrap()
    );
    fs::write(&creds, text).unwrap();
    let broker = Broker::with_config(&format!(
        "operator: {operator_jwt}\nsystem_account: {system}\nresolver: MEMORY\n\
         resolver_preload: {{ {account}: {account_jwt}, {system}: {system_jwt} }}",
        account = account.public_key(),
        system = system.public_key(),
    ));
    let url = broker.url();
    every_command_works(&["--nats", &url, "--nats-creds", path(&creds)]).await;
    fs::write(&creds, "no credentials").unwrap();
    let err = is_refused(&["--nats", &url, "--nats-creds", path(&creds)]).await;
    assert!(err.contains("not a credentials file"), "{err}");
}

/// A NATS JWT for `subject`, signed by `issuer`.
fn jwt(issuer: &nkeys::KeyPair, subject: &nkeys::KeyPair, nats: &Value) -> String {
    let part = |value: Value| BASE64.encode(value.to_string());
    let head = part(json!({"typ": "JWT", "alg": "ed25519-nkey"}));
    let claims = json!({"jti": "x", "iat": 1_700_000_000, "iss": issuer.public_key(), "name": "test",
        "sub": subject.public_key(), "nats": nats});
    let signed = format!("{head}.{}", part(claims));
    let signature = BASE64.encode(issuer.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}

#[tokio::test]
async fn tls_checks_certificates_both_ways() {
    let dir = TempDir::new().unwrap();
    let file = |name: &str| dir.path().join(name);
    for ca in ["ca", "other-ca"] {
        openssl(
            dir.path(),
            &format!(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
            -subj /CN={ca} -keyout {ca}.key -out {ca}.pem"
            ),
        );
    }
    for name in ["server", "client"] {
        openssl(
            dir.path(),
            &format!(
                "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} \
            -addext subjectAltName=IP:127.0.0.1 -keyout {name}.key -out {name}.csr"
            ),
        );
        openssl(
            dir.path(),
            &format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
            -copy_extensions copy -out {name}.pem"
            ),
        );
    }
    let broker = Broker::with_config(&format!(
        "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true }}",
        file("server.pem"),
        file("server.key"),
        file("ca.pem")
    ));
    let (plain, tls) = (broker.url(), broker.url().replace("nats://", "tls://"));
    let (ca, other) = (file("ca.pem"), file("other-ca.pem"));
    let (cert, key) = (file("client.pem"), file("client.key"));
    let identity = ["--nats-cert", path(&cert), "--nats-key", path(&key)];
    every_command_works(&[&["--nats", &tls, "--nats-ca", path(&ca)], &identity[..]].concat()).await;
    let (code, _, err) = run([
        &["jobs", "--nats", &plain, "--nats-ca", path(&ca)],
        &identity[..],
    ]
    .concat())
    .await;
    assert_eq!(code, 0, "{err}");
    for flags in [
        [&["--nats", &tls, "--nats-ca", path(&other)], &identity[..]].concat(),
        vec!["--nats", &tls, "--nats-ca", path(&ca)],
        [&["--nats", &tls], &identity[..]].concat(),
    ] {
        let err = is_refused(&flags).await;
        assert!(
            err.contains("no TLS connection to NATS at tls://127.0.0.1"),
            "{err}"
        );
    }
    let err = is_refused(&[
        "--nats",
        &tls,
        "--nats-ca",
        path(&file("server.csr.missing")),
    ])
    .await;
    assert!(err.contains("cannot use"), "{err}");
    let (code, ..) = run(["jobs", "--nats", &tls, "--nats-cert", path(&cert)]).await;
    assert_eq!(code, 64, "a certificate without its key");
}

fn openssl(dir: &Path, args: &str) {
    let out = Command::new("openssl")
        .args(args.split_whitespace())
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(
        out.status.success(),
        "{args}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
