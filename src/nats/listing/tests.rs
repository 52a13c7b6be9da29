//! Tests of the listing: random logs that grow and expire while a client pages, compared with a
//! model that has the whole log; and each limit.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::wire::Kind;

/// The whole log.
#[derive(Clone, Debug, Default)]
struct Model {
    shards: Vec<Vec<ShardMessage>>,
    /// The first message in each shard.
    firsts: Vec<StreamSeq>,
    /// Messages that an operator deleted.
    deleted: HashSet<(usize, StreamSeq)>,
    clock: u64,
    /// The last sequence number of each job.
    seqs: HashMap<JobId, u64>,
    /// How many jobs with this number have ended in this shard.
    ended: BTreeMap<(usize, u8), u32>,
}

/// One more event.
#[derive(Clone, Debug)]
struct Write {
    shard: prop::sample::Index,
    job: u8,
    act: u8,
    /// How much later it is stored than the previous one, in milliseconds; often 0.
    later: u64,
}

fn writes(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Write>> {
    let write = (any::<prop::sample::Index>(), 0..5_u8, 0..20_u8, 0..3_u64);
    let write = write.prop_map(|(shard, job, act, later)| Write {
        shard,
        job,
        act,
        later,
    });
    prop::collection::vec(write, count)
}

/// Changes of the log before a page.
#[derive(Clone, Debug)]
struct Meanwhile {
    writes: Vec<Write>,
    /// How many of its oldest messages each shard loses.
    expire: u64,
}

fn meanwhile() -> impl Strategy<Value = Meanwhile> {
    let expire = prop_oneof![3 => Just(0), 1 => 0..6_u64];
    (writes(0..12), expire).prop_map(|(writes, expire)| Meanwhile { writes, expire })
}

fn limits() -> impl Strategy<Value = ListingLimits> {
    (1..7_usize, 1..12_u64, 5..9_u32, 1..12_usize).prop_map(|(rows, window, windows, lookups)| {
        ListingLimits {
            rows,
            window,
            windows,
            lookups,
        }
    })
}

fn status() -> impl Strategy<Value = Option<Status>> {
    prop::option::weighted(0.4, prop::sample::select(&Status::ALL))
}

impl Model {
    fn new(shards: usize) -> Self {
        Self {
            shards: vec![Vec::new(); shards],
            firsts: vec![1; shards],
            ..Self::default()
        }
    }

    fn apply(&mut self, write: &Write) {
        let shard = write.shard.index(self.shards.len());
        self.clock += write.later * 1_000_000;
        let generation = *self.ended.entry((shard, write.job)).or_default();
        let job: JobId = format!("s{shard}-{}-{generation}", write.job)
            .parse()
            .unwrap();
        let seq = self.seqs.get(&job).copied().unwrap_or(0) + 1;
        let kind = ["demo", "exec"][usize::from(write.job % 2)];
        let of = match (write.act, seq) {
            (19, _) => return self.push(shard, job, "junk".into()),
            (_, 1) => "job:queued:v1",
            (0, _) => "job:done:v1",
            (1, _) => "job:failed:v1",
            (2, _) => "job:cancelled:v1",
            (3..6, _) => "job:started:v1",
            _ => "model:chunk:v1",
        };
        let event = json!({"type": of, "job": job, "seq": seq, "attempt": u32::from(seq > 1), "ts": self.clock,
            "kind": kind, "text": "x".repeat(usize::from(write.act) * 9)});
        if write.act < 3 && seq > 1 {
            // No event follows the final event.
            self.ended.insert((shard, write.job), generation + 1);
        }
        self.seqs.insert(job.clone(), seq);
        self.push(shard, job, event.to_string());
    }

    fn push(&mut self, shard: usize, job: JobId, payload: String) {
        let stream_seq = self.shards[shard].len() as StreamSeq + 1;
        self.shards[shard].push(ShardMessage {
            job,
            stream_seq,
            time: self.clock,
            payload: payload.into(),
        });
    }

    fn tops(&self) -> Vec<ShardPosition> {
        let top = |shard: &Vec<ShardMessage>| ShardPosition {
            top: shard.len() as StreamSeq,
            next: shard.len() as StreamSeq,
        };
        self.shards.iter().map(top).collect()
    }

    /// The messages that a shard still has, in ascending order.
    fn kept(&self, shard: usize) -> impl DoubleEndedIterator<Item = &ShardMessage> {
        let is_kept = move |stream_seq| {
            stream_seq >= self.firsts[shard] && !self.deleted.contains(&(shard, stream_seq))
        };
        self.shards[shard]
            .iter()
            .filter(move |entry| is_kept(entry.stream_seq))
    }

    /// The events of a job that can be decoded.
    fn events(&self, shard: usize, job: &JobId) -> impl DoubleEndedIterator<Item = Stored> {
        let of_job = self.kept(shard).filter(move |entry| entry.job == *job);
        of_job.filter_map(|entry| {
            Stored::decode(&entry.job, entry.stream_seq, entry.payload.clone()).ok()
        })
    }

    /// The whole listing as of `tops`: shard, stream sequence and row of each job, newest first.
    fn listing(
        &self,
        tops: &[ShardPosition],
        status: Option<Status>,
    ) -> Vec<(usize, StreamSeq, JobRow)> {
        let mut all = Vec::new();
        for (shard, position) in tops.iter().enumerate() {
            let mut seen = HashSet::new();
            for entry in self
                .kept(shard)
                .rev()
                .filter(|entry| entry.stream_seq <= position.top)
            {
                let last = Stored::decode(&entry.job, entry.stream_seq, entry.payload.clone());
                let Ok(last) = last else { continue };
                if seen.insert(entry.job.clone())
                    && status.is_none_or(|status| status == last.status())
                {
                    all.push((
                        entry.time,
                        shard,
                        entry.stream_seq,
                        JobRow::new(&last, entry.time / 1_000_000),
                    ));
                }
            }
        }
        all.sort_by_key(|(time, shard, stream_seq, _)| {
            (
                std::cmp::Reverse(*time),
                *shard,
                std::cmp::Reverse(*stream_seq),
            )
        });
        all.into_iter()
            .map(|(_, shard, stream_seq, row)| (shard, stream_seq, row))
            .collect()
    }

    /// Answers a read as the broker does: with all messages, or with the first ones up to `bytes`.
    fn answer(&self, window: Window, bytes: usize, listing: &mut Listing) {
        let shard = window.shard as usize;
        assert!(
            window.from >= self.firsts[shard] && window.to >= window.from,
            "{window:?}"
        );
        let mut got = Vec::new();
        let mut size = 0;
        let mut stored = self
            .kept(shard)
            .filter(|entry| entry.stream_seq >= window.from)
            .peekable();
        while got.len() as u64 <= window.to - window.from && size < bytes {
            let Some(entry) = stored.next() else { break };
            size += entry.payload.len();
            got.push(entry.clone());
        }
        let reached = got
            .last()
            .is_some_and(|entry| entry.stream_seq >= window.to);
        if reached || stored.peek().is_none() {
            listing.read(window, &got)
        } else {
            listing.read_partly(window, got.len())
        }
    }

    /// Resolves a candidate, as the leader's answers would.
    fn resolve(
        &self,
        candidate: &Candidate,
        tops: &[ShardPosition],
        kind: Option<&Kind>,
    ) -> Option<JobRow> {
        let shard = candidate.shard as usize;
        let job = &candidate.row.id;
        let later = |event: &Stored| {
            event.stream_seq > candidate.stream_seq && event.stream_seq <= tops[shard].top
        };
        let is_last = !self.events(shard, job).any(|event| later(&event));
        assert!(
            is_last || !candidate.is_last,
            "{job} at {} is not the last event",
            candidate.stream_seq
        );
        let mut row = candidate.row.clone();
        if !candidate.is_complete
            && let Some(first) = self.events(shard, job).next()
        {
            row.apply_first(first.payload());
        }
        (is_last && kind.is_none_or(|kind| row.kind.as_ref() == Some(kind))).then_some(row)
    }
}

/// One page and its cost.
struct TestPage {
    rows: Vec<JobRow>,
    next: Option<Vec<ShardPosition>>,
    /// The most reads of one shard, and all lookups.
    cost: (u32, usize),
}

/// Makes one page. Calls `change` before each answer.
fn make_page(
    model: &mut Model,
    positions: &[ShardPosition],
    ask: (Option<Status>, Option<&Kind>),
    limits: ListingLimits,
    bytes: usize,
    mut change: impl FnMut(&mut Model),
) -> TestPage {
    let mut listing = Listing::new(positions, &model.firsts, ask.0, limits);
    let mut reads = vec![0; positions.len()];
    let mut lookups = 0;
    loop {
        change(model);
        match listing.step() {
            ListingStep::Read(windows) => {
                for window in windows {
                    reads[window.shard as usize] += 1;
                    model.answer(window, bytes, &mut listing);
                }
            }
            ListingStep::Resolve(candidates) => {
                lookups += candidates.len();
                listing.resolve(
                    candidates
                        .iter()
                        .map(|candidate| model.resolve(candidate, positions, ask.1))
                        .collect(),
                );
            }
            ListingStep::Done => break,
        }
    }
    let (rows, next) = listing.finish();
    TestPage {
        rows,
        next,
        cost: (reads.into_iter().max().unwrap_or(0), lookups),
    }
}

/// Makes all pages of a log that does not change.
fn all_pages(
    model: &mut Model,
    tops: &[ShardPosition],
    ask: (Option<Status>, Option<&Kind>),
    limits: ListingLimits,
    bytes: usize,
) -> Vec<TestPage> {
    let mut positions = tops.to_vec();
    let mut pages = Vec::new();
    for _ in 0..10_000 {
        let page = make_page(model, &positions, ask, limits, bytes, |_| ());
        let next = page.next.clone();
        pages.push(page);
        let Some(next) = next else { return pages };
        positions = next;
    }
    panic!("the pages do not end");
}

fn rows(pages: &[TestPage]) -> Vec<JobRow> {
    pages.iter().flat_map(|page| &page.rows).cloned().collect()
}

/// A row without the fields that may have expired meanwhile.
fn lasting(row: &JobRow) -> JobRow {
    JobRow {
        kind: None,
        created_at: None,
        ..row.clone()
    }
}

proptest! {
    #[test]
    fn the_pages_list_each_job_once_newest_first_while_the_log_grows(
        shards in 1..5_usize,
        before in writes(0..160),
        deleted in prop::collection::vec((any::<prop::sample::Index>(), 1..60_u64), 0..12),
        limits in limits(),
        status in status(),
        bytes in 1..2000_usize,
        meanwhile in prop::collection::vec(meanwhile(), 1..12),
    ) {
        let mut model = Model::new(shards);
        before.iter().for_each(|write| model.apply(write));
        model.deleted = deleted.iter().map(|(shard, stream_seq)| (shard.index(shards), *stream_seq)).collect();
        let tops = model.tops();
        model.deleted.retain(|&(shard, stream_seq)| stream_seq <= tops[shard].top);
        let expected = model.listing(&tops, status);
        let mut positions = tops.clone();
        let mut rows = Vec::new();
        let mut number = 0;
        loop {
            let now = &meanwhile[number % meanwhile.len()];
            for (first, shard) in model.firsts.iter_mut().zip(&model.shards) {
                *first = (*first + now.expire).min(shard.len() as StreamSeq + 1);
            }
            let mut coming = now.writes.iter();
            let page = make_page(&mut model, &positions, (status, None), limits, bytes, |model| {
                coming.next().into_iter().for_each(|write| model.apply(write));
            });
            prop_assert!(page.rows.len() <= limits.rows);
            prop_assert!(page.cost.0 <= limits.windows && page.cost.1 <= limits.lookups, "{:?}", page.cost);
            rows.extend(page.rows.iter().map(lasting));
            let Some(next) = page.next else { break };
            // Each page advances, so paging ends.
            let remaining = |positions: &[ShardPosition]| positions.iter().map(|position| position.next).sum::<u64>();
            prop_assert!(remaining(&next) < remaining(&positions), "{:?} after {:?}", next, positions);
            for (next, top) in next.iter().zip(&tops) {
                prop_assert!(next.top == top.top || *next == ShardPosition::default());
            }
            positions = next;
            number += 1;
        }
        // Only events that expired before the page reached them may be absent.
        let mut rows = rows.into_iter().peekable();
        for (shard, stream_seq, row) in expected {
            if rows.next_if_eq(&row).is_none() {
                prop_assert!(stream_seq < model.firsts[shard], "{:?} at {} is not listed at its position", row, stream_seq);
            }
        }
        prop_assert_eq!(rows.collect::<Vec<_>>(), vec![], "listed twice, or out of order");
    }

    #[test]
    fn a_filter_by_kind_omits_only_other_kinds(
        before in writes(0..160),
        limits in limits(),
        status in status(),
    ) {
        let mut model = Model::new(2);
        before.iter().for_each(|write| model.apply(write));
        let tops = model.tops();
        let kind = "exec".parse().unwrap();
        let all = model.listing(&tops, status).into_iter();
        let of_kind = |row: &JobRow| row.id.as_str().split('-').nth(1).unwrap().parse::<u8>().unwrap() % 2 == 1;
        let expected: Vec<_> = all.map(|(.., row)| row).filter(of_kind).collect();
        let rows = rows(&all_pages(&mut model, &tops, (status, Some(&kind)), limits, usize::MAX));
        prop_assert!(rows.iter().all(|row| row.kind.as_ref() == Some(&kind) && row.created_at.is_some()));
        prop_assert_eq!(rows.iter().map(lasting).collect::<Vec<_>>(), expected);
    }
}

const WIDE: ListingLimits = ListingLimits {
    rows: 20,
    window: 256,
    windows: 16,
    lookups: 256,
};

/// Appends an event of a job.
fn event(model: &mut Model, shard: usize, job: &str, of: &str) {
    let id: JobId = job.parse().unwrap();
    let seq = *model
        .seqs
        .entry(id.clone())
        .and_modify(|seq| *seq += 1)
        .or_insert(1);
    model.clock += 1_000_000;
    let event = json!({"type": of, "job": job, "seq": seq, "attempt": 1, "ts": 1});
    model.push(shard, id, event.to_string());
}

fn ids(rows: &[JobRow]) -> Vec<&str> {
    rows.iter().map(|row| row.id.as_str()).collect()
}

#[test]
fn a_page_that_holds_exactly_all_jobs_has_no_next_page() {
    let mut model = Model::new(2);
    for (shard, job) in [(0, "a"), (1, "b"), (0, "c"), (0, "a"), (1, "d")] {
        event(&mut model, shard, job, "model:chunk:v1");
    }
    let tops = model.tops();
    for (rows, expected, more) in [
        (3, &["d", "a", "c"][..], true),
        (4, &["d", "a", "c", "b"], false),
        (5, &["d", "a", "c", "b"], false),
    ] {
        let limits = ListingLimits { rows, ..WIDE };
        let page = make_page(&mut model, &tops, (None, None), limits, usize::MAX, |_| ());
        assert_eq!(
            (ids(&page.rows), page.next.is_some()),
            (expected.to_vec(), more)
        );
        // One more row than fits is looked up, if there is one.
        assert_eq!(page.cost.1, 4.min(rows + 1));
    }
    let page = make_page(
        &mut Model::new(3),
        &[ShardPosition::default(); 3],
        (None, None),
        WIDE,
        usize::MAX,
        |_| (),
    );
    assert_eq!((page.rows, page.next, page.cost), (vec![], None, (0, 0)));
}

#[test]
fn a_job_that_gets_events_while_a_client_pages_keeps_its_position() {
    let mut model = Model::new(1);
    for job in ["a", "b", "c", "c"] {
        event(&mut model, 0, job, "model:chunk:v1");
    }
    let one = ListingLimits { rows: 1, ..WIDE };
    let mut positions = Some(model.tops());
    let mut rows = Vec::new();
    for _ in 0..3 {
        let page = make_page(
            &mut model,
            &positions.unwrap(),
            (None, None),
            one,
            usize::MAX,
            |_| (),
        );
        rows.extend(page.rows);
        positions = page.next;
        for job in ["c", "a", "b", "new"] {
            event(&mut model, 0, job, "model:chunk:v1");
        }
    }
    assert_eq!(positions, None);
    assert_eq!(ids(&rows), ["c", "b", "a"]);
    assert_eq!(
        rows.iter().map(|row| row.seq.0).collect::<Vec<_>>(),
        [2, 1, 1]
    );
}

#[test]
fn a_job_far_below_many_events_is_found_at_a_limited_cost_per_page() {
    let mut model = Model::new(2);
    event(&mut model, 0, "old", "job:done:v1");
    for n in 0..20_000 {
        event(&mut model, n % 2, ["x", "y"][n % 2], "model:chunk:v1");
    }
    let tops = model.tops();
    let pages = all_pages(&mut model, &tops, (None, None), WIDE, usize::MAX);
    assert!(
        pages
            .iter()
            .all(|page| page.cost.0 <= 16 && page.cost.1 <= 3)
    );
    assert_eq!(ids(&rows(&pages)), ["y", "x", "old"]);
    // 10,001 events per shard; 16 reads per page, of 256 events except for the first three.
    assert_eq!(pages.len(), 3);
}

#[test]
fn a_window_with_too_many_bytes_is_halved_until_it_fits() {
    let mut model = Model::new(1);
    for n in 0..600 {
        event(&mut model, 0, &format!("j{n}"), "model:chunk:v1");
    }
    // Room for one event at a time.
    let tops = model.tops();
    let rows = rows(&all_pages(&mut model, &tops, (None, None), WIDE, 1));
    let expected: Vec<_> = (0..600).rev().map(|n| format!("j{n}")).collect();
    assert_eq!(ids(&rows), expected);
}

/// Which shards were read, in order, for a page on which every job is a row.
fn reads(model: &Model) -> Vec<u32> {
    let mut listing = Listing::new(&model.tops(), &model.firsts, None, WIDE);
    let mut read = Vec::new();
    loop {
        match listing.step() {
            ListingStep::Read(windows) => {
                for window in windows {
                    read.push(window.shard);
                    model.answer(window, usize::MAX, &mut listing);
                }
            }
            ListingStep::Resolve(candidates) => listing.resolve(
                candidates
                    .into_iter()
                    .map(|candidate| Some(candidate.row))
                    .collect(),
            ),
            ListingStep::Done => break,
        }
    }
    assert_eq!(listing.finish().0.len(), WIDE.rows);
    read
}

#[test]
fn a_shard_is_read_further_only_if_it_may_hold_a_newer_job() {
    let mut model = Model::new(2);
    for _ in 0..100 {
        event(&mut model, 0, "long", "model:chunk:v1");
    }
    for n in 0..30 {
        event(&mut model, 1, &format!("j{n}"), "model:chunk:v1");
    }
    // The first read of shard 0 has only one job, the newest of all. It reaches events that are
    // older than all rows of the page, so the shard is not read further.
    event(&mut model, 0, "long", "model:chunk:v1");
    assert_eq!(reads(&model), [0, 1]);
    // The shard is read further if it may have newer jobs.
    for _ in 0..100 {
        event(&mut model, 0, "long", "model:chunk:v1");
    }
    assert_eq!(reads(&model), [0, 1, 0]);
}
