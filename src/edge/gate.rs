//! Turns tokens into [`Access`], for all threads of an edge: the keys, the issuer's key set and its
//! rotation, and tickets. What a token allows is decided in `auth`.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::{Mutex, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::access::{Access, unix_ms};
use super::error::Problem;
use super::quota::{SubjectLimits, SubjectUsages, TicketWindow};
use super::revoked::RevokedTokens;
use crate::auth::{BadKeySet, Grants, KeySet, NewToken, Subject, TokenError, TokenKeys};
use crate::backend::fetch_key_set;
use crate::config::{
    KEYS_REFETCH_PAUSE, KEYS_REFRESH, KEYS_WAIT, REVOCATIONS_PAUSE, REVOCATIONS_WAIT, TICKETS_MAX,
};
use crate::nats::{AuthBucket, Nats, NatsError, TicketBucket};
use crate::runtime::Tasks;
use crate::source::Unavailable;
use crate::wire::limits::WATCH_TOKEN_TTL_MS;
use crate::wire::{BearerToken, Code, JobId, WatchTokenTerms};

/// Whether an edge checks tokens, and how. Clones share the keys.
#[derive(Clone, Debug, Default)]
pub struct Gate(Option<Arc<TokenGate>>);

/// Where the keys of an issuer are.
#[derive(Clone, Debug)]
pub enum KeySource {
    /// A file with a JWK set.
    File(PathBuf),
    /// The address of a JWK set.
    Url(String),
}

/// Why a key set could not be read.
#[derive(Debug, thiserror::Error)]
enum KeySourceError {
    #[error("{0}")]
    Unread(String),
    #[error("not read in time")]
    Late,
    #[error(transparent)]
    Bad(#[from] BadKeySet),
}

#[derive(Debug)]
struct TokenGate {
    keys: TokenKeys,
    source: Option<KeySource>,
    key_set: RwLock<Arc<KeySet>>,
    /// When the key set was last read for a token with an unknown key. Held while it is read.
    refetched_at: Arc<Mutex<Option<Instant>>>,
    /// Those of the thread that keeps the key set and the revocations up to date.
    tasks: OnceLock<Tasks>,
    revoked: Arc<RevokedTokens>,
    ticket_bucket: OnceLock<TicketBucket>,
    tickets: Mutex<TicketWindow>,
    usages: SubjectUsages,
}

impl Gate {
    /// Every client may do everything.
    pub const fn open() -> Self {
        Self(None)
    }

    /// Clients need a token that these keys verify. Each subject has these limits.
    pub fn checked(keys: TokenKeys, source: Option<KeySource>, limits: SubjectLimits) -> Self {
        Self(Some(Arc::new(TokenGate {
            keys,
            source,
            key_set: RwLock::default(),
            refetched_at: Arc::default(),
            tasks: OnceLock::new(),
            revoked: Arc::default(),
            ticket_bucket: OnceLock::new(),
            tickets: Mutex::default(),
            usages: SubjectUsages::new(limits),
        })))
    }

    /// Whether clients need a token.
    pub fn is_checked(&self) -> bool {
        self.0.is_some()
    }

    /// Waits until all revocations are known. One thread of the edge keeps them and the key set up
    /// to date.
    pub(super) async fn start(&self, nats: &Nats, tasks: &Tasks) -> Result<(), NatsError> {
        let Some(gate) = &self.0 else { return Ok(()) };
        let revocations = AuthBucket::open(nats).await?;
        let tickets = TicketBucket::open(nats).await?;
        if gate.tasks.set(tasks.clone()).is_ok() {
            // The other threads only checked that the buckets exist.
            let _ = gate.ticket_bucket.set(tickets);
            if let Err(error) = gate.read_keys().await {
                warn!(%error, "cannot read the key set yet");
            }
            tasks.spawn_until_stop(Arc::clone(gate).refresh_keys());
            tasks.spawn_until_stop(Arc::clone(gate).watch_revocations(revocations));
        }
        let known = timeout(REVOCATIONS_WAIT, gate.revoked.until_complete()).await;
        known.map_err(|_| Unavailable("the revoked tokens were not read in time".into()).into())
    }

    /// The access of a token.
    pub(super) async fn authenticate(&self, token: &str) -> Result<Access, Problem> {
        let Some(gate) = &self.0 else {
            return Ok(Access::unrestricted());
        };
        let mut verified = gate.keys.verify(token, &gate.key_set(), unix_ms());
        if verified == Err(TokenError::UnknownKey) && gate.refetch_keys().await {
            verified = gate.keys.verify(token, &gate.key_set(), unix_ms());
        }
        let subject = verified.map_err(|error| match error {
            TokenError::Expired => Code::TokenExpired.into(),
            TokenError::UnknownKey if gate.source.is_some() && gate.key_set().is_empty() => {
                let message = "The edge cannot read the keys that verify this token.";
                Problem::new(Code::Unavailable, message)
            }
            TokenError::UnknownKey | TokenError::Invalid(_) => {
                Problem::new(Code::Unauthorized, format!("Invalid token: {error}."))
            }
        })?;
        gate.admit(subject)
    }

    /// A token for watching a job, if this edge signs tokens.
    pub(super) fn watch_token(
        &self,
        subject: &Subject,
        job: &JobId,
        terms: WatchTokenTerms,
    ) -> Option<BearerToken> {
        let keys = &self.0.as_ref()?.keys;
        let issued_at = unix_ms() / 1000;
        let lifetime = terms.ttl_ms.unwrap_or(WATCH_TOKEN_TTL_MS).div_ceil(1000);
        Some(keys.secret.as_ref()?.sign(&NewToken {
            sub: subject.name.to_string(),
            iat: issued_at,
            exp: issued_at + lifetime,
            jti: nuid::next().to_string(),
            pjti: subject.token_id.clone(),
            iss: keys.expected.issuer.clone(),
            aud: keys.expected.audience.clone(),
            tailwater: Grants::one_job(job, terms.cancel),
        }))
    }

    /// Issues a ticket with the access of this subject.
    pub(super) async fn issue_ticket(&self, subject: &Subject) -> Result<BearerToken, Problem> {
        let gate = self.0.as_ref().ok_or(Code::NotFound)?;
        let bucket = gate.ticket_bucket.get().ok_or(Code::Unavailable)?;
        gate.usages.of(&subject.name).count_ticket()?;
        gate.tickets.lock().await.count(TICKETS_MAX)?;
        let mut random = [0; 32];
        let filled = SystemRandom::new().fill(&mut random);
        filled.map_err(|_| Code::Internal)?;
        let ticket = BASE64.encode(random);
        let value = serde_json::to_vec(subject)
            .unwrap_or_else(|_| unreachable!("texts and numbers are always JSON"));
        bucket.store(&ticket, value).await?;
        Ok(BearerToken::new(ticket))
    }

    /// The access of a ticket that was not redeemed before.
    pub(super) async fn redeem_ticket(&self, ticket: &str) -> Result<Access, Problem> {
        let invalid = || {
            let message = "The ticket is not valid, has expired, or was redeemed.";
            Problem::new(Code::Unauthorized, message)
        };
        let gate = self.0.as_ref().ok_or_else(invalid)?;
        let bucket = gate.ticket_bucket.get().ok_or(Code::Unavailable)?;
        let is_ticket = BASE64.decode(ticket).is_ok_and(|bytes| bytes.len() == 32);
        if !is_ticket {
            return Err(invalid());
        }
        let value = bucket.redeem(ticket).await?.ok_or_else(invalid)?;
        let subject = serde_json::from_slice(&value).map_err(|_| invalid())?;
        gate.admit(subject)
    }
}

impl TokenGate {
    fn key_set(&self) -> Arc<KeySet> {
        let set = self.key_set.read();
        Arc::clone(&set.unwrap_or_else(PoisonError::into_inner))
    }

    fn admit(&self, subject: Subject) -> Result<Access, Problem> {
        let usage = self.usages.of(&subject.name);
        let access = Access::of(subject, &self.revoked, usage);
        access.check()?;
        Ok(access)
    }

    /// Reads the key set. The old one stays in use when that fails.
    async fn read_keys(&self) -> Result<(), KeySourceError> {
        let unread = |error: String| KeySourceError::Unread(error);
        let read = async {
            match &self.source {
                None => Ok(None),
                Some(KeySource::File(path)) => std::fs::read(path)
                    .map(Some)
                    .map_err(|error| unread(format!("{}: {error}", path.display()))),
                Some(KeySource::Url(url)) => fetch_key_set(url).await.map(Some).map_err(unread),
            }
        };
        let read = timeout(KEYS_WAIT, read).await;
        let Some(json) = read.map_err(|_| KeySourceError::Late)?? else {
            return Ok(());
        };
        let set = Arc::new(KeySet::from_json(&json)?);
        *self.key_set.write().unwrap_or_else(PoisonError::into_inner) = set;
        Ok(())
    }

    /// Reads the key set for a token with an unknown key, unless that happened recently. Returns
    /// whether there may be other keys now.
    async fn refetch_keys(self: &Arc<Self>) -> bool {
        let Some(tasks) = self.tasks.get().filter(|_| self.source.is_some()) else {
            return false;
        };
        let before = self.key_set();
        let mut refetched_at = Arc::clone(&self.refetched_at).lock_owned().await;
        if !Arc::ptr_eq(&before, &self.key_set()) {
            return true;
        }
        if refetched_at.is_some_and(|at| at.elapsed() < KEYS_REFETCH_PAUSE) {
            return false;
        }
        *refetched_at = Some(Instant::now());
        let gate = Arc::clone(self);
        let (done, reading) = oneshot::channel();
        // As a task: other clients need the keys as well, even if this one disconnects.
        tasks.spawn_until_stop(async move {
            let read = gate.read_keys().await;
            match &read {
                Ok(()) => info!("read the key set again for a token with an unknown key"),
                Err(error) => warn!(%error, "cannot read the key set"),
            }
            drop(refetched_at);
            // Fails if the client has disconnected.
            let _ = done.send(read.is_ok());
        });
        reading.await.unwrap_or(false)
    }

    async fn refresh_keys(self: Arc<Self>) {
        while self.source.is_some() {
            sleep(KEYS_REFRESH).await;
            if let Err(error) = self.read_keys().await {
                warn!(%error, "cannot read the key set; the old one stays in use");
            }
        }
    }

    async fn watch_revocations(self: Arc<Self>, bucket: AuthBucket) {
        loop {
            let watch = bucket.watch_revocations(|change| self.revoked.apply(change));
            match watch.await {
                Ok(()) => debug!("the watch of revocations ended"),
                Err(error) => warn!(%error, "cannot watch revocations; trying again"),
            }
            sleep(REVOCATIONS_PAUSE).await;
        }
    }
}
