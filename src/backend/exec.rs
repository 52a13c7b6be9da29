//! stub
use super::{Backend, Failure, Finish, Job, Output};
/// Stub.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Format {
    /// t
    Text,
}
/// Stub.
#[derive(Debug)]
pub struct Exec {
    /// c
    pub command: Vec<std::ffi::OsString>,
    /// f
    pub format: Format,
    /// g
    pub guard: Option<std::path::PathBuf>,
}
impl Backend for Exec {
    async fn run(&self, _job: Job, _out: Output) -> Result<Finish, Failure> {
        Ok(Finish::default())
    }
}
