//! A job's state as a response. A large one is written in pieces, and keeps its memory until the
//! last piece.

use std::convert::Infallible;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::stream;

use super::memory::SplitReservation;
use super::turn::Turn;
use crate::config::TURN_BYTES;
use crate::wire::JobState;

/// A response with this state, which takes `reservation`.
pub(super) fn state(mut state: JobState, reservation: SplitReservation) -> Response {
    let output = std::mem::take(&mut state.output);
    let json = json(&state);
    // Every field before the output is an id, a number or a word, so the first match is the output.
    let split = json.find(OUTPUT).map_or(json.len(), |at| at + OUTPUT.len());
    let (head, tail) = json.split_at(split);
    if output.len() <= TURN_BYTES {
        return reservation.respond([head, &escaped(&output), tail].concat().into_bytes());
    }
    let mut response = [(header::CONTENT_TYPE, "application/json")].into_response();
    reservation.mark(&mut response);
    let pieces = Pieces {
        head: head.to_owned(),
        output,
        written: 0,
        tail: Some(tail.to_owned()),
        turn: Turn::default(),
        _reservation: reservation,
    };
    *response.body_mut() = Body::from_stream(stream::unfold(pieces, Pieces::next));
    response
}

/// What precedes the output's text in JSON.
const OUTPUT: &str = r#""output":""#;

/// A state whose output is written in pieces. Escaped control characters are six times as long.
struct Pieces {
    head: String,
    output: String,
    /// How many bytes of the output were written.
    written: usize,
    tail: Option<String>,
    turn: Turn,
    /// Held until the last piece is written.
    _reservation: SplitReservation,
}

impl Pieces {
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        self.turn.pause().await;
        let rest = &self.output[self.written..];
        let piece = if rest.is_empty() {
            self.tail.take()?
        } else {
            let end = rest.floor_char_boundary(TURN_BYTES);
            let piece = std::mem::take(&mut self.head) + &escaped(&rest[..end]);
            self.written += end;
            piece
        };
        self.turn.count(piece.len());
        Some((Ok(piece.into()), self))
    }
}

/// The text as a JSON string, without the quotes.
fn escaped(text: &str) -> String {
    let json = serde_json::to_string(text).unwrap_or_else(|_| unreachable!("text is always JSON"));
    json[1..json.len() - 1].to_owned()
}

fn json(state: &JobState) -> String {
    serde_json::to_string(state)
        .unwrap_or_else(|_| unreachable!("text and numbers are always JSON"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use crate::edge::memory::Memory;
    use crate::wire::limits::OUTPUT_MAX;
    use axum::body::to_bytes;
    use futures_util::StreamExt as _;

    #[tokio::test]
    async fn a_state_in_pieces_is_the_same_json_and_holds_its_room_until_the_last_one() {
        let memory = Memory::new(Budget::unlimited());
        for output in [
            "",
            "short \"\\ \u{1}",
            &"\u{1}é\"\n\\x".repeat(50_000),
            &"x".repeat(OUTPUT_MAX),
        ] {
            let state_of = || JobState {
                output: output.into(),
                ..JobState::new("output".parse().unwrap())
            };
            let reservation = memory.answers.reserve(state_of().size()).unwrap();
            let body = state(state_of(), reservation).into_body();
            assert!(memory.whole.used() >= output.len());
            let got = to_bytes(body, usize::MAX).await.unwrap();
            assert_eq!(got, json(&state_of()));
            drop(got);
            assert_eq!(memory.whole.used(), 0);
        }
    }

    #[tokio::test]
    async fn no_piece_is_larger_than_a_few_turns() {
        let memory = Memory::new(Budget::unlimited());
        let output = "\u{1}".repeat(OUTPUT_MAX);
        let reservation = memory.answers.reserve(output.len()).unwrap();
        let state = state(
            JobState {
                output,
                ..JobState::new("j".parse().unwrap())
            },
            reservation,
        );
        let mut pieces = state.into_body().into_data_stream();
        while let Some(piece) = pieces.next().await {
            assert!(piece.unwrap().len() <= 6 * TURN_BYTES + 512);
        }
    }
}
