//! What a member says at its door for other members: that it lives, and whom it knows. It answers there also while it has found no majority since it
//! started, when its door for clients is shut. It is plain HTTP, and one question each.

use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use crate::{Admin, AdminError, Endpoint};

/// How long it may take.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// A list of members and what is around it.
const ANSWER_BYTES_MAX: u64 = 256 << 10;
const MEMBERS: &str = "/members";

impl Admin {
    /// The members that the one knows whose door for members is `peer`, as it writes them: JSON.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn members_of(&self, peer: &str) -> Result<String, AdminError> {
        let endpoint = Endpoint::parse(peer).map_err(AdminError::Endpoint)?;
        let failed = |source| AdminError::Ask { doing: "ask an etcd member whom it knows", source };
        match tokio::time::timeout(ANSWER_MAX, self.get(&endpoint)).await {
            Ok(answer) => answer.map_err(failed),
            Err(_) => Err(failed(format!("{endpoint} says nothing within {} s", ANSWER_MAX.as_secs()).into())),
        }
    }

    async fn get(&self, endpoint: &Endpoint) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
        let stream = TcpStream::connect((endpoint.host(), endpoint.port())).await?;
        let answer = match (endpoint.is_tls(), self.tls()) {
            (true, Some(tls)) => {
                let name = ServerName::try_from(endpoint.host().to_owned())?;
                let stream = TlsConnector::from(tls.client_config()?).connect(name, stream).await?;
                exchange(stream, endpoint).await?
            }
            (true, None) => return Err("no certificates are given for it".into()),
            (false, _) => exchange(stream, endpoint).await?,
        };
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("the answer is cut")?;
        match head.split(' ').nth(1) {
            Some("200") => Ok(body.to_owned()),
            _ => Err(format!("{endpoint} answers `{}`", head.lines().next().unwrap_or_default()).into()),
        }
    }
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, endpoint: &Endpoint) -> std::io::Result<String> {
    // Of the old version, so that the answer comes whole and ends with the connection.
    let question = format!("GET {MEMBERS} HTTP/1.0\r\nHost: {endpoint}\r\n\r\n");
    stream.write_all(question.as_bytes()).await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    // An end without a farewell is one too.
    match stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await {
        Err(error) if answer.is_empty() => Err(error),
        _ => Ok(String::from_utf8_lossy(&answer).into_owned()),
    }
}
