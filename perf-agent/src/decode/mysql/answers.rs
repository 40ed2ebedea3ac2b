//! What the server sends.

use super::super::framing::Message;
use super::super::{Anomaly, Exchange, Output};
use super::KEPT_ANSWER;
use super::session::{Command, Kind, Phase, Session, Statement};
use super::wire::{
    CONTINUED, HEADER, body_length, capability, encoded, error, number, ok_status, status,
};

/// Most bytes of the columns that name a statement.
const MAX_COLUMNS: usize = 512;
/// An ERR packet with this number tells how far MariaDB is with a statement.
const PROGRESS: u64 = 0xffff;

/// A packet of an answer.
#[derive(Clone, Copy)]
struct Packet<'a> {
    body: &'a [u8],
    length: u32,
    at_ns: u64,
}

impl Packet<'_> {
    fn first(&self) -> u8 {
        self.body.first().copied().unwrap_or(0)
    }

    fn is_eof(&self) -> bool {
        self.first() == 0xfe && self.length == 5
    }

    fn eof_status(&self) -> u16 {
        number(self.body, 3, 2).unwrap_or(0) as u16
    }
}

impl Session {
    /// Takes a packet; false if it cannot be one.
    pub fn answer(&mut self, message: &Message<'_>, output: &mut Output) -> bool {
        let kept = &message.bytes[..message.bytes.len().min(KEPT_ANSWER)];
        let (Some(length), Some(&sequence)) = (body_length(kept), kept.get(3)) else {
            return false;
        };
        let packet = Packet {
            body: &kept[HEADER..],
            length,
            at_ns: message.last_ns,
        };
        if length > 0 && packet.body.is_empty() {
            // What it is was in a gap.
            return false;
        }
        if std::mem::replace(&mut self.continued[1], length == CONTINUED) {
            self.sequence = self.sequence.map(|s| s.wrapping_add(1));
            return true;
        }
        if std::mem::take(&mut self.greeting) {
            return self.greet(&packet, output);
        }
        let late_eof = self.late_eof.take();
        if late_eof == Some(sequence) && packet.is_eof() {
            self.deprecate_eof = Some(false);
            return true;
        }
        let Some(command) = self.queue.next().copied() else {
            // A server that shuts down or closes an idle connection says so unasked.
            output.anomaly(Anomaly::Orphan, 1);
            return packet.first() == 0xff;
        };
        let expected = self.sequence.or(command.answer);
        if expected.is_some_and(|expected| expected != sequence) {
            return false;
        }
        self.sequence = Some(sequence.wrapping_add(1));
        let progress = packet.first() == 0xff && number(packet.body, 1, 2) == Some(PROGRESS);
        if progress {
            return true;
        }
        self.queue.first_byte(message.first_ns);
        self.packet(&command, &packet, output)
    }

    /// The server's greeting, or that it takes no connection.
    fn greet(&mut self, packet: &Packet<'_>, output: &mut Output) -> bool {
        if packet.first() == 0xff {
            let Some(error) = error(packet.body) else {
                return false;
            };
            let (text, error) = (output.text("(connect)"), output.text(&error));
            output.exchanges.push(Exchange {
                text,
                started_ns: packet.at_ns,
                first_byte_ns: packet.at_ns,
                last_byte_ns: packet.at_ns,
                queued_ns: 0,
                error: Some(error),
                hits: 0,
                misses: 0,
                trace: None,
            });
            return true;
        }
        let Some(version) = packet.body.iter().position(|b| *b == 0) else {
            return false;
        };
        // Behind the version: thread, challenge, a zero; flags, in two halves.
        let low = number(packet.body, version + 14, 2);
        let high = number(packet.body, version + 19, 2).unwrap_or(0);
        self.offered = low.map_or(u32::MAX, |low| (high << 16 | low) as u32);
        packet.first() == 10
    }

    fn packet(&mut self, command: &Command, packet: &Packet<'_>, output: &mut Output) -> bool {
        if packet.first() == 0xff && self.phase_takes_errors() {
            return self.failed(packet, output);
        }
        match (command.kind, self.phase) {
            (Kind::Login | Kind::ChangeUser, _) => self.authentication(packet, output),
            (Kind::Binlog, _) => {
                if packet.is_eof() {
                    self.ended(packet.at_ns, 0, None, false, output);
                }
            }
            (Kind::Single, _) => {
                let flags = match packet.first() {
                    0 => ok_status(packet.body).unwrap_or(0),
                    0xfe if packet.is_eof() => packet.eof_status(),
                    // COM_STATISTICS is answered by a text.
                    _ => return self.ended_as_is(packet, output),
                };
                self.ended(packet.at_ns, flags, None, false, output);
            }
            (Kind::Fetch | Kind::FieldList, _) => self.row(packet, output),
            (Kind::Prepare, Phase::First) => return self.prepared(command, packet, output),
            (Kind::Prepare, phase) => self.definition(phase, packet, output),
            (_, Phase::First) => return self.result(packet, output),
            (_, Phase::Columns { left }) => self.column(command, left, packet, output),
            (_, _) => self.row(packet, output),
        }
        true
    }

    /// Column definitions begin with a length that an error does not look like; everything else does not.
    fn phase_takes_errors(&self) -> bool {
        !matches!(self.phase, Phase::Prepared { .. })
    }

    fn failed(&mut self, packet: &Packet<'_>, output: &mut Output) -> bool {
        let Some(error) = error(packet.body) else {
            return false;
        };
        let error = output.text(&error);
        self.ended(packet.at_ns, 0, Some(error), false, output);
        true
    }

    /// An answer that tells nothing of the session.
    fn ended_as_is(&mut self, packet: &Packet<'_>, output: &mut Output) -> bool {
        (self.phase, self.sequence) = (Phase::First, None);
        self.answer_exchange(packet.at_ns, None, output);
        true
    }

    fn authentication(&mut self, packet: &Packet<'_>, output: &mut Output) {
        // 0xfe asks for another way to authenticate, 1 has more data for this one.
        if packet.first() != 0 {
            return;
        }
        let flags = ok_status(packet.body).unwrap_or(0);
        let login = self.queue.next().is_some_and(|c| c.kind == Kind::Login);
        self.ended(
            packet.at_ns,
            flags & !status::MORE_RESULTS,
            None,
            false,
            output,
        );
        let compression = capability::COMPRESS | capability::ZSTD;
        if login && self.agreed.is_some_and(|agreed| agreed & compression != 0) {
            self.compressed = true;
            output.anomaly(Anomaly::Unsupported, 1);
            self.end(output);
        }
    }

    /// The first packet of a result: OK, a file that is asked for, or a number of columns.
    fn result(&mut self, packet: &Packet<'_>, output: &mut Output) -> bool {
        let agreed = self.agreed.unwrap_or(0);
        let optional = agreed & capability::OPTIONAL_METADATA != 0 && packet.length <= 4;
        match packet.first() {
            0 if !optional => match ok_status(packet.body) {
                Some(flags) => self.ended(packet.at_ns, flags, None, false, output),
                None => return false,
            },
            0xfb => self.infile = true,
            _ => {
                let at = usize::from(optional);
                let Some((columns, size)) = encoded(packet.body, at) else {
                    return false;
                };
                // MariaDB says behind the number whether definitions follow, MySQL before it.
                let bare = match packet.body.get(at + size) {
                    Some(follow) => *follow == 0,
                    None => optional && packet.first() == 0,
                };
                let fits = (1..=4096).contains(&columns) && packet.length as usize <= at + size + 1;
                if !fits {
                    return false;
                }
                self.phase = Phase::Columns {
                    left: if bare { 0 } else { columns },
                };
            }
        }
        true
    }

    fn column(&mut self, command: &Command, left: u64, packet: &Packet<'_>, output: &mut Output) {
        if left > 0 {
            if command.unseen {
                self.name_column(packet.body);
            }
            self.phase = Phase::Columns { left: left - 1 };
            return;
        }
        if command.unseen && !self.columns.is_empty() {
            self.name_by_columns(command, output);
        }
        self.phase = Phase::Rows;
        if self.deprecate_eof != Some(true) && packet.is_eof() {
            self.deprecate_eof = Some(false);
            if packet.eof_status() & status::CURSOR != 0 {
                self.ended(packet.at_ns, packet.eof_status(), None, true, output);
            }
        } else {
            self.deprecate_eof = Some(true);
            self.row(packet, output);
        }
    }

    /// A row, or the end of them.
    fn row(&mut self, packet: &Packet<'_>, output: &mut Output) {
        self.phase = Phase::Rows;
        if packet.first() != 0xfe || packet.length == CONTINUED {
            return;
        }
        let flags = if packet.is_eof() {
            packet.eof_status()
        } else if self.deprecate_eof == Some(false) {
            return;
        } else {
            ok_status(packet.body).unwrap_or(0)
        };
        self.ended(packet.at_ns, flags, None, true, output);
    }

    /// COM_STMT_PREPARE's OK: the statement's number, how many columns and parameters.
    fn prepared(&mut self, command: &Command, packet: &Packet<'_>, output: &mut Output) -> bool {
        let (Some(id), Some(columns), Some(parameters)) = (
            number(packet.body, 1, 4),
            number(packet.body, 5, 2),
            number(packet.body, 7, 2),
        ) else {
            return false;
        };
        if packet.first() != 0 {
            return false;
        }
        if let Some(statement) = command.prepares {
            self.remember(id as u32, statement);
        }
        let optional = self.agreed.unwrap_or(0) & capability::OPTIONAL_METADATA != 0;
        if optional && packet.body.get(12) == Some(&0) {
            return self.ended_as_is(packet, output);
        }
        self.phase = Phase::Prepared {
            parameters,
            columns,
            end: false,
        };
        self.close_definitions(packet, output);
        true
    }

    fn definition(&mut self, phase: Phase, packet: &Packet<'_>, output: &mut Output) {
        let Phase::Prepared {
            mut parameters,
            mut columns,
            end,
        } = phase
        else {
            return;
        };
        if end && packet.is_eof() {
            self.deprecate_eof = Some(false);
            self.phase = Phase::Prepared {
                parameters,
                columns,
                end: false,
            };
            return self.close_definitions(packet, output);
        }
        if end {
            self.deprecate_eof = Some(true);
        }
        let section = if parameters > 0 {
            &mut parameters
        } else {
            &mut columns
        };
        *section = section.saturating_sub(1);
        let end = *section == 0 && self.deprecate_eof != Some(true);
        self.phase = Phase::Prepared {
            parameters,
            columns,
            end,
        };
        // Whether an end follows the last is not known on a connection joined late.
        if !end || self.deprecate_eof.is_none() && parameters + columns == 0 {
            self.late_eof = self.sequence.filter(|_| end);
            self.close_definitions(packet, output);
        }
    }

    /// Ends COM_STMT_PREPARE when all its definitions passed.
    fn close_definitions(&mut self, packet: &Packet<'_>, output: &mut Output) {
        let Phase::Prepared {
            parameters: 0,
            columns: 0,
            ..
        } = self.phase
        else {
            return;
        };
        self.ended_as_is(packet, output);
    }

    /// Adds a column definition's table and name to the name of a statement prepared unseen.
    fn name_column(&mut self, body: &[u8]) {
        // Catalog, schema, table, original table, name: each with its length.
        let mut at = 0;
        let mut fields = [&b""[..]; 5];
        for field in &mut fields {
            let Some((n, size)) = encoded(body, at) else {
                return;
            };
            let end = (at + size).saturating_add(usize::try_from(n).unwrap_or(usize::MAX));
            let Some(bytes) = body.get(at + size..end) else {
                return;
            };
            (*field, at) = (bytes, end);
        }
        if self.columns.len() > MAX_COLUMNS {
            return;
        }
        if !self.columns.is_empty() {
            self.columns.push_str(", ");
        }
        for (field, dot) in [(fields[3], "."), (fields[4], "")] {
            let text = String::from_utf8_lossy(field);
            let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
            self.columns.extend(plain);
            self.columns
                .push_str(if field.is_empty() { "" } else { dot });
        }
    }

    fn name_by_columns(&mut self, command: &Command, output: &mut Output) {
        let cut = if self.columns.len() > MAX_COLUMNS {
            "…"
        } else {
            ""
        };
        let text = output.text(&format!("unseen ({}{cut})", self.columns));
        self.columns = String::new();
        let statement = Statement {
            text,
            call: false,
            unseen: false,
        };
        self.remember(command.statement, statement);
        self.queue.rename_next(text);
    }
}
