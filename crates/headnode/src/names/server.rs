//! The server of names on this machine: its sockets, and what of the settings is followed while it runs.
//!
//! An address that something else has is tried again until it is free. Secondaries, their keys and the limit on equal answers are read from the
//! settings and the keys' files again and again, and count at once when they are others; what is wrong then is said, and what was right before
//! stays. Everything else in the settings counts from the next start on.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base::{clock::Clock, shutdown::Shutdown, watch};
use dns::{Policy, Zones};

use super::policy;
use crate::settings::{Names, Settings, SharedNames};

/// How often addresses that were taken are tried, and settings looked at.
const AGAIN: Duration = Duration::from_secs(10);
/// Threads that answer over UDP, an address: one answers more than a datacenter asks, and a machine has instances to run.
const THREADS_MAX: usize = 4;

/// The name server on this machine, for who wants to see how it is. Cheap to clone.
#[derive(Clone, Default)]
pub struct NameServer {
    // A leaf lock: written when something about the server changes, read by operators.
    status: Arc<Mutex<Status>>,
}

/// How it is.
#[derive(Clone, Default)]
pub struct Status {
    /// Where it answers.
    pub addresses: Vec<SocketAddr>,
    /// Where it should and does not, and why.
    pub refused: Vec<(SocketAddr, String)>,
    /// Why it does not run, or goes on as it was.
    pub error: Option<String>,
    /// What the settings say of secondaries, as it is followed now.
    pub said: Option<Arc<SharedNames>>,
    /// What it has done; `None` while it does not run.
    pub counters: Option<Arc<dns::Counters>>,
    /// Itself.
    pub running: Option<Arc<dns::Server>>,
}

/// Where and what the server answers.
pub(super) struct Serving {
    pub(super) names: Names,
    /// The settings' file, where they came from one.
    pub(super) file: Option<std::path::PathBuf>,
    /// Where other machines reach this one, as far as that is known.
    pub(super) own: Option<IpAddr>,
    pub(super) zones: watch::Receiver<Arc<Zones>>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) shutdown: Shutdown,
}

impl NameServer {
    /// How it is now.
    pub fn status(&self) -> Status {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn note(&self, status: Status) {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

impl Serving {
    /// Keeps a server running until the shutdown.
    pub(super) async fn keep(mut self, server: NameServer) {
        let wanted = self.names.addresses(self.own);
        let mut running: Option<Arc<dns::Server>> = None;
        let mut followed: Option<Policy> = None;
        let mut told: Vec<String> = Vec::new();
        loop {
            let mut troubles: Vec<String> = self.read_again().err().into_iter().collect();
            match policy::policy(&self.names) {
                Err(why) => troubles.push(base::errors::chain(&why)),
                Ok(policy) if followed.as_ref() == Some(&policy) => {}
                Ok(policy) => {
                    if let Some(running) = &running {
                        tracing::info!("secondaries are served as the settings say now");
                        running.set_policy(policy.clone());
                    }
                    followed = Some(policy);
                }
            }
            let had: Vec<SocketAddr> = running.as_ref().map(|running| running.addresses()).unwrap_or_default();
            let mut refused: Vec<(SocketAddr, String)> = Vec::new();
            // Without a policy it is not known who may have zones.
            if let Some(policy) = &followed {
                for address in wanted.iter().copied().filter(|address| !had.contains(address)) {
                    if let Err(why) = self.listen(&mut running, policy, address).await {
                        refused.push((address, why));
                    }
                }
            }
            if running.is_none() && followed.is_some() {
                troubles.push("nowhere to answer: every address is taken".to_owned());
            }
            let texts =
                troubles.iter().cloned().chain(refused.iter().map(|(address, why)| format!("{address}: {why}")));
            let texts: Vec<String> = texts.collect();
            if texts != told && !texts.is_empty() {
                tracing::warn!(
                    troubles = texts.join("; "),
                    "names are not answered for as the settings say; trying again, and `neso doctor` says what to do"
                );
            }
            told = texts;
            server.note(Status {
                addresses: running.as_ref().map(|running| running.addresses()).unwrap_or_default(),
                refused,
                error: troubles.first().cloned(),
                said: followed.is_some().then(|| Arc::new(self.names.shared.clone())),
                counters: running.as_ref().map(|running| running.counters()),
                running: running.clone(),
            });
            let shutdown = self.shutdown.clone();
            if shutdown.unless(self.clock.sleep(AGAIN)).await.is_none() {
                return;
            }
        }
    }

    /// Listens at one more address, the first of all among them.
    async fn listen(
        &self,
        running: &mut Option<Arc<dns::Server>>,
        policy: &Policy,
        address: SocketAddr,
    ) -> Result<(), String> {
        let outcome = match running {
            Some(running) => running.also_listen(address).await,
            None => {
                let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
                let settings = dns::Settings {
                    addresses: vec![address],
                    threads,
                    limits: dns::Limits::default(),
                    policy: policy.clone(),
                };
                let (zones, clock, shutdown) = (self.zones.clone(), self.clock.clone(), self.shutdown.clone());
                let started = dns::Server::start(settings, zones, clock, shutdown).await;
                started.map(|server| *running = Some(Arc::new(server)))
            }
        };
        outcome.map_err(|error| base::errors::chain(&error))?;
        tracing::info!(%address, "names are answered for");
        Ok(())
    }

    /// Takes from the settings' file what may change while the server runs.
    fn read_again(&mut self) -> Result<(), String> {
        let Some(file) = &self.file else { return Ok(()) };
        let said = read_shared(file)?;
        let own = &mut self.names.shared;
        (own.keys, own.transfers, own.notify) = (said.keys, said.transfers, said.notify);
        own.answers_per_second = said.answers_per_second;
        Ok(())
    }
}

fn read_shared(file: &Path) -> Result<SharedNames, String> {
    Settings::load(file).map(|settings| settings.names.shared).map_err(|error| base::errors::chain(&error))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use base::clock::SystemClock;
    use dns::{Data, Rrset, Soa, View, Zone};

    use super::*;

    /// How long anything may take on a loaded machine.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn zones() -> Arc<Zones> {
        let name = |text: &str| text.parse::<dns::Name>().unwrap();
        let soa = Soa {
            primary: name("ns.example"),
            mailbox: name("h.example"),
            refresh_s: 60,
            retry_s: 60,
            expire_s: 600,
            negative_s: 30,
            ttl_s: 30,
        };
        let servers = Rrset::new(30, &[Data::Ns(name("ns.example"))]).unwrap();
        let zone = Zone::load(name("example"), soa, 7, [(name("example"), vec![servers])], []).unwrap();
        Arc::new(Zones::new([(View::Everybody, zone)]))
    }

    const NO_ERROR: u8 = 0;
    const REFUSED: u8 = 5;

    /// The outcome of asking for the whole zone.
    fn asked_for_all(address: SocketAddr) -> u8 {
        use std::io::{Read as _, Write as _};
        let question = b"\x00\x07\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x00\x00\xfc\x00\x01";
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&[&(question.len() as u16).to_be_bytes(), question.as_slice()].concat()).unwrap();
        let mut head = [0; 6];
        stream.read_exact(&mut head).unwrap();
        head[5] & 0x0f
    }

    async fn until(what: &str, so: impl Fn() -> bool) {
        let waited = tokio::time::timeout(PATIENCE, async {
            while !so() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        assert!(waited.await.is_ok(), "waited too long until {what}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_taken_address_is_had_later_and_secondaries_are_followed() {
        let clock = Arc::new(base::clock::ManualClock::new(SystemClock.now_ms()));
        let (first, taken) = (UdpSocket::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.2:0").unwrap());
        let addresses = [first.local_addr().unwrap(), taken.local_addr().unwrap()];
        drop(first);
        let directory = tempfile::Builder::new().prefix("domain-").tempdir().unwrap();
        let file = directory.path().join("neso.toml");
        let text = Settings::generate(None).unwrap();
        std::fs::write(&file, &text).unwrap();
        let settings = Settings::load(&file).unwrap();
        let mut names = settings.names.clone();
        names.listen = Some(addresses.to_vec());
        let (trigger, shutdown) = Shutdown::new();
        let (sender, receiver) = watch::channel(zones());
        let server = NameServer::default();
        let serving =
            Serving { names, file: Some(file.clone()), own: None, zones: receiver, clock: clock.clone(), shutdown };
        let task = base::task::spawn("name server", serving.keep(server.clone()));
        until("the first address is had", || server.status().addresses == addresses[..1]).await;
        assert_eq!(server.status().refused[0].0, addresses[1]);
        drop(taken);
        let turn = || clock.advance(AGAIN);
        until("the other is had too", || {
            turn();
            server.status().addresses == addresses && server.status().refused.is_empty()
        })
        .await;

        assert_eq!(asked_for_all(addresses[1]), REFUSED);
        let with = |more: &str| text.replace("\n[first_run]", &format!("\n{more}\n[first_run]"));
        std::fs::write(&file, with("[[names.transfers]]\nnetwork = \"127.0.0.0/8\"")).unwrap();
        let transfers = || server.status().said.map_or(0, |said| said.transfers.len());
        until("a secondary may have zones", || {
            turn();
            transfers() == 1
        })
        .await;
        std::fs::write(&file, with("[[names.transfers]]\nnetwork = \"nowhere\"")).unwrap();
        until("what is wrong is said", || {
            turn();
            server.status().error.is_some_and(|error| error.contains("settings"))
        })
        .await;
        assert_eq!(transfers(), 1, "and what was right stays");
        assert_eq!(asked_for_all(addresses[1]), NO_ERROR);
        assert!(server.status().running.is_some());
        drop(sender);
        trigger.fire();
        task.await.unwrap();
    }
}
