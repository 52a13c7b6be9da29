//! A feed's task: subscribes, keeps the history gapless with a stitcher, asks a silent log, and ends when nobody
//! watches. It knows no client.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, trace};

use super::{Feed, Hub};
use crate::config::{
    AHEAD_MAX, FEED_LINGER, PROBE_FIRST, PROBE_MAX, PROBE_SILENT, PROBE_SPREAD, REREAD_FIRST, REREAD_MAX,
};
use crate::resume::{Action, Input, Stitcher};
use crate::source::{EventSource, Refill, Refilled, Replica, Signal, Tail};
use crate::wire::{Seq, Stored};

pub(super) async fn drive<S: EventSource>(hub: Arc<Hub<S>>, feed: Arc<Feed>) {
    debug!(job = %feed.job(), "feed begins");
    let mut driver = Driver::new(Arc::clone(&hub), Arc::clone(&feed));
    loop {
        driver.step().await;
        driver.act();
        if driver.linger_over() && hub.forget(&feed) {
            break;
        }
    }
    debug!(job = %feed.job(), "feed ends");
}

struct Driver<S: EventSource> {
    hub: Arc<Hub<S>>,
    feed: Arc<Feed>,
    stitcher: Stitcher<Arc<Stored>>,
    refill: Refill<S>,
    /// `None` before the subscription stands, and after the job's end.
    tail: Option<S::Tail>,
    open_pause: Duration,
    probe_at: Instant,
    probe_pause: Duration,
    /// Whether copies may have been lost that a copy under way says nothing of: none puts the probe off.
    disturbed: bool,
    /// The end of the time that the feed outlives its last watcher.
    linger_until: Option<Instant>,
}

/// What woke the feed.
enum Wake {
    Signal(Signal),
    Refilled(Refilled),
    Probe,
    Left,
    LingerOver,
}

impl<S: EventSource> Driver<S> {
    fn new(hub: Arc<Hub<S>>, feed: Arc<Feed>) -> Self {
        Self {
            hub,
            feed,
            stitcher: Stitcher::live(Seq::FIRST, AHEAD_MAX),
            refill: Refill::default(),
            tail: None,
            open_pause: REREAD_FIRST,
            probe_at: Instant::now(),
            probe_pause: PROBE_SILENT,
            disturbed: false,
            linger_until: None,
        }
    }

    /// Waits for one thing to happen and takes it in.
    async fn step(&mut self) {
        if self.tail.is_none() && !self.stitcher.is_ended() {
            self.open().await;
        } else {
            self.take_in().await;
        }
        if self.feed.watchers() > 0 {
            self.linger_until = None;
        }
    }

    async fn take_in(&mut self) {
        match self.wake().await {
            Wake::Signal(signal) => {
                self.signal(signal);
                // What is there already is taken in before the watchers are woken once for all of it.
                while let Some(signal) = self.tail.as_mut().and_then(Tail::ready) {
                    self.signal(signal);
                }
            }
            Wake::Refilled(Refilled::Items(items)) => {
                for item in items {
                    self.stitcher.handle(Input::Replayed(item));
                }
            }
            Wake::Refilled(Refilled::Done { nothing_left }) => {
                self.stitcher.handle(Input::ReplayDone);
                if let Some(before) = self.stitcher.hole().filter(|_| nothing_left) {
                    self.stitcher.handle(Input::Gone { before });
                }
            }
            Wake::Probe => self.probe().await,
            Wake::Left => self.linger_until = Some(Instant::now() + FEED_LINGER),
            Wake::LingerOver => {}
        }
    }

    async fn wake(&mut self) -> Wake {
        let (source, job) = (self.hub.source(), self.feed.job());
        let live = async {
            match &mut self.tail {
                Some(tail) => tail.next().await,
                None => pending().await,
            }
        };
        let probe = async {
            if self.stitcher.is_ended() {
                pending::<()>().await;
            }
            sleep_until(self.probe_at).await;
        };
        let linger = async {
            match self.linger_until {
                Some(until) => sleep_until(until).await,
                None => pending().await,
            }
        };
        tokio::select! {
            signal = live => Wake::Signal(signal),
            refilled = self.refill.next(source, job) => Wake::Refilled(refilled),
            () = probe => Wake::Probe,
            () = self.feed.left() => Wake::Left,
            () = linger => Wake::LingerOver,
        }
    }

    /// Subscribes, and begins the history with the last event. After a closed subscription, goes on where it was.
    async fn open(&mut self) {
        match self.hub.source().follow(self.feed.job()).await {
            Ok((tail, last)) => {
                self.tail = Some(tail);
                self.open_pause = REREAD_FIRST;
                self.probe_at = Instant::now() + PROBE_FIRST + self.spread(PROBE_FIRST / 4);
                if !self.feed.is_open() {
                    let next = last.as_ref().map_or(Seq::FIRST, |last| last.seq);
                    self.stitcher = Stitcher::live(next, AHEAD_MAX);
                    self.feed.open(next);
                    self.feed.wake();
                }
                if let Some(last) = last {
                    self.stitcher.handle(Input::Live(last));
                }
            }
            Err(error) => {
                debug!(job = %self.feed.job(), %error, "cannot follow yet");
                sleep(self.open_pause).await;
                self.open_pause = REREAD_MAX.min(self.open_pause * 2);
                if self.feed.watchers() == 0 && self.linger_until.is_none() {
                    self.linger_until = Some(Instant::now() + FEED_LINGER);
                }
            }
        }
    }

    fn signal(&mut self, signal: Signal) {
        match signal {
            Signal::Event(event) => {
                trace!(job = %self.feed.job(), seq = event.seq.0, "live");
                self.probe_pause = PROBE_SILENT;
                if !self.disturbed {
                    self.probe_at = Instant::now() + PROBE_SILENT + self.spread(PROBE_SILENT / 4);
                }
                self.stitcher.handle(Input::Live(event));
            }
            Signal::Disturbed => {
                self.probe_pause = PROBE_SILENT;
                self.probe_at = self.probe_at.min(Instant::now() + self.spread(PROBE_SPREAD));
                self.disturbed = true;
            }
            Signal::Closed => self.tail = None,
        }
    }

    /// Asks the log whether something was stored that did not arrive.
    async fn probe(&mut self) {
        self.disturbed = false;
        match self.hub.source().last(self.feed.job(), Replica::Any).await {
            Ok(Some(last)) => self.stitcher.handle(Input::Live(last)),
            Ok(None) => {}
            Err(error) => debug!(job = %self.feed.job(), %error, "cannot ask the log"),
        }
        self.probe_at = Instant::now() + self.probe_pause + self.spread(self.probe_pause / 4);
        self.probe_pause = PROBE_MAX.min(self.probe_pause * 2);
    }

    /// Does what the stitcher says.
    fn act(&mut self) {
        let mut changed = false;
        while let Some(action) = self.stitcher.poll() {
            match action {
                Action::Deliver(event) => self.feed.update(|history| history.push(event)),
                Action::Missing { to, .. } => self.feed.update(|history| history.restart(to.next())),
                Action::Replay { from } => {
                    let pos = self.feed.last().map(|last| last.pos + 1);
                    self.refill.want(from, pos, None);
                    continue;
                }
                Action::End => self.tail = None,
            }
            changed = true;
        }
        if changed {
            self.feed.wake();
        }
    }

    fn linger_over(&self) -> bool {
        self.linger_until.is_some_and(|until| Instant::now() >= until)
    }

    /// A share of `over` that differs from job to job, so that a thousand feeds do not ask in one moment.
    fn spread(&self, over: Duration) -> Duration {
        over * (self.feed.job().tag() >> 16) / 0x1_0000
    }
}
