//! What the server sends.

use super::super::framing::Message;
use super::super::{Anomaly, Output, TextId, cut_to};
use super::KEPT_ANSWER;
use super::session::{Item, Kind, Session};
use super::wire::{split_text, sqlstate, text};

/// Most bytes of the columns that name a statement.
const MAX_COLUMNS: usize = 512;

impl Session {
    pub fn answer(&mut self, message: &Message<'_>, output: &mut Output) {
        if message.length == 1 {
            return self.encryption(message.bytes);
        }
        self.encryption_asked = false;
        let kept = &message.bytes[..message.bytes.len().min(KEPT_ANSWER)];
        let at_ns = message.last_ns;
        let kind = kept.first().copied().unwrap_or(0);
        match kind {
            b'D' | b'd' | b'W' | b'H' => self.first_byte(message.first_ns),
            b'C' | b'I' | b's' | b'V' => {
                self.first_byte(message.first_ns);
                self.complete(at_ns, kept, output);
            }
            b'Z' => self.ready(at_ns, kept.get(5).copied().unwrap_or(0), output),
            b'E' => self.error(message, kept, output),
            b'T' => self.row_description(message.first_ns, kept, output),
            b'1' => self.expect(Kind::Parse, output),
            b'2' => self.expect(Kind::Bind, output),
            b'3' => self.expect(Kind::Close, output),
            b'n' => self.expect(Kind::Describe, output),
            b'G' => self.copy_in_response(message.first_ns),
            b'S' => self.parameter(kept),
            // Authentication, keys, notices, notifications: sent at any time, for no request.
            _ => {}
        }
    }

    /// The byte that answers an SSLRequest or GSSENCRequest.
    fn encryption(&mut self, bytes: &[u8]) {
        self.encryption_asked = false;
        self.encrypted = matches!(bytes.first(), Some(b'S' | b'G'));
    }

    fn parameter(&mut self, bytes: &[u8]) {
        let (name, value) = split_text(bytes.get(5..).unwrap_or_default());
        if name == b"standard_conforming_strings" {
            self.syntax.backslashes = value.starts_with(b"off");
        }
    }

    fn expect(&mut self, kind: Kind, output: &mut Output) {
        if !self.in_order() {
            return;
        }
        if self.front().is_some_and(|item| item.kind == kind) {
            self.pop();
        } else {
            self.unexpected(output);
        }
    }

    /// CommandComplete, EmptyQueryResponse, PortalSuspended, FunctionCallResponse.
    pub fn complete(&mut self, at_ns: u64, bytes: &[u8], output: &mut Output) {
        if !self.in_order() {
            return self.hold(at_ns, None, output);
        }
        let item = self.front().map(|item| *item);
        if let Some(item) = item.filter(|item| item.unseen && bytes.first() == Some(&b'C')) {
            self.name_by_command(&item, text(bytes.get(5..).unwrap_or_default()).0, output);
        }
        self.copy_in = false;
        self.answered(at_ns, None, output);
    }

    /// A statement prepared unseen that returned no description is named by what it did, too.
    fn name_by_command(&mut self, item: &Item, tag: &[u8], output: &mut Output) {
        let word = tag.split(|b| *b == b' ').next().unwrap_or_default();
        let plain = !word.is_empty() && word.len() < 32 && word.iter().all(u8::is_ascii_uppercase);
        if let (true, Ok(word)) = (plain, std::str::from_utf8(word)) {
            let text = format!("{} {word}", output.text_of(item.text));
            let id = output.text(&text);
            self.rename(item.name, id);
        }
    }

    fn row_description(&mut self, first_ns: u64, bytes: &[u8], output: &mut Output) {
        if !self.in_order() {
            return;
        }
        match self.front().map(|item| *item) {
            Some(item) if item.kind == Kind::Describe => {
                if item.unseen {
                    let id = columns(bytes, output);
                    self.rename(item.name, id);
                }
                self.pop();
            }
            _ => self.first_byte(first_ns),
        }
    }

    fn copy_in_response(&mut self, first_ns: u64) {
        self.first_byte(first_ns);
        if !self.copy_ended {
            self.copy_in = true;
            if self.in_order() && self.front().is_some_and(|item| item.kind == Kind::Execute) {
                self.drop_syncs_behind_front();
            }
        }
    }

    fn error(&mut self, message: &Message<'_>, bytes: &[u8], output: &mut Output) {
        let state = sqlstate(bytes).unwrap_or("unknown");
        let error = Some(output.text(state));
        let at_ns = message.last_ns;
        self.copy_in = false;
        self.first_byte(message.first_ns);
        if !self.in_order() {
            return self.hold(at_ns, error, output);
        }
        let Some(mut item) = self.front().map(|item| *item) else {
            // A server that shuts down says so unasked.
            return output.anomaly(Anomaly::Orphan, 1);
        };
        if self.has_failed() {
            return self.unexpected(output);
        }
        let mut instead_of = None;
        let mut all = false;
        match item.kind {
            Kind::Sync => item.text = output.text("(sync)"),
            Kind::Parse | Kind::Bind | Kind::Describe => instead_of = Some(item.text),
            Kind::Statement | Kind::Unending if state == "42601" && item.whole.is_some() => {
                // The text as a whole was refused.
                item.text = item.whole.unwrap_or(item.text);
                all = true;
            }
            _ => {}
        }
        if item.kind != Kind::Sync {
            self.pop();
        }
        self.fail(instead_of, all);
        self.finish(item, at_ns, error, output);
    }
}

/// A statement's name by the columns of its RowDescription: their names and tables.
fn columns(bytes: &[u8], output: &mut Output) -> TextId {
    let mut shown = String::from("unseen (");
    let mut fields = bytes.get(7..).unwrap_or_default();
    // Behind its name: table, attribute, type, type's size and modifier, format.
    while let Some(end) = fields.iter().position(|b| *b == 0) {
        let Some(rest) = fields.get(end + 1..).filter(|rest| rest.len() >= 18) else {
            break;
        };
        if !shown.ends_with('(') {
            shown.push_str(", ");
        }
        let table = u32::from_be_bytes([rest[0], rest[1], rest[2], rest[3]]);
        if table != 0 {
            shown.push_str(&format!("{table}."));
        }
        let name = String::from_utf8_lossy(&fields[..end]);
        shown.extend(name.chars().map(|c| if c.is_control() { ' ' } else { c }));
        fields = &rest[18..];
        if cut_to(&mut shown, MAX_COLUMNS) {
            shown.push('…');
            break;
        }
    }
    shown.push(')');
    output.text(&shown)
}
