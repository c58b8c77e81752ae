//! Key ids: `/login/keys/key`, and the longer form of sub-users that we refuse.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use super::SignatureError;

/// Longest key id we read, bytes; a login and a SHA-256 fingerprint need under 100.
const KEY_ID_MAX: usize = 512;

/// Which key of which account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyId<'a> {
    /// The account's login.
    pub login: Cow<'a, str>,
    /// MD5 or SHA-256 fingerprint, or the key's name.
    pub key: Cow<'a, str>,
}

impl<'a> KeyId<'a> {
    /// Reads a key id. A SHA-256 fingerprint may contain slashes of its own.
    pub fn parse(text: &'a str) -> Result<Self, SignatureError> {
        let invalid = || SignatureError::InvalidKeyId(text.chars().take(KEY_ID_MAX).collect());
        if text.len() > KEY_ID_MAX {
            return Err(invalid());
        }
        let rest = text.strip_prefix('/').ok_or_else(invalid)?;
        let (login, rest) = rest.split_once('/').ok_or_else(invalid)?;
        if rest.starts_with("users/") {
            return Err(SignatureError::SubUser(text.to_owned()));
        }
        let key = rest.strip_prefix("keys/").ok_or_else(invalid)?;
        let plain = !key.contains('/') || key.starts_with("SHA256:");
        // The caller's own name cannot be known before the key is.
        if login.is_empty() || login == "my" || key.is_empty() || !plain {
            return Err(invalid());
        }
        Ok(Self { login: decode(login).ok_or_else(invalid)?, key: decode(key).ok_or_else(invalid)? })
    }
}

fn decode(segment: &str) -> Option<Cow<'_, str>> {
    percent_decode_str(segment).decode_utf8().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<(&str, &str), SignatureError>) {
        let got = KeyId::parse(text);
        assert_eq!(got.as_ref().map(|id| (&*id.login, &*id.key)), expected.as_ref().map(|pair| *pair));
    }

    #[test]
    fn shapes() {
        check("/ana/keys/aa:bb", Ok(("ana", "aa:bb")));
        check("/ana@x.org/keys/my%20key", Ok(("ana@x.org", "my key")));
        check("/ana/keys/SHA256:a/b+c", Ok(("ana", "SHA256:a/b+c")));
        check("/ana/keys/a/b", Err(SignatureError::InvalidKeyId("/ana/keys/a/b".into())));
        check("/my/keys/x", Err(SignatureError::InvalidKeyId("/my/keys/x".into())));
        check("ana/keys/x", Err(SignatureError::InvalidKeyId("ana/keys/x".into())));
        check("/ana/keys/", Err(SignatureError::InvalidKeyId("/ana/keys/".into())));
        check("/ana/users/bob/keys/x", Err(SignatureError::SubUser("/ana/users/bob/keys/x".into())));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,600}") {
            let _ = KeyId::parse(&text);
        }
    }
}
