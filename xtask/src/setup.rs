//! What a machine must have and how it gets it: privilege, and Debian packages through apt.

use std::{
    ffi::OsStr,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Result, bail};

use crate::step;

/// Set once the package lists were refreshed by this process.
static LISTS_ARE_FRESH: AtomicBool = AtomicBool::new(false);

/// Somebody else's apt may be at work: a machine that just came up updates itself.
const APT_LOCK: &str = "DPkg::Lock::Timeout=300";

/// A Debian package and what it is for.
#[derive(Clone, Copy, Debug)]
pub struct Package {
    pub name: &'static str,
    pub purpose: &'static str,
}

/// Whether this process is root.
pub fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Whether this is Debian or a system made from it.
pub fn is_debian() -> bool {
    Path::new("/etc/debian_version").exists() && find_program("apt-get").is_some()
}

/// The program's path, where `PATH` has it.
pub fn find_program(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

/// A command run as root: as is for root, else through a sudo that asks for nothing.
///
/// # Errors
/// Where this user is neither root nor allowed to become it without a password.
pub fn as_root(program: impl AsRef<OsStr>) -> Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    if step::succeeds(Command::new("sudo").args(["-n", "true"])) {
        let mut command = Command::new("sudo");
        command.arg("-n").arg(program);
        return Ok(command);
    }
    bail!(
        "this needs root for {:?}, and sudo asks for a password here: run `sudo -v` first, or run \
         the task as root",
        program.as_ref()
    )
}

/// Packages of the list that are not installed.
pub fn missing<'a>(packages: &[&'a Package]) -> Vec<&'a Package> {
    packages
        .iter()
        .copied()
        .filter(|package| !is_installed(package.name))
        .collect()
}

fn is_installed(package: &str) -> bool {
    step::output(Command::new("dpkg-query").args(["-W", "-f=${db:Status-Status}", package]))
        .is_some_and(|status| status == "installed")
}

/// Installs what is missing of the packages.
///
/// # Errors
/// On a system without apt, without privilege, or where apt fails; the message has the command to
/// type.
pub fn install(packages: &[&Package]) -> Result<()> {
    let missing = missing(packages);
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    for package in &missing {
        eprintln!("missing {}: {}", package.name, package.purpose);
    }
    let by_hand = format!("apt-get update && apt-get install {}", names.join(" "));
    if !is_debian() {
        bail!(
            "this system has no apt; install what Debian calls {}",
            names.join(", ")
        );
    }
    let context = |error: anyhow::Error| error.context(format!("to mend it, as root: {by_hand}"));
    // A source that cannot be reached need not be the one that has the packages.
    if let Err(error) = refresh_lists() {
        eprintln!("{error:#}");
    }
    let mut command = as_root("env").map_err(context)?;
    command
        .args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "install"])
        .args(["--yes", "--no-install-recommends", "-q"])
        .args(["-o", APT_LOCK])
        .args(&names);
    step::run("apt-get install", &mut command).map_err(context)
}

fn refresh_lists() -> Result<()> {
    if LISTS_ARE_FRESH.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    let mut command = as_root("apt-get")?;
    command.args(["update", "-q", "-o", APT_LOCK]);
    step::run("apt-get update", &mut command)
}
