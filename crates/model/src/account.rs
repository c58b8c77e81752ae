//! Accounts and the SSH keys that prove who is calling.

use serde::{Deserialize, Serialize};

use crate::{id::AccountId, time::Timestamp};

/// A tenant or an operator. Record of table `accounts`, unique by id and by [`Account::login`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Account {
    /// Never changes.
    pub id: AccountId,
    /// What stands in URL paths; 3 to 32 characters `[a-zA-Z][a-zA-Z0-9_.@-]*`, never changes.
    pub login: String,
    /// Contact and postal details, all free text.
    pub profile: Profile,
    /// May act on every account's path.
    pub operator: bool,
    /// A disabled account's requests are refused with 403; its instances keep running.
    pub disabled: bool,
    /// Whether instances get DNS names (`triton_cns_enabled`).
    pub names_enabled: bool,
    /// Default network for new instances and containers, as `PUT /:account/config` sets it.
    pub default_network: Option<crate::id::NetworkId>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When a field last changed.
    pub updated_at: Timestamp,
}

/// Who is behind an account. Free text, each at most 1,024 bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it, and are CloudAPI's")]
pub struct Profile {
    pub email: String,
    pub company_name: Option<String>,
    pub first_name: Option<String>,
    pub last_name: Option<String>,
    pub address: Option<String>,
    pub postal_code: Option<String>,
    pub city: Option<String>,
    pub state: Option<String>,
    pub country: Option<String>,
    pub phone: Option<String>,
}

/// An SSH public key of an account. Record of table `keys`, unique by (account, MD5 fingerprint).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountKey {
    /// Whose it is.
    pub account: AccountId,
    /// What people call it; the MD5 fingerprint when they gave no name. Unique within the account.
    pub name: String,
    /// MD5 of the public key blob as colon-separated hex: CloudAPI's key id.
    pub fingerprint_md5: String,
    /// SHA-256 of the blob as OpenSSH prints it, `SHA256:` included.
    pub fingerprint_sha256: String,
    /// One line of OpenSSH public key text.
    pub openssh: String,
    /// When it was added.
    pub created_at: Timestamp,
}
