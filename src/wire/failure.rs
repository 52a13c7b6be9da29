//! The codes of failures: why an attempt or a job failed, for programs. The one table of the codes
//! that the worker and Tailwater's own backends write; `PROTOCOL.md` says when each is written. A
//! backend of your own may use other codes, so in an event the code is any text.

use std::fmt;

/// Why an attempt or a job failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureCode {
    /// The job exceeded one of its time limits.
    TimedOut,
    /// The job had as many attempts as its worker allows.
    AttemptsExhausted,
    /// The backend's output does not fit into an event, or is not what the worker was told to
    /// expect.
    BadOutput,
    /// The backend panicked.
    BackendPanicked,
    /// The attempt was stopped from outside while its backend ran.
    Stopped,
    /// The worker was stopped. Such an attempt does not count towards the limit.
    HandedBack,
    /// The queue delivered the job many times and no worker began it.
    NotBegun,
    /// The backend cannot use the job's input.
    BadInput,
    /// The program cannot be started.
    CannotStart,
    /// The program exited with a status other than 0.
    ExitStatus,
    /// The operating system refused something that it usually allows.
    ExecIo,
    /// A signal ended the program.
    KilledBySignal,
    /// The model server refused the request.
    ModelRefused,
    /// The model server was overloaded for longer than the job waits.
    ModelBusy,
    /// The model server failed.
    ModelFailed,
    /// The model server cannot be reached.
    ModelUnreachable,
    /// The model server sent nothing for too long.
    ModelSilent,
    /// The model server's answer stopped before its end.
    StreamCut,
    /// The model server's answer cannot be read.
    BadStream,
    /// The model's tool calls do not fit into an event.
    TooLarge,
    /// The worker's operator does not allow callbacks to this host.
    CallbackNotAllowed,
    /// The receiver of a callback refused it.
    CallbackRefused,
    /// The receiver of a callback failed.
    CallbackFailed,
    /// The receiver of a callback cannot be reached.
    CallbackUnreachable,
}

impl FailureCode {
    /// Every code, in the order of the table.
    pub const ALL: &[Self] = &[
        Self::TimedOut,
        Self::AttemptsExhausted,
        Self::BadOutput,
        Self::BackendPanicked,
        Self::Stopped,
        Self::HandedBack,
        Self::NotBegun,
        Self::BadInput,
        Self::CannotStart,
        Self::ExitStatus,
        Self::ExecIo,
        Self::KilledBySignal,
        Self::ModelRefused,
        Self::ModelBusy,
        Self::ModelFailed,
        Self::ModelUnreachable,
        Self::ModelSilent,
        Self::StreamCut,
        Self::BadStream,
        Self::TooLarge,
        Self::CallbackNotAllowed,
        Self::CallbackRefused,
        Self::CallbackFailed,
        Self::CallbackUnreachable,
    ];

    /// The stable text, as events have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TimedOut => "timed_out",
            Self::AttemptsExhausted => "attempts_exhausted",
            Self::BadOutput => "bad_output",
            Self::BackendPanicked => "backend_panicked",
            Self::Stopped => "stopped",
            Self::HandedBack => "handed_back",
            Self::NotBegun => "not_begun",
            Self::BadInput => "bad_input",
            Self::CannotStart => "cannot_start",
            Self::ExitStatus => "exit_status",
            Self::ExecIo => "exec_io",
            Self::KilledBySignal => "killed_by_signal",
            Self::ModelRefused => "model_refused",
            Self::ModelBusy => "model_busy",
            Self::ModelFailed => "model_failed",
            Self::ModelUnreachable => "model_unreachable",
            Self::ModelSilent => "model_silent",
            Self::StreamCut => "stream_cut",
            Self::BadStream => "bad_stream",
            Self::TooLarge => "too_large",
            Self::CallbackNotAllowed => "callback_not_allowed",
            Self::CallbackRefused => "callback_refused",
            Self::CallbackFailed => "callback_failed",
            Self::CallbackUnreachable => "callback_unreachable",
        }
    }
}

impl fmt::Display for FailureCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<FailureCode> for String {
    fn from(code: FailureCode) -> Self {
        code.as_str().into()
    }
}

impl PartialEq<FailureCode> for String {
    fn eq(&self, code: &FailureCode) -> bool {
        self == code.as_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    /// The first column of the table under this heading of a document.
    fn codes_under<'a>(document: &'a str, heading: &str) -> Vec<&'a str> {
        let (_, section) = document.split_once(heading).unwrap();
        let section = section.split("\n## ").next().unwrap();
        let (_, rows) = section.split_once("|---|").unwrap();
        let rows = rows.lines().filter_map(|line| line.strip_prefix("| `"));
        rows.map(|row| row.split('`').next().unwrap()).collect()
    }

    #[test]
    fn the_protocol_document_lists_exactly_these_codes() {
        let listed = codes_under(include_str!("PROTOCOL.md"), "\n## Failure codes\n");
        let codes: Vec<&str> = FailureCode::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(listed, codes);
    }

    #[test]
    fn no_document_names_another_code() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let docs = fs::read_dir(root.join("docs")).unwrap();
        let mut documents: Vec<_> = docs.map(|file| file.unwrap().path()).collect();
        documents.extend([root.join("README.md"), root.join("src/wire/PROTOCOL.md")]);
        for document in documents {
            let text = fs::read_to_string(&document).unwrap();
            let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
            for named in ["fails as `", "fails with `", "fail as `", "fail with `"] {
                for after in text.split(named).skip(1) {
                    let code = after.split('`').next().unwrap();
                    let known = FailureCode::ALL.iter().any(|known| known.as_str() == code);
                    assert!(known, "{}: {named}{code}`", document.display());
                }
            }
        }
    }
}
