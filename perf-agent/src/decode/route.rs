//! Routes of HTTP paths: `/users/42/orders?page=3` is `/users/*/orders`.
//!
//! What looks like an identifier in a segment becomes `*` by the rules of [`super::keys`], a segment with
//! characters that names of routes do not have (`@`, `%`, `=` and so on) becomes `*` as a whole, and
//! versions (`v2`) stay. Query, fragment and host are no part of it.

use super::keys;

/// Bytes of a path that are looked at; a longer path ends in `*`.
const MAX_PATH: usize = 256;

/// The path in a request's target. None where that has none, as `*` and the authority of `CONNECT`.
pub fn path(target: &[u8]) -> Option<&[u8]> {
    let target = match target.iter().position(|b| matches!(b, b'?' | b'#')) {
        Some(end) => &target[..end],
        None => target,
    };
    if target.first() == Some(&b'/') {
        return Some(target);
    }
    // A proxy is asked by the whole URL.
    let host = memchr::memmem::find(target, b"://")? + 3;
    let path = memchr::memchr(b'/', &target[host..]);
    Some(path.map_or(b"/", |at| &target[host + at..]))
}

enum Segment<'a> {
    Kept(&'a [u8]),
    Pattern(&'a [u8]),
    Folded,
}

fn segments(path: &[u8]) -> impl Iterator<Item = Segment<'_>> {
    let cut = path.len() > MAX_PATH;
    let path = &path[..path.len().min(MAX_PATH)];
    let mut segments = path.split(|b| *b == b'/').skip(1).peekable();
    std::iter::from_fn(move || {
        let segment = segments.next()?;
        let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~');
        Some(match segment {
            _ if cut && segments.peek().is_none() => Segment::Folded,
            [b'v' | b'V', digits @ ..] if (1..=2).contains(&digits.len()) => {
                let version = digits.iter().all(u8::is_ascii_digit);
                if version {
                    Segment::Kept(segment)
                } else {
                    Segment::Pattern(segment)
                }
            }
            segment if segment.iter().all(plain) => Segment::Pattern(segment),
            _ => Segment::Folded,
        })
    })
}

/// A hash of a path's route: equal for paths of the same route.
pub fn fingerprint(path: &[u8]) -> u64 {
    segments(path).fold(1, |hash, segment| {
        let part = match segment {
            Segment::Kept(bytes) => {
                let number = |hash, byte: &u8| hash << 8 | u64::from(*byte);
                bytes.iter().fold(1 << 32, number)
            }
            Segment::Pattern(bytes) => keys::fingerprint(bytes),
            Segment::Folded => 2,
        };
        keys::mix(hash, part)
    })
}

/// A path's route.
pub fn route(path: &[u8]) -> String {
    let mut route = String::new();
    for segment in segments(path) {
        route.push('/');
        match segment {
            Segment::Kept(bytes) => route.extend(bytes.iter().map(|b| char::from(*b))),
            Segment::Pattern(bytes) => route.push_str(&keys::pattern(bytes)),
            Segment::Folded => route.push('*'),
        }
    }
    route
}

/// Appends the route of a request's target; one without a path as it is.
pub fn fold(target: &[u8], out: &mut String) {
    match path(target) {
        Some(path) => out.push_str(&route(path)),
        None => out.push('*'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_fold_and_names_stay() {
        for (target, expected) in [
            ("/users/42/orders?page=3", "/users/*/orders"),
            ("/", "/"),
            ("/api/v2/items/", "/api/v2/items/"),
            ("/u/550e8400-e29b-41d4-a716-446655440000#x", "/u/*"),
            ("/static/app.3f2a9c1b.js", "/static/app.*.js"),
            ("/post/my-title-99", "/post/my-title-*"),
            ("/mail/bob@example.com/x", "/mail/*/x"),
            ("/a%20b/c", "/*/c"),
            ("http://example.com/a/1?b", "/a/*"),
            ("http://example.com", "/"),
            ("/verbose/view3/vx", "/verbose/view*/vx"),
        ] {
            let path = path(target.as_bytes()).unwrap();
            assert_eq!(route(path), expected, "{target}");
        }
        assert_eq!(path(b"*"), None);
        assert_eq!(path(b"example.com:443"), None);
        let long = format!("/{}", "x/".repeat(300));
        assert!(route(long.as_bytes()).ends_with("/x/*"));
    }

    #[test]
    fn paths_of_one_route_have_one_fingerprint() {
        let of = |path: &str| fingerprint(path.as_bytes());
        assert_eq!(of("/users/42/x"), of("/users/7/x"));
        assert_eq!(of("/m/a@b"), of("/m/c%20"));
        for (one, other) in [
            ("/v1/a", "/v2/a"),
            ("/a", "/b"),
            ("/a/", "/a"),
            ("/a/1", "/1/a"),
        ] {
            assert_ne!(of(one), of(other), "{one} {other}");
        }
    }
}
