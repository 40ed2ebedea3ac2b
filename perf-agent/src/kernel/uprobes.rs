//! Probes on OpenSSL in the files the targets have mapped: once a file, whoever maps it (the kernel
//! side leaves at once for threads that are no target's).

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    programs::{UProbe, uprobe::UProbeScope},
};

use super::links::Links;

/// Functions with the program of their entry.
pub const FUNCTIONS: [(&str, &str); 4] = [
    ("tls_read", "SSL_read"),
    ("tls_read_ex", "SSL_read_ex"),
    ("tls_write", "SSL_write"),
    ("tls_write_ex", "SSL_write_ex"),
];
/// Program of the return of each.
pub const RETURN: &str = "tls_return";

/// Probes that are attached (until the programs are unloaded: it takes 0.1 s each, see
/// `Control::tls_stopped`), and the files looked at.
#[derive(Default)]
pub struct Uprobes {
    /// By device and inode as `/proc/PID/maps` shows them.
    seen: HashSet<(String, u64)>,
    /// Files with probes.
    pub attached: Vec<String>,
    /// Files without, and why.
    pub refused: Vec<String>,
}

impl Uprobes {
    /// Probes what a process has mapped and was not looked at. True where a probe was added.
    pub fn look_at(&mut self, ebpf: &mut Ebpf, links: &Links, pid: u32) -> bool {
        if links.refusal(RETURN).is_some() {
            return false;
        }
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        let before = self.attached.len();
        for line in maps.lines() {
            let Some((range, key, path)) = executable(line) else {
                continue;
            };
            if !is_openssl(path) || !self.seen.insert(key) {
                continue;
            }
            // By the mapping itself: in a container the path names another file or none.
            let file = PathBuf::from(format!("/proc/{pid}/map_files/{range}"));
            self.probe(ebpf, links, &file, path);
        }
        self.attached.len() > before
    }

    /// Probes the libraries that a command started on this host will load: by the time its mappings
    /// could be read it has connected. True where a probe was added.
    pub fn look_at_host(&mut self, ebpf: &mut Ebpf, links: &Links) -> bool {
        if links.refusal(RETURN).is_some() {
            return false;
        }
        let before = self.attached.len();
        for path in of_cache(&fs::read("/etc/ld.so.cache").unwrap_or_default()) {
            let Ok(file) = fs::metadata(&path) else {
                continue;
            };
            let (major, minor) = (libc::major(file.dev()), libc::minor(file.dev()));
            if self
                .seen
                .insert((format!("{major:02x}:{minor:02x}"), file.ino()))
            {
                self.probe(ebpf, links, Path::new(&path), &path);
            }
        }
        self.attached.len() > before
    }

    fn probe(&mut self, ebpf: &mut Ebpf, links: &Links, file: &Path, name: &str) {
        match self.attach(ebpf, links, file) {
            Ok(()) => self.attached.push(name.to_owned()),
            Err(e) => self.refused.push(format!("{name}: {e:#}")),
        }
    }

    fn attach(&mut self, ebpf: &mut Ebpf, links: &Links, file: &Path) -> Result<()> {
        let mut found = 0;
        for (program, function) in FUNCTIONS {
            // 1.1.0 has no `_ex`. The return first: an entry without it would be left open.
            for name in [RETURN, program] {
                if let Some(why) = links.refusal(name) {
                    anyhow::bail!("{why}");
                }
                let uprobe: &mut UProbe = ebpf
                    .program_mut(name)
                    .with_context(|| format!("program {name} is missing"))?
                    .try_into()
                    .with_context(|| format!("program {name}"))?;
                match uprobe.attach(function, file, UProbeScope::AllProcesses) {
                    Ok(_) => found += 1,
                    Err(e) if function.ends_with("_ex") => {
                        tracing::debug!(function, "{e}");
                        break;
                    }
                    Err(e) => return Err(e).with_context(|| format!("attaching to {function}")),
                }
            }
        }
        anyhow::ensure!(found > 0, "no OpenSSL function");
        Ok(())
    }
}

/// Range, device and inode, and path of an executable mapping of a file.
fn executable(line: &str) -> Option<(&str, (String, u64), &str)> {
    let mut fields = line.split_ascii_whitespace();
    let (range, mode, _, device) = (
        fields.next()?,
        fields.next()?,
        fields.next()?,
        fields.next()?,
    );
    let inode = fields.next()?.parse().ok()?;
    let path = &line[line.find('/')?..];
    (mode.contains('x') && inode != 0).then(|| (range, (device.to_owned(), inode), path))
}

/// OpenSSL's libraries that the dynamic linker knows. Of its cache only the paths are looked at, which
/// end with a zero in every version of the format.
fn of_cache(cache: &[u8]) -> Vec<String> {
    cache
        .split(|byte| *byte == 0)
        .filter_map(|text| std::str::from_utf8(text).ok())
        .filter(|text| text.starts_with('/') && is_openssl(text))
        .map(str::to_owned)
        .collect()
}

fn is_openssl(path: &str) -> bool {
    path.rsplit('/')
        .next()
        .is_some_and(|name| name.starts_with("libssl.so") || name.starts_with("libssl-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_executable_mappings_of_openssl_are_probed() {
        let line = "7f6a38cb3000-7f6a38d10000 r-xp 0001e000 fe:00 1234 /usr/lib/libssl.so.3";
        let (range, key, path) = executable(line).expect("a mapping");
        assert_eq!(
            (range, key),
            ("7f6a38cb3000-7f6a38d10000", ("fe:00".to_owned(), 1234))
        );
        assert!(is_openssl(path));
        assert!(executable(&line.replace("r-xp", "r--p")).is_none());
        assert_eq!(
            of_cache(b"glibc-ld.so.cache1.1\x02\xff\0libssl.so.3\0/usr/lib/libssl.so.3\0/usr/lib/libc.so.6\0"),
            ["/usr/lib/libssl.so.3"]
        );
        assert!(
            !is_openssl("/usr/lib/libssl3.so"),
            "NSS has a library of that name"
        );
    }
}
