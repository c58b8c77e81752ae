//! A node's part: its key is made where it is used and never leaves; what travels is a request and a certificate.
//!
//! On a machine that joined, the key and the certificate are replaced one after the other. Whoever finds a pair that does not
//! fit looks again; should the machine die between the two writes, the key that fits lies beside, and [`member()`] puts
//! it in place.

use std::{
    fs,
    path::{Path, PathBuf},
};

use model::{id::ServerId, part::Digest, time::Timestamp};
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
    PublicKeyData as _,
};

use super::{
    Identity, LEAF_DAYS, PkiError, Role, ensure, load_certificate, load_issuer, make_directory, parse, read,
    set_validity, validity, write_file,
};
use crate::settings::Settings;

/// What a node needs to speak to its headnode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The authority's certificate.
    pub authority: PathBuf,
    /// The node's own.
    pub node: Identity,
    /// Who it is.
    pub server_id: ServerId,
}

/// A certificate to be had: the key, and the request for it.
pub struct Renewal {
    key_pem: String,
    /// The request, PEM.
    pub request_pem: String,
}

impl Renewal {
    /// The key, PEM: for who keeps it elsewhere than in files.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }
}

/// Makes a key and a request for a certificate for it.
pub fn request() -> Result<Renewal, PkiError> {
    let fail = |source| PkiError::Make { what: "this machine".to_owned(), source };
    let key = KeyPair::generate().map_err(fail)?;
    // The name in a request does not count: the authority knows whom it lets in.
    let request = CertificateParams::default().serialize_request(&key).map_err(fail)?;
    Ok(Renewal { key_pem: key.serialize_pem(), request_pem: request.pem().map_err(fail)? })
}

/// A key and a request as [`request`] makes them, the same each time until [`enroll`]: a machine whose answer was lost asks again
/// with the key it asked with.
pub fn pending_request(settings: &Settings) -> Result<Renewal, PkiError> {
    let path = pending_key(settings);
    let fail = |source| PkiError::Make { what: "this machine".to_owned(), source };
    let known = read(&path).ok().and_then(|pem| KeyPair::from_pem(&String::from_utf8_lossy(&pem)).ok());
    let Some(key) = known else {
        let fresh = request()?;
        make_directory(&settings.pki_dir())?;
        write_file(&path, fresh.key_pem.as_bytes(), 0o600)?;
        return Ok(fresh);
    };
    let request = CertificateParams::default().serialize_request(&key).map_err(fail)?;
    Ok(Renewal { key_pem: key.serialize_pem(), request_pem: request.pem().map_err(fail)? })
}

/// Whether a machine has asked to join and not yet written down the answer.
pub fn is_joining(settings: &Settings) -> bool {
    pending_key(settings).exists()
}

fn pending_key(settings: &Settings) -> PathBuf {
    settings.pki_dir().join("join.key")
}

/// What tells the key behind a request from others. The request proves that its maker has the key.
pub fn key_of(request_pem: &str) -> Result<Digest, PkiError> {
    let fail = |source| PkiError::Make { what: "a machine that joins".to_owned(), source };
    let request = CertificateSigningRequestParams::from_pem(request_pem).map_err(fail)?;
    Ok(Digest::of_bytes(&request.public_key.subject_public_key_info()))
}

/// Makes the certificate (PEM) of node `server` for the key behind a request. Nothing else of the request counts.
pub fn certify(settings: &Settings, request_pem: &str, server: ServerId, now: Timestamp) -> Result<String, PkiError> {
    let fail = |source| PkiError::Make { what: format!("server {server}"), source };
    let request = CertificateSigningRequestParams::from_pem(request_pem).map_err(fail)?;
    let issuer = load_issuer(&Identity::named(&settings.pki_dir(), "ca"))?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, server.to_string());
    params.distinguished_name.push(DnType::OrganizationalUnitName, Role::Node.unit());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, now, LEAF_DAYS);
    Ok(params.signed_by(&request.public_key, &issuer).map_err(fail)?.pem())
}

/// Writes down what a machine got when it joined.
pub fn enroll(
    settings: &Settings,
    server: ServerId,
    authority_pem: &str,
    renewal: &Renewal,
    certificate_pem: &str,
) -> Result<(), PkiError> {
    let directory = settings.pki_dir();
    make_directory(&directory)?;
    write_file(&directory.join("ca.pem"), authority_pem.as_bytes(), 0o644)?;
    replace(&Identity::named(&directory, "node"), renewal, certificate_pem)?;
    // Its presence says that this machine has joined.
    write_file(&directory.join("server-id"), format!("{server}\n").as_bytes(), 0o644)?;
    // There is nothing to ask for any more; should it stay, nobody looks at it.
    let _ = fs::remove_file(pending_key(settings));
    Ok(())
}

/// Puts another certificate and its key in place.
pub fn renew_member(member: &Member, renewal: &Renewal, certificate_pem: &str) -> Result<(), PkiError> {
    replace(&member.node, renewal, certificate_pem)
}

fn replace(node: &Identity, renewal: &Renewal, certificate_pem: &str) -> Result<(), PkiError> {
    write_file(&next_key(node), renewal.key_pem.as_bytes(), 0o600)?;
    write_file(&node.certificate, certificate_pem.as_bytes(), 0o644)?;
    take_next_key(node)
}

/// Where a key waits until its certificate is there.
fn next_key(node: &Identity) -> PathBuf {
    node.key.with_extension("next-key")
}

fn take_next_key(node: &Identity) -> Result<(), PkiError> {
    let next = next_key(node);
    fs::rename(&next, &node.key).map_err(|source| PkiError::Io { doing: "rename", path: next, source })
}

/// What this machine's node needs. Beside a headnode it is made as [`ensure`] does; on a machine that joined it is there.
pub fn member(settings: &Settings, now: Timestamp) -> Result<Member, PkiError> {
    let directory = settings.pki_dir();
    if settings.join.is_none() {
        let (pki, _) = ensure(settings, now)?;
        return Ok(Member { authority: pki.ca.certificate, node: pki.node, server_id: pki.server_id });
    }
    let (node, path) = (Identity::named(&directory, "node"), directory.join("server-id"));
    let text = String::from_utf8_lossy(&read(&path)?).trim().to_owned();
    let server_id = text.parse().map_err(|_| PkiError::Damaged { path, why: format!("\"{text}\" is no id") })?;
    if !fits(&node)? && next_key(&node).exists() {
        take_next_key(&node)?;
    }
    if !fits(&node)? {
        return Err(PkiError::Damaged { path: node.key, why: "it does not fit the certificate beside it".to_owned() });
    }
    Ok(Member { authority: directory.join("ca.pem"), node, server_id })
}

fn fits(node: &Identity) -> Result<bool, PkiError> {
    let der = load_certificate(&node.certificate)?;
    let certificate = parse(&node.certificate, &der)?;
    let key = String::from_utf8_lossy(&read(&node.key)?).into_owned();
    Ok(KeyPair::from_pem(&key).is_ok_and(|key| key.subject_public_key_info() == certificate.public_key().raw))
}

impl Member {
    /// Whether the certificate has used two thirds of its life.
    pub fn is_due(&self, now: Timestamp) -> Result<bool, PkiError> {
        let path: &Path = &self.node.certificate;
        let (from, to) = validity(path, &load_certificate(path)?)?;
        Ok(now.0 / 1_000 >= from + (to - from) / 3 * 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{pki::Peer, settings::Join};

    fn settings(root: &Path) -> Settings {
        Settings::parse(&Settings::generate(Some(root)).unwrap()).unwrap()
    }

    #[test]
    fn a_machine_joins_renews_and_survives_death_in_between() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (headnode, mut node) = (settings(here.path()), settings(there.path()));
        node.join = Some(Join { headnodes: vec!["127.0.0.1:1".into()] });
        let now = Timestamp(1_800_000_000_000);
        let (pki, _) = ensure(&headnode, now).unwrap();
        assert!(member(&node, now).is_err(), "it has not joined");

        let (server, first) = (ServerId::random(), request().unwrap());
        let certificate = certify(&headnode, &first.request_pem, server, now).unwrap();
        let authority = fs::read_to_string(&pki.ca.certificate).unwrap();
        enroll(&node, server, &authority, &first, &certificate).unwrap();
        let joined = member(&node, now).unwrap();
        assert_eq!(joined.server_id, server);
        let peer = Peer::of(&joined.node.load().unwrap().0[0]).unwrap();
        assert_eq!((peer.name, peer.unit), (server.to_string(), "node".to_owned()));
        assert!(!joined.is_due(now).unwrap());
        assert!(joined.is_due(now.plus_millis(300 * 86_400_000)).unwrap());

        let second = request().unwrap();
        let certificate = certify(&headnode, &second.request_pem, server, now).unwrap();
        write_file(&next_key(&joined.node), second.key_pem.as_bytes(), 0o600).unwrap();
        write_file(&joined.node.certificate, certificate.as_bytes(), 0o644).unwrap();
        assert!(!fits(&joined.node).unwrap());
        assert_eq!(member(&node, now).unwrap(), joined);
        assert!(fits(&joined.node).unwrap());
    }

    #[test]
    fn what_is_no_request_gets_no_certificate() {
        let root = tempfile::tempdir().unwrap();
        let headnode = settings(root.path());
        let now = Timestamp(1_800_000_000_000);
        ensure(&headnode, now).unwrap();
        let good = request().unwrap().request_pem;
        for bad in ["", "-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----", &good[..200]] {
            assert!(certify(&headnode, bad, ServerId::random(), now).is_err(), "{bad}");
        }
    }
}
