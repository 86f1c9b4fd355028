//! Text in columns, for people.
//!
//! What others wrote (names, descriptions, messages) never reaches a terminal's controls: see [`printable`].

use std::borrow::Cow;

/// Whether the reader sees colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Paint {
    Plain,
    Colours,
}

/// What a cell's colour means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Neutral,
    Good,
    Passing,
    Bad,
}

impl Tone {
    /// `text` in this tone's colour.
    pub(super) fn paint(self, text: &str, paint: Paint) -> String {
        let colour = match (paint, self) {
            (Paint::Plain, _) | (Paint::Colours, Self::Neutral) => return text.to_owned(),
            (Paint::Colours, Self::Good) => 32,
            (Paint::Colours, Self::Passing) => 33,
            (Paint::Colours, Self::Bad) => 31,
        };
        format!("\u{1b}[{colour}m{text}\u{1b}[0m")
    }
}

#[derive(Debug)]
pub(super) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    pub(super) fn toned(text: impl Into<String>, tone: Tone) -> Self {
        let text = text.into();
        let tone = if text.is_empty() { Tone::Neutral } else { tone };
        Self { text, tone }
    }

    /// For text that is not in columns.
    pub(super) fn painted(&self, paint: Paint) -> String {
        self.tone.paint(&printable(&self.text), paint)
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::toned(text, Tone::Neutral)
    }
}

/// Rows under headings, each column as wide as its widest cell.
pub(super) struct Table {
    headings: Vec<Cell>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(super) fn new<const N: usize>(headings: [&str; N]) -> Self {
        Self { headings: headings.map(Cell::from).into(), rows: Vec::new() }
    }

    /// Names and values, without headings.
    pub(super) fn of_fields() -> Self {
        Self { headings: Vec::new(), rows: Vec::new() }
    }

    pub(super) fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        self.rows.push(cells.into());
    }

    /// A name and its value; nothing for an empty value.
    pub(super) fn field(&mut self, name: &str, value: impl Into<Cell>) {
        let value = value.into();
        if !value.text.is_empty() {
            self.row([format!("{name}:").into(), value]);
        }
    }

    pub(super) fn render(&self, paint: Paint) -> String {
        let lines = || std::iter::once(&self.headings).filter(|line| !line.is_empty()).chain(&self.rows);
        let mut widths = Vec::new();
        for line in lines() {
            widths.resize(widths.len().max(line.len()), 0);
            for (width, cell) in widths.iter_mut().zip(line) {
                *width = (*width).max(shown(cell).chars().count());
            }
        }
        let mut text = String::new();
        for line in lines() {
            let mut gap = 0;
            for (width, cell) in widths.iter().zip(line) {
                let shown = shown(cell);
                text.extend(std::iter::repeat_n(' ', gap));
                text.push_str(&cell.tone.paint(&shown, paint));
                gap = width - shown.chars().count() + 2;
            }
            text.push('\n');
        }
        text
    }
}

fn shown(cell: &Cell) -> Cow<'_, str> {
    if cell.text.is_empty() { Cow::Borrowed("-") } else { printable(&cell.text) }
}

/// Text with its control characters spelt out.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(char::is_control) {
        return Cow::Borrowed(text);
    }
    let spell = |c: char| {
        if c.is_control() { c.escape_default().to_string() } else { c.to_string() }
    };
    Cow::Owned(text.chars().map(spell).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_lines_end_without_spaces() {
        let mut table = Table::new(["NAME", "STATE"]);
        table.row(["orders".into(), Cell::toned("CONNECTED", Tone::Good)]);
        table.row(["ünï".into(), "".into()]);
        assert_eq!(table.render(Paint::Plain), "NAME    STATE\norders  CONNECTED\nünï     -\n");
    }

    #[test]
    fn colours_do_not_move_columns() {
        let mut table = Table::new(["STATE", "N"]);
        table.row([Cell::toned("FAILED", Tone::Bad), "1".into()]);
        assert_eq!(table.render(Paint::Colours), "STATE   N\n\u{1b}[31mFAILED\u{1b}[0m  1\n");
    }

    #[test]
    fn an_empty_field_is_left_out() {
        let mut table = Table::of_fields();
        table.field("id", "k1");
        table.field("error", "");
        assert_eq!(table.render(Paint::Plain), "id:  k1\n");
    }

    #[test]
    fn a_cell_cannot_start_a_line_or_move_the_cursor() {
        let mut table = Table::of_fields();
        table.field("note", "a\nb\u{1b}[2J");
        assert_eq!(table.render(Paint::Plain), "note:  a\\nb\\u{1b}[2J\n");
    }
}
