//! The store's own authority: who may open the members, and who is one.
//!
//! ```text
//! data/pki/store-ca.{pem,key} ──signs──► store-member.{pem,key}   a member, for headnodes and for members (its addresses)
//!                             └────────► store-client.{pem,key}   a headnode, CN = server id
//! ```
//! It is not the datacenter's: what lies in the store is everybody's, so a node's certificate or an operator's opens nothing there. Only headnodes have
//! its key. The first one makes it, the others are given it.

use std::{collections::BTreeSet, path::PathBuf};

use model::time::Timestamp;

use super::{
    Identity, Leaf, PkiError, Uses, load_certificate, load_issuer, lock, make_authority, make_directory, write_file,
};
use crate::settings::Settings;

/// The certificates of a headnode whose store is kept in members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorePki {
    /// The authority's certificate, PEM.
    pub authority: PathBuf,
    /// Its key, PEM.
    pub authority_key: PathBuf,
    /// The member's.
    pub member: Identity,
    /// The headnode's, for members.
    pub client: Identity,
}

impl StorePki {
    /// Where they lie, whether they are there or not.
    pub fn of(settings: &Settings) -> Self {
        let directory = settings.pki_dir();
        let authority = Identity::named(&directory, "store-ca");
        Self {
            authority: authority.certificate,
            authority_key: authority.key,
            member: Identity::named(&directory, "store-member"),
            client: Identity::named(&directory, "store-client"),
        }
    }
}

/// Makes the authority, where there is none.
pub fn make_store_authority(settings: &Settings, now: Timestamp) -> Result<(), PkiError> {
    let directory = settings.pki_dir();
    make_directory(&directory)?;
    let _alone = lock(&directory)?;
    let authority = Identity::named(&directory, "store-ca");
    match authority.certificate.exists() && authority.key.exists() {
        true => Ok(()),
        false => make_authority(&format!("Neso {} store authority", settings.datacenter.name), &authority, now),
    }
}

/// Puts an authority in place that was made elsewhere, both PEM.
pub fn adopt_store_authority(settings: &Settings, certificate: &str, key: &str) -> Result<(), PkiError> {
    let directory = settings.pki_dir();
    make_directory(&directory)?;
    let _alone = lock(&directory)?;
    let authority = Identity::named(&directory, "store-ca");
    write_file(&authority.key, key.as_bytes(), 0o600)?;
    write_file(&authority.certificate, certificate.as_bytes(), 0o644)?;
    load_issuer(&authority).map(|_| ())
}

/// Makes what is missing for the headnode `name`, whose member is reached at `hosts`, and renews what is due. The authority must be there.
pub fn store_certificates(
    settings: &Settings,
    name: &str,
    hosts: &[String],
    now: Timestamp,
) -> Result<StorePki, PkiError> {
    let directory = settings.pki_dir();
    let _alone = lock(&directory)?;
    let pki = StorePki::of(settings);
    let authority = Identity { certificate: pki.authority.clone(), key: pki.authority_key.clone() };
    let issuer = load_issuer(&authority)?;
    let signer = load_certificate(&authority.certificate)?;
    let mut names: BTreeSet<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
    names.extend(hosts.iter().cloned());
    let leaf = |uses, names| Leaf { common_name: name.to_owned(), unit: None, uses, names };
    // A member looks up the names in a certificate it is shown, so the headnode's has none.
    let leaves = [(&pki.member, leaf(Uses::Both, names)), (&pki.client, leaf(Uses::Client, BTreeSet::new()))];
    for (identity, leaf) in leaves {
        if !leaf.is_fresh(identity, &signer, now)? {
            leaf.make(identity, &issuer, now)?;
        }
    }
    Ok(pki)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::pki;

    #[test]
    fn another_authority_than_the_datacenters() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let settings = |root: &Path| Settings::parse(&Settings::generate(Some(root)).unwrap()).unwrap();
        let (first, second) = (settings(one.path()), settings(two.path()));
        let now = Timestamp(1_800_000_000_000);
        let (datacenter, _) = pki::ensure(&first, now).unwrap();
        let hosts = ["10.0.0.1".to_owned()];
        assert!(store_certificates(&first, "one", &hosts, now).is_err(), "it is made on purpose only");
        make_store_authority(&first, now).unwrap();
        let made = store_certificates(&first, "one", &hosts, now).unwrap();
        let (member, client) =
            (fs::read(&made.member.certificate).unwrap(), fs::read(&made.client.certificate).unwrap());
        // Nothing changes while nothing is due.
        make_store_authority(&first, now).unwrap();
        assert_eq!(store_certificates(&first, "one", &hosts, now).unwrap(), made);
        assert_eq!(fs::read(&made.member.certificate).unwrap(), member);
        // Another address is another certificate, of the member alone.
        store_certificates(&first, "one", &["10.0.0.2".to_owned()], now).unwrap();
        assert_ne!(fs::read(&made.member.certificate).unwrap(), member);
        assert_eq!(fs::read(&made.client.certificate).unwrap(), client);

        let signed = |leaf: &Path, by: &Path| {
            let (leaf, by) = (load_certificate(leaf).unwrap(), load_certificate(by).unwrap());
            let (leaf, by) =
                (super::super::parse(one.path(), &leaf).unwrap(), super::super::parse(one.path(), &by).unwrap());
            leaf.verify_signature(Some(by.public_key())).is_ok()
        };
        assert!(signed(&made.client.certificate, &made.authority));
        assert!(!signed(&made.client.certificate, &datacenter.ca.certificate));
        assert!(!signed(&datacenter.node.certificate, &made.authority));
        assert!(!signed(&datacenter.operator.certificate, &made.authority));

        let text = |path: &Path| fs::read_to_string(path).unwrap();
        adopt_store_authority(&second, &text(&made.authority), &text(&made.authority_key)).unwrap();
        let theirs = store_certificates(&second, "two", &hosts, now).unwrap();
        assert!(signed(&theirs.member.certificate, &made.authority));
        assert!(adopt_store_authority(&second, "no certificate", "no key").is_err());
    }
}
