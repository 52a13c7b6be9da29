use std::fs;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde_json::{Value, json};
use tailwater::process_group::Signal;
use tempfile::TempDir;

use crate::support::broker::Broker;
use crate::support::client::follow;
use crate::support::process::{Process, tailwater};
use crate::support::tls::openssl;
use crate::support::until;

/// Runs every command against a broker: each must be able to connect with `flags`.
async fn every_command_works(flags: &str) {
    let run = async |line: &str| tailwater(&format!("{line} {flags}")).await;
    let setup = run("setup --max-bytes 1048576 --kind declared").await;
    assert_eq!(setup.prints(), "ready: 4 shards\nkind declared\n");
    let start = |line: &str| Process::start(format!("{line} {flags}").split(' '));
    let mut worker = Process::start(format!("worker --kind demo {flags} demo").split(' '));
    let mut edge = start("edge --listen 127.0.0.1:0");
    let addr = edge.says("ready http://").await;
    let submit = r#"submit --kind demo --input {"words":3,"rate":0} --id j --watch"#;
    // The worker registers its kind first.
    until("a job", async || run(submit).await.code == 0).await;
    follow(&addr, "j").await.assert_whole();
    for (line, code) in [("tail j", 0), ("state j", 0), ("jobs", 0), ("cancel j", 2)] {
        let ran = run(line).await;
        assert_eq!(ran.code, code, "{line}: {ran:?}");
    }
    for process in [&mut worker, &mut edge] {
        process.signal(Signal::TERM);
        process.ends_within(Duration::from_secs(15)).await;
    }
    let mut up = start("up --listen 127.0.0.1:0");
    assert!(!up.says("nats ").await.contains("s3cret"));
    up.says("ready ").await;
    up.signal(Signal::INT);
    up.ends_within(Duration::from_secs(10)).await;
}

/// Requires that the broker refuses a command soon, with this error. The error shows no secret.
async fn is_refused(flags: &str, error: &str) {
    let ran = tailwater(&format!("state j --nats-wait 5s {flags}")).await;
    let err = ran.refuses(error);
    assert!(!err.contains("s3cret") && !err.contains("wr0ng"), "{err}");
}

fn with_login(broker: &Broker, login: &str) -> String {
    broker.url().replace("nats://", &format!("nats://{login}@"))
}

const WRONG: &str = "refused the connection: wrong or missing credentials";

#[tokio::test]
async fn every_command_uses_a_user_and_password_from_the_url() {
    let broker = Broker::with_config(r#"authorization { user: "worker", password: "s3cret,@/" }"#);
    let nats = |login: &str| format!("--nats {}", with_login(&broker, login));
    every_command_works(&nats("worker:s3cret%2C%40%2F")).await;
    for login in ["worker:wr0ng", "wr0ng"] {
        is_refused(&nats(login), WRONG).await;
    }
    is_refused(&format!("--nats {}", broker.url()), WRONG).await;
}

#[tokio::test]
async fn a_login_is_read_from_a_file() {
    let dir = TempDir::new().unwrap();
    let file = |name: &str, text: &str| {
        let file = dir.path().join(name);
        fs::write(&file, text).unwrap();
        file.display().to_string()
    };
    let login = file("login", "worker:s3cret,@/\n");
    let broker = Broker::with_config(r#"authorization { user: "worker", password: "s3cret,@/" }"#);
    let url = format!("--nats {}", broker.url());
    every_command_works(&format!("{url} --nats-login {login}")).await;
    is_refused(
        &format!("{url} --nats-login {}", file("wrong", "worker:wr0ng")),
        WRONG,
    )
    .await;
    for (flags, error) in [
        (
            format!("{url} --nats-login {}", file("empty", "")),
            "not `user:password`",
        ),
        (
            format!(
                "--nats {} --nats-login {login}",
                with_login(&broker, "worker:wr0ng")
            ),
            "has a login as well",
        ),
    ] {
        is_refused(&flags, error).await;
    }
    let broker = Broker::with_config(r#"authorization { token: "s3cret" }"#);
    let token = file("token", "s3cret");
    every_command_works(&format!("--nats {} --nats-login {token}", broker.url())).await;
}

#[tokio::test]
async fn every_command_uses_a_token_from_the_url() {
    let broker = Broker::with_config(r#"authorization { token: "s3cret" }"#);
    let nats = |login: &str| format!("--nats {}", with_login(&broker, login));
    every_command_works(&nats("s3cret")).await;
    is_refused(&nats("wr0ng"), "").await;
}

#[tokio::test]
async fn the_seed_of_an_nkey_is_read_from_a_file() {
    let dir = TempDir::new().unwrap();
    let key = nkeys::KeyPair::new_user();
    let seed = dir.path().join("seed");
    let other = dir.path().join("other");
    fs::write(&seed, format!("{}\n", key.seed().unwrap())).unwrap();
    fs::write(&other, nkeys::KeyPair::new_user().seed().unwrap()).unwrap();
    let public = key.public_key();
    let users = format!("authorization {{ users: [{{ nkey: {public} }}] }}");
    let broker = Broker::with_config(&users);
    let nkey = |file: &Path| format!("--nats {} --nats-nkey {}", broker.url(), file.display());
    every_command_works(&nkey(&seed)).await;
    is_refused(&nkey(&other), "").await;
    fs::write(&other, "no seed").unwrap();
    is_refused(&nkey(&other), "not the seed of an nkey").await;
    let missing = "/no/such/file";
    is_refused(&nkey(missing.as_ref()), "cannot use /no/such/file for NATS").await;
}

#[tokio::test]
async fn every_command_uses_a_credentials_file() {
    let dir = TempDir::new().unwrap();
    let operator = nkeys::KeyPair::new_operator();
    let account = nkeys::KeyPair::new_account();
    let user = nkeys::KeyPair::new_user();
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
    let flags = format!("--nats {} --nats-creds {}", broker.url(), creds.display());
    every_command_works(&flags).await;
    fs::write(&creds, "no credentials").unwrap();
    is_refused(&flags, "not a credentials file").await;
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
    let file = |name: &str| dir.path().join(name).display().to_string();
    let new_key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    let openssl = |args: String| openssl(dir.path(), &args);
    for ca in ["ca", "other-ca"] {
        openssl(format!(
            "req -x509 {new_key} -days 2 -subj /CN={ca} -keyout {ca}.key -out {ca}.pem"
        ));
    }
    for name in ["server", "client"] {
        openssl(format!(
            "req {new_key} -subj /CN={name} -addext subjectAltName=IP:127.0.0.1 \
             -keyout {name}.key -out {name}.csr"
        ));
        openssl(format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
             -copy_extensions copy -out {name}.pem"
        ));
    }
    let broker = Broker::with_config(&format!(
        "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true }}",
        file("server.pem"),
        file("server.key"),
        file("ca.pem")
    ));
    let plain = format!("--nats {}", broker.url());
    let tls = plain.replace("nats://", "tls://");
    let ca = format!("--nats-ca {}", file("ca.pem"));
    let other = format!("--nats-ca {}", file("other-ca.pem"));
    let cert = format!("--nats-cert {}", file("client.pem"));
    let identity = format!("{cert} --nats-key {}", file("client.key"));
    every_command_works(&format!("{tls} {ca} {identity}")).await;
    let jobs = format!("jobs {plain} {ca} {identity}");
    tailwater(&jobs).await.prints();
    for flags in [format!("{other} {identity}"), ca, identity] {
        let error = "no TLS connection to NATS at tls://127.0.0.1";
        is_refused(&format!("{tls} {flags}"), error).await;
    }
    let missing = format!("--nats-ca {}", file("missing"));
    is_refused(&format!("{tls} {missing}"), "cannot use").await;
    let ran = tailwater(&format!("jobs {tls} {cert}")).await;
    assert_eq!(ran.code, 64, "a certificate without its key");
}
