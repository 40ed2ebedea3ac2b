//! An index is read through a mapping, and dropped from the page cache after each request "to be tidy", so
//! that the next one reads it from the disk page by page; the twin leaves it there.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr;
use std::time::Duration;

use super::row::{ENGINEER, Job, Program, Row, Stage, Worth};
use super::shift::work;

pub const ROW: Row = Row {
    name: "major faults",
    unit: "request",
    category: "page_faults",
    about: "major faults",
    delegate: ENGINEER,
    worth: Worth::Time,
    realtime: true,
    program: Program::Rust(run),
    stage: |stage: &mut Stage| stage.directory().map(drop),
};

const EVERY: Duration = Duration::from_millis(10);
const INDEX_BYTES: usize = 8 << 20;
const PAGE_BYTES: usize = 4096;
/// Every so many pages one is looked at.
const STRIDE: usize = 8;

fn run(job: &Job) -> io::Result<()> {
    let path = Path::new(job.argument(0)?).join("index");
    let mut file = File::create(&path)?;
    file.write_all(&vec![1; INDEX_BYTES])?;
    file.sync_all()?;
    let sick = job.health.is_sick();
    work(1, EVERY, |_| {
        let file = File::open(&path)?;
        Ok(move || {
            let fd = file.as_raw_fd();
            read_index(fd)?;
            // SAFETY: an open descriptor, no pointers.
            if sick && unsafe { libc::posix_fadvise(fd, 0, 0, libc::POSIX_FADV_DONTNEED) } != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        })
    })
}

#[inline(never)]
fn read_index(fd: i32) -> io::Result<()> {
    // SAFETY: a mapping of a file of that length, read within it, and unmapped after its last use.
    unsafe {
        let (shared, read) = (libc::MAP_SHARED, libc::PROT_READ);
        let map = libc::mmap(ptr::null_mut(), INDEX_BYTES, read, shared, fd, 0);
        if map == libc::MAP_FAILED || libc::madvise(map, INDEX_BYTES, libc::MADV_RANDOM) != 0 {
            return Err(io::Error::last_os_error());
        }
        for page in (0..INDEX_BYTES / PAGE_BYTES).step_by(STRIDE) {
            map.cast::<u8>().add(page * PAGE_BYTES).read_volatile();
        }
        match libc::munmap(map, INDEX_BYTES) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
