//! What a client sends.

use super::super::framing::Message;
use super::super::sql::{self, Statements};
use super::super::{Output, TextId};
use super::KEPT_REQUEST;
use super::session::{Command, Kind, Session, Statement};
use super::wire::{
    CONTINUED, HEADER, body_length, capability, command, command_fits, number, sql_of,
};

/// Statements of one text that are told apart; what follows them has the text of the last.
const MAX_STATEMENTS_OF_QUERY: usize = 256;
/// Body of a login packet that asks for TLS, which then begins.
const SSL_REQUEST: u32 = 32;
/// MariaDB's "the statement prepared last".
const LAST_PREPARED: u32 = u32::MAX;

impl Session {
    /// Takes a packet; false if it cannot be one. `lost` says that boundaries of answers are.
    pub fn request(&mut self, message: &Message<'_>, lost: bool, output: &mut Output) -> bool {
        let packet = &message.bytes[..message.bytes.len().min(KEPT_REQUEST)];
        let (Some(n), Some(&sequence)) = (body_length(packet), packet.get(3)) else {
            return false;
        };
        let body = &packet[HEADER..];
        let cut = (body.len() as u32) < n;
        let continued = std::mem::replace(&mut self.continued[0], n == CONTINUED);
        if self.infile || continued {
            self.infile &= n > 0;
            self.answered_after(sequence);
            return true;
        }
        if self.login {
            self.login = false;
            self.greeting = false;
            return self.login_packet(body, n, message.first_ns, output);
        }
        if sequence != 0 && self.authenticating() {
            self.sequence = Some(sequence.wrapping_add(1));
            return true;
        }
        if lost {
            self.answered_unseen(output);
        }
        let known = sequence == 0 && body.first().is_some_and(|c| command_fits(*c, n));
        if known {
            self.command(body, cut, message.first_ns, output);
        }
        known
    }

    /// The client said more: the server's next packet goes on from its number.
    fn answered_after(&mut self, sequence: u8) {
        let next = Some(sequence.wrapping_add(1));
        if self.sequence.is_some() {
            self.sequence = next;
        } else if let Some(command) = self.queue.last_mut() {
            command.answer = next;
        }
    }

    fn login_packet(&mut self, body: &[u8], n: u32, started_ns: u64, output: &mut Output) -> bool {
        let Some(asked) = number(body, 0, 4) else {
            return false;
        };
        let agreed = asked as u32 & self.offered;
        if agreed & capability::SSL != 0 && n == SSL_REQUEST {
            // The login itself comes inside.
            (self.encrypted, self.login) = (true, true);
            return true;
        }
        self.agreed = Some(agreed);
        self.deprecate_eof = Some(agreed & capability::DEPRECATE_EOF != 0);
        let mut login = Command::new(Kind::Login);
        login.answer = None;
        let text = output.text("(connect)");
        self.ask(text, started_ns, login, output);
        true
    }

    fn command(&mut self, body: &[u8], cut: bool, started_ns: u64, output: &mut Output) {
        let (kind, name) = match body[0] {
            command::QUERY => return self.query(sql_of(body), cut, started_ns, output),
            command::PREPARE => return self.prepare(sql_of(body), cut, started_ns, output),
            command::EXECUTE | command::BULK_EXECUTE => {
                return self.execute(Kind::Execute, body, started_ns, output);
            }
            command::FETCH => return self.execute(Kind::Fetch, body, started_ns, output),
            command::CLOSE => {
                self.statements.remove(&statement_id(body));
                return;
            }
            command::QUIT | command::LONG_DATA => return,
            command::CHANGE_USER => {
                self.statements.clear();
                (Kind::ChangeUser, "(change user)")
            }
            command::RESET_CONNECTION => {
                self.statements.clear();
                (Kind::Single, "(reset connection)")
            }
            command::FIELD_LIST => (Kind::FieldList, "(field list)"),
            command::PROCESS_INFO => (Kind::Query, "(process info)"),
            command::BINLOG_DUMP | command::BINLOG_DUMP_GTID => (Kind::Binlog, "(binlog dump)"),
            command::STATISTICS => (Kind::Single, "(statistics)"),
            command::PING => (Kind::Single, "(ping)"),
            command::INIT_DB => (Kind::Single, "(init db)"),
            command::RESET_STATEMENT => (Kind::Single, "(reset statement)"),
            command::SET_OPTION => (Kind::Single, "(set option)"),
            _ => (Kind::Single, "(other command)"),
        };
        let text = output.text(name);
        self.ask(text, started_ns, Command::new(kind), output);
    }

    fn query(&mut self, text: &[u8], cut: bool, started_ns: u64, output: &mut Output) {
        let syntax = self.syntax;
        let mut ask = |part: &[u8], cut: bool, follows: bool, unending: bool| {
            let id = sql::text_id(part, syntax, cut, output);
            let mut command = Command::new(Kind::Query);
            command.call = is_call(part, self.syntax);
            (command.follows, command.unending) = (follows, unending);
            self.ask(id, started_ns, command, output);
        };
        if !sql::may_be_several(text) {
            return ask(text, cut, false, cut);
        }
        let mut parts = Statements::new(text, syntax)
            .take(MAX_STATEMENTS_OF_QUERY)
            .peekable();
        if parts.peek().is_none() {
            return ask(text, cut, false, cut);
        }
        let mut count = 0;
        while let Some(part) = parts.next() {
            let last = parts.peek().is_none();
            count += 1;
            let unending = last && (cut || count == MAX_STATEMENTS_OF_QUERY);
            ask(part, last && cut, count > 1, unending);
        }
    }

    fn prepare(&mut self, text: &[u8], cut: bool, started_ns: u64, output: &mut Output) {
        let statement = sql::text_id(text, self.syntax, cut, output);
        self.prepared = Some(Statement {
            text: statement,
            call: is_call(text, self.syntax),
            unseen: false,
        });
        let id = prepare_text(statement, output);
        let mut command = Command::new(Kind::Prepare);
        command.prepares = self.prepared;
        self.ask(id, started_ns, command, output);
    }

    fn execute(&mut self, kind: Kind, body: &[u8], started_ns: u64, output: &mut Output) {
        let id = statement_id(body);
        let statement = match self.statements.get(&id) {
            Some(statement) => *statement,
            None if id == LAST_PREPARED && self.prepared.is_some() => {
                self.prepared.unwrap_or_else(|| unseen(id, output))
            }
            None => {
                let statement = unseen(id, output);
                self.remember(id, statement);
                statement
            }
        };
        let mut command = Command::new(kind);
        (command.statement, command.unseen) = (id, statement.unseen);
        command.call = statement.call;
        self.ask(statement.text, started_ns, command, output);
    }
}

fn statement_id(body: &[u8]) -> u32 {
    number(body, 1, 4).unwrap_or(0) as u32
}

fn is_call(text: &[u8], syntax: sql::Syntax) -> bool {
    // Most statements are told by one letter.
    let first = text.iter().find(|b| !b.is_ascii_whitespace());
    matches!(first, Some(b'c' | b'C' | b'{' | b'/' | b'-' | b'#' | b'('))
        && sql::is_one_of(sql::first_word(text, syntax), &["call"])
}

/// The text of a COM_STMT_PREPARE, by that of its statement.
fn prepare_text(statement: TextId, output: &mut Output) -> TextId {
    let hash = output.shapes.hash(&("prepare", statement));
    if let Some(id) = output.shapes.get(hash) {
        return id;
    }
    let text = format!("(prepare) {}", output.text_of(statement));
    let id = output.text(&text);
    output.shapes.put(hash, id, text);
    id
}

fn unseen(id: u32, output: &mut Output) -> Statement {
    Statement {
        text: output.text(&format!("unseen:{id}")),
        call: false,
        unseen: true,
    }
}
