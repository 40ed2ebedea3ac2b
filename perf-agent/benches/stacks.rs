//! What stacks cost in user space: `cargo bench --bench stacks`.
//!
//! The table of a library of 150 MB (the compiler's own, `librustc_driver`), without the writes into the
//! kernel's maps; and names of 10,000 different stacks by a symbolizer that has read nothing yet, as many at
//! once as the agent names where they come faster than that: of servers as they are installed, which have no
//! symbols but those of `.dynsym`, and of this program, which has 40 MB of debug information.

use std::{
    cell::RefCell,
    fs::{self, File},
    io,
    ops::Range as Addresses,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::Command,
    ptr,
};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use object::ReadCache;
use perf_agent::{
    symbolize::{Stacks, Unnamed, namer::AT_ONCE},
    unwind::{
        compile, mappings,
        object::{Image, Load},
        table::{Maps, Tables},
    },
};
use perf_ebpf_common::signals::{
    python::Python,
    unwind::{BLOCK_WORDS, Block, Object, Range, Rule},
};

const STACKS: u64 = 10_000;
const FRAMES: u64 = 20;
/// Of so many stacks the second frame is the same, of so many such the next one outwards, and so on: 13,343
/// different addresses in all, 10,000 of them innermost.
const CALLS: u64 = 4;
/// Where Debian has servers, and a library.
const INSTALLED: [&str; 4] = [
    "/usr/bin/redis-server",
    "/usr/bin/python3.11",
    "/usr/sbin/mariadbd",
    "/usr/lib/postgresql/15/bin/postgres",
];

/// Memory in place of the kernel's maps, as large as those are.
struct Memory(RefCell<Vec<Block>>);

impl Memory {
    fn new() -> Memory {
        let empty = Block {
            words: [0; BLOCK_WORDS],
        };
        Memory(RefCell::new(vec![empty; (16 << 20) / size_of::<Block>()]))
    }
}

impl Maps for Memory {
    fn blocks(&self) -> u32 {
        self.0.borrow().len() as u32
    }

    fn read_block(&self, number: u32) -> io::Result<Block> {
        Ok(self.0.borrow()[number as usize])
    }

    fn write_block(&self, number: u32, block: &Block) -> io::Result<()> {
        self.0.borrow_mut()[number as usize] = *block;
        Ok(())
    }

    fn write_object(&self, _: u32, _: &Object) -> io::Result<()> {
        Ok(())
    }

    fn write_rule(&self, _: u32, _: &Rule) -> io::Result<()> {
        Ok(())
    }

    fn write_space(&self, _: u32, _: &[Range], _: Python) -> io::Result<()> {
        Ok(())
    }

    fn set_process(&self, _: u32, _: Option<u32>) -> io::Result<()> {
        Ok(())
    }

    fn processes(&self) -> io::Result<Vec<(u32, u32)>> {
        Ok(Vec::new())
    }
}

fn library() -> Option<PathBuf> {
    let rustc = Command::new("rustc").args(["--print", "sysroot"]).output();
    let root = String::from_utf8(rustc.ok()?.stdout).ok()?;
    let files = fs::read_dir(PathBuf::from(root.trim()).join("lib")).ok()?;
    files
        .filter_map(|file| Some(file.ok()?.path()))
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("librustc_driver")
        })
}

fn table(c: &mut Criterion) {
    let Some(path) = library() else {
        eprintln!("no librustc_driver: the table is not measured");
        return;
    };
    let name = format!(
        "table of {} MB",
        fs::metadata(&path).map_or(0, |m| m.len() >> 20)
    );
    let mut group = c.benchmark_group("unwind");
    group.sample_size(10).bench_function(name, |b| {
        b.iter_batched(
            || Tables::new(Memory::new()).expect("memory"),
            |mut tables| {
                let data = ReadCache::new(File::open(&path).expect("the library"));
                let image = Image::parse(&data).expect("an ELF file");
                let frames = image.frames().expect("its sections");
                let added = tables.add(|writer| {
                    compile::compile(&frames, |address, rule| writer.row(address, rule))?;
                    Ok(())
                });
                added.expect("room for it");
                tables.bytes()
            },
            BatchSize::PerIteration,
        );
    });
}

/// Addresses of stacks all over a range of code, as a tree of calls has them.
fn stacks(code: &Addresses<u64>) -> Vec<Unnamed> {
    let place = |depth: u64, call: u64| {
        let mixed = (depth << 32 ^ call).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
        code.start + mixed % (code.end - code.start)
    };
    let frames = |stack: u64| {
        let calls = (0..FRAMES).scan(stack, |call, depth| {
            let address = place(depth, *call);
            *call /= CALLS;
            Some(address)
        });
        calls.collect()
    };
    let stack = |id| Unnamed::native(id, std::process::id(), frames(id));
    (0..STACKS).map(stack).collect()
}

/// Code of this program.
fn own() -> Addresses<u64> {
    let maps = fs::read_to_string("/proc/self/maps").expect("/proc/self/maps");
    let own = std::env::current_exe().expect("own path");
    let code = mappings::parse(&maps)
        .into_iter()
        .find(|mapping| own.as_os_str() == mapping.name.as_str())
        .expect("own code");
    code.start..code.end
}

/// Maps the code of a program into this one, as if it were a library of it. It stays until the end.
fn mapped(path: &Path) -> Option<Addresses<u64>> {
    const PAGE: u64 = 4096;
    let file = File::open(path).ok()?;
    let data = ReadCache::new(&file);
    let loads = Image::parse(&data).ok()?.loads().ok()?;
    let Load {
        offset, file_bytes, ..
    } = loads.into_iter().max_by_key(|load| load.file_bytes)?;
    let (protection, flags) = (libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE);
    let begin = offset / PAGE * PAGE;
    let length = (offset - begin + file_bytes) as usize;
    // SAFETY: a new mapping of a file, where the kernel likes, that nobody writes to.
    let start = unsafe {
        let fd = file.as_raw_fd();
        libc::mmap(ptr::null_mut(), length, protection, flags, fd, begin as i64)
    };
    (start != libc::MAP_FAILED).then_some(start as u64..start as u64 + length as u64)
}

fn names(c: &mut Criterion) {
    let mut group = c.benchmark_group("10,000 stacks");
    group.sample_size(10);
    let mut named = |of: &str, code: &Addresses<u64>, inlines: bool| {
        let stacks = stacks(code);
        group.bench_function(of, |b| {
            b.iter_batched(
                || Stacks::new(inlines, &[]),
                |mut names| {
                    let named = stacks.chunks(AT_ONCE).flat_map(|s| names.name_all(s));
                    named.map(|stack| stack.frames.len()).sum::<usize>()
                },
                BatchSize::PerIteration,
            );
        });
    };
    for path in INSTALLED {
        match mapped(Path::new(path)) {
            Some(code) => named(path, &code, false),
            None => eprintln!("no {path}: its names are not measured"),
        }
    }
    let code = own();
    named("this program", &code, false);
    named("this program, with inlined functions", &code, true);
}

criterion_group!(benches, table, names);
criterion_main!(benches);
