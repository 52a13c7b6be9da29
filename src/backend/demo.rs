//! The demo backend: generates text at a chosen speed, without a model. The same settings give the
//! same bytes everywhere. It is not a load generator: it waits for the log like any backend.
//!
//! # The text
//! How to reproduce it in another language. All arithmetic is on unsigned 64-bit numbers and wraps.
//!
//! `next()` is SplitMix64, with `state` = `seed` at the start:
//! ```text
//! state = state + 0x9E3779B97F4A7C15
//! z = state
//! z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
//! z = (z ^ (z >> 27)) * 0x94D049BB133111EB
//! return z ^ (z >> 31)
//! ```
//! Each word is generated as follows:
//! 1. `r = next()`. If `r % 16 = 0`, the word is number `(r / 16) % 8`, counted from 0, of
//!    `é naïve straße 日本 Привет 🙂 👩‍💻 🇯🇵`, whatever its length. Else it has `1 + (r / 16) % length` letters, and each
//!    is the letter number `next() % 26` of `a` to `z`, counted from 0.
//! 2. `s = next()`. After the word comes `".\n"` if `s % 64 = 0`, else `". "` if `s % 8 = 0`, else
//!    `" "`.
//!
//! Nothing follows the last word. A text of more words begins with the text of fewer words.

use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::{Backend, Failure, FailureCode, Finish, Job, Output, Stopped};
use crate::config::{
    DEMO_DUE_MAX, DEMO_LENGTH_MAX, DEMO_PIECE_BYTES, DEMO_RATE_MAX, DEMO_WORDS_MAX,
};

/// The words that are not made of `a` to `z`: two, three and four bytes per character, and several
/// characters that a reader sees as one.
const SPECIAL: [&str; 8] = ["é", "naïve", "straße", "日本", "Привет", "🙂", "👩‍💻", "🇯🇵"];

/// Outputs generated text.
#[derive(Clone, Copy, Debug, Default)]
pub struct Demo;

/// The input of a demo job. JSON `null` means all defaults; an unknown field is refused, except those
/// of a chat, to which the answer is the same text.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DemoSettings {
    /// How many words; at most 1,000,000.
    pub words: u32,
    /// Words per second, from 0 to 1,000,000; 0 is as fast as the log accepts them.
    pub rate: f64,
    /// The longest word, in letters, from 1 to 64. It does not apply to the few words with other
    /// letters.
    pub length: u32,
    /// Chooses the text.
    pub seed: u64,
    /// Ignored: the messages of a chat.
    pub messages: IgnoredAny,
    /// Ignored: an option of a chat completion.
    pub stream_options: IgnoredAny,
}

impl Default for DemoSettings {
    fn default() -> Self {
        Self {
            words: 100,
            rate: 20.0,
            length: 9,
            seed: 0,
            messages: IgnoredAny,
            stream_options: IgnoredAny,
        }
    }
}

impl DemoSettings {
    /// Reads a job's input.
    ///
    /// # Errors
    /// A [`Failure`] with the code `bad_input` whose message says what is wrong.
    pub fn from_input(input: &Value) -> Result<Self, Failure> {
        let settings = match input {
            Value::Null => Self::default(),
            Value::Object(_) => {
                Self::deserialize(input).map_err(|error| bad_input(error.to_string()))?
            }
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                return Err(bad_input("the input must be an object or null".into()));
            }
        };
        let limits = [
            (
                settings.words <= DEMO_WORDS_MAX,
                format!("words must be at most {DEMO_WORDS_MAX}"),
            ),
            (
                (0.0..=DEMO_RATE_MAX).contains(&settings.rate),
                format!("rate must be from 0 to {DEMO_RATE_MAX}"),
            ),
            (
                (1..=DEMO_LENGTH_MAX).contains(&settings.length),
                format!("length must be from 1 to {DEMO_LENGTH_MAX}"),
            ),
        ];
        match limits.into_iter().find(|(holds, _)| !holds) {
            Some((_, message)) => Err(bad_input(message)),
            None => Ok(settings),
        }
    }

    /// When word `index`, from 0, is due after the start.
    fn due(&self, index: u32) -> Duration {
        if self.rate == 0.0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(f64::from(index) / self.rate)
            .unwrap_or(DEMO_DUE_MAX)
            .min(DEMO_DUE_MAX)
    }
}

fn bad_input(message: String) -> Failure {
    Failure::fatal(FailureCode::BadInput, message)
}

/// The whole text of a job with these settings.
pub fn text(settings: &DemoSettings) -> String {
    words(settings).collect()
}

/// The words of the text, each with the separator after it.
pub fn words(settings: &DemoSettings) -> impl Iterator<Item = String> {
    let mut random = SplitMix64(settings.seed);
    let count = settings.words;
    let length = u64::from(settings.length);
    (1..=count).map(move |number| {
        let mut word = random.word(length);
        let after = random.after();
        if number < count {
            word.push_str(after);
        }
        word
    })
}

/// The generator of the [text](self#the-text).
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn word(&mut self, length: u64) -> String {
        let r = self.next();
        if r.is_multiple_of(16) {
            return SPECIAL[(r / 16 % 8) as usize].to_owned();
        }
        (0..=r / 16 % length)
            .map(|_| char::from(b'a' + (self.next() % 26) as u8))
            .collect()
    }

    fn after(&mut self) -> &'static str {
        let s = self.next();
        if s.is_multiple_of(64) {
            ".\n"
        } else if s.is_multiple_of(8) {
            ". "
        } else {
            " "
        }
    }
}

impl Backend for Demo {
    async fn run(&self, job: Job, out: Output) -> Result<Finish, Failure> {
        let settings = DemoSettings::from_input(&job.input)?;
        match job
            .stop
            .run_until_cancelled(output_words(&settings, &out))
            .await
        {
            Some(Ok(())) => Ok(Finish {
                usage: Some(json!({ "words": settings.words })),
                finish_reason: Some("stop".into()),
            }),
            Some(Err(stopped)) => Err(stopped.into()),
            None => Err(Stopped.into()),
        }
    }
}

/// Outputs each word when it is due, counted from the start so that delays do not add up. Words
/// that are due together are one piece.
async fn output_words(settings: &DemoSettings, out: &Output) -> Result<(), Stopped> {
    let start = Instant::now();
    let mut words = (0..).zip(words(settings)).peekable();
    let mut piece = String::new();
    while let Some(&(next, _)) = words.peek() {
        sleep_until(start + settings.due(next)).await;
        let passed = start.elapsed();
        while piece.len() < DEMO_PIECE_BYTES
            && let Some((_, word)) = words.next_if(|(index, _)| settings.due(*index) <= passed)
        {
            piece.push_str(&word);
        }
        out.text(&piece).await?;
        piece.clear();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Content, Piece, Retry};
    use tokio::sync::mpsc::Receiver;

    fn job(input: Value) -> Job {
        crate::backend::tests::job("j1", "demo", input)
    }

    /// Every piece of text, and when it arrived.
    async fn pieces(mut taken: Receiver<Piece>) -> Vec<(Duration, String)> {
        let start = Instant::now();
        let mut pieces = Vec::new();
        while let Some(Piece { content, .. }) = taken.recv().await {
            match content {
                Content::Text { text, .. } => pieces.push((start.elapsed(), text)),
                Content::Data(data) => panic!("the demo output data: {data}"),
            }
        }
        pieces
    }

    async fn run(input: Value) -> (Result<Finish, Failure>, Vec<(Duration, String)>) {
        let (out, taken) = Output::new();
        tokio::join!(Demo.run(job(input), out), pieces(taken))
    }

    fn joined(pieces: &[(Duration, String)]) -> String {
        pieces.iter().map(|(_, text)| text.as_str()).collect()
    }

    fn refused(input: &Value) -> String {
        let failure = DemoSettings::from_input(input).unwrap_err();
        assert_eq!(
            (failure.code.as_str(), failure.retry),
            ("bad_input", Retry::Never)
        );
        failure.message
    }

    #[test]
    fn the_generator_is_splitmix64() {
        // The first numbers of Vigna's splitmix64.c for the seed 1234567.
        let mut random = SplitMix64(1_234_567);
        assert_eq!(
            [random.next(), random.next(), random.next()],
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423
            ]
        );
    }

    #[test]
    fn the_text_of_a_seed_never_changes() {
        let settings = DemoSettings {
            words: 24,
            ..DemoSettings::default()
        };
        assert_eq!(
            text(&settings),
            concat!(
                "abmrq lat dr ce fowpfq. wrfsh tfdhc nwhhxbg pzutv. nved fmri.\n",
                "Привет cfnavno. gjzpkg phdvluvd q ovwypix. tsy Привет tksbsuzwl lsjyuinrq qzrvgatg xdknph tpfg"
            )
        );
    }

    #[test]
    fn words_have_the_configured_number_and_length_and_some_have_other_letters() {
        let settings = DemoSettings {
            words: 5_000,
            length: 3,
            seed: 7,
            ..DemoSettings::default()
        };
        let text = text(&settings);
        let words: Vec<&str> = text
            .split_whitespace()
            .map(|word| word.trim_end_matches('.'))
            .collect();
        assert_eq!(words.len(), 5_000);
        let special = words.iter().filter(|word| SPECIAL.contains(word)).count();
        assert!((200..450).contains(&special), "{special} of 5000");
        for length in 1..=3 {
            assert!(
                words
                    .iter()
                    .any(|word| word.is_ascii() && word.len() == length)
            );
        }
        assert!(
            words
                .iter()
                .all(|word| word.len() <= 3 || SPECIAL.contains(word))
        );
        assert!(SPECIAL.iter().all(|word| words.contains(word)));
        assert!(text.contains(". ") && text.contains(".\n"));
    }

    #[test]
    fn a_longer_text_begins_with_the_shorter_one() {
        let of = |words| {
            text(&DemoSettings {
                words,
                seed: 3,
                ..DemoSettings::default()
            })
        };
        assert_eq!(of(0), "");
        for count in 0..50 {
            assert!(of(count + 1).starts_with(&of(count)));
        }
    }

    #[test]
    fn an_invalid_input_is_refused_with_a_reason() {
        assert_eq!(
            DemoSettings::from_input(&Value::Null),
            Ok(DemoSettings::default())
        );
        assert_eq!(
            DemoSettings::from_input(&json!({})),
            Ok(DemoSettings::default())
        );
        assert_eq!(
            DemoSettings::from_input(
                &json!({"words": 5, "rate": 0, "length": 64, "seed": u64::MAX})
            ),
            Ok(DemoSettings {
                words: 5,
                rate: 0.0,
                length: 64,
                seed: u64::MAX,
                ..DemoSettings::default()
            })
        );
        assert!(refused(&json!({"wrods": 5})).contains("wrods"));
        assert!(refused(&json!({"words": 1_000_001})).contains("words"));
        assert!(refused(&json!({"rate": -1})).contains("rate"));
        assert!(refused(&json!({"rate": 1_000_001})).contains("rate"));
        assert!(refused(&json!({"length": 0})).contains("length"));
        assert!(refused(&json!({"length": 65})).contains("length"));
        for input in [
            json!({"words": -1}),
            json!({"seed": -1}),
            json!("five"),
            json!([]),
        ] {
            refused(&input);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_outputs_exactly_the_text_and_reports_the_number_of_words() {
        let (end, pieces) = run(json!({"words": 300, "rate": 50, "seed": 9})).await;
        let finish = Finish {
            usage: Some(json!({"words": 300})),
            finish_reason: Some("stop".into()),
        };
        assert_eq!(end, Ok(finish));
        assert_eq!(
            joined(&pieces),
            text(&DemoSettings {
                words: 300,
                seed: 9,
                ..DemoSettings::default()
            })
        );
    }

    #[tokio::test(start_paused = true)]
    async fn each_word_is_output_at_its_time_counted_from_the_start() {
        let (_, pieces) = run(json!({"words": 101, "rate": 20})).await;
        assert_eq!(pieces.len(), 101);
        for (index, (at, _)) in (0u32..).zip(&pieces) {
            let due = Duration::from_millis(50) * index;
            assert!(
                *at >= due && *at <= due + Duration::from_millis(1),
                "word {index} at {at:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn words_that_are_due_together_are_one_piece() {
        let (_, pieces) = run(json!({"words": 10_000, "rate": 10_000})).await;
        assert!(
            (500..=1_001).contains(&pieces.len()),
            "{} pieces",
            pieces.len()
        );
        let last = pieces.last().unwrap().0;
        assert!((999..=1_001).contains(&last.as_millis()), "{last:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_of_zero_takes_no_time() {
        let settings = DemoSettings {
            words: 50_000,
            ..DemoSettings::default()
        };
        let (end, pieces) = run(json!({"words": 50_000, "rate": 0})).await;
        assert!(end.is_ok());
        assert_eq!(joined(&pieces), text(&settings));
        assert_eq!(pieces.last().unwrap().0, Duration::ZERO);
        assert!(
            pieces
                .iter()
                .all(|(_, text)| text.len() < DEMO_PIECE_BYTES + 80)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_stall_all_due_words_follow_at_once() {
        let (out, mut taken) = Output::new();
        let settings = DemoSettings {
            words: 3_000,
            rate: 1_000.0,
            ..DemoSettings::default()
        };
        let slow = async {
            let start = Instant::now();
            let first = taken.recv().await.unwrap();
            tokio::time::sleep(Duration::from_secs(2)).await;
            let Content::Text { text, .. } = first.content else {
                panic!("no text")
            };
            let rest = pieces(taken).await;
            (text + &joined(&rest), start.elapsed())
        };
        let (end, (seen, took)) = tokio::join!(
            Demo.run(job(json!({"words": 3_000, "rate": 1_000})), out),
            slow
        );
        assert!(end.is_ok());
        assert_eq!(seen, text(&settings));
        assert!(took <= Duration::from_millis(3_001), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_near_zero_waits_and_a_stop_ends_it() {
        let (out, taken) = Output::new();
        let job = job(json!({"words": 2, "rate": 1e-300}));
        let stop = job.stop.clone();
        let later = async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            stop.cancel();
        };
        let (end, pieces, ()) = tokio::join!(Demo.run(job, out), pieces(taken), later);
        assert_eq!(end.unwrap_err().code, "stopped");
        assert_eq!(pieces.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_a_job_that_waits_for_the_log() {
        let (out, taken) = Output::new();
        let job = job(json!({"words": 1_000_000, "rate": 0}));
        let stop = job.stop.clone();
        let later = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            stop.cancel();
        };
        let (end, ()) = tokio::join!(Demo.run(job, out), later);
        assert_eq!(end.unwrap_err().code, "stopped");
        drop(taken);
    }
}
