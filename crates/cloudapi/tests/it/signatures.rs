//! Requests as clients sign them, against keys made by ssh-keygen and signatures made by openssl.

use std::{collections::BTreeMap, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use cloudapi::signature::{Head, Keys, PublicKey, SignatureError, verify};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use proptest::prelude::*;

pub(crate) const NAMES: [&str; 5] = ["rsa-2048", "ecdsa-256", "ecdsa-384", "ecdsa-521", "ed25519-256"];
/// Tue, 24 Nov 2026 15:06:00 GMT.
pub(crate) const NOW: i64 = 1_795_532_760;
const DATE: &str = "Tue, 24 Nov 2026 15:06:00 GMT";

pub(crate) fn directory() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/keys")
}

pub(crate) fn public(name: &str) -> Arc<PublicKey> {
    let text = std::fs::read_to_string(directory().join(format!("{name}.pub"))).unwrap();
    Arc::new(PublicKey::from_openssh(&text).unwrap())
}

/// All test keys, of one account `ana`, under their names and fingerprints.
pub(crate) struct Ring(BTreeMap<String, Arc<PublicKey>>);

impl Ring {
    pub(crate) fn new() -> Self {
        let mut keys = BTreeMap::new();
        for name in NAMES {
            let key = public(name);
            for id in [name, &key.fingerprint_md5, &key.fingerprint_sha256] {
                keys.insert(id.to_owned(), key.clone());
            }
        }
        Self(keys)
    }
}

impl Keys for Ring {
    type Holder = &'static str;

    fn find(&self, login: &str, key: &str) -> Option<(Arc<PublicKey>, Self::Holder)> {
        (login == "ana").then(|| self.0.get(key).map(|key| (key.clone(), "ana")))?
    }
}

pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
}

impl Request {
    pub(crate) fn new(method: Method, target: &str, headers: &[(&'static str, &str)]) -> Self {
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
            .collect();
        Self { method, target: target.to_owned(), headers }
    }

    pub(crate) fn check(&self, now: i64) -> Result<&'static str, SignatureError> {
        let head =
            Head { method: &self.method, target: &self.target, version: Version::HTTP_11, headers: &self.headers };
        verify(head, &Ring::new(), now).map(|verified| verified.holder)
    }
}

/// Lines `key algorithm signature`, made with `openssl dgst -HASH -sign` over the two lines of the usual message.
fn openssl_lines() -> Vec<(&'static str, &'static str, &'static str)> {
    lines(include_str!("openssl-signatures.txt"))
}

/// The same, made by the library the `triton` command signs with, which also knows Ed25519.
fn triton_lines() -> Vec<(&'static str, &'static str, &'static str)> {
    lines(include_str!("triton-signatures.txt"))
}

fn lines(text: &'static str) -> Vec<(&'static str, &'static str, &'static str)> {
    text.lines()
        .map(|line| {
            let mut words = line.split(' ');
            (words.next().unwrap(), words.next().unwrap(), words.next().unwrap())
        })
        .collect()
}

fn usual(key: &str, algorithm: &str, signature: &str) -> Request {
    let authorization = format!(
        r#"Signature keyId="/ana/keys/{key}",algorithm="{algorithm}",headers="(request-target) date",signature="{signature}""#
    );
    Request::new(Method::GET, "/ana/machines?limit=1", &[("date", DATE), ("authorization", &authorization)])
}

#[test]
fn openssl_signs_and_we_believe() {
    for (key, algorithm, signature) in openssl_lines() {
        assert_eq!(usual(key, algorithm, signature).check(NOW), Ok("ana"), "{key} {algorithm}");
        for id in [&public(key).fingerprint_md5, &public(key).fingerprint_sha256] {
            assert_eq!(usual(id, algorithm, signature).check(NOW), Ok("ana"), "{id}");
        }
        assert_eq!(usual(key, &algorithm.to_uppercase(), signature).check(NOW), Ok("ana"), "{algorithm}");
    }
}

#[test]
fn triton_signs_and_we_believe() {
    assert_eq!(triton_lines().len(), NAMES.len());
    for (key, algorithm, signature) in triton_lines() {
        assert_eq!(usual(key, algorithm, signature).check(NOW), Ok("ana"), "{key} {algorithm}");
    }
}

#[test]
fn another_key_or_hash_is_no_match() {
    let (_, algorithm, signature) = openssl_lines()[1];
    for key in ["ecdsa-256", "ed25519-256", "nobodys"] {
        assert_eq!(usual(key, algorithm, signature).check(NOW), Err(SignatureError::NoMatch), "{key}");
    }
    assert_eq!(usual("rsa-2048", "rsa-sha512", signature).check(NOW), Err(SignatureError::NoMatch));
    let dsa = usual("rsa-2048", "dsa-sha1", signature).check(NOW);
    assert_eq!(dsa, Err(SignatureError::UnsupportedAlgorithm("dsa-sha1".into())));
    assert_eq!(dsa.unwrap_err().to_string(), "dsa-sha1 is not a supported signing algorithm");
}

#[test]
fn elliptic_signatures_in_three_packings() {
    let (key, algorithm, signature) = openssl_lines()[4];
    let der = BASE64.decode(signature).unwrap();
    let r_length = usize::from(der[3]);
    let (r, s) = (&der[4..4 + r_length], &der[6 + r_length..]);
    let fixed = |number: &[u8]| {
        let digits = number.strip_prefix(&[0]).unwrap_or(number);
        [vec![0; 32 - digits.len()], digits.to_vec()].concat()
    };
    let text = |bytes: &[u8]| [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat();
    let raw = [fixed(r), fixed(s)].concat();
    let pair = [text(r), text(s)].concat();
    let agent = [text(b"ecdsa-sha2-nistp256"), text(&pair)].concat();
    for form in [raw, pair, agent] {
        assert_eq!(usual(key, algorithm, &BASE64.encode(form)).check(NOW), Ok("ana"));
    }
}

#[test]
fn clocks_may_differ_by_five_minutes() {
    let (key, algorithm, signature) = openssl_lines()[1];
    let request = usual(key, algorithm, signature);
    assert_eq!(request.check(NOW + 300), Ok("ana"));
    assert_eq!(request.check(NOW - 300), Ok("ana"));
    assert_eq!(request.check(NOW + 301), Err(SignatureError::ClockSkew(301)));
    assert_eq!(request.check(NOW - 301), Err(SignatureError::ClockSkew(301)));
}

#[test]
fn the_date_must_be_signed() {
    let (key, algorithm, signature) = openssl_lines()[1];
    let mut request = usual(key, algorithm, signature);
    request.headers.insert("x-date", DATE.parse().unwrap());
    assert_eq!(request.check(NOW), Err(SignatureError::DateNotSigned("x-date")));
    request.headers.remove("x-date");
    request.headers.remove("date");
    assert_eq!(request.check(NOW), Err(SignatureError::MissingHeader("date".into())));
    let bare = Request::new(Method::GET, "/ana", &[]);
    assert_eq!(bare.check(NOW), Err(SignatureError::Unsigned));
}

#[test]
fn sub_users_are_told() {
    let text = r#"Signature keyId="/ana/users/bob/keys/x",algorithm="rsa-sha256",signature="AA==""#;
    let request = Request::new(Method::GET, "/ana", &[("date", DATE), ("authorization", text)]);
    assert!(matches!(request.check(NOW), Err(SignatureError::SubUser(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever bit of what is signed, or of the signature, is changed: it is no longer believed.
    #[test]
    fn altered_is_refused(line in 0_usize..10, what in 0..4, position: prop::sample::Index, bit in 0_u8..7) {
        let (key, algorithm, signature) = openssl_lines()[line];
        let mut request = usual(key, algorithm, signature);
        let flip = |text: &str| {
            let mut bytes = text.as_bytes().to_vec();
            let at = position.index(bytes.len());
            bytes[at] ^= 1 << bit;
            String::from_utf8(bytes).ok()
        };
        match what {
            0 => match flip(&request.target) {
                Some(target) => request.target = target,
                None => return Ok(()),
            },
            1 => request.method = Method::DELETE,
            2 => {
                let date = flip(DATE).and_then(|date| HeaderValue::from_str(&date).ok());
                let Some(date) = date else { return Ok(()) };
                request.headers.insert("date", date);
            }
            _ => {
                let mut bytes = BASE64.decode(signature).unwrap();
                let at = position.index(bytes.len());
                bytes[at] ^= 1 << bit;
                request = usual(key, algorithm, &BASE64.encode(bytes));
            }
        }
        prop_assert!(request.check(NOW).is_err());
    }

    #[test]
    fn nothing_panics(text in "Signature [a-zA-Z]{0,9}=\"[ -~]{0,80}\",?[ -~]{0,200}", target in "/[ -~]{0,200}") {
        let request = Request::new(Method::GET, &target, &[("date", DATE), ("authorization", &text)]);
        prop_assert!(request.check(NOW).is_err());
        let bare = Request::new(Method::GET, &target, &[]);
        prop_assert!(bare.check(NOW).is_err());
    }

    #[test]
    fn signature_bytes_of_any_shape_are_refused(line in 0_usize..10, bytes: Vec<u8>) {
        let (key, algorithm, _) = openssl_lines()[line];
        prop_assert!(usual(key, algorithm, &BASE64.encode(bytes)).check(NOW).is_err());
    }
}
