//! What a header block says of a request or an answer, and the text of a request.

use std::hash::{BuildHasher, RandomState};

use super::super::{Output, TextId, TraceId, route};
use super::hpack::{Field, MAX_VALUE};

/// Texts remembered by their method and path.
const RECENT: usize = 8;

/// Name of a request whose method and path are both not known.
pub const UNSEEN: &str = "(headers unseen)";

/// The fields of one block; kept to be filled again.
#[derive(Default)]
pub struct Fields {
    method: Vec<u8>,
    path: Vec<u8>,
    grpc: bool,
    pub status: Option<u16>,
    pub grpc_status: Option<u16>,
    pub trace: Option<TraceId>,
    /// A field came from an entry that was not seen.
    unseen: bool,
}

fn number(value: &[u8]) -> Option<u16> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

impl Fields {
    pub fn clear(&mut self) {
        self.method.clear();
        self.path.clear();
        (self.grpc, self.unseen) = (false, false);
        (self.status, self.grpc_status, self.trace) = (None, None, None);
    }

    pub fn add(&mut self, field: Field, value: &[u8]) {
        let value = &value[..value.len().min(MAX_VALUE)];
        match field {
            Field::Method => value.clone_into(&mut self.method),
            Field::Path => value.clone_into(&mut self.path),
            Field::Status => self.status = number(value),
            Field::GrpcStatus => self.grpc_status = number(value),
            Field::ContentType => self.grpc |= value.starts_with(b"application/grpc"),
            Field::TraceParent => self.trace = TraceId::parse(value),
            Field::Unseen => self.unseen = true,
            Field::Other => {}
        }
    }

    /// Trailers have neither; a request has both, unless they were not seen.
    pub fn is_request(&self) -> bool {
        !self.method.is_empty() || !self.path.is_empty() || self.unseen
    }

    /// Whether a request is a call of gRPC, or that cannot be known.
    pub fn may_be_grpc(&self) -> bool {
        self.grpc || self.unseen && matches!(&self.method[..], b"" | b"POST")
    }

    /// Whether the last fields of an answer may have the status in an entry that was not seen: that of
    /// gRPC, or any where they have none.
    pub fn hides_status(&self, may_be_grpc: bool) -> bool {
        self.unseen && self.grpc_status.is_none() && (may_be_grpc || self.status.is_none())
    }

    /// Paths of gRPC are names, not data: a service and a method. Where the content type was not
    /// seen, only a path that looks like nothing else is taken for one.
    fn is_grpc(&self) -> bool {
        match grpc_path(&self.path) {
            None => false,
            Some(_) if self.grpc => true,
            Some((service, method)) => {
                self.unseen
                    && service.contains(&b'.')
                    && method.first().is_some_and(u8::is_ascii_uppercase)
                    && method.iter().all(u8::is_ascii_alphabetic)
            }
        }
    }

    fn write(&self, raw: bool, text: &mut String) {
        if self.method.is_empty() && self.path.is_empty() {
            text.push_str(UNSEEN);
            return;
        }
        match &self.method[..] {
            b"" => text.push('?'),
            method => push(&method[..method.len().min(32)], text),
        }
        text.push(' ');
        match &self.path[..] {
            b"" => text.push('?'),
            path if raw || self.is_grpc() => push(path, text),
            path => route::fold(path, text),
        }
    }
}

/// The service and the method of `/pkg.Service/Method`.
fn grpc_path(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let legal = |b: &u8| b.is_ascii_alphanumeric() || b"._-".contains(b);
    let mut parts = path.strip_prefix(b"/")?.split(|b| *b == b'/');
    let (service, method) = (parts.next()?, parts.next()?);
    let named = |part: &[u8]| !part.is_empty() && part.iter().all(legal);
    (parts.next().is_none() && named(service) && named(method)).then_some((service, method))
}

fn push(bytes: &[u8], text: &mut String) {
    let printable = |b: &u8| (0x21..0x7f).contains(b);
    text.extend(
        bytes
            .iter()
            .map(|b| if printable(b) { char::from(*b) } else { '?' }),
    );
}

/// Texts of requests, remembered: folding a path costs more than all else of a small request.
#[derive(Default)]
pub struct Texts {
    hasher: RandomState,
    recent: [(u64, Option<TextId>); RECENT],
    next: usize,
}

impl Texts {
    pub fn text(&mut self, fields: &Fields, output: &mut Output) -> TextId {
        let parts = (&fields.method, &fields.path, fields.is_grpc());
        let hash = self.hasher.hash_one(parts);
        for (of, text) in &self.recent {
            if let (true, Some(text)) = (*of == hash, text) {
                return *text;
            }
        }
        let mut text = String::new();
        fields.write(output.options.raw, &mut text);
        let id = output.text(&text);
        self.recent[self.next] = (hash, Some(id));
        self.next = (self.next + 1) % RECENT;
        id
    }
}
