#![no_main]
//! Key ids.

use cloudapi::signature::KeyId;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(id) = KeyId::parse(text) {
        assert!(!id.login.is_empty() && !id.key.is_empty());
    }
});
