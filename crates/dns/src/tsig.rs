//! Signed messages (RFC 8945): who asks for a zone shows that it holds a key, and sees from the answer that we do.
//!
//! Only whole signatures are taken. A signature is over the message before it, over what the signature's own record says, and, in an
//! answer, over the question's signature first, so that no answer can be moved to another question.

use aws_lc_rs::hmac;

use crate::{
    message::{CLASS_ANY, HEADER, KIND_TSIG, Tsig},
    name::Name,
    settings::{Algorithm, TsigKey},
};

/// Seconds by which two clocks may differ.
const FUDGE_S: u16 = 300;
const BAD_SIGNATURE: u16 = 16;
const BAD_KEY: u16 = 17;
const BAD_TIME: u16 = 18;

/// A request whose signature is good, or what its answers must say.
#[derive(Debug, Clone)]
pub(crate) struct Signed {
    key: TsigKey,
    /// The signature that comes before the next answer's.
    previous: Vec<u8>,
}

/// Why a signature is not good.
#[derive(Debug)]
pub(crate) enum Bad {
    /// A key we do not have, or another algorithm: the answer is not signed.
    Key,
    /// Not made with the key.
    Signature,
    /// Made with the key at another time: the answer is signed, and says our time.
    Time(Signed),
}

/// What a signature is put over besides the message.
enum Variables {
    /// Everything in its record: in requests and in first answers.
    All { error: u16, other: Vec<u8> },
    /// The time alone: in the answers after the first.
    Time,
}

impl Signed {
    /// The name of the key.
    pub(crate) fn key(&self) -> &Name {
        &self.key.name
    }

    /// Bytes that its signature adds to an answer.
    pub(crate) fn reserved(&self) -> usize {
        record_bytes(&self.key.name, self.key.algorithm, mac_bytes(self.key.algorithm), 6)
    }

    /// Signs the first answer, of `len` bytes in `buffer`, and returns how long it is then.
    pub(crate) fn sign_first(&mut self, buffer: &mut [u8], len: usize, now_s: u64) -> usize {
        self.sign(buffer, len, now_s, &Variables::All { error: 0, other: Vec::new() })
    }

    /// Signs one of the answers after the first.
    pub(crate) fn sign_next(&mut self, buffer: &mut [u8], len: usize, now_s: u64) -> usize {
        self.sign(buffer, len, now_s, &Variables::Time)
    }

    fn sign(&mut self, buffer: &mut [u8], len: usize, now_s: u64, variables: &Variables) -> usize {
        let mac = digest(&self.key, Some(&self.previous), &buffer[..len], now_s, FUDGE_S, variables);
        let (error, other) = match variables {
            Variables::All { error, other } => (*error, other.as_slice()),
            Variables::Time => (0, [].as_slice()),
        };
        self.previous.clear();
        self.previous.extend_from_slice(mac.as_ref());
        let record = Appended {
            key: self.key.name.as_wire(),
            algorithm: &algorithm_name(self.key.algorithm),
            time_s: now_s,
            mac: mac.as_ref(),
            error,
            other,
        };
        record.append(buffer, len)
    }
}

impl Bad {
    /// Bytes that saying so adds to an answer.
    pub(crate) fn reserved(&self, tsig: &Tsig<'_>) -> usize {
        match self {
            Self::Time(signed) => signed.reserved(),
            Self::Key | Self::Signature => tsig.key.as_wire().len() + tsig.algorithm.as_wire().len() + 26,
        }
    }

    /// Says so at the end of the answer.
    pub(crate) fn append(self, tsig: &Tsig<'_>, buffer: &mut [u8], len: usize, now_s: u64) -> usize {
        let error = match self {
            Self::Time(mut signed) => {
                let other = now_s.to_be_bytes()[2..].to_vec();
                return signed.sign(buffer, len, tsig.time_s, &Variables::All { error: BAD_TIME, other });
            }
            Self::Key => BAD_KEY,
            Self::Signature => BAD_SIGNATURE,
        };
        let (key, algorithm) = (tsig.key.as_wire(), tsig.algorithm.as_wire());
        Appended { key, algorithm, time_s: tsig.time_s, mac: &[], error, other: &[] }.append(buffer, len)
    }
}

/// Looks whether a request's signature is good.
pub(crate) fn verify(message: &[u8], tsig: &Tsig<'_>, keys: &[TsigKey], now_s: u64) -> Result<Signed, Bad> {
    let key = keys.iter().find(|key| key.name.as_wire() == tsig.key.as_wire()).ok_or(Bad::Key)?;
    if algorithm_name(key.algorithm) != tsig.algorithm.as_wire() {
        return Err(Bad::Key);
    }
    verify_with(message, tsig, key, None)?;
    let signed = Signed { key: key.clone(), previous: tsig.mac.to_vec() };
    if now_s.abs_diff(tsig.time_s) > u64::from(tsig.fudge_s) { Err(Bad::Time(signed)) } else { Ok(signed) }
}

/// Signs a message that begins a conversation, and returns how long it is then, and what its answer must be signed over.
pub(crate) fn sign_request(key: &TsigKey, buffer: &mut [u8], len: usize, now_s: u64) -> (usize, Vec<u8>) {
    let variables = Variables::All { error: 0, other: Vec::new() };
    let mac = digest(key, None, &buffer[..len], now_s, FUDGE_S, &variables);
    let (name, algorithm) = (key.name.as_wire(), algorithm_name(key.algorithm));
    let record = Appended { key: name, algorithm: &algorithm, time_s: now_s, mac: mac.as_ref(), error: 0, other: &[] };
    (record.append(buffer, len), mac.as_ref().to_vec())
}

/// Whether an answer to a message that we have signed is signed as it must be.
pub(crate) fn is_answer_good(message: &[u8], tsig: &Tsig<'_>, key: &TsigKey, request: &[u8]) -> bool {
    tsig.key.as_wire() == key.name.as_wire() && verify_with(message, tsig, key, Some(request)).is_ok()
}

fn verify_with(message: &[u8], tsig: &Tsig<'_>, key: &TsigKey, previous: Option<&[u8]>) -> Result<(), Bad> {
    // What was signed is the message as it was before the signature: without its record, and with the number it had then.
    let mut unsigned = message.get(..tsig.start).ok_or(Bad::Signature)?.to_vec();
    let count = unsigned.get(10..HEADER).map_or(0, |two| u16::from_be_bytes([two[0], two[1]]));
    let count = count.checked_sub(1).ok_or(Bad::Signature)?;
    unsigned[..2].copy_from_slice(&tsig.original_id.to_be_bytes());
    unsigned[10..HEADER].copy_from_slice(&count.to_be_bytes());
    let variables = Variables::All { error: tsig.error, other: tsig.other.to_vec() };
    let wanted = digested(key, previous, &unsigned, tsig.time_s, tsig.fudge_s, &variables);
    hmac::verify(&hmac_key(key), &wanted, tsig.mac).map_err(|_| Bad::Signature)
}

fn digest(
    key: &TsigKey,
    previous: Option<&[u8]>,
    message: &[u8],
    time_s: u64,
    fudge_s: u16,
    variables: &Variables,
) -> hmac::Tag {
    hmac::sign(&hmac_key(key), &digested(key, previous, message, time_s, fudge_s, variables))
}

/// The bytes that a signature is over.
fn digested(
    key: &TsigKey,
    previous: Option<&[u8]>,
    message: &[u8],
    time_s: u64,
    fudge_s: u16,
    variables: &Variables,
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(message.len() + 256);
    if let Some(previous) = previous {
        bytes.extend_from_slice(&len_of(previous));
        bytes.extend_from_slice(previous);
    }
    bytes.extend_from_slice(message);
    if let Variables::All { .. } = variables {
        bytes.extend_from_slice(key.name.as_wire());
        bytes.extend_from_slice(&CLASS_ANY.to_be_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&algorithm_name(key.algorithm));
    }
    bytes.extend_from_slice(&time_s.to_be_bytes()[2..]);
    bytes.extend_from_slice(&fudge_s.to_be_bytes());
    if let Variables::All { error, other } = variables {
        bytes.extend_from_slice(&error.to_be_bytes());
        bytes.extend_from_slice(&len_of(other));
        bytes.extend_from_slice(other);
    }
    bytes
}

fn hmac_key(key: &TsigKey) -> hmac::Key {
    let algorithm = match key.algorithm {
        Algorithm::HmacSha256 => hmac::HMAC_SHA256,
        Algorithm::HmacSha384 => hmac::HMAC_SHA384,
        Algorithm::HmacSha512 => hmac::HMAC_SHA512,
    };
    hmac::Key::new(algorithm, key.secret.bytes())
}

fn mac_bytes(algorithm: Algorithm) -> usize {
    match algorithm {
        Algorithm::HmacSha256 => 32,
        Algorithm::HmacSha384 => 48,
        Algorithm::HmacSha512 => 64,
    }
}

fn algorithm_name(algorithm: Algorithm) -> Vec<u8> {
    Name::from_labels([algorithm.name()]).map_or(Vec::new(), |name| name.as_wire().to_vec())
}

fn record_bytes(key: &Name, algorithm: Algorithm, mac: usize, other: usize) -> usize {
    key.as_wire().len() + algorithm_name(algorithm).len() + 26 + mac + other
}

fn len_of(bytes: &[u8]) -> [u8; 2] {
    u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes()
}

/// A signature's record at the end of a message.
struct Appended<'a> {
    key: &'a [u8],
    algorithm: &'a [u8],
    time_s: u64,
    mac: &'a [u8],
    error: u16,
    other: &'a [u8],
}

impl Appended<'_> {
    /// Puts it there. A message without room for it stays as it is; whoever wrote it has kept the room.
    fn append(&self, buffer: &mut [u8], len: usize) -> usize {
        let id = [buffer[0], buffer[1]];
        let mut data = self.algorithm.to_vec();
        data.extend_from_slice(&self.time_s.to_be_bytes()[2..]);
        data.extend_from_slice(&FUDGE_S.to_be_bytes());
        data.extend_from_slice(&len_of(self.mac));
        data.extend_from_slice(self.mac);
        data.extend_from_slice(&id);
        data.extend_from_slice(&self.error.to_be_bytes());
        data.extend_from_slice(&len_of(self.other));
        data.extend_from_slice(self.other);
        let mut record = self.key.to_vec();
        record.extend_from_slice(&KIND_TSIG.0.to_be_bytes());
        record.extend_from_slice(&CLASS_ANY.to_be_bytes());
        record.extend_from_slice(&[0; 4]);
        record.extend_from_slice(&len_of(&data));
        record.extend_from_slice(&data);
        let Some(room) = buffer.get_mut(len..len + record.len()) else { return len };
        room.copy_from_slice(&record);
        let count = u16::from_be_bytes([buffer[10], buffer[11]]).saturating_add(1);
        buffer[10..HEADER].copy_from_slice(&count.to_be_bytes());
        len + record.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{message, settings::Secret};

    fn key(secret: u8) -> TsigKey {
        let name = "transfer.example".parse().unwrap();
        TsigKey { name, algorithm: Algorithm::HmacSha256, secret: Secret::new(vec![secret; 32]) }
    }

    fn request(key: &TsigKey, now_s: u64) -> (Vec<u8>, Vec<u8>) {
        let mut buffer = vec![0; 512];
        let plain = b"\0\x07\0\0\0\x01\0\0\0\0\0\0\x07example\0\0\xfc\0\x01";
        buffer[..plain.len()].copy_from_slice(plain);
        let (len, mac) = sign_request(key, &mut buffer, plain.len(), now_s);
        buffer.truncate(len);
        (buffer, mac)
    }

    fn verified(message: &[u8], keys: &[TsigKey], now_s: u64) -> Result<Signed, Bad> {
        let query = message::read(message).unwrap();
        verify(message, query.tsig.as_ref().unwrap(), keys, now_s)
    }

    #[test]
    fn only_the_key_its_time_and_its_bytes_are_good() {
        let (message, _) = request(&key(1), 1000);
        assert!(verified(&message, &[key(2), key(1)][1..], 1200).is_ok());
        assert!(matches!(verified(&message, &[], 1000), Err(Bad::Key)));
        assert!(matches!(verified(&message, &[key(2)], 1000), Err(Bad::Signature)));
        assert!(matches!(verified(&message, &[key(1)], 1301), Err(Bad::Time(_))));
        let other = TsigKey { algorithm: Algorithm::HmacSha512, ..key(1) };
        assert!(matches!(verified(&message, &[other], 1000), Err(Bad::Key)));
        let mut changed = message.clone();
        changed[14] ^= 1;
        assert!(matches!(verified(&changed, &[key(1)], 1000), Err(Bad::Signature)));
        let mut renumbered = message.clone();
        renumbered[1] = 9;
        assert!(verified(&renumbered, &[key(1)], 1000).is_ok(), "a forwarder may number it anew");
    }

    #[test]
    fn an_answer_is_good_for_its_own_question_alone() {
        let (message, mac) = request(&key(1), 1000);
        let mut signed = verified(&message, &[key(1)], 1000).unwrap();
        let mut answer = vec![0; 512];
        answer[..12].copy_from_slice(b"\0\x07\x80\0\0\0\0\0\0\0\0\0");
        let len = signed.sign_first(&mut answer, 12, 1001);
        assert!(len - 12 <= signed.reserved());
        let tsig = message::answer_tsig(&answer[..len]).unwrap();
        assert!(is_answer_good(&answer[..len], &tsig, &key(1), &mac));
        assert!(!is_answer_good(&answer[..len], &tsig, &key(1), &mac[1..]));
        assert!(!is_answer_good(&answer[..len], &tsig, &key(2), &mac));
    }

    #[test]
    fn secrets_are_not_printed() {
        assert!(!format!("{:?}", key(77)).contains("77"));
    }
}
