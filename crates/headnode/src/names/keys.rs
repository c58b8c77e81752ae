//! Keys of signed zones: made here, sealed before they are recorded, opened where zones are signed.
//!
//! What seals them follows from the key of the datacenter's authority, which every headnode has and no record. So the store, its copies and
//! its members hold keys that say nothing without it; a backup has both, and is sealed itself.
//!
//! ```text
//! nonce    12 bytes, by chance
//! content  AES-256-GCM over the private half (PKCS #8), bound to the zone's name
//! tag      16 bytes
//! ```

use std::{path::Path, sync::Arc, time::Duration};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf::{HKDF_SHA256, KeyType, Salt},
    rand,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use control::{
    Control,
    names::keys::{self, KeyMaker},
};
use dns::{Duty, Name, Signing, ZoneKey};
use flow::loops::Loop;
use model::names::dnssec::{KeyRole, KeyStage, MadeKey, ZoneKeys};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject as _};
use store::BoxFuture;

/// How keys sign: Ed25519 has no chance in its signatures, so that headnodes may sign side by side.
const SIGNING: Signing = Signing::Ed25519;
/// What the seal is for, in its derivation.
const PURPOSE: &[u8] = b"neso zone keys 1";
/// Bytes of the seal's own key.
const KEY_BYTES: usize = 32;
/// How often keys are looked at.
const PERIOD: Duration = Duration::from_secs(30);

/// What keys are sealed with.
#[derive(Clone)]
pub struct Seal(Arc<LessSafeKey>);

/// A key's length, for the derivation.
struct Length;

impl KeyType for Length {
    fn len(&self) -> usize {
        KEY_BYTES
    }
}

impl std::fmt::Debug for Seal {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Seal")
    }
}

impl Seal {
    /// The one of the authority whose key is in `path`.
    pub(crate) fn of_authority(path: &Path) -> Result<Self, String> {
        let key = PrivateKeyDer::from_pem_file(path)
            .map_err(|error| format!("the authority's key in `{}` cannot be read: {error}", path.display()))?;
        Self::of(key.secret_der())
    }

    fn of(secret: &[u8]) -> Result<Self, String> {
        let mut bytes = [0; KEY_BYTES];
        let derived = Salt::new(HKDF_SHA256, PURPOSE).extract(secret);
        let filled = derived.expand(&[PURPOSE], Length).and_then(|okm| okm.fill(&mut bytes));
        let key = filled.and_then(|()| UnboundKey::new(&AES_256_GCM, &bytes));
        Ok(Self(Arc::new(LessSafeKey::new(key.map_err(|_| "the seal of zones' keys cannot be derived")?))))
    }

    fn close(&self, apex: &str, secret: Vec<u8>) -> Result<String, String> {
        let mut nonce = [0; NONCE_LEN];
        let mut content = secret;
        let sealed = rand::fill(&mut nonce).and_then(|()| {
            let nonce = Nonce::assume_unique_for_key(nonce);
            self.0.seal_in_place_append_tag(nonce, Aad::from(apex.as_bytes()), &mut content)
        });
        sealed.map_err(|_| "a key cannot be sealed")?;
        Ok(STANDARD.encode([nonce.as_slice(), &content].concat()))
    }

    fn open(&self, apex: &str, sealed: &str) -> Option<Vec<u8>> {
        let bytes = STANDARD.decode(sealed).ok()?;
        let (nonce, content) = bytes.split_first_chunk::<NONCE_LEN>()?;
        let (nonce, mut content) = (Nonce::assume_unique_for_key(*nonce), content.to_vec());
        let opened = self.0.open_in_place(nonce, Aad::from(apex.as_bytes()), &mut content).ok()?;
        Some(opened.to_vec())
    }

    /// The keys of a zone with what each does now.
    pub(crate) fn open_all(&self, record: &ZoneKeys) -> Result<Vec<ZoneKey>, String> {
        let opened = record.keys.iter().map(|key| {
            let duty = match (key.role, key.stage) {
                (KeyRole::Ksk, _) => Duty::Keys,
                (KeyRole::Zsk, KeyStage::Signing) => Duty::Records,
                (KeyRole::Zsk, _) => Duty::Shown,
            };
            let secret = self.open(&record.apex, &key.sealed);
            let secret = secret.ok_or_else(|| {
                format!("its key {} was sealed by a headnode of another authority, or was changed", key.tag)
            })?;
            ZoneKey::with_duty(SIGNING, &secret, duty).map_err(|error| format!("its key {}: {error}", key.tag))
        });
        opened.collect()
    }
}

impl KeyMaker for Seal {
    fn make(&self, apex: &str, role: KeyRole) -> Result<MadeKey, String> {
        let secret = ZoneKey::generate(SIGNING).map_err(|error| error.to_string())?;
        let duty = if role == KeyRole::Ksk { Duty::Keys } else { Duty::Shown };
        let key = ZoneKey::with_duty(SIGNING, &secret, duty).map_err(|error| error.to_string())?;
        let name: Name = apex.parse().map_err(|error| format!("{apex}: {error}"))?;
        let parent_record = (role == KeyRole::Ksk).then(|| key.parent_record(&name));
        Ok(MadeKey { tag: key.tag(), parent_record, sealed: self.close(apex, secret)? })
    }
}

/// Keeps the keys of signed zones what they should be, on the first headnode.
pub(crate) struct TendKeys {
    control: Control,
    seal: Seal,
}

impl TendKeys {
    pub(crate) fn new(control: &Control, seal: Seal) -> Self {
        Self { control: control.clone(), seal }
    }
}

impl Loop for TendKeys {
    fn name(&self) -> &'static str {
        "tend zones' keys"
    }

    fn period(&self) -> Duration {
        PERIOD
    }

    fn pass(&self) -> BoxFuture<'_, Result<String, Box<dyn std::error::Error + Send + Sync>>> {
        Box::pin(async {
            if !self.control.headnodes.roster().is_first() {
                return Ok(String::new());
            }
            let changed = keys::tend(&self.control, &self.seal).await?;
            Ok(if changed.is_empty() { String::new() } else { format!("keys or signatures of {}", changed.join(", ")) })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_opened_by_its_authority_for_its_zone_alone() {
        let (seal, other) = (Seal::of(b"one").unwrap(), Seal::of(b"two").unwrap());
        let made = seal.make("a.example", KeyRole::Ksk).unwrap();
        assert!(made.parent_record.as_ref().unwrap().starts_with(&format!("a.example. IN DS {} 15 2 ", made.tag)));
        let secret = seal.open("a.example", &made.sealed).unwrap();
        assert_eq!(ZoneKey::with_duty(SIGNING, &secret, Duty::Keys).unwrap().tag(), made.tag);
        assert_eq!(seal.open("b.example", &made.sealed), None);
        assert_eq!(other.open("a.example", &made.sealed), None);
        let sealed = STANDARD.decode(&made.sealed).unwrap();
        assert!(!sealed.windows(16).any(|part| secret.windows(16).any(|whole| whole == part)));
        let record = ZoneKeys::none("a.example").with(KeyRole::Ksk, made, model::time::Timestamp(0));
        assert!(other.open_all(&record).unwrap_err().contains("another authority"));
        assert_eq!(seal.open_all(&record).unwrap()[0].duty(), Duty::Keys);
    }
}
