//! What one client may do, while its token is valid. Every transport asks here; the decision itself
//! is in `auth`.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt as _};
use tokio::time::{Instant, sleep_until};

use super::error::Problem;
use super::quota::{QuotaReached, SubjectConnection, SubjectUsage};
use super::revoked::RevokedTokens;
use crate::auth::{Grants, NamePattern, Operation, Subject, decide};
use crate::config::EXPIRY_NOTICE;
use crate::runtime::OwnWaker;
use crate::wire::{Code, JobId};

/// The access of one client. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Access(Option<Arc<TokenAccess>>);

/// What a token gives access to.
#[derive(Debug)]
struct TokenAccess {
    subject: Subject,
    /// When the token expires.
    expires_at: Option<Instant>,
    revoked: Arc<RevokedTokens>,
    /// What all clients of the subject use.
    usage: Arc<SubjectUsage>,
}

/// What happens to a connection's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenEvent {
    /// It expires in this many milliseconds.
    Expiring(u64),
    /// It is not valid any more.
    Ended(Code),
}

impl Access {
    /// Access to everything, on an edge that checks no tokens.
    pub(super) const fn unrestricted() -> Self {
        Self(None)
    }

    /// The access of a subject whose token is valid now.
    pub(super) fn of(
        subject: Subject,
        revoked: &Arc<RevokedTokens>,
        usage: Arc<SubjectUsage>,
    ) -> Self {
        let lifetime = subject
            .expires_at_ms
            .map(|at| Duration::from_millis(at.saturating_sub(unix_ms())));
        // A time that the clock cannot express is as good as none.
        let expires_at = lifetime.and_then(|lifetime| Instant::now().checked_add(lifetime));
        Self(Some(Arc::new(TokenAccess {
            subject,
            expires_at,
            revoked: Arc::clone(revoked),
            usage,
        })))
    }

    /// Whether the client may do this now.
    pub(super) fn require(&self, operation: Operation<'_>) -> Result<(), Code> {
        self.check()?;
        match &self.0 {
            None => Ok(()),
            Some(access) => decide(&access.subject, operation),
        }
    }

    /// Whether the token is still valid.
    pub(super) fn check(&self) -> Result<(), Code> {
        let Some(access) = &self.0 else { return Ok(()) };
        if access.expires_at.is_some_and(|at| at <= Instant::now()) {
            Err(Code::TokenExpired)
        } else if access.revoked.cover(&access.subject) {
            Err(Code::TokenRevoked)
        } else {
            Ok(())
        }
    }

    /// The subject; `None` on an edge that checks no tokens.
    pub(super) fn subject(&self) -> Option<&Subject> {
        self.0.as_ref().map(|access| &access.subject)
    }

    /// What the subject uses; `None` on an edge that checks no tokens.
    pub(super) fn usage(&self) -> Option<&Arc<SubjectUsage>> {
        self.0.as_ref().map(|access| &access.usage)
    }

    /// Counts an open stream of the subject, until it is dropped.
    pub(super) fn connect(&self) -> Result<Option<SubjectConnection>, QuotaReached> {
        let Some(access) = &self.0 else {
            return Ok(None);
        };
        let only_job = access.subject.grants.only_job();
        access.usage.connect(only_job).map(Some)
    }

    /// The jobs that the client may watch; `None` for all.
    pub(super) fn watchable(&self) -> Option<Vec<NamePattern>> {
        let grants = &self.subject()?.grants;
        (!grants.admin).then(|| grants.watch.clone())
    }

    /// The same token, for watching this one job.
    pub(super) fn subject_for_job(&self, job: &JobId) -> Option<Subject> {
        let grants = Grants::one_job(job, false);
        self.subject().map(|subject| Subject {
            grants,
            ..subject.clone()
        })
    }

    /// In how many milliseconds the token expires.
    pub(super) fn expires_in_ms(&self) -> Option<u64> {
        let left = self
            .0
            .as_ref()?
            .expires_at?
            .saturating_duration_since(Instant::now());
        Some(u64::try_from(left.as_millis()).unwrap_or(u64::MAX))
    }

    /// Waits until the token is not valid any more; forever on an edge that checks no tokens.
    pub(super) async fn ended(&self) -> Code {
        let mut events = self.events();
        loop {
            match events.next().await {
                Some(TokenEvent::Ended(code)) => return code,
                Some(TokenEvent::Expiring(_)) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// Reports when the token is about to expire, and when it is not valid any more.
    pub(super) fn events(&self) -> TokenEvents {
        let Some(access) = &self.0 else {
            return TokenEvents(None);
        };
        let watch = TokenWatch {
            changes: access.revoked.changes(),
            access: self.clone(),
            expires_at: access.expires_at,
            is_noticed: false,
        };
        let events = stream::unfold(watch, |mut watch| async move {
            let event = watch.next().await;
            Some((event, watch))
        });
        TokenEvents::of(events)
    }
}

/// What happens to the token of one connection. An edge that checks no tokens needs no memory for it.
pub(super) struct TokenEvents(Option<Box<WokenEvents>>);

/// Events that are polled only after they were woken. A connection asks for the events of its token
/// whenever it is served, and to poll those locks what all connections share.
struct WokenEvents {
    events: BoxStream<'static, TokenEvent>,
    waker: Arc<OwnWaker>,
}

impl TokenEvents {
    pub(super) fn of(events: impl Stream<Item = TokenEvent> + Send + 'static) -> Self {
        Self(Some(Box::new(WokenEvents {
            events: events.boxed(),
            waker: OwnWaker::new(),
        })))
    }
}

impl Stream for TokenEvents {
    type Item = TokenEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<TokenEvent>> {
        let Some(woken) = &mut self.0 else {
            return Poll::Pending;
        };
        let WokenEvents { events, waker } = &mut **woken;
        waker.poll(cx, |cx| events.poll_next_unpin(cx))
    }
}

/// Follows the life of one token.
struct TokenWatch {
    access: Access,
    expires_at: Option<Instant>,
    changes: tokio::sync::watch::Receiver<u64>,
    is_noticed: bool,
}

impl TokenWatch {
    async fn next(&mut self) -> TokenEvent {
        loop {
            if let Err(code) = self.access.check() {
                return TokenEvent::Ended(code);
            }
            let notice_at = self
                .expires_at
                .map(|at| at.checked_sub(EXPIRY_NOTICE).unwrap_or_else(Instant::now));
            let due = if self.is_noticed {
                self.expires_at
            } else {
                notice_at
            };
            let until_due = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = until_due => {
                    if !std::mem::replace(&mut self.is_noticed, true) {
                        return TokenEvent::Expiring(self.access.expires_in_ms().unwrap_or(0));
                    }
                }
                Ok(()) = self.changes.changed() => {}
            }
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Access {
    type Rejection = Problem;

    /// What `admission` found. A route that it did not admit has no access.
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let access = parts.extensions.get::<Self>().cloned();
        access.ok_or_else(|| Code::Unauthorized.into())
    }
}

/// The time in milliseconds since the Unix epoch.
pub(super) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Revocation;
    use crate::edge::quota::{SubjectLimits, SubjectUsages};
    use crate::nats::RevocationChange;
    use futures_util::FutureExt as _;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::mpsc;
    use tokio::time::sleep;

    fn token(name: &str, lifetime: Option<Duration>) -> (Access, Arc<RevokedTokens>) {
        let revoked = Arc::new(RevokedTokens::default());
        let subject = Subject {
            name: name.into(),
            expires_at_ms: lifetime.map(|time| unix_ms() + time.as_millis() as u64),
            ..Subject::anyone()
        };
        let usage = SubjectUsages::new(SubjectLimits::default()).of(name);
        (Access::of(subject, &revoked, usage), revoked)
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_reported_30_s_before_it_expires_and_then_ends() {
        let (access, _) = token("a", Some(Duration::from_secs(100)));
        let mut events = access.events();
        let begun = Instant::now();
        let Some(TokenEvent::Expiring(left)) = events.next().await else {
            panic!("no notice");
        };
        assert!((29_000..=30_001).contains(&left), "{left}");
        assert!(begun.elapsed() > Duration::from_secs(69));
        assert_eq!(access.check(), Ok(()));
        assert_eq!(
            events.next().await,
            Some(TokenEvent::Ended(Code::TokenExpired))
        );
        assert!(begun.elapsed() > Duration::from_secs(99));
        assert_eq!(access.require(Operation::List), Err(Code::TokenExpired));
    }

    #[tokio::test]
    async fn events_are_polled_only_when_they_are_woken() {
        let (sender, mut receiver) = mpsc::channel(1);
        let polls = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&polls);
        let mut events = TokenEvents::of(stream::poll_fn(move |cx| {
            counted.fetch_add(1, Ordering::Relaxed);
            receiver.poll_recv(cx)
        }));
        for _ in 0..100 {
            assert_eq!(events.next().now_or_never(), None);
        }
        sender.send(TokenEvent::Expiring(1)).await.unwrap();
        assert_eq!(events.next().await, Some(TokenEvent::Expiring(1)));
        drop(sender);
        assert_eq!(events.next().await, None);
        let polls = polls.load(Ordering::Relaxed);
        assert!(polls < 10, "{polls}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_token_is_reported_at_once() {
        let (access, _) = token("a", Some(Duration::from_secs(3)));
        let mut events = access.events();
        let begun = Instant::now();
        assert!(matches!(events.next().await, Some(TokenEvent::Expiring(_))));
        assert!(begun.elapsed() < Duration::from_secs(1));
        assert_eq!(access.ended().await, Code::TokenExpired);
    }

    #[tokio::test(start_paused = true)]
    async fn a_revocation_ends_a_token_without_an_end() {
        let (access, revoked) = token("a", None);
        let mut events = access.events();
        let begun = Instant::now();
        let revoke = async {
            sleep(Duration::from_secs(5)).await;
            let other = Revocation::Sub("b".into());
            revoked.apply(RevocationChange::Made(other, 1));
            sleep(Duration::from_secs(5)).await;
            let own = Revocation::Sub("a".into());
            revoked.apply(RevocationChange::Made(own, 1));
        };
        let (event, ()) = tokio::join!(events.next(), revoke);
        assert_eq!(event, Some(TokenEvent::Ended(Code::TokenRevoked)));
        assert_eq!(begun.elapsed(), Duration::from_secs(10));
    }
}
