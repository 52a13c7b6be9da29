//! The log on stderr: written by a thread of its own, so that a reader of stderr that stops reading stops nothing else.
//! What does not fit meanwhile is lost, and counted. What is worth a line is decided where it happens.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use tracing_subscriber::fmt::MakeWriter;

use crate::config::{LOG_FLUSH_WAIT, LOG_LINE_MAX, LOG_LINES};

/// Where log lines go. Clones go to the same place.
#[derive(Clone, Debug)]
pub(super) struct Log {
    lines: SyncSender<Line>,
    lost: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Line {
    Text(Vec<u8>),
    /// Asks for an answer once everything before is written.
    Flush(SyncSender<()>),
}

impl Log {
    /// A log that is written to `sink` by a thread of its own.
    pub(super) fn to(sink: impl Write + Send + 'static) -> io::Result<Self> {
        let (lines, taken) = sync_channel(LOG_LINES);
        let lost = Arc::<AtomicU64>::default();
        let count = Arc::clone(&lost);
        thread::Builder::new()
            .name("log".into())
            .spawn(move || write_all(sink, &taken, &count))?;
        Ok(Self { lines, lost })
    }

    /// Waits until what was logged is written, [`LOG_FLUSH_WAIT`] at the most.
    pub(super) fn flush(&self) {
        let (done, wait) = sync_channel(1);
        // A full queue says that stderr takes nothing: there is nothing to wait for.
        if self.lines.try_send(Line::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(LOG_FLUSH_WAIT);
        }
    }
}

fn write_all(mut sink: impl Write, lines: &Receiver<Line>, lost: &AtomicU64) {
    while let Ok(line) = lines.recv() {
        // A sink that is gone is no reason to end: what is logged must go on being taken.
        let _ = match line {
            Line::Text(text) => sink.write_all(&text),
            Line::Flush(done) => {
                let flushed = sink.flush();
                let _ = done.send(());
                flushed
            }
        };
        let lost = lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let _ = writeln!(
                sink,
                "tailwater: {lost} log lines were lost, because stderr was not read"
            );
        }
    }
}

/// One event of the log, which is written as one line.
#[derive(Debug)]
pub(super) struct Writer<'a>(&'a Log);

impl Write for Writer<'_> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let line = match text.get(..LOG_LINE_MAX) {
            Some(begin) => [begin, b"\n"].concat(),
            None => text.to_vec(),
        };
        if self.0.lines.try_send(Line::Text(line)).is_err() {
            self.0.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Writer<'a>;

    fn make_writer(&'a self) -> Writer<'a> {
        Writer(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// A sink that is stuck while its lock is held.
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
    fn a_sink_that_is_stuck_stops_nobody_and_what_was_lost_is_counted() {
        let sink = Sink::default();
        let log = Log::to(sink.clone()).unwrap();
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

    #[test]
    fn a_line_that_is_too_long_is_cut() {
        let sink = Sink::default();
        let log = Log::to(sink.clone()).unwrap();
        log.make_writer()
            .write_all(&vec![b'x'; 10 * LOG_LINE_MAX])
            .unwrap();
        log.flush();
        assert_eq!(sink.0.lock().unwrap().len(), LOG_LINE_MAX + 1);
    }
}
