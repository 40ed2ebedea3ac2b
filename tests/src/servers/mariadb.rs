//! MariaDB as Debian has it.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::{
    CLOSE_WAIT, ESTABLISHED, Running, TcpSocket, certificate, directory, free_port, must, spawn,
    start, tcp_sockets, until,
};

/// A MariaDB server with a log of every command, and the log.
pub struct Mariadb {
    pub server: Running,
    directory: PathBuf,
    port: u16,
}

impl Mariadb {
    /// Makes the database and starts it. It refuses root unless told.
    pub fn start() -> Self {
        let (directory, port) = (directory(), free_port());
        let path = directory.path().to_owned();
        let data = format!("--datadir={}", path.join("data").display());
        let mut install = Command::new("mariadb-install-db");
        install.args(["--no-defaults", "--user=root", "--skip-test-db", &data]);
        install.arg("--auth-root-authentication-method=normal");
        must(&mut install);
        let mut command = Command::new("mariadbd");
        command.args(["--no-defaults", "--user=root", "--bind-address=127.0.0.1"]);
        command.args([&data, &format!("--port={port}"), "--general-log=1"]);
        certificate(&mut Command::new("openssl"), &path);
        for (option, file) in [
            ("socket", "socket"),
            ("general-log-file", "general.log"),
            ("pid-file", "pid"),
            ("ssl-key", "server.key"),
            ("ssl-cert", "server.crt"),
        ] {
            command.arg(format!("--{option}={}", path.join(file).display()));
        }
        let server = spawn(command, "mariadbd", Some(directory));
        let mariadb = Mariadb {
            server,
            directory: path,
            port,
        };
        until("mariadbd", || {
            let mut probe = mariadb.client("mariadb");
            probe.args(["-e", "SELECT 1"]).stderr(Stdio::null());
            probe.stdout(Stdio::null());
            probe.status().is_ok_and(|status| status.success())
        });
        mariadb
    }

    /// A client program, over TCP and in the clear.
    pub fn client(&self, program: &str) -> Command {
        self.client_with(program, "--skip-ssl")
    }

    /// A client program, over TCP and in TLS.
    pub fn client_over_tls(&self, program: &str) -> Command {
        self.client_with(program, "--ssl")
    }

    fn client_with(&self, program: &str, ssl: &str) -> Command {
        let mut command = Command::new(program);
        command.args(["--no-defaults", "--protocol=tcp", "-h", "127.0.0.1"]);
        command.args(["-u", "root", "-P", &self.port.to_string(), ssl]);
        command
    }

    /// Rows of a table by their keys, asked for by 4 connections until dropped.
    pub fn load(&self) -> Running {
        let mut slap = self.client("mariadb-slap");
        slap.args(["--auto-generate-sql", "--auto-generate-sql-load-type=key"]);
        slap.args(["--auto-generate-sql-add-autoincrement", "--concurrency=4"]);
        slap.args(["--number-of-queries=100000000"]);
        start(slap, "mariadb-slap")
    }

    /// Waits until it has closed all its connections: it reads the head of a client's farewell before the rest.
    ///
    /// # Panics
    /// Where one stays open.
    pub fn until_left(&self) {
        // Established, or closed by the client alone.
        let open = |socket: &TcpSocket| {
            socket.port == self.port && [ESTABLISHED, CLOSE_WAIT].contains(&socket.state)
        };
        until("a server without connections", || {
            !tcp_sockets().iter().any(open)
        });
    }

    /// How many commands of a kind (`Query`, `Execute`) the server logged whose text begins so.
    pub fn logged(&self, kind: &str, text: &str) -> u64 {
        let log = std::fs::read(self.directory.join("general.log"));
        let log = log.unwrap_or_else(|e| panic!("the general log: {e}"));
        let log = String::from_utf8_lossy(&log);
        let wanted = format!("{kind}\t{text}");
        log.lines().filter(|line| line.contains(&wanted)).count() as u64
    }
}
