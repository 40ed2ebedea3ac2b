//! What a client sends.

use super::super::framing::Message;
use super::super::sql::{self, Statements};
use super::super::{Output, TextId};
use super::KEPT_REQUEST;
use super::session::{Begun, Item, Kind, MAX_PORTALS, Portal, Session, Statement};
use super::wire::{CANCEL, GSSENC, SSL, number, split_text, text};

/// Statements of one Query that are told apart; what follows them has the text of the last.
const MAX_STATEMENTS_OF_QUERY: usize = 256;
/// Bytes of a prepared statement's name that are shown; the server cuts identifiers there.
const MAX_NAME: usize = 63;

/// A message's body as far as it is looked at, the same whether it came whole or in pieces; whether
/// that is all of it.
fn body<'a>(message: &Message<'a>) -> (&'a [u8], bool) {
    let kept = &message.bytes[..message.bytes.len().min(KEPT_REQUEST)];
    (
        kept.get(5..).unwrap_or_default(),
        kept.len() as u64 == message.length,
    )
}

impl Session {
    pub fn request(&mut self, message: &Message<'_>, output: &mut Output) {
        let (body, whole) = body(message);
        let started_ns = message.first_ns;
        let kind = message.bytes.first().copied().unwrap_or(0);
        if kind == b'X' {
            return self.answered_unseen(output);
        }
        if matches!(kind, b'p' | b'd' | b'H') {
            return;
        }
        if matches!(kind, b'c' | b'f') {
            self.copy_ended = !std::mem::take(&mut self.copy_in);
            return;
        }
        self.sent(started_ns, output);
        match kind {
            b'Q' => self.query(body, whole, started_ns, output),
            b'P' => self.parse_message(body, started_ns, output),
            b'B' => self.bind(body, started_ns, output),
            b'E' => self.execute(body, started_ns, output),
            b'D' => self.describe(body, started_ns, output),
            b'C' => self.close(body, started_ns, output),
            b'S' => self.sync(started_ns, output),
            b'F' => {
                let text = output.text("(function call)");
                self.push(Item::new(Kind::Function, text, started_ns), output);
                self.push_sync(started_ns, output);
            }
            _ => self.startup(message, output),
        }
    }

    fn startup(&mut self, message: &Message<'_>, output: &mut Output) {
        match number(message.bytes, 4) {
            Some(SSL | GSSENC) => self.encryption_asked = true,
            Some(CANCEL) => self.starting = false,
            _ => {
                self.starting = false;
                let text = output.text("(connect)");
                self.push(Item::new(Kind::Connect, text, message.first_ns), output);
                self.push_sync(message.first_ns, output);
            }
        }
    }

    fn push_sync(&mut self, started_ns: u64, output: &mut Output) {
        self.push(
            Item::new(Kind::Sync, super::super::output::OTHER_TEXT, started_ns),
            output,
        );
    }

    fn sync(&mut self, started_ns: u64, output: &mut Output) {
        if !self.copy_in {
            self.push_sync(started_ns, output);
        }
    }

    fn query(&mut self, body: &[u8], whole: bool, started_ns: u64, output: &mut Output) {
        self.copy_ended = false;
        let (text, ended) = text(body);
        let cut = !ended && !whole;
        let shape =
            |text: &[u8], cut, output: &mut Output| sql::text_id(text, self.syntax, cut, output);
        if !sql::may_be_several(text) {
            let id = shape(text, cut, output);
            let kind = if cut { Kind::Unending } else { Kind::Statement };
            self.push(Item::new(kind, id, started_ns), output);
            return self.push_sync(started_ns, output);
        }
        let syntax = self.syntax;
        let mut parts = Statements::new(text, syntax)
            .take(MAX_STATEMENTS_OF_QUERY)
            .peekable();
        let mut whole_text = None;
        if parts.peek().is_none() {
            // Nothing but semicolons: the server answers EmptyQueryResponse.
            let id = shape(b"", false, output);
            self.push(Item::new(Kind::Statement, id, started_ns), output);
        }
        let mut count = 0;
        while let Some(part) = parts.next() {
            count += 1;
            let last = parts.peek().is_none();
            let unending = last && (cut || count == MAX_STATEMENTS_OF_QUERY);
            let id = sql::text_id(part, syntax, last && cut, output);
            let kind = if unending {
                Kind::Unending
            } else {
                Kind::Statement
            };
            let mut item = Item::new(kind, id, started_ns);
            if !last && count == 1 {
                item.whole = Some(
                    *whole_text.get_or_insert_with(|| sql::text_id(text, syntax, cut, output)),
                );
            }
            self.push(item, output);
        }
        self.push_sync(started_ns, output);
    }

    fn parse_message(&mut self, body: &[u8], started_ns: u64, output: &mut Output) {
        let (name, rest) = split_text(body);
        let (query, ended) = text(rest);
        let id = sql::text_id(query, self.syntax, !ended, output);
        let name = self.name_hash(name, output);
        let statement = Statement {
            text: id,
            unseen: false,
        };
        self.remember(name, statement);
        let sequence = self.push(Item::new(Kind::Parse, id, started_ns), output);
        self.parse = Some(Begun {
            name,
            sequence,
            started_ns,
        });
    }

    /// Hash of a statement's name. Mostly it is the one before, and comparing the two takes a tenth of
    /// the time.
    fn name_hash(&mut self, name: &[u8], output: &Output) -> u64 {
        let (last, hash) = &mut self.last_name;
        if name != last.as_slice() || *hash == 0 {
            if name.len() > MAX_NAME {
                return output.shapes.hash(&name);
            }
            last.clear();
            last.extend_from_slice(name);
            *hash = output.shapes.hash(&name);
        }
        *hash
    }

    /// The statement of a name; one that was prepared unseen is named so.
    fn statement(&mut self, name: &[u8], output: &mut Output) -> (u64, Statement) {
        let hash = self.name_hash(name, output);
        if let Some(statement) = self.statements.get(&hash) {
            return (hash, *statement);
        }
        let statement = Statement {
            text: unseen(name, output),
            unseen: true,
        };
        self.remember(hash, statement);
        (hash, statement)
    }

    fn bind(&mut self, body: &[u8], started_ns: u64, output: &mut Output) {
        let (portal, rest) = split_text(body);
        let (name, statement) = self.statement(text(rest).0, output);
        // A Parse that waits for its answer was sent for this.
        let parse = self
            .parse
            .filter(|p| p.name == name && self.waits(p.sequence));
        if parse.is_some() {
            self.parse = None;
        }
        let started_ns = parse.map_or(started_ns, |p| p.started_ns);
        let mut item = Item::new(Kind::Bind, statement.text, started_ns);
        (item.unseen, item.name) = (statement.unseen, name);
        let sequence = self.push(item, output);
        let bound = Portal {
            statement,
            name,
            begun: Some(Begun {
                name,
                sequence,
                started_ns,
            }),
        };
        if portal.is_empty() {
            self.unnamed_portal = Some(bound);
            return;
        }
        let hash = output.shapes.hash(&portal);
        self.portals.retain(|(other, _)| *other != hash);
        if self.portals.len() >= MAX_PORTALS {
            self.portals.remove(0);
        }
        self.portals.push((hash, bound));
    }

    fn portal(&mut self, name: &[u8], output: &Output) -> Option<&mut Portal> {
        if name.is_empty() {
            return self.unnamed_portal.as_mut();
        }
        let hash = output.shapes.hash(&name);
        let mut portals = self.portals.iter_mut();
        portals.find(|(other, _)| *other == hash).map(|(_, p)| p)
    }

    fn execute(&mut self, body: &[u8], started_ns: u64, output: &mut Output) {
        self.copy_ended = false;
        let Some(portal) = self.portal(text(body).0, output) else {
            let id = output.text("unseen:(portal)");
            self.push(Item::new(Kind::Execute, id, started_ns), output);
            return;
        };
        let (statement, name, begun) = (portal.statement, portal.name, portal.begun.take());
        // Later Executes of the portal, which fetch more rows, have only their own time.
        let begun = begun.filter(|b| self.waits(b.sequence));
        let started_ns = begun.map_or(started_ns, |b| b.started_ns);
        let mut item = Item::new(Kind::Execute, statement.text, started_ns);
        (item.unseen, item.name) = (statement.unseen, name);
        self.push(item, output);
    }

    fn describe(&mut self, body: &[u8], started_ns: u64, output: &mut Output) {
        let (kind, name) = split_kind(body);
        let (name, statement) = if kind == b'S' {
            self.statement(name, output)
        } else if let Some(portal) = self.portal(name, output) {
            (portal.name, portal.statement)
        } else {
            let text = output.text("unseen:(portal)");
            (
                0,
                Statement {
                    text,
                    unseen: false,
                },
            )
        };
        let mut item = Item::new(Kind::Describe, statement.text, started_ns);
        (item.unseen, item.name) = (statement.unseen, name);
        self.push(item, output);
    }

    fn close(&mut self, body: &[u8], started_ns: u64, output: &mut Output) {
        let (kind, name) = split_kind(body);
        let hash = output.shapes.hash(&name);
        if kind == b'S' {
            self.statements.remove(&hash);
        } else if name.is_empty() {
            self.unnamed_portal = None;
        } else {
            self.portals.retain(|(other, _)| *other != hash);
        }
        let text = output.text("(close)");
        self.push(Item::new(Kind::Close, text, started_ns), output);
    }
}

/// `S` or `P`, and the name of the statement or portal.
fn split_kind(body: &[u8]) -> (u8, &[u8]) {
    let kind = body.first().copied().unwrap_or(0);
    (kind, text(body.get(1..).unwrap_or_default()).0)
}

fn unseen(name: &[u8], output: &mut Output) -> TextId {
    if name.is_empty() {
        return output.text("unseen:(unnamed)");
    }
    let name = String::from_utf8_lossy(&name[..name.len().min(MAX_NAME)]);
    let plain = name.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut text = String::from("unseen:");
    text.extend(plain);
    output.text(&text)
}
