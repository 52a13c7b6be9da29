//! The failure codes that the worker and Tailwater's own backends write. `PROTOCOL.md` says when
//! each is written. Your own backend may use other codes, so the code of an event is any text.

use std::fmt;

/// Defines [`FailureCode`] from the table: documentation, name, code.
macro_rules! failure_codes {
    ($($(#[$doc:meta])* $name:ident: $code:literal;)*) => {
        /// Why an attempt or a job failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum FailureCode {
            $($(#[$doc])* $name,)*
        }

        impl FailureCode {
            /// Every code, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The stable text, as events have it.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $code,)*
                }
            }
        }
    };
}

failure_codes! {
    /// The job exceeded one of its time limits.
    TimedOut: "timed_out";
    /// The job used up the attempts that its worker allows.
    AttemptsExhausted: "attempts_exhausted";
    /// The backend's output does not fit into an event, or is not in the configured format.
    BadOutput: "bad_output";
    /// The backend panicked.
    BackendPanicked: "backend_panicked";
    /// The attempt was stopped from outside while its backend ran.
    Stopped: "stopped";
    /// The worker was stopped. Such an attempt does not count towards the limit.
    HandedBack: "handed_back";
    /// The queue delivered the job many times and no worker started it.
    NotBegun: "not_begun";
    /// The backend cannot use the job's input.
    BadInput: "bad_input";
    /// The program cannot be started.
    CannotStart: "cannot_start";
    /// The program exited with a status other than 0.
    ExitStatus: "exit_status";
    /// The operating system refused something that it usually allows.
    ExecIo: "exec_io";
    /// A signal ended the program.
    KilledBySignal: "killed_by_signal";
    /// The model server refused the request.
    ModelRefused: "model_refused";
    /// The model server was overloaded for longer than the job waits.
    ModelBusy: "model_busy";
    /// The model server failed.
    ModelFailed: "model_failed";
    /// The model server cannot be reached.
    ModelUnreachable: "model_unreachable";
    /// The model server sent nothing for too long.
    ModelSilent: "model_silent";
    /// The answer of the model server or the endpoint ended too early.
    StreamCut: "stream_cut";
    /// The answer of the model server or the endpoint cannot be read.
    BadStream: "bad_stream";
    /// The model's tool calls do not fit into an event.
    TooLarge: "too_large";
    /// The endpoint refused the request.
    EndpointRefused: "endpoint_refused";
    /// The endpoint was busy for longer than the job waits.
    EndpointBusy: "endpoint_busy";
    /// The endpoint failed, or reports an error in its answer.
    EndpointFailed: "endpoint_failed";
    /// The endpoint cannot be reached.
    EndpointUnreachable: "endpoint_unreachable";
    /// The endpoint sent nothing for too long.
    EndpointSilent: "endpoint_silent";
    /// The worker's operator does not allow callbacks to this host.
    CallbackNotAllowed: "callback_not_allowed";
    /// The receiver of a callback refused it.
    CallbackRefused: "callback_refused";
    /// The receiver of a callback failed.
    CallbackFailed: "callback_failed";
    /// The receiver of a callback cannot be reached.
    CallbackUnreachable: "callback_unreachable";
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
    fn documents_name_only_known_failure_codes() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let docs = fs::read_dir(root.join("docs")).unwrap();
        let mut documents: Vec<_> = docs
            .map(|file| file.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
            .collect();
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
