//! The SSH keys of an account.
//!
//! Adding or removing one also changes the account's record: the targets of machines carry keys into instances, and their
//! generation must grow with a removal too, which leaves no record of its own behind.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use md5::{Digest as _, Md5};
use model::{
    account::{Account, AccountKey},
    id::AccountId,
    rules,
};
use sha2::Sha256;
use store::{Entry, Snapshot, Transaction};

use crate::{
    Control, Error, FieldCode, Result,
    tables::{ACCOUNTS, CLAIMS, Claim, KEYS, key_key},
};

/// Keys of one account at most: all of them go into every instance.
pub const KEYS_MAX: usize = 64;
/// Bytes of the text of one key at most: an RSA key of 16,384 bits has under 3,000.
pub const OPENSSH_MAX_BYTES: usize = 8 << 10;

/// Adds a key. Without a name it is called by its MD5 fingerprint.
pub async fn add(
    control: &Control,
    account: AccountId,
    name: Option<String>,
    openssh: &str,
) -> Result<Arc<Entry<AccountKey>>> {
    let mut key = parse(account, openssh)?;
    key.created_at = control.now();
    if let Some(name) = name.filter(|name| !name.is_empty()) {
        rules::check_name(&name).map_err(|why| Error::invalid("name", why))?;
        key.name = name;
    }
    control
        .update(|snapshot| {
            let owner = owner(snapshot, account)?;
            let claim = Claim { name: Claim::key(account, &key.name), holder: key.fingerprint_md5.clone() };
            if snapshot.get(&KEYS, &key_key(account, &key.fingerprint_md5)).is_some() {
                return Err(Error::AlreadyExists { what: "key", name: key.fingerprint_md5.clone() });
            }
            if snapshot.get(&CLAIMS, &claim.name).is_some() {
                return Err(Error::AlreadyExists { what: "key", name: key.name.clone() });
            }
            if of_account(snapshot, account).count() >= KEYS_MAX {
                return Err(Error::Conflict(format!("the account has {KEYS_MAX} keys already; remove one first")));
            }
            let touched = Account { updated_at: key.created_at, ..owner.value.clone() };
            let transaction = Transaction::new()
                .create(&KEYS, key.clone())
                .create(&CLAIMS, claim)
                .replace(&ACCOUNTS, &owner, touched);
            Ok((transaction, ()))
        })
        .await?;
    get(control, account, &key.fingerprint_md5)
}

/// The key of a name or of a fingerprint.
pub fn get(control: &Control, account: AccountId, name_or_fingerprint: &str) -> Result<Arc<Entry<AccountKey>>> {
    look_up(&control.snapshot(), account, name_or_fingerprint)
        .ok_or_else(|| Error::not_found("key", name_or_fingerprint))
}

/// The key that signed a request as `key_id`: MD5 fingerprint, `SHA256:…` or name.
pub fn find(control: &Control, account: AccountId, key_id: &str) -> Option<Arc<Entry<AccountKey>>> {
    look_up(&control.snapshot(), account, key_id)
}

/// All keys of an account, by name.
pub fn list(control: &Control, account: AccountId) -> Vec<Arc<Entry<AccountKey>>> {
    let mut keys: Vec<_> = of_account(&control.snapshot(), account).collect();
    keys.sort_by(|one, other| one.name.cmp(&other.name));
    keys
}

/// Removes a key.
pub async fn remove(control: &Control, account: AccountId, name_or_fingerprint: &str) -> Result<()> {
    let now = control.now();
    control
        .update(|snapshot| {
            let key = look_up(snapshot, account, name_or_fingerprint)
                .ok_or_else(|| Error::not_found("key", name_or_fingerprint))?;
            let owner = owner(snapshot, account)?;
            let touched = Account { updated_at: now, ..owner.value.clone() };
            let mut transaction = Transaction::new().delete(&KEYS, &key).replace(&ACCOUNTS, &owner, touched);
            if let Some(claim) = snapshot.get(&CLAIMS, &Claim::key(account, &key.name)) {
                transaction = transaction.delete(&CLAIMS, &claim);
            }
            Ok::<_, Error>((transaction, ()))
        })
        .await?;
    Ok(())
}

/// The keys of an account as sshd reads them, one a line, in the order of their names.
pub(crate) fn authorized_keys(snapshot: &Snapshot, account: AccountId) -> String {
    let mut keys: Vec<_> = of_account(snapshot, account).collect();
    keys.sort_by(|one, other| one.name.cmp(&other.name));
    keys.iter().map(|key| format!("{}\n", key.openssh)).collect()
}

fn of_account(snapshot: &Snapshot, account: AccountId) -> impl Iterator<Item = Arc<Entry<AccountKey>>> {
    snapshot.find(&KEYS, "account", &account.to_string())
}

fn owner(snapshot: &Snapshot, account: AccountId) -> Result<Arc<Entry<Account>>> {
    snapshot.get(&ACCOUNTS, &account.to_string()).ok_or_else(|| Error::not_found("account", account))
}

fn look_up(snapshot: &Snapshot, account: AccountId, key_id: &str) -> Option<Arc<Entry<AccountKey>>> {
    if key_id.starts_with("SHA256:") {
        return of_account(snapshot, account).find(|key| key.fingerprint_sha256 == key_id);
    }
    snapshot.get(&KEYS, &key_key(account, key_id)).or_else(|| {
        let claim = snapshot.get(&CLAIMS, &Claim::key(account, key_id))?;
        snapshot.get(&KEYS, &key_key(account, &claim.holder))
    })
}

/// Reads one line of OpenSSH text and computes its fingerprints.
fn parse(account: AccountId, openssh: &str) -> Result<AccountKey> {
    let text = openssh.trim();
    if text.is_empty() {
        return Err(Error::field("key", FieldCode::Missing, "give a public key as OpenSSH writes it"));
    }
    if text.len() > OPENSSH_MAX_BYTES {
        return Err(Error::invalid("key", format!("is longer than {OPENSSH_MAX_BYTES} bytes")));
    }
    let invalid = |why: String| Error::invalid("key", format!("is no OpenSSH public key ({why})"));
    if text.contains(['\n', '\r']) {
        return Err(invalid("it has more than one line".to_owned()));
    }
    let public = ssh_key::PublicKey::from_openssh(text).map_err(|error| invalid(error.to_string()))?;
    let blob = public.to_bytes().map_err(|error| invalid(error.to_string()))?;
    let algorithm = public.algorithm();
    let known = ["ssh-rsa", "ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"];
    if !known.contains(&algorithm.as_str()) {
        return Err(Error::invalid("key", format!("has type {algorithm}; use RSA, ECDSA or Ed25519")));
    }
    let md5: Vec<String> = Md5::digest(&blob).iter().map(|byte| format!("{byte:02x}")).collect();
    let fingerprint_md5 = md5.join(":");
    Ok(AccountKey {
        account,
        name: fingerprint_md5.clone(),
        fingerprint_md5,
        fingerprint_sha256: format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(&blob))),
        openssh: text.to_owned(),
        created_at: model::time::Timestamp(0),
    })
}
