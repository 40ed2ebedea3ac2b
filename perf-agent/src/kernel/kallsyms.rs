//! Names of the kernel's functions, from `/proc/kallsyms`.
//!
//! A table of our own: the resident memory of the agent is 22 MB less than with blazesym's, which
//! keeps an object for each of the kernel's 120,000 functions and which would have to be let go of
//! and read again (85 ms). This one is about 5 MB.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    sync::LazyLock,
};

/// No function of the kernel is longer; what is further from a symbol has none.
const MAX_FUNCTION_BYTES: u64 = 256 << 10;

/// Functions by address.
#[derive(Default)]
pub struct Kallsyms {
    starts: Vec<u64>,
    /// Where the name of each begins in `text`, in which it ends at a line's end.
    names: Vec<u32>,
    text: Vec<u8>,
}

impl Kallsyms {
    /// The running kernel's, read by the first who asks (85 ms); without names where it cannot be read.
    pub fn of_running_kernel() -> &'static Kallsyms {
        static TABLE: LazyLock<Kallsyms> = LazyLock::new(|| {
            let file = File::open("/proc/kallsyms").map(BufReader::new);
            file.and_then(Kallsyms::parse).unwrap_or_else(|e| {
                tracing::debug!("reading the kernel's symbols: {e}");
                Kallsyms::default()
            })
        });
        &TABLE
    }

    /// Reads lines `ADDRESS TYPE NAME[\t[MODULE]]`; those that are something else or hide their
    /// address (`kernel.kptr_restrict`) are passed over.
    ///
    /// # Errors
    /// That of the reader.
    pub fn parse(mut reader: impl BufRead) -> io::Result<Kallsyms> {
        let mut found = Kallsyms::default();
        let mut order: Vec<(u64, u32)> = Vec::new();
        let mut line = Vec::new();
        loop {
            line.clear();
            if reader.read_until(b'\n', &mut line)? == 0 {
                break;
            }
            let Some((address, name)) = function(&line) else {
                continue;
            };
            let Ok(at) = u32::try_from(found.text.len()) else {
                break;
            };
            order.push((address, at));
            found.text.extend_from_slice(name);
            found.text.push(b'\n');
        }
        // Of several names for one address the first stays.
        order.sort_by_key(|(address, _)| *address);
        order.dedup_by_key(|(address, _)| *address);
        found.text.shrink_to_fit();
        (found.starts, found.names) = order.into_iter().unzip();
        Ok(found)
    }

    /// The function an address is in.
    pub fn name(&self, address: u64) -> Option<&str> {
        let i = self.starts.partition_point(|start| *start <= address);
        let i = i.checked_sub(1)?;
        if address - self.starts[i] > MAX_FUNCTION_BYTES {
            return None;
        }
        let name = self.text.get(self.names[i] as usize..)?;
        let end = name.iter().position(|b| *b == b'\n')?;
        std::str::from_utf8(&name[..end]).ok()
    }
}

/// First byte of the running kernel's function `name`, and of what comes next; `None` where it is not there or
/// addresses are hidden. For one function: the whole table takes 85 ms, a function near the beginning 10.
///
/// # Errors
/// The file cannot be read.
pub fn range_of(name: &str) -> io::Result<Option<(u64, u64)>> {
    range_in(BufReader::new(File::open("/proc/kallsyms")?), name)
}

fn range_in(mut reader: impl BufRead, name: &str) -> io::Result<Option<(u64, u64)>> {
    let mut start = None;
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        match (start, function(&line)) {
            (None, Some((address, found))) if found == name.as_bytes() => start = Some(address),
            // Several names may be of one address. Those of the kernel itself are in order.
            (Some(start), Some((address, _))) if address > start => {
                return Ok(Some((start, address)));
            }
            _ => {}
        }
    }
}

/// Address and name of a line that is a function's.
fn function(line: &[u8]) -> Option<(u64, &[u8])> {
    let mut words = line
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    let address = std::str::from_utf8(words.next()?).ok()?;
    let address = u64::from_str_radix(address, 16).ok()?;
    let kind = words.next()?;
    let name = words.next()?;
    (address != 0 && matches!(kind, b"t" | b"T" | b"w" | b"W")).then_some((address, name))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_address_is_in_the_function_that_begins_last_before_it() {
        let text = "0000000000000000 T hidden\n\
                    ffffffffc0001000 t of_module\t[module]\n\
                    ffffffff81000000 T _stext\n\
                    ffffffff81000000 T alias\n\
                    ffffffff81000800 D data\n\
                    ffffffff81001000 t second\n";
        let table = Kallsyms::parse(text.as_bytes()).unwrap();
        for (address, name) in [
            (0xffff_ffff_8100_0000, Some("_stext")),
            (0xffff_ffff_8100_0fff, Some("_stext")),
            (0xffff_ffff_8100_1000, Some("second")),
            (0xffff_ffff_c000_1010, Some("of_module")),
            (0xffff_ffff_c100_0000, None),
            (0x1000, None),
        ] {
            assert_eq!(table.name(address), name, "{address:#x}");
        }
    }

    #[test]
    fn a_function_ends_where_the_next_begins() {
        let text = "ffffffff81000000 T first\n\
                    ffffffff81001000 t wanted\n\
                    ffffffff81001000 t alias\n\
                    ffffffff81001800 D data\n\
                    ffffffff81002000 t next\n";
        let range = |name| range_in(text.as_bytes(), name).unwrap();
        let wanted = Some((0xffff_ffff_8100_1000, 0xffff_ffff_8100_2000));
        assert_eq!(range("wanted"), wanted);
        assert_eq!(range("absent"), None);
        assert_eq!(range("want"), None);
        // Nothing says where it ends.
        assert_eq!(range("next"), None);
    }

    #[test]
    fn this_kernel_names_a_function_of_its_own() {
        let table = Kallsyms::of_running_kernel();
        // Without privilege the addresses are hidden, and then there are no names.
        let known = |name: &str| {
            let at = table.names.iter().position(|at| {
                table.text[*at as usize..].starts_with(format!("{name}\n").as_bytes())
            });
            at.map(|i| table.name(table.starts[i] + 1).map(str::to_owned))
        };
        match table.starts.is_empty() {
            true => assert_eq!(known("schedule"), None),
            false => assert_eq!(known("schedule"), Some(Some("schedule".to_owned()))),
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[0-9a-f tTD\n\t\\[\\]x]{0,300}", address: u64) {
            let table = Kallsyms::parse(text.as_bytes()).unwrap();
            let _ = table.name(address);
        }
    }
}
