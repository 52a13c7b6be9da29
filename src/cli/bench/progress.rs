//! Shows on a terminal how far a run is.

use std::future::Future;
use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::interval;

use super::watcher::Account;
use crate::config::BENCH_REDRAW;

/// Shows how many deliveries have arrived while `work` is done, and of how many if that is known.
pub(super) async fn with_progress<T>(
    account: &Account,
    total: Option<u64>,
    work: impl Future<Output = T>,
) -> T {
    let bar = if std::io::stderr().is_terminal() {
        ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr())
    } else {
        ProgressBar::hidden()
    };
    let style = match total {
        Some(_) => "{bar:40} {human_pos} of {human_len} deliveries, {per_sec}",
        None => "{human_pos} deliveries, {per_sec}",
    };
    bar.set_style(
        ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let drawing = async {
        let mut redraw = interval(BENCH_REDRAW);
        loop {
            redraw.tick().await;
            bar.set_position(account.tally().deliveries);
        }
    };
    let outcome = tokio::select! {
        outcome = work => outcome,
        () = drawing => unreachable!("it never ends"),
    };
    bar.finish_and_clear();
    outcome
}
