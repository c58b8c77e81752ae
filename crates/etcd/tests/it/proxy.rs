//! A cable that can be cut: a listener that passes bytes on to a member, and does not when it is told not to.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

/// How long the pieces of one question may take. The engine waits two seconds for its answer.
const QUESTION_MAX: Duration = Duration::from_millis(500);

/// What the cable does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cable {
    /// Everything passes.
    Whole,
    /// What goes to the member passes; its answers are held.
    AnswersHeld,
    /// Its answers pass; what goes to the member is held, and of what came meanwhile only the first arrives in the end: not that
    /// nobody waits for it any more.
    QuestionsLate,
    /// Both are held: from outside the member is frozen.
    Frozen,
    /// Connections are closed, and new ones at once.
    Cut,
}

pub(crate) struct Proxy {
    address: SocketAddr,
    cable: watch::Sender<Cable>,
}

impl Proxy {
    /// In front of `endpoint`, an `http://` one.
    pub(crate) async fn start(endpoint: &str) -> Self {
        let to: SocketAddr = endpoint.trim_start_matches("http://").parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let cable = watch::Sender::new(Cable::Whole);
        let subscribed = cable.subscribe();
        base::task::spawn("proxy", async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(to).await else { continue };
                let (near_read, near_write) = near.into_split();
                let (far_read, far_write) = far.into_split();
                let cable = subscribed.clone();
                base::task::spawn("proxy", pass(near_read, far_write, [Cable::QuestionsLate, Cable::Frozen], cable));
                let cable = subscribed.clone();
                base::task::spawn("proxy", pass(far_read, near_write, [Cable::AnswersHeld, Cable::Frozen], cable));
            }
        });
        Self { address, cable }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn set(&self, cable: Cable) {
        self.cable.send_replace(cable);
    }
}

/// Pass bytes on, except while the cable is one of `held`, until it is cut or one side ends.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, held: [Cable; 2], mut cable: watch::Receiver<Cable>) {
    let mut cut = cable.clone();
    let work = async {
        let mut bytes = vec![0; 64 << 10];
        while let Ok(count) = from.read(&mut bytes).await
            && count > 0
        {
            let late = *cable.borrow() == Cable::QuestionsLate && held.contains(&Cable::QuestionsLate);
            let mut more = Vec::new();
            if late {
                // The rest of the question, if it was not written in one piece; long before it is given up.
                let rest = async { while from.read_buf(&mut more).await.is_ok_and(|count| count > 0) {} };
                let _ = tokio::time::timeout(QUESTION_MAX, rest).await;
            }
            if cable.wait_for(|cable| !held.contains(cable)).await.is_err() {
                break;
            }
            if to.write_all(&bytes[..count]).await.is_err() || to.write_all(&more).await.is_err() {
                break;
            }
            if late {
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        biased;
        _ = cut.wait_for(|cable| *cable == Cable::Cut) => {}
        () = work => {}
    }
}
