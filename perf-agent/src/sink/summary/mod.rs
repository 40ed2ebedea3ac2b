//! The readable summary. On a terminal the last window, drawn over in place, and the whole trace
//! at the end; elsewhere only the latter.

mod findings;
mod peers;
mod render;
mod requests;
mod sections;
mod state;

use std::env;
use std::io;

use super::{Destination, Sink};
use crate::model::Line;
use state::State;

/// Windows shorter than this are drawn together: more often nobody can read.
const REDRAW_NS: u64 = 200_000_000;

/// Size assumed of a terminal that does not tell.
const FALLBACK_SIZE: (usize, usize) = (24, 80);

/// Adds lines up and prints what they say.
struct Summary {
    out: Destination,
    colour: bool,
    /// What is drawn over; `None` where nothing is drawn before the end.
    screen: Option<Screen>,
    total: State,
}

/// The part of a terminal that is drawn over.
#[derive(Default)]
struct Screen {
    /// Since the last drawing.
    recent: State,
    rows_drawn: usize,
    size: (usize, usize),
}

/// The sink over a destination.
pub fn open(out: Destination) -> Box<dyn Sink> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    let terminal = out.terminal && set("TERM").is_none_or(|term| term != "dumb");
    Box::new(Summary {
        colour: terminal && set("NO_COLOR").is_none(),
        screen: terminal.then(Screen::default),
        total: State::default(),
        out,
    })
}

impl Sink for Summary {
    fn line(&mut self, line: &Line) -> io::Result<()> {
        self.total.add(&line.body);
        let Some(screen) = &mut self.screen else {
            return Ok(());
        };
        if screen.recent.add(&line.body) && screen.recent.wall_ns >= REDRAW_NS {
            let size = terminal_size::terminal_size_of(&self.out.file);
            let size = size.map(|(columns, rows)| (rows.0.into(), columns.0.into()));
            let drawing = screen.draw(self.colour, size.unwrap_or(FALLBACK_SIZE));
            return self.out.write_whole(drawing.as_bytes());
        }
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        let mut out = String::new();
        if let Some(screen) = &mut self.screen {
            out = screen.back_to_top();
            out.push_str("\x1b[J");
            screen.rows_drawn = 0;
        }
        out.push_str(&render::render(&self.total, false).print(self.colour));
        self.out.write_whole(out.as_bytes())
    }
}

impl Screen {
    /// Draws the windows since the last time over what was drawn then, and starts anew. Each line
    /// is overwritten and then cleared to its end, so that nothing flickers. What stands above on
    /// the terminal stays.
    fn draw(&mut self, colour: bool, size: (usize, usize)) -> String {
        let mut out = match size == self.size || self.rows_drawn == 0 {
            true => self.back_to_top(),
            // A terminal of another width has wrapped the lines anew: where they begin is unknown.
            false => "\x1b[H\x1b[2J".to_owned(),
        };
        self.size = size;
        let (rows, columns) = size;
        let text = render::render(&self.recent, true);
        // The cursor rests on the row below the text. In the last column it would stay on the last
        // character, and clearing to the end of the line would take that.
        let (lines, shown) =
            text.print_cut(colour, rows.saturating_sub(1), columns.saturating_sub(1));
        out.push_str(&lines);
        out.push_str("\x1b[J");
        self.rows_drawn = shown;
        self.recent = State {
            hello: self.recent.hello.take(),
            ..State::default()
        };
        out
    }

    fn back_to_top(&self) -> String {
        match self.rows_drawn {
            0 => String::new(),
            rows => format!("\x1b[{rows}A\r"),
        }
    }
}

#[cfg(test)]
mod tests;
