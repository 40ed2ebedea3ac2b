//! What of a process's memory is code, by `/proc/PID/maps`.

/// What memory without a file or a name is called.
const ANONYMOUS: &str = "[anon]";

/// One line of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub start: u64,
    pub end: u64,
    pub offset: u64,
    pub name: String,
}

/// The last column, which may have spaces.
fn name_of<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let name = words.collect::<Vec<_>>().join(" ");
    match name.strip_suffix(" (deleted)").unwrap_or(&name) {
        "" => ANONYMOUS.to_owned(),
        name => name.to_owned(),
    }
}

/// The executable mappings of `/proc/PID/maps`.
pub fn mappings(text: &str) -> Vec<Mapping> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (start, end) = words.next()?.split_once('-')?;
            let hex = |s| u64::from_str_radix(s, 16).ok();
            let permissions = words.next()?;
            let offset = words.next()?;
            if !permissions.contains('x') {
                return None;
            }
            Some(Mapping {
                start: hex(start)?,
                end: hex(end)?,
                offset: hex(offset)?,
                name: name_of(words.skip(2)),
            })
        })
        .collect()
}

/// Whether what is mapped is memory that a program filled, and no file on a disk.
pub fn is_memory(name: &str) -> bool {
    const MADE_UP: [&str; 4] = ["/memfd:", "/dev/zero", "/dev/shm/", "/SYSV"];
    match name.starts_with('/') {
        true => MADE_UP.iter().any(|start| name.starts_with(start)),
        false => name.starts_with("[anon"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_memory_is_told_from_files() {
        let maps = "1000-2000 r-xp 0 0:0 0\n\
            3000-4000 rwxp 0 0:0 0 [anon: v8 code]\n\
            5000-6000 r-xp 1000 0:1 9 /memfd:doublemapper (deleted)\n\
            7000-8000 r-xp 0 fe:0 7 /usr/bin/old (deleted)\n\
            9000-a000 r-xp 0 0:0 0 [vdso]\n";
        let read = mappings(maps);
        let read: Vec<(&str, bool)> = read
            .iter()
            .map(|m| (m.name.as_str(), is_memory(&m.name)))
            .collect();
        assert_eq!(
            read,
            [
                ("[anon]", true),
                ("[anon: v8 code]", true),
                ("/memfd:doublemapper", true),
                ("/usr/bin/old", false),
                ("[vdso]", false),
            ]
        );
    }
}
