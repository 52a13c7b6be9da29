//! A feed's task: subscribes, keeps the history gapless with a stitcher, asks a silent log, makes sure after a disturbance
//! that the log still is the same, and ends when nobody watches. It knows no client.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, trace, warn};

use super::check::{Checked, check, contradicts};
use super::{Feed, Hub};
use crate::config::{
    AHEAD_MAX, FEED_LINGER, PROBE_FIRST, PROBE_MAX, PROBE_SILENT, PROBE_SPREAD, REREAD_FIRST, REREAD_MAX,
};
use crate::resume::{Action, Input, Stitcher};
use crate::source::{EventSource, Refill, Refilled, Signal, Tail, Unavailable};
use crate::wire::{Seq, Stored};

pub(super) async fn drive<S: EventSource>(hub: Arc<Hub<S>>, feed: Arc<Feed>) {
    debug!(job = %feed.job(), "feed begins");
    let mut driver = Driver::new(Arc::clone(&hub), Arc::clone(&feed));
    loop {
        driver.step().await;
        driver.act();
        if driver.replaced {
            warn!(job = %feed.job(), "the log does not hold what was handed out: its watchers must begin anew");
            hub.replace(&feed);
            break;
        }
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
    /// `None` before the subscription stands. After the job's end it only tells of disturbances: a log that goes back may
    /// go on without that end.
    tail: Option<S::Tail>,
    open_pause: Duration,
    probe_at: Instant,
    probe_pause: Duration,
    /// The look at the log that is under way.
    probe: Option<BoxFuture<'static, Result<Checked, Unavailable>>>,
    /// The event that was handed out last.
    last: Option<Arc<Stored>>,
    /// Whether the log may be another one than before, and no copy puts the probe off. Until it is known to be the same,
    /// nothing is handed out that could be glued to what it does not continue.
    in_doubt: bool,
    /// The pause before a look at a log in doubt is tried again.
    doubt_pause: Duration,
    /// Whether a copy came that was not taken in for doubt.
    skipped: bool,
    /// Whether the log is another one.
    replaced: bool,
    /// The end of the time that the feed outlives its last watcher.
    linger_until: Option<Instant>,
}

/// What woke the feed.
enum Wake {
    Signal(Signal),
    Refilled(Refilled),
    Probe,
    Probed(Result<Checked, Unavailable>),
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
            probe: None,
            last: None,
            in_doubt: false,
            doubt_pause: REREAD_FIRST,
            skipped: false,
            replaced: false,
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
                self.signals();
            }
            Wake::Refilled(refilled) => {
                // It may have been read after a disturbance that was not taken in yet.
                self.signals();
                if !self.in_doubt {
                    self.refilled(refilled);
                }
            }
            Wake::Probe => self.begin_probe(),
            Wake::Probed(probed) => self.probed(probed),
            Wake::Left => self.linger_until = Some(Instant::now() + FEED_LINGER),
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
                if let Some(before) = self.stitcher.hole().filter(|_| nothing_left) {
                    self.stitcher.handle(Input::Gone { before });
                }
            }
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
        let (idle, in_doubt) = (self.probe.is_none(), self.in_doubt);
        let probed = async {
            match &mut self.probe {
                Some(probe) => probe.await,
                None => pending().await,
            }
        };
        let probe = async {
            if self.stitcher.is_ended() && !in_doubt || !idle {
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
            probed = probed => Wake::Probed(probed),
            refilled = self.refill.next(source, job), if !in_doubt => Wake::Refilled(refilled),
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
                match last {
                    // The subscription before this one has ended, and nobody knows what has happened since.
                    Some(_) if self.last.is_some() => self.doubt(Duration::ZERO),
                    Some(last) => self.stitcher.handle(Input::Live(last)),
                    None => {}
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
            Signal::Event(event) => self.live(event),
            Signal::Disturbed => self.doubt(self.spread(PROBE_SPREAD)),
            Signal::Closed => self.tail = None,
        }
    }

    fn live(&mut self, event: Arc<Stored>) {
        trace!(job = %self.feed.job(), seq = event.seq.0, "live");
        let contradicted = match self.feed.find(event.seq) {
            Some(known) => known.cursor() != event.cursor(),
            None => self.last.as_ref().is_some_and(|last| contradicts(last, &event)),
        };
        if contradicted {
            self.doubt(Duration::ZERO);
        }
        if self.in_doubt {
            self.skipped = true;
            // Its watchers wait for it. After a look that failed the pause holds.
            if self.doubt_pause == REREAD_FIRST {
                self.probe_at = Instant::now();
            }
            return;
        }
        self.probe_pause = PROBE_SILENT;
        self.probe_at = Instant::now() + PROBE_SILENT + self.spread(PROBE_SILENT / 4);
        self.stitcher.handle(Input::Live(event));
    }

    /// The log may be another one: it is looked at within `soon`, whatever was seen of it before.
    fn doubt(&mut self, soon: Duration) {
        self.probe = None;
        self.probe_pause = PROBE_SILENT;
        self.probe_at = self.probe_at.min(Instant::now() + soon);
        self.doubt_pause = REREAD_FIRST;
        self.in_doubt = true;
        if self.refill.is_busy() {
            // What it reads may be of another log; it is read again once that is known.
            self.refill = Refill::default();
            self.stitcher.handle(Input::ReplayDone);
            self.skipped = true;
        }
    }

    /// Asks the log whether something was stored that did not arrive, and whether it still is the same.
    fn begin_probe(&mut self) {
        let (hub, job, last) = (Arc::clone(&self.hub), self.feed.job().clone(), self.last.clone());
        self.probe = Some(Box::pin(async move { check(hub.source(), &job, last).await }));
    }

    fn probed(&mut self, probed: Result<Checked, Unavailable>) {
        self.probe = None;
        match probed {
            Ok(Checked::Continues(last)) => {
                self.in_doubt = false;
                if std::mem::take(&mut self.skipped) {
                    self.stitcher.handle(Input::LiveLagged);
                    // The replica that is read may not have it yet.
                    self.probe_pause = PROBE_FIRST;
                }
                if let Some(last) = last {
                    self.stitcher.handle(Input::Live(last));
                }
            }
            Ok(Checked::Replaced) => self.replaced = true,
            Err(error) => {
                debug!(job = %self.feed.job(), %error, "cannot ask the log");
                if self.in_doubt {
                    self.probe_at = Instant::now() + self.doubt_pause;
                    self.doubt_pause = REREAD_MAX.min(self.doubt_pause * 2);
                    return;
                }
            }
        }
        self.probe_at = Instant::now() + self.probe_pause + self.spread(self.probe_pause / 4);
        self.probe_pause = PROBE_MAX.min(self.probe_pause * 2);
    }

    /// Does what the stitcher says.
    fn act(&mut self) {
        let mut changed = false;
        while let Some(action) = self.stitcher.poll() {
            match action {
                Action::Deliver(event) => {
                    self.last = Some(Arc::clone(&event));
                    self.feed.update(|history| history.push(event));
                }
                Action::Missing { to, .. } => self.feed.update(|history| history.restart(to.next())),
                Action::Replay { from } => {
                    let pos = self.feed.last().map(|last| last.pos + 1);
                    self.refill.want(from, pos, None);
                    continue;
                }
                Action::End => {
                    if let Some(tail) = &mut self.tail {
                        tail.unsubscribe();
                    }
                }
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
