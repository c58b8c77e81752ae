//! The SSH agent's protocol, as much of it as signing needs: list the keys, sign with one.

use std::{io, path::Path, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::timeout,
};

use crate::signature::{Algorithm, Hash, ssh_string};

/// Largest answer we read, bytes: OpenSSH's own limit.
const ANSWER_MAX: usize = 262_144;
/// How long a person may take to touch a hardware key.
const PATIENCE: Duration = Duration::from_secs(60);

const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;
/// Flag of a sign request: RSA with SHA-256 instead of SHA-1.
const RSA_SHA2_256: u32 = 2;
const RSA_SHA2_512: u32 = 4;

/// Public key blobs of all keys the agent holds.
pub(super) async fn identities(socket: &Path) -> io::Result<Vec<Vec<u8>>> {
    let answer = ask(socket, &[REQUEST_IDENTITIES]).await?;
    let body = expect(&answer, IDENTITIES_ANSWER)?;
    let (count, mut rest) = body.split_first_chunk::<4>().ok_or_else(short)?;
    let mut blobs = Vec::new();
    for _ in 0..u32::from_be_bytes(*count) {
        let (blob, after) = ssh_string(rest).ok_or_else(short)?;
        let (_comment, after) = ssh_string(after).ok_or_else(short)?;
        blobs.push(blob.to_vec());
        rest = after;
    }
    Ok(blobs)
}

/// The bare signature, without its type name.
pub(super) async fn sign(socket: &Path, blob: &[u8], message: &[u8], algorithm: Algorithm) -> io::Result<Vec<u8>> {
    let flags = match algorithm {
        Algorithm::Rsa(Hash::Sha256) => RSA_SHA2_256,
        Algorithm::Rsa(Hash::Sha512) => RSA_SHA2_512,
        _ => 0,
    };
    let mut request = vec![SIGN_REQUEST];
    for part in [blob, message] {
        request.extend_from_slice(&length(part)?);
        request.extend_from_slice(part);
    }
    request.extend_from_slice(&flags.to_be_bytes());
    let answer = ask(socket, &request).await?;
    let (packed, _) = ssh_string(expect(&answer, SIGN_RESPONSE)?).ok_or_else(short)?;
    let (_name, rest) = ssh_string(packed).ok_or_else(short)?;
    let (signature, _) = ssh_string(rest).ok_or_else(short)?;
    Ok(signature.to_vec())
}

async fn ask(socket: &Path, request: &[u8]) -> io::Result<Vec<u8>> {
    let exchange = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(&length(request)?).await?;
        stream.write_all(request).await?;
        let size = stream.read_u32().await? as usize;
        if size > ANSWER_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the agent's answer is too long"));
        }
        let mut answer = vec![0; size];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    };
    timeout(PATIENCE, exchange)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the agent does not answer"))?
}

fn expect(answer: &[u8], kind: u8) -> io::Result<&[u8]> {
    match answer.split_first() {
        Some((first, body)) if *first == kind => Ok(body),
        Some(_) => Err(io::Error::other("the agent refused")),
        None => Err(short()),
    }
}

fn length(part: &[u8]) -> io::Result<[u8; 4]> {
    let length = u32::try_from(part.len()).map_err(|_| io::Error::other("the message is too long for an agent"))?;
    Ok(length.to_be_bytes())
}

fn short() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the agent's answer is cut short")
}
