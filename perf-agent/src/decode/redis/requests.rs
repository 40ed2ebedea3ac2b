//! Commands out of the stream of a client.

use super::{
    super::lexer::{Item, KEEP, Lexer, count, digits, number},
    super::{Options, Output, TextId, keys},
    commands::{Command, Effect, Key, Lookup, command, subcommand},
};

/// Tells Redis's shapes from other protocols' in [`Output::shape`].
const SHAPES: u64 = 0x5245_4449_5320_2020;

/// Modules whose commands are named as they are; they take a key, an index or the like first.
const MODULES: &[&str] = &[
    "FT.", "JSON.", "BF.", "CF.", "CMS.", "TOPK.", "TDIGEST.", "TS.", "GRAPH.",
];

/// What `CLIENT REPLY` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyMode {
    On,
    Off,
    Skip,
}

/// A command that was sent.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub text: TextId,
    pub started_ns: u64,
    pub lookup: Lookup,
    pub effect: Effect,
    /// Arguments, the command's name not among them.
    pub arguments: u32,
    pub reply: Option<ReplyMode>,
    /// `REPLCONF ACK`.
    pub acknowledges: bool,
}

/// What the stream gave.
pub enum Step {
    Request(Request),
    /// An empty line or array, which servers pass over.
    Nothing,
    Malformed,
}

/// The stream of a client.
#[derive(Default)]
pub struct Requests {
    lexer: Lexer,
    open: Open,
    /// Arguments of the open command still to come, with its name.
    left: u64,
    last: Last,
    front: Option<Front>,
}

/// The command that [`Requests::whole`] read last, by its name as it was sent. Clients that pipeline
/// send one again and again: looking it up each time costs a tenth of the decoding.
#[derive(Default)]
struct Last {
    name: u64,
    command: Option<(u16, &'static Command)>,
}

impl Last {
    fn command(&mut self, name: &[u8]) -> Option<(u16, &'static Command)> {
        if name.len() > 8 {
            return command(name);
        }
        let word = keys::word(name);
        if self.command.is_none() || self.name != word {
            *self = Last {
                name: word,
                command: command(name),
            };
        }
        self.command
    }
}

/// What the command that [`Requests::whole`] read last has before its key's length, where the key is its first
/// argument: `*2\r\n$3\r\nGET\r\n$`. Its name as it was sent and the number of its arguments are in it.
struct Front {
    words: [u64; Front::WORDS],
    masks: [u64; Front::WORDS],
    length: usize,
    /// See [`of_command`].
    of: u64,
    command: &'static Command,
    arguments: u32,
}

impl Front {
    const WORDS: usize = 3;

    fn of(
        front: &[u8],
        (index, command): (u16, &'static Command),
        arguments: u32,
    ) -> Option<Front> {
        if front.len() > 8 * Front::WORDS {
            return None;
        }
        let (mut words, mut masks) = ([0; Front::WORDS], [0; Front::WORDS]);
        let parts = front.chunks(8).zip(words.iter_mut().zip(&mut masks));
        for (part, (word, mask)) in parts {
            *word = keys::word(part);
            *mask = u64::MAX >> (64 - 8 * part.len());
        }
        Some(Front {
            words,
            masks,
            length: front.len(),
            of: of_command(index, 0),
            command,
            arguments,
        })
    }

    /// What follows it in `bytes`, if they begin with it. Of the last bytes of a piece it says nothing.
    #[inline]
    fn strip<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let begin: &[u8; 8 * Front::WORDS] = bytes.first_chunk()?;
        let words = begin
            .as_chunks()
            .0
            .iter()
            .map(|word| u64::from_le_bytes(*word));
        let parts = words.zip(self.words.iter().zip(&self.masks));
        let differs = parts.fold(0, |sum, (word, (own, mask))| sum | (word & mask) ^ own);
        if differs != 0 {
            return None;
        }
        bytes.get(self.length..)
    }
}

/// The command that is being read.
#[derive(Default)]
struct Open {
    started_ns: u64,
    index: u32,
    command: Option<(u16, &'static Command)>,
    /// The subcommand's number from 1.
    sub: u16,
    /// Where the key is, once that is known.
    key_at: Option<u32>,
    text: Option<TextId>,
    /// Name of a module's command.
    module: ([u8; 24], u8),
    reply: Option<ReplyMode>,
    acknowledges: bool,
}

impl Requests {
    /// Whether the stream stands at a message boundary.
    pub fn between(&self) -> bool {
        self.left == 0 && self.lexer.between()
    }

    #[cfg(test)]
    pub fn held(&self) -> usize {
        self.lexer.held()
    }

    pub fn reset(&mut self) {
        *self = Requests::default();
    }

    /// Takes bytes off the front of `rest` up to the end of a command; None once they are used up.
    pub fn next(&mut self, at_ns: u64, rest: &mut &[u8], output: &mut Output) -> Option<Step> {
        if self.between() {
            if let Some(request) = self.whole(at_ns, rest, output) {
                return Some(Step::Request(request));
            }
            self.open = Open {
                started_ns: at_ns,
                ..Open::default()
            };
        }
        loop {
            match self.lexer.next(rest)? {
                Item::Broken => return Some(Step::Malformed),
                Item::Line(line) if self.left == 0 => match start(line) {
                    Start::Array(0) => return Some(Step::Nothing),
                    Start::Array(n) => self.left = n,
                    Start::Inline => return Some(self.open.inline(line, output)),
                    Start::Malformed => return Some(Step::Malformed),
                },
                Item::Line(line) => match line.strip_prefix(b"$").and_then(count) {
                    Some(length) => self.lexer.body(length),
                    None => return Some(Step::Malformed),
                },
                Item::Body(bytes) => {
                    self.open.argument(bytes, output);
                    self.left -= 1;
                    if self.left == 0 {
                        return Some(Step::Request(self.open.request(output)));
                    }
                }
            }
        }
    }

    /// A command whose arguments lie whole in `rest`, taken off its front without the lexer: nearly all
    /// do, and it halves what reading them costs. `None`, with nothing taken, for all others and for
    /// commands that have more about them than a name and a key.
    pub(super) fn whole(
        &mut self,
        at_ns: u64,
        rest: &mut &[u8],
        output: &mut Output,
    ) -> Option<Request> {
        let (count, mut after) = number(b'*', rest)?;
        let whole = *rest;
        let arguments = count.checked_sub(1)?;
        let (index, command) = self.last.command(body(&mut after)?)?;
        let key_at = match command.key {
            Key::None => 0,
            Key::At(at) => usize::from(at),
            Key::AfterCount(_) | Key::AfterStreams => return None,
        };
        if command.effect != Effect::None {
            return None;
        }
        if key_at == 1 && after.first() == Some(&b'$') {
            let front = &whole[..=whole.len() - after.len()];
            self.front = Front::of(front, (index, command), arguments as u32);
        }
        let mut key = None;
        for at in 1..=arguments {
            let argument = body(&mut after)?;
            if at == key_at {
                key = Some(&argument[..argument.len().min(KEEP)]);
            }
        }
        *rest = after;
        let text = shape(of_command(index, 0), key, output, |options| match key {
            Some(key) => format!("{} {}", command.name, keys::shown(key, options)),
            None => command.name.to_owned(),
        });
        Some(Request {
            text,
            started_ns: at_ns,
            lookup: command.lookup,
            effect: command.effect,
            arguments: arguments as u32,
            reply: None,
            acknowledges: false,
        })
    }

    /// At a boundary: a command that begins as the one that [`Requests::whole`] read last, and lies whole in `rest`,
    /// taken off its front: its text. Clients that pipeline send one command again and again, and this takes a
    /// third of the time. [`Requests::again`] says what else there is to it.
    #[inline]
    pub(super) fn text_again(&self, rest: &mut &[u8], output: &mut Output) -> Option<TextId> {
        let front = self.front.as_ref()?;
        let (length, after) = digits(front.strip(rest)?)?;
        let (key, after) = after.split_at_checked(length)?;
        let mut after = after.strip_prefix(b"\r\n")?;
        for _ in 1..front.arguments {
            body(&mut after)?;
        }
        *rest = after;
        let key = &key[..length.min(KEEP)];
        Some(shape(front.of, Some(key), output, |options| {
            format!("{} {}", front.command.name, keys::shown(key, options))
        }))
    }

    /// Lookup and number of arguments of the commands that [`Requests::text_again`] takes. They have no effect.
    pub(super) fn again(&self) -> Option<(Lookup, u32)> {
        let front = self.front.as_ref().filter(|_| self.between())?;
        Some((front.command.lookup, front.arguments))
    }

    /// `count` bytes passed unseen. Returns whether the boundaries are still known.
    pub fn gap(&mut self, count: u64) -> bool {
        self.lexer.gap(count)
    }

    /// What is known of the command that is open, if its name is.
    pub fn cut(&mut self, output: &mut Output) -> Option<Request> {
        (self.left > 0 && self.open.index > 0).then(|| self.open.request(output))
    }
}

enum Start {
    Array(u64),
    Inline,
    Malformed,
}

fn start(line: &[u8]) -> Start {
    match line {
        [] => Start::Array(0),
        [b'*', b'-', ..] => Start::Array(0),
        [b'*', digits @ ..] => count(digits).map_or(Start::Malformed, Start::Array),
        // Keys and values may be anything; a command's name is a word.
        [b' ' | b'"' | b'\'' | b'a'..=b'z' | b'A'..=b'Z', ..] => Start::Inline,
        _ => Start::Malformed,
    }
}

impl Open {
    fn inline(&mut self, line: &[u8], output: &mut Output) -> Step {
        let words = line
            .split(u8::is_ascii_whitespace)
            .filter(|w| !w.is_empty());
        for word in words {
            let word = word.strip_prefix(b"\"").unwrap_or(word);
            let word = word.strip_suffix(b"\"").unwrap_or(word);
            self.argument(word, output);
        }
        if self.index == 0 {
            return Step::Nothing;
        }
        Step::Request(self.request(output))
    }

    #[inline]
    fn argument(&mut self, bytes: &[u8], output: &mut Output) {
        let index = self.index;
        self.index = index.saturating_add(1);
        if index == 0 {
            return self.name(bytes);
        }
        if self.key_at == Some(index) {
            self.text = Some(self.name_shape(Some(bytes), output));
            return;
        }
        if self.text.is_some() {
            return;
        }
        let Some((_, command)) = self.command else {
            return;
        };
        match command.key {
            Key::AfterCount(at) if index == u32::from(at) && bytes != b"0" => {
                self.key_at = Some(index + 1);
            }
            Key::AfterStreams if bytes.eq_ignore_ascii_case(b"STREAMS") => {
                self.key_at = Some(index + 1);
            }
            _ => {}
        }
        match (command.effect, index) {
            (Effect::Container | Effect::Client, 1) => {
                self.sub = subcommand(bytes).map_or(u16::MAX, |(index, _)| index + 1);
            }
            (Effect::Client, 2) if self.is_reply() => self.reply = reply_mode(bytes),
            (Effect::Replconf, 1) => self.acknowledges = bytes.eq_ignore_ascii_case(b"ACK"),
            _ => {}
        }
    }

    fn name(&mut self, bytes: &[u8]) {
        self.command = command(bytes);
        match self.command {
            Some((_, command)) => {
                if let Key::At(at) = command.key {
                    self.key_at = Some(u32::from(at));
                }
            }
            None => self.module_name(bytes),
        }
    }

    fn module_name(&mut self, bytes: &[u8]) {
        let mut name = bytes.to_ascii_uppercase();
        let plain = |b: &u8| b.is_ascii_uppercase() || matches!(b, b'.' | b'_');
        let known = MODULES.iter().any(|m| name.starts_with(m.as_bytes()));
        name.truncate(self.module.0.len());
        if known && name.iter().all(plain) {
            self.module.0[..name.len()].copy_from_slice(&name);
            self.module.1 = name.len() as u8;
            self.key_at = Some(1);
        }
    }

    fn is_reply(&self) -> bool {
        subcommand(b"REPLY").is_some_and(|(index, _)| index + 1 == self.sub)
    }

    fn request(&mut self, output: &mut Output) -> Request {
        let text = match self.text {
            Some(text) => text,
            None => self.name_shape(None, output),
        };
        let command = self.command.map(|(_, command)| command);
        Request {
            text,
            started_ns: self.started_ns,
            lookup: command.map_or(Lookup::None, |c| c.lookup),
            effect: command.map_or(Effect::None, |c| c.effect),
            arguments: self.index.saturating_sub(1),
            reply: self.reply,
            acknowledges: self.acknowledges,
        }
    }

    /// The text of the command with its key's pattern.
    fn name_shape(&self, key: Option<&[u8]>, output: &mut Output) -> TextId {
        let module = &self.module.0[..usize::from(self.module.1)];
        let of = match self.command {
            Some((index, _)) => of_command(index, self.sub),
            None => keys::mix(SHAPES, keys::fingerprint(module)),
        };
        shape(of, key, output, |options| {
            let mut text = match (self.command, module) {
                (Some((_, command)), _) => command.name.to_owned(),
                (None, []) => "(unknown command)".to_owned(),
                (None, module) => String::from_utf8_lossy(module).into_owned(),
            };
            if self.sub > 0 {
                text.push(' ');
                text.push_str(super::commands::subcommand_name(self.sub - 1));
            }
            if let Some(key) = key {
                text.push(' ');
                text.push_str(&keys::shown(key, options));
            }
            text
        })
    }
}

/// Hash of a command and its subcommand's number.
fn of_command(index: u16, sub: u16) -> u64 {
    keys::mix(SHAPES, u64::from(index) << 16 | u64::from(sub))
}

fn shape(
    of: u64,
    key: Option<&[u8]>,
    output: &mut Output,
    build: impl FnOnce(Options) -> String,
) -> TextId {
    match key {
        Some(key) => output.key_shape(of, key, build),
        None => output.shape(of, build),
    }
}

/// A body with its length before it, taken off the front of `rest`.
#[inline]
fn body<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = number(b'$', rest)?;
    let (body, after) = after.split_at_checked(length)?;
    *rest = after.strip_prefix(b"\r\n")?;
    Some(body)
}

fn reply_mode(bytes: &[u8]) -> Option<ReplyMode> {
    match () {
        () if bytes.eq_ignore_ascii_case(b"ON") => Some(ReplyMode::On),
        () if bytes.eq_ignore_ascii_case(b"OFF") => Some(ReplyMode::Off),
        () if bytes.eq_ignore_ascii_case(b"SKIP") => Some(ReplyMode::Skip),
        () => None,
    }
}

/// Whether a piece begins with a command as clients send them; None if it is too short to tell.
pub fn plausible(bytes: &[u8]) -> Option<bool> {
    let Some(rest) = bytes.strip_prefix(b"*") else {
        return (!bytes.is_empty()).then_some(false);
    };
    let Some(rest) = whole_count(rest)? else {
        return Some(false);
    };
    let Some(rest) = rest.strip_prefix(b"$") else {
        return (!rest.is_empty()).then_some(false);
    };
    Some(whole_count(rest)?.is_some())
}

/// What stands behind a line that is a count above 0 (`Some(None)` if it is none).
fn whole_count(bytes: &[u8]) -> Option<Option<&[u8]>> {
    let digits = bytes.iter().take_while(|b| b.is_ascii_digit()).count();
    if digits == 0 || digits > 13 || bytes[0] == b'0' {
        return if bytes.is_empty() { None } else { Some(None) };
    }
    match &bytes[digits..] {
        [] | [b'\r'] => None,
        [b'\r', b'\n', rest @ ..] => Some(Some(rest)),
        _ => Some(None),
    }
}
