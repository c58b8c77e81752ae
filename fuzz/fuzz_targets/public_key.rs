#![no_main]
//! OpenSSH public key text, and signatures of any shape against whatever key it gives.

use cloudapi::signature::{Algorithm, Hash, PublicKey};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &[u8])| {
    let Ok(key) = PublicKey::from_openssh(input.0) else { return };
    for algorithm in [Algorithm::Rsa(Hash::Sha256), Algorithm::Ecdsa(Hash::Sha256), Algorithm::Ed25519] {
        key.verify(algorithm, b"message", input.1);
    }
});
