//! Threads whose whole life is their own account.
//!
//! The first thing such a thread does is open its account, and the last is close it: it is made by
//! `pthread_create` and ended by the system call. What the standard library and the C library do
//! at both ends maps and unmaps memory, for which threads wait for each other where they cannot
//! measure it: up to 30 ms on a busy machine.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::sync::mpsc::{self, Receiver, SyncSender};

use super::meter::{Account, Meter};

/// What a thread does; it may bring the accounts of others.
type Job = Box<dyn FnOnce(&mut Meter) -> io::Result<Vec<Account>> + Send>;

/// A running thread.
pub struct Measured {
    name: &'static str,
    accounts: Receiver<io::Result<Vec<Account>>>,
}

struct Life {
    name: &'static str,
    name_c: CString,
    job: Job,
    born: SyncSender<()>,
    accounts: SyncSender<io::Result<Vec<Account>>>,
}

impl Measured {
    /// Starts a thread, and returns when it has opened its account.
    pub fn start(
        name: &'static str,
        job: impl FnOnce(&mut Meter) -> io::Result<Vec<Account>> + Send + 'static,
    ) -> io::Result<Self> {
        let (tell_born, born) = mpsc::sync_channel(1);
        let (tell_accounts, accounts) = mpsc::sync_channel(1);
        let life = Box::new(Life {
            name,
            name_c: CString::new(name).map_err(io::Error::other)?,
            job: Box::new(job),
            born: tell_born,
            accounts: tell_accounts,
        });
        let argument = Box::into_raw(life);
        let mut thread = MaybeUninit::uninit();
        // SAFETY: `live` takes over the box it is given.
        let failed = unsafe {
            libc::pthread_create(thread.as_mut_ptr(), std::ptr::null(), live, argument.cast())
        };
        if failed != 0 {
            // SAFETY: no thread took it over.
            drop(unsafe { Box::from_raw(argument) });
            return Err(io::Error::from_raw_os_error(failed));
        }
        // Fails where the thread could not open its account, which is then told instead of it.
        _ = born.recv();
        Ok(Measured { name, accounts })
    }

    /// Waits for its end.
    pub fn accounts(self) -> io::Result<Vec<Account>> {
        let accounts = self.accounts.recv().map_err(io::Error::other)?;
        accounts.map_err(|e| io::Error::new(e.kind(), format!("thread {}: {e}", self.name)))
    }
}

extern "C" fn live(argument: *mut libc::c_void) -> *mut libc::c_void {
    // SAFETY: made by `start` with `Box::into_raw`, for this call alone.
    let life = unsafe { Box::from_raw(argument.cast::<Life>()) };
    // SAFETY: a string with its end.
    unsafe { libc::prctl(libc::PR_SET_NAME, life.name_c.as_ptr()) };
    let Life {
        name,
        job,
        born,
        accounts,
        ..
    } = *life;
    let account = || {
        let mut meter = Meter::new()?;
        born.send(()).map_err(io::Error::other)?;
        let mut all = job(&mut meter)?;
        all.reserve(1);
        all.push(meter.finish(name)?);
        Ok(all)
    };
    // Whoever started the thread may not care any more.
    _ = accounts.send(account());
    // SAFETY: ends this thread alone. Nothing on its stack is borrowed, and its memory is given up.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    std::ptr::null_mut()
}
