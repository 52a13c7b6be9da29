//! Prints tables.

use std::io::{self, Write as _};

/// Prints rows below a head, in columns as wide as their widest cell.
pub(super) fn print<const COLUMNS: usize>(
    head: [&str; COLUMNS],
    rows: &[[String; COLUMNS]],
) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text(head, rows).as_bytes())?;
    out.flush()
}

/// The same as text.
pub(super) fn text<const COLUMNS: usize>(
    head: [&str; COLUMNS],
    rows: &[[String; COLUMNS]],
) -> String {
    let head = head.map(str::to_owned);
    let all = || std::iter::once(&head).chain(rows);
    let widths: [usize; COLUMNS] =
        std::array::from_fn(|column| all().map(|row| row[column].len()).max().unwrap_or(0));
    let mut text = String::new();
    for row in all() {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}
