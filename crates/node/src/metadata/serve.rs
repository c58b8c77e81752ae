//! Conversations: accept, check who asks, read lines within limits, answer.

use std::{
    io,
    sync::{Arc, Weak},
    time::Duration,
};

use base::shutdown::Shutdown;
use mdata::{
    LINE_MAX_BYTES,
    server::{Heard, Session},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::timeout,
};

use super::{Guest, answer};
use crate::shared::Shared;

/// Conversations of one zone at once. Boot scripts ask a handful at the same time; more wait in the listener's queue.
const CONVERSATIONS: usize = 8;

/// How long a guest may think between two lines, and over one line.
const LINE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a guest may take to read an answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// After an accept that failed: out of descriptors, most likely, which passes.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Read at once, bytes. Nearly all lines fit, and an idle conversation holds no more.
const READ_BYTES: usize = 512;

/// Accepts until the service is closed or the agent ends.
pub(super) async fn listen(shared: Arc<Shared>, guest: Weak<Guest>, listener: UnixListener, closed: Shutdown) {
    let permits = Arc::new(Semaphore::new(CONVERSATIONS));
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = accept(&listener, &permits) => accepted,
            () = closed.wait() => return,
            () = shared.shutdown.wait() => return,
        };
        let Some(guest) = guest.upgrade() else { return };
        match accepted {
            Ok((stream, permit)) => {
                let (shared, closed) = (shared.clone(), closed.clone());
                base::task::spawn("metadata conversation", async move {
                    tokio::select! {
                        biased;
                        result = converse(&shared, &guest, stream) => {
                            if let Err(error) = result {
                                tracing::debug!(instance = %guest.id, %error, "a metadata conversation ended early");
                            }
                        }
                        () = closed.wait() => {}
                        () = shared.shutdown.wait() => {}
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(instance = %guest.id, %error, "failed to accept a metadata conversation");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The next conversation, once there is room for it.
async fn accept(
    listener: &UnixListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(UnixStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = permits.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, permit))
}

async fn converse(shared: &Arc<Shared>, guest: &Arc<Guest>, mut stream: UnixStream) -> io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    if peer != guest.root_id && peer != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("host user {peer} is not the zone's root"),
        ));
    }
    let mut session = Session::default();
    let mut buffer = Vec::new();
    while let Some(line) = timeout(LINE_TIMEOUT, next_line(&mut stream, &mut buffer)).await?? {
        let reply = match session.hear(&line) {
            Heard::Say(text) => text,
            Heard::Ask { request_id, command } => {
                let answer = answer(shared, guest, command).await;
                session.reply(request_id.as_deref(), &answer)
            }
        };
        timeout(WRITE_TIMEOUT, stream.write_all(reply.as_bytes())).await??;
    }
    Ok(())
}

/// The next line without its end; `None` when the guest is done. `buffer` keeps what came after it.
async fn next_line(stream: &mut UnixStream, buffer: &mut Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    let mut searched = 0;
    loop {
        if let Some(at) = buffer[searched..].iter().position(|byte| *byte == b'\n') {
            let rest = buffer.split_off(searched + at + 1);
            let mut line = std::mem::replace(buffer, rest);
            line.pop();
            return Ok(Some(line));
        }
        searched = buffer.len();
        if searched > LINE_MAX_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a line is longer than {LINE_MAX_BYTES} bytes"),
            ));
        }
        buffer.reserve(READ_BYTES);
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}
