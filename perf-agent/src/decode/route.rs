//! Paths of requests as routes.

/// Appends the route of a path: without its query, with parts that look like ids as `*`.
pub fn fold(path: &[u8], out: &mut String) {
    let end = path.iter().position(|b| matches!(b, b'?' | b'#'));
    let path = &path[..end.unwrap_or(path.len()).min(256)];
    for (i, part) in path.split(|b| *b == b'/').enumerate() {
        if i > 0 {
            out.push('/');
        }
        let plain = |b: &u8| b.is_ascii_alphabetic() || b"._-$".contains(b);
        if part.len() <= 32 && part.iter().all(plain) {
            out.extend(part.iter().map(|b| char::from(*b)));
        } else {
            out.push('*');
        }
    }
}
