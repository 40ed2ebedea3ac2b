//! An nginx with HTTP/1.1 and HTTP/2, each in the clear and in TLS, and its own log of every request.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Running, certificate, directory, free_port, read, spawn, until};

/// One that was started with two workers. Its ports are of 127.0.0.1.
pub struct Nginx {
    pub server: Running,
    /// HTTP/1.1 in the clear.
    pub http: u16,
    /// HTTP/2 in the clear, with prior knowledge.
    pub http2: u16,
    /// HTTP/1.1 in TLS.
    pub https: u16,
    /// HTTP/2 or 1.1 in TLS, as the client asks.
    pub https2: u16,
    directory: PathBuf,
}

/// Requests of a method and path, by the status they were answered with.
pub type Logged = BTreeMap<(String, u16), u64>;

impl Nginx {
    pub fn start() -> Self {
        let directory = directory();
        let path = directory.path().to_owned();
        let [http, http2, https, https2] = std::array::from_fn(|_| free_port());
        certificate(&mut Command::new("openssl"), &path);
        for (name, length) in [("small", 200), ("large", 50_000), ("text", 4000)] {
            write(&path.join(name), &vec![b'a'; length]);
        }
        let config = config(&path, [http, http2, https, https2]);
        write(&path.join("nginx.conf"), config.as_bytes());
        let mut command = Command::new("/usr/sbin/nginx");
        command.arg("-p").arg(&path).args(["-c", "nginx.conf"]);
        let server = spawn(command, "nginx", Some(directory));
        let nginx = Nginx {
            server,
            http,
            http2,
            https,
            https2,
            directory: path,
        };
        // Started when it listens.
        until("nginx", || {
            let children = format!("/proc/{0}/task/{0}/children", nginx.server.pid());
            read(children).split_whitespace().count() == 2
        });
        nginx
    }

    /// Requests for an address by 8 connections, until dropped or for two minutes.
    pub fn load(&self, url: &str) -> Running {
        let mut wrk = Command::new("wrk");
        wrk.args(["-t", "1", "-c", "8", "-d", "120s", url]);
        super::start(wrk, "wrk")
    }

    /// What it has logged, once that are as many requests as were answered.
    ///
    /// # Panics
    /// Where they do not come.
    pub fn logged(&self, requests: u64) -> Logged {
        let mut logged = Logged::new();
        until("nginx's log", || {
            logged = self.log();
            logged.values().sum::<u64>() >= requests
        });
        logged
    }

    /// What it has logged so far. A line is written when the request's answer was sent.
    pub fn log(&self) -> Logged {
        let mut logged = Logged::new();
        let text = read(self.directory.join("access.log"));
        // The last line may be half written.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        for line in text[..whole].lines() {
            let mut words = line.split(' ');
            let mut word = || words.next().unwrap_or_default();
            let (status, method, target) = (word(), word(), word());
            let path = target.split('?').next().unwrap_or_default();
            let status = status.parse().unwrap_or_else(|e| panic!("{e}: {line}"));
            *logged
                .entry((format!("{method} {path}"), status))
                .or_default() += 1;
        }
        logged
    }
}

fn write(path: &Path, content: &[u8]) {
    std::fs::write(path, content).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

fn config(path: &Path, [http, http2, https, https2]: [u16; 4]) -> String {
    let root = path.display();
    format!(
        "daemon off; user root; worker_processes 2; pid nginx.pid; error_log error.log;
events {{ }}
http {{
  log_format own '$status $request';
  access_log access.log own;
  keepalive_requests 1000000;
  sendfile on; if_modified_since before;
  client_body_temp_path temp; proxy_temp_path temp; fastcgi_temp_path temp;
  uwsgi_temp_path temp; scgi_temp_path temp;
  server {{
    listen 127.0.0.1:{http};
    listen 127.0.0.1:{http2} http2;
    listen 127.0.0.1:{https} ssl;
    listen 127.0.0.1:{https2} ssl http2;
    ssl_certificate server.crt; ssl_certificate_key server.key;
    root {root};
    location = /nothing {{ return 204; }}
    location = /broken {{ return 503; }}
    location = /chunked {{
      gzip on; gzip_types text/plain; default_type text/plain; try_files /text =404;
    }}
  }}
}}
"
    )
}
