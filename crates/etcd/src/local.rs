//! Members on this machine, as child processes, for tests and measurements: real ones, from Debian's `etcd-server`.
//!
//! A headnode is told where its cluster is and starts none.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{process::Child, time::Instant};

use crate::{
    call::Channel,
    endpoint::{Endpoint, Tls},
    messages::{PutRequest, PutResponse, StatusRequest, StatusResponse, path},
};

/// How long a cluster on a busy machine may take to elect its first leader.
const READY_MAX: Duration = Duration::from_secs(60);
/// How often it is asked.
const ASK_PERIOD: Duration = Duration::from_millis(50);
/// How long a put may take.
const PUT_MAX: Duration = Duration::from_secs(30);
/// How long one question may take.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// Whether etcd is installed here.
pub fn is_installed() -> bool {
    program().is_some()
}

fn program() -> Option<PathBuf> {
    let directories = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&directories).map(|directory| directory.join("etcd")).find(|program| program.is_file())
}

/// One member. Killed when dropped; its data stay.
pub struct Member {
    name: String,
    directory: PathBuf,
    client: SocketAddr,
    peer: SocketAddr,
    arguments: Vec<String>,
    tls: Option<Tls>,
    child: Option<Child>,
}

impl Member {
    /// A new cluster of `count` members under `directory`, ready to be used. `tls` proves members to each other and clients to
    /// them, and must be good for 127.0.0.1 as server and as client. `arguments` are given to each member as they are.
    ///
    /// # Errors
    /// When etcd is not installed, cannot be started, or does not get ready; its log is in `directory`.
    pub async fn cluster(
        directory: &Path,
        count: usize,
        tls: Option<&Tls>,
        arguments: &[&str],
    ) -> io::Result<Vec<Self>> {
        let ports = free_ports(2 * count)?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let name = |number: usize| format!("m{}", number + 1);
        let peers: Vec<String> =
            (0..count).map(|number| format!("{}={scheme}://{}", name(number), ports[2 * number + 1])).collect();
        let mut members = Vec::with_capacity(count);
        for number in 0..count {
            let (client, peer) = (ports[2 * number], ports[2 * number + 1]);
            let data = directory.join(name(number));
            let mut all = common_arguments(&name(number), &data, client, peer, tls);
            all.push(format!("--initial-cluster={}", peers.join(",")));
            all.push(format!("--initial-cluster-token=neso-{}", ports[0].port()));
            all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
            members.push(Self {
                name: name(number),
                directory: directory.to_owned(),
                client,
                peer,
                arguments: all,
                tls: tls.cloned(),
                child: None,
            });
        }
        for member in &mut members {
            member.start()?;
        }
        for member in &mut members {
            member.ready().await?;
        }
        Ok(members)
    }

    /// One more for the cluster of `others`, not started: they must be told of its [`Member::peer`] first.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn beside(others: &[Self], name: &str) -> io::Result<Self> {
        let first = others.first().ok_or_else(|| io::Error::other("beside whom?"))?;
        let ports = free_ports(2)?;
        let (client, peer) = (ports[0], ports[1]);
        let (directory, tls) = (first.directory.clone(), first.tls.clone());
        let mut arguments = common_arguments(name, &directory.join(name), client, peer, tls.as_ref());
        let scheme = if tls.is_some() { "https" } else { "http" };
        let mut peers: Vec<String> = others.iter().map(|other| format!("{}={}", other.name, other.peer())).collect();
        peers.push(format!("{name}={scheme}://{peer}"));
        arguments.push(format!("--initial-cluster={}", peers.join(",")));
        arguments.push("--initial-cluster-state=existing".to_owned());
        Ok(Self { name: name.to_owned(), directory, client, peer, arguments, tls, child: None })
    }

    /// Start it, or start it again.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&mut self) -> io::Result<()> {
        let program = program().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "etcd is not installed"))?;
        let log = std::fs::File::options().create(true).append(true).open(self.log())?;
        let mut command = base::process::command(program);
        // Nothing but these arguments decides.
        command.env_clear().args(&self.arguments).stdout(log.try_clone()?).stderr(log);
        self.child = Some(command.spawn()?);
        Ok(())
    }

    /// Wait until it has a leader.
    ///
    /// # Errors
    /// When it has ended, or has none for a minute.
    pub async fn ready(&mut self) -> io::Result<()> {
        let endpoint = Endpoint::parse(&self.endpoint()).map_err(io::Error::other)?;
        let deadline = Instant::now() + READY_MAX;
        while Instant::now() < deadline {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                return Err(self.error(&format!("has ended: {status}")));
            }
            if let Ok(channel) = Channel::dial(&endpoint, self.tls.as_ref()).await
                && let Ok(status) =
                    channel.unary::<_, StatusResponse>(path::STATUS, &StatusRequest {}, ANSWER_MAX).await
                && status.leader != 0
            {
                return Ok(());
            }
            tokio::time::sleep(ASK_PERIOD).await;
        }
        Err(self.error("has no leader"))
    }

    /// Whether it is the leader.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn is_leader(&self) -> io::Result<bool> {
        let endpoint = Endpoint::parse(&self.endpoint()).map_err(io::Error::other)?;
        let channel = Channel::dial(&endpoint, self.tls.as_ref()).await.map_err(io::Error::other)?;
        let status: StatusResponse =
            channel.unary(path::STATUS, &StatusRequest {}, ANSWER_MAX).await.map_err(io::Error::other)?;
        Ok(status.leader != 0 && Some(status.leader) == status.header.map(|header| header.member_id))
    }

    /// A connection for puts and nothing else, to measure against.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn bare(&self) -> io::Result<Bare> {
        let endpoint = Endpoint::parse(&self.endpoint()).map_err(io::Error::other)?;
        Ok(Bare(Channel::dial(&endpoint, self.tls.as_ref()).await.map_err(io::Error::other)?))
    }

    /// End it as a crash does: `kill -9`, and wait until it is gone.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn kill(&mut self) -> io::Result<()> {
        match self.child.take() {
            Some(mut child) => child.kill().await,
            None => Ok(()),
        }
    }

    /// Its process.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Where clients reach it.
    pub fn endpoint(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.client)
    }

    /// Where members reach it.
    pub fn peer(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.peer)
    }

    /// Its log.
    pub fn log(&self) -> PathBuf {
        self.directory.join(format!("{}.log", self.name))
    }

    fn error(&self, what: &str) -> io::Error {
        io::Error::other(format!("etcd member `{}` {what}; its log is {}", self.name, self.log().display()))
    }
}

fn common_arguments(name: &str, data: &Path, client: SocketAddr, peer: SocketAddr, tls: Option<&Tls>) -> Vec<String> {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let mut all = vec![
        format!("--name={name}"),
        format!("--data-dir={}", data.display()),
        format!("--listen-client-urls={scheme}://{client}"),
        format!("--advertise-client-urls={scheme}://{client}"),
        format!("--listen-peer-urls={scheme}://{peer}"),
        format!("--initial-advertise-peer-urls={scheme}://{peer}"),
        "--logger=zap".to_owned(),
    ];
    if let Some(tls) = tls {
        for of in ["", "peer-"] {
            all.push(format!("--{of}trusted-ca-file={}", tls.authority.display()));
            all.push(format!("--{of}cert-file={}", tls.certificate.display()));
            all.push(format!("--{of}key-file={}", tls.key.display()));
            all.push(format!("--{of}client-cert-auth"));
        }
    }
    all
}

/// What a put costs without anything around it.
#[derive(Clone)]
pub struct Bare(Channel);

impl Bare {
    /// Put one key.
    ///
    /// # Errors
    /// When the member does not say that it did.
    pub async fn put(&self, key: &str, value: String) -> io::Result<()> {
        let question = PutRequest { key: key.to_owned().into(), value: value.into() };
        let answer = self.0.unary::<_, PutResponse>(path::PUT, &question, PUT_MAX).await;
        answer.map(|_| ()).map_err(io::Error::other)
    }
}

/// Ports of the loopback address nobody listens on now, held until all are known.
fn free_ports(count: usize) -> io::Result<Vec<SocketAddr>> {
    let held: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<io::Result<_>>()?;
    held.iter().map(TcpListener::local_addr).collect()
}
