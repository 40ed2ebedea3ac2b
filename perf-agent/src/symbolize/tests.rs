use super::*;

#[inline(never)]
fn known_function() -> u64 {
    known_function as fn() -> u64 as usize as u64
}

#[test]
fn a_function_of_this_program_is_named_with_its_source() {
    let stack = Stacks::new(false, &[]).name(1, std::process::id(), &[known_function()]);
    let frame = &stack.frames[0];
    assert!(frame.name.contains("known_function"), "{frame:?}");
    assert!(frame.symbolized);
    assert!(
        frame
            .source
            .as_deref()
            .is_some_and(|s| s.contains("tests.rs:")),
        "{frame:?}"
    );
}

#[test]
fn a_stack_is_whole_when_what_was_remembered_is_let_go_of_for_it() {
    let (pid, address) = (std::process::id(), known_function());
    let mut stacks = Stacks::new(false, &[]);
    let known = stacks.name(1, pid, &[address]).frames;
    for other in 2..=MAX_CACHED as u64 {
        stacks.frames.insert((0, other), Vec::new());
    }
    let frames = stacks.name(2, pid, &[address, address + 2]).frames;
    assert!(stacks.frames.len() < MAX_CACHED);
    assert_eq!(frames[..1], known);
    assert!(frames[1].name.contains("known_function"), "{frames:?}");
}

#[test]
fn stacks_named_at_once_are_as_those_named_one_by_one() {
    let (pid, address) = (std::process::id(), known_function());
    let other = strip_scheduler as fn(&mut Vec<FrameFact>) as usize as u64;
    let stack =
        |(id, pid, addresses): (u64, u32, &[u64])| Unnamed::native(id, pid, addresses.to_vec());
    let unnamed: Vec<Unnamed> = [
        (7, pid, &[address, other + 3, 0, address][..]),
        (8, 0, &[1 << 63, u64::MAX]),
        (9, pid, &[other, EXACT | address]),
        (10, pid, &[]),
    ]
    .map(stack)
    .into();
    let at_once = Stacks::new(false, &[]).name_all(&unnamed);
    let mut stacks = Stacks::new(false, &[]);
    let one_by_one: Vec<StackFact> = unnamed
        .iter()
        .flat_map(|stack| stacks.name_all(std::slice::from_ref(stack)))
        .collect();
    assert_eq!(at_once, one_by_one);
    assert_eq!(
        at_once.iter().map(|stack| stack.id).collect::<Vec<_>>(),
        [7, 8, 9, 10]
    );
    let names = |stack: &StackFact| -> Vec<bool> {
        let names = stack.frames.iter().map(|frame| &frame.name);
        names.map(|name| name.contains("known_function")).collect()
    };
    assert_eq!(names(&at_once[0]), [true, false]);
    assert_eq!(names(&at_once[2]), [false, true]);
}

#[test]
fn an_address_without_a_symbol_is_a_module_and_an_offset() {
    let maps = "1000-2000 r-xp 00004000 fe:00 77   /usr/bin/thing\n";
    let mut stacks = Stacks::new(false, &[]);
    stacks.maps.insert(7, mappings::parse(maps));
    let frame = stacks.without_symbol(7, 0x1010);
    assert_eq!(
        (frame.name.as_str(), frame.symbolized),
        ("thing+0x4010", false)
    );
}

#[inline(always)]
fn inlined_function(deep: u64) -> u64 {
    std::hint::black_box(deep) + 1
}

#[inline(never)]
fn outer_function(n: u64) -> u64 {
    inlined_function(n)
}

#[test]
fn inlined_functions_come_before_the_one_they_are_inlined_into() {
    assert_eq!(outer_function(1), 2);
    let start = outer_function as fn(u64) -> u64 as usize as u64;
    let mut stacks = Stacks::new(true, &[]);
    // One of the first instructions is the inlined function's.
    let found = (start..start + 64).find_map(|address| {
        let frames = stacks.name(1, std::process::id(), &[address]).frames;
        let at = frames
            .iter()
            .position(|f| f.name.contains("outer_function"))?;
        (at > 0).then_some(frames)
    });
    let frames = found.expect("an address in the inlined function");
    let at = frames.len() - 1;
    assert!(frames[at].name.contains("outer_function"), "{frames:?}");
    assert!(!frames[at].inlined, "{frames:?}");
    assert!(
        frames[at - 1].name.contains("inlined_function") && frames[at - 1].inlined,
        "{frames:?}"
    );
    let plain = Stacks::new(false, &[]).name(1, std::process::id(), &[start]);
    assert_eq!(plain.frames.len(), 1, "{plain:?}");
}

// A mangled name of the Itanium C++ ABI.
#[unsafe(export_name = "_ZN5store5Cache3getEiPKc")]
#[inline(never)]
extern "C" fn mangled(a: i32) -> i32 {
    std::hint::black_box(a)
}

#[test]
fn a_cpp_name_is_demangled() {
    assert_eq!(mangled(3), 3);
    let address = mangled as extern "C" fn(i32) -> i32 as usize as u64;
    let frames = Stacks::new(false, &[])
        .name(1, std::process::id(), &[address])
        .frames;
    assert_eq!(frames[0].name, "store::Cache::get(int, char const*)");
}

/// An executable page of nobody's file.
struct Page(*mut libc::c_void);

impl Page {
    fn new() -> Page {
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_EXEC,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        // SAFETY: a new mapping, where the kernel likes.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
        assert_ne!(page, libc::MAP_FAILED);
        Page(page)
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nobody keeps an address of it.
        unsafe { libc::munmap(self.0, 4096) };
    }
}

#[test]
fn code_made_at_run_time_has_the_name_of_the_perf_map_as_soon_as_it_is_there() {
    let page = Page::new();
    let (start, pid) = (page.0 as u64, std::process::id());
    let map = format!("/tmp/perf-{pid}.map");
    let mut stacks = Stacks::new(false, &[]);
    let mut name = |at: u64| {
        // The innermost frame is looked up as it stands.
        let frames = stacks.name(1, pid, &[at, known_function() + 2]).frames;
        assert!(frames[1].name.contains("known_function"), "{frames:?}");
        (frames[0].name.clone(), frames[0].symbolized)
    };
    let offset = |at: u64| (format!("[anon]+{at:#x}"), false);
    assert_eq!(name(start + 0x20), offset(0x20));
    fs::write(
        &map,
        format!("{start:x} 40 jit_hot\n{:x} 40 jit_", start + 0x40),
    )
    .unwrap();
    assert_eq!(name(start + 0x20), ("jit_hot".to_owned(), true));
    assert_eq!(name(start + 0x50), offset(0x50));
    let both = format!("{start:x} 40 jit_hot\n{:x} 40 jit_cold\n", start + 0x40);
    fs::write(&map, both).unwrap();
    assert_eq!(name(start + 0x50), ("jit_cold".to_owned(), true));
    fs::remove_file(&map).unwrap();
    assert_eq!(name(start + 0x50), ("jit_cold".to_owned(), true));
}

/// Until when it is kept that holds something now.
fn time_of(stacks: &Stacks) -> Instant {
    let held = stacks.held.unwrap();
    assert!(held.took > Duration::ZERO);
    held.since + held.took * KEEP_TIMES
}

#[test]
fn what_was_read_is_kept_for_its_time_then_let_go_of_when_large_and_names_stay() {
    let mut stacks = Stacks::new(false, &[]);
    let (pid, address) = (std::process::id(), known_function());
    let named = stacks.name(1, pid, &[address]);
    let its_time = time_of(&stacks);
    let just_before = its_time - Duration::from_nanos(1);
    for (now, resident_bytes) in [
        (just_before, CUT_SHORT_BYTES - 1),
        (its_time, LET_GO_BYTES - 1),
    ] {
        stacks.let_go(now, || resident_bytes);
        assert!(stacks.held.is_some());
    }
    stacks.let_go(its_time, || LET_GO_BYTES);
    assert!(stacks.held.is_none());
    assert_eq!(stacks.name(1, pid, &[address]), named);
    assert!(stacks.held.is_none(), "the name was remembered");
}

#[test]
fn source_lines_are_told_however_often_it_was_let_go_of_in_time() {
    let mut stacks = Stacks::new(false, &[]);
    let (pid, address) = (std::process::id(), known_function());
    for i in 0..=u64::from(MAX_CUT_SHORT) {
        let stack = stacks.name(1, pid, &[address + i]);
        assert!(stack.frames[0].source.is_some(), "{i}: {stack:?}");
        stacks.let_go(time_of(&stacks), || LET_GO_BYTES);
        assert!(stacks.held.is_none());
    }
}

#[test]
fn debug_information_for_which_there_is_no_memory_is_not_read_over_and_over() {
    let mut stacks = Stacks::new(false, &[]);
    let (pid, address) = (std::process::id(), known_function());
    for i in 0..MAX_CUT_SHORT {
        let stack = stacks.name(1, pid, &[address + u64::from(i)]);
        assert!(stack.frames[0].source.is_some(), "{i}: {stack:?}");
        stacks.let_go(Instant::now(), || CUT_SHORT_BYTES);
        assert!(stacks.held.is_none());
    }
    let later = stacks.name(1, pid, &[address + u64::from(MAX_CUT_SHORT)]);
    assert!(later.frames[0].name.contains("known_function"), "{later:?}");
    assert_eq!(later.frames[0].source, None);
    let its_time = time_of(&stacks);
    for (now, held) in [
        (its_time - Duration::from_nanos(1), true),
        (its_time, false),
    ] {
        stacks.let_go(now, || CUT_SHORT_BYTES);
        assert_eq!(stacks.held.is_some(), held);
    }
}

#[test]
fn the_schedulers_frames_are_taken_off() {
    let frame = |name: &str| FrameFact {
        name: name.into(),
        ..FrameFact::default()
    };
    let mut frames = [
        "bpf_prog_1",
        "__schedule",
        "schedule",
        "futex_wait",
        "do_syscall_64",
    ]
    .map(frame)
    .to_vec();
    strip_scheduler(&mut frames);
    assert_eq!(frames, ["futex_wait", "do_syscall_64"].map(frame));
}

/// A file of code that was mapped by hand, and is unmapped in the end.
struct Mapped(*mut libc::c_void, usize);

impl Mapped {
    /// This program's code, once more.
    fn new() -> (Mapped, u64) {
        let own = fs::read_to_string("/proc/self/maps").unwrap();
        let own = mappings::parse(&own);
        let code = own
            .iter()
            .find(|m| (m.start..m.end).contains(&known_function()))
            .unwrap();
        let file = fs::File::open(&code.name).unwrap();
        let length = (code.end - code.start) as usize;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE);
        // SAFETY: a new mapping of a file, where the kernel likes, that nobody writes to.
        let start = unsafe {
            let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
            let null = std::ptr::null_mut();
            libc::mmap(null, length, protection, flags, fd, code.offset as i64)
        };
        assert_ne!(start, libc::MAP_FAILED);
        let known = start as u64 + (known_function() - code.start);
        (Mapped(start, length), known)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nobody keeps an address of it.
        unsafe { libc::munmap(self.0, self.1) };
    }
}

#[test]
fn code_that_is_mapped_after_the_mappings_were_read_has_its_name() {
    let mut stacks = Stacks::new(false, &[]);
    let pid = std::process::id();
    stacks.name(1, pid, &[known_function()]);
    let (mapped, address) = Mapped::new();
    let frames = stacks.name(2, pid, &[address]).frames;
    assert!(frames[0].name.contains("known_function"), "{frames:?}");
    drop(mapped);
    // Nothing of it is left, and the rest is found as before.
    let frames = stacks
        .name(3, pid, &[known_function() + 1, address + 3])
        .frames;
    assert!(frames[0].name.contains("known_function"), "{frames:?}");
    assert!(
        !frames.iter().skip(1).any(|frame| frame.symbolized),
        "{frames:?}"
    );
}
