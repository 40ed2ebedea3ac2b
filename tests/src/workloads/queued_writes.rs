//! Writes to a block device faster than it takes them: requests wait in its queue, and others become part
//! of them there.
//!
//! Each block is an operation of its own (`io_submit(2)`), as what is handed over in one call is merged before
//! it comes to the queue. Of three blocks the one between the others goes last: it joins two that wait. In every
//! second row the threes go backwards and the last block of each goes first, so that what joins absorbs what waits
//! for longer.

use std::alloc::Layout;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Instant;

use super::gate::{Gate, Options, check, join, thread};

const BLOCK_BYTES: usize = 4096;
/// Blocks that lie beside one another, and are under way together: more than a device takes at a time (a loop
/// device 128).
const ROW_BLOCKS: usize = 510;
const ROWS: usize = 64;
/// In which each three of them are written, in every second row.
const ORDERS: [[usize; 3]; 2] = [[0, 2, 1], [2, 0, 1]];

/// Bytes of all of it, and so what the device must have for it.
pub const WRITTEN_BYTES: u64 = (ROWS * ROW_BLOCKS * BLOCK_BYTES) as u64;

pub fn run(options: &Options, gate: &Gate) -> io::Result<String> {
    let missing = || io::Error::other("queued-writes needs --device");
    let device = options.device.clone().ok_or_else(missing)?;
    gate.open()?;
    let offset = options.offset;
    let slowest = join(thread("queued-writes", move || {
        write_rows(&device, offset)
    })?)??;
    Ok(format!(
        "{{\"writes\":{},\"bytes\":{WRITTEN_BYTES},\"slowest_ns\":{slowest}}}",
        ROWS * ROW_BLOCKS
    ))
}

/// The longest time a row took, in nanoseconds: no request of it took longer.
#[inline(never)]
fn write_rows(device: &Path, offset: u64) -> io::Result<u64> {
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(device)?;
    let mut context = 0usize;
    // SAFETY: the context is written, which outlives the call.
    check(unsafe { libc::syscall(libc::SYS_io_setup, ROW_BLOCKS, &raw mut context) } as i32)?;
    let layout = Layout::from_size_align(BLOCK_BYTES, BLOCK_BYTES).map_err(io::Error::other)?;
    // SAFETY: the layout is not empty.
    let block = unsafe { std::alloc::alloc_zeroed(layout) };
    let mut slowest = 0;
    for row in 0..ROWS {
        let begun = Instant::now();
        let order = ORDERS[row % ORDERS.len()];
        let threes = ROW_BLOCKS / order.len();
        for n in 0..threes {
            let three = match row % ORDERS.len() {
                0 => n,
                _ => threes - 1 - n,
            };
            for place in order {
                let place = row * ROW_BLOCKS + three * order.len() + place;
                let at = offset + (place * BLOCK_BYTES) as u64;
                submit(context, file.as_raw_fd(), block, at)?;
            }
        }
        await_row(context)?;
        slowest = slowest.max(begun.elapsed().as_nanos() as u64);
    }
    // SAFETY: nothing is under way; the block was allocated with this layout.
    unsafe {
        check(libc::syscall(libc::SYS_io_destroy, context) as i32)?;
        std::alloc::dealloc(block, layout);
    }
    Ok(slowest)
}

fn submit(context: usize, fd: i32, block: *mut u8, at: u64) -> io::Result<()> {
    /// `IOCB_CMD_PWRITE` (`include/uapi/linux/aio_abi.h`).
    const PWRITE: u16 = 1;
    // SAFETY: plain numbers.
    let mut operation: libc::iocb = unsafe { std::mem::zeroed() };
    operation.aio_lio_opcode = PWRITE;
    operation.aio_fildes = fd as u32;
    operation.aio_buf = block as u64;
    operation.aio_nbytes = BLOCK_BYTES as u64;
    operation.aio_offset = at as i64;
    let mut operations = [&raw mut operation];
    // SAFETY: the kernel copies the operation; the block outlives it.
    check(unsafe { libc::syscall(libc::SYS_io_submit, context, 1, operations.as_mut_ptr()) } as i32)
        .map(drop)
}

/// Waits for all blocks of a row, each of which must have been written whole.
fn await_row(context: usize) -> io::Result<()> {
    /// `struct io_event` (`include/uapi/linux/aio_abi.h`): data, object, result, result2.
    type Event = [i64; 4];
    let mut events = [Event::default(); ROW_BLOCKS];
    let none = std::ptr::null_mut::<libc::timespec>();
    let mut done = 0;
    while done < ROW_BLOCKS {
        // SAFETY: room for as many events as are asked for.
        let got = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                context,
                1,
                ROW_BLOCKS - done,
                events.as_mut_ptr(),
                none,
            )
        };
        check(got as i32)?;
        if let Some(short) = events[..got as usize]
            .iter()
            .find(|event| event[2] != BLOCK_BYTES as i64)
        {
            return Err(io::Error::other(format!(
                "a block's result is {}",
                short[2]
            )));
        }
        done += got as usize;
    }
    Ok(())
}
