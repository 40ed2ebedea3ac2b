//! Lines of styled text and aligned tables, made once and printed plain, in colour, or cut to a
//! terminal's size.

/// How a piece of text stands out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Plain,
    Bold,
    Dim,
    Red,
    Yellow,
    Cyan,
}

impl Style {
    fn code(self) -> &'static str {
        match self {
            Style::Plain => "",
            Style::Bold => "\x1b[1m",
            Style::Dim => "\x1b[2m",
            Style::Red => "\x1b[31m",
            Style::Yellow => "\x1b[33m",
            Style::Cyan => "\x1b[36m",
        }
    }
}

/// A piece of one style.
pub type Span = (Style, String);

/// A plain piece.
pub fn plain(text: impl Into<String>) -> Span {
    (Style::Plain, text.into())
}

/// Lines of text.
#[derive(Default)]
pub struct Text {
    lines: Vec<Vec<Span>>,
}

impl Text {
    /// Adds a line. Control characters in it (file names and thread names can hold any) are shown
    /// as `?`: they must not reach a terminal.
    pub fn line(&mut self, spans: impl IntoIterator<Item = Span>) {
        let clean = |text: String| match text.contains(char::is_control) {
            true => text.replace(char::is_control, "?"),
            false => text,
        };
        let spans = spans.into_iter().map(|(style, text)| (style, clean(text)));
        self.lines.push(spans.collect());
    }

    /// An empty line, unless there is one already.
    pub fn gap(&mut self) {
        if self.lines.last().is_some_and(|line| !line.is_empty()) {
            self.lines.push(Vec::new());
        }
    }

    /// A heading.
    pub fn heading(&mut self, text: &str, remark: &str) {
        self.gap();
        let mut spans = vec![(Style::Bold, format!("  {text}"))];
        if !remark.is_empty() {
            spans.push((Style::Dim, format!("  {remark}")));
        }
        self.line(spans);
    }

    /// All lines, each with a newline.
    pub fn print(&self, colour: bool) -> String {
        let mut out = String::new();
        for line in &self.lines {
            print_line(&mut out, line, colour, usize::MAX);
            out.push('\n');
        }
        out
    }

    /// At most `rows` lines of at most `columns` characters, each ending with "clear to the end of
    /// the line". What does not fit is left out before the last line, and said so.
    pub fn print_cut(&self, colour: bool, rows: usize, columns: usize) -> (String, usize) {
        let mut out = String::new();
        let mut shown = 0;
        let mut put = |line: &[Span]| {
            print_line(&mut out, line, colour, columns);
            out.push_str("\x1b[K\n");
            shown += 1;
        };
        if self.lines.len() <= rows {
            self.lines.iter().for_each(|line| put(line));
        } else if let (Some(last), true) = (self.lines.last(), rows >= 3) {
            self.lines[..rows - 2].iter().for_each(|line| put(line));
            let left_out = self.lines.len() - (rows - 1);
            put(&[(Style::Dim, format!("  … {left_out} more lines at the end"))]);
            put(last);
        } else {
            self.lines.iter().take(rows).for_each(|line| put(line));
        }
        (out, shown)
    }
}

fn print_line(out: &mut String, line: &[Span], colour: bool, columns: usize) {
    let mut room = columns;
    for (style, text) in line {
        let fits: String = text.chars().take(room).collect();
        room -= fits.chars().count();
        if colour && *style != Style::Plain && !fits.is_empty() {
            out.push_str(style.code());
            out.push_str(&fits);
            out.push_str("\x1b[0m");
        } else {
            out.push_str(&fits);
        }
    }
}

/// How a column is aligned.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// Rows with aligned columns.
pub struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<Span>>,
}

impl Table {
    pub fn new(columns: &[(&'static str, Align)]) -> Self {
        Table {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    pub fn row(&mut self, cells: Vec<Span>) {
        self.rows.push(cells);
    }

    /// Appends header and rows.
    pub fn put(self, text: &mut Text) {
        let header = self.columns.iter();
        let header: Vec<Span> = header
            .map(|(name, _)| (Style::Dim, (*name).to_owned()))
            .collect();
        let mut rows = vec![header];
        rows.extend(self.rows);
        let width = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|(_, cell)| cell.chars().count()).max()
        };
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|column| width(column).unwrap_or(0))
            .collect();
        for row in rows {
            // Empty cells at the end would only be spaces.
            let filled = row.iter().rposition(|(_, cell)| !cell.trim().is_empty());
            let last = filled.unwrap_or(0);
            let mut spans = vec![plain("    ")];
            for (i, (style, cell)) in row.into_iter().take(last + 1).enumerate() {
                let pad = " ".repeat(widths[i].saturating_sub(cell.chars().count()));
                let gap = if i < last { "  " } else { "" };
                match self.columns[i].1 {
                    Align::Right => spans.extend([plain(pad), (style, cell), plain(gap)]),
                    Align::Left if i < last => {
                        spans.extend([(style, cell), plain(pad), plain(gap)]);
                    }
                    Align::Left => spans.push((style, cell)),
                }
            }
            text.line(spans);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(lines: usize) -> Text {
        let mut text = Text::default();
        for i in 0..lines {
            text.line([plain(format!("line {i}"))]);
        }
        text
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut text = Text::default();
        let mut table = Table::new(&[
            ("name", Align::Left),
            ("µs", Align::Right),
            ("", Align::Left),
        ]);
        table.row(vec![plain("a"), plain("1"), plain("x")]);
        table.row(vec![plain("longer"), plain("12,345"), plain("")]);
        table.put(&mut text);
        let lines: Vec<String> = text.print(false).lines().map(str::to_owned).collect();
        assert_eq!(lines[0], "    name        µs");
        assert_eq!(lines[1], "    a            1  x");
        assert_eq!(lines[2], "    longer  12,345");
    }

    #[test]
    fn colour_is_only_there_when_asked_for() {
        let mut text = Text::default();
        text.line([(Style::Red, "high".to_owned()), plain(" and so on")]);
        assert_eq!(text.print(false), "high and so on\n");
        assert_eq!(text.print(true), "\x1b[31mhigh\x1b[0m and so on\n");
    }

    #[test]
    fn names_cannot_send_control_characters_to_a_terminal() {
        let mut text = Text::default();
        text.line([plain("evil\x1b]0;title\x07\nname\u{9b}31m")]);
        assert_eq!(text.print(true), "evil?]0;title??name?31m\n");
    }

    #[test]
    fn a_cut_text_has_no_more_rows_and_columns_than_there_are() {
        let (out, shown) = sample(10).print_cut(false, 5, 6);
        assert_eq!(shown, 5);
        assert_eq!(
            out,
            "line 0\x1b[K\nline 1\x1b[K\nline 2\x1b[K\n  … 6 \x1b[K\nline 9\x1b[K\n"
        );
        for rows in 0..12 {
            let (out, shown) = sample(10).print_cut(true, rows, 80);
            assert!(shown <= rows, "{rows}");
            assert_eq!(out.matches('\n').count(), shown);
        }
    }
}
