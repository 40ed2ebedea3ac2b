//! SQL text to the shape it is aggregated by: literals and parameters as `?`, lists and rows of
//! values folded to one, comments out, one spacing. Identifiers and the case of words stay.
//!
//! The lexer is our own. sqlparser's tokenizer (0.59) was measured against it and lost on what
//! matters here: 2.1 µs for 57 bytes and 6.8 µs for 111; it takes whole `str` only and returns an error without tokens where a
//! string, a comment or a quoted name is cut off, which is what a capture limit does to every long
//! statement, and where bytes are not UTF-8. A shape needs to know only where tokens end.
//!
//! A statement of which only the beginning is known ends in `…`.

mod lexer;
mod shape;
#[cfg(test)]
mod tests;

pub use lexer::{Dialect, Statements, Syntax, is_one_of};
use lexer::{Lexer, Token};
pub use shape::MAX_SHAPE;

use super::{Output, TextId};

/// The shape of a text; `cut` says that the text goes on unseen.
pub fn shape(text: &[u8], syntax: Syntax, cut: bool) -> String {
    let mut out = String::new();
    shape::write(text, syntax, cut, &mut out);
    out
}

/// Names a shape in output that is compared between runs, hosts and builds.
pub fn fingerprint(shape: &str) -> u64 {
    crate::hash::fnv1a(&[shape])
}

/// Id of the shape of a text, or with [`Options::raw`](super::Options) of its beginning as sent.
/// A text seen lately costs a lookup.
pub fn text_id(text: &[u8], syntax: Syntax, cut: bool, output: &mut Output) -> TextId {
    let hash = output.shapes.hash(&(syntax, cut, text));
    if let Some(id) = output.shapes.get(hash) {
        return id;
    }
    let mut shape = output.shapes.take_buffer();
    if output.options.raw {
        raw(text, cut, &mut shape);
    } else {
        shape::write(text, syntax, cut, &mut shape);
    }
    let id = output.text(&shape);
    output.shapes.put(hash, id, shape);
    id
}

fn raw(text: &[u8], cut: bool, out: &mut String) {
    let kept = &text[..text.len().min(MAX_SHAPE)];
    out.clear();
    out.push_str(&String::from_utf8_lossy(kept));
    if cut || kept.len() < text.len() {
        out.push('…');
    }
}

/// Whether a text may hold more than one statement: cheap, and true for some that do not.
pub fn may_be_several(text: &[u8]) -> bool {
    text.contains(&b';')
}

/// The first word of a statement.
pub fn first_word(text: &[u8], syntax: Syntax) -> &[u8] {
    let mut lexer = Lexer::new(text, syntax);
    loop {
        match lexer.next() {
            Some((Token::Open | Token::Semicolon, _)) => {}
            Some((Token::Word, at)) => return &text[at],
            _ => return b"",
        }
    }
}
