//! `minimal`: Debian's static busybox under all its names, a handful of text files, the metadata client. Starts in
//! milliseconds and runs nothing of its own but a logger.

use std::path::{Path, PathBuf};

use super::{About, Order, debian, guest, pack::Archive};
use crate::error::{Error, Result};

pub(super) const NAME: &str = "minimal";

pub(super) const ABOUT: About = About {
    description: "busybox and its init: a few megabytes, for tests and for services that bring everything along",
    homepage: "https://www.busybox.net/",
    min_memory_mib: 16,
};

/// The package, and where the program lies in it.
const PACKAGE: &str = "busybox-static";
const PROGRAM: &str = "bin/busybox";

/// Directories with their modes.
const DIRECTORIES: [(&str, u32); 24] = [
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("etc/init.d", 0o755),
    ("home", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sbin", 0o755),
    ("srv", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("usr/bin", 0o755),
    ("usr/lib", 0o755),
    ("usr/lib/neso", 0o755),
    ("usr/sbin", 0o755),
    ("var", 0o755),
    ("var/lib", 0o755),
    ("var/lib/neso", 0o700),
    ("var/log", 0o755),
    ("var/spool", 0o755),
    ("var/tmp", 0o1777),
    (".zonecontrol", 0o755),
];

/// Lays the root file system out and returns the archive.
pub(super) fn archive(order: &Order<'_>, scratch: &Path) -> Result<PathBuf> {
    let busybox = program(order, scratch)?;
    let content = std::fs::read(&busybox).map_err(|error| Error::os(format!("read `{}`", busybox.display()), error))?;
    let applets = debian::run(&busybox.to_string_lossy(), &["--list-full"])?;
    let mut archive = Archive::create(&scratch.join("root.tar"))?;
    for (path, mode) in DIRECTORIES {
        archive.directory(path, mode)?;
    }
    archive.file(PROGRAM, 0o755, &content)?;
    for applet in String::from_utf8_lossy(&applets).lines().filter(|path| linked(path)) {
        archive.symlink(applet, "/bin/busybox")?;
    }
    archive.symlink("var/run", "/run")?;
    archive.files(&guest::COMMON)?;
    archive.files(&guest::MINIMAL)?;
    archive.file(guest::MDATA, 0o755, order.mdata)?;
    for name in guest::MDATA_NAMES {
        archive.symlink(name, &format!("/{}", guest::MDATA))?;
    }
    archive.finish()
}

/// Whether an applet gets its link: not the program itself, not what a file of ours replaces, nothing outside of the four
/// directories of programs.
fn linked(path: &str) -> bool {
    let ours = guest::MINIMAL.iter().any(|file| file.path == path);
    let placed = ["bin/", "sbin/", "usr/bin/", "usr/sbin/"].iter().any(|directory| path.starts_with(directory));
    placed && !ours && path != PROGRAM
}

/// The installed program, or the one of the package freshly fetched.
fn program(order: &Order<'_>, scratch: &Path) -> Result<PathBuf> {
    let installed = Path::new("/").join(PROGRAM);
    let status = debian::run("dpkg-query", &["-W", "-f", "${db:Status-Status}", PACKAGE]);
    if status.is_ok_and(|status| status == b"installed") && installed.exists() {
        return Ok(installed);
    }
    (order.progress)("fetching busybox-static");
    debian::run_in(scratch, "apt-get", &["-q", "download", PACKAGE])?;
    let package = std::fs::read_dir(scratch)
        .map_err(|error| Error::os("look for the package that was fetched", error))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|ending| ending == "deb"))
        .ok_or_else(|| Error::Missing(format!("the package {PACKAGE} that apt-get fetched")))?;
    let unpacked = scratch.join("package");
    debian::run("dpkg-deb", &["-x", &package.to_string_lossy(), &unpacked.to_string_lossy()])?;
    Ok(unpacked.join(PROGRAM))
}
