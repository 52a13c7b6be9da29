//! The environment of a program: the few variables that every program needs, the job, and the
//! variables that the operator names. It does not contain the worker's secrets: the program may be
//! from someone else, and a model may choose what it runs.

use std::ffi::{OsStr, OsString};
use std::str::FromStr;

/// The worker's variables that every program gets: paths, the language, the time zone, the user.
const INHERITED: [&str; 6] = ["PATH", "HOME", "LANG", "TZ", "TMPDIR", "USER"];
/// The prefix of further inherited variables: the parts of the locale.
const INHERITED_PREFIX: &str = "LC_";
/// Set for every program. Otherwise Python buffers 8 KiB of what it prints to a pipe.
const SET: [(&str, &str); 1] = [("PYTHONUNBUFFERED", "1")];

/// A variable that the operator names for the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Variable {
    /// The worker's own value, if it has one.
    Inherit(String),
    /// This value.
    Set(String, String),
}

/// The text does not name a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a variable is NAME or NAME=value")]
pub struct BadVariable;

impl FromStr for Variable {
    type Err = BadVariable;

    fn from_str(text: &str) -> Result<Self, BadVariable> {
        let (name, value) = text
            .split_once('=')
            .map_or((text, None), |(name, value)| (name, Some(value)));
        // The operating system does not accept NUL.
        if name.is_empty() || text.contains('\0') {
            return Err(BadVariable);
        }
        let name = name.to_owned();
        Ok(match value {
            Some(value) => Self::Set(name, value.to_owned()),
            None => Self::Inherit(name),
        })
    }
}

/// The program's variables, made from the worker's own. Of two with the same name, the later one
/// applies.
pub(super) fn of_program(
    own: impl Iterator<Item = (OsString, OsString)>,
    named: &[Variable],
) -> Vec<(OsString, OsString)> {
    let own: Vec<_> = own.collect();
    let inherited = |name: &OsStr| {
        let name = name.as_encoded_bytes();
        INHERITED
            .iter()
            .any(|inherited| name == inherited.as_bytes())
            || name.starts_with(INHERITED_PREFIX.as_bytes())
    };
    let mut variables: Vec<_> = own
        .iter()
        .filter(|(name, _)| inherited(name))
        .cloned()
        .collect();
    variables.extend(SET.map(|(name, value)| (name.into(), value.into())));
    for variable in named {
        match variable {
            Variable::Inherit(name) => {
                variables.extend(
                    own.iter()
                        .filter(|(own, _)| own == OsStr::new(name))
                        .cloned(),
                );
            }
            Variable::Set(name, value) => variables.push((name.into(), value.into())),
        }
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn of(own: &[(&str, &str)], named: &[&str]) -> BTreeMap<String, String> {
        let own = own.iter().map(|&(name, value)| (name.into(), value.into()));
        let named: Vec<_> = named.iter().map(|text| text.parse().unwrap()).collect();
        let text = |text: OsString| text.into_string().unwrap();
        of_program(own, &named)
            .into_iter()
            .map(|(name, value)| (text(name), text(value)))
            .collect()
    }

    fn map(variables: &[(&str, &str)]) -> BTreeMap<String, String> {
        variables
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    #[test]
    fn a_program_gets_the_usual_variables_and_no_secret() {
        let kept = [
            ("PATH", "/bin"),
            ("HOME", "/h"),
            ("LANG", "C"),
            ("LC_ALL", "C.UTF-8"),
            ("LC_TIME", "de"),
            ("TZ", "UTC"),
            ("TMPDIR", "/t"),
            ("USER", "u"),
        ];
        let secrets = [
            ("TAILWATER_NATS", "nats://u:p@h"),
            ("TAILWATER_NATS_PASSWORD", "p"),
            ("OPENAI_API_KEY", "sk-1"),
            ("TAILWATER_WEBHOOK_SECRET", "whsec_1"),
            ("AWS_SECRET_ACCESS_KEY", "a"),
            ("PATHS", "x"),
            ("XLC_ALL", "x"),
        ];
        let expected = map(&[&kept[..], &[("PYTHONUNBUFFERED", "1")]].concat());
        assert_eq!(of(&[&kept[..], &secrets[..]].concat(), &[]), expected);
    }

    #[test]
    fn variables_that_the_operator_names_override_the_others() {
        let own = [("PATH", "/bin"), ("HF_HOME", "/models"), ("OTHER", "x")];
        let named = [
            "HF_HOME",
            "ABSENT",
            "MODE=fast=yes",
            "EMPTY=",
            "PATH=/opt",
            "PYTHONUNBUFFERED=",
        ];
        let expected = [
            ("PATH", "/opt"),
            ("HF_HOME", "/models"),
            ("MODE", "fast=yes"),
            ("EMPTY", ""),
            ("PYTHONUNBUFFERED", ""),
        ];
        assert_eq!(of(&own, &named), map(&expected));
    }

    #[test]
    fn invalid_variables_are_refused() {
        for bad in ["", "=", "=x", "A\0", "A=\0"] {
            assert_eq!(bad.parse::<Variable>(), Err(BadVariable), "{bad:?}");
        }
    }
}
