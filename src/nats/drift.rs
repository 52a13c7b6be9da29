//! How existing streams differ from their declarations, and what `setup` changed. It does no I/O.

use std::fmt;

use serde_json::Value;

/// A setting of a stream that was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub(super) stream: String,
    pub(super) field: String,
    pub(super) before: Value,
    pub(super) after: Value,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            stream,
            field,
            before,
            after,
        } = self;
        write!(
            f,
            "stream {stream}: {field} changed from {before} to {after}"
        )
    }
}

/// A stream that exists and differs from its declaration.
#[derive(Debug)]
pub struct Drift {
    stream: String,
    /// The name of each field, its existing value, and its declared value.
    fields: Vec<(String, Value, Value)>,
}

impl Drift {
    /// How a stream's configuration differs from its declaration, except in the fields `except`;
    /// `None` when it does not. Only declared fields are compared.
    pub(super) fn between(
        stream: &str,
        existing: &Value,
        declared: &Value,
        except: &[&str],
    ) -> Option<Self> {
        let mut fields = Vec::new();
        compare("", existing, declared, &mut fields);
        fields.retain(|(field, ..)| !except.contains(&field.as_str()));
        (!fields.is_empty()).then(|| Self {
            stream: stream.to_owned(),
            fields,
        })
    }
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "stream {} exists and differs from its declaration; it was not changed:",
            self.stream
        )?;
        for (field, existing, declared) in &self.fields {
            write!(f, "\n  {field}: there {existing}, declared {declared}")?;
        }
        Ok(())
    }
}

/// Collects the declared fields that have another value.
fn compare(
    path: &str,
    existing: &Value,
    declared: &Value,
    fields: &mut Vec<(String, Value, Value)>,
) {
    if let Value::Object(map) = declared {
        for (key, declared) in map {
            let path = if path.is_empty() {
                key.clone()
            } else {
                format!("{path}.{key}")
            };
            compare(&path, &existing[key], declared, fields);
        }
    } else if existing != declared {
        fields.push((path.to_owned(), existing.clone(), declared.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn drift_is_reported_field_by_field() {
        let existing = json!({"a": {"b": 1, "x": 9}, "c": [1], "d": 4});
        let declared = json!({"a": {"b": 2}, "c": [1], "d": 5});
        let drift = Drift::between("S", &existing, &declared, &["d"]).unwrap();
        let text = drift.to_string();
        assert!(
            text.ends_with("changed:\n  a.b: there 1, declared 2"),
            "{text}"
        );
        assert!(Drift::between("S", &existing, &existing, &[]).is_none());
    }
}
