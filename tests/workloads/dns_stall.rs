//! Each request looks its server's name up, at a resolver that takes its time; the twin keeps the address.
//!
//! The resolver is ours and runs in network and mount namespaces of its own, with a `/etc/resolv.conf`
//! that names it. The program joins them.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{ToSocketAddrs, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use super::row::{ENGINEER, Job, Program, Row, Stage, Worth};
use super::shift::work;
use crate::traced;

pub const ROW: Row = Row {
    name: "DNS stall",
    unit: "request",
    category: "network_wait",
    about: "DNS at 127.0.0.53:53",
    delegate: ENGINEER,
    worth: Worth::Time,
    realtime: true,
    program: Program::Rust(run),
    stage: join_a_slow_resolver,
};

const EVERY: Duration = Duration::from_millis(25);
/// For each of the two questions (A and AAAA) of a look-up.
const SLOW: Duration = Duration::from_millis(12);
const RESOLVER: &str = "127.0.0.53";
const NAME: &str = "shop.example";

fn run(job: &Job) -> io::Result<()> {
    if job.argument(0).is_ok_and(|argument| argument == "resolver") {
        return resolver(Path::new(job.argument(1)?));
    }
    let sick = job.health.is_sick();
    work(1, EVERY, |_| {
        let mut known = None;
        Ok(move || {
            if sick || known.is_none() {
                known = look_up()?;
            }
            Ok(())
        })
    })
}

#[inline(never)]
fn look_up() -> io::Result<Option<std::net::SocketAddr>> {
    Ok((NAME, 80).to_socket_addrs()?.next())
}

/// The resolver's process, killed when dropped.
struct Resolver(Child);

impl Drop for Resolver {
    fn drop(&mut self) {
        // Fails only where it has ended already.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

fn join_a_slow_resolver(stage: &mut Stage) -> io::Result<()> {
    let directory = tempfile::tempdir()?;
    let mut resolver = Command::new(traced::program("gallery"))
        .args(["--work", ROW.name, "sick", "resolver"])
        .arg(directory.path())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut ready = String::new();
    if let Some(stdout) = resolver.stdout.take() {
        BufReader::new(stdout).read_line(&mut ready)?;
    }
    let resolver = Resolver(resolver);
    if ready != "READY\n" {
        return Err(io::Error::other("the resolver did not start: see above"));
    }
    let of_resolver = |what| File::open(format!("/proc/{}/{what}", resolver.0.id()));
    let (network, mounts) = (of_resolver("ns/net")?, of_resolver("ns/mnt")?);
    let root = of_resolver("root")?;
    // SAFETY: after the fork nothing but system calls on descriptors that are open.
    unsafe {
        stage.command.pre_exec(move || {
            check(libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET))?;
            check(libc::setns(mounts.as_raw_fd(), libc::CLONE_NEWNS))?;
            // Its root is that of the namespace now, and not where these tests are, in a chroot.
            check(libc::fchdir(root.as_raw_fd()))?;
            check(libc::chroot(c".".as_ptr()))
        });
    }
    stage.props.push(Box::new((resolver, directory)));
    Ok(())
}

/// Answers every question after a while, until it is killed.
fn resolver(directory: &Path) -> io::Result<()> {
    // SAFETY: no pointers but null ones.
    unsafe {
        check(libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS))?;
        let (none, private) = (std::ptr::null(), libc::MS_REC | libc::MS_PRIVATE);
        check(libc::mount(none, c"/".as_ptr(), none, private, none.cast()))?;
    }
    bind_over(
        directory,
        "resolv.conf",
        &format!("nameserver {RESOLVER}\n"),
    )?;
    bind_over(directory, "nsswitch.conf", "hosts: files dns\n")?;
    raise_loopback()?;
    let socket = UdpSocket::bind((RESOLVER, 53))?;
    println!("READY");
    io::stdout().flush()?;
    let mut question = [0; 512];
    loop {
        let (length, from) = socket.recv_from(&mut question)?;
        thread::sleep(SLOW);
        if let Some(answer) = answer(&question[..length]) {
            // The program may be gone.
            _ = socket.send_to(&answer, from);
        }
    }
}

/// Puts a file of this text in the place of one in `/etc`.
fn bind_over(directory: &Path, name: &str, text: &str) -> io::Result<()> {
    let path = directory.join(name);
    fs::write(&path, text)?;
    let source = CString::new(path.as_os_str().as_encoded_bytes())?;
    let target = CString::new(format!("/etc/{name}"))?;
    let none = std::ptr::null();
    // SAFETY: strings with their ends.
    check(unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            none,
            libc::MS_BIND,
            none.cast(),
        )
    })
}

/// A new network namespace has its loopback device down.
fn raise_loopback() -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: all zeros are a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[..2].copy_from_slice(&[b'l' as libc::c_char, b'o' as libc::c_char]);
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the request names a device and its flags.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })
}

/// One address for a question of type A, none for others (RFC 1035, 4.1).
fn answer(question: &[u8]) -> Option<Vec<u8>> {
    const RECURSIVE_ANSWER: [u8; 2] = [0x81, 0x80];
    let name_end = 12 + question.get(12..)?.iter().position(|byte| *byte == 0)? + 1;
    let is_a = question.get(name_end..name_end + 2)? == [0, 1];
    let mut answer = question.get(..2)?.to_vec();
    answer.extend(RECURSIVE_ANSWER);
    answer.extend([0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
    answer.extend(question.get(12..name_end + 4)?);
    if is_a {
        // The name asked for, A, IN, for a minute, four bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
    }
    Some(answer)
}

fn check(result: i32) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
