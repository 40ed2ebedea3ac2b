//! The few kernel interfaces aya has no call for: batched map reads, memory-mapped arrays, BPF
//! run-time statistics.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    ptr::NonNull,
};

use perf_ebpf_common::Wire;

// Commands of bpf(2), `include/uapi/linux/bpf.h`.
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_DELETE_ELEM: libc::c_long = 3;
const MAP_LOOKUP_BATCH: libc::c_long = 24;
const ENABLE_STATS: libc::c_long = 32;

/// `BPF_NOEXIST`.
pub const NOEXIST: u64 = 1;

/// A map as bytes: keys and values of known size.
pub struct RawMap {
    pub fd: OwnedFd,
    pub key_size: usize,
    pub value_size: usize,
    pub max_entries: usize,
}

#[repr(C)]
struct ElemAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Calls bpf(2).
///
/// # Safety
/// The pointers inside `attr` are valid for what the command reads and writes.
unsafe fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<i64> {
    // SAFETY: by the caller's contract.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            (&raw mut *attr).cast::<libc::c_void>(),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

impl RawMap {
    fn elem(&self, key: &[u8], value: *mut u8, flags: u64) -> ElemAttr {
        ElemAttr {
            map_fd: self.fd.as_raw_fd() as u32,
            pad: 0,
            key: key.as_ptr() as u64,
            value: value as u64,
            flags,
        }
    }

    /// Value of a key, `None` where it is absent. Per-CPU maps give one value a possible CPU.
    ///
    /// # Errors
    /// Any other error of bpf(2).
    pub fn lookup(&self, key: &[u8], cpus: usize) -> io::Result<Option<Vec<u8>>> {
        let stride = if cpus == 1 {
            self.value_size
        } else {
            self.value_size.next_multiple_of(8)
        };
        let mut value = vec![0u8; stride * cpus];
        assert_eq!(key.len(), self.key_size, "key size of the map");
        let mut attr = self.elem(key, value.as_mut_ptr(), 0);
        // SAFETY: key and value have the sizes the map was made with.
        match unsafe { bpf(MAP_LOOKUP_ELEM, &mut attr) } {
            Ok(_) => Ok(Some(value)),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Sets a key.
    ///
    /// # Errors
    /// `AlreadyExists` under [`NOEXIST`], `ArgumentListTooLong` (E2BIG) where the map is full.
    pub fn update(&self, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
        assert_eq!(key.len(), self.key_size, "key size of the map");
        assert_eq!(value.len(), self.value_size, "value size of the map");
        let mut attr = self.elem(key, value.as_ptr().cast_mut(), flags);
        // SAFETY: key and value have the sizes the map was made with; the value is only read.
        unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) }.map(drop)
    }

    /// Removes a key; one that is absent is fine.
    ///
    /// # Errors
    /// Any other error of bpf(2).
    pub fn delete(&self, key: &[u8]) -> io::Result<()> {
        assert_eq!(key.len(), self.key_size, "key size of the map");
        let mut attr = self.elem(key, std::ptr::null_mut(), 0);
        // SAFETY: the key has the size the map was made with.
        match unsafe { bpf(MAP_DELETE_ELEM, &mut attr) } {
            Err(e) if e.raw_os_error() != Some(libc::ENOENT) => Err(e),
            _ => Ok(()),
        }
    }

    /// All entries of a hash map, each key followed by its value. Entries that come or go meanwhile
    /// may or may not be in it.
    ///
    /// # Errors
    /// An error of bpf(2) other than the end of the map.
    pub fn entries(&self) -> io::Result<Vec<u8>> {
        /// What a batch may take: one of 512 entries of `syscalls` was 1.3 MB, cleared five times a
        /// second.
        const BATCH_BYTES: usize = 64 << 10;
        let mut out = Vec::new();
        let mut batch = (BATCH_BYTES / (self.key_size + self.value_size)).clamp(16, 512);
        let mut keys = vec![0u8; batch * self.key_size];
        let mut values = vec![0u8; batch * self.value_size];
        let mut token = [0u8; 64];
        let mut first = true;
        loop {
            let mut attr = BatchAttr {
                in_batch: if first { 0 } else { token.as_ptr() as u64 },
                out_batch: token.as_mut_ptr() as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: batch as u32,
                map_fd: self.fd.as_raw_fd() as u32,
                elem_flags: 0,
                flags: 0,
            };
            // SAFETY: the buffers hold `batch` keys and values; the token is larger than any key
            // or bucket number the kernel stores there.
            let result = unsafe { bpf(MAP_LOOKUP_BATCH, &mut attr) };
            let done = match &result {
                Ok(_) => false,
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => true,
                // A bucket holds more than fits: ask for more at once.
                Err(e) if e.raw_os_error() == Some(libc::ENOSPC) && batch < self.max_entries => {
                    batch *= 4;
                    keys.resize(batch * self.key_size, 0);
                    values.resize(batch * self.value_size, 0);
                    continue;
                }
                Err(_) => return result.map(|_| out),
            };
            for i in 0..attr.count as usize {
                out.extend_from_slice(&keys[i * self.key_size..][..self.key_size]);
                out.extend_from_slice(&values[i * self.value_size..][..self.value_size]);
            }
            if done {
                return Ok(out);
            }
            first = false;
        }
    }
}

/// A memory-mapped BPF array: read and written without a system call.
pub struct MappedArray<T> {
    base: NonNull<T>,
    bytes: usize,
    stride: usize,
    len: usize,
}

// SAFETY: the mapping is owned and stays valid on any thread; all access goes through volatile or
// atomic operations.
unsafe impl<T: Wire> Send for MappedArray<T> {}

impl<T: Wire> MappedArray<T> {
    /// Maps an array of `len` elements of type `T` made with `BPF_F_MMAPABLE`.
    ///
    /// # Errors
    /// That of mmap(2).
    pub fn map(fd: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        // The kernel rounds elements up to 8 bytes and the array to whole pages.
        let stride = size_of::<T>().next_multiple_of(8);
        let bytes = (stride * len).next_multiple_of(4096);
        // SAFETY: a fresh shared mapping of a file descriptor; the result is checked.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<T>()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(MappedArray {
            base,
            bytes,
            stride,
            len,
        })
    }

    /// Address of an element.
    pub fn element(&self, index: usize) -> Option<NonNull<T>> {
        // SAFETY: within the mapping, by the check.
        (index < self.len).then(|| unsafe { self.base.byte_add(index * self.stride) })
    }
}

impl<T> Drop for MappedArray<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this length and is not used after.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// While the returned descriptor is open the kernel times every BPF program's runs (5.8 and later).
///
/// # Errors
/// That of bpf(2).
pub fn enable_run_time_stats() -> io::Result<OwnedFd> {
    // BPF_STATS_RUN_TIME is 0.
    let mut attr: u64 = 0;
    // SAFETY: the command reads four bytes.
    let fd = unsafe { bpf(ENABLE_STATS, &mut attr) }?;
    // SAFETY: a fresh descriptor of ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Run time in ns and runs of a program, as counted while statistics were enabled.
pub fn program_run_time(fd: &aya::programs::ProgramFd) -> Option<(u64, u64)> {
    const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
    /// Bytes of `struct bpf_prog_info` up to and with `run_cnt`, and where the two fields are
    /// (`include/uapi/linux/bpf.h`; the structure only grows at its end).
    const INFO_BYTES: usize = 208;
    const RUN_TIME: usize = 192;
    const RUN_COUNT: usize = 200;
    #[repr(C)]
    struct InfoAttr {
        fd: u32,
        len: u32,
        info: u64,
    }
    use std::os::fd::AsFd as _;
    let mut info = [0u64; INFO_BYTES / 8];
    let mut attr = InfoAttr {
        fd: fd.as_fd().as_raw_fd() as u32,
        len: INFO_BYTES as u32,
        info: info.as_mut_ptr() as u64,
    };
    // SAFETY: the kernel writes at most `len` bytes into the buffer of that size.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr) }.ok()?;
    Some((info[RUN_TIME / 8], info[RUN_COUNT / 8]))
}
