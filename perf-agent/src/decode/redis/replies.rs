//! Replies out of the stream of a server, RESP2 and RESP3, told by their types.
//!
//! Nested replies are counted, not kept: how many elements are still to come says where a reply
//! ends, so that a peer's claims cost no memory.

use super::{
    super::lexer::{Item, Lexer, count, number},
    super::{Output, TextId},
};

/// What is known of a reply, or of one element of `EXEC`'s.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    /// The type's byte.
    pub kind: u8,
    /// It is null.
    pub null: bool,
    /// Elements of an aggregate, two for each pair of a map.
    pub elements: u64,
    /// The last integer in it.
    pub integer: i64,
    /// Null and other leaves inside of it.
    pub nulls: u32,
    pub values: u32,
    /// Length of a bulk string.
    pub length: u64,
    /// First word of an error.
    pub error: Option<TextId>,
    /// A status, or the first leaf of an aggregate: its beginning.
    word: [u8; 16],
    word_length: u8,
}

impl Facts {
    pub fn word(&self) -> &[u8] {
        &self.word[..usize::from(self.word_length)]
    }

    fn set_word(&mut self, bytes: &[u8]) {
        let n = bytes.len().min(self.word.len());
        self.word[..n].copy_from_slice(&bytes[..n]);
        self.word_length = n as u8;
    }
}

/// What the stream gave.
pub enum Step {
    /// A reply ended.
    Reply {
        first_ns: u64,
        /// Of the reply, or of its last element if elements are asked for and it has some.
        facts: Facts,
        /// Its elements, if they are asked for.
        of: Option<u64>,
    },
    /// Of a reply whose elements are asked for: one ended, of so many, and others follow.
    Element {
        index: u64,
        of: u64,
        facts: Facts,
    },
    Malformed,
}

/// The stream of a server.
#[derive(Default)]
pub struct Replies {
    lexer: Lexer,
    /// Something of the reply passed.
    begun: bool,
    first_ns: u64,
    tree: Tree,
}

impl Replies {
    /// Whether the stream stands at a reply's boundary.
    pub fn between(&self) -> bool {
        !self.begun
    }

    #[cfg(test)]
    pub fn held(&self) -> usize {
        self.lexer.held()
    }

    pub fn reset(&mut self) {
        *self = Replies::default();
    }

    /// `count` bytes passed unseen. Returns whether the boundaries are still known.
    pub fn gap(&mut self, count: u64) -> bool {
        self.lexer.gap(count)
    }

    /// A short status, a number below 10,000, a string below 10,000 bytes or null that lies whole in
    /// `rest`, at a reply's boundary; taken off its front. `None`, with nothing taken, for all others.
    /// Most replies are such, and this takes a quarter of the time of [`Replies::next`].
    #[inline]
    pub fn simple(&self, rest: &mut &[u8]) -> Option<Facts> {
        if self.begun {
            None
        } else {
            short::<true>(rest)
        }
    }

    /// As [`Replies::simple`] where no word matters: of statuses only `OK`, and what strings say is not kept.
    #[inline]
    pub fn plain(rest: &mut &[u8]) -> Option<Facts> {
        short::<false>(rest)
    }

    /// Takes bytes off the front of `rest` up to the end of a reply, or with `elements` of one of
    /// its elements; None once they are used up.
    pub fn next(
        &mut self,
        at_ns: u64,
        rest: &mut &[u8],
        elements: bool,
        output: &mut Output,
    ) -> Option<Step> {
        loop {
            if !self.begun && !rest.is_empty() {
                (self.begun, self.first_ns) = (true, at_ns);
                // What is no reply and ends like one, such as an attribute without a length, tells
                // nothing, and not what the reply before it did.
                (self.tree.facts, self.tree.push) = (Facts::default(), false);
            }
            let ended = match self.lexer.next(rest)? {
                Item::Broken => return Some(Step::Malformed),
                Item::Line(line) => match self.tree.line(line, elements, output) {
                    Some(Read::Part(ended)) => ended,
                    Some(Read::Body(length)) => {
                        self.lexer.body(length);
                        continue;
                    }
                    None => return Some(Step::Malformed),
                },
                Item::Body(body) => self.tree.body(body, output),
            };
            let elements = elements && !self.tree.push;
            match ended {
                Ended::Nothing => {}
                Ended::Element { index, of } if elements => {
                    let facts = self.tree.facts;
                    return Some(Step::Element { index, of, facts });
                }
                Ended::Element { .. } => {}
                Ended::Reply(of) => {
                    self.begun = false;
                    return Some(Step::Reply {
                        first_ns: self.first_ns,
                        facts: self.tree.facts,
                        of: of.filter(|_| elements),
                    });
                }
            }
        }
    }
}

/// See [`Replies::simple`] and, without words, [`Replies::plain`].
#[inline]
fn short<const WORDS: bool>(rest: &mut &[u8]) -> Option<Facts> {
    let mut facts = Facts {
        kind: *rest.first()?,
        ..Facts::default()
    };
    *rest = match facts.kind {
        b'$' => match number(b'$', rest) {
            Some((length, after)) => {
                let (body, end) = after.split_at_checked(length)?;
                facts.length = length as u64;
                if WORDS {
                    facts.set_word(body);
                }
                end.strip_prefix(b"\r\n")?
            }
            None => {
                facts.null = true;
                rest.strip_prefix(b"$-1\r\n")?
            }
        },
        b':' => {
            let (value, after) = number(b':', rest)?;
            facts.integer = value as i64;
            after
        }
        b'+' if WORDS => {
            let end = rest.iter().take(16).position(|b| *b == b'\n')?;
            let (line, after) = rest.split_at(end + 1);
            facts.set_word(line.strip_suffix(b"\r\n")?.get(1..)?);
            after
        }
        b'+' => rest.strip_prefix(b"+OK\r\n")?,
        _ => return None,
    };
    Some(facts)
}

/// What a line was.
enum Read {
    Part(Ended),
    /// A body of this length follows.
    Body(u64),
}

/// What ended with an element.
enum Ended {
    Nothing,
    /// An element of the reply, which itself goes on.
    Element {
        index: u64,
        of: u64,
    },
    /// The reply, which had so many elements if it had some.
    Reply(Option<u64>),
}

/// How far a reply is.
#[derive(Default)]
struct Tree {
    /// Elements of the aggregate that the reply is, once its line passed.
    top: Option<u64>,
    /// Of those, what did not end.
    outer: u64,
    /// What is to come of the open one.
    inner: u64,
    /// What is to come of attributes, which may stand before any element.
    skip: u64,
    /// Open aggregates without a length; what is inside of them only has to end.
    streamed: u32,
    /// Inside of a string without a length.
    chunks: bool,
    /// Type of the open body.
    kind: u8,
    /// It is all there is of what the facts are of.
    own: bool,
    /// The reply is a push.
    push: bool,
    facts: Facts,
}

impl Tree {
    /// Takes a line; None if it cannot stand here.
    #[inline]
    fn line(&mut self, line: &[u8], elements: bool, output: &mut Output) -> Option<Read> {
        let (kind, value) = line.split_first()?;
        if self.chunks {
            return self.chunk(*kind, value);
        }
        let counted = self.skip == 0 && self.streamed == 0;
        let at_top = counted && self.top.is_none();
        if at_top && *kind != b'|' {
            self.push = *kind == b'>';
        }
        self.own = at_top || counted && elements && !self.push && self.inner == 0;
        self.kind = *kind;
        // Attributes come before what they are of, which is not begun by them.
        if self.own && !matches!(kind, b'|' | b'.') {
            self.facts = Facts {
                kind: *kind,
                ..Facts::default()
            };
        }
        let children = match kind {
            b'+' | b',' | b'(' | b'#' => return Some(self.leaf(value, output)),
            b'-' => return Some(self.leaf(value, output)),
            b':' => {
                self.facts.integer = integer(value)?;
                return Some(self.leaf(value, output));
            }
            b'_' => return Some(self.null()),
            b'$' | b'=' | b'!' => return self.bulk(value),
            b'*' | b'~' | b'>' | b'%' if value == b"-1" => return Some(self.null()),
            b'*' | b'~' | b'>' | b'%' | b'|' if value == b"?" => {
                self.streamed = self.streamed.checked_add(1)?;
                // How many there are is not told.
                self.facts.elements = self.facts.elements.max(1);
                return Some(Read::Part(Ended::Nothing));
            }
            b'*' | b'~' | b'>' => count(value)?,
            b'%' | b'|' => count(value)? * 2,
            b'.' if self.streamed > 0 => {
                self.streamed -= 1;
                if self.streamed > 0 {
                    return Some(Read::Part(Ended::Nothing));
                }
                0
            }
            _ => return None,
        };
        if *kind == b'|' {
            if self.streamed == 0 {
                self.skip = self.skip.saturating_add(children);
            }
            return Some(Read::Part(Ended::Nothing));
        }
        if self.own {
            self.facts.elements = children;
        }
        Some(Read::Part(self.element(children)))
    }

    fn bulk(&mut self, value: &[u8]) -> Option<Read> {
        match value {
            b"-1" => Some(self.null()),
            b"?" => {
                self.chunks = true;
                Some(Read::Part(Ended::Nothing))
            }
            digits => {
                let length = count(digits)?;
                if self.own {
                    self.facts.length = length;
                }
                Some(Read::Body(length))
            }
        }
    }

    fn chunk(&mut self, kind: u8, value: &[u8]) -> Option<Read> {
        if kind != b';' {
            return None;
        }
        self.kind = kind;
        match count(value)? {
            0 => {
                self.chunks = false;
                self.value();
                Some(Read::Part(self.element(0)))
            }
            length => Some(Read::Body(length)),
        }
    }

    #[inline]
    fn body(&mut self, body: &[u8], output: &mut Output) -> Ended {
        match self.kind {
            b';' => Ended::Nothing,
            _ => match self.leaf(body, output) {
                Read::Part(ended) => ended,
                Read::Body(_) => Ended::Nothing,
            },
        }
    }

    fn leaf(&mut self, value: &[u8], output: &mut Output) -> Read {
        let first = self.facts.values == 0 && self.facts.nulls == 0 && self.skip == 0;
        match self.kind {
            b'-' | b'!' if self.own => self.facts.error = Some(error(value, output)),
            b'+' | b'$' | b'=' if first => self.facts.set_word(value),
            _ => {}
        }
        self.value();
        Read::Part(self.element(0))
    }

    fn value(&mut self) {
        if !self.own && self.skip == 0 && self.streamed == 0 {
            self.facts.values = self.facts.values.saturating_add(1);
        }
    }

    fn null(&mut self) -> Read {
        if self.own {
            self.facts.null = true;
        } else if self.skip == 0 && self.streamed == 0 {
            self.facts.nulls = self.facts.nulls.saturating_add(1);
        }
        Read::Part(self.element(0))
    }

    /// An element began that has so many inside; one without has ended.
    #[inline]
    fn element(&mut self, children: u64) -> Ended {
        if self.streamed > 0 {
            return Ended::Nothing;
        }
        if self.skip > 0 {
            self.skip = (self.skip - 1).saturating_add(children);
            return Ended::Nothing;
        }
        let Some(of) = self.top else {
            if children == 0 {
                return Ended::Reply(None);
            }
            (self.top, self.outer, self.inner) = (Some(children), children, 0);
            return Ended::Nothing;
        };
        self.inner = self.inner.max(1) - 1;
        self.inner = self.inner.saturating_add(children);
        if self.inner > 0 {
            return Ended::Nothing;
        }
        self.outer -= 1;
        if self.outer > 0 {
            return Ended::Element {
                index: of - self.outer - 1,
                of,
            };
        }
        self.top = None;
        Ended::Reply(Some(of))
    }
}

fn integer(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// An error's first word, which is its code; its text may hold anything.
fn error(value: &[u8], output: &mut Output) -> TextId {
    let word = value.split(|b| *b == b' ').next().unwrap_or_default();
    let code = |b: &u8| b.is_ascii_uppercase() || b.is_ascii_digit() || *b == b'_';
    match std::str::from_utf8(word) {
        Ok(word) if (1..=24).contains(&word.len()) && word.as_bytes().iter().all(code) => {
            output.text(word)
        }
        _ => output.text("ERR"),
    }
}

/// Whether a piece begins with a reply; None if it is too short to tell.
pub fn plausible(bytes: &[u8]) -> Option<bool> {
    let (kind, rest) = bytes.split_first()?;
    let Some(end) = rest.iter().take(64).position(|b| *b == b'\n') else {
        return (rest.len() >= 64 || !begins(*kind, rest)).then_some(false);
    };
    let Some(value) = rest[..end].strip_suffix(b"\r") else {
        return Some(false);
    };
    Some(match kind {
        b'+' | b'-' => begins(*kind, value),
        b':' => integer(value).is_some(),
        b'$' | b'*' | b'~' | b'%' | b'>' | b'|' => count(value).is_some() || value == b"-1",
        b'_' => value.is_empty(),
        b'#' => matches!(value, b"t" | b"f"),
        _ => false,
    })
}

/// Whether a line may go on as it began.
fn begins(kind: u8, line: &[u8]) -> bool {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    match kind {
        b'+' => line.iter().all(|b| b.is_ascii_graphic() || *b == b' '),
        b'-' => line.first().is_none_or(u8::is_ascii_uppercase),
        b'_' => line.is_empty(),
        b':' | b'$' | b'*' | b'~' | b'%' | b'>' | b'|' => {
            line.iter().all(|b| b.is_ascii_digit() || *b == b'-') && line.len() <= 20
        }
        b'#' => line.len() <= 1,
        _ => false,
    }
}
