//! The older part of a feed's history: events that few clients still need, packed without gaps
//! between them, because a decoded event and its frames take several times its payload. It reads
//! nothing.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use crate::config::UNPACKED_BLOCKS;
use crate::wire::{EventHead, JobId, Seq, Stored};

/// Packed events of one job, in order and without a gap.
#[derive(Debug)]
pub(super) struct Archive {
    job: JobId,
    blocks: VecDeque<ArchiveBlock>,
    bytes: usize,
    /// Blocks that were read lately, by their first event: clients that return together read the
    /// same ones, and share their frames.
    unpacked: VecDeque<(Seq, Vec<Arc<Stored>>)>,
    /// The approximate size of these in memory.
    unpacked_bytes: usize,
}

/// A few events, of which only the payloads remain as they were. Clones share them.
#[derive(Clone, Debug)]
struct ArchiveBlock {
    first: Seq,
    heads: Arc<[EventHead]>,
    /// One after another.
    payloads: Bytes,
}

impl ArchiveBlock {
    fn of(first: Seq, events: &[Arc<Stored>]) -> Self {
        let size = events.iter().map(|event| event.payload().len()).sum();
        let mut payloads = Vec::with_capacity(size);
        let mut heads = Vec::with_capacity(events.len());
        for event in events {
            payloads.extend_from_slice(event.payload());
            heads.push(event.head());
        }
        Self {
            first,
            heads: heads.into(),
            payloads: payloads.into(),
        }
    }

    fn next_seq(&self) -> Seq {
        Seq(self.first.0 + self.heads.len() as u64)
    }

    fn size(&self) -> usize {
        self.payloads.len() + size_of_val(&*self.heads) + size_of::<Self>()
    }

    fn unpack(&self, job: &JobId) -> Vec<Arc<Stored>> {
        let mut payloads = self.payloads.clone();
        let numbered = self.heads.iter().zip(self.first.0..);
        numbered
            .map(|(head, seq)| {
                let payload = payloads.split_to(head.payload_len());
                Arc::new(Stored::of_head(job, Seq(seq), *head, payload))
            })
            .collect()
    }
}

fn size_of_all(events: &[Arc<Stored>]) -> usize {
    events.iter().map(|event| event.size()).sum()
}

impl Archive {
    pub(super) fn new(job: JobId) -> Self {
        Self {
            job,
            blocks: VecDeque::new(),
            bytes: 0,
            unpacked: VecDeque::new(),
            unpacked_bytes: 0,
        }
    }

    /// A copy that shares the packed events.
    pub(super) fn copy(&self) -> Self {
        Self {
            blocks: self.blocks.clone(),
            bytes: self.bytes,
            ..Self::new(self.job.clone())
        }
    }

    /// The first event that it has.
    pub(super) fn first_seq(&self) -> Option<Seq> {
        self.blocks.front().map(|block| block.first)
    }

    /// The number after the last event that it has.
    pub(super) fn next_seq(&self) -> Option<Seq> {
        self.blocks.back().map(ArchiveBlock::next_seq)
    }

    /// The approximate size of the packed events in memory.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The approximate size in memory of the events that are unpacked.
    pub(super) fn unpacked_bytes(&self) -> usize {
        self.unpacked_bytes
    }

    /// Packs the next events, as one block. Forgets the others if these do not follow directly.
    pub(super) fn push(&mut self, events: &[Arc<Stored>]) {
        let Some(first) = events.first().map(|event| event.seq) else {
            return;
        };
        if self.next_seq().is_some_and(|next| next != first) {
            self.clear();
        }
        self.pack();
        let block = ArchiveBlock::of(first, events);
        self.bytes += block.size();
        self.blocks.push_back(block);
    }

    /// Evicts the oldest blocks until at most `bytes_max` remain.
    pub(super) fn shorten(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max
            && let Some(block) = self.blocks.pop_front()
        {
            self.bytes -= block.size();
        }
        if self.blocks.is_empty() {
            self.clear();
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::new(self.job.clone());
    }

    /// Forgets what was unpacked.
    pub(super) fn pack(&mut self) {
        self.unpacked = VecDeque::new();
        self.unpacked_bytes = 0;
    }

    /// Appends about `bytes_max` of events from `from` on, at least one, if it has that event.
    pub(super) fn read(&mut self, from: Seq, bytes_max: usize, out: &mut Vec<Arc<Stored>>) {
        let mut room = bytes_max.max(1);
        let mut index = self
            .blocks
            .partition_point(|block| block.next_seq() <= from);
        while room > 0 && index < self.blocks.len() {
            for event in self.unpacked_block(index) {
                if event.seq >= from && room > 0 {
                    room = room.saturating_sub(event.size());
                    out.push(Arc::clone(event));
                }
            }
            index += 1;
        }
    }

    /// The event with this sequence number, if the archive has it.
    pub(super) fn find(&mut self, seq: Seq) -> Option<Arc<Stored>> {
        if seq < self.first_seq()? {
            return None;
        }
        let mut found = Vec::new();
        self.read(seq, 0, &mut found);
        found.pop()
    }

    fn unpacked_block(&mut self, index: usize) -> &[Arc<Stored>] {
        let block = &self.blocks[index];
        let first = block.first;
        let known = self.unpacked.iter().position(|(known, _)| *known == first);
        let at = known.unwrap_or_else(|| {
            let events = block.unpack(&self.job);
            self.unpacked_bytes += size_of_all(&events);
            self.unpacked.push_back((first, events));
            if self.unpacked.len() > UNPACKED_BLOCKS
                && let Some((_, oldest)) = self.unpacked.pop_front()
            {
                self.unpacked_bytes -= size_of_all(&oldest);
            }
            self.unpacked.len() - 1
        });
        &self.unpacked[at].1
    }
}
