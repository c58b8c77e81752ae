//! Who a watcher is, by the certificate it showed.
//!
//! TLS has made sure that it has the certificate's private key; all else is decided here, for each request, so that a key that is taken away
//! from its account counts for nothing from then on, also on connections that are open. What does not change (what the certificate says, which
//! key was seen to have signed it) is kept.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use cloudapi::signature::PublicKey;
use control::{Control, accounts};
use model::{account::Account, id::AccountId};
use rustls_pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use store::Entry;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::certificate::{Certificate, Unreadable};
use crate::pki::Role;

/// Certificates kept at most, each of some kilobytes; all are forgotten when there are more.
const KEPT_MAX: usize = 4_096;

/// Somebody who may see something.
#[derive(Debug, Clone)]
pub enum Watcher {
    /// An account.
    Account(Arc<Entry<Account>>),
    /// Who holds an operator's or a watcher's certificate of the datacenter's own authority.
    Operator,
}

/// Why somebody is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stranger {
    /// Nothing was shown.
    #[error("there is no client certificate")]
    NoCertificate,
    /// What was shown cannot be read.
    #[error("the certificate cannot be used: {0}")]
    Unreadable(Unreadable),
    /// It has ended, or has not begun.
    #[error("the certificate has ended, or has not begun")]
    Ended,
    /// It says of its issuer nothing that leads to a key.
    #[error("the certificate's issuer is no key's fingerprint")]
    Issuer,
    /// There is no such account.
    #[error("there is no account with the login in the certificate")]
    Login,
    /// The account is disabled.
    #[error("the account is disabled")]
    Disabled,
    /// The account has no such key.
    #[error("the key that should have signed the certificate is not the account's")]
    Key,
    /// The key did not sign it.
    #[error("the certificate is not signed by the key it names")]
    Signature,
}

impl Watcher {
    /// The account, if it is one.
    pub fn account(&self) -> Option<&Account> {
        match self {
            Self::Account(account) => Some(&account.value),
            Self::Operator => None,
        }
    }

    /// Whether it may see machines.
    pub fn is_operator(&self) -> bool {
        self.account().is_none_or(|account| account.operator)
    }

    /// The account whose requests are counted: operators' are not.
    pub fn counted(&self) -> Option<AccountId> {
        self.account().filter(|account| !account.operator).map(|account| account.id)
    }
}

/// Who is let in.
pub struct Watchers {
    control: Control,
    /// The datacenter's authority.
    authority: CertificateDer<'static>,
    /// By the SHA-256 of the certificate. Leaf data.
    kept: RwLock<HashMap<[u8; 32], Arc<Known>>>,
}

/// What does not change about a certificate.
struct Known {
    read: Result<Certificate, Unreadable>,
    by_authority: bool,
    /// SHA-256 fingerprint of the key that was seen to have signed it. Leaf data.
    signed_by: Mutex<Option<String>>,
}

impl Watchers {
    /// By `control`'s accounts, and by certificates of `authority`.
    pub fn new(control: Control, authority: CertificateDer<'static>) -> Self {
        Self { control, authority, kept: RwLock::default() }
    }

    /// The login in a certificate, believed or not; for logs.
    pub fn claims(&self, shown: &[u8]) -> Option<String> {
        Some(self.known(shown).read.as_ref().ok()?.login.clone())
    }

    /// Who showed this certificate.
    pub fn find(&self, shown: Option<&[u8]>) -> Result<Watcher, Stranger> {
        let known = self.known(shown.ok_or(Stranger::NoCertificate)?);
        let certificate = known.read.as_ref().map_err(|why| Stranger::Unreadable(*why))?;
        let is_alive = certificate.is_alive(self.control.now().0.div_euclid(1_000));
        if known.by_authority {
            let may_watch = [Role::Operator, Role::Watcher].map(|role| Some(role.unit()));
            return match may_watch.contains(&certificate.unit.as_deref()) {
                true if is_alive => Ok(Watcher::Operator),
                true => Err(Stranger::Ended),
                false => Err(Stranger::Key),
            };
        }
        if certificate.for_monitor && !is_alive {
            return Err(Stranger::Ended);
        }
        let key_id = certificate.key_id().ok_or(Stranger::Issuer)?;
        let account = accounts::by_login(&self.control, &certificate.login).map_err(|_| Stranger::Login)?;
        if account.disabled {
            return Err(Stranger::Disabled);
        }
        let key = accounts::keys::find(&self.control, account.id, key_id).ok_or(Stranger::Key)?;
        let mut signed_by = known.signed_by.lock().unwrap_or_else(PoisonError::into_inner);
        if signed_by.as_deref() != Some(&key.fingerprint_sha256) {
            let public = PublicKey::from_openssh(&key.openssh).map_err(|_| Stranger::Key)?;
            if !certificate.is_signed_by(&public) {
                return Err(Stranger::Signature);
            }
            *signed_by = Some(key.fingerprint_sha256.clone());
        }
        Ok(Watcher::Account(account))
    }

    fn known(&self, shown: &[u8]) -> Arc<Known> {
        let digest: [u8; 32] = Sha256::digest(shown).into();
        if let Some(known) = self.kept.read().unwrap_or_else(PoisonError::into_inner).get(&digest) {
            return known.clone();
        }
        let known = Arc::new(Known {
            read: Certificate::read(shown),
            by_authority: is_issued_by(shown, &self.authority),
            signed_by: Mutex::default(),
        });
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT_MAX {
            kept.clear();
        }
        kept.insert(digest, known.clone());
        known
    }
}

fn is_issued_by(shown: &[u8], authority: &[u8]) -> bool {
    let (Ok((_, shown)), Ok((_, authority))) = (X509Certificate::from_der(shown), X509Certificate::from_der(authority))
    else {
        return false;
    };
    shown.issuer().as_raw() == authority.subject().as_raw()
        && shown.verify_signature(Some(authority.public_key())).is_ok()
}
