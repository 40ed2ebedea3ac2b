//! What messages hold, as text: commands with their namespace and the fields they ask for, codes of
//! errors. Values are passed over.

use std::fmt::Write;

use super::bson::{Document, Value, split_cstring};
use super::{OP_GET_MORE, int};

/// Names shown of a filter or a pipeline, and bytes of each.
const MAX_NAMES: usize = 8;
const MAX_NAME: usize = 64;

/// What an OP_MSG holds: the command or reply, and the first document of its first sequence.
#[derive(Default)]
pub struct Sections<'a> {
    pub body: Option<Document<'a>>,
    first: Option<Document<'a>>,
}

/// Reads the sections behind the flags; `end` is where they end in a whole message.
pub fn sections(body: &[u8], end: usize) -> Sections<'_> {
    let mut sections = Sections::default();
    let mut rest = body.get(4..end.min(body.len())).unwrap_or(&[]);
    while let Some((kind, bytes)) = rest.split_first() {
        let size = match kind {
            0 => Document::read(bytes).map(|(document, size)| {
                sections.body = sections.body.or(Some(document));
                size
            }),
            1 => int(bytes, 0)
                .and_then(|n| usize::try_from(n).ok())
                .inspect(|_| {
                    let name = bytes.get(4..).and_then(split_cstring);
                    let document = name.and_then(|(_, documents)| Document::read(documents));
                    sections.first = sections.first.or(document.map(|d| d.0));
                }),
            _ => None,
        };
        // A sequence of less than its own length field would not end.
        let Some(size) = size.filter(|n| *n >= 4) else {
            break;
        };
        rest = bytes.get(size..).unwrap_or(&[]);
    }
    sections
}

/// `find shop.orders {status, _id}`.
pub fn command(sections: Sections<'_>, text: &mut String) {
    let Some((name, target)) = sections.body.and_then(|d| d.into_iter().next()) else {
        text.push('?');
        return;
    };
    let (mut database, mut filter, mut pipeline, mut list, mut cursor) =
        (None, None, None, None, None);
    for (key, value) in sections.body.into_iter().flatten().skip(1) {
        match (key, value) {
            (b"$db", Value::Text(db)) => database = Some(db),
            (b"filter" | b"query" | b"q", Value::Document(d)) => filter = Some(d),
            (b"pipeline", Value::Array(stages)) => pipeline = Some(stages),
            // Drivers put these in a sequence of their own, other clients in the command.
            (b"updates" | b"deletes", Value::Array(all)) => list = Some(all),
            (b"collection", Value::Text(collection)) => cursor = Some(collection),
            _ => {}
        }
    }
    push_name(name, text);
    text.push(' ');
    push_name(database.unwrap_or(b"?"), text);
    let collection = match (name, target) {
        (b"getMore", _) => cursor,
        (_, Value::Text(collection)) => Some(collection),
        _ => None,
    };
    // `hello: 1` names no collection, and some commands name a database or a user.
    if let Some(collection) = collection.filter(|_| names_collection(name)) {
        text.push('.');
        push_name(collection, text);
    }
    let first = list.and_then(|all| match all.into_iter().next() {
        Some((_, Value::Document(d))) => Some(d),
        _ => None,
    });
    if let (b"update" | b"delete", Some(first)) = (name, sections.first.or(first))
        && let Some(Value::Document(q)) = first.get(b"q")
    {
        filter = Some(q);
    }
    if let Some(filter) = filter {
        text.push_str(" {");
        push_names(filter.into_iter().map(|(key, _)| key), text);
        text.push('}');
    }
    if let Some(stages) = pipeline {
        text.push_str(" [");
        let names = stages.into_iter().filter_map(|(_, stage)| match stage {
            Value::Document(d) => d.into_iter().next().map(|(key, _)| key),
            _ => None,
        });
        push_names(names, text);
        text.push(']');
    }
}

/// Commands whose first value is text but no collection.
fn names_collection(command: &[u8]) -> bool {
    let user = [
        &b"createUser"[..],
        b"updateUser",
        b"dropUser",
        b"usersInfo",
        b"getLog",
    ];
    let role = [
        &b"createRole"[..],
        b"updateRole",
        b"dropRole",
        b"grantRolesToUser",
        b"getParameter",
    ];
    !user.contains(&command) && !role.contains(&command)
}

fn push_names<'a>(names: impl Iterator<Item = &'a [u8]>, text: &mut String) {
    for (i, name) in names.enumerate() {
        if i > 0 {
            text.push_str(", ");
        }
        if i == MAX_NAMES {
            text.push_str("...");
            return;
        }
        push_name(name, text);
    }
}

/// A name as text: bounded, printable, and parts that are numbers (places in an array, ids used as
/// keys) folded.
fn push_name(name: &[u8], text: &mut String) {
    let cut = &name[..name.len().min(MAX_NAME)];
    for (i, part) in cut.split(|b| *b == b'.').enumerate() {
        if i > 0 {
            text.push('.');
        }
        if !part.is_empty() && part.iter().all(u8::is_ascii_digit) {
            text.push('?');
            continue;
        }
        for c in String::from_utf8_lossy(part).chars() {
            text.push(if c.is_control() { '?' } else { c });
        }
    }
}

/// OP_QUERY and OP_GET_MORE.
pub fn legacy(code: i32, body: &[u8], text: &mut String) {
    let Some((namespace, rest)) = body.get(4..).and_then(split_cstring) else {
        text.push('?');
        return;
    };
    let document = rest.get(8..).and_then(Document::read).map(|d| d.0);
    let database = namespace.strip_suffix(b".$cmd");
    match (code, database, document) {
        (OP_GET_MORE, ..) => {
            text.push_str("getMore ");
            push_name(namespace, text);
        }
        (_, Some(database), Some(document)) => {
            let first = document.into_iter().next();
            // A command with a read preference is wrapped.
            let first = match first {
                Some((b"$query" | b"query", Value::Document(d))) => d.into_iter().next(),
                other => other,
            };
            push_name(first.map_or(b"?", |f| f.0), text);
            text.push(' ');
            push_name(database, text);
            if let Some((command, Value::Text(collection))) = first
                && names_collection(command)
            {
                text.push('.');
                push_name(collection, text);
            }
        }
        _ => {
            text.push_str("find ");
            push_name(namespace, text);
            if let Some(document) = document {
                text.push_str(" {");
                push_names(document.into_iter().map(|(key, _)| key), text);
                text.push('}');
            }
        }
    }
}

/// Writes the code of a failed reply: `11000 DuplicateKey`.
pub fn error_of(reply: Document<'_>, failed: bool, text: &mut String) -> Option<()> {
    let (mut code, mut name, mut write_error) = (None, None, None);
    let mut ok = !failed;
    for (key, value) in reply {
        match (key, value) {
            (b"ok", Value::Number(n)) => ok = n != 0.0,
            (b"code", Value::Number(n)) => code = Some(n),
            (b"codeName", Value::Text(n)) => name = Some(n),
            (b"writeErrors", Value::Array(errors)) => write_error = errors.into_iter().next(),
            (b"writeConcernError", error) => write_error = write_error.or(Some((key, error))),
            _ => {}
        }
    }
    if ok {
        let Some((_, Value::Document(error))) = write_error else {
            return None;
        };
        let Some(Value::Number(n)) = error.get(b"code") else {
            return None;
        };
        (code, name) = (Some(n), None);
        if let Some(Value::Text(n)) = error.get(b"codeName") {
            name = Some(n);
        }
    }
    // A `String` takes whatever is written.
    let _ = write!(text, "{}", code.unwrap_or(0.0) as i64);
    if let Some(name) = name {
        text.push(' ');
        push_name(name, text);
    }
    Some(())
}
