//! What is mounted below a directory: looked at before it is removed, so that nothing is deleted that only shows through.
//!
//! A program that is killed leaves its mounts: a root an image is built in holds the machine's own `/dev/shm`, say. Removing such a directory file by
//! file would empty what belongs to others.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, umount2};

use crate::error::{Error, Result};

/// The kernel's list for this process's namespace.
const MOUNTS: &str = "/proc/self/mounts";

/// Mount points strictly below `directory`, deepest first.
pub fn below(directory: &Path) -> Result<Vec<PathBuf>> {
    let directory = match fs::canonicalize(directory) {
        Ok(directory) => directory,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::os(format!("look at `{}`", directory.display()), error)),
    };
    let list = fs::read_to_string(MOUNTS).map_err(|error| Error::os(format!("read `{MOUNTS}`"), error))?;
    Ok(listed_below(&list, &directory))
}

/// Unmounts all that is mounted below `directory`; who still uses it keeps it until they end.
pub fn detach_below(directory: &Path) -> Result<()> {
    for mount in below(directory)? {
        umount2(&mount, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .map_err(|errno| Error::os(format!("unmount `{}`", mount.display()), errno.into()))?;
    }
    Ok(())
}

fn listed_below(list: &str, directory: &Path) -> Vec<PathBuf> {
    let points = list.lines().filter_map(|line| line.split(' ').nth(1)).map(|point| PathBuf::from(unescaped(point)));
    let mut found: Vec<PathBuf> = points.filter(|point| point.starts_with(directory) && point != directory).collect();
    // A mount on another comes later in the list, and goes first.
    found.reverse();
    found.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    found
}

/// A path as the kernel lists it: blank, tab, newline and backslash as three octal digits behind a backslash.
fn unescaped(text: &str) -> String {
    let mut rest = text;
    let mut plain = String::with_capacity(text.len());
    while let Some(at) = rest.find('\\') {
        plain.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                plain.push(char::from(code));
                rest = &rest[at + 4..];
            }
            None => {
                plain.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_below_comes_deepest_first() {
        let list = "proc /proc proc rw 0 0\n/dev/loop1 /d ext4 rw 0 0\ntmpfs /d/a tmpfs rw 0 0\ntmpfs /d/a/b\\040c tmpfs rw 0 0\n\
                    tmpfs /d/a tmpfs ro 0 0\ntmpfs /data tmpfs rw 0 0\n";
        let found = listed_below(list, Path::new("/d"));
        assert_eq!(found, ["/d/a/b c", "/d/a", "/d/a"].map(PathBuf::from));
        assert!(listed_below(list, Path::new("/nowhere")).is_empty());
    }

    #[test]
    fn odd_names_are_read_as_they_are() {
        for (listed, plain) in [("/a\\134b", "/a\\b"), ("/a\\011", "/a\t"), ("/a\\9", "/a\\9"), ("\\", "\\"), ("", "")]
        {
            assert_eq!(unescaped(listed), plain);
        }
    }
}
