//! Tables against what gimli says of the same addresses, and the thread that builds them.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs::{self, File},
    io,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

use gimli::{BaseAddresses, EhFrame, NativeEndian, UnwindContext, UnwindSection as _};
use object::ReadCache;
use perf_ebpf_common::signals::{
    python::Python,
    unwind::{Block, Object, Range, Rule, cfa, fp, rule_at},
};

use super::{
    Request, Unwinder, builder,
    compile::{self, Frames},
    mappings,
    object::Image,
    table::{Maps, Refused, Tables},
};

/// The maps, in memory.
#[derive(Default)]
struct Content {
    blocks: BTreeMap<u32, Block>,
    objects: BTreeMap<u32, Object>,
    rules: BTreeMap<u32, Rule>,
    spaces: BTreeMap<u32, Vec<Range>>,
    processes: BTreeMap<u32, u32>,
}

#[derive(Clone)]
struct Memory {
    room: u32,
    content: Arc<Mutex<Content>>,
}

impl Memory {
    fn new(room: u32) -> Self {
        Memory {
            room,
            content: Arc::default(),
        }
    }

    /// The rule at an offset behind the start of an object's table, as the kernel side finds it.
    fn rule(&self, object: u32, offset: u64) -> Rule {
        let content = self.content.lock().unwrap();
        let word = |at: u32| {
            let words = content.blocks.get(&(at / 1024)).map(|b| &b.words);
            Some(words.map_or(0, |words| words[at as usize % 1024]))
        };
        let at_most = |a, b| if a <= b { u32::MAX } else { 0 };
        let number = rule_at(&content.objects[&object], offset, word, at_most).unwrap();
        content.rules.get(&number).copied().unwrap_or_default()
    }
}

impl Maps for Memory {
    fn blocks(&self) -> u32 {
        self.room
    }
    fn read_block(&self, number: u32) -> io::Result<Block> {
        Ok(self.content.lock().unwrap().blocks[&number])
    }
    fn write_block(&self, number: u32, block: &Block) -> io::Result<()> {
        self.content.lock().unwrap().blocks.insert(number, *block);
        Ok(())
    }
    fn write_object(&self, number: u32, object: &Object) -> io::Result<()> {
        self.content.lock().unwrap().objects.insert(number, *object);
        Ok(())
    }
    fn write_rule(&self, number: u32, rule: &Rule) -> io::Result<()> {
        self.content.lock().unwrap().rules.insert(number, *rule);
        Ok(())
    }
    fn write_space(&self, number: u32, ranges: &[Range], _python: Python) -> io::Result<()> {
        let mut content = self.content.lock().unwrap();
        content.spaces.insert(number, ranges.to_vec());
        Ok(())
    }
    fn set_process(&self, pid: u32, space: Option<u32>) -> io::Result<()> {
        let mut content = self.content.lock().unwrap();
        match space {
            Some(space) => content.processes.insert(pid, space),
            None => content.processes.remove(&pid),
        };
        Ok(())
    }
    fn processes(&self) -> io::Result<Vec<(u32, u32)>> {
        let content = self.content.lock().unwrap();
        Ok(content.processes.iter().map(|(p, s)| (*p, *s)).collect())
    }
}

/// Files this very process maps: the C library among them.
fn mapped_files() -> Vec<String> {
    let text = fs::read_to_string("/proc/self/maps").unwrap();
    let names = mappings::parse(&text).into_iter().map(|m| m.name);
    names.filter(|name| name.starts_with('/')).collect()
}

/// What gimli says of an address.
#[derive(Debug, PartialEq)]
enum Said {
    Nothing,
    /// A plain rule: canonical frame address by stack pointer or not, its offset, and the offset the
    /// frame pointer is saved at.
    Plain(bool, i64, Option<i64>),
    Other,
}

fn gimli_says(
    section: &EhFrame<gimli::EndianSlice<'_, NativeEndian>>,
    bases: &BaseAddresses,
    context: &mut UnwindContext<usize>,
    address: u64,
) -> Said {
    let row =
        section.unwind_info_for_address(bases, context, address, |s, b, o| s.cie_from_offset(b, o));
    let Ok(row) = row else { return Said::Nothing };
    let (sp, frame_pointer, ip) = (gimli::X86_64::RSP, gimli::X86_64::RBP, gimli::X86_64::RA);
    let gimli::CfaRule::RegisterAndOffset { register, offset } = row.cfa() else {
        return Said::Other;
    };
    if row.register(ip) != Some(gimli::RegisterRule::Offset(-8))
        || (*register != sp && *register != frame_pointer)
    {
        return Said::Other;
    }
    match row.register(frame_pointer) {
        None | Some(gimli::RegisterRule::SameValue) => Said::Plain(*register == sp, *offset, None),
        Some(gimli::RegisterRule::Offset(saved)) => {
            Said::Plain(*register == sp, *offset, Some(saved))
        }
        _ => Said::Other,
    }
}

/// Adds a file to the tables; its object, where its table begins, and functions and malformed ones.
fn add(tables: &mut Tables<Memory>, frames: &Frames<'_>) -> (u32, u64, compile::Compiled) {
    let compiled = RefCell::new(compile::Compiled::default());
    let (object, begin) = tables
        .add(|writer| {
            *compiled.borrow_mut() = compile::compile(frames, |a, r| writer.row(a, r))?;
            Ok(())
        })
        .unwrap();
    (object, begin, compiled.into_inner())
}

#[test]
#[cfg(target_arch = "x86_64")]
fn every_table_says_what_gimli_says() {
    let memory = Memory::new(4096);
    let mut tables = Tables::new(memory.clone()).unwrap();
    let (mut compared, mut plain) = (0, 0);
    let mut files = mapped_files();
    files.sort();
    files.dedup();
    assert!(files.iter().any(|f| f.contains("libc")), "{files:?}");
    for file in files {
        let data = ReadCache::new(File::open(&file).unwrap());
        let frames = Image::parse(&data).unwrap().frames().unwrap();
        if frames.eh_frame.is_empty() {
            continue;
        }
        let (object, begin, compiled) = add(&mut tables, &frames);
        assert_eq!(compiled.malformed, 0, "{file}");
        assert!(compiled.functions > 10, "{file}: {compiled:?}");
        let bases = BaseAddresses::default()
            .set_eh_frame(frames.eh_frame_address)
            .set_text(frames.text_address);
        let section = EhFrame::new(frames.eh_frame, NativeEndian);
        let mut context = UnwindContext::new();
        let mut entries = section.entries(&bases);
        let mut functions = Vec::new();
        while let Some(entry) = entries.next().unwrap() {
            if let gimli::CieOrFde::Fde(partial) = entry {
                let fde = partial.parse(|s, b, o| s.cie_from_offset(b, o)).unwrap();
                functions.push((fde.initial_address(), fde.len()));
            }
        }
        // Some functions of each file, at their first, last and some middle byte. (gimli looks
        // through the whole section for each.)
        let step = functions.len() / 40 + 1;
        for (start, length) in functions.iter().step_by(step).filter(|f| f.1 > 0) {
            for offset in [0, 1, length / 3, length / 2, length - 1] {
                let address = start + offset;
                let rule = memory.rule(object, address - begin);
                let said = gimli_says(&section, &bases, &mut context, address);
                compared += 1;
                let Said::Plain(by_sp, offset, saved) = said else {
                    continue;
                };
                plain += 1;
                let expected = Rule {
                    cfa: if by_sp { cfa::SP } else { cfa::FP },
                    fp: if saved.is_some() {
                        fp::AT_CFA
                    } else {
                        fp::SAME
                    },
                    cfa_offset: (offset / 8) as i16,
                    fp_offset: (saved.unwrap_or(0) / 8) as i16,
                    extra: -1,
                };
                assert_eq!(rule, expected, "{file} {address:#x}");
            }
        }
    }
    assert!(
        plain > 300 && plain * 10 > compared * 9,
        "{plain} of {compared}"
    );
}

#[test]
fn an_object_without_room_leaves_the_ones_before_as_they_were() {
    let rule = |offset| Rule {
        cfa: cfa::SP,
        cfa_offset: offset,
        ..Rule::default()
    };
    let memory = Memory::new(2);
    let mut tables = Tables::new(memory.clone()).unwrap();
    let fill = |tables: &mut Tables<Memory>, from: u64, rows: u64| {
        tables.add(|writer| {
            (0..rows).try_for_each(|i| writer.row(from + i * 16, rule((i % 7) as i16 + 1)))
        })
    };
    let (first, begin) = fill(&mut tables, 0x1010, 900).unwrap();
    assert_eq!(begin, 0x1000);
    assert!(matches!(fill(&mut tables, 0x10, 5000), Err(Refused::Full)));
    let (second, begin) = fill(&mut tables, 0x7f00, 700).unwrap();
    assert_eq!((second, begin), (first + 1, 0x7f00));
    for i in 0..900 {
        assert_eq!(memory.rule(first, 0x10 + i * 16), rule((i % 7) as i16 + 1));
    }
    for i in 0..700 {
        assert_eq!(memory.rule(second, i * 16 + 15), rule((i % 7) as i16 + 1));
    }
    assert_eq!(memory.rule(first, 0), Rule::default());
}

#[test]
fn this_process_gets_a_space_in_which_its_code_has_rules() {
    let memory = Memory::new(4096);
    let unwinder = Unwinder::start(memory.clone()).unwrap();
    unwinder.tell(Request::Follow(std::process::id()));
    // Ends when everything it was told is done.
    drop(unwinder);
    let here = this_process_gets_a_space_in_which_its_code_has_rules as fn() as usize as u64;
    let (number, ranges) = {
        let content = memory.content.lock().unwrap();
        let number = content.processes[&std::process::id()];
        (number, content.spaces[&number].clone())
    };
    assert_ne!(number, 0);
    let range = ranges
        .iter()
        .find(|r| r.start <= here && here < r.start + (u64::from(r.pages) << 12))
        .unwrap();
    let first = memory.rule(range.object, here - range.origin);
    assert_eq!((first.cfa, first.cfa_offset), (cfa::SP, 1), "{first:?}");
}

proptest::proptest! {
    #[test]
    fn hostile_unwind_information_is_counted_and_never_a_panic(
        at in 0usize..4000, value: u8, cut in 0usize..4000
    ) {
        let data = ReadCache::new(File::open("/proc/self/exe").unwrap());
        let frames = Image::parse(&data).unwrap().frames().unwrap();
        let mut bytes = frames.eh_frame[..frames.eh_frame.len().min(4000)].to_vec();
        let length = bytes.len();
        bytes[at % length] = value;
        bytes.truncate(length - cut % length);
        let mut tables = Tables::new(Memory::new(64)).unwrap();
        let hostile = Frames { eh_frame: &bytes, ..frames };
        let _ = tables.add(|writer| {
            compile::compile(&hostile, |a, r| writer.row(a, r)).map(drop)
        });
    }
}

/// Its name is known to the kernel by then, which answers for it in another way than for one never seen.
#[test]
fn a_mapping_of_a_process_that_just_ended_went_away() {
    let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let of_cat = |mapping: &mappings::Mapping| mapping.name.ends_with("/cat");
    let mapping = loop {
        let maps = fs::read_to_string(format!("/proc/{}/maps", child.id())).unwrap();
        if let Some(mapping) = mappings::parse(&maps).into_iter().find(of_cat) {
            break mapping;
        }
    };
    let link = mapping.link(child.id());
    fs::symlink_metadata(&link).unwrap();
    drop(child.stdin.take());
    // It stays as a zombie.
    let mut info = unsafe { std::mem::zeroed() };
    let options = libc::WEXITED | libc::WNOWAIT;
    let waited = unsafe { libc::waitid(libc::P_PID, child.id(), &mut info, options) };
    assert_eq!(waited, 0);
    let zombie = File::open(&link).unwrap_err();
    assert!(builder::went_away(&zombie), "{zombie}");
    child.wait().unwrap();
    let gone = File::open(&link).unwrap_err();
    assert!(builder::went_away(&gone), "{gone}");
    let refused = io::Error::from_raw_os_error(libc::EACCES);
    assert!(!builder::went_away(&refused));
}
