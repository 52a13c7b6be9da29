//! Signals to a whole process group, so that a program and the processes that it started end
//! together.

use std::io;

use rustix::process::{Pid, kill_process_group};

pub use rustix::process::Signal;

/// Sends `signal` to every process of the group that `pid` leads. A group that does not exist is
/// not an error.
///
/// The caller must not have reaped `pid` yet: after that, another process may have the number.
///
/// # Errors
/// When `pid` cannot lead a group (0 and 1 mean something else to the operating system), or when no
/// process of the group may be signalled. macOS also says so when the group has only unreaped
/// processes left.
pub fn kill_group(pid: u32, signal: Signal) -> io::Result<()> {
    let leader = i32::try_from(pid)
        .ok()
        .filter(|pid| *pid > 1)
        .and_then(Pid::from_raw);
    let leader = leader.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    match kill_process_group(leader, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_group_is_not_an_error_and_special_pids_are_refused() {
        for pid in [0, 1, u32::MAX] {
            assert_eq!(
                kill_group(pid, Signal::TERM).unwrap_err().kind(),
                io::ErrorKind::InvalidInput
            );
        }
        // Above the largest pid that Linux can be configured to use.
        kill_group(0x7FFF_FFFE, Signal::TERM).unwrap();
    }
}
