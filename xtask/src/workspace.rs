//! Where things are: the workspace, its target directory, the cargo that runs this task.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

/// What cargo and rustup set for the program they run, and what a person may have set for host
/// builds. None of it may leak into a build by another compiler or for another target.
const FOREIGN_TO_BPF: [&str; 12] = [
    "CARGO_BUILD_RUSTC",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_ENCODED_RUSTFLAGS",
    "RUSTC",
    "RUSTC_BOOTSTRAP",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTDOC",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
];

/// How the agent is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    Debug,
    Release,
}

impl Profile {
    /// Name of the profile's directory below the target directory.
    pub fn directory(self) -> &'static str {
        match self {
            Profile::Debug => "debug",
            Profile::Release => "release",
        }
    }
}

/// The workspace this task belongs to.
pub struct Workspace {
    pub root: PathBuf,
    /// Absolute, `CARGO_TARGET_DIR` respected.
    pub target: PathBuf,
}

impl Workspace {
    /// # Errors
    /// Where the current directory cannot be read.
    pub fn find() -> Result<Self> {
        let manifest = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest
            .parent()
            .context("the task's package lies in the workspace")?
            .to_path_buf();
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(directory) => env::current_dir()
                .context("reading the current directory")?
                .join(directory),
            None => root.join("target"),
        };
        Ok(Workspace { root, target })
    }

    /// The cargo that runs this task, for host builds.
    pub fn cargo(&self) -> Command {
        let program = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
        let mut command = Command::new(program);
        command.current_dir(&self.root);
        if env::var_os("CARGO_TARGET_DIR").is_some() {
            command.env("CARGO_TARGET_DIR", &self.target);
        }
        unset_library_path(&mut command);
        command
    }

    /// Another cargo than the one that runs this task, with nothing of the host build's
    /// environment.
    pub fn foreign_cargo(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root);
        for name in FOREIGN_TO_BPF {
            command.env_remove(name);
        }
        unset_library_path(&mut command);
        command
    }

    /// The agent's binary.
    pub fn agent(&self, profile: Profile) -> PathBuf {
        self.target.join(profile.directory()).join("perf-agent")
    }

    /// The kernel side's object, as `perf-agent/build.rs` looks for it.
    pub fn bpf_object(&self) -> PathBuf {
        self.target.join("bpf").join("perf-agent.o")
    }
}

/// `cargo run` puts its compiler's libraries on the library path; another compiler, the linker and
/// the traced commands must not see them.
pub fn unset_library_path(command: &mut Command) {
    command.env_remove("LD_LIBRARY_PATH");
}
