//! A cable that can be cut: a listener that passes bytes on to a member, and does not when it is told not to.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

/// What the cable does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cable {
    /// Everything passes.
    Whole,
    /// What goes to the member passes; its answers are held.
    AnswersHeld,
    /// Its answers pass; what goes to the member is held.
    QuestionsHeld,
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
                let held = |both: [Cable; 2], cable: watch::Receiver<Cable>| (both, cable);
                let (questions, cable) = held([Cable::QuestionsHeld, Cable::Frozen], subscribed.clone());
                base::task::spawn("proxy", pass(near_read, far_write, questions, cable));
                let (answers, cable) = held([Cable::AnswersHeld, Cable::Frozen], subscribed.clone());
                base::task::spawn("proxy", pass(far_read, near_write, answers, cable));
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
            && cable.wait_for(|cable| !held.contains(cable)).await.is_ok()
            && count > 0
        {
            if to.write_all(&bytes[..count]).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        biased;
        _ = cut.wait_for(|cable| *cable == Cable::Cut) => {}
        () = work => {}
    }
}
