//! Private keys to sign with: a file in `~/.ssh`, or a key an SSH agent holds for us.
//!
//! [`Signer::find`] looks for the key with a given fingerprint: first among the files, then at the agent. Keys with a
//! passphrase are left to the agent: asking for passphrases is the agent's craft.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{self as lc, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaKeyPair},
};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject as _};
use ssh_key::{
    EcdsaCurve,
    private::{EcdsaKeypair, KeypairData, RsaKeypair},
    public::KeyData,
};

use super::{agent, profile::Environment};
use crate::signature::{Algorithm, Hash, PublicKey, der_integer, der_sequence, ecdsa_to_der};

/// Largest key file we read, bytes.
const KEY_FILE_MAX: u64 = 65_536;
/// Most files of `~/.ssh` we look into.
const KEY_FILES_MAX: usize = 1_000;

/// Something that signs.
pub struct Signer {
    key: Key,
    /// MD5 of the public key: what key ids carry.
    pub fingerprint_md5: String,
    /// Where the key was found, for people.
    pub origin: String,
}

enum Key {
    Rsa(Box<RsaKeyPair>),
    Ecdsa(Box<EcdsaKeyPair>, Hash),
    Ed25519(Box<Ed25519KeyPair>),
    Agent { socket: PathBuf, blob: Vec<u8>, algorithm: Algorithm },
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({}, {})", self.fingerprint_md5, self.origin)
    }
}

/// Why there is no signature.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// Neither a file nor the agent has it.
    #[error("no private key with fingerprint {key_id}: looked in `{directory}`{agent}{locked}")]
    NotFound {
        /// What was asked for.
        key_id: String,
        /// Where files were looked for.
        directory: PathBuf,
        /// What the agent had to say, starting with a comma.
        agent: String,
        /// A file that has it but is encrypted, starting with a semicolon.
        locked: String,
    },
    /// A file cannot be read.
    #[error("failed to read private key `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file is no key, or of a kind we cannot sign with.
    #[error("cannot sign with private key `{path}`: {why}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The agent does not answer.
    #[error("failed to ask the SSH agent at `{socket}`")]
    Agent {
        /// Its socket.
        socket: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The crypto library refused.
    #[error("failed to sign with {0}")]
    Sign(String),
}

impl Signer {
    /// The key with this MD5 or SHA-256 fingerprint (or, for files, this name).
    pub async fn find(key_id: &str, environment: Environment<'_>) -> Result<Self, SignerError> {
        let directory = environment("HOME").map(PathBuf::from).unwrap_or_default().join(".ssh");
        let socket = environment("SSH_AUTH_SOCK").filter(|path| !path.is_empty()).map(PathBuf::from);
        let mut locked = String::new();
        for path in private_key_files(&directory) {
            let Some(public) = public_half(&path) else { continue };
            if !matches_key(&public, key_id) && path.file_name().is_none_or(|name| name != key_id) {
                continue;
            }
            match Self::from_file(&path) {
                Ok(signer) => return Ok(signer),
                Err(SignerError::Unusable { why, .. }) => locked = format!("; `{}` {why}", path.display()),
                Err(error) => return Err(error),
            }
        }
        let mut agent_says = ", and no SSH agent runs".to_owned();
        if let Some(socket) = socket {
            match agent::identities(&socket).await {
                Ok(blobs) => {
                    if let Some(signer) = blobs.into_iter().find_map(|blob| Self::from_agent(&socket, blob, key_id)) {
                        return Ok(signer);
                    }
                    agent_says = format!(", and the SSH agent at `{}` does not hold it", socket.display());
                }
                Err(error) => agent_says = format!(", and the SSH agent at `{}` said: {error}", socket.display()),
            }
        }
        Err(SignerError::NotFound { key_id: key_id.to_owned(), directory, agent: agent_says, locked })
    }

    /// The key in a file: OpenSSH's format, or PEM with a `.pub` file beside it.
    pub fn from_file(path: &Path) -> Result<Self, SignerError> {
        let text = read(path)?;
        let unusable = |why: &str| SignerError::Unusable { path: path.to_owned(), why: why.to_owned() };
        let key = match ssh_key::PrivateKey::from_openssh(&text) {
            Ok(key) if key.is_encrypted() => return Err(unusable("has a passphrase: add it to an agent with ssh-add")),
            Ok(key) => from_openssh(key.key_data()),
            Err(_) => from_pem(&text),
        };
        let key = key.ok_or_else(|| unusable("is neither an OpenSSH nor a PEM key of type ed25519, ecdsa or rsa"))?;
        let public = public_half(path).ok_or_else(|| unusable("has no `.pub` file beside it"))?;
        Ok(Self { key, fingerprint_md5: public.fingerprint_md5, origin: path.display().to_string() })
    }

    fn from_agent(socket: &Path, blob: Vec<u8>, key_id: &str) -> Option<Self> {
        let public = ssh_key::PublicKey::from_bytes(&blob).ok()?;
        let algorithm = match public.key_data() {
            KeyData::Rsa(_) => Algorithm::Rsa(Hash::Sha256),
            KeyData::Ecdsa(point) => Algorithm::Ecdsa(hash_of(point.curve())),
            KeyData::Ed25519(_) => Algorithm::Ed25519,
            _ => return None,
        };
        let public = PublicKey::from_key_data(public.key_data()).ok()?;
        matches_key(&public, key_id).then(|| Self {
            key: Key::Agent { socket: socket.to_owned(), blob, algorithm },
            fingerprint_md5: public.fingerprint_md5,
            origin: format!("SSH agent at {}", socket.display()),
        })
    }

    /// How [`Signer::sign`] signs.
    pub fn algorithm(&self) -> Algorithm {
        match &self.key {
            Key::Rsa(_) => Algorithm::Rsa(Hash::Sha256),
            Key::Ecdsa(_, hash) => Algorithm::Ecdsa(*hash),
            Key::Ed25519(_) => Algorithm::Ed25519,
            Key::Agent { algorithm, .. } => *algorithm,
        }
    }

    /// Signs `message` with [`Signer::algorithm`].
    pub async fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignerError> {
        let refused = |_| SignerError::Sign(self.origin.clone());
        let random = SystemRandom::new();
        match &self.key {
            Key::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&lc::RSA_PKCS1_SHA256, &random, message, &mut signature).map_err(refused)?;
                Ok(signature)
            }
            Key::Ecdsa(pair, _) => Ok(pair.sign(&random, message).map_err(refused)?.as_ref().to_vec()),
            Key::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
            Key::Agent { socket, blob, algorithm } => {
                let raw = agent::sign(socket, blob, message, *algorithm)
                    .await
                    .map_err(|source| SignerError::Agent { socket: socket.clone(), source })?;
                match algorithm {
                    Algorithm::Ecdsa(_) => ecdsa_to_der(&raw).ok_or_else(|| SignerError::Sign(self.origin.clone())),
                    _ => Ok(raw),
                }
            }
        }
    }
}

fn matches_key(public: &PublicKey, key_id: &str) -> bool {
    let bare = key_id.strip_prefix("MD5:").unwrap_or(key_id);
    bare.eq_ignore_ascii_case(&public.fingerprint_md5) || key_id == public.fingerprint_sha256
}

fn private_key_files(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries
        .flatten()
        .take(KEY_FILES_MAX)
        .map(|entry| entry.path())
        .filter(|path| path.is_file() && path.extension().is_none_or(|extension| extension != "pub"))
        .collect();
    paths.sort();
    paths
}

/// The public half: from the `.pub` file, or from the private file itself, where even an encrypted one shows it.
fn public_half(path: &Path) -> Option<PublicKey> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".pub");
    if let Ok(text) = read(Path::new(&beside)) {
        return PublicKey::from_openssh(&text).ok();
    }
    let key = ssh_key::PrivateKey::from_openssh(read(path).ok()?).ok()?;
    PublicKey::from_key_data(key.public_key().key_data()).ok()
}

fn read(path: &Path) -> Result<String, SignerError> {
    let failed = |source| SignerError::Read { path: path.to_owned(), source };
    if fs::metadata(path).map_err(failed)?.len() > KEY_FILE_MAX {
        return Err(failed(io::Error::other("the file is too large for a key")));
    }
    fs::read_to_string(path).map_err(failed)
}

const fn hash_of(curve: EcdsaCurve) -> Hash {
    match curve {
        EcdsaCurve::NistP256 => Hash::Sha256,
        EcdsaCurve::NistP384 => Hash::Sha384,
        EcdsaCurve::NistP521 => Hash::Sha512,
    }
}

fn ecdsa_signing(curve: EcdsaCurve) -> &'static lc::EcdsaSigningAlgorithm {
    match curve {
        EcdsaCurve::NistP256 => &lc::ECDSA_P256_SHA256_ASN1_SIGNING,
        EcdsaCurve::NistP384 => &lc::ECDSA_P384_SHA384_ASN1_SIGNING,
        EcdsaCurve::NistP521 => &lc::ECDSA_P521_SHA512_ASN1_SIGNING,
    }
}

fn from_openssh(data: &KeypairData) -> Option<Key> {
    match data {
        KeypairData::Ed25519(pair) => {
            let pair = Ed25519KeyPair::from_seed_and_public_key(&pair.private.to_bytes(), &pair.public.0).ok()?;
            Some(Key::Ed25519(Box::new(pair)))
        }
        KeypairData::Ecdsa(pair) => {
            let (scalar, point) = match pair {
                EcdsaKeypair::NistP256 { private, public } => (private.as_slice(), public.as_bytes()),
                EcdsaKeypair::NistP384 { private, public } => (private.as_slice(), public.as_bytes()),
                EcdsaKeypair::NistP521 { private, public } => (private.as_slice(), public.as_bytes()),
            };
            let signing = ecdsa_signing(pair.curve());
            let key = EcdsaKeyPair::from_private_key_and_public_key(signing, scalar, point).ok()?;
            Some(Key::Ecdsa(Box::new(key), hash_of(pair.curve())))
        }
        KeypairData::Rsa(pair) => {
            let key = RsaKeyPair::from_der(&pkcs1(pair)?).ok()?;
            Some(Key::Rsa(Box::new(key)))
        }
        _ => None,
    }
}

fn from_pem(text: &str) -> Option<Key> {
    let der = PrivateKeyDer::from_pem_slice(text.as_bytes()).ok()?;
    let rsa = match &der {
        PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()).ok(),
        PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).ok(),
        _ => None,
    };
    if let Some(pair) = rsa {
        return Some(Key::Rsa(Box::new(pair)));
    }
    if let PrivateKeyDer::Pkcs8(der) = &der
        && let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der())
    {
        return Some(Key::Ed25519(Box::new(pair)));
    }
    [EcdsaCurve::NistP256, EcdsaCurve::NistP384, EcdsaCurve::NistP521].into_iter().find_map(|curve| {
        let signing = ecdsa_signing(curve);
        let pair = match &der {
            PrivateKeyDer::Sec1(der) => EcdsaKeyPair::from_private_key_der(signing, der.secret_sec1_der()).ok(),
            PrivateKeyDer::Pkcs8(der) => EcdsaKeyPair::from_pkcs8(signing, der.secret_pkcs8_der()).ok(),
            _ => None,
        }?;
        // The library reads a key of another curve than asked for; its public half tells.
        let point = pair.public_key().as_ref().len();
        let wanted = match curve {
            EcdsaCurve::NistP256 => 65,
            EcdsaCurve::NistP384 => 97,
            EcdsaCurve::NistP521 => 133,
        };
        (point == wanted).then(|| Key::Ecdsa(Box::new(pair), hash_of(curve)))
    })
}

/// The crypto library reads RSA keys as PKCS#1, which carries two numbers more than OpenSSH's format does.
fn pkcs1(pair: &RsaKeypair) -> Option<Vec<u8>> {
    let number = |mpint: &ssh_key::Mpint| mpint.as_positive_bytes().map(<[u8]>::to_vec);
    let (n, e) = (number(&pair.public.n)?, number(&pair.public.e)?);
    let (d, p, q) = (number(&pair.private.d)?, number(&pair.private.p)?, number(&pair.private.q)?);
    let coefficient = number(&pair.private.iqmp)?;
    let (dp, dq) = (remainder(&d, &minus_one(&p)), remainder(&d, &minus_one(&q)));
    let numbers = [&[0][..], &n, &e, &d, &p, &q, &dp, &dq, &coefficient];
    Some(der_sequence(&numbers.map(der_integer)))
}

/// `number - 1`, for an odd number given big-endian.
fn minus_one(number: &[u8]) -> Vec<u8> {
    let mut less = number.to_vec();
    if let Some(last) = less.last_mut() {
        *last &= 0xfe;
    }
    less
}

/// `number mod modulus`, big-endian, one bit at a time: once per start, 2,048 steps of 128 bytes.
fn remainder(number: &[u8], modulus: &[u8]) -> Vec<u8> {
    let width = modulus.len() + 1;
    let mut wide = vec![0; width - modulus.len()];
    wide.extend_from_slice(modulus);
    let mut rest = vec![0_u8; width];
    for byte in number {
        for bit in (0..8).rev() {
            let mut carry = (byte >> bit) & 1;
            for digit in rest.iter_mut().rev() {
                let next = *digit >> 7;
                *digit = (*digit << 1) | carry;
                carry = next;
            }
            if rest >= wide {
                let mut borrow = false;
                for (digit, other) in rest.iter_mut().zip(&wide).rev() {
                    let (less, first) = digit.overflowing_sub(*other);
                    let (less, second) = less.overflowing_sub(u8::from(borrow));
                    *digit = less;
                    borrow = first || second;
                }
            }
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn remainders_are_right(number: u128, modulus in 1_u64..) {
            let got = remainder(&number.to_be_bytes(), &modulus.to_be_bytes());
            let wanted = number % u128::from(modulus);
            let mut wide = [0; 16];
            wide[16 - got.len()..].copy_from_slice(&got);
            prop_assert_eq!(u128::from_be_bytes(wide), wanted);
        }
    }
}
