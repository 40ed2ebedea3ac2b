//! Finds kernel struct fields in the running kernel's BTF (`Documentation/bpf/btf.rst`).
//!
//! A reader of our own, over the bytes as they are: `btfparse` takes 108 ms and 62 MB of resident
//! memory for the same file (6 MB, 160,000 types), more than the agent may use altogether; this
//! one takes about 5 ms and keeps four bytes a type.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    path::Path,
};

use perf_ebpf_common::offsets::{FIELDS, Field, Need, Offsets};

const MAGIC: u16 = 0xeb9f;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_FORWARD: u32 = 7;
const KIND_TYPEDEF: u32 = 8;
const KIND_FUNC_PROTO: u32 = 13;

/// Type information, as the kernel publishes it in `/sys/kernel/btf/vmlinux`.
pub struct Btf {
    bytes: Vec<u8>,
    strings: (usize, usize),
    /// Where each type begins in `bytes`, by type id less one.
    types: Vec<u32>,
    /// Structs, unions and typedefs by name, for the names that were asked for.
    named: HashMap<String, Vec<u32>>,
}

/// Why type information cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BtfError {
    Unreadable(String),
    /// Not BTF, or cut, at this byte.
    Malformed(usize),
}

impl fmt::Display for BtfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BtfError::Unreadable(why) => write!(f, "{why}"),
            BtfError::Malformed(at) => write!(f, "type information is malformed at byte {at}"),
        }
    }
}

impl std::error::Error for BtfError {}

/// Where a field is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub byte: u32,
    /// Bit within the byte, for a bit-field.
    pub bit: Option<u32>,
}

#[derive(Clone, Copy)]
struct Type {
    /// Byte after the common header.
    rest: usize,
    kind: u32,
    members: usize,
    bitfields: bool,
    /// Size of a struct, type id of a pointer, typedef or qualifier.
    size_or_type: u32,
}

impl Btf {
    /// Reads the running kernel's.
    ///
    /// # Errors
    /// The file is absent (kernel built without `CONFIG_DEBUG_INFO_BTF`), unreadable or malformed.
    pub fn of_running_kernel() -> Result<Btf, BtfError> {
        let path = Path::new("/sys/kernel/btf/vmlinux");
        let bytes = std::fs::read(path)
            .map_err(|e| BtfError::Unreadable(format!("{}: {e}", path.display())))?;
        let mut names: Vec<&str> = FIELDS
            .iter()
            .flat_map(|f| f.paths)
            .map(|p| split(p).0)
            .collect();
        names.push("btf_trace_block_rq_issue");
        let hooks: Vec<String> = super::PROGRAMS
            .iter()
            .map(|p| format!("btf_trace_{}", p.name))
            .collect();
        names.extend(hooks.iter().map(String::as_str));
        Btf::parse(bytes, &names)
    }

    /// Indexes type information, keeping the named types only.
    ///
    /// # Errors
    /// [`BtfError::Malformed`].
    pub fn parse(bytes: Vec<u8>, names: &[&str]) -> Result<Btf, BtfError> {
        let word = |at: usize| read_u32(&bytes, at).ok_or(BtfError::Malformed(at));
        if bytes.get(..2) != Some(&MAGIC.to_ne_bytes()) {
            return Err(BtfError::Malformed(0));
        }
        let header = word(4)? as usize;
        let section = |offset: u32, length: u32| {
            let start = header.checked_add(offset as usize)?;
            let end = start.checked_add(length as usize)?;
            (end <= bytes.len()).then_some((start, end))
        };
        let (start, end) = section(word(8)?, word(12)?).ok_or(BtfError::Malformed(8))?;
        let strings = section(word(16)?, word(20)?).ok_or(BtfError::Malformed(16))?;
        // 160,000 lookups: a list took 23 ms of every attach.
        let names: HashSet<&[u8]> = names.iter().map(|n| n.as_bytes()).collect();
        let mut btf = Btf {
            bytes,
            strings,
            types: Vec::new(),
            named: HashMap::new(),
        };
        let mut at = start;
        while at < end {
            btf.types.push(at as u32);
            let t = btf.type_at(at).ok_or(BtfError::Malformed(at))?;
            if (t.members > 0 || t.kind == KIND_TYPEDEF)
                && let Some(name) = read_u32(&btf.bytes, at).and_then(|n| btf.name_bytes(n))
                && names.contains(name)
            {
                let name = String::from_utf8_lossy(name).into_owned();
                btf.named
                    .entry(name)
                    .or_default()
                    .push(btf.types.len() as u32);
            }
            at = t.rest + trailing(&t).ok_or(BtfError::Malformed(at))?;
        }
        if at != end {
            return Err(BtfError::Malformed(at));
        }
        Ok(btf)
    }

    fn type_at(&self, at: usize) -> Option<Type> {
        let info = read_u32(&self.bytes, at + 4)?;
        Some(Type {
            rest: at + 12,
            kind: info >> 24 & 0x1f,
            members: (info & 0xffff) as usize,
            bitfields: info >> 31 != 0,
            size_or_type: read_u32(&self.bytes, at + 8)?,
        })
    }

    fn type_of(&self, id: u32) -> Option<Type> {
        self.type_at(*self.types.get((id as usize).checked_sub(1)?)? as usize)
    }

    /// A type with its typedefs and qualifiers taken off.
    fn resolved(&self, mut id: u32) -> Option<Type> {
        // Real chains are a handful long; the bound keeps a malformed circle from hanging.
        for _ in 0..32 {
            let t = self.type_of(id)?;
            match t.kind {
                // typedef, volatile, const, restrict, type tag
                8 | 9 | 10 | 11 | 18 => id = t.size_or_type,
                _ => return Some(t),
            }
        }
        None
    }

    fn name_bytes(&self, offset: u32) -> Option<&[u8]> {
        let tail = self
            .bytes
            .get(self.strings.0 + offset as usize..self.strings.1)?;
        let end = tail.iter().position(|&b| b == 0)?;
        Some(&tail[..end])
    }

    fn string(&self, offset: u32) -> Option<&str> {
        std::str::from_utf8(self.name_bytes(offset)?).ok()
    }

    /// The same type ids with the typedefs of the given names and nothing else: what aya asks of the
    /// kernel's types is the id of a hook's typedef, and its own reading of all of them takes 22 ms
    /// and some 20 MB.
    pub fn typedefs_only(&self, names: &[String]) -> Vec<u8> {
        let kept: HashMap<u32, &String> = names
            .iter()
            .filter_map(|name| Some((*self.named.get(name)?.first()?, name)))
            .collect();
        let (mut types, mut strings) = (Vec::with_capacity(12 * self.types.len()), vec![0u8]);
        let mut put = |words: [u32; 3]| types.extend(words.iter().flat_map(|w| w.to_ne_bytes()));
        for id in 1..=self.types.len() as u32 {
            match (kept.get(&id), self.type_of(id)) {
                (Some(name), Some(t)) => {
                    put([strings.len() as u32, KIND_TYPEDEF << 24, t.size_or_type]);
                    strings.extend(name.as_bytes());
                    strings.push(0);
                }
                _ => put([0, KIND_FORWARD << 24, 0]),
            }
        }
        let (types_len, strings_len) = (types.len() as u32, strings.len() as u32);
        let mut out = MAGIC.to_ne_bytes().to_vec();
        out.extend([1, 0]);
        for word in [24, 0, types_len, types_len, strings_len] {
            out.extend(word.to_ne_bytes());
        }
        out.extend(types);
        out.extend(strings);
        out
    }

    /// Finds `struct.member.member`; anonymous members are descended. A bare struct name gives its
    /// size. `None` where it is absent, or where two structs of that name disagree.
    pub fn place(&self, path: &str) -> Option<Place> {
        let (name, members) = split(path);
        let mut places = self.named.get(name)?.iter().map(|&id| {
            let t = self.type_of(id)?;
            match members {
                None => Some(Place {
                    byte: t.size_or_type,
                    bit: None,
                }),
                Some(members) => self.member(t, members, 0, 0),
            }
        });
        let first = places.next()?;
        places.all(|p| p == first).then_some(first)?
    }

    /// Finds `path` inside `t`, which begins at bit `base`.
    fn member(&self, t: Type, path: &str, base: u32, depth: u32) -> Option<Place> {
        if depth > 16 || !matches!(t.kind, KIND_STRUCT | KIND_UNION) {
            return None;
        }
        let (head, tail) = path
            .split_once('.')
            .map_or((path, None), |(h, t)| (h, Some(t)));
        for i in 0..t.members {
            let at = t.rest + i * 12;
            let name = self.string(read_u32(&self.bytes, at)?)?;
            let id = read_u32(&self.bytes, at + 4)?;
            let offset = read_u32(&self.bytes, at + 8)?;
            let (bits, size) = if t.bitfields {
                (offset & 0xff_ffff, offset >> 24)
            } else {
                (offset, 0)
            };
            let bit = base.checked_add(bits)?;
            if name == head {
                return match tail {
                    Some(tail) => self.member(self.resolved(id)?, tail, bit, depth + 1),
                    None => Some(Place {
                        byte: bit / 8,
                        bit: (size != 0).then_some(bit % 8),
                    }),
                };
            }
            if name.is_empty()
                && let Some(inner) = self.resolved(id)
                && let Some(place) = self.member(inner, path, bit, depth + 1)
            {
                return Some(place);
            }
        }
        None
    }

    /// How many arguments a tracepoint passes, the leading `void *` of its handlers not counted.
    pub fn tracepoint_args(&self, name: &str) -> Option<usize> {
        let id = *self.named.get(&format!("btf_trace_{name}"))?.first()?;
        let pointer = self.resolved(id)?;
        let proto = self.resolved(pointer.size_or_type)?;
        (proto.kind == KIND_FUNC_PROTO).then(|| proto.members.saturating_sub(1))
    }
}

/// Resolves every field of [`Offsets`]. The second part names those absent, with who needs them.
pub fn resolve(btf: &Btf) -> (Offsets, Vec<(&'static str, Need)>) {
    let mut offsets = Offsets::UNSET;
    let mut absent = Vec::new();
    for Field {
        name,
        need,
        paths,
        set,
    } in FIELDS
    {
        match paths.iter().find_map(|path| btf.place(path)) {
            Some(place) => set(&mut offsets, place.byte),
            None => absent.push((*name, *need)),
        }
    }
    (offsets, absent)
}

fn split(path: &str) -> (&str, Option<&str>) {
    path.split_once('.')
        .map_or((path, None), |(name, members)| (name, Some(members)))
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes([four[0], four[1], four[2], four[3]]))
}

/// Bytes that follow a type's common header.
fn trailing(t: &Type) -> Option<usize> {
    let n = t.members;
    Some(match t.kind {
        1 | 14 | 17 => 4,
        KIND_ARRAY => 12,
        KIND_STRUCT | KIND_UNION | 15 | 19 => 12 * n,
        6 | KIND_FUNC_PROTO => 8 * n,
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `struct outer { u32 a; union { u64 b; struct { u16 c; u16 bits:3, flag:1; }; }; }`
    fn sample() -> Vec<u8> {
        let names = ["", "outer", "a", "b", "c", "bits", "flag", "int"];
        let mut strings = Vec::new();
        let offset: Vec<u32> = names
            .iter()
            .map(|n| {
                let at = strings.len() as u32;
                strings.extend(n.as_bytes());
                strings.push(0);
                at
            })
            .collect();
        let mut types: Vec<u32> = Vec::new();
        // 1: int
        types.extend([offset[7], 1 << 24, 4, 32]);
        // 2: struct { c; bits:3; flag:1 } with bit-fields
        types.extend([0, 1 << 31 | 4 << 24 | 3, 4]);
        types.extend([offset[4], 1, 0]);
        types.extend([offset[5], 1, 3 << 24 | 16]);
        types.extend([offset[6], 1, 1 << 24 | 19]);
        // 3: union { b; (2) }
        types.extend([0, 5 << 24 | 2, 8]);
        types.extend([offset[3], 1, 0, 0, 2, 0]);
        // 4: struct outer { a; (3) }
        types.extend([offset[1], 4 << 24 | 2, 16]);
        types.extend([offset[2], 1, 0, 0, 3, 64]);
        let types: Vec<u8> = types.iter().flat_map(|w| w.to_ne_bytes()).collect();
        let mut out = MAGIC.to_ne_bytes().to_vec();
        out.extend([1, 0]);
        for w in [
            24,
            0,
            types.len() as u32,
            types.len() as u32,
            strings.len() as u32,
        ] {
            out.extend(w.to_ne_bytes());
        }
        out.extend(types);
        out.extend(strings);
        out
    }

    #[test]
    fn members_are_found_through_anonymous_unions_and_as_bit_fields() {
        let btf = Btf::parse(sample(), &["outer"]).unwrap();
        assert_eq!(btf.place("outer.a"), Some(Place { byte: 0, bit: None }));
        assert_eq!(btf.place("outer.b"), Some(Place { byte: 8, bit: None }));
        assert_eq!(btf.place("outer.c"), Some(Place { byte: 8, bit: None }));
        assert_eq!(
            btf.place("outer.flag"),
            Some(Place {
                byte: 10,
                bit: Some(3)
            })
        );
        assert_eq!(
            btf.place("outer"),
            Some(Place {
                byte: 16,
                bit: None
            })
        );
        assert_eq!(btf.place("outer.absent"), None);
        assert_eq!(btf.place("absent.a"), None);
    }

    #[test]
    fn what_aya_gets_keeps_the_ids_of_the_typedefs_it_asks_for() {
        let mut bytes = sample();
        // A typedef of type 4, named like the first member, behind the other types.
        let types = u32::from_ne_bytes(bytes[12..16].try_into().unwrap());
        let strings = bytes.split_off(24 + types as usize);
        let offset_of_a = 1 + "outer\0".len() as u32;
        for word in [offset_of_a, KIND_TYPEDEF << 24, 4] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(&strings);
        for field in [12..16, 16..20] {
            bytes[field].copy_from_slice(&(types + 12).to_ne_bytes());
        }
        let ours = Btf::parse(bytes, &["a", "outer"]).unwrap();
        let slim = ours.typedefs_only(&["a".to_owned(), "absent".to_owned()]);
        let theirs = aya::Btf::parse(&slim, aya::Endianness::default()).unwrap();
        let id = |name| theirs.id_by_type_name_kind(name, aya_obj::btf::BtfKind::Typedef);
        assert_eq!(id("a").unwrap(), 5);
        assert!(id("absent").is_err());
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_an_error_and_never_a_panic(
            at in 0usize..200, value: u8, cut in 0usize..200
        ) {
            let mut bytes = sample();
            let length = bytes.len();
            bytes[at % length] = value;
            bytes.truncate(length - cut % length);
            if let Ok(btf) = Btf::parse(bytes, &["outer"]) {
                let _ = btf.place("outer.flag");
                let _ = btf.tracepoint_args("outer");
            }
        }
    }
}
