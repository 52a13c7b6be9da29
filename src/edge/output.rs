//! What is being written to a client: frames of events, which all watchers share, and others. It
//! holds nothing once that is written.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

use super::watches::Released;
use crate::config::{LARGE_EVENT, TURN_BYTES};
use crate::session::Position;
use crate::short_list::ShortList;
use crate::wire::Stored;

/// How many frames one write takes: about as many of short texts as a turn has room for.
const SLICES: usize = 128;

/// The frame of an event in the client's framing.
pub(super) type EventFraming = fn(&Stored) -> &[u8];

/// Frames that are not written yet, in order.
#[derive(Debug)]
pub(super) struct OutputQueue {
    framing: EventFraming,
    /// Usually one, because a client that follows live is written one event at a time.
    frames: ShortList<OutFrame>,
    /// How many bytes of the first one are written.
    begun: usize,
    /// How many events of the last delivery are written.
    delivered: usize,
    /// The position after them, if there are any.
    position: Position,
}

#[derive(Debug)]
enum OutFrame {
    Event(Arc<Stored>),
    Own(Vec<u8>),
}

impl OutputQueue {
    pub(super) fn new(framing: EventFraming) -> Self {
        Self {
            framing,
            frames: ShortList::default(),
            begun: 0,
            delivered: 0,
            position: Position::START,
        }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Adds bytes that are written as they are. A write of none would look like a broken connection.
    pub(super) fn put(&mut self, frame: Vec<u8>) {
        if let Some(OutFrame::Own(last)) = self.frames.back_mut() {
            last.extend_from_slice(&frame);
        } else if !frame.is_empty() {
            self.frames.push_back(OutFrame::Own(frame));
        }
    }

    /// Adds the events of the next delivery. Everything before must be written, or not be events.
    pub(super) fn put_events(&mut self, events: Vec<Arc<Stored>>) {
        self.delivered = 0;
        self.frames.extend(events.into_iter().map(OutFrame::Event));
    }

    /// Whether [`Self::release`] would drop something.
    pub(super) fn has_more_events(&self) -> bool {
        let kept = usize::from(self.keeps_first());
        self.frames.iter().skip(kept).any(OutFrame::is_event)
    }

    /// Whether the first frame must be completed, or is too small to be read again.
    fn keeps_first(&self) -> bool {
        let first = self.frames.front();
        self.begun > 0 || first.is_some_and(|frame| !frame.is_large())
    }

    /// Drops all events but the first, and that too if it is large and not begun.
    pub(super) fn release(&mut self) -> Released {
        let first = if self.keeps_first() {
            self.frames.pop_front()
        } else {
            None
        };
        self.frames.retain(|frame| !frame.is_event());
        let released = match &first {
            Some(frame @ OutFrame::Event(event)) => Released {
                events: self.delivered + 1,
                position: Some(Position::after(event)),
                holds_large: frame.is_large(),
            },
            Some(OutFrame::Own(_)) | None => Released {
                events: self.delivered,
                position: (self.delivered > 0).then_some(self.position),
                holds_large: false,
            },
        };
        if let Some(first) = first {
            self.frames.push_front(first);
        }
        released
    }

    /// Writes once, at most [`TURN_BYTES`]: a socket would accept much more of a large event. Returns
    /// how many bytes were written.
    pub(super) fn poll_write(
        &mut self,
        io: Pin<&mut impl AsyncWrite>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let written = match (self.frames.front(), self.frames.len()) {
            (Some(frame), 1) => {
                let rest = &frame.bytes(self.framing)[self.begun..];
                ready!(io.poll_write(cx, &rest[..rest.len().min(TURN_BYTES)]))?
            }
            _ => {
                let (slices, count) = self.slices();
                ready!(io.poll_write_vectored(cx, &slices[..count]))?
            }
        };
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.advance(written);
        Poll::Ready(Ok(written))
    }

    /// What one write takes of the first frames, and in how many slices that is.
    fn slices(&self) -> ([IoSlice<'_>; SLICES], usize) {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut count = 0;
        let mut begun = self.begun;
        let mut room = TURN_BYTES;
        for (slice, frame) in slices.iter_mut().zip(self.frames.iter()) {
            let rest = &frame.bytes(self.framing)[begun..];
            let part = &rest[..rest.len().min(room)];
            *slice = IoSlice::new(part);
            count += 1;
            begun = 0;
            room -= part.len();
            // The next frame is not even encoded.
            if room == 0 {
                break;
            }
        }
        (slices, count)
    }

    fn advance(&mut self, written: usize) {
        self.begun += written;
        while let Some(frame) = self.frames.front()
            && let Some(rest) = self.begun.checked_sub(frame.bytes(self.framing).len())
        {
            if let OutFrame::Event(event) = frame {
                self.delivered += 1;
                self.position = Position::after(event);
            }
            self.begun = rest;
            self.frames.pop_front();
        }
    }
}

impl OutFrame {
    const fn is_event(&self) -> bool {
        matches!(self, Self::Event(_))
    }

    /// Whether it holds room in the memory budget.
    fn is_large(&self) -> bool {
        matches!(self, Self::Event(event) if event.size() > LARGE_EVENT)
    }

    fn bytes(&self, framing: EventFraming) -> &[u8] {
        match self {
            Self::Event(event) => framing(event),
            Self::Own(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::JobId;
    use futures_util::FutureExt as _;
    use std::future::poll_fn;
    use tokio::io::{AsyncReadExt as _, duplex};

    fn event(seq: u64, size: usize) -> Arc<Stored> {
        let job: JobId = "j".parse().unwrap();
        let text = "x".repeat(size);
        let payload = format!(r#"{{"type":"x","job":"j","seq":{seq},"text":"{text}"}}"#);
        Arc::new(Stored::decode(&job, seq, payload.into()).unwrap())
    }

    /// Writes everything that the socket accepts.
    fn write(output: &mut OutputQueue, mut io: &mut (impl AsyncWrite + Unpin)) {
        while !output.is_empty()
            && let Some(written) =
                poll_fn(|cx| output.poll_write(Pin::new(&mut io), cx)).now_or_never()
        {
            written.unwrap();
        }
    }

    #[tokio::test]
    async fn frames_are_written_in_order_and_nothing_is_held_afterwards() {
        let (mut client, mut edge) = duplex(1 << 20);
        let events: Vec<_> = (1..=100).map(|seq| event(seq, 1)).collect();
        let mut output = OutputQueue::new(Stored::json);
        output.put(b"first".to_vec());
        output.put_events(events.clone());
        output.put(b"last".to_vec());
        write(&mut output, &mut edge);
        assert!(output.is_empty());
        assert_eq!(output.release().events, 100);
        let mut expected = b"first".to_vec();
        events
            .iter()
            .for_each(|event| expected.extend_from_slice(event.json()));
        expected.extend_from_slice(b"last");
        let mut received = vec![0; expected.len()];
        client.read_exact(&mut received).await.unwrap();
        assert!(received == expected);
    }

    #[tokio::test]
    async fn one_write_takes_at_most_a_turn() {
        let large = || event(1, 5 * TURN_BYTES);
        let small = (2..=400).map(|seq| event(seq, 1000));
        for events in [
            vec![large()],
            std::iter::once(large()).chain(small).collect(),
        ] {
            let (mut client, mut edge) = duplex(1 << 20);
            let mut output = OutputQueue::new(Stored::json);
            output.put_events(events.clone());
            let mut written = 0;
            while !output.is_empty() {
                let bytes = poll_fn(|cx| output.poll_write(Pin::new(&mut edge), cx)).await;
                let bytes = bytes.unwrap();
                assert!((1..=TURN_BYTES).contains(&bytes), "{bytes}");
                written += bytes;
            }
            let expected: Vec<u8> = events
                .iter()
                .flat_map(|event| event.json())
                .copied()
                .collect();
            let mut received = vec![0; written];
            client.read_exact(&mut received).await.unwrap();
            assert!(received == expected);
        }
    }

    #[tokio::test]
    async fn a_client_that_accepts_no_data_holds_one_frame() {
        let (mut client, mut edge) = duplex(100);
        let events: Vec<_> = (1..=9).map(|seq| event(seq, 30)).collect();
        let size = events[0].json().len();
        let mut output = OutputQueue::new(Stored::json);
        output.put_events(events.clone());
        write(&mut output, &mut edge);
        let begun = 100 / size;
        assert!(output.has_more_events());
        let released = output.release();
        let expected = Position::after(&events[begun]);
        assert_eq!(
            (released.events, format!("{:?}", released.position)),
            (begun + 1, format!("{:?}", Some(expected)))
        );
        assert!(!released.holds_large);
        assert!(!output.has_more_events() && output.frames.len() == 1);
        let mut received = vec![0; size * (begun + 1)];
        let (read, ()) = tokio::join!(client.read_exact(&mut received), async {
            while !output.is_empty() {
                poll_fn(|cx| output.poll_write(Pin::new(&mut edge), cx))
                    .await
                    .unwrap();
            }
        });
        read.unwrap();
        assert!(received.ends_with(events[begun].json()));
    }

    #[tokio::test]
    async fn a_large_event_that_is_not_begun_is_not_held() {
        let (_client, mut edge) = duplex(10);
        let mut output = OutputQueue::new(Stored::json);
        output.put(vec![0; 10]);
        output.put_events(vec![event(1, LARGE_EVENT)]);
        write(&mut output, &mut edge);
        let released = output.release();
        assert!(released.events == 0 && !released.holds_large);
        assert!(output.is_empty());
        output.put_events(vec![event(1, 1)]);
        let released = output.release();
        assert!(
            released.events == 1 && !released.holds_large,
            "a small one is kept"
        );
        let mut output = OutputQueue::new(Stored::json);
        output.put_events(vec![event(1, LARGE_EVENT)]);
        let (_client, mut edge) = duplex(10);
        write(&mut output, &mut edge);
        let released = output.release();
        assert!(released.events == 1 && released.holds_large, "it is begun");
    }
}
