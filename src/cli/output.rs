//! What the user sees: results on standard output, complaints on standard error.

use std::io::{self, Write as _};

use serde::Serialize;

use super::exit::{Exit, Failure};

/// Where results go, and in which shape.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// JSON for programs instead of tables for people.
    pub json: bool,
}

impl Output {
    /// Shows one result: as a line of JSON, or as `human` words it.
    ///
    /// # Errors
    /// If standard output is closed or broken.
    pub fn show<T: Serialize>(
        &self,
        result: &T,
        human: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        if !self.json {
            return print(human(result).as_bytes());
        }
        let mut line = serde_json::to_vec(result).map_err(Failure::runtime)?;
        line.push(b'\n');
        print(&line)
    }
}

/// Writes to standard output.
///
/// # Errors
/// [`Failure::ClosedPipe`] if nobody reads it any more.
pub fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::ClosedPipe,
        _ => Failure::runtime(format!("cannot write to standard output: {error}")),
    })
}

/// Tells the user why it ended, and the system with which code.
pub fn report(failure: &Failure) -> Exit {
    match failure {
        Failure::ClosedPipe => Exit::Ok,
        Failure::Told { exit, message, hint } => {
            let mut text = format!("error: {message}\n");
            if let Some(hint) = hint {
                text.push_str(&format!("hint: {hint}\n"));
            }
            // With standard error gone there is nobody left to tell.
            let _ = io::stderr().lock().write_all(text.as_bytes());
            *exit
        }
    }
}

/// Columns of text under a heading, each as wide as its widest cell.
#[derive(Clone, Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with a heading.
    #[must_use]
    pub fn new(heading: &[&str]) -> Self {
        Self { rows: vec![heading.iter().map(|cell| cell.to_uppercase()).collect()] }
    }

    /// A table without: names on the left, what they stand for on the right.
    #[must_use]
    pub fn of_facts() -> Self {
        Self { rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = impl ToString>) -> &mut Self {
        self.rows.push(cells.into_iter().map(|cell| cell.to_string()).collect());
        self
    }

    /// The table as lines of text, without spaces at their ends.
    #[must_use]
    pub fn to_text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells = row.iter().zip(&widths);
            let line: String = cells.map(|(cell, width)| format!("{cell:<width$}  ")).collect();
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_under_their_heading() {
        let mut table = Table::new(&["topic", "partitions"]);
        table.row(["plant/line1", "4"]).row(["ä", "12"]);
        assert_eq!(table.to_text(), "TOPIC        PARTITIONS\nplant/line1  4\nä            12\n");
    }
}
