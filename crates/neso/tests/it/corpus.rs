//! Every fuzz target over its seeds: what once broke something, and what leads deep into a parser.

use std::{fs, path::Path};

#[allow(dead_code, unreachable_pub, missing_docs, reason = "the fuzz targets' own file")]
#[path = "../../../../fuzz/src/lib.rs"]
mod targets;

#[test]
fn seeds_pass() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    for (name, target) in targets::TARGETS {
        let seeds: Vec<_> =
            fs::read_dir(corpus.join(name)).expect("seeds").map(|seed| seed.expect("a seed").path()).collect();
        assert!(seeds.len() >= 3, "{name} has too few seeds");
        for seed in seeds {
            let bytes = fs::read(&seed).expect("a seed");
            // The seed and everything that begins as it does.
            for end in (0..=bytes.len()).rev().take(PREFIXES_MAX) {
                target(&bytes[..end]);
            }
        }
    }
}

/// Beginnings of each seed that are tried: all of the short ones, the longest of an archive.
const PREFIXES_MAX: usize = 600;
