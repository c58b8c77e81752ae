//! What secondaries may do, out of the settings and the files with the keys' secrets. A secret is in no argument, no log and no answer.

use std::{io, path::PathBuf};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use dns::{Algorithm, Name, NotifyTarget, Policy, RateLimit, Secret, TransferRule, TsigKey};

use crate::settings::{Names, NamesKey};

/// Bytes of a key's file at most.
const FILE_MAX_BYTES: u64 = 4_096;
/// Bytes of a secret at least: shorter ones can be guessed.
const SECRET_MIN_BYTES: usize = 16;

/// Why secondaries cannot be served as the settings say.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PolicyError {
    /// A key's file.
    #[error("failed to read the key of names.keys \"{name}\" from `{path}`")]
    Read {
        /// The key.
        name: String,
        /// Its file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// What is in it.
    #[error("`{path}`, the file of names.keys \"{name}\", {why}")]
    Secret {
        /// The key.
        name: String,
        /// Its file.
        path: PathBuf,
        /// What is wrong, without the secret.
        why: String,
    },
    /// A name, which the settings' check lets through and DNS does not.
    #[error("names has \"{name}\", which is no name of DNS")]
    Name {
        /// The text.
        name: String,
        /// Why.
        #[source]
        source: dns::NameError,
    },
}

/// The policy that the settings say.
pub(crate) fn policy(names: &Names) -> Result<Policy, PolicyError> {
    let shared = &names.shared;
    let keys: Result<Vec<TsigKey>, PolicyError> = shared.keys.iter().map(key).collect();
    let named = |name: &Option<String>| name.as_deref().map(parse).transpose();
    let transfers = shared.transfers.iter();
    let transfers: Result<Vec<TransferRule>, PolicyError> =
        transfers.map(|rule| Ok(TransferRule { network: rule.network, key: named(&rule.key)? })).collect();
    let notify = shared.notify.iter();
    let notify: Result<Vec<NotifyTarget>, PolicyError> =
        notify.map(|target| Ok(NotifyTarget { address: target.address, key: named(&target.key)? })).collect();
    let rate = (shared.answers_per_second > 0)
        .then(|| RateLimit { per_second: shared.answers_per_second, ..RateLimit::default() });
    Ok(Policy { transfers: transfers?, keys: keys?, notify: notify?, rate })
}

fn key(key: &NamesKey) -> Result<TsigKey, PolicyError> {
    let wrong = |why: String| PolicyError::Secret { name: key.name.clone(), path: key.file.clone(), why };
    let read = |source| PolicyError::Read { name: key.name.clone(), path: key.file.clone(), source };
    let size = std::fs::metadata(&key.file).map_err(read)?.len();
    if size > FILE_MAX_BYTES {
        return Err(wrong(format!("has {size} bytes; a key has {FILE_MAX_BYTES} at most")));
    }
    let text = std::fs::read_to_string(&key.file).map_err(read)?;
    let secret = STANDARD.decode(text.trim()).map_err(|_| wrong("is not base64 and nothing else".to_owned()))?;
    if secret.len() < SECRET_MIN_BYTES {
        return Err(wrong(format!("has a secret of {} bytes; {SECRET_MIN_BYTES} are the least", secret.len())));
    }
    let algorithm = Algorithm::from_name(&key.algorithm).ok_or_else(|| wrong("has an unknown algorithm".to_owned()))?;
    Ok(TsigKey { name: parse(&key.name)?, algorithm, secret: Secret::new(secret) })
}

fn parse(name: &str) -> Result<Name, PolicyError> {
    name.parse().map_err(|source| PolicyError::Name { name: name.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{NamesKey, NamesTransfer};

    #[test]
    fn keys_are_read_and_never_said() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("transfer.key");
        let mut names = Names::default();
        let known = NamesKey { name: "transfer".into(), algorithm: "hmac-sha256".into(), file: file.clone() };
        names.shared.keys.push(known);
        let rule = NamesTransfer { network: "10.0.0.0/8".parse().unwrap(), key: Some("transfer".into()) };
        names.shared.transfers.push(rule);
        assert!(matches!(policy(&names), Err(PolicyError::Read { .. })));
        let secret = "c2VjcmV0IHNlY3JldCBzZWNyZXQ=";
        for (text, word) in [("c2VjcmV0!", "not base64"), ("c2VjcmV0", "6 bytes")] {
            std::fs::write(&file, text).unwrap();
            let why = base::errors::chain(&policy(&names).unwrap_err());
            assert!(why.contains(word) && !why.contains(text), "{why}");
        }
        std::fs::write(&file, format!("{secret}\n")).unwrap();
        let good = policy(&names).unwrap();
        assert_eq!((good.keys.len(), good.transfers[0].key.as_ref()), (1, Some(&"transfer".parse().unwrap())));
        assert_eq!(good.keys[0].secret, Secret::new(b"secret secret secret".to_vec()));
        assert!(!format!("{good:?}").contains("secret secret"));
        assert!(good.rate.is_some());
        names.shared.answers_per_second = 0;
        assert!(policy(&names).unwrap().rate.is_none());
    }
}
