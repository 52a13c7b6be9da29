//! Content negotiation (RFC 9110, section 12.5.1): whether a client prefers a stream of events or a
//! JSON document. It reads `Accept` and nothing else.

use axum::http::{HeaderMap, header};

/// The two forms of a job's events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `text/event-stream`, until the job ends.
    Stream,
    /// `application/json`, a part of the log.
    Page,
}

impl Form {
    const fn media_type(self) -> (&'static str, &'static str) {
        match self {
            Self::Stream => ("text", "event-stream"),
            Self::Page => ("application", "json"),
        }
    }
}

/// How strongly a client prefers one form. The fields are compared in their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
struct Preference {
    /// The weight; -1 when the client refuses the form, 0 when no range matches it.
    weight: f32,
    /// How exactly the range names the form: [`NAMED`] for its media type, 2 for its type, 1 for
    /// `*/*`.
    precision: u8,
    /// Minus the range's index in the list.
    earliness: isize,
}

/// The precision of a range that is the media type of a form.
const NAMED: u8 = 3;

/// The form that a client prefers, by default a stream. Of two forms with the same weight, the one
/// that is named more exactly, then the one that is named first: clients put their own types before
/// the `*/*` of their library.
pub(super) fn form(headers: &HeaderMap) -> Form {
    let ranges = ranges(headers);
    let preference = |form| preference(&ranges, form);
    if preference(Form::Page) > preference(Form::Stream) {
        Form::Page
    } else {
        Form::Stream
    }
}

/// Whether a client asks for a stream where the default is a JSON document: it names the media type
/// of a stream, and gives JSON no larger weight.
pub(super) fn names_stream(headers: &HeaderMap) -> bool {
    let ranges = ranges(headers);
    let stream = preference(&ranges, Form::Stream);
    let document = preference(&ranges, Form::Page);
    stream.precision == NAMED && stream.weight > 0.0 && stream.weight >= document.weight
}

fn ranges(headers: &HeaderMap) -> Vec<Range<'_>> {
    let lists = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|list| list.to_str().ok());
    lists
        .flat_map(|list| split(list, ','))
        .filter_map(range)
        .collect()
}

/// The most exact range that matches decides, whatever its weight.
fn preference(ranges: &[Range<'_>], form: Form) -> Preference {
    let (main, sub) = form.media_type();
    let mut best = Preference::default();
    for (index, range) in ranges.iter().enumerate() {
        let precision = match (range.main, range.sub) {
            ("*", "*") => 1,
            (range, "*") if range.eq_ignore_ascii_case(main) => 2,
            (a, b) if a.eq_ignore_ascii_case(main) && b.eq_ignore_ascii_case(sub) => NAMED,
            _ => continue,
        };
        if precision > best.precision {
            best = Preference {
                weight: if range.weight > 0.0 {
                    range.weight
                } else {
                    -1.0
                },
                precision,
                earliness: -index.cast_signed(),
            };
        }
    }
    best
}

/// A media range. Its parameters other than the weight are ignored: neither form has variants.
struct Range<'a> {
    main: &'a str,
    sub: &'a str,
    weight: f32,
}

/// Reads one element of the list; `None` for one that is malformed.
fn range(text: &str) -> Option<Range<'_>> {
    let mut parts = split(text, ';').into_iter().map(str::trim);
    let (main, sub) = parts.next()?.split_once('/')?;
    let weight = parts.find_map(|part| {
        let (name, value) = part.split_once('=')?;
        name.trim().eq_ignore_ascii_case("q").then(|| value.trim())
    });
    let weight = match weight {
        None => 1.0,
        // Clients send more digits than the three that are allowed.
        Some(text) => text
            .parse::<f32>()
            .ok()
            .filter(|weight| weight.is_finite())?
            .clamp(0.0, 1.0),
    };
    Some(Range {
        main: main.trim(),
        sub: sub.trim(),
        weight,
    })
}

/// Splits at a separator that is not inside a quoted string.
fn split(text: &str, separator: char) -> Vec<&str> {
    let mut quoted = false;
    let mut escaped = false;
    text.split(|char| {
        let is_escaped = std::mem::take(&mut escaped);
        match char {
            '\\' if quoted => escaped = !is_escaped,
            '"' if !is_escaped => quoted = !quoted,
            _ => {}
        }
        char == separator && !quoted
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::Form::{Page, Stream};
    use super::*;
    use axum::http::HeaderValue;

    fn accept(lists: &[&'static str]) -> Form {
        let lists = lists
            .iter()
            .map(|list| (header::ACCEPT, HeaderValue::from_static(list)));
        form(&lists.collect())
    }

    fn check(cases: &[(&'static str, Form)]) {
        for (list, form) in cases {
            assert_eq!(accept(&[list]), *form, "{list}");
        }
    }

    #[test]
    fn a_client_without_a_preference_gets_a_stream() {
        assert_eq!(accept(&[]), Stream);
        for list in [
            "",
            "*/*",
            "*/*;q=0.1",
            "image/png",
            "text/html,application/xhtml+xml,*/*;q=0.8",
            "*/*;q=0",
        ] {
            assert_eq!(accept(&[list]), Stream, "{list}");
        }
    }

    #[test]
    fn the_form_with_the_larger_weight_is_preferred() {
        check(&[
            ("text/event-stream;q=0.5, application/json", Page),
            ("text/event-stream, application/json;q=0.5", Stream),
            ("application/json;q=0.9, text/event-stream", Stream),
            (
                "application/json; Q=0.9 , text/event-stream ;\tq = 0.8",
                Page,
            ),
            (
                "application/json;q=0.001, text/event-stream;q=0.002",
                Stream,
            ),
            (
                "application/json;charset=utf-8;q=0.4, text/event-stream;q=0.5",
                Stream,
            ),
            (
                "application/json;charset=utf-8;q=0.6, text/event-stream;q=0.5",
                Page,
            ),
            ("text/*;q=0.5, application/*", Page),
            ("text/html, application/json;q=0.9, */*;q=0.8", Page),
        ]);
    }

    #[test]
    fn the_most_exact_range_decides_on_a_form() {
        check(&[
            ("application/json;q=0.1, */*;q=0.5", Stream),
            ("*/*;q=0.5, application/json;q=0.1", Stream),
            (
                "text/event-stream;q=0.1, text/*, application/json;q=0.5",
                Page,
            ),
            ("text/event-stream;q=0.1, */*", Page),
            (
                "application/*;q=0.2, application/json;q=0.9, text/event-stream;q=0.5",
                Page,
            ),
        ]);
    }

    #[test]
    fn a_form_with_weight_zero_is_refused() {
        check(&[
            ("application/json;q=0", Stream),
            ("application/json;q=0.000, text/*;q=0.001", Stream),
            ("text/event-stream;q=0", Page),
            ("text/event-stream;q=0, */*", Page),
            ("application/json;q=0, */*", Stream),
            ("text/*;q=0, application/json", Page),
            ("text/event-stream;q=0, application/json;q=0", Stream),
        ]);
    }

    #[test]
    fn at_equal_weight_the_more_exact_form_is_preferred_then_the_first() {
        check(&[
            ("application/json", Page),
            ("Application/JSON; charset=utf-8", Page),
            ("application/*", Page),
            ("text/*", Stream),
            ("application/json, text/plain, */*", Page),
            ("*/*, application/json", Page),
            ("text/*, application/json", Page),
            ("application/*, text/event-stream", Stream),
            ("text/event-stream, application/json", Stream),
            ("application/json, text/event-stream", Page),
            ("application/json;q=0.5, text/event-stream;q=0.5", Page),
        ]);
        assert_eq!(accept(&["image/png", "application/json, */*;q=0.1"]), Page);
        assert_eq!(accept(&["text/event-stream", "application/json"]), Stream);
    }

    #[test]
    fn a_stream_instead_of_a_document_must_be_named() {
        for (list, named) in [
            ("", false),
            ("*/*", false),
            ("text/*", false),
            ("application/json", false),
            ("text/event-stream", true),
            ("TEXT/Event-Stream; charset=utf-8", true),
            ("application/json, text/event-stream", true),
            ("application/json;q=0.5, text/event-stream;q=0.4", false),
            ("text/event-stream;q=0", false),
            ("text/event-stream;q=0.0, */*", false),
            ("text/event-stream-other", false),
            (r#"application/json;a="text/event-stream""#, false),
        ] {
            let value = HeaderValue::from_static(list);
            let headers = HeaderMap::from_iter([(header::ACCEPT, value)]);
            assert_eq!(names_stream(&headers), named, "{list}");
        }
    }

    #[test]
    fn malformed_elements_are_skipped() {
        check(&[
            (",, ;q=1, /, json, application/json", Page),
            ("application/json;q=high", Stream),
            ("application/json;q=", Stream),
            ("application/json;q=nan, */*", Stream),
            ("application/json;q", Page),
            ("application/json;q=0.00001, text/event-stream;q=0", Page),
            ("application/json;q=7, text/event-stream;q=0.9", Page),
            ("text/event-stream;q=-1, application/json;q=0.1", Page),
            (
                r#"application/json;a="x,y;q=0";q=0.9, text/event-stream;q=0.5"#,
                Page,
            ),
            (
                r#"text/html;a="\"application/json,", text/event-stream;q=0.1"#,
                Stream,
            ),
            (r#"text/html;a="application/json"#, Stream),
            ("*/json, text/*/x", Stream),
        ]);
    }
}
