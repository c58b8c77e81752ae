#![no_main]
//! Image archives: every member that passes stays inside the root.

use std::io::{self, Read};

use host::archive::{self, Member, MemberKind, Sink};
use libfuzzer_sys::fuzz_target;
use model::image::Compression;
use sha2::{Digest, Sha256};

struct Inside;

impl Sink for Inside {
    fn member(&mut self, member: &Member, content: &mut dyn Read) -> host::error::Result<()> {
        let mut paths = vec![&member.path];
        if let MemberKind::Hardlink(target) = &member.kind {
            assert!(!target.is_empty());
            paths.push(target);
        }
        for part in paths.into_iter().flatten() {
            assert!(!part.is_empty() && part != b"." && part != b".." && !part.contains(&b'/') && !part.contains(&0));
        }
        assert!(u64::from(member.uid) < archive::ID_END && u64::from(member.gid) < archive::ID_END);
        let _ = io::copy(content, &mut io::sink());
        Ok(())
    }
}

fuzz_target!(|bytes: &[u8]| {
    let sum: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    for compression in [Compression::None, Compression::Gzip] {
        let _ = archive::read(&mut &*bytes, &sum, compression, &mut Inside);
    }
});
