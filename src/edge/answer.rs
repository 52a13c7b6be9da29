//! JSON as a response: a job's state, or what another protocol shows of it. A large one is written in
//! pieces, and keeps its memory until the last piece.

use std::convert::Infallible;
use std::mem;
use std::sync::Arc;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::stream;

use super::json_pieces::JsonPieces;
use super::memory::SplitReservation;
use super::turn::Turn;
use crate::wire::JobState;

/// A response with this state, which takes `reservation`.
pub(super) fn state(mut state: JobState, reservation: SplitReservation) -> Response {
    let output = mem::take(&mut state.output);
    let state = to_json(&state);
    // Every field before the output is an id, a number or a word, so the first match is the output.
    let at = state
        .find(OUTPUT)
        .map_or(state.len(), |at| at + OUTPUT.len());
    let (head, rest) = state.split_at(at);
    let mut pieces = JsonPieces::default();
    pieces.put(head);
    pieces.append(JsonPieces::text(Arc::new(output)));
    pieces.put(rest.strip_prefix(EMPTY).unwrap_or(rest));
    json(pieces, reservation)
}

/// What precedes the output in JSON.
const OUTPUT: &str = r#""output":"#;
/// The output while it is taken out.
const EMPTY: &str = r#""""#;

/// A response with this JSON, which takes `reservation`.
pub(super) fn json(mut pieces: JsonPieces, reservation: SplitReservation) -> Response {
    let mut first = Vec::new();
    pieces.write_to(&mut first);
    if pieces.is_empty() {
        return reservation.respond(first);
    }
    let mut response = [(header::CONTENT_TYPE, "application/json")].into_response();
    reservation.mark(&mut response);
    let rest = RestOfBody {
        first,
        pieces,
        turn: Turn::default(),
        _reservation: reservation,
    };
    *response.body_mut() = Body::from_stream(stream::unfold(rest, RestOfBody::next));
    response
}

/// A body that is written in pieces.
struct RestOfBody {
    /// Empty once it is written.
    first: Vec<u8>,
    pieces: JsonPieces,
    turn: Turn,
    /// Held until the last piece is written.
    _reservation: SplitReservation,
}

impl RestOfBody {
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        self.turn.pause().await;
        let mut piece = mem::take(&mut self.first);
        if piece.is_empty() {
            self.pieces.write_to(&mut piece);
        }
        if piece.is_empty() {
            return None;
        }
        self.turn.count(piece.len());
        Some((Ok(piece.into()), self))
    }
}

fn to_json(state: &JobState) -> String {
    serde_json::to_string(state)
        .unwrap_or_else(|_| unreachable!("text and numbers are always JSON"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use crate::config::PIECE_BYTES;
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
            assert_eq!(got, to_json(&state_of()));
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
            assert!(piece.unwrap().len() <= 6 * PIECE_BYTES + 512);
        }
    }
}
