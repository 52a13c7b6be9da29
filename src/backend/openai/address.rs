//! The address of a model server's chat completions.

use url::Url;

/// The base URL, with the path of chat completions unless it has it already. `None` if it is not an
/// http or https address without user and password.
pub(super) fn chat_completions(base_url: &str) -> Option<Url> {
    let mut address = Url::parse(base_url.trim()).ok()?;
    let has_login = !address.username().is_empty() || address.password().is_some();
    if has_login || !matches!(address.scheme(), "http" | "https") {
        return None;
    }
    let path = address.path().trim_end_matches('/');
    let path = path
        .strip_suffix("/chat/completions")
        .unwrap_or(path)
        .trim_end_matches('/')
        .to_owned();
    address.set_path(&format!("{path}/chat/completions"));
    Some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_the_base_url_with_the_path_of_chat_completions() {
        for (base_url, expected) in [
            ("http://h:1/v1", "http://h:1/v1/chat/completions"),
            ("https://h/v1/", "https://h/v1/chat/completions"),
            ("https://h", "https://h/chat/completions"),
            ("https://h/v1//", "https://h/v1/chat/completions"),
            (
                "http://h/v1/chat/completions",
                "http://h/v1/chat/completions",
            ),
            (
                " http://h/v1/chat/completions/ ",
                "http://h/v1/chat/completions",
            ),
            (
                "http://h/chat/completions?key=1",
                "http://h/chat/completions?key=1",
            ),
            (
                "https://h/a/b?api-version=1",
                "https://h/a/b/chat/completions?api-version=1",
            ),
        ] {
            assert_eq!(chat_completions(base_url).unwrap().as_str(), expected);
        }
        for bad in [
            "",
            "h:1",
            "localhost/v1",
            "ftp://h/",
            "https://u:p@h/v1",
            "https://u@h/",
            "data:x",
        ] {
            assert_eq!(chat_completions(bad), None, "{bad}");
        }
    }
}
