//! What a watcher's certificate says. Anybody can make one that says anything: who believes it is [`super::watcher`].
//!
//! ```text
//! subject CN = login                     whose instances it wants to see
//! purpose joyentCmon, or not             made for this, so that its end counts; or any old certificate, whose end does not
//! issuer = subject                       signed by its own key, which the account must have
//! issuer CN = MD5:… or SHA256:…          signed by a key of the account's, with a key of its own that is for nothing else
//! ```

use std::fmt;

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use cloudapi::signature::{Algorithm, Hash, Numbers, PublicKey};
use x509_parser::{
    prelude::{FromDer as _, X509Certificate, X509Name},
    public_key::PublicKey as Parsed,
    x509::SubjectPublicKeyInfo,
};

/// Bytes of a certificate at most: one with an RSA key of 16,384 bits has 5,000.
pub const BYTES_MAX: usize = 16 << 10;
/// Triton's purpose of certificates made for the container monitor.
pub const PURPOSE: [u64; 10] = [1, 3, 6, 1, 4, 1, 38_678, 1, 4, 2];
/// Seconds by which a certificate may begin later than our clock says: the clock of who made it may be ahead.
const AHEAD_SECONDS: i64 = 300;

/// Fingerprints in base64, with `=` at the end or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// See the head of this file.
pub struct Certificate {
    /// Whose it says it is: the subject's common name.
    pub login: String,
    /// The subject's organizational unit.
    pub unit: Option<String>,
    /// Whether it was made for the container monitor.
    pub for_monitor: bool,
    /// Fingerprint of its own key, where that is of a kind that accounts may have.
    pub own_key: Option<String>,
    /// Who signed it.
    pub issuer: Issuer,
    /// First and last second of its life.
    life: (i64, i64),
    signed: Vec<u8>,
    algorithm: Algorithm,
    signature: Vec<u8>,
}

/// Who signed a certificate, by its own word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Issuer {
    /// Its own key.
    Itself,
    /// A key with this fingerprint.
    Key(String),
    /// Somebody else.
    Other,
}

/// Bytes that are no certificate we can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Too many of them.
    #[error("it has more than {BYTES_MAX} bytes")]
    TooLarge,
    /// Not one whole X.509 certificate.
    #[error("it is no X.509 certificate")]
    NoCertificate,
    /// Nobody is named.
    #[error("its subject has no common name")]
    NoName,
    /// Signed in a way accounts' keys do not sign.
    #[error("it is signed in a way that is not known here")]
    Algorithm,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate({}, {:?})", self.login, self.issuer)
    }
}

impl Certificate {
    /// Reads one.
    pub fn read(der: &[u8]) -> Result<Self, Unreadable> {
        if der.len() > BYTES_MAX {
            return Err(Unreadable::TooLarge);
        }
        let (rest, read) = X509Certificate::from_der(der).map_err(|_| Unreadable::NoCertificate)?;
        if !rest.is_empty() || read.signature_value.unused_bits > 0 {
            return Err(Unreadable::NoCertificate);
        }
        let purposes = read.extended_key_usage().ok().flatten();
        let for_monitor = purposes.is_some_and(|purposes| {
            purposes.value.other.iter().any(|oid| oid.iter().is_some_and(|parts| parts.eq(PURPOSE)))
        });
        let issuer = match read.subject().as_raw() == read.issuer().as_raw() {
            true => Issuer::Itself,
            false => common_name(read.issuer()).and_then(fingerprint).map_or(Issuer::Other, Issuer::Key),
        };
        let validity = read.validity();
        Ok(Self {
            login: common_name(read.subject()).filter(|name| !name.is_empty()).ok_or(Unreadable::NoName)?.to_owned(),
            unit: read
                .subject()
                .iter_organizational_unit()
                .next()
                .and_then(|unit| Some(unit.as_str().ok()?.to_owned())),
            for_monitor,
            own_key: own_key(read.public_key()).map(|key| key.fingerprint_md5),
            issuer,
            life: (validity.not_before.timestamp(), validity.not_after.timestamp()),
            algorithm: algorithm(&read.signature_algorithm.algorithm.to_id_string()).ok_or(Unreadable::Algorithm)?,
            signed: read.tbs_certificate.as_ref().to_vec(),
            signature: read.signature_value.data.to_vec(),
        })
    }

    /// Whether a moment, in seconds since 1970, is in its life.
    pub fn is_alive(&self, now_s: i64) -> bool {
        (self.life.0.saturating_sub(AHEAD_SECONDS)..self.life.1).contains(&now_s)
    }

    /// Fingerprint of the key that must have signed it, and be the account's; `None` when it names none.
    pub fn key_id(&self) -> Option<&str> {
        match &self.issuer {
            Issuer::Key(key) if self.for_monitor => Some(key),
            Issuer::Other if self.for_monitor => None,
            // Without the purpose the key itself has to be known, whoever it says signed it.
            _ => self.own_key.as_deref(),
        }
    }

    /// Whether a key has signed it.
    pub fn is_signed_by(&self, key: &PublicKey) -> bool {
        key.verify(self.algorithm, &self.signed, &self.signature)
    }
}

/// A key's fingerprint as accounts' keys are found by, from how certificates write it.
pub fn fingerprint(text: &str) -> Option<String> {
    let colons = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":");
    if let Some((kind, rest)) = text.split_once(':')
        && !rest.contains(':')
        && kind.len() > 2
    {
        let bytes = BASE64.decode(rest).ok()?;
        return match (kind.to_ascii_uppercase().as_str(), bytes.len()) {
            ("MD5", 16) => Some(colons(&bytes)),
            ("SHA256", 32) => Some(format!("SHA256:{}", rest.trim_end_matches('='))),
            _ => None,
        };
    }
    let hex = match text.split_once(':') {
        Some((kind, rest)) if kind.eq_ignore_ascii_case("md5") => rest,
        _ => text,
    };
    let parts: Vec<u8> = hex
        .split(':')
        .map(|part| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok()).flatten())
        .collect::<Option<_>>()?;
    // `from_str_radix` takes a sign.
    let is_plain = hex.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':');
    (parts.len() == 16 && is_plain).then(|| colons(&parts))
}

fn common_name<'a>(name: &'a X509Name<'_>) -> Option<&'a str> {
    name.iter_common_name().next()?.as_str().ok()
}

/// The key of a certificate, when accounts may have such keys.
fn own_key(info: &SubjectPublicKeyInfo<'_>) -> Option<PublicKey> {
    let kind = info.algorithm.algorithm.to_id_string();
    let curve = || info.algorithm.parameters.as_ref()?.as_oid().ok().map(|oid| oid.to_id_string());
    let numbers = match info.parsed().ok()? {
        Parsed::RSA(key) => Numbers::Rsa { modulus: key.modulus, exponent: key.exponent },
        Parsed::EC(point) => {
            let curves = ["1.2.840.10045.3.1.7", "1.3.132.0.34", "1.3.132.0.35"];
            curves.contains(&curve()?.as_str()).then_some(())?;
            return PublicKey::from_numbers(Numbers::Ecdsa(point.data())).ok();
        }
        Parsed::Unknown(bytes) if kind == ED25519 => Numbers::Ed25519(bytes),
        _ => return None,
    };
    PublicKey::from_numbers(numbers).ok()
}

/// Of keys and of signatures alike.
const ED25519: &str = "1.3.101.112";

/// How a certificate is signed. SHA-1 is among it because SSH agents that know nothing newer sign with it, as for requests to CloudAPI.
fn algorithm(oid: &str) -> Option<Algorithm> {
    Some(match oid {
        "1.2.840.113549.1.1.5" => Algorithm::Rsa(Hash::Sha1),
        "1.2.840.113549.1.1.11" => Algorithm::Rsa(Hash::Sha256),
        "1.2.840.113549.1.1.12" => Algorithm::Rsa(Hash::Sha384),
        "1.2.840.113549.1.1.13" => Algorithm::Rsa(Hash::Sha512),
        "1.2.840.10045.4.3.2" => Algorithm::Ecdsa(Hash::Sha256),
        "1.2.840.10045.4.3.3" => Algorithm::Ecdsa(Hash::Sha384),
        "1.2.840.10045.4.3.4" => Algorithm::Ecdsa(Hash::Sha512),
        ED25519 => Algorithm::Ed25519,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cmon::issue::Draft;

    const MD5: &str = "6c:4b:3e:1f:00:11:22:33:44:55:66:77:88:99:aa:bb";

    #[test]
    fn fingerprints_are_written_in_several_ways() {
        let base64 = BASE64
            .encode([0x6c, 0x4b, 0x3e, 0x1f, 0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb]);
        let bare = base64.trim_end_matches('=').to_owned();
        for text in
            [MD5.to_owned(), MD5.to_uppercase(), format!("MD5:{MD5}"), format!("md5:{base64}"), format!("MD5:{bare}")]
        {
            assert_eq!(fingerprint(&text).as_deref(), Some(MD5), "{text}");
        }
        let sha = format!("SHA256:{}", BASE64.encode([7; 32]));
        assert_eq!(fingerprint(&sha).as_deref(), Some(sha.trim_end_matches('=')));
        for text in [
            "",
            "demo",
            "MD5:",
            "MD5:xx",
            "SHA1:aaaa",
            &MD5[3..],
            "md5:AAAA",
            "+c:4b:3e:1f:00:11:22:33:44:55:66:77:88:99:aa:bb",
        ] {
            assert_eq!(fingerprint(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_no_certificate_is_told_by_what_it_lacks() {
        assert_eq!(Certificate::read(b"").unwrap_err(), Unreadable::NoCertificate);
        assert_eq!(Certificate::read(&[0; BYTES_MAX + 1]).unwrap_err(), Unreadable::TooLarge);
        let draft = Draft::new("demo", MD5, 1_700_000_000, 1).unwrap();
        let der = draft.self_signed_for_tests();
        assert_eq!(Certificate::read(&[der.as_slice(), b"x"].concat()).unwrap_err(), Unreadable::NoCertificate);
        let read = Certificate::read(&der).unwrap();
        assert_eq!((read.login.as_str(), read.for_monitor, &read.issuer), ("demo", true, &Issuer::Key(MD5.to_owned())));
        assert!(read.is_alive(1_700_000_000) && read.is_alive(1_700_086_399) && !read.is_alive(1_700_086_400));
        assert!(!read.is_alive(1_699_999_000));
    }

    proptest! {
        #[test]
        fn strange_bytes_are_a_certificate_or_not(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = Certificate::read(&bytes);
        }

        /// A certificate with one byte changed is read or not. Whoever signed it is not taken to have signed one that says something else (how it
        /// is wrapped is not signed).
        #[test]
        fn one_byte_makes_it_another(at in any::<prop::sample::Index>(), by in 1_u8..) {
            let draft = Draft::new("demo", MD5, 1_700_000_000, 1).unwrap();
            let der = draft.self_signed_for_tests();
            let key = draft.public_key_for_tests();
            prop_assert!(Certificate::read(&der).unwrap().is_signed_by(&key));
            let mut other = der.clone();
            let at = at.index(other.len());
            other[at] ^= by;
            if let Ok(read) = Certificate::read(&other)
                && read.is_signed_by(&key)
            {
                let before = Certificate::read(&der).unwrap();
                let says = |read: &Certificate| {
                    (read.login.clone(), read.for_monitor, read.own_key.clone(), read.issuer.clone(), read.life)
                };
                prop_assert_eq!(says(&read), says(&before), "byte {}", at);
                prop_assert_eq!(&read.signed, &before.signed);
            }
        }

        #[test]
        fn strange_texts_are_a_fingerprint_or_not(text in ".{0,80}") {
            if let Some(found) = fingerprint(&text) {
                prop_assert!(found.starts_with("SHA256:") || found.len() == 47);
            }
        }
    }
}
