//! The log on stderr, written by its own thread, so that nothing else blocks when stderr is not
//! read. Lines that do not fit into its queue are dropped and counted.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{LOG_FLUSH_EVERY, LOG_FLUSH_WAIT, LOG_LINE_MAX, LOG_LINES};

/// Writes log lines. Clones share one thread and sink.
#[derive(Clone, Debug)]
pub(super) struct LogWriter {
    lines: SyncSender<LogMessage>,
    lost: Arc<AtomicU64>,
}

#[derive(Debug)]
enum LogMessage {
    Text(Vec<u8>),
    /// Asks for a reply once everything before it is written.
    Flush(SyncSender<()>),
}

impl LogWriter {
    /// Starts a thread that writes the log to `sink`.
    pub(super) fn to(sink: impl Write + Send + 'static) -> io::Result<Self> {
        let (lines, taken) = sync_channel(LOG_LINES);
        let lost = Arc::<AtomicU64>::default();
        let count = Arc::clone(&lost);
        thread::Builder::new()
            .name("log".into())
            .spawn(move || write_all(sink, &taken, &count))?;
        Ok(Self { lines, lost })
    }

    /// Waits until everything logged so far is written, [`LOG_FLUSH_WAIT`] at most.
    pub(super) fn flush(&self) {
        self.flush_within(LOG_FLUSH_WAIT);
    }

    fn flush_within(&self, limit: Duration) {
        let until = Instant::now() + limit;
        let (done, wait) = sync_channel(1);
        let mut message = LogMessage::Flush(done);
        // A reader of stderr that is only slow makes room.
        while let Err(TrySendError::Full(unsent)) = self.lines.try_send(message) {
            if Instant::now() >= until {
                return;
            }
            thread::park_timeout(LOG_FLUSH_EVERY);
            message = unsent;
        }
        let _ = wait.recv_timeout(until.saturating_duration_since(Instant::now()));
    }
}

fn write_all(mut sink: impl Write, lines: &Receiver<LogMessage>, lost: &AtomicU64) {
    while let Ok(line) = lines.recv() {
        // Ignored, because the thread must keep emptying the queue.
        let _ = match line {
            LogMessage::Text(text) => sink.write_all(&text),
            LogMessage::Flush(done) => {
                let flushed = sink.flush();
                let _ = done.send(());
                flushed
            }
        };
        let lost = lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let _ = writeln!(
                sink,
                "tailwater: {lost} log lines were lost because stderr was not read"
            );
        }
    }
}

/// One event of the log, written as one line.
#[derive(Debug)]
pub(super) struct LogEvent<'a>(&'a LogWriter);

impl Write for LogEvent<'_> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let line = match text.get(..LOG_LINE_MAX) {
            Some(start) => [start, b"\n"].concat(),
            None => text.to_vec(),
        };
        if self.0.lines.try_send(LogMessage::Text(line)).is_err() {
            self.0.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = LogEvent<'a>;

    fn make_writer(&'a self) -> LogEvent<'a> {
        LogEvent(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// A sink that blocks while its lock is held.
    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(text)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn logging_never_blocks_and_counts_lost_lines() {
        let sink = Sink::default();
        let log = LogWriter::to(sink.clone()).unwrap();
        let stuck = sink.0.lock().unwrap();
        for n in 0..10 * LOG_LINES {
            log.make_writer()
                .write_all(format!("line {n}\n").as_bytes())
                .unwrap();
        }
        log.flush();
        drop(stuck);
        while log.lost.load(Ordering::Relaxed) > 0 {
            thread::yield_now();
        }
        log.flush();
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        let lost: usize = text
            .lines()
            .find_map(|line| line.strip_prefix("tailwater: "))
            .map_or(0, |line| line.split(' ').next().unwrap().parse().unwrap());
        let written = text
            .lines()
            .filter(|line| line.starts_with("line "))
            .count();
        assert!(text.starts_with("line 0\n") && written >= LOG_LINES);
        assert_eq!(written + lost, 10 * LOG_LINES);
    }

    /// A sink that is read slowly.
    struct SlowSink(Sink);

    impl Write for SlowSink {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            thread::park_timeout(Duration::from_millis(1));
            self.0.write(text)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_flush_waits_for_a_reader_that_is_only_slow() {
        let sink = Sink::default();
        let log = LogWriter::to(SlowSink(sink.clone())).unwrap();
        let mut sent = 0;
        // Until the queue is full.
        while log.lost.load(Ordering::Relaxed) == 0 && sent < 10 * LOG_LINES {
            log.make_writer().write_all(b"line\n").unwrap();
            sent += 1;
        }
        log.flush_within(Duration::from_secs(60));
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        let written = text.lines().filter(|line| *line == "line").count();
        // The number of lost lines follows the flush.
        log.flush_within(Duration::from_secs(60));
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        let counts = text
            .lines()
            .filter_map(|line| line.strip_prefix("tailwater: "));
        let lost: usize = counts
            .map(|count| count.split(' ').next().unwrap().parse::<usize>().unwrap())
            .sum();
        assert_eq!(written + lost, sent);
    }

    #[test]
    fn a_line_that_is_too_long_is_cut() {
        let sink = Sink::default();
        let log = LogWriter::to(sink.clone()).unwrap();
        log.make_writer()
            .write_all(&vec![b'x'; 10 * LOG_LINE_MAX])
            .unwrap();
        log.flush();
        assert_eq!(sink.0.lock().unwrap().len(), LOG_LINE_MAX + 1);
    }
}
