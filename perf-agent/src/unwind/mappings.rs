//! Executable mappings of a process (`/proc/PID/maps`).

/// What memory without a file or a name is called.
const ANONYMOUS: &str = "[anon]";

/// One executable mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub start: u64,
    pub end: u64,
    /// Offset of its first byte in the file.
    pub offset: u64,
    pub inode: u64,
    /// Empty where nothing is mapped: code made at run time.
    pub name: String,
}

impl Mapping {
    /// The entry of `/proc/PID/map_files` that opens what is mapped, whatever became of its path and
    /// in whichever mount namespace it is.
    pub fn link(&self, pid: u32) -> String {
        format!("/proc/{pid}/map_files/{:x}-{:x}", self.start, self.end)
    }

    /// What frames in it show as their module.
    pub fn module(&self) -> &str {
        match self.name.strip_suffix(" (deleted)").unwrap_or(&self.name) {
            "" => ANONYMOUS,
            name => name,
        }
    }

    /// Whether it is memory that a program filled, and no file on a disk.
    pub fn is_memory(&self) -> bool {
        is_memory(self.module())
    }
}

/// As [`Mapping::is_memory`], by [`Mapping::module`].
pub fn is_memory(module: &str) -> bool {
    const MADE_UP: [&str; 4] = ["/memfd:", "/dev/zero", "/dev/shm/", "/SYSV"];
    match module.starts_with('/') {
        true => MADE_UP.iter().any(|start| module.starts_with(start)),
        false => module.starts_with("[anon"),
    }
}

/// Reads the lines of the executable ones, by rising address.
pub fn parse(text: &str) -> Vec<Mapping> {
    text.lines().filter_map(line).collect()
}

fn line(line: &str) -> Option<Mapping> {
    let mut words = line.splitn(6, ' ');
    let (start, end) = words.next()?.split_once('-')?;
    let permissions = words.next()?;
    let (offset, _device, inode) = (words.next()?, words.next()?, words.next()?);
    let name = words.next().unwrap_or("").trim_start();
    let hex = |s| u64::from_str_radix(s, 16).ok();
    // The emulated page at the end of the address space holds no code that runs.
    if permissions.as_bytes().get(2) != Some(&b'x') || name == "[vsyscall]" {
        return None;
    }
    Some(Mapping {
        start: hex(start)?,
        end: hex(end)?,
        offset: hex(offset)?,
        inode: inode.parse().ok()?,
        name: name.to_owned(),
    })
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
        let read = parse(maps);
        let read: Vec<(&str, bool)> = read.iter().map(|m| (m.module(), m.is_memory())).collect();
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

    #[test]
    fn executable_mappings_are_read_with_names_that_have_blanks() {
        let text = "\
55d0c000-55d0d000 r--p 00000000 fe:00 77         /opt/a b/thing (deleted)
55d0d000-55d0f000 r-xp 00001000 fe:00 77         /opt/a b/thing (deleted)
7f0000000000-7f0000001000 rwxp 00000000 00:00 0
7ffd1000-7ffd2000 r-xp 00000000 00:00 0          [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0  [vsyscall]
nonsense
";
        let read = parse(text);
        assert_eq!(
            read[0],
            Mapping {
                start: 0x55d0_d000,
                end: 0x55d0_f000,
                offset: 0x1000,
                inode: 77,
                name: "/opt/a b/thing (deleted)".into()
            }
        );
        assert_eq!(read[0].link(3), "/proc/3/map_files/55d0d000-55d0f000");
        assert_eq!((read[1].name.as_str(), read[1].inode), ("", 0));
        assert_eq!(read[2].name, "[vdso]");
        assert_eq!(read.len(), 3);
    }
}
