//! Fetches Debian's kernels through an apt of their own: its lists, cache and sources lie below
//! the target directory, and the machine's own apt is only read, for the mirror it uses.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::step;

/// Where Debian is found on a machine that names no mirror.
const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";
const DEFAULT_SECURITY_MIRROR: &str = "http://deb.debian.org/debian-security";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const META_PACKAGE: &str = "linux-image-amd64";

/// A kernel of the matrix.
#[derive(Clone, Copy, Debug)]
pub struct Series {
    /// What `--only` takes, and the beginning of the release; `newest` takes any.
    pub name: &'static str,
    /// Suites to take it from, the first that can be reached.
    suites: &'static [&'static str],
}

/// Oldest first.
pub const MATRIX: [Series; 4] = [
    Series {
        name: "5.10",
        suites: &["bullseye-security", "bullseye"],
    },
    Series {
        name: "6.1",
        suites: &["bookworm", "bookworm-security"],
    },
    Series {
        name: "6.12",
        suites: &["trixie", "trixie-security"],
    },
    Series {
        name: "newest",
        suites: &["trixie-backports", "sid", "forky"],
    },
];

/// A kernel on this machine.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// `5.10.0-46-amd64`.
    pub release: String,
    pub image: PathBuf,
}

/// The kernel of a series, downloaded where it is not cached below `directory`.
///
/// # Errors
/// Where no suite can be reached or none has the series.
pub fn fetch(series: &Series, directory: &Path) -> Result<Kernel> {
    let image = directory.join("vmlinuz");
    let note = directory.join("release");
    if let (true, Ok(release)) = (image.is_file(), fs::read_to_string(&note)) {
        return Ok(Kernel {
            release: release.trim().to_owned(),
            image,
        });
    }
    let mut reasons = Vec::new();
    for suite in series.suites {
        match fetch_from(suite, series, directory) {
            Ok(release) => {
                fs::write(&note, &release)
                    .with_context(|| format!("writing {}", note.display()))?;
                return Ok(Kernel { release, image });
            }
            Err(error) => reasons.push(format!("{suite}: {error:#}")),
        }
    }
    bail!("no Debian kernel {}: {}", series.name, reasons.join("; "))
}

fn fetch_from(suite: &str, series: &Series, directory: &Path) -> Result<String> {
    let apt = Apt::set_up(suite, &directory.join("apt"))?;
    step::run(
        &format!("apt-get update of {suite}, below the target directory"),
        apt.command("apt-get").args(["update", "-q"]),
    )?;
    let image_package = apt.dependency(META_PACKAGE, "linux-image-")?;
    let release = image_package
        .strip_prefix("linux-image-")
        .unwrap_or(&image_package)
        .to_owned();
    if series.name != "newest" && !release.starts_with(&format!("{}.", series.name)) {
        bail!("it has {release}, not {}", series.name);
    }
    // From 7.3 on the image lies in a package of its own, which the old one depends on.
    let package = apt
        .dependency(&image_package, "linux-binary-")
        .unwrap_or(image_package);
    step::run(
        &format!("downloading {package}"),
        apt.command("apt-get")
            .current_dir(&apt.directory)
            .args(["download", "-q", &package]),
    )?;
    extract(&apt.directory, &directory.join("vmlinuz"))?;
    // The lists alone are some tens of megabytes.
    let _ = fs::remove_dir_all(&apt.directory);
    Ok(release)
}

/// An apt that shares nothing with the machine's but its network settings.
struct Apt {
    directory: PathBuf,
}

impl Apt {
    fn set_up(suite: &str, directory: &Path) -> Result<Self> {
        let _ = fs::remove_dir_all(directory);
        for below in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(directory.join(below))
                .with_context(|| format!("creating {}", directory.display()))?;
        }
        let signed_by = match Path::new(KEYRING).exists() {
            true => format!("[signed-by={KEYRING}] "),
            false => String::new(),
        };
        let source = format!("deb {signed_by}{} {suite} main\n", mirror(suite));
        fs::write(directory.join("sources.list"), source)
            .with_context(|| format!("writing below {}", directory.display()))?;
        Ok(Apt {
            directory: directory.to_path_buf(),
        })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let below = |name: &str| self.directory.join(name).display().to_string();
        for option in [
            format!("Dir::Etc::SourceList={}", below("sources.list")),
            "Dir::Etc::SourceParts=-".to_owned(),
            // Preferences of the machine's own release would hide the others.
            "Dir::Etc::Preferences=/dev/null".to_owned(),
            "Dir::Etc::PreferencesParts=/dev/null".to_owned(),
            format!("Dir::State::Lists={}", below("lists")),
            "Dir::State::Status=/dev/null".to_owned(),
            format!("Dir::Cache={}", below("cache")),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "APT::Architecture=amd64".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
            // Debian 11's lists are past the date until which they promise to be current.
            "Acquire::Check-Valid-Until=false".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    }

    /// The package a package depends on whose name begins so and goes on with a version.
    fn dependency(&self, package: &str, prefix: &str) -> Result<String> {
        let text =
            step::output(
                self.command("apt-cache")
                    .args(["depends", "--important", package]),
            )
            .with_context(|| format!("apt-cache knows no {package}"))?;
        dependency(&text, prefix)
            .with_context(|| format!("{package} depends on no {prefix}VERSION"))
    }
}

fn dependency(listing: &str, prefix: &str) -> Option<String> {
    listing
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .map(|name| name.trim_matches(['<', '>']))
        .find(|name| {
            name.strip_prefix(prefix)
                .is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
        })
        .map(str::to_owned)
}

/// The mirror this machine's own sources name for Debian or its security updates.
fn mirror(suite: &str) -> String {
    let security = suite.ends_with("-security");
    let listing = step::output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(ORIGIN) $(RELEASE) $(SITE)",
        "Created-By: Packages",
    ]));
    listing
        .as_deref()
        .and_then(|listing| own_mirror(listing, security))
        .unwrap_or(match security {
            true => DEFAULT_SECURITY_MIRROR,
            false => DEFAULT_MIRROR,
        })
        .to_owned()
}

fn own_mirror(listing: &str, security: bool) -> Option<&str> {
    listing.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let (origin, release, site) = (fields.next()?, fields.next()?, fields.next()?);
        (origin == "Debian" && release.ends_with("-security") == security).then_some(site)
    })
}

/// Takes the image alone out of the package found in the directory.
fn extract(directory: &Path, image: &Path) -> Result<()> {
    let package = fs::read_dir(directory)
        .with_context(|| format!("reading {}", directory.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get download left no package")?;
    let mut unpack = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(&package)
        .stdout(Stdio::piped())
        .spawn()
        .context("starting dpkg-deb")?;
    let archive = unpack.stdout.take().context("dpkg-deb has an output")?;
    let partial = image.with_extension("part");
    let out =
        fs::File::create(&partial).with_context(|| format!("creating {}", partial.display()))?;
    let status = Command::new("tar")
        .args(["-x", "-O", "--wildcards", "*/vmlinuz*"])
        .stdin(archive)
        .stdout(out)
        .status()
        .context("starting tar")?;
    let unpacked = unpack.wait().context("waiting for dpkg-deb")?;
    if !status.success() || !unpacked.success() {
        bail!("{} has no kernel image", package.display());
    }
    fs::rename(&partial, image).with_context(|| format!("writing {}", image.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versioned_dependency_is_found_among_others() {
        let listing = "linux-image-amd64\n  Depends: linux-base-amd64\n \
                       |Depends: <dracut>\n  Depends: linux-image-7.3.4+deb13-amd64\n";
        assert_eq!(
            dependency(listing, "linux-image-").as_deref(),
            Some("linux-image-7.3.4+deb13-amd64")
        );
        assert_eq!(dependency(listing, "linux-base-"), None);
        assert_eq!(dependency(listing, "linux-binary-"), None);
    }

    #[test]
    fn the_mirror_is_the_machines_own_for_the_kind_of_suite() {
        let listing = "Debian bookworm http://one/debian\nDebian bookworm-security http://two/s\n\
                       other stable http://three\n";
        assert_eq!(own_mirror(listing, false), Some("http://one/debian"));
        assert_eq!(own_mirror(listing, true), Some("http://two/s"));
        assert_eq!(own_mirror("other stable http://three\n", false), None);
    }
}
