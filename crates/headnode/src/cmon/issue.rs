//! A certificate for the container monitor, made where the account's key is: signed by that key, with a key of its own that is for
//! nothing else, as the triton command makes them (`triton profile cmon-certgen`).
//!
//! Whoever has the account's key may be an SSH agent that answers in its own time, and what makes certificates wants a signature at once. So
//! the certificate is made twice: [`Draft::to_be_signed`] notes what is signed, [`Draft::signed`] puts the signature there.

use std::{sync::Mutex, time::Duration};

use cloudapi::signature::{Algorithm, Hash};
use rcgen::{
    CertificateParams, DnType, Error, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
    SignatureAlgorithm, SigningKey,
};

use super::certificate::PURPOSE;

/// Why none could be made.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The library refused.
    #[error("failed to make the certificate")]
    Make(#[from] Error),
    /// The key of the account signs in another way than certificates are signed.
    #[error("a key that signs with {0} cannot sign certificates; use ed25519, ecdsa or rsa with SHA-256")]
    Algorithm(Algorithm),
}

/// A certificate that is not signed yet.
pub struct Draft {
    params: CertificateParams,
    issuer: CertificateParams,
    key: KeyPair,
}

/// A certificate with its key.
#[derive(Clone)]
pub struct Issued {
    /// The certificate, PEM.
    pub certificate: String,
    /// The same, DER.
    pub der: Vec<u8>,
    /// Its private key, PEM.
    pub key: String,
}

impl Draft {
    /// For the account with `login`, to be signed by its key with this MD5 fingerprint (hexadecimal, with colons). Good for `days` from `now_s`,
    /// seconds since 1970.
    pub fn new(login: &str, key_md5: &str, now_s: i64, days: u32) -> Result<Self, IssueError> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, login);
        let begin = u64::try_from(now_s).unwrap_or(0);
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + Duration::from_secs(begin);
        params.not_after = epoch + Duration::from_secs(begin + u64::from(days) * 86_400);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::Other(PURPOSE.to_vec())];
        let mut issuer = CertificateParams::default();
        issuer.distinguished_name.push(DnType::CommonName, key_md5);
        Ok(Self { params, issuer, key: KeyPair::generate()? })
    }

    /// What the account's key must sign in this way.
    pub fn to_be_signed(&self, algorithm: Algorithm) -> Result<Vec<u8>, IssueError> {
        let key = Elsewhere { algorithm: written(algorithm)?, signature: Vec::new(), seen: Mutex::default() };
        self.make(&key)?;
        Ok(key.seen.into_inner().unwrap_or_default())
    }

    /// The certificate with the signature over that.
    pub fn signed(&self, algorithm: Algorithm, signature: Vec<u8>) -> Result<Issued, IssueError> {
        let key = Elsewhere { algorithm: written(algorithm)?, signature, seen: Mutex::default() };
        let made = self.make(&key)?;
        Ok(Issued { certificate: made.pem(), der: made.der().to_vec(), key: self.key.serialize_pem() })
    }

    fn make(&self, key: &Elsewhere) -> Result<rcgen::Certificate, IssueError> {
        Ok(self.params.signed_by(&self.key, &Issuer::from_params(&self.issuer, key))?)
    }
}

#[cfg(test)]
impl Draft {
    /// Signed by its own key, although it names another one.
    pub(super) fn self_signed_for_tests(&self) -> Vec<u8> {
        let issuer = Issuer::from_params(&self.issuer, &self.key);
        self.params.signed_by(&self.key, &issuer).expect("a certificate").der().to_vec()
    }

    /// Its own key.
    pub(super) fn public_key_for_tests(&self) -> cloudapi::signature::PublicKey {
        let numbers = cloudapi::signature::Numbers::Ecdsa(self.key.der_bytes());
        cloudapi::signature::PublicKey::from_numbers(numbers).expect("a key of P-256")
    }
}

/// A key that is not here: what it would sign is noted, what it has signed is handed out.
struct Elsewhere {
    algorithm: &'static SignatureAlgorithm,
    signature: Vec<u8>,
    // Leaf data: written once.
    seen: Mutex<Vec<u8>>,
}

impl PublicKeyData for Elsewhere {
    /// Nobody asks: the certificate is not to name its issuer's key but by the fingerprint.
    fn der_bytes(&self) -> &[u8] {
        &[]
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

impl SigningKey for Elsewhere {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        *self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = message.to_vec();
        Ok(self.signature.clone())
    }
}

fn written(algorithm: Algorithm) -> Result<&'static SignatureAlgorithm, IssueError> {
    Ok(match algorithm {
        Algorithm::Rsa(Hash::Sha256) => &rcgen::PKCS_RSA_SHA256,
        Algorithm::Rsa(Hash::Sha384) => &rcgen::PKCS_RSA_SHA384,
        Algorithm::Rsa(Hash::Sha512) => &rcgen::PKCS_RSA_SHA512,
        // The way of signing is written without the curve.
        Algorithm::Ecdsa(Hash::Sha256) => &rcgen::PKCS_ECDSA_P256_SHA256,
        Algorithm::Ecdsa(Hash::Sha384) => &rcgen::PKCS_ECDSA_P384_SHA384,
        Algorithm::Ecdsa(Hash::Sha512) => &rcgen::PKCS_ECDSA_P521_SHA512,
        Algorithm::Ed25519 => &rcgen::PKCS_ED25519,
        other => return Err(IssueError::Algorithm(other)),
    })
}
