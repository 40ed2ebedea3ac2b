//! A thread for each connection, which answers one request at a time. `/job/N?cpu=MS&lock=MS&pg=MS&redis=N`
//! computes, waits for a lock that another thread holds, has PostgreSQL sleep and asks Redis for a
//! key, as long or as often as asked. What each request took of its thread, from when its first bytes had come
//! to when its answer had gone, is told in the end.

use std::io::{self, BufRead, BufReader};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::super::clock::{Clock, clock_ns};
use super::super::gate::{Gate, Options, join, thread};
use super::super::meter::Meter;
use super::super::migrate::{allowed_cpus, pin_to};
use super::peers::{Postgres, Redis};
use super::{CONNECTIONS, Request, answer, listen, read};

const WAITS: [&str; 3] = ["lock", "postgresql", "redis"];
/// What is measured of a request, in nanoseconds.
const FIGURES: [&str; 7] = [
    "wall",
    "cpu",
    "on_cpu",
    "runq",
    "lock",
    "postgresql",
    "redis",
];

pub fn run(options: &Options, gate: &Gate) -> io::Result<String> {
    let (listener, peers) = listen(options)?;
    let [redis, postgres] = &peers[..] else {
        return Err(io::Error::other("--connect PORT@REDIS@POSTGRES is missing"));
    };
    // One for all of them, so that they wait for it.
    pin_to(allowed_cpus()?[0])?;
    gate.open()?;
    let mut threads = Vec::new();
    for i in 0..CONNECTIONS {
        let (connection, _) = listener.accept()?;
        let (redis, postgres) = (redis.clone(), postgres.clone());
        threads.push(thread(&format!("serves-{i}"), move || {
            Handler::new(&redis, &postgres)?.serve(connection)
        })?);
    }
    let mut requests = Vec::new();
    for thread in threads {
        requests.extend(join(thread)??);
    }
    Ok(format!("{{\"requests\":[{}]}}", requests.join(",")))
}

struct Handler {
    clock: Clock,
    meter: Meter,
    holder: Holder,
    redis: Redis,
    postgres: Postgres,
}

impl Handler {
    fn new(redis: &str, postgres: &str) -> io::Result<Self> {
        Ok(Handler {
            clock: Clock::new()?,
            meter: Meter::new()?,
            holder: Holder::start()?,
            redis: Redis::connect(redis)?,
            postgres: Postgres::connect(postgres)?,
        })
    }

    /// Until the client goes; what it measured of each request.
    fn serve(mut self, connection: TcpStream) -> io::Result<Vec<String>> {
        connection.set_nodelay(true)?;
        let mut connection = BufReader::new(connection);
        let mut requests = Vec::new();
        // Its bytes have come, and nothing was done with them yet.
        while !connection.fill_buf()?.is_empty() {
            let before = self.reading()?;
            let Some(request) = read(&mut connection)? else {
                break;
            };
            self.work(&request)?;
            answer(&mut connection, "done")?;
            let now = self.reading()?;
            let figures = FIGURES.iter().zip(now.iter().zip(before));
            let figures =
                figures.map(|(name, (now, before))| format!("\"{name}\":{}", now - before));
            let figures: Vec<String> = figures.collect();
            requests.push(format!("{{{}}}", figures.join(",")));
        }
        self.holder.end()?;
        Ok(requests)
    }

    /// In the order of [`FIGURES`].
    fn reading(&self) -> io::Result<[u64; 7]> {
        let now = self.clock.read()?;
        let waited = |class| self.meter.so_far(class).as_nanos() as u64;
        let [lock, postgresql, redis] = WAITS.map(waited);
        Ok([
            now.wall_ns,
            now.cpu_ns,
            now.on_cpu_ns,
            now.runq_ns,
            lock,
            postgresql,
            redis,
        ])
    }

    fn work(&mut self, request: &Request) -> io::Result<()> {
        compute(Duration::from_millis(request.number("cpu")));
        let held = Duration::from_millis(request.number("lock"));
        if !held.is_zero() {
            let lock = self.holder.hold(held)?;
            self.meter.blocked("lock", || {
                drop(lock.lock().unwrap_or_else(PoisonError::into_inner));
                Ok(())
            })?;
        }
        let (postgres, redis) = (&mut self.postgres, &mut self.redis);
        let query = format!("SELECT pg_sleep({}e-3)", request.number("pg"));
        self.meter
            .blocked("postgresql", || postgres.query(&query))?;
        for _ in 0..request.number("redis") {
            self.meter.blocked("redis", || redis.get())?;
        }
        Ok(())
    }
}

/// Uses so much CPU time of the calling thread.
fn compute(time: Duration) {
    let now = || clock_ns(libc::CLOCK_THREAD_CPUTIME_ID);
    let end = now() + time.as_nanos() as u64;
    while now() < end {
        std::hint::spin_loop();
    }
}

/// A thread that holds a lock when it is told to.
struct Holder {
    lock: Arc<Mutex<()>>,
    tell: SyncSender<Duration>,
    held: Receiver<()>,
    thread: JoinHandle<()>,
}

impl Holder {
    fn start() -> io::Result<Self> {
        let lock = Arc::new(Mutex::new(()));
        let (tell, told) = sync_channel::<Duration>(1);
        let (tell_held, held) = sync_channel(1);
        let its_lock = lock.clone();
        let thread = thread("holder", move || {
            while let Ok(time) = told.recv() {
                let guard = its_lock.lock().unwrap_or_else(PoisonError::into_inner);
                // Fails where the handler has ended.
                _ = tell_held.send(());
                std::thread::sleep(time);
                drop(guard);
            }
        })?;
        Ok(Holder {
            lock,
            tell,
            held,
            thread,
        })
    }

    /// The lock, which is held for this long from now on.
    fn hold(&self, time: Duration) -> io::Result<&Mutex<()>> {
        self.tell.send(time).map_err(io::Error::other)?;
        self.held.recv().map_err(io::Error::other)?;
        Ok(&self.lock)
    }

    fn end(self) -> io::Result<()> {
        drop(self.tell);
        join(self.thread)
    }
}
