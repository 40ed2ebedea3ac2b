//! A statement's shape: its tokens in one spacing, what varies between calls as `?`.

use std::ops::Range;

use super::super::cut_to;
use super::lexer::{Lexer, Syntax, Token, is_one_of};

/// Most bytes of a shape, its `…` not counted.
pub const MAX_SHAPE: usize = 1024;

/// Parentheses looked into for lists; what lies deeper is not folded.
const MAX_DEPTH: usize = 16;

/// An open parenthesis or bracket.
#[derive(Clone, Copy, Default)]
struct Group {
    /// Equal elements in a row are one: IN (…), ARRAY[…].
    list: bool,
    /// A row of VALUES.
    row: bool,
    /// Where its current element, and the one before, stand in the shape.
    element: usize,
    before: (usize, usize),
}

struct Shaper<'a> {
    text: &'a [u8],
    lexer: Lexer<'a>,
    out: &'a mut String,
    last: Option<Token>,
    /// The last token's own bytes, where it was a word.
    word: &'a [u8],
    /// The statement's first word is a command that takes a name made up by a driver.
    names: bool,
    groups: [Group; MAX_DEPTH],
    depth: usize,
    /// The token before closed a row of VALUES.
    after_row: bool,
}

/// Writes the shape of a text; `cut` says that the text goes on unseen.
pub fn write(text: &[u8], syntax: Syntax, cut: bool, out: &mut String) {
    out.clear();
    let mut shaper = Shaper {
        text,
        lexer: Lexer::new(text, syntax),
        out,
        last: None,
        word: b"",
        names: false,
        groups: [Group::default(); MAX_DEPTH],
        depth: 0,
        after_row: false,
    };
    let whole = shaper.run();
    while out.ends_with([' ', ';']) {
        out.pop();
    }
    cut_to(out, MAX_SHAPE);
    if cut || !whole {
        out.push('…');
    }
}

impl<'a> Shaper<'a> {
    /// False if it stopped at the bound.
    fn run(&mut self) -> bool {
        while let Some((token, at)) = self.lexer.next() {
            self.token(token, at);
            if self.out.len() > MAX_SHAPE {
                return false;
            }
        }
        true
    }

    fn token(&mut self, token: Token, at: Range<usize>) {
        let bytes = &self.text[at];
        let after_row = std::mem::take(&mut self.after_row);
        match token {
            Token::Literal => self.literal(),
            Token::Word => self.a_word(bytes),
            Token::Operator if matches!(bytes, b"-" | b"+") && self.at_value() => {
                // The sign of a number belongs to it.
                let mut ahead = self.lexer.clone();
                if !matches!(ahead.next(), Some((Token::Literal, _))) {
                    self.put(token, bytes);
                }
            }
            Token::Open | Token::OpenBracket => self.open(token, bytes),
            Token::Close | Token::CloseBracket => self.close(token, bytes),
            Token::Comma if after_row && self.skip_row() => self.after_row = true,
            Token::Comma => self.comma(),
            Token::Semicolon if self.last.is_none() => {}
            Token::Semicolon => {
                self.out.push_str("; ");
                (self.last, self.word, self.names) = (Some(token), b"", false);
            }
            _ => self.put(token, bytes),
        }
    }

    /// Whether an expression begins here.
    fn at_value(&self) -> bool {
        match self.last {
            None => true,
            Some(Token::Open | Token::OpenBracket | Token::Comma | Token::Operator) => true,
            Some(Token::Word) => is_one_of(self.word, &BEFORE_VALUES),
            Some(_) => false,
        }
    }

    fn literal(&mut self) {
        // Strings side by side are one string.
        if self.last != Some(Token::Literal) {
            self.put(Token::Literal, b"?");
        }
    }

    fn a_word(&mut self, bytes: &'a [u8]) {
        let punctuated = self.last != Some(Token::Word) && self.at_value() && self.last.is_some();
        if punctuated && is_one_of(bytes, &["null", "true", "false"]) {
            return self.literal();
        }
        let first = matches!(self.last, None | Some(Token::Semicolon));
        if first {
            self.names = is_one_of(bytes, &["savepoint", "release", "rollback", "deallocate"]);
        } else if self.names && !is_one_of(bytes, &NOT_NAMES) {
            return self.literal();
        }
        self.put(Token::Word, bytes);
        self.word = bytes;
    }

    fn open(&mut self, token: Token, bytes: &[u8]) {
        let after_word = self.last == Some(Token::Word);
        let list = after_word && is_one_of(self.word, &["in", "array"]);
        let row = after_word && token == Token::Open && is_one_of(self.word, &["values"]);
        self.put(token, bytes);
        if let Some(group) = self.groups.get_mut(self.depth) {
            *group = Group {
                list,
                row,
                element: self.out.len(),
                before: (0, 0),
            };
        }
        self.depth += 1;
    }

    fn close(&mut self, token: Token, bytes: &[u8]) {
        self.fold();
        self.put(token, bytes);
        self.depth = self.depth.saturating_sub(1);
        self.after_row = self.groups.get(self.depth).is_some_and(|g| g.row);
    }

    fn comma(&mut self) {
        self.fold();
        self.out.push_str(", ");
        self.last = Some(Token::Comma);
        let end = self.out.len();
        if let Some(group) = self.group() {
            group.element = end;
        }
    }

    fn group(&mut self) -> Option<&mut Group> {
        let top = self.depth.checked_sub(1)?;
        self.groups.get_mut(top)
    }

    /// Ends an element: takes it back if it is the same as the one before it.
    fn fold(&mut self) {
        let end = self.out.len();
        let Some(&mut Group {
            list: true,
            element,
            before: (from, to),
            ..
        }) = self.group()
        else {
            return;
        };
        let same = to > from && self.out.get(from..to) == self.out.get(element..end);
        if same {
            self.out.truncate(to);
            self.last = Some(Token::Literal);
        } else if let Some(group) = self.group() {
            group.before = (element, end);
        }
    }

    /// Behind the comma after a row of VALUES: passes over the next row, if there is one.
    fn skip_row(&mut self) -> bool {
        let mut ahead = self.lexer.clone();
        if !matches!(ahead.next(), Some((Token::Open, _))) {
            return false;
        }
        let mut depth = 1;
        while depth > 0 {
            match ahead.next() {
                Some((Token::Open, _)) => depth += 1,
                Some((Token::Close, _)) => depth -= 1,
                Some(_) => {}
                None => break,
            }
        }
        self.lexer = ahead;
        true
    }

    fn put(&mut self, token: Token, bytes: &[u8]) {
        if self.wants_space(token) {
            self.out.push(' ');
        }
        self.last = Some(token);
        match std::str::from_utf8(bytes) {
            Ok(text) if token != Token::Quoted => self.out.push_str(text),
            _ => {
                // Identifiers can hold anything, line ends and escape sequences too.
                let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_SHAPE + 1)]);
                let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
                self.out.extend(plain);
            }
        }
    }

    fn wants_space(&self, token: Token) -> bool {
        let Some(last) = self.last else {
            return false;
        };
        match (last, token) {
            (_, Token::Comma | Token::Close | Token::CloseBracket | Token::Dot | Token::Cast) => {
                false
            }
            (Token::Open | Token::OpenBracket | Token::Dot | Token::Cast, _) => false,
            (Token::Comma | Token::Semicolon, _) => false,
            (Token::Operator, _) => true,
            (_, Token::OpenBracket) => false,
            (Token::Word, Token::Open) => {
                self.lexer.spaced || is_one_of(self.word, &["in", "values", "and", "or"])
            }
            (_, Token::Open) => self.lexer.spaced,
            _ => true,
        }
    }
}

/// Words that an expression follows.
const BEFORE_VALUES: [&str; 22] = [
    "select",
    "where",
    "and",
    "or",
    "not",
    "in",
    "between",
    "like",
    "is",
    "case",
    "when",
    "then",
    "else",
    "limit",
    "offset",
    "by",
    "having",
    "on",
    "return",
    "set",
    "returning",
    "to",
];

/// What can stand before the name in SAVEPOINT, RELEASE, ROLLBACK and DEALLOCATE, or instead.
const NOT_NAMES: [&str; 10] = [
    "savepoint",
    "to",
    "work",
    "transaction",
    "prepare",
    "prepared",
    "all",
    "and",
    "no",
    "chain",
];
