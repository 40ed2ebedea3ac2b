//! SQL text as tokens, of both dialects, cut anywhere, in any encoding.

use std::ops::Range;

/// Whose SQL it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    Postgresql,
    Mysql,
}

/// What decides where a token ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Syntax {
    pub dialect: Dialect,
    /// A backslash escapes in plain strings: MySQL's default, and PostgreSQL's with
    /// `standard_conforming_strings=off`.
    pub backslashes: bool,
}

impl Syntax {
    pub const POSTGRESQL: Syntax = Syntax {
        dialect: Dialect::Postgresql,
        backslashes: false,
    };
    pub const MYSQL: Syntax = Syntax {
        dialect: Dialect::Mysql,
        backslashes: true,
    };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// A keyword or a plain identifier, with `@` before it in MySQL.
    Word,
    /// A quoted identifier.
    Quoted,
    /// A number, a string, a parameter.
    Literal,
    Operator,
    Open,
    Close,
    OpenBracket,
    CloseBracket,
    Comma,
    Dot,
    Cast,
    Semicolon,
}

/// Reads tokens; comments and whitespace only separate them.
#[derive(Clone)]
pub struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    syntax: Syntax,
    /// Whitespace or a comment came before the last token.
    pub spaced: bool,
    /// Inside MySQL's `/*! … */`, whose content is executed.
    executable: bool,
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte >= 0x80
}

fn is_operator(byte: u8) -> bool {
    matches!(
        byte,
        b'<' | b'>' | b'=' | b'~' | b'!' | b'@' | b'#' | b'%' | b'^' | b'&' | b'|'
    )
}

impl<'a> Lexer<'a> {
    pub fn new(text: &'a [u8], syntax: Syntax) -> Lexer<'a> {
        Lexer {
            text,
            at: 0,
            syntax,
            spaced: false,
            executable: false,
        }
    }

    fn mysql(&self) -> bool {
        self.syntax.dialect == Dialect::Mysql
    }

    fn peek(&self, ahead: usize) -> u8 {
        self.text.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn rest(&self) -> &'a [u8] {
        self.text.get(self.at..).unwrap_or_default()
    }

    /// The next token and where it stands.
    pub fn next(&mut self) -> Option<(Token, Range<usize>)> {
        self.skip_space();
        let start = self.at;
        let first = *self.text.get(start)?;
        let token = match first {
            b'(' => self.single(Token::Open),
            b')' => self.single(Token::Close),
            b'[' => self.single(Token::OpenBracket),
            b']' => self.single(Token::CloseBracket),
            b',' => self.single(Token::Comma),
            b';' => self.single(Token::Semicolon),
            b'\'' => self.string(b'\'', self.syntax.backslashes, Token::Literal),
            b'"' if self.mysql() => self.string(b'"', self.syntax.backslashes, Token::Literal),
            b'"' => self.string(b'"', false, Token::Quoted),
            b'`' if self.mysql() => self.string(b'`', false, Token::Quoted),
            b'0'..=b'9' => self.number(),
            b'.' if self.peek(1).is_ascii_digit() => self.number(),
            b'.' => self.single(Token::Dot),
            b'$' => self.dollar(),
            b'?' if self.mysql() => self.single(Token::Literal),
            b':' if self.peek(1) == b':' => {
                self.at += 2;
                Token::Cast
            }
            b'@' if self.mysql() => self.word(),
            _ if is_word(first) => self.word(),
            _ => self.operator(),
        };
        Some((token, start..self.at))
    }

    fn single(&mut self, token: Token) -> Token {
        self.at += 1;
        token
    }

    fn skip_space(&mut self) {
        let start = self.at;
        loop {
            match (self.peek(0), self.peek(1)) {
                (0, _) if self.at >= self.text.len() => break,
                (b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c | 0, _) => self.at += 1,
                // MySQL wants a space behind the dashes: `5--3` is 8 there.
                (b'-', b'-') if !self.mysql() || self.peek(2) <= b' ' => self.skip_line(),
                (b'#', _) if self.mysql() => self.skip_line(),
                (b'/', b'*') => self.skip_comment(),
                (b'*', b'/') if self.executable => {
                    self.executable = false;
                    self.at += 2;
                }
                _ => break,
            }
        }
        self.spaced = self.at > start;
    }

    fn skip_line(&mut self) {
        let end = self.rest().iter().position(|b| *b == b'\n');
        self.at = end.map_or(self.text.len(), |end| self.at + end + 1);
    }

    fn skip_comment(&mut self) {
        if self.mysql() && (self.peek(2) == b'!' || self.peek(2) == b'M' && self.peek(3) == b'!') {
            self.executable = true;
            self.at += if self.peek(2) == b'!' { 3 } else { 4 };
            while self.peek(0).is_ascii_digit() {
                self.at += 1;
            }
            return;
        }
        self.at += 2;
        let mut depth = 1;
        while depth > 0 && self.at < self.text.len() {
            match (self.peek(0), self.peek(1)) {
                (b'*', b'/') => {
                    depth -= 1;
                    self.at += 1;
                }
                (b'/', b'*') if !self.mysql() => {
                    depth += 1;
                    self.at += 1;
                }
                _ => {}
            }
            self.at += 1;
        }
        self.at = self.at.min(self.text.len());
    }

    /// A quoted text up to its closing quote or, where that was cut off, to the end.
    fn string(&mut self, quote: u8, backslashes: bool, token: Token) -> Token {
        self.at += 1;
        while let Some(&byte) = self.text.get(self.at) {
            self.at += 1;
            if byte == quote {
                if self.peek(0) != quote {
                    return token;
                }
                self.at += 1;
            } else if byte == b'\\' && backslashes {
                self.at += 1;
            }
        }
        self.at = self.text.len();
        token
    }

    /// Everything that hangs together with a digit, `1.5e-3` and `0xff` as well as junk.
    fn number(&mut self) -> Token {
        let hex = self.peek(0) == b'0' && self.peek(1) | 0x20 == b'x';
        loop {
            let byte = self.peek(0);
            let exponent = !hex && byte | 0x20 == b'e' && matches!(self.peek(1), b'+' | b'-');
            if exponent && self.peek(2).is_ascii_digit() {
                self.at += 2;
            } else if !is_word(byte) && (byte != b'.' || self.peek(1) == b'.') {
                return Token::Literal;
            }
            self.at += 1;
        }
    }

    /// `$1`, `$tag$ … $tag$`, or a stray dollar.
    fn dollar(&mut self) -> Token {
        if self.peek(1).is_ascii_digit() {
            self.at += 1;
            while self.peek(0).is_ascii_digit() {
                self.at += 1;
            }
            return Token::Literal;
        }
        let rest = self.rest();
        let tag = rest[1..].iter().position(|b| *b == b'$' || !is_word(*b));
        let Some(tag) = tag.filter(|end| rest[end + 1] == b'$' && !self.mysql()) else {
            self.at += 1;
            return if self.mysql() && is_word(self.peek(0)) {
                self.word()
            } else {
                Token::Operator
            };
        };
        let (mark, body) = rest.split_at(tag + 2);
        let end = body.windows(mark.len()).position(|w| w == mark);
        self.at = end.map_or(self.text.len(), |end| self.at + end + 2 * mark.len());
        Token::Literal
    }

    fn word(&mut self) -> Token {
        let start = self.at;
        while self.mysql() && self.peek(0) == b'@' {
            self.at += 1;
        }
        while is_word(self.peek(0)) {
            self.at += 1;
        }
        let word = &self.text[start..self.at];
        match (word, self.peek(0)) {
            (b"e" | b"E", b'\'') => self.string(b'\'', true, Token::Literal),
            (b"b" | b"B" | b"x" | b"X" | b"n" | b"N", b'\'') => {
                self.string(b'\'', self.syntax.backslashes, Token::Literal)
            }
            (b"u" | b"U", b'&') if self.peek(1) == b'\'' && !self.mysql() => {
                self.at += 1;
                self.string(b'\'', self.syntax.backslashes, Token::Literal)
            }
            (b"u" | b"U", b'&') if self.peek(1) == b'"' && !self.mysql() => {
                self.at += 1;
                self.string(b'"', false, Token::Quoted)
            }
            _ => Token::Word,
        }
    }

    fn operator(&mut self) -> Token {
        let first = self.peek(0);
        self.at += 1;
        let goes_on =
            is_operator(first) || matches!((first, self.peek(0)), (b'-', b'>') | (b':', b'='));
        while goes_on
            && is_operator(self.peek(0))
            && !(self.mysql() && matches!(self.peek(0), b'#' | b'@'))
        {
            self.at += 1;
        }
        Token::Operator
    }
}

/// The statements of a text, split at the semicolons between them; empty ones are left out.
pub struct Statements<'a> {
    text: &'a [u8],
    lexer: Lexer<'a>,
}

impl<'a> Statements<'a> {
    pub fn new(text: &'a [u8], syntax: Syntax) -> Statements<'a> {
        Statements {
            text,
            lexer: Lexer::new(text, syntax),
        }
    }
}

impl<'a> Iterator for Statements<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let mut start = self.lexer.at;
        // Rules have their actions in parentheses, routines theirs between BEGIN and END.
        let (mut depth, mut blocks, mut empty) = (0i32, Blocks::default(), true);
        while let Some((token, at)) = self.lexer.next() {
            match token {
                Token::Semicolon if depth <= 0 && blocks.depth <= 0 => {
                    if !empty {
                        return Some(&self.text[start..at.start]);
                    }
                    start = at.end;
                    continue;
                }
                Token::Open => depth += 1,
                Token::Close => depth -= 1,
                Token::Word => blocks.word(&self.text[at]),
                _ => {}
            }
            empty = false;
        }
        (!empty).then(|| &self.text[start..])
    }
}

/// How deep a statement is in the blocks of a routine's body.
#[derive(Default)]
struct Blocks {
    depth: i32,
    words: usize,
    create: bool,
    begin: bool,
    routine: bool,
    after_end: bool,
}

impl Blocks {
    fn word(&mut self, word: &[u8]) {
        self.words += 1;
        if self.words == 1 {
            self.create = is_one_of(word, &["create"]);
            self.begin = is_one_of(word, &["begin"]);
        } else if self.words == 2 && self.begin && is_one_of(word, &["not"]) {
            // MariaDB's BEGIN NOT ATOMIC; a plain BEGIN opens a transaction.
            (self.routine, self.depth) = (true, 1);
        } else if self.create && self.words < 8 {
            let kinds = ["function", "procedure", "trigger", "event"];
            self.routine |= is_one_of(word, &kinds);
        }
        if !self.routine {
            return;
        }
        if self.after_end && is_one_of(word, &["if", "loop", "while", "repeat"]) {
            // Its beginning was not counted: IF is a function and a clause, too.
            self.depth += 1;
        } else if is_one_of(word, &["begin", "case"]) && !self.after_end {
            self.depth += 1;
        }
        self.after_end = is_one_of(word, &["end"]);
        self.depth -= i32::from(self.after_end);
    }
}

/// Whether a word is one of these, in any case.
pub fn is_one_of(word: &[u8], words: &[&str]) -> bool {
    words
        .iter()
        .any(|w| word.eq_ignore_ascii_case(w.as_bytes()))
}
