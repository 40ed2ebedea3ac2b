//! Clients that wait in an event loop, of a server (`--connect`) that answers in parts:
//! [`run`] asks for answers of HTTP by how they come, [`subscribe`] has messages of Redis pushed.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::gate::{Gate, Options, check};
use super::measured::Measured;
use super::meter::{self, Meter};

/// Between requests, with nothing in flight.
pub const REST: Duration = Duration::from_millis(400);
/// Nothing takes so long.
const LONG: Duration = Duration::from_secs(10);
/// How often the loop has something else to do, where it has.
const TICK: Duration = Duration::from_millis(60);

/// Asked of the server: parts of an answer, and milliseconds before each but the first.
pub const ANSWERS: [(u32, u32); 2] = [(10, 30), (4, 400)];
/// Sent at once: milliseconds before each answer.
pub const PIPELINED: u32 = 300;
/// Asked by another thread while the loop waits: milliseconds before the answer.
pub const OF_ANOTHER: u32 = 500;
/// One with ticks meanwhile.
pub const TICKED: (u32, u32) = (2, 1500);
/// Bytes of a part.
pub const PART: usize = 1000;
/// A subscription, its answer and a pushed message.
pub const SUBSCRIBE: &[u8] = b"*2\r\n$9\r\nSUBSCRIBE\r\n$1\r\na\r\n";
pub const SUBSCRIBED: &[u8] = b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n";
pub const PUSHED: &[u8] = b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nb\r\n";
/// Milliseconds before each message.
pub const PUSHES: [u32; 12] = [500, 30, 30, 30, 30, 30, 30, 30, 400, 400, 30, 400];

/// A connection in a loop that also waits for something that never comes: so that it is no wait for the
/// one connection.
struct Loop<'a> {
    epoll: i32,
    stream: TcpStream,
    meter: &'a mut Meter,
}

impl<'a> Loop<'a> {
    fn new(address: &str, meter: &'a mut Meter) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        // SAFETY: take numbers alone. The process ends before they matter.
        let (epoll, never) = unsafe { (libc::epoll_create1(0), libc::eventfd(0, 0)) };
        for fd in [stream.as_raw_fd(), never] {
            let mut event = libc::epoll_event {
                events: libc::EPOLLIN as u32,
                u64: 0,
            };
            // SAFETY: `event` is valid.
            check(unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &raw mut event) })?;
        }
        Ok(Loop {
            epoll,
            stream,
            meter,
        })
    }

    /// Waits for bytes, for so long at most, as time of `class`.
    fn wait(&mut self, class: &'static str, at_most: Duration) -> io::Result<bool> {
        let epoll = self.epoll;
        self.meter.blocked(class, || {
            let mut event = libc::epoll_event { events: 0, u64: 0 };
            let ms = at_most.as_millis() as i32;
            // SAFETY: room for one event.
            let n = unsafe { libc::epoll_wait(epoll, &raw mut event, 1, ms) };
            check(n)?;
            Ok(n > 0)
        })
    }

    fn rest(&mut self) -> io::Result<()> {
        let until = Instant::now() + REST;
        while let left @ 1.. = until.saturating_duration_since(Instant::now()).as_millis() {
            self.wait("idle", Duration::from_millis(left as u64))?;
        }
        Ok(())
    }

    /// Sends what is asked and reads so many bytes, waiting for them as `class`.
    fn ask(
        &mut self,
        asked: &[u8],
        mut bytes: usize,
        class: &'static str,
        at_most: Duration,
    ) -> io::Result<()> {
        self.stream.write_all(asked)?;
        let mut buffer = [0; 4 * PART];
        while bytes > 0 {
            if self.wait(class, at_most)? {
                match self.stream.read(&mut buffer)? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    n => bytes -= n,
                }
            }
        }
        Ok(())
    }

    fn get(&mut self, answers: &[(u32, u32)], class: &'static str) -> io::Result<()> {
        self.get_within(answers, class, LONG)
    }

    fn get_within(
        &mut self,
        answers: &[(u32, u32)],
        class: &'static str,
        at_most: Duration,
    ) -> io::Result<()> {
        let asked = answers.iter().map(|(parts, ms)| request(*parts, *ms));
        let length = answers
            .iter()
            .map(|(parts, _)| head(*parts).len() + *parts as usize * PART);
        let (asked, length): (String, usize) = (asked.collect(), length.sum());
        self.ask(asked.as_bytes(), length, class, at_most)
    }
}

/// Sends what is asked from a thread of its own, after a rest: when it did.
fn ask_meanwhile(mut stream: TcpStream, asked: String) -> JoinHandle<io::Result<Instant>> {
    std::thread::spawn(move || {
        std::thread::sleep(REST);
        stream.write_all(asked.as_bytes())?;
        Ok(Instant::now())
    })
}

/// The request for an answer in parts.
pub fn request(parts: u32, ms: u32) -> String {
    format!("GET /parts/{parts}/{ms} HTTP/1.1\r\nHost: a\r\n\r\n")
}

/// The head of that answer.
pub fn head(parts: u32) -> String {
    let length = parts as usize * PART;
    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n")
}

/// A client whose whole life is measured, connected to the server of `--connect`.
fn client(
    options: &Options,
    gate: &Gate,
    job: impl FnOnce(&mut Loop<'_>) -> io::Result<()> + Send + 'static,
) -> io::Result<String> {
    let missing = || io::Error::other("--connect is missing");
    let address = options.connect.clone().ok_or_else(missing)?;
    gate.open()?;
    let client = Measured::start("client", move |meter| {
        job(&mut Loop::new(&address, meter)?)?;
        Ok(Vec::new())
    })?;
    Ok(meter::to_json(&client.accounts()?))
}

pub fn run(options: &Options, gate: &Gate) -> io::Result<String> {
    client(options, gate, |client| {
        // The protocol is not known yet.
        client.get(&[(1, 0)], "net.tcp")?;
        client.rest()?;
        for answer in ANSWERS {
            client.get(&[answer], "net.http")?;
            client.rest()?;
        }
        client.get(&[(1, PIPELINED), (1, PIPELINED)], "net.http")?;
        client.rest()?;
        let other = ask_meanwhile(client.stream.try_clone()?, request(1, OF_ANOTHER));
        client.wait("idle", LONG)?;
        let woken = Instant::now();
        let asked = other.join().map_err(|_| io::ErrorKind::Other)??;
        client.meter.rebook("idle", "net.http", woken - asked);
        client.ask(b"", head(1).len() + PART, "net.http", LONG)?;
        client.rest()
    })
}

pub fn run_with_ticks(options: &Options, gate: &Gate) -> io::Result<String> {
    client(options, gate, |client| {
        client.get(&[(1, 0)], "net.tcp")?;
        client.rest()?;
        client.get_within(&[TICKED], "net.http", TICK)?;
        client.rest()
    })
}

pub fn subscribe(options: &Options, gate: &Gate) -> io::Result<String> {
    client(options, gate, |client| {
        client.ask(SUBSCRIBE, SUBSCRIBED.len(), "net.tcp", LONG)?;
        client.ask(b"", PUSHES.len() * PUSHED.len(), "idle", LONG)
    })
}
