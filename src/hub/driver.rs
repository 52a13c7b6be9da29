//! Drives a feed: subscribes, keeps the history without gaps, probes a silent log, checks after a
//! disturbance that the log was not rebuilt, and ends a feed without watchers. Live copies never
//! wait for its requests.

mod copies;
mod opening;
mod probe;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;
use tracing::debug;

use super::check::Checked;
use super::feed::Feed;
use super::feeds::Hub;
use crate::backoff::Backoff;
use crate::config::{AHEAD_MAX, FEED_LINGER, PROBE_MAX, PROBE_SILENT, REREAD_FIRST, REREAD_MAX};
use crate::fair_slots::FairSlot;
use crate::resume::{Action, Input, Stitcher};
use crate::runtime::LazyTimer;
use crate::source::{
    EventSource, LiveChain, LiveCopy, Refill, Refilled, Tail, TailSignal, Unavailable,
};
use crate::wire::{EventMeta, Seq, Stored, StreamSeq};

/// A feed and the state of its task.
pub(super) struct Driver<S: EventSource> {
    hub: Arc<Hub<S>>,
    feed: Arc<Feed>,
    stitcher: Stitcher<Arc<Stored>>,
    refill: Refill<S>,
    /// `None` before the subscription is established. After the job's end it only reports
    /// disturbances: a restored log may lack that end.
    tail: Option<S::Tail>,
    /// The log's last event, if that was known before the feed started.
    pub(super) known: Option<Arc<Stored>>,
    /// Held while the job has no event.
    eventless: Option<FairSlot>,
    /// Whether no watcher was served yet, so that the feed can be refused.
    pub(super) may_refuse: bool,
    /// Which live copies are events of the job.
    chain: LiveChain,
    /// The last unclassified copy when the current replay was requested.
    unclassified_at_request: Option<StreamSeq>,
    /// The subscription that is being established.
    opening: Option<BoxFuture<'static, Opened<S>>>,
    open_at: Instant,
    open_backoff: Backoff,
    /// The running check of the log.
    probing: Option<BoxFuture<'static, Probed>>,
    probe_at: Instant,
    probe_backoff: Backoff,
    /// The last event that was delivered. Not the event itself: it would stay in memory when the
    /// history has no room for it.
    last: Option<EventMeta>,
    /// The pause before a failed check for a rebuilt log is repeated.
    check_backoff: Backoff,
    /// Whether a copy was ignored until the log is checked.
    ignored_copy: bool,
    /// Whether the log was rebuilt.
    pub(super) rebuilt: bool,
    /// When the feed without watchers ends.
    pub(super) linger_until: Option<Instant>,
    /// For all of these times.
    timer: LazyTimer,
}

/// A subscription and the last event.
type Opened<S> = Result<(<S as EventSource>::Tail, Option<Arc<Stored>>), Unavailable>;
type Probed = Result<Checked, Unavailable>;

/// What woke the feed.
enum Wake<S: EventSource> {
    Signal(TailSignal),
    Refilled(Refilled),
    Opened(Opened<S>),
    Probed(Probed),
    FeedDue(FeedDue),
    Disconnected,
}

/// What is due at some time.
#[derive(Clone, Copy)]
enum FeedDue {
    /// To subscribe.
    Open,
    /// To check the log.
    Probe,
    /// To end a feed without watchers.
    LingerOver,
}

impl<S: EventSource> Driver<S> {
    pub(super) fn new(hub: Arc<Hub<S>>, feed: Arc<Feed>) -> Self {
        Self {
            hub,
            feed,
            stitcher: Stitcher::caught_up(Seq::FIRST, AHEAD_MAX),
            refill: Refill::default(),
            tail: None,
            known: None,
            eventless: None,
            may_refuse: true,
            chain: LiveChain::new(AHEAD_MAX),
            unclassified_at_request: None,
            opening: None,
            open_at: Instant::now(),
            open_backoff: Backoff::new(REREAD_FIRST, REREAD_MAX),
            probing: None,
            probe_at: Instant::now(),
            probe_backoff: Backoff::new(PROBE_SILENT, PROBE_MAX),
            last: None,
            check_backoff: Backoff::new(REREAD_FIRST, REREAD_MAX),
            ignored_copy: false,
            rebuilt: false,
            linger_until: None,
            timer: LazyTimer::default(),
        }
    }

    /// Waits for one wake-up and applies it.
    pub(super) async fn step(&mut self) {
        let mut wake = Some(self.wake().await);
        poll_fn(|cx| {
            if let Some(wake) = wake.take() {
                self.apply(wake, cx);
            }
            Poll::Ready(())
        })
        .await;
        if self.linger_until.is_some() && self.feed.watchers() > 0 {
            self.linger_until = None;
        }
    }

    fn apply(&mut self, wake: Wake<S>, cx: &mut Context<'_>) {
        match wake {
            Wake::Signal(signal) => {
                self.signal(signal);
                self.signals(cx);
            }
            Wake::Refilled(refilled) => {
                // The log may have been read after a disturbance that was not applied yet.
                self.signals(cx);
                if !self.feed.may_be_rebuilt() {
                    self.refilled(refilled);
                } else if matches!(refilled, Refilled::Done { .. }) {
                    // The disturbance found no running replay to abandon.
                    self.abandon_replay();
                }
            }
            Wake::FeedDue(FeedDue::Open) => self.open(),
            Wake::FeedDue(FeedDue::Probe) => self.probe(),
            Wake::FeedDue(FeedDue::LingerOver) => {}
            Wake::Opened(Ok((tail, last))) => self.opened(tail, last),
            Wake::Opened(Err(error)) => {
                debug!(job = %self.feed.job(), %error, "cannot subscribe yet");
                self.opening = None;
                self.open_at = Instant::now() + self.open_backoff.next_pause();
            }
            Wake::Probed(last) => self.probed(last),
            Wake::Disconnected => self.linger_until = Some(Instant::now() + FEED_LINGER),
        }
    }

    async fn wake(&mut self) -> Wake<S> {
        let source = self.hub.source();
        let feed = &self.feed;
        let ended = self.stitcher.is_ended();
        let may_be_rebuilt = feed.may_be_rebuilt();
        let is_refilling = self.refill.is_busy() && !may_be_rebuilt;
        let is_probed = self.tail.is_some() && (may_be_rebuilt || !ended);
        let is_opening = self.tail.is_none() && !ended;
        let open_at =
            (is_opening && self.opening.is_none()).then_some((self.open_at, FeedDue::Open));
        let is_probing = self.probing.is_some();
        let probe_at = (is_probed && !is_probing).then_some((self.probe_at, FeedDue::Probe));
        let linger_until = self.linger_until.map(|until| (until, FeedDue::LingerOver));
        let first = [open_at, probe_at, linger_until].into_iter().flatten();
        let first = first.min_by_key(|(at, _)| *at);
        let live = poll_fn(|cx| match (&mut self.tail, &mut self.opening) {
            (Some(tail), _) => tail.poll_next(cx).map(Wake::Signal),
            (None, Some(opening)) if is_opening => opening.as_mut().poll(cx).map(Wake::Opened),
            (None, _) => Poll::Pending,
        });
        let probing = poll_fn(|cx| match &mut self.probing {
            Some(probing) if is_probed => probing.as_mut().poll(cx).map(Wake::Probed),
            _ => Poll::Pending,
        });
        let due = poll_fn(|cx| match first {
            Some((at, due)) => self.timer.poll(at, cx).map(|()| Wake::FeedDue(due)),
            None => Poll::Pending,
        });
        tokio::select! {
            // Live copies first: they are why this task usually wakes. The others are polled once
            // no copy is left, and then all of them.
            biased;
            wake = live => wake,
            refilled = self.refill.next(source, feed.job()), if is_refilling => Wake::Refilled(refilled),
            wake = probing => wake,
            wake = due => wake,
            () = poll_fn(|cx| feed.poll_disconnected(cx)) => Wake::Disconnected,
        }
    }

    /// Performs the stitcher's actions.
    pub(super) fn act(&mut self) {
        let mut changed = false;
        loop {
            while let Some(action) = self.stitcher.poll() {
                changed |= self.perform(action);
            }
            match self.chain.next_waiting() {
                Some(LiveCopy::Next(event)) => self.stitcher.handle(Input::Live(event)),
                Some(LiveCopy::Undecodable(event)) => self.note_undecodable(&event),
                Some(LiveCopy::Waits | LiveCopy::Old) | None => break,
            }
        }
        if changed {
            self.feed.wake();
        }
    }

    /// Performs one action. Returns whether watchers see a change.
    fn perform(&mut self, action: Action<Arc<Stored>>) -> bool {
        match action {
            Action::Deliver(event) => {
                self.eventless = None;
                self.chain.delivered(&event);
                self.last = Some(event.meta());
                self.feed.update(|history| history.push(event));
            }
            Action::Gap { to, .. } => {
                self.chain.restart(to.successor());
                self.feed.update(|history| history.restart(to.successor()));
            }
            Action::Replay { from } => {
                let last = self.feed.last();
                let stream_seq = last.map(|last| last.cursor.stream_seq + 1);
                self.unclassified_at_request = self.chain.unclassified();
                self.refill.request(from, stream_seq, None);
                return false;
            }
            Action::End => {
                if let Some(tail) = &mut self.tail {
                    tail.unsubscribe();
                }
                self.probing = None;
            }
        }
        true
    }

    pub(super) fn linger_over(&self) -> bool {
        self.linger_until
            .is_some_and(|until| Instant::now() >= until)
    }

    fn spread(&self, over: Duration) -> Duration {
        self.feed.job().spread(over)
    }
}
