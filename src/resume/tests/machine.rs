//! The stitcher's transitions one by one. In this order, the tests explain the diagram in
//! `stitcher`.

use super::Event;
use crate::resume::{Action, Input, Stitcher};
use crate::wire::Seq;

/// The stitcher's actions, as text.
fn actions(stitcher: &mut Stitcher<Event>) -> String {
    let mut texts = Vec::new();
    while let Some(action) = stitcher.poll() {
        texts.push(match action {
            Action::Deliver(event) => event.seq.to_string(),
            Action::Gap { from, to } => format!("gap {from}-{to}"),
            Action::Replay { from } => format!("replay from {from}"),
            Action::End => "end".to_owned(),
        });
        assert!(texts.len() < 100, "endless actions");
    }
    texts.join(", ")
}

/// Handles each input and compares the actions that follow it.
fn run<const N: usize>(stitcher: &mut Stitcher<Event>, steps: [(Input<Event>, &str); N]) {
    for (index, (input, expected)) in steps.into_iter().enumerate() {
        stitcher.handle(input);
        assert_eq!(actions(stitcher), expected, "after input {index}");
    }
}

const DONE: Input<Event> = Input::ReplayDone;
const LAGGED: Input<Event> = Input::LiveLagged;

fn live(seq: u64) -> Input<Event> {
    Input::Live(Event::sized(Seq(seq), 1))
}

fn replayed(seq: u64) -> Input<Event> {
    Input::Replayed(Event::sized(Seq(seq), 1))
}

fn end(seq: u64) -> Event {
    Event {
        end: true,
        ..Event::sized(Seq(seq), 1)
    }
}

fn gap(before: u64) -> Input<Event> {
    Input::Gap {
        before: Seq(before),
    }
}

/// A stitcher that expects `next` and has just requested a replay.
fn replaying(next: u64, ahead_max: usize) -> Stitcher<Event> {
    let mut stitcher = Stitcher::new(Seq(next), ahead_max);
    assert_eq!(actions(&mut stitcher), format!("replay from {next}"));
    stitcher
}

/// A stitcher that expects `next` and has everything before it.
fn caught_up(next: u64, ahead_max: usize) -> Stitcher<Event> {
    let mut stitcher = Stitcher::caught_up(Seq(next), ahead_max);
    assert_eq!(actions(&mut stitcher), "");
    stitcher
}

#[test]
fn a_new_reader_reads_the_log_and_is_then_live() {
    let mut stitcher = replaying(1, 8);
    run(&mut stitcher, [(replayed(1), "1"), (replayed(2), "2")]);
    assert!(!stitcher.is_live());
    run(&mut stitcher, [(DONE, "")]);
    assert!(stitcher.is_live());
    run(&mut stitcher, [(live(3), "3")]);
    assert_eq!(stitcher.next_seq(), Seq(4));
}

#[test]
fn a_reader_that_starts_at_the_end_of_the_log_does_not_read_it() {
    let mut stitcher = caught_up(5, 8);
    assert!(stitcher.is_live());
    run(&mut stitcher, [(live(5), "5")]);
}

#[test]
fn a_live_copy_during_a_replay_waits_until_the_replay_reaches_it() {
    let mut stitcher = replaying(1, 8);
    run(&mut stitcher, [(live(3), ""), (live(4), "")]);
    assert_eq!(stitcher.first_ahead(), Some(Seq(3)));
    let steps = [(replayed(1), "1"), (replayed(2), "2, 3, 4"), (DONE, "")];
    run(&mut stitcher, steps);
    assert!(stitcher.is_live());
}

#[test]
fn a_replay_does_not_delay_a_live_copy_of_the_next_item() {
    let mut stitcher = replaying(1, 8);
    run(&mut stitcher, [(live(2), ""), (live(1), "1, 2")]);
    // The replay's copies of them are dropped.
    let steps = [(replayed(1), ""), (replayed(2), ""), (DONE, "")];
    run(&mut stitcher, steps);
    assert!(stitcher.is_live());
}

#[test]
fn a_replay_that_ends_before_a_known_item_is_followed_by_another() {
    let mut stitcher = replaying(1, 8);
    let steps = [
        (live(3), ""),
        (replayed(1), "1"),
        (DONE, "replay from 2"), // It began before 2 was stored.
        (replayed(2), "2, 3"),
        (DONE, ""),
    ];
    run(&mut stitcher, steps);
    assert!(stitcher.is_live());
}

#[test]
fn a_gap_in_the_live_copies_makes_it_read_the_log() {
    let mut stitcher = caught_up(5, 8);
    run(&mut stitcher, [(live(7), "replay from 5")]);
    assert!(!stitcher.is_live());
    let steps = [
        (live(9), ""), // One replay at a time.
        (live(5), "5"),
        (replayed(5), ""),
        (replayed(6), "6, 7"),
        (DONE, "replay from 8"),
    ];
    run(&mut stitcher, steps);
}

#[test]
fn the_last_item_of_a_silent_log_shows_which_live_copies_were_lost() {
    let steps = [
        (live(4), ""),  // Nothing was lost.
        (live(5), "5"), // Only the last copy was lost.
        (live(8), "replay from 6"),
    ];
    run(&mut caught_up(5, 8), steps);
}

#[test]
fn a_lag_makes_it_read_the_log() {
    let mut stitcher = caught_up(5, 8);
    run(&mut stitcher, [(LAGGED, "replay from 5")]);
    assert_eq!(stitcher.gap_end(), None, "no gap is known");
    run(&mut stitcher, [(DONE, "")]);
    assert!(stitcher.is_live());
}

#[test]
fn a_lag_during_a_replay_causes_another_replay() {
    let mut stitcher = replaying(1, 8);
    let steps = [
        (LAGGED, ""), // One replay at a time.
        (LAGGED, ""),
        (DONE, "replay from 1"), // The first may have ended before the loss.
        (DONE, ""),              // The second began after it.
    ];
    run(&mut stitcher, steps);
    assert!(stitcher.is_live());
}

#[test]
fn a_lag_before_the_first_replay_causes_no_second_one() {
    let mut stitcher = Stitcher::new(Seq(1), 8);
    stitcher.handle(LAGGED);
    stitcher.handle(DONE);
    assert!(!stitcher.is_live(), "there was no replay that could end");
    assert_eq!(actions(&mut stitcher), "replay from 1");
    for _ in 0..2 {
        run(&mut stitcher, [(DONE, "")]);
        assert!(stitcher.is_live());
    }
}

#[test]
fn late_and_repeated_copies_are_dropped() {
    let mut stitcher = caught_up(5, 8);
    let steps = [
        (live(5), "5"),
        (live(5), ""),
        (live(2), ""),
        (replayed(4), ""),
    ];
    run(&mut stitcher, steps);
    assert!(stitcher.is_live() && stitcher.first_ahead().is_none());
}

#[test]
fn items_that_do_not_fit_ahead_are_read_from_the_log() {
    let steps = [
        (live(2), "replay from 1"),
        (live(3), ""), // There is room for one.
        (replayed(1), "1, 2"),
        (DONE, "replay from 3"),
        (replayed(3), "3"),
    ];
    run(&mut caught_up(1, 1), steps);
}

#[test]
fn a_reader_that_keeps_nothing_ahead_detects_a_gap() {
    let mut stitcher = caught_up(1, 0);
    run(&mut stitcher, [(live(3), "replay from 1")]);
    assert_eq!(stitcher.first_ahead(), None);
    assert_eq!(stitcher.gap_end(), Some(Seq(4)));
}

#[test]
fn a_gap_in_a_replay_is_reported_before_the_item_after_it() {
    let steps = [(replayed(4), "gap 1-3, 4"), (replayed(6), "gap 5-5, 6")];
    run(&mut replaying(1, 8), steps);
}

#[test]
fn items_that_expired_from_the_log_but_arrived_live_are_delivered() {
    let steps = [
        (live(3), ""),
        (live(4), ""),
        (live(6), ""),
        (replayed(8), "gap 1-2, 3, 4, gap 5-5, 6, gap 7-7, 8"),
    ];
    run(&mut replaying(1, 8), steps);
}

#[test]
fn a_proven_gap_is_reported_and_the_log_is_not_read_forever() {
    let mut stitcher = caught_up(1, 8);
    for seq in [3, 5] {
        stitcher.handle(live(seq));
    }
    assert_eq!(actions(&mut stitcher), "replay from 1");
    // Why the replay had nothing is not known yet.
    run(&mut stitcher, [(DONE, "replay from 1")]);
    assert_eq!(stitcher.gap_end(), Some(Seq(6)));
    run(&mut stitcher, [(gap(6), "gap 1-2, 3, gap 4-4, 5")]);
    assert_eq!(stitcher.gap_end(), None);
    run(&mut stitcher, [(DONE, "")]);
    assert!(stitcher.is_live());
}

#[test]
fn a_replay_proves_nothing_about_items_first_seen_after_its_request() {
    let mut stitcher = caught_up(1, 8);
    let steps = [
        (live(3), "replay from 1"),
        (live(1), "1"),
        (live(2), "2, 3"),
        (live(6), ""),
    ];
    run(&mut stitcher, steps);
    stitcher.handle(DONE);
    assert_eq!(stitcher.gap_end(), None, "4 and 5 may be newer");
    assert_eq!(actions(&mut stitcher), "replay from 4");
    stitcher.handle(DONE);
    assert_eq!(stitcher.gap_end(), Some(Seq(7)));
}

#[test]
fn a_proven_gap_before_the_next_item_is_ignored() {
    let mut stitcher = caught_up(5, 8);
    run(
        &mut stitcher,
        [(gap(5), ""), (gap(2), ""), (gap(7), "gap 5-6")],
    );
    assert!(stitcher.is_live());
    run(&mut stitcher, [(live(7), "7")]);
}

#[test]
fn the_end_item_ends_the_stitcher_wherever_it_comes_from() {
    let mut from_live = caught_up(5, 8);
    run(&mut from_live, [(Input::Live(end(5)), "5, end")]);
    let mut from_the_log = replaying(5, 8);
    run(&mut from_the_log, [(Input::Replayed(end(5)), "5, end")]);
    let mut from_ahead = replaying(5, 8);
    let steps = [(Input::Live(end(6)), ""), (replayed(5), "5, 6, end")];
    run(&mut from_ahead, steps);
    for stitcher in [from_live, from_the_log, from_ahead] {
        assert!(stitcher.is_ended() && !stitcher.is_live());
    }
}

#[test]
fn every_input_after_the_end_is_ignored() {
    let mut stitcher = replaying(5, 8);
    run(&mut stitcher, [(Input::Live(end(5)), "5, end")]);
    let events = [5, 6, 9].into_iter().flat_map(|n| [live(n), replayed(n)]);
    for input in events.chain([gap(9), DONE, LAGGED]) {
        run(&mut stitcher, [(input, "")]);
        assert!(stitcher.is_ended() && stitcher.next_seq() == Seq(6));
    }
}

#[test]
fn items_after_the_end_are_neither_delivered_nor_kept() {
    let mut stitcher = replaying(5, 8);
    let steps = [
        (live(8), ""),
        (live(7), ""),
        (Input::Live(end(6)), ""),
        (replayed(5), "5, 6, end"),
    ];
    run(&mut stitcher, steps);
    assert_eq!(stitcher.first_ahead(), None);

    for seq in [7, 9] {
        let steps = [
            (Input::Live(end(6)), ""),
            (replayed(seq), "gap 5-5, 6, end"),
        ];
        run(&mut replaying(5, 8), steps);
    }
}
