//! `debian-12`: Debian's essential packages, sysvinit, sshd, and what a person expects at a shell, laid out by mmdebstrap
//! from the sources this machine's apt is configured with.
//!
//! sysvinit, because an instance may not mount and systemd cannot live without; because Debian keeps it working; and
//! because every package with a script in `/etc/init.d` then starts at boot the way its maintainer meant it.

#![expect(
    clippy::disallowed_types,
    reason = "building an image means running Debian's tools, and this is the crate that may"
)]

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{About, EPOCH, Order, guest, pack::Archive};
use crate::error::{Error, Result};

pub(super) const NAME: &str = "debian-12";

pub(super) const ABOUT: About = About {
    description: "Debian 12 with sysvinit and sshd; log in as root with the account's SSH keys",
    homepage: "https://www.debian.org/",
    min_memory_mib: 64,
};

/// Debian's name of the release.
const CODENAME: &str = "bookworm";

/// What comes on top of the essential packages and apt.
const PACKAGES: [&str; 15] = [
    "bash-completion",
    "ca-certificates",
    "cron",
    "curl",
    "inetutils-syslogd",
    "iproute2",
    "iputils-ping",
    "less",
    "nano",
    "netbase",
    "openssh-server",
    "procps",
    "psmisc",
    "sysvinit-core",
    "tzdata",
];

/// Lines of a failing command's standard error kept for the message.
const LAST_WORDS: usize = 20;

/// Runs mmdebstrap and returns the archive it wrote.
pub(super) fn archive(order: &Order<'_>, scratch: &Path) -> Result<PathBuf> {
    let overlay = overlay(order, scratch)?;
    let sources = sources()?;
    let target = scratch.join("root.tar");
    let arguments = arguments(&overlay, &target, &sources, &proxies());
    (order.progress)("fetching and unpacking Debian's packages");
    let mut command = Command::new("mmdebstrap");
    command.args(&arguments).env("SOURCE_DATE_EPOCH", EPOCH.to_string()).env("TMPDIR", scratch);
    stream(command, "mmdebstrap", order.progress)?;
    Ok(target)
}

/// Our own files as an archive that is unpacked over the packages' ones.
fn overlay(order: &Order<'_>, scratch: &Path) -> Result<PathBuf> {
    let mut archive = Archive::create(&scratch.join("overlay.tar"))?;
    for (path, mode) in
        [("etc/inittab.d", 0o755), ("usr/lib/neso", 0o755), ("var/lib/neso", 0o700), (".zonecontrol", 0o755)]
    {
        archive.directory(path, mode)?;
    }
    archive.files(&guest::COMMON)?;
    archive.files(&guest::DEBIAN)?;
    archive.file(guest::MDATA, 0o755, order.mdata)?;
    for name in guest::MDATA_NAMES {
        archive.symlink(name, &format!("/{}", guest::MDATA))?;
    }
    archive.finish()
}

/// The whole command line.
fn arguments(overlay: &Path, target: &Path, sources: &[String], proxies: &[String]) -> Vec<String> {
    let mut all: Vec<String> = [
        "--variant=minbase",
        "--format=tar",
        "--verbose",
        // The machine makes /dev; device files in an archive would be refused.
        "--skip=output/dev",
        // Less to write and to ship; the rule itself does not stay, so what a tenant installs later is whole.
        "--dpkgopt=force-unsafe-io",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/info/*",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        "--aptopt=Acquire::Languages \"none\"",
        // Host keys and the machine's identity are made at the first boot.
        "--customize-hook=rm -f \"$1\"/etc/ssh/ssh_host_* \"$1\"/etc/machine-id \"$1\"/var/lib/dbus/machine-id",
        "--customize-hook=rm -f \"$1\"/etc/dpkg/dpkg.cfg.d/99mmdebstrap \"$1\"/etc/hostname \"$1\"/etc/resolv.conf",
        // Services start from runlevel 2; the early boot and the halting are ours.
        "--customize-hook=rm -f \"$1\"/etc/rcS.d/S* \"$1\"/etc/rc2.d/S*bootlogs \"$1\"/etc/rc2.d/S*rmnologin",
        "--customize-hook=rm -rf \"$1\"/var/log/*.log \"$1\"/var/log/apt \"$1\"/var/cache/debconf/*-old \"$1\"/var/lib/dpkg/*-old",
    ]
    .map(str::to_owned)
    .to_vec();
    all.push(format!("--customize-hook=tar-in {} /", overlay.display()));
    all.push(format!("--include={}", PACKAGES.join(",")));
    all.extend(proxies.iter().map(|proxy| format!("--aptopt={proxy}")));
    all.push(CODENAME.to_owned());
    all.push(target.display().to_string());
    all.extend(sources.iter().cloned());
    all
}

/// Where this machine's apt gets this release of Debian from, as lines of a sources list. Other releases and other
/// people's archives stay out of the image.
fn sources() -> Result<Vec<String>> {
    let format = "$(ORIGIN)|$(CODENAME)|$(COMPONENT)|$(SITE)|$(RELEASE)";
    let list = run("apt-get", &["indextargets", "--format", format, "Created-By: Packages"])?;
    let found = sources_of(&String::from_utf8_lossy(&list));
    if found.is_empty() {
        // apt has no lists yet, or this machine is not a Debian 12: Debian's own address always works.
        return Ok(["", "-updates"]
            .map(|suite| format!("deb http://deb.debian.org/debian {CODENAME}{suite} main"))
            .into_iter()
            .chain([format!("deb http://deb.debian.org/debian-security {CODENAME}-security main")])
            .collect());
    }
    Ok(found)
}

/// The lines for what `apt-get indextargets` listed.
fn sources_of(list: &str) -> Vec<String> {
    let mut lines: Vec<String> = list
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split('|').collect();
            let &[origin, codename, component, site, release] = fields.as_slice() else { return None };
            let wanted = ["", "-updates", "-security"].iter().any(|suite| codename == format!("{CODENAME}{suite}"));
            (origin == "Debian" && wanted && component == "main").then(|| format!("deb {site} {release} main"))
        })
        .collect();
    lines.sort();
    lines.dedup();
    lines
}

/// apt's own proxy settings, so that a machine without a way of its own to the outside can build.
fn proxies() -> Vec<String> {
    let Ok(dump) = run("apt-config", &["dump", "--format", "%f %v%n"]) else { return Vec::new() };
    String::from_utf8_lossy(&dump)
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(name, value)| name.starts_with("Acquire::http") && name.ends_with("::Proxy") && !value.is_empty())
        .map(|(name, value)| format!("{name} \"{value}\""))
        .collect()
}

/// Runs a command and returns its standard output.
pub(super) fn run<A: AsRef<OsStr>>(program: &str, arguments: &[A]) -> Result<Vec<u8>> {
    run_in(Path::new("/"), program, arguments)
}

/// Runs a command in a directory and returns its standard output.
pub(super) fn run_in<A: AsRef<OsStr>>(directory: &Path, program: &str, arguments: &[A]) -> Result<Vec<u8>> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| unstartable(program, error))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(Error::Command {
        command: program.to_owned(),
        status: output.status.to_string(),
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// Runs a command that takes long, passing what it says on.
fn stream(mut command: Command, program: &str, progress: &dyn Fn(&str)) -> Result<()> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| unstartable(program, error))?;
    let mut last: Vec<String> = Vec::new();
    let stderr = child.stderr.take().expect("standard error is a pipe");
    for line in BufReader::new(stderr).lines().map_while(std::result::Result::ok) {
        // Of what mmdebstrap tells, the steps it takes; its choices and our own hooks interest nobody here.
        if let Some(words) = line.strip_prefix("I: ").filter(|words| words.ends_with("...")) {
            progress(words);
        }
        if last.len() == LAST_WORDS {
            last.remove(0);
        }
        last.push(line);
    }
    let status = child.wait().map_err(|error| Error::os(format!("wait for `{program}`"), error))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Command { command: program.to_owned(), status: status.to_string(), stderr: last.join("\n") })
}

fn unstartable(program: &str, error: std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::NotFound => Error::Lacking {
            what: format!("the command `{program}`"),
            remedy: format!("install the package `{program}` (apt-get install {program})"),
        },
        _ => Error::os(format!("run `{program}`"), error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_release_of_debian_gets_into_the_image() {
        let list = "Debian|bookworm|main|http://deb.debian.org/debian|bookworm\n\
                    Debian|bookworm|main|http://deb.debian.org/debian|bookworm\n\
                    Debian|bookworm|non-free|http://deb.debian.org/debian|bookworm\n\
                    Debian|bookworm-security|main|http://deb.debian.org/debian-security|bookworm-security\n\
                    Debian Backports|bookworm-backports|main|http://deb.debian.org/debian|bookworm-backports\n\
                    Node Source|nodistro|main|https://deb.nodesource.com/node_20.x|nodistro\n\
                    garbage\n";
        assert_eq!(
            sources_of(list),
            [
                "deb http://deb.debian.org/debian bookworm main",
                "deb http://deb.debian.org/debian-security bookworm-security main",
            ]
        );
    }
}
