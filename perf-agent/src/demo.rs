//! The workload `perf-agent demo` traces: a small shop with the usual troubles.
//!
//! Threads named for their job compute a report, poll a queue, fight for the inventory lock,
//! write a journal with fsync, and ask a cache over loopback (RESP) that is slow to answer. The
//! server runs in the same process, so the demo needs nothing installed and no network. The jobs are
//! functions of their own that are never inlined: their names are what the stacks show.

use std::fs::File;
use std::hint::black_box;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

const CHECKOUT_THREADS: usize = 3;
const CART_THREADS: usize = 2;
/// What the cache takes for an answer.
const CACHE_DELAY: Duration = Duration::from_millis(4);
/// A loopback address hardly anybody binds, so that the cache can have the port of one.
const CACHE_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 83, 69, 68);
const CACHE_PORT: u16 = 6379;

/// Runs the workload for `seconds` and returns when every thread of it has ended.
///
/// # Errors
/// Where a thread cannot be started, or the loopback server or the journal file cannot be made.
pub fn run_workload(seconds: u64) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let journal = open_journal()?;
    let listener = bind_cache()?;
    let cache = listener.local_addr().context("address of the cache")?;

    let mut threads = vec![start("cache-accept", move || serve_cache(&listener))?];
    for i in 0..CART_THREADS {
        let stop = stop.clone();
        threads.push(start(&format!("cart-{i}"), move || {
            show_carts(cache, &stop)
        })?);
    }
    let inventory = Arc::new(Mutex::new(Inventory { items: 1_000_000 }));
    for i in 0..CHECKOUT_THREADS {
        let (stop, inventory) = (stop.clone(), inventory.clone());
        threads.push(start(&format!("checkout-{i}"), move || {
            check_out_orders(&inventory, &stop)
        })?);
    }
    let journal_stop = stop.clone();
    threads.push(start("journal", move || {
        keep_journal(journal, &journal_stop)
    })?);
    let (report_stop, queue_stop) = (stop.clone(), stop.clone());
    threads.push(start("report", move || make_reports(&report_stop))?);
    threads.push(start("queue-poll", move || poll_queue(&queue_stop))?);

    thread::sleep(Duration::from_secs(seconds));
    stop.store(true, Ordering::Relaxed);
    // The clients first: the cache ends when they have.
    for thread in threads.into_iter().rev() {
        let name = thread.thread().name().unwrap_or("?").to_owned();
        thread
            .join()
            .map_err(|_| anyhow!("thread {name} of the demo panicked"))?
            .with_context(|| format!("thread {name} of the demo"))?;
    }
    Ok(())
}

fn start(
    name: &str,
    job: impl FnOnce() -> Result<()> + Send + 'static,
) -> Result<JoinHandle<Result<()>>> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(job)
        .with_context(|| format!("starting thread {name}"))
}

/// Opens the journal under /var/tmp, which unlike /tmp is seldom kept in memory, so that fsync has a
/// disk to wait for. Its name is removed at once: the workload may be killed, and leaves nothing
/// behind then either.
fn open_journal() -> Result<File> {
    let name = format!("perf-agent-demo-{}.journal", std::process::id());
    let here = PathBuf::from("/var/tmp").join(&name);
    let there = std::env::temp_dir().join(&name);
    let (file, path) = match File::create_new(&here) {
        Ok(file) => (file, here),
        Err(_) => {
            let file = File::create_new(&there);
            let file = file.with_context(|| format!("creating {}", there.display()))?;
            (file, there)
        }
    };
    std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
    Ok(file)
}

struct Inventory {
    items: u64,
}

fn check_out_orders(inventory: &Mutex<Inventory>, stop: &AtomicBool) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        checkout_lock_critical_section(inventory)?;
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// The trouble: the slow payment is made while the lock is held.
#[inline(never)]
fn checkout_lock_critical_section(inventory: &Mutex<Inventory>) -> Result<()> {
    let mut inventory = inventory
        .lock()
        .map_err(|_| anyhow!("a thread that held the inventory panicked"))?;
    reserve_item(&mut inventory);
    charge_payment();
    Ok(())
}

#[inline(never)]
fn reserve_item(inventory: &mut Inventory) {
    inventory.items = inventory.items.saturating_sub(1);
    burn(Duration::from_micros(300));
}

#[inline(never)]
fn charge_payment() {
    thread::sleep(Duration::from_millis(3));
    black_box(());
}

fn make_reports(stop: &AtomicBool) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        render_report();
        thread::sleep(Duration::from_millis(30));
    }
    Ok(())
}

#[inline(never)]
fn render_report() {
    burn(Duration::from_millis(20));
    black_box(());
}

/// Arithmetic the compiler cannot remove, for about as long as said.
#[inline(never)]
fn burn(length: Duration) {
    let end = Instant::now() + length;
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    while Instant::now() < end {
        for _ in 0..2_000 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
        }
        black_box(state);
    }
}

fn keep_journal(mut file: File, stop: &AtomicBool) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        commit_journal_entry(&mut file).context("writing the journal")?;
        thread::sleep(Duration::from_millis(15));
    }
    Ok(())
}

#[inline(never)]
fn commit_journal_entry(file: &mut File) -> std::io::Result<()> {
    file.write_all(&[b'.'; 4096])?;
    file.sync_all()
}

fn poll_queue(stop: &AtomicBool) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        poll_job_queue();
    }
    Ok(())
}

#[inline(never)]
fn poll_job_queue() {
    thread::sleep(Duration::from_millis(10));
    black_box(());
}

fn show_carts(cache: SocketAddr, stop: &AtomicBool) -> Result<()> {
    let stream = TcpStream::connect(cache).with_context(|| format!("connecting to {cache}"))?;
    stream.set_nodelay(true).context("TCP_NODELAY")?;
    let mut reader = BufReader::new(stream.try_clone().context("second handle of a socket")?);
    let mut writer = stream;
    let mut customer = 0u64;
    while !stop.load(Ordering::Relaxed) {
        customer += 1;
        fetch_cart_from_cache(&mut reader, &mut writer, customer).context("asking the cache")?;
        burn(Duration::from_micros(500));
    }
    Ok(())
}

/// One `GET` and its bulk-string answer.
#[inline(never)]
fn fetch_cart_from_cache(
    reader: &mut impl BufRead,
    writer: &mut impl Write,
    customer: u64,
) -> Result<Vec<u8>> {
    let key = format!("cart:{customer}");
    write!(writer, "*2\r\n$3\r\nGET\r\n${}\r\n{key}\r\n", key.len())?;
    let mut header = String::new();
    reader.read_line(&mut header)?;
    let length: usize = header
        .trim_end()
        .strip_prefix('$')
        .and_then(|n| n.parse().ok())
        .with_context(|| format!("not a bulk string: {header:?}"))?;
    let mut body = vec![0; length + 2];
    reader.read_exact(&mut body)?;
    body.truncate(length);
    Ok(body)
}

fn bind_cache() -> Result<TcpListener> {
    TcpListener::bind((CACHE_ADDRESS, CACHE_PORT))
        .or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .context("no loopback port for the cache")
}

/// Accepts the connections of the cart threads, no more, and ends when they have closed them.
fn serve_cache(listener: &TcpListener) -> Result<()> {
    let mut connections = Vec::new();
    for i in 0..CART_THREADS {
        let (stream, _) = listener.accept().context("accepting a cart thread")?;
        stream.set_nodelay(true).context("TCP_NODELAY")?;
        connections.push(start(&format!("cache-conn-{i}"), move || {
            answer_requests(stream)
        })?);
    }
    for connection in connections {
        connection
            .join()
            .map_err(|_| anyhow!("a connection of the cache panicked"))??;
    }
    Ok(())
}

/// Answers each command with the same cart, [`CACHE_DELAY`] after its last line has come.
fn answer_requests(stream: TcpStream) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone().context("second handle of a socket")?);
    let mut writer = stream;
    while read_command(&mut reader)? {
        look_up_slowly();
        writer.write_all(b"$12\r\napples:3;tea\r\n")?;
    }
    Ok(())
}

#[inline(never)]
fn look_up_slowly() {
    thread::sleep(CACHE_DELAY);
    black_box(());
}

/// Reads one RESP array of bulk strings; false at the end of the stream.
fn read_command(reader: &mut impl BufRead) -> Result<bool> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(false);
    }
    let parts: usize = line
        .trim_end()
        .strip_prefix('*')
        .and_then(|n| n.parse().ok())
        .with_context(|| format!("not an array: {line:?}"))?;
    for _ in 0..parts * 2 {
        line.clear();
        reader.read_line(&mut line)?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workload_runs_its_time_and_leaves_nothing_behind() {
        let began = Instant::now();
        run_workload(1).unwrap();
        let took = began.elapsed();
        assert!(took >= Duration::from_secs(1), "{took:?}");
        assert!(took < Duration::from_secs(5), "{took:?}");
        let left = format!("perf-agent-demo-{}.journal", std::process::id());
        assert!(!PathBuf::from("/var/tmp").join(&left).exists());
        assert!(!std::env::temp_dir().join(&left).exists());
    }

    #[test]
    fn a_command_is_read_to_its_end() {
        let mut bytes = &b"*2\r\n$3\r\nGET\r\n$6\r\ncart:1\r\n*1\r\n$4\r\nPING\r\n"[..];
        assert!(read_command(&mut bytes).unwrap());
        assert_eq!(bytes, b"*1\r\n$4\r\nPING\r\n");
        assert!(read_command(&mut bytes).unwrap());
        assert!(!read_command(&mut bytes).unwrap());
        assert!(read_command(&mut &b"GET a\r\n"[..]).is_err());
    }
}
