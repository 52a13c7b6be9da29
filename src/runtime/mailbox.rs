//! Hands what a task has got for a client to the client's reader: a part of the log, or room in the
//! memory budget. A reader need not take it: its client may accept nothing. What is not taken for
//! [`READ_TAKE_WAIT`] is dropped, and the reader must ask for it again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::timeout;

use crate::config::READ_TAKE_WAIT;

/// A mailbox for one reader: the task's side, and the reader's side.
pub(crate) fn mailbox<T>() -> (MailSender<T>, Mailbox<T>) {
    let shared = Arc::new(Shared {
        state: Mutex::new(MailState {
            mail: Mail::Empty,
            is_read: true,
        }),
        arrived: Notify::new(),
        taken: Notify::new(),
    });
    let mailbox = Mailbox(Arc::clone(&shared));
    (MailSender(shared), mailbox)
}

/// Why a mailbox stays empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoMail {
    /// It was dropped: the reader did not take it in time, or there was no room for it.
    Expired,
    /// Nothing follows.
    Closed,
}

/// The task's side. Dropping it closes the mailbox.
#[derive(Debug)]
pub(crate) struct MailSender<T>(Arc<Shared<T>>);

/// The reader's side.
#[derive(Debug)]
pub(crate) struct Mailbox<T>(Arc<Shared<T>>);

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<MailState<T>>,
    arrived: Notify,
    /// The reader has taken its mail, or is gone.
    taken: Notify,
}

#[derive(Debug)]
struct MailState<T> {
    mail: Mail<T>,
    /// Whether the reader still exists.
    is_read: bool,
}

#[derive(Debug)]
enum Mail<T> {
    Empty,
    Waiting(T),
    /// The last mail, or none.
    Closed(Option<T>),
    Expired,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, MailState<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> MailSender<T> {
    /// Whether the reader is gone.
    pub(crate) fn is_unread(&self) -> bool {
        !self.0.lock().is_read
    }

    /// Returns once the reader is gone.
    pub(crate) async fn unread(&self) {
        while !self.is_unread() {
            self.0.taken.notified().await;
        }
    }

    /// Delivers mail, or joins it with mail that waits. Returns it if `join` refuses that, or if
    /// the reader is gone.
    pub(crate) fn deliver(
        &self,
        mail: T,
        join: impl FnOnce(&mut T, T) -> Result<(), T>,
    ) -> Result<(), T> {
        let mut state = self.0.lock();
        if !state.is_read {
            return Err(mail);
        }
        match &mut state.mail {
            Mail::Waiting(waiting) => join(waiting, mail)?,
            other @ (Mail::Empty | Mail::Closed(_) | Mail::Expired) => *other = Mail::Waiting(mail),
        }
        drop(state);
        self.0.arrived.notify_one();
        Ok(())
    }

    /// There is no room for the next mail. A reader that has none waiting learns that it was dropped.
    pub(crate) fn expire(&self) {
        let mut state = self.0.lock();
        if matches!(state.mail, Mail::Empty) {
            state.mail = Mail::Expired;
            drop(state);
            self.0.arrived.notify_one();
        }
    }

    /// Whether mail waits to be taken.
    pub(crate) fn is_waiting(&self) -> bool {
        matches!(self.0.lock().mail, Mail::Waiting(_))
    }

    /// Waits until the mail is taken, or drops it.
    pub(crate) async fn until_taken(self) {
        let taken = async {
            while self.is_waiting() {
                self.0.taken.notified().await;
            }
        };
        if timeout(READ_TAKE_WAIT, taken).await.is_err() {
            let mut state = self.0.lock();
            if matches!(state.mail, Mail::Waiting(_)) {
                state.mail = Mail::Expired;
            }
        }
    }
}

impl<T> Drop for MailSender<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.mail = match std::mem::replace(&mut state.mail, Mail::Empty) {
            Mail::Empty => Mail::Closed(None),
            Mail::Waiting(mail) => Mail::Closed(Some(mail)),
            closed @ (Mail::Closed(_) | Mail::Expired) => closed,
        };
        drop(state);
        self.0.arrived.notify_one();
    }
}

impl<T> Mailbox<T> {
    /// Takes the next mail. Cancel safe.
    pub(crate) async fn take(&mut self) -> Result<T, NoMail> {
        loop {
            if let Some(taken) = self.try_take() {
                return taken;
            }
            self.0.arrived.notified().await;
        }
    }

    fn try_take(&mut self) -> Option<Result<T, NoMail>> {
        let mut state = self.0.lock();
        let (taken, rest) = match std::mem::replace(&mut state.mail, Mail::Empty) {
            Mail::Empty => return None,
            Mail::Waiting(mail) => (Ok(mail), Mail::Empty),
            Mail::Closed(Some(mail)) => (Ok(mail), Mail::Closed(None)),
            Mail::Closed(None) => (Err(NoMail::Closed), Mail::Closed(None)),
            Mail::Expired => (Err(NoMail::Expired), Mail::Expired),
        };
        state.mail = rest;
        drop(state);
        self.0.taken.notify_one();
        Some(taken)
    }
}

impl<T> Drop for Mailbox<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_read = false;
        state.mail = Mail::Empty;
        drop(state);
        self.0.taken.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    fn refuse(_: &mut u32, mail: u32) -> Result<(), u32> {
        Err(mail)
    }

    #[tokio::test(start_paused = true)]
    async fn mail_that_is_not_taken_in_time_is_dropped() {
        let (sender, mut mailbox) = mailbox();
        sender.deliver(1, refuse).unwrap();
        assert_eq!(sender.deliver(2, refuse), Err(2));
        assert_eq!(mailbox.take().await, Ok(1));
        sender.deliver(3, refuse).unwrap();
        sender.until_taken().await;
        assert_eq!(mailbox.take().await, Err(NoMail::Expired));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_learns_that_there_was_no_room_for_its_mail() {
        let (sender, mut waits) = mailbox();
        assert!(waits.take().now_or_never().is_none());
        sender.expire();
        drop::<MailSender<u32>>(sender);
        assert_eq!(waits.take().await, Err(NoMail::Expired));
        // What was delivered before is not lost.
        let (sender, mut has_mail) = mailbox();
        sender.deliver(1, refuse).unwrap();
        sender.expire();
        drop(sender);
        assert_eq!(has_mail.take().await, Ok(1));
        assert_eq!(has_mail.take().await, Err(NoMail::Closed));
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_mail_is_taken_after_its_sender_is_gone() {
        let (sender, mut mailbox) = mailbox();
        assert!(mailbox.take().now_or_never().is_none());
        sender.deliver(1, refuse).unwrap();
        drop(sender);
        assert_eq!(mailbox.take().await, Ok(1));
        assert_eq!(mailbox.take().await, Err(NoMail::Closed));
    }

    #[tokio::test(start_paused = true)]
    async fn a_sender_notices_that_its_reader_is_gone() {
        let (sender, mailbox) = mailbox();
        assert!(!sender.is_unread() && sender.unread().now_or_never().is_none());
        drop(mailbox);
        assert!(sender.is_unread());
        sender.unread().await;
        assert_eq!(sender.deliver(1, refuse), Err(1));
    }
}
