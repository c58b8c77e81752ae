//! Whose key signed, and whose path it is.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use cloudapi::{
    error::Code,
    signature::{Head, Keys, PublicKey, Verified, verify},
};
use control::{Control, accounts};
use model::account::Account;
use store::Entry;

use super::error::ApiError;

/// Most parsed keys kept; the table is emptied when it is full. A key takes about 2 KiB.
const KEYS_MAX: usize = 16_384;

/// Parsed public keys by their SHA-256: parsing one costs as much as ten verifications.
#[derive(Default)]
pub(super) struct KeyCache(RwLock<HashMap<String, Arc<PublicKey>>>);

impl KeyCache {
    fn get(&self, fingerprint_sha256: &str, openssh: &str) -> Option<Arc<PublicKey>> {
        if let Some(key) = self.0.read().unwrap_or_else(PoisonError::into_inner).get(fingerprint_sha256) {
            return Some(key.clone());
        }
        let key = Arc::new(PublicKey::from_openssh(openssh).ok()?);
        let mut keys = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if keys.len() >= KEYS_MAX {
            keys.clear();
        }
        keys.insert(fingerprint_sha256.to_owned(), key.clone());
        Some(key)
    }
}

struct Directory<'a> {
    control: &'a Control,
    cache: &'a KeyCache,
}

impl Keys for Directory<'_> {
    type Holder = Arc<Entry<Account>>;

    fn find(&self, login: &str, key: &str) -> Option<(Arc<PublicKey>, Self::Holder)> {
        let account = accounts::by_login(self.control, login).ok()?;
        let key = accounts::keys::find(self.control, account.id, key)?;
        let public = self.cache.get(&key.fingerprint_sha256, &key.openssh)?;
        Some((public, account))
    }
}

/// Who signed the request.
pub(super) fn signer(
    control: &Control,
    cache: &KeyCache,
    head: Head<'_>,
) -> Result<Verified<Arc<Entry<Account>>>, ApiError> {
    let now = control.now().0.div_euclid(1_000);
    let verified = verify(head, &Directory { control, cache }, now)?;
    if verified.holder.disabled {
        return Err(ApiError::new(Code::NotAuthorized, "the account is disabled"));
    }
    Ok(verified)
}

/// The account whose path it is: the signer's own (`my`), or any for an operator.
pub(super) fn owner(
    control: &Control,
    signer: &Arc<Entry<Account>>,
    login: &str,
) -> Result<Arc<Entry<Account>>, ApiError> {
    if login == "my" || login == signer.login {
        return Ok(signer.clone());
    }
    if !signer.operator {
        // The same words whether or not there is such an account.
        let message = format!("you do not have permission to access /{login}");
        return Err(ApiError::new(Code::NotAuthorized, message));
    }
    accounts::by_login(control, login).map_err(|_| ApiError::not_found(format!("account {login} does not exist")))
}
