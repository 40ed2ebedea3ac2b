//! A gRPC server and its client on grpcio (`src/grpc/peer.py`), which count every call themselves.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::{certificate, directory, free_port, python_with_packages};
use crate::traced::Traced;

const PEER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/grpc/peer.py");

/// Calls by method and status of gRPC: `/pkg.Service/Method 0`.
pub type Calls = BTreeMap<String, u64>;

/// A server that waits for its cue to stop. Killed when dropped.
pub struct GrpcServer {
    pub traced: Traced,
    pub port: u16,
    tls: Option<TempDir>,
}

impl GrpcServer {
    /// In the clear.
    pub fn start() -> Self {
        Self::start_with(None)
    }

    /// With a certificate of its own.
    pub fn start_tls() -> Self {
        let directory = directory();
        certificate(&mut Command::new("openssl"), directory.path());
        Self::start_with(Some(directory))
    }

    fn start_with(tls: Option<TempDir>) -> Self {
        let port = free_port();
        let directory = tls.as_ref().map(TempDir::path);
        let traced = Traced::start(peer("serve", port, directory), "grpc server");
        GrpcServer { traced, port, tls }
    }

    /// A client that waits for its cue, with a connection on which it made calls before.
    pub fn client(&self) -> Traced {
        Traced::start(self.peer(self.port), "grpc client")
    }

    /// A client that begins at once, on a connection of its own to the server's port or one that leads
    /// there.
    pub fn client_command(&self, port: u16) -> Command {
        let mut command = self.peer(port);
        command.arg("--now");
        command
    }

    fn peer(&self, port: u16) -> Command {
        peer("ask", port, self.tls.as_ref().map(TempDir::path))
    }
}

fn peer(role: &str, port: u16, tls: Option<&Path>) -> Command {
    let mut command = python_with_packages();
    command.args([PEER, role, "--port", &port.to_string()]);
    if let Some(directory) = tls {
        command.arg("--tls").arg(directory);
    }
    command
}
