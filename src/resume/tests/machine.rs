//! The machine, one transition after another: read top down, these tests explain the diagram in `stitcher`.

use super::Event;
use crate::resume::{Action, Input, Stitcher};
use crate::wire::Seq;

/// What the stitcher says to one input.
fn told(stitcher: &mut Stitcher<Event>, input: Input<Event>) -> Vec<String> {
    stitcher.handle(input);
    actions(stitcher)
}

fn actions(stitcher: &mut Stitcher<Event>) -> Vec<String> {
    let mut texts = Vec::new();
    while let Some(action) = stitcher.poll() {
        texts.push(match action {
            Action::Deliver(event) => format!("deliver {}", event.seq),
            Action::Gap { from, to } => format!("missing {from}-{to}"),
            Action::Replay { from } => format!("replay from {from}"),
            Action::End => "end".to_owned(),
        });
        assert!(texts.len() < 100, "actions without end");
    }
    texts
}

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

/// A stitcher that awaits `next` and has just asked for a replay.
fn replaying(next: u64, ahead_max: usize) -> Stitcher<Event> {
    let mut stitcher = Stitcher::new(Seq(next), ahead_max);
    assert_eq!(actions(&mut stitcher), [format!("replay from {next}")]);
    stitcher
}

/// A stitcher that awaits `next` and has everything before it.
fn following(next: u64, ahead_max: usize) -> Stitcher<Event> {
    let mut stitcher = Stitcher::live(Seq(next), ahead_max);
    assert_eq!(actions(&mut stitcher), [""; 0]);
    stitcher
}

const NOTHING: [&str; 0] = [];

#[test]
fn a_new_reader_reads_the_log_and_then_it_is_live() {
    let mut stitcher = Stitcher::new(Seq(1), 8);
    assert_eq!(actions(&mut stitcher), ["replay from 1"]);
    assert_eq!(told(&mut stitcher, replayed(1)), ["deliver 1"]);
    assert_eq!(told(&mut stitcher, replayed(2)), ["deliver 2"]);
    assert!(!stitcher.is_live());
    assert_eq!(told(&mut stitcher, Input::ReplayDone), NOTHING);
    assert!(stitcher.is_live());
    assert_eq!(told(&mut stitcher, live(3)), ["deliver 3"]);
    assert_eq!(stitcher.next_seq(), Seq(4));
}

#[test]
fn a_reader_that_begins_at_the_end_of_the_log_reads_nothing() {
    let mut stitcher = following(5, 8);
    assert!(stitcher.is_live());
    assert_eq!(told(&mut stitcher, live(5)), ["deliver 5"]);
}

#[test]
fn what_arrives_live_during_a_replay_waits_until_the_replay_has_come_to_it() {
    let mut stitcher = replaying(1, 8);
    assert_eq!(told(&mut stitcher, live(3)), NOTHING);
    assert_eq!(told(&mut stitcher, live(4)), NOTHING);
    assert_eq!(stitcher.ahead(), Some(Seq(3)));
    assert_eq!(told(&mut stitcher, replayed(1)), ["deliver 1"]);
    assert_eq!(
        told(&mut stitcher, replayed(2)),
        ["deliver 2", "deliver 3", "deliver 4"]
    );
    assert_eq!(told(&mut stitcher, Input::ReplayDone), NOTHING);
    assert!(stitcher.is_live());
}

#[test]
fn a_live_copy_of_the_next_item_is_not_held_back_by_a_replay() {
    let mut stitcher = replaying(1, 8);
    assert_eq!(told(&mut stitcher, live(2)), NOTHING);
    assert_eq!(told(&mut stitcher, live(1)), ["deliver 1", "deliver 2"]);
    assert_eq!(
        told(&mut stitcher, replayed(1)),
        NOTHING,
        "it was handed over"
    );
    assert_eq!(told(&mut stitcher, replayed(2)), NOTHING);
    assert_eq!(told(&mut stitcher, Input::ReplayDone), NOTHING);
    assert!(stitcher.is_live());
}

#[test]
fn a_replay_that_ended_before_what_live_showed_is_followed_by_another() {
    let mut stitcher = replaying(1, 8);
    assert_eq!(told(&mut stitcher, live(3)), NOTHING);
    assert_eq!(told(&mut stitcher, replayed(1)), ["deliver 1"]);
    assert_eq!(
        told(&mut stitcher, Input::ReplayDone),
        ["replay from 2"],
        "it began before 2 was stored"
    );
    assert_eq!(told(&mut stitcher, replayed(2)), ["deliver 2", "deliver 3"]);
    assert_eq!(told(&mut stitcher, Input::ReplayDone), NOTHING);
    assert!(stitcher.is_live());
}

#[test]
fn a_gap_in_live_leads_back_to_the_log() {
    let mut stitcher = following(5, 8);
    assert_eq!(told(&mut stitcher, live(7)), ["replay from 5"]);
    assert!(!stitcher.is_live());
    assert_eq!(
        told(&mut stitcher, live(9)),
        NOTHING,
        "one replay at a time"
    );
    assert_eq!(told(&mut stitcher, live(5)), ["deliver 5"]);
    assert_eq!(told(&mut stitcher, replayed(5)), NOTHING);
    assert_eq!(told(&mut stitcher, replayed(6)), ["deliver 6", "deliver 7"]);
    assert_eq!(told(&mut stitcher, Input::ReplayDone), ["replay from 8"]);
}

#[test]
fn the_last_item_of_a_silent_log_shows_what_live_has_lost() {
    let mut stitcher = following(5, 8);
    assert_eq!(told(&mut stitcher, live(4)), NOTHING, "nothing was lost");
    assert_eq!(
        told(&mut stitcher, live(5)),
        ["deliver 5"],
        "only the last copy was"
    );
    assert_eq!(told(&mut stitcher, live(8)), ["replay from 6"]);
}

#[test]
fn a_lag_leads_back_to_the_log() {
    let mut stitcher = following(5, 8);
    assert_eq!(told(&mut stitcher, Input::LiveLagged), ["replay from 5"]);
    assert_eq!(stitcher.gap_end(), None, "nothing is known to be missed");
    assert_eq!(told(&mut stitcher, Input::ReplayDone), NOTHING);
    assert!(stitcher.is_live());
}

#[test]
fn a_lag_during_a_replay_makes_it_stale_so_that_the_log_is_read_once_more() {
    let mut stitcher = replaying(1, 8);
    assert_eq!(
        told(&mut stitcher, Input::LiveLagged),
        NOTHING,
        "one replay at a time"
    );
    assert_eq!(told(&mut stitcher, Input::LiveLagged), NOTHING);
    assert_eq!(
        told(&mut stitcher, Input::ReplayDone),
        ["replay from 1"],
        "it may have ended before the loss"
    );
    assert_eq!(
        told(&mut stitcher, Input::ReplayDone),
        NOTHING,
        "this one began after it"
    );
    assert!(stitcher.is_live());
}

#[test]
fn what_is_told_before_the_replay_was_asked_for_costs_no_second_one() {
    let mut stitcher = Stitcher::new(Seq(1), 8);
    stitcher.handle(Input::LiveLagged);
    stitcher.handle(Input::ReplayDone);
    assert!(
        !stitcher.is_live(),
        "no replay was under way, so none is done"
    );
    assert_eq!(actions(&mut stitcher), ["replay from 1"]);
    assert_eq!(told(&mut stitcher, Input::ReplayDone), NOTHING);
    assert!(stitcher.is_live());
    assert_eq!(told(&mut stitcher, Input::ReplayDone), NOTHING);
    assert!(stitcher.is_live());
}

#[test]
fn late_and_doubled_copies_are_dropped() {
    let mut stitcher = following(5, 8);
    assert_eq!(told(&mut stitcher, live(5)), ["deliver 5"]);
    assert_eq!(told(&mut stitcher, live(5)), NOTHING);
    assert_eq!(told(&mut stitcher, live(2)), NOTHING);
    assert_eq!(told(&mut stitcher, replayed(4)), NOTHING);
    assert!(stitcher.is_live() && stitcher.ahead().is_none());
}

#[test]
fn what_does_not_fit_ahead_is_read_from_the_log() {
    let mut stitcher = following(1, 1);
    assert_eq!(told(&mut stitcher, live(2)), ["replay from 1"]);
    assert_eq!(
        told(&mut stitcher, live(3)),
        NOTHING,
        "there is room for one"
    );
    assert_eq!(told(&mut stitcher, replayed(1)), ["deliver 1", "deliver 2"]);
    assert_eq!(told(&mut stitcher, Input::ReplayDone), ["replay from 3"]);
    assert_eq!(told(&mut stitcher, replayed(3)), ["deliver 3"]);
}

#[test]
fn a_reader_that_keeps_nothing_ahead_still_sees_a_gap() {
    let mut stitcher = following(1, 0);
    assert_eq!(told(&mut stitcher, live(3)), ["replay from 1"]);
    assert_eq!(stitcher.ahead(), None);
    assert_eq!(stitcher.gap_end(), Some(Seq(4)));
}

#[test]
fn what_a_replay_skips_is_told_missing_before_what_follows() {
    let mut stitcher = replaying(1, 8);
    assert_eq!(
        told(&mut stitcher, replayed(4)),
        ["missing 1-3", "deliver 4"]
    );
    assert_eq!(
        told(&mut stitcher, replayed(6)),
        ["missing 5-5", "deliver 6"]
    );
}

#[test]
fn what_the_log_has_lost_but_live_has_brought_is_handed_over() {
    let mut stitcher = replaying(1, 8);
    for seq in [3, 4, 6] {
        assert_eq!(told(&mut stitcher, live(seq)), NOTHING);
    }
    let all = [
        "missing 1-2",
        "deliver 3",
        "deliver 4",
        "missing 5-5",
        "deliver 6",
        "missing 7-7",
        "deliver 8",
    ];
    assert_eq!(told(&mut stitcher, replayed(8)), all);
}

#[test]
fn what_is_proven_gone_is_told_missing_so_that_the_log_is_not_read_for_ever() {
    let mut stitcher = following(1, 8);
    for seq in [3, 5] {
        stitcher.handle(live(seq));
    }
    assert_eq!(actions(&mut stitcher), ["replay from 1"]);
    assert_eq!(
        told(&mut stitcher, Input::ReplayDone),
        ["replay from 1"],
        "nobody says why it brought nothing"
    );
    assert_eq!(stitcher.gap_end(), Some(Seq(6)));
    assert_eq!(
        told(&mut stitcher, gap(6)),
        ["missing 1-2", "deliver 3", "missing 4-4", "deliver 5"]
    );
    assert_eq!(stitcher.gap_end(), None);
    assert_eq!(told(&mut stitcher, Input::ReplayDone), NOTHING);
    assert!(stitcher.is_live());
}

#[test]
fn a_replay_proves_nothing_about_what_was_first_seen_after_it_was_asked_for() {
    let mut stitcher = following(1, 8);
    assert_eq!(told(&mut stitcher, live(3)), ["replay from 1"]);
    assert_eq!(told(&mut stitcher, live(1)), ["deliver 1"]);
    assert_eq!(told(&mut stitcher, live(2)), ["deliver 2", "deliver 3"]);
    assert_eq!(told(&mut stitcher, live(6)), NOTHING);
    stitcher.handle(Input::ReplayDone);
    assert_eq!(
        stitcher.gap_end(),
        None,
        "4 and 5 may have been stored since"
    );
    assert_eq!(actions(&mut stitcher), ["replay from 4"]);
    stitcher.handle(Input::ReplayDone);
    assert_eq!(stitcher.gap_end(), Some(Seq(7)));
}

#[test]
fn what_is_proven_gone_is_no_news_to_who_has_it() {
    let mut stitcher = following(5, 8);
    assert_eq!(told(&mut stitcher, gap(5)), NOTHING);
    assert_eq!(told(&mut stitcher, gap(2)), NOTHING);
    assert_eq!(told(&mut stitcher, gap(7)), ["missing 5-6"]);
    assert!(stitcher.is_live());
    assert_eq!(told(&mut stitcher, live(7)), ["deliver 7"]);
}

#[test]
fn the_end_item_ends_it_from_wherever_it_comes() {
    let mut from_live = following(5, 8);
    assert_eq!(
        told(&mut from_live, Input::Live(end(5))),
        ["deliver 5", "end"]
    );
    let mut from_the_log = replaying(5, 8);
    assert_eq!(
        told(&mut from_the_log, Input::Replayed(end(5))),
        ["deliver 5", "end"]
    );
    let mut from_ahead = replaying(5, 8);
    assert_eq!(told(&mut from_ahead, Input::Live(end(6))), NOTHING);
    assert_eq!(
        told(&mut from_ahead, replayed(5)),
        ["deliver 5", "deliver 6", "end"]
    );
    for stitcher in [from_live, from_the_log, from_ahead] {
        assert!(stitcher.is_ended() && !stitcher.is_live());
    }
}

#[test]
fn nothing_leads_out_of_the_end() {
    let mut stitcher = replaying(5, 8);
    assert_eq!(
        told(&mut stitcher, Input::Live(end(5))),
        ["deliver 5", "end"]
    );
    let inputs = [
        live(5),
        live(6),
        live(9),
        replayed(5),
        replayed(6),
        replayed(9),
        gap(9),
    ];
    for input in inputs
        .into_iter()
        .chain([Input::ReplayDone, Input::LiveLagged])
    {
        assert_eq!(told(&mut stitcher, input), NOTHING);
        assert!(stitcher.is_ended() && stitcher.next_seq() == Seq(6));
    }
}

#[test]
fn what_a_faulty_writer_stored_behind_the_end_is_neither_handed_over_nor_kept() {
    let mut stitcher = replaying(5, 8);
    for input in [live(8), live(7), Input::Live(end(6))] {
        assert_eq!(told(&mut stitcher, input), NOTHING);
    }
    assert_eq!(
        told(&mut stitcher, replayed(5)),
        ["deliver 5", "deliver 6", "end"]
    );
    assert_eq!(stitcher.ahead(), None);

    for seq in [7, 9] {
        let mut stitcher = replaying(5, 8);
        assert_eq!(told(&mut stitcher, Input::Live(end(6))), NOTHING);
        assert_eq!(
            told(&mut stitcher, replayed(seq)),
            ["missing 5-5", "deliver 6", "end"]
        );
    }
}
