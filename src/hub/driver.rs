//! What moves a feed: subscribes, keeps the history gapless with a stitcher, asks a silent log, makes sure after a
//! disturbance that the log still is the same, and says when nobody watches. Whatever it asks is answered beside the live
//! copies, which wait for nothing else. It knows no client.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, trace};

use super::check::{Checked, check, contradicts};
use super::feed::Feed;
use super::feeds::Feeds;
use crate::backoff::Backoff;
use crate::config::{
    AHEAD_MAX, FEED_LINGER, PROBE_FIRST, PROBE_MAX, PROBE_SILENT, PROBE_SPREAD, REREAD_FIRST,
    REREAD_MAX,
};
use crate::resume::{Action, Input, Stitcher};
use crate::share::FairSlot;
use crate::source::{Copy, EventSource, LiveChain, Refill, Refilled, Signal, Tail, Unavailable};
use crate::wire::{Seq, Stored, StreamSeq, Unreadable};

/// A feed, and all that moves it.
pub(super) struct Driver<S: EventSource> {
    feeds: Arc<Feeds<S>>,
    feed: Arc<Feed>,
    stitcher: Stitcher<Arc<Stored>>,
    refill: Refill<S>,
    /// `None` before the subscription stands. After the job's end it only tells of disturbances: a log that goes back may
    /// go on without that end.
    tail: Option<S::Tail>,
    /// The log's last event, when that was known before the feed began.
    pub(super) known: Option<Arc<Stored>>,
    /// Held while the job has no event.
    unborn: Option<FairSlot>,
    /// Whether nobody was served yet, so that all watchers can be refused.
    pub(super) may_refuse: bool,
    /// Which live copies are events of the job.
    chain: LiveChain,
    /// The last copy that had come when the reading under way was asked for.
    chain_asked: Option<StreamSeq>,
    /// The subscription that is being made.
    opening: Option<BoxFuture<'static, Opened<S>>>,
    open_at: Instant,
    open_backoff: Backoff,
    /// The question to the log that is under way.
    probing: Option<BoxFuture<'static, Probed>>,
    probe_at: Instant,
    probe_backoff: Backoff,
    /// The event that was handed out last.
    last: Option<Arc<Stored>>,
    /// Whether the log may be another one than before, and no copy puts the probe off. Until it is known to be the same,
    /// nothing is handed out that could be glued to what it does not continue.
    in_doubt: bool,
    /// The pause before a look at a log in doubt is tried again.
    doubt_backoff: Backoff,
    /// Whether a copy came that was not taken in for doubt.
    skipped: bool,
    /// Whether the log is another one.
    pub(super) replaced: bool,
    /// The end of the time that the feed outlives its last watcher.
    pub(super) linger_until: Option<Instant>,
}

/// A subscription, and the event that was last when it stood.
type Opened<S> = Result<(<S as EventSource>::Tail, Option<Arc<Stored>>), Unavailable>;
/// Whether the log goes on from what was handed out, and its last event.
type Probed = Result<Checked, Unavailable>;

/// What woke the feed.
enum Wake<S: EventSource> {
    Signal(Signal),
    Refilled(Refilled),
    Open,
    Opened(Opened<S>),
    Probe,
    Probed(Probed),
    Disconnected,
    LingerOver,
}

impl<S: EventSource> Driver<S> {
    pub(super) fn new(feeds: Arc<Feeds<S>>, feed: Arc<Feed>) -> Self {
        Self {
            feeds,
            feed,
            stitcher: Stitcher::live(Seq::FIRST, AHEAD_MAX),
            refill: Refill::default(),
            tail: None,
            known: None,
            unborn: None,
            may_refuse: true,
            chain: LiveChain::new(AHEAD_MAX),
            chain_asked: None,
            opening: None,
            open_at: Instant::now(),
            open_backoff: Backoff::new(REREAD_FIRST, REREAD_MAX),
            probing: None,
            probe_at: Instant::now(),
            probe_backoff: Backoff::new(PROBE_SILENT, PROBE_MAX),
            last: None,
            in_doubt: false,
            doubt_backoff: Backoff::new(REREAD_FIRST, REREAD_MAX),
            skipped: false,
            replaced: false,
            linger_until: None,
        }
    }

    /// Waits for one thing to happen and takes it in.
    pub(super) async fn step(&mut self) {
        let wake = self.wake().await;
        self.take_in(wake);
        if self.feed.watchers() > 0 {
            self.linger_until = None;
        }
    }

    fn take_in(&mut self, wake: Wake<S>) {
        match wake {
            Wake::Signal(signal) => {
                self.signal(signal);
                self.signals();
            }
            Wake::Refilled(refilled) => {
                // It may have been read after a disturbance that was not taken in yet.
                self.signals();
                if !self.in_doubt {
                    self.refilled(refilled);
                } else if matches!(refilled, Refilled::Done { .. }) {
                    // It was over by the time of the disturbance, which therefore found nothing to abandon.
                    self.abandon_reading();
                }
            }
            Wake::Open => self.open(),
            Wake::Opened(Ok((tail, last))) => self.opened(tail, last),
            Wake::Opened(Err(error)) => {
                debug!(job = %self.feed.job(), %error, "cannot follow yet");
                self.opening = None;
                self.open_at = Instant::now() + self.open_backoff.next_pause();
            }
            Wake::Probe => self.probe(),
            Wake::Probed(last) => self.probed(last),
            Wake::Disconnected => self.linger_until = Some(Instant::now() + FEED_LINGER),
            Wake::LingerOver => {}
        }
    }

    /// Takes in what is there already, before the watchers are woken once for all of it.
    fn signals(&mut self) {
        while let Some(signal) = self.tail.as_mut().and_then(Tail::ready) {
            self.signal(signal);
        }
    }

    fn refilled(&mut self, refilled: Refilled) {
        match refilled {
            Refilled::Items(items) => {
                for item in items {
                    self.stitcher.handle(Input::Replayed(item));
                }
            }
            Refilled::Done { nothing_left } => {
                self.stitcher.handle(Input::ReplayDone);
                if let Some(before) = self.stitcher.gap_end().filter(|_| nothing_left) {
                    self.stitcher.handle(Input::Gap { before });
                }
                self.chain_was_read(nothing_left);
            }
        }
    }

    async fn wake(&mut self) -> Wake<S> {
        let (source, job) = (&self.feeds.source, self.feed.job());
        let (ended, open) = (self.stitcher.is_ended(), self.tail.is_some());
        let in_doubt = self.in_doubt;
        let live = async {
            match (&mut self.tail, &mut self.opening) {
                (Some(tail), _) => Wake::Signal(tail.next().await),
                (None, _) if ended => pending().await,
                (None, Some(opening)) => Wake::Opened(opening.await),
                (None, None) => {
                    sleep_until(self.open_at).await;
                    Wake::Open
                }
            }
        };
        let probe = async {
            match &mut self.probing {
                _ if ended && !in_doubt || !open => pending().await,
                Some(probing) => Wake::Probed(probing.await),
                None => {
                    sleep_until(self.probe_at).await;
                    Wake::Probe
                }
            }
        };
        let linger = async {
            match self.linger_until {
                Some(until) => sleep_until(until).await,
                None => pending().await,
            }
        };
        tokio::select! {
            wake = live => wake,
            refilled = self.refill.next(source, job), if !in_doubt => Wake::Refilled(refilled),
            wake = probe => wake,
            () = self.feed.disconnected() => Wake::Disconnected,
            () = linger => Wake::LingerOver,
        }
    }

    /// Subscribes. After a closed subscription the feed goes on where it was.
    fn open(&mut self) {
        let (feeds, feed) = (Arc::clone(&self.feeds), Arc::clone(&self.feed));
        self.opening = Some(Box::pin(
            async move { feeds.source.follow(feed.job()).await },
        ));
    }

    /// Begins the history with the last event.
    fn opened(&mut self, tail: S::Tail, last: Option<Arc<Stored>>) {
        // The replica that was asked now may be behind the one that was asked before.
        let last = last
            .into_iter()
            .chain(self.known.take())
            .max_by_key(|last| last.seq);
        self.opening = None;
        self.tail = Some(tail);
        self.open_backoff.reset();
        self.probe_at = Instant::now() + PROBE_FIRST + self.spread(PROBE_FIRST / 4);
        if !self.feed.is_open() {
            if last.is_none() && self.may_refuse {
                self.unborn = self.feeds.unborn(&self.feed);
                if self.unborn.is_none() {
                    self.feed.refuse();
                    return;
                }
            }
            let next = last.as_ref().map_or(Seq::FIRST, |last| last.seq);
            self.stitcher = Stitcher::live(next, AHEAD_MAX);
            self.feed.open(next);
            self.feed.wake();
        }
        match last {
            // The subscription before this one has ended, and nobody knows what has happened since.
            Some(_) if self.last.is_some() => self.doubt(Duration::ZERO),
            Some(last) => self.stitcher.handle(Input::Live(last)),
            None => {}
        }
    }

    fn signal(&mut self, signal: Signal) {
        match signal {
            Signal::Event(event) => self.live(event),
            Signal::Undecodable { .. } if self.in_doubt => self.skipped = true,
            Signal::Undecodable { stream_seq, prev } => self.chain.undecodable(stream_seq, prev),
            Signal::Disturbed => self.doubt(self.spread(PROBE_SPREAD)),
            Signal::Closed => self.tail = None,
        }
    }

    fn live(&mut self, event: Arc<Stored>) {
        trace!(job = %self.feed.job(), seq = event.seq.0, "live");
        // One that the broker stored right after what is known is of the same log, whatever its number.
        if event.prev != Some(self.chain.read()) && self.is_contradicted(&event) {
            self.doubt(Duration::ZERO);
        }
        if self.in_doubt {
            self.skipped = true;
            // Its watchers wait for it. After a look that failed the pause holds.
            if self.doubt_backoff.is_reset() {
                self.probe_at = Instant::now();
            }
            return;
        }
        self.probe_backoff = Backoff::new(PROBE_SILENT, PROBE_MAX);
        self.probe_at = Instant::now() + PROBE_SILENT + self.spread(PROBE_SILENT / 4);
        self.copied(event);
    }

    fn is_contradicted(&self, event: &Stored) -> bool {
        match self.feed.find(event.seq) {
            Some(known) => known.cursor() != event.cursor(),
            None => self
                .last
                .as_ref()
                .is_some_and(|last| contradicts(last, event)),
        }
    }

    /// The log may be another one: it is looked at within `soon`, whatever was seen of it before.
    fn doubt(&mut self, soon: Duration) {
        self.probing = None;
        self.probe_backoff = Backoff::new(PROBE_SILENT, PROBE_MAX);
        self.probe_at = self.probe_at.min(Instant::now() + soon);
        self.doubt_backoff.reset();
        self.in_doubt = true;
        if self.refill.is_busy() {
            self.abandon_reading();
        }
    }

    /// What was read may be of another log; it is read again once that is known.
    fn abandon_reading(&mut self) {
        self.refill = Refill::default();
        self.chain_asked = None;
        self.stitcher.handle(Input::ReplayDone);
        self.skipped = true;
    }

    /// Takes in a live copy.
    fn copied(&mut self, event: Arc<Stored>) {
        match self.chain.live(event) {
            Copy::Next(event) => self.stitcher.handle(Input::Live(event)),
            Copy::Undecodable(event) => self.skipped(&event),
            // A reading that is under way may bring what stands before it, and is followed by another if it does not.
            Copy::Waits if self.stitcher.is_live() => self.stitcher.handle(Input::LiveLagged),
            Copy::Waits | Copy::Old => {}
        }
    }

    fn skipped(&self, event: &Stored) {
        self.feeds
            .source
            .undecodable(self.feed.job(), event.stream_seq, &Unreadable::OutOfOrder);
    }

    /// A reading of the log is over: what waited for it and is not in the log was never an event.
    fn chain_was_read(&mut self, nothing_left: bool) {
        if let Some(asked) = self.chain_asked.take().filter(|_| nothing_left) {
            self.chain
                .abandon(asked)
                .iter()
                .for_each(|event| self.skipped(event));
        }
        if self.chain.behind().is_some() && self.stitcher.is_live() {
            self.stitcher.handle(Input::LiveLagged);
        }
    }

    /// Asks the log whether something was stored that did not arrive, and whether it still is the same.
    fn probe(&mut self) {
        let (feeds, feed, last) = (
            Arc::clone(&self.feeds),
            Arc::clone(&self.feed),
            self.last.clone(),
        );
        self.probing = Some(Box::pin(async move {
            check(&feeds.source, feed.job(), last).await
        }));
    }

    fn probed(&mut self, probed: Probed) {
        self.probing = None;
        match probed {
            Ok(Checked::Continues(last)) => {
                self.in_doubt = false;
                if std::mem::take(&mut self.skipped) {
                    self.stitcher.handle(Input::LiveLagged);
                    // The replica that is read may not have it yet.
                    self.probe_backoff = Backoff::new(PROBE_FIRST, PROBE_MAX);
                }
                if let Some(last) = last {
                    self.stitcher.handle(Input::Live(last));
                }
            }
            Ok(Checked::Replaced) => self.replaced = true,
            Err(error) => {
                debug!(job = %self.feed.job(), %error, "cannot ask the log");
                if self.in_doubt {
                    self.probe_at = Instant::now() + self.doubt_backoff.next_pause();
                    return;
                }
            }
        }
        let pause = self.probe_backoff.next_pause();
        self.probe_at = Instant::now() + pause + self.spread(pause / 4);
    }

    /// Does what the stitcher says.
    pub(super) fn act(&mut self) {
        let mut changed = false;
        loop {
            while let Some(action) = self.stitcher.poll() {
                changed |= self.do_one(action);
            }
            match self.chain.next_waiting() {
                Some(Copy::Next(event)) => self.stitcher.handle(Input::Live(event)),
                Some(Copy::Undecodable(event)) => self.skipped(&event),
                Some(Copy::Waits | Copy::Old) | None => break,
            }
        }
        if changed {
            self.feed.wake();
        }
    }

    /// Says whether watchers see a change.
    fn do_one(&mut self, action: Action<Arc<Stored>>) -> bool {
        match action {
            Action::Deliver(event) => {
                self.unborn = None;
                self.chain.delivered(&event);
                self.last = Some(Arc::clone(&event));
                self.feed.update(|history| history.push(event));
            }
            Action::Gap { to, .. } => {
                self.chain.restart(to.successor());
                self.feed.update(|history| history.restart(to.successor()));
            }
            Action::Replay { from } => {
                let stream_seq = self.feed.last().map(|last| last.stream_seq + 1);
                self.chain_asked = self.chain.behind();
                self.refill.want(from, stream_seq, None);
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
