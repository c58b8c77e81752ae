#![no_main]
//! Image manifests, each also turned into the image it describes.

use libfuzzer_sys::fuzz_target;
use model::{id::AccountId, image::manifest, time::Timestamp};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(manifest) = manifest::parse(bytes) {
        let _ = manifest.into_image(AccountId::random(), Timestamp(0));
    }
});
