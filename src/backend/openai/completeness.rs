//! Whether an answer is complete without an end mark. Pure.
//!
//! Some servers send a `finish_reason` with every piece, with reasoning, or before they are done.
//! Then only `[DONE]` ends the answer: otherwise a stream that was cut would look like a short
//! answer.

/// What a choice of an event carries besides its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChoiceContent {
    Reasoning,
    Answer,
    Nothing,
}

/// What the events so far show about whether the answer is complete.
#[derive(Debug, Default)]
pub(super) struct Completeness {
    /// What the last reason came with; `None` when content followed it.
    reason: Option<ChoiceContent>,
    /// Content followed a reason that came with content.
    revoked_with_content: bool,
    /// Content followed a reason that came alone.
    revoked_alone: bool,
    /// A piece of the answer came without a reason, so a later reason is meaningful.
    unnamed: bool,
    /// Usage came after the reason; some servers send it with every piece.
    usage: bool,
    reasoned: bool,
    answered: bool,
    /// The only event so far is a whole message.
    is_message: bool,
}

impl Completeness {
    /// Notes a choice: what it carries, whether it has a reason, and whether it is a whole
    /// message.
    pub(super) fn note_choice(
        &mut self,
        content: ChoiceContent,
        has_reason: bool,
        is_message: bool,
    ) {
        if content != ChoiceContent::Nothing {
            match self.reason.take() {
                Some(ChoiceContent::Nothing) => self.revoked_alone = true,
                Some(ChoiceContent::Answer | ChoiceContent::Reasoning) => {
                    self.revoked_with_content = true;
                }
                None => {}
            }
            self.usage = false;
            self.unnamed |= !has_reason;
            self.reasoned |= content == ChoiceContent::Reasoning;
            self.answered |= content == ChoiceContent::Answer;
        }
        if has_reason {
            self.reason = Some(content);
        }
        self.is_message = is_message;
    }

    /// Notes usage that came without content.
    pub(super) fn note_usage(&mut self) {
        self.usage |= self.reason.is_some();
    }

    /// Whether the answer is complete without an end mark. A reason that came with content proves
    /// it only if the server does not send one with every piece. The first piece alone cannot show
    /// that, but usage after it does.
    pub(super) fn is_trusted(&self) -> bool {
        let trusted = match self.reason {
            Some(ChoiceContent::Nothing) => {
                !self.revoked_alone && (self.answered || !self.reasoned)
            }
            Some(ChoiceContent::Answer) => {
                !self.revoked_with_content && (self.unnamed || self.usage)
            }
            Some(ChoiceContent::Reasoning) | None => false,
        };
        trusted || self.is_message
    }
}
