//! A gRPC server and its client on grpcio (`src/grpc/peer.py`), which count every call themselves.

use std::collections::BTreeMap;
use std::process::Command;

use super::{free_port, python_with_packages};
use crate::traced::Traced;

const PEER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/grpc/peer.py");

/// Calls by method and status of gRPC: `/pkg.Service/Method 0`.
pub type Calls = BTreeMap<String, u64>;

/// A server that waits for its cue to stop. Killed when dropped.
pub struct GrpcServer {
    pub traced: Traced,
    pub port: u16,
}

impl GrpcServer {
    pub fn start() -> Self {
        let port = free_port();
        let traced = Traced::start(peer("serve", port), "grpc server");
        GrpcServer { traced, port }
    }

    /// A client that waits for its cue, with a connection on which it made calls before.
    pub fn client(&self) -> Traced {
        Traced::start(peer("ask", self.port), "grpc client")
    }

    /// A client that begins at once, on a connection of its own.
    pub fn client_command(&self) -> Command {
        let mut command = peer("ask", self.port);
        command.arg("--now");
        command
    }
}

fn peer(role: &str, port: u16) -> Command {
    let mut command = python_with_packages();
    command.args([PEER, role, "--port", &port.to_string()]);
    command
}
