//! Archives for tests, good and bad.

use std::io::Write;

use flate2::{Compression, write::GzEncoder};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

/// A tar archive being written.
#[derive(Default)]
pub(super) struct Pack {
    bytes: Vec<u8>,
}

impl Pack {
    /// A root with a few files of every harmless kind.
    pub(super) fn small() -> Self {
        let mut pack = Self::default();
        pack.add("./", EntryType::Directory, 0o755, (0, 0), "", b"");
        pack.add("./etc/", EntryType::Directory, 0o755, (0, 0), "", b"");
        pack.add("./etc/passwd", EntryType::Regular, 0o644, (0, 0), "", b"root:x:0:0::/root:/bin/sh\n");
        pack.add("./etc/shadow", EntryType::Regular, 0o640, (0, 42), "", b"root:*:::::::\n");
        pack.add("./bin", EntryType::Symlink, 0o777, (0, 0), "usr/bin", b"");
        pack.add("./usr/bin/su", EntryType::Regular, 0o4755, (0, 0), "", b"#!/bin/sh\n");
        pack.add("./usr/bin/also-su", EntryType::Link, 0o4755, (0, 0), "./usr/bin/su", b"");
        pack.add("./home/one/notes", EntryType::Regular, 0o600, (1000, 1000), "", b"mine\n");
        pack.add("./run/pipe", EntryType::Fifo, 0o622, (0, 0), "", b"");
        pack.add("./dev/null", EntryType::Char, 0o666, (0, 0), "", b"");
        pack
    }

    /// Adds a member exactly as told, checking nothing: the tar library would refuse to write the bad ones.
    pub(super) fn add(
        &mut self,
        path: &str,
        kind: EntryType,
        mode: u32,
        owner: (u64, u64),
        link: &str,
        content: &[u8],
    ) -> &mut Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    /// Adds an ordinary file.
    pub(super) fn file(&mut self, path: &str, content: &[u8]) -> &mut Self {
        self.add(path, EntryType::Regular, 0o644, (0, 0), "", content)
    }

    /// Adds a symbolic link.
    pub(super) fn symlink(&mut self, path: &str, target: &str) -> &mut Self {
        self.add(path, EntryType::Symlink, 0o777, (0, 0), target, b"")
    }

    /// Adds PAX records for the next member.
    pub(super) fn pax(&mut self, records: &[(&str, &[u8])]) -> &mut Self {
        let mut text = Vec::new();
        for (key, value) in records {
            // A record's length counts its own digits.
            let rest = key.len() + value.len() + 3;
            let length = (1..).map(|digits| rest + digits).find(|all| all.to_string().len() + rest == *all);
            let length = length.expect("some number of digits fits");
            text.extend_from_slice(format!("{length} {key}=").as_bytes());
            text.extend_from_slice(value);
            text.push(b'\n');
        }
        self.add("pax", EntryType::XHeader, 0o644, (0, 0), "", &text)
    }

    /// The bare archive.
    pub(super) fn tar(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes.resize(bytes.len() + 1024, 0);
        bytes
    }

    /// The archive, compressed.
    pub(super) fn gzip(&self) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&self.tar()).expect("memory takes it");
        encoder.finish().expect("memory takes it")
    }

    /// SHA-256 of [`Pack::tar`].
    pub(super) fn tar_sha(&self) -> String {
        hex(&Sha256::digest(self.tar()))
    }

    /// SHA-256 of [`Pack::gzip`].
    pub(super) fn gzip_sha(&self) -> String {
        hex(&Sha256::digest(self.gzip()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
