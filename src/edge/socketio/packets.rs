//! The packets of a post, without what the library would hold for their client, in memory that is
//! not counted.

use crate::config::NAMESPACE_MAX;

/// Between the packets of a post.
const SEPARATOR: u8 = 0x1e;

/// The body of a post without its attachments, and without packets that join a namespace with a long
/// name. `None` if it has neither.
///
/// The library keeps a packet until it has all its attachments, without a deadline. No request has
/// any, so each packet that announces some gets an empty one instead, which is enough for the
/// refusal; they may arrive in later posts. The refusal of a namespace repeats its name, and is queued
/// until the client polls.
pub(super) fn without_held(body: &[u8]) -> Option<Vec<u8>> {
    let is_kept = |packet: &[u8]| {
        !is_attachment(packet) && !names_too_much(packet) && with_attachments(packet).is_none()
    };
    if packets(body).all(is_kept) {
        return None;
    }
    let mut kept = Vec::with_capacity(body.len());
    let passed = packets(body).filter(|packet| !is_attachment(packet) && !names_too_much(packet));
    for packet in passed {
        if !kept.is_empty() {
            kept.push(SEPARATOR);
        }
        match with_attachments(packet) {
            Some((kind, rest)) => {
                kept.extend_from_slice(&[b'4', kind, b'1', b'-']);
                kept.extend_from_slice(rest);
                kept.extend_from_slice(&[SEPARATOR, b'b']);
            }
            None => kept.extend_from_slice(packet),
        }
    }
    Some(kept)
}

fn packets(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    body.split(|byte| *byte == SEPARATOR)
}

fn is_attachment(packet: &[u8]) -> bool {
    packet.first() == Some(&b'b')
}

/// Whether a packet joins a namespace whose name is too long.
fn names_too_much(packet: &[u8]) -> bool {
    let [b'4', b'0', name @ ..] = packet else {
        return false;
    };
    let mut parts = name.split(|byte| *byte == b',');
    name.first() == Some(&b'/') && parts.next().is_some_and(|name| name.len() > NAMESPACE_MAX)
}

/// The kind of a packet that announces attachments, and the rest after their number. The library
/// refuses a number that is none.
fn with_attachments(packet: &[u8]) -> Option<(u8, &[u8])> {
    let [b'4', kind @ (b'5' | b'6'), announced @ ..] = packet else {
        return None;
    };
    let end = announced.iter().position(|byte| !byte.is_ascii_digit())?;
    let (count, rest) = announced.split_at(end);
    let rest = rest.strip_prefix(b"-")?;
    let has_some = count.iter().any(|digit| *digit != b'0');
    has_some.then_some((*kind, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(body: &str) -> String {
        let kept = without_held(body.as_bytes());
        kept.map_or_else(|| body.to_owned(), |kept| String::from_utf8(kept).unwrap())
    }

    #[test]
    fn a_packet_with_attachments_is_complete_without_them() {
        let argument = r#"["x",{"_placeholder":true,"num":0}]"#;
        let complete = format!("451-7{argument}\x1eb");
        assert_eq!(passed(&format!("451-7{argument}")), complete);
        assert_eq!(
            passed(&format!("452-7{argument}\x1ebAAAA\x1ebAAAA")),
            complete
        );
        assert_eq!(passed(&format!("4520000-7{argument}")), complete);
        let others = format!("3\x1e451-{argument}\x1ebAAAA\x1e42[\"y\"]\x1e461-3[]");
        let expected = format!("3\x1e451-{argument}\x1eb\x1e42[\"y\"]\x1e461-3[]\x1eb");
        assert_eq!(passed(&others), expected);
        // The rest of an emit that began in another post.
        assert_eq!(passed("bAAAA\x1ebAAAA"), "");
        assert_eq!(passed("bAAAA\x1e3"), "3");
    }

    #[test]
    fn packets_that_the_library_holds_no_longer_than_the_post_are_unchanged() {
        let none = r#"450-["x"]"#;
        let invalid = [
            "45-[]", "451[]", "45", "451", "4", "", "6", "51-[]", "45a1-[]",
        ];
        let others = [
            "40",
            "40{\"token\":\"a-b\"}",
            "42[\"b\",1]",
            "3",
            "2probe",
            none,
        ];
        for packet in others.into_iter().chain(invalid) {
            assert_eq!(without_held(packet.as_bytes()), None, "{packet}");
            let twice = format!("{packet}\x1e{packet}");
            assert_eq!(without_held(twice.as_bytes()), None, "{packet}");
        }
    }

    #[test]
    fn a_namespace_with_a_long_name_is_not_joined() {
        let fits = format!("40/{},{{}}", "n".repeat(NAMESPACE_MAX - 1));
        let long = format!("40/{}", "n".repeat(NAMESPACE_MAX));
        let token = format!("40{{\"token\":\"{}\"}}", "t".repeat(1000));
        let posted = format!("{fits}\x1e{long}\x1e{long},{{}}\x1e{token}");
        assert_eq!(passed(&posted), format!("{fits}\x1e{token}"));
    }
}
