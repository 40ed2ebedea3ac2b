//! A block device of the test's own, kept in a file.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::traced::disk_directory;

// include/uapi/linux/loop.h
const LOOP_SET_FD: libc::Ioctl = 0x4c00;
const LOOP_CLR_FD: libc::Ioctl = 0x4c01;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;

/// Its own for as long as it lives: nothing but the test reads or writes it.
pub struct LoopDevice {
    device: File,
    name: String,
    /// What the kernel had counted of the device of this name before.
    writes_before: [u64; 2],
    _backing: NamedTempFile,
}

impl LoopDevice {
    /// A device of so many bytes whose queue has the scheduler of that name.
    ///
    /// # Panics
    /// Where the kernel has no loop devices, or not that scheduler.
    pub fn new(bytes: u64, scheduler: &str) -> LoopDevice {
        let free = control(Path::new("/dev/loop-control"), LOOP_CTL_GET_FREE, 0);
        let number = free
            .unwrap_or_else(|e| panic!("no loop device: {e}; to mend it, as root: modprobe loop"));
        let name = format!("loop{number}");
        let backing = NamedTempFile::new_in(disk_directory()).unwrap();
        backing.as_file().set_len(bytes).unwrap();
        let path = Path::new("/dev").join(&name);
        control(&path, LOOP_SET_FD, backing.as_file().as_raw_fd())
            .unwrap_or_else(|e| panic!("{} takes no file: {e}", path.display()));
        let made = LoopDevice {
            device: open(&path).unwrap(),
            writes_before: writes_of(&name),
            name,
            _backing: backing,
        };
        std::fs::write(made.queue("scheduler"), scheduler)
            .unwrap_or_else(|e| panic!("no I/O scheduler {scheduler}: {e}"));
        made
    }

    /// As `/sys/block` and the kernel's events name it.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn path(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }

    /// Requests that wrote to it since it was made, and those that became part of another before.
    pub fn writes(&self) -> [u64; 2] {
        let [written, merged] = writes_of(&self.name);
        [
            written - self.writes_before[0],
            merged - self.writes_before[1],
        ]
    }

    fn queue(&self, attribute: &str) -> PathBuf {
        PathBuf::from(format!("/sys/block/{}/queue/{attribute}", self.name))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = std::fs::write(self.queue("scheduler"), "none");
        // SAFETY: takes no argument.
        unsafe { libc::ioctl(self.device.as_raw_fd(), LOOP_CLR_FD, 0) };
    }
}

/// Since boot, by the kernel's count (`Documentation/block/stat.rst`).
fn writes_of(name: &str) -> [u64; 2] {
    let stat = std::fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
    let mut fields = stat.split_whitespace().skip(4);
    [(); 2].map(|()| fields.next().unwrap().parse().unwrap())
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

fn control(path: &Path, request: libc::Ioctl, argument: i32) -> io::Result<i32> {
    let file = open(path)?;
    // SAFETY: these requests take a number or nothing.
    match unsafe { libc::ioctl(file.as_raw_fd(), request, argument) } {
        result if result < 0 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}
