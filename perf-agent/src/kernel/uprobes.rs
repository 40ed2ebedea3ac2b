//! Probes on functions in the files the targets have mapped and in their programs: once a file, whoever
//! maps it (the kernel side leaves at once for threads that are no target's).

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    programs::{
        UProbe,
        uprobe::{UProbeLink, UProbeScope},
    },
};

use super::{
    linked_in::LinkedIn,
    links::{self, Links},
    probed::{self, Beginning, Probed, Site},
    uprobe_cost,
};
use crate::sink::units;

/// Device and inode as `/proc/PID/maps` shows them.
type FileKey = (String, u64);

/// Probes that are attached (until this is dropped, see `Control::uprobes_stopped`), and the files looked
/// at.
pub struct Uprobes {
    probed: &'static Probed,
    links: Vec<UProbeLink>,
    seen: HashSet<FileKey>,
    /// Files with probes.
    attached: Vec<(String, Vec<Site>)>,
    /// Files without, and why.
    refused: Vec<String>,
    /// TLS libraries that cannot be read, of files looked at.
    unreadable: BTreeSet<&'static str>,
    linked_in: LinkedIn,
}

impl Uprobes {
    pub fn new(probed: &'static Probed) -> Uprobes {
        Uprobes {
            probed,
            links: Vec::new(),
            seen: HashSet::new(),
            attached: Vec::new(),
            refused: Vec::new(),
            unreadable: BTreeSet::new(),
            linked_in: LinkedIn::default(),
        }
    }

    /// Name of the signal.
    pub fn signal(&self) -> &'static str {
        self.probed.signal
    }

    /// Whether there is any probe.
    pub fn any(&self) -> bool {
        !self.attached.is_empty()
    }

    /// Why a program is not loaded.
    pub fn refusal<'a>(&self, links: &'a Links) -> Option<&'a str> {
        let entries = self.probed.functions.iter().map(|f| f.entry);
        entries
            .chain([self.probed.returns])
            .find_map(|name| links.refusal(name))
    }

    /// Probes what a process has mapped and was not looked at: libraries that are probed, and its
    /// program where the functions are linked into it. True where a probe was added.
    pub fn look_at(&mut self, ebpf: &mut Ebpf, links: &Links, pid: u32) -> bool {
        if links.refusal(self.probed.returns).is_some() {
            return false;
        }
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        let before = self.attached.len();
        // Before its mappings, which are only searched for names.
        let program = PathBuf::from(format!("/proc/{pid}/exe"));
        if let Ok(name) = fs::read_link(&program) {
            self.look_at_file(ebpf, links, &program, &name.to_string_lossy());
        }
        for line in maps.lines() {
            let Some((range, key, path)) = executable(line) else {
                continue;
            };
            self.unreadable.extend(probed::unreadable(path));
            if !self.seen.insert(key) {
                continue;
            }
            // By the mapping itself: in a container the path names another file or none.
            let file = PathBuf::from(format!("/proc/{pid}/map_files/{range}"));
            if self.is_library(path) {
                self.probe(ebpf, links, &file, path);
            } else {
                self.search(&file);
            }
        }
        self.attached.len() > before
    }

    /// Probes the libraries that a command started on this host will load, and its program: by the
    /// time its mappings could be read it has connected. True where a probe was added.
    pub fn look_at_command(&mut self, ebpf: &mut Ebpf, links: &Links, program: &Path) -> bool {
        if links.refusal(self.probed.returns).is_some() {
            return false;
        }
        let before = self.attached.len();
        let cache = fs::read("/etc/ld.so.cache").unwrap_or_default();
        for path in of_cache(&cache, self.probed) {
            self.look_at_file(ebpf, links, Path::new(&path), &path);
        }
        self.look_at_file(ebpf, links, program, &program.to_string_lossy());
        self.attached.len() > before
    }

    fn look_at_file(&mut self, ebpf: &mut Ebpf, links: &Links, file: &Path, name: &str) {
        let Ok(meta) = fs::metadata(file) else {
            return;
        };
        let (major, minor) = (libc::major(meta.dev()), libc::minor(meta.dev()));
        let key = (format!("{major:02x}:{minor:02x}"), meta.ino());
        if self.seen.insert(key) {
            self.probe(ebpf, links, file, name);
        }
    }

    fn probe(&mut self, ebpf: &mut Ebpf, links: &Links, file: &Path, name: &str) {
        let sites = match probed::find(file, self.probed.functions) {
            Ok(found) => {
                if found.sites.is_empty() && found.other.is_none() {
                    self.search(file);
                }
                self.unreadable.extend(found.other);
                found.sites
            }
            // A command may be a script.
            Err(e) => {
                tracing::debug!(name, "{e:#}");
                Vec::new()
            }
        };
        if sites.is_empty() {
            if self.is_library(name) {
                self.refused.push(format!(
                    "{name}: none of the functions of {}",
                    self.signal()
                ));
            }
            return;
        }
        match self.attach(ebpf, links, file, &sites) {
            Ok(()) => self.attached.push((name.to_owned(), sites)),
            Err(e) => self.refused.push(format!("{name}: {e:#}")),
        }
    }

    /// Has a file searched for the TLS library that is linked into it.
    fn search(&mut self, file: &Path) {
        if self.signal() == links::TLS {
            self.linked_in.search(file);
        }
    }

    /// Waits until what the target has mapped is searched.
    pub fn finish_search(&mut self) {
        self.linked_in.finish();
    }

    /// TLS libraries that cannot be read, as far as files were looked at.
    pub fn unreadable(&self) -> BTreeSet<&'static str> {
        let mut names = self.linked_in.names();
        names.extend(&self.unreadable);
        names
    }

    fn is_library(&self, path: &str) -> bool {
        is_library(path, self.probed)
    }

    fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        links: &Links,
        file: &Path,
        sites: &[Site],
    ) -> Result<()> {
        for site in sites {
            // The return first: an entry without it would be left open.
            let returns = site.function.returns.then_some(self.probed.returns);
            for name in returns.into_iter().chain([site.function.entry]) {
                if let Some(why) = links.refusal(name) {
                    anyhow::bail!("{why}");
                }
                let link = attach_one(ebpf, name, file, site.offset)
                    .with_context(|| format!("attaching to {}", site.function.name))?;
                self.links.push(link);
            }
        }
        Ok(())
    }

    /// What is probed and what each probe costs, what is not, and why. Measures the costs.
    pub fn told(&self, ebpf: &mut Ebpf) -> String {
        let mut parts: Vec<String> = Vec::new();
        if self.attached.is_empty() {
            parts.push(self.probed.none.to_owned());
        }
        let costs = self.costs(ebpf);
        for (file, sites) in &self.attached {
            parts.push(format!("uprobes on {file}: {}", costs_of(sites, &costs)));
        }
        parts.extend(self.refused.iter().cloned());
        let unreadable = self.unreadable();
        if !unreadable.is_empty() {
            let names: Vec<&str> = unreadable.into_iter().collect();
            parts.push(format!("mapped and not readable: {}", names.join(", ")));
        }
        parts.join("; ")
    }

    /// Nanoseconds of a probed call by how its function begins, and of one whose first instruction is
    /// emulated everywhere. What cannot be measured is left out.
    fn costs(&self, ebpf: &mut Ebpf) -> BTreeMap<Beginning, u64> {
        let sites = self.attached.iter().flat_map(|(_, sites)| sites);
        let mut kinds: BTreeSet<Beginning> = sites.map(|site| site.beginning).collect();
        if !kinds.is_empty() {
            kinds.insert(Beginning::Push);
        }
        let measure = |kind: &Beginning| match uprobe_cost::measure(ebpf, *kind, self.probed) {
            Ok(ns) => Some((*kind, ns)),
            Err(e) => {
                tracing::debug!(?kind, "cost of a probe: {e:#}");
                None
            }
        };
        kinds.iter().filter_map(measure).collect()
    }
}

impl Drop for Uprobes {
    /// To detach one takes 0.1 s, in which the kernel waits: all at the same time.
    fn drop(&mut self) {
        thread::scope(|scope| {
            for link in self.links.drain(..) {
                // Without a thread it is dropped here.
                _ = thread::Builder::new().spawn_scoped(scope, move || drop(link));
            }
        });
    }
}

/// Functions, whether the first instruction of each is single-stepped, and what the probes add to a
/// call.
fn costs_of(sites: &[Site], costs: &BTreeMap<Beginning, u64>) -> String {
    // What the kernel emulates depends on its version; `push` all do. A single step is two exceptions
    // more: 10 us in a virtual machine, less where no hypervisor is in between.
    let emulated = costs.get(&Beginning::Push).copied();
    let how = |beginning: Beginning| match (costs.get(&beginning), emulated) {
        (Some(ns), Some(least)) if *ns > least + least / 2 => {
            format!(" (single-stepped, {} a call)", units::duration(*ns))
        }
        (Some(ns), _) => format!(" ({} a call)", units::duration(*ns)),
        (None, _) => String::new(),
    };
    let alike = |a: &Site, b: &Site| a.beginning == b.beginning;
    let groups = sites.chunk_by(alike).map(|group| {
        let names: Vec<&str> = group.iter().map(|site| site.function.name).collect();
        format!("{}{}", names.join(", "), how(group[0].beginning))
    });
    groups.collect::<Vec<String>>().join(", ")
}

/// Attaches a program, which is loaded, to a place in a file.
pub fn attach_one(ebpf: &mut Ebpf, name: &str, file: &Path, offset: u64) -> Result<UProbeLink> {
    let uprobe: &mut UProbe = ebpf
        .program_mut(name)
        .with_context(|| format!("program {name} is missing"))?
        .try_into()
        .with_context(|| format!("program {name}"))?;
    let link = uprobe.attach(offset, file, UProbeScope::AllProcesses)?;
    Ok(uprobe.take_link(link)?)
}

/// Range, device and inode, and path of an executable mapping of a file.
fn executable(line: &str) -> Option<(&str, FileKey, &str)> {
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

/// Libraries that are probed and that the dynamic linker knows. Of its cache only the paths are looked at, which
/// end with a zero in every version of the format.
fn of_cache(cache: &[u8], probed: &Probed) -> Vec<String> {
    cache
        .split(|byte| *byte == 0)
        .filter_map(|text| std::str::from_utf8(text).ok())
        .filter(|text| text.starts_with('/') && is_library(text, probed))
        .map(str::to_owned)
        .collect()
}

fn is_library(path: &str, probed: &Probed) -> bool {
    path.rsplit('/').next().is_some_and(probed.is_library)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CACHE: &[u8] =
        b"glibc-ld.so.cache1.1\x02\xff\0libssl.so.3\0/usr/lib/libssl.so.3\0/usr/lib/libc.so.6\0";

    #[test]
    fn functions_that_are_single_stepped_are_said_to_be() {
        let site = |function: usize, beginning| Site {
            function: &probed::TLS.functions[function],
            offset: 0,
            beginning,
        };
        let sites = [
            site(0, Beginning::Other),
            site(1, Beginning::Other),
            site(2, Beginning::Push),
        ];
        let costs = [(Beginning::Push, 1_200), (Beginning::Other, 11_800)];
        assert_eq!(
            costs_of(&sites, &BTreeMap::from(costs)),
            "SSL_read, SSL_read_ex (single-stepped, 11.8 µs a call), SSL_write (1.20 µs a call)"
        );
        assert_eq!(
            costs_of(&sites, &BTreeMap::new()),
            "SSL_read, SSL_read_ex, SSL_write"
        );
    }

    #[test]
    fn only_executable_mappings_of_openssl_are_probed() {
        let line = "7f6a38cb3000-7f6a38d10000 r-xp 0001e000 fe:00 1234 /usr/lib/libssl.so.3";
        let (range, key, path) = executable(line).expect("a mapping");
        assert_eq!(
            (range, key),
            ("7f6a38cb3000-7f6a38d10000", ("fe:00".to_owned(), 1234))
        );
        assert!(is_library(path, &probed::TLS));
        assert!(executable(&line.replace("r-xp", "r--p")).is_none());
        assert_eq!(of_cache(CACHE, &probed::TLS), ["/usr/lib/libssl.so.3"]);
        assert_eq!(
            of_cache(CACHE, &probed::ALLOCATIONS),
            ["/usr/lib/libc.so.6"]
        );
        assert!(
            !is_library("/usr/lib/libssl3.so", &probed::TLS),
            "NSS has a library of that name"
        );
    }
}
