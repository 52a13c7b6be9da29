//! Hides the terminal's cursor for a while. It draws nothing.

use std::io;

use console::Term;

/// A hidden cursor. Dropping it shows the cursor again, also after an error or a panic.
pub(super) struct HiddenCursor(Term);

impl HiddenCursor {
    pub(super) fn hide(term: &Term) -> io::Result<Self> {
        let hidden = Self(term.clone());
        term.hide_cursor()?;
        Ok(hidden)
    }
}

impl Drop for HiddenCursor {
    fn drop(&mut self) {
        // They fail only if the terminal is gone.
        let _ = self.0.show_cursor();
        let _ = self.0.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::panic::{self, AssertUnwindSafe};
    use std::path::Path;
    use tempfile::NamedTempFile;

    fn draw_once(term: &Term, file: &Path) {
        let _hidden = HiddenCursor::hide(term).unwrap();
        assert_eq!(fs::read_to_string(file).unwrap(), "\u{1b}[?25l");
        panic!("while it draws");
    }

    #[test]
    fn the_cursor_is_shown_again_even_after_a_panic() {
        let file = NamedTempFile::new().unwrap();
        let term = Term::read_write_pair(file.reopen().unwrap(), file.reopen().unwrap());
        let drawn = panic::catch_unwind(AssertUnwindSafe(|| draw_once(&term, file.path())));
        assert!(drawn.is_err());
        let written = fs::read_to_string(file.path()).unwrap();
        assert_eq!(written, "\u{1b}[?25l\u{1b}[?25h");
    }
}
