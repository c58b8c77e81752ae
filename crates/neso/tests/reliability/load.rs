//! Clients at work: a process of its own on a machine of its own, that writes down what it did and was told.
//!
//! It reads one line of JSON ([`Orders`]), works until its input ends, and prints a line of JSON for each operation. Whatever else it reads are marks: it
//! prints them back with its own clock's time, so that faults and operations stand on one line of time.
//!
//! Each client is a loop: draw an object, what to do with it and which headnode to ask first. It knows the addresses of all headnodes, as a profile may
//! name them, and [`Client`] does what it does for everybody: a request that was not sent, or that the headnode says it cannot do now, goes to the
//! next one; so does one that was not answered in time, a change under the name it had.

use std::{
    io::{BufRead as _, Write as _},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use base::shutdown::Shutdown;
use cloudapi::{
    client::{Client, ClientError, Method, Profile, Signer},
    types::{CreateMachine, NetworkChoice},
};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::history::{Event, Got, InstanceLine, Line, Mark, Want};

/// How long a call may take with all that the client does by itself; it gives up sooner.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two operations of one client.
const PAUSE: Duration = Duration::from_millis(20);
/// Between two instances.
const MAKE_PAUSE: Duration = Duration::from_millis(700);
/// How often making an instance is tried, at one headnode after the other.
const ROUNDS: usize = 12;
/// Operations of 16 that set, and up to which are to remove; the rest read.
const SETS: u64 = 5;
const REMOVES: u64 = 6;

/// What the load is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Orders {
    /// CloudAPI of each headnode.
    pub(crate) urls: Vec<String>,
    /// The tenant.
    pub(crate) account: String,
    /// Its private key.
    pub(crate) key: PathBuf,
    /// Instances whose tags are the objects.
    pub(crate) instances: Vec<String>,
    /// How their names begin, which no tags of theirs did before: nobody knows what those are.
    pub(crate) prefix: String,
    /// Tags of each.
    pub(crate) tags: u64,
    /// Clients.
    pub(crate) clients: usize,
    /// What instances are made of: image, package, network; none are made without.
    pub(crate) make: Option<[String; 3]>,
}

/// The body of the child process.
pub(crate) fn run() {
    let mut orders = String::new();
    std::io::stdin().lock().read_line(&mut orders).expect("orders");
    let orders: Arc<Orders> = Arc::new(serde_json::from_str(&orders).expect("orders are JSON"));
    let began = Instant::now();
    let (end, shutdown) = Shutdown::new();
    base::task::thread("marks", move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            print(&Event::Mark(Mark { name: line, at: now(began) }));
        }
        // Its input ends when whoever started it is done, or dead.
        drop(end);
    })
    .expect("a thread");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let workers = (0..orders.clients).map(|number| {
            let worker = Worker::new(orders.clone(), number, began);
            base::task::spawn("client", worker.work(shutdown.clone()))
        });
        let maker = Worker::new(orders.clone(), orders.clients, began);
        let making = base::task::spawn("maker", maker.make(shutdown.clone()));
        for worker in workers.chain([making]).collect::<Vec<_>>() {
            worker.await.expect("a client goes on to the end");
        }
    });
}

fn now(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn print(event: &Event) {
    let mut line = serde_json::to_vec(event).expect("events are plain data");
    line.push(b'\n');
    // Whoever started it is dead then, and it ends.
    let _ = std::io::stdout().lock().write_all(&line);
}

struct Worker {
    orders: Arc<Orders>,
    number: usize,
    /// One for each headnode, which begins with that one.
    clients: Vec<Client>,
    began: Instant,
    values: u64,
}

impl Worker {
    fn new(orders: Arc<Orders>, number: usize, began: Instant) -> Self {
        let client = |first: usize| {
            let mut urls = orders.urls.clone();
            urls.rotate_left(first);
            let signer = Signer::from_file(&orders.key).expect("the tenant's key");
            let profile = Profile {
                name: "load".to_owned(),
                url: urls.join(","),
                account: orders.account.clone(),
                act_as: None,
                key_id: signer.fingerprint_md5.clone(),
                insecure: true,
                ca_file: None,
            };
            Client::new(&profile, signer, seconds).expect("a client")
        };
        let clients = (0..orders.urls.len()).map(client).collect();
        Self { orders, number, clients, began, values: 0 }
    }

    async fn work(mut self, shutdown: Shutdown) {
        while !shutdown.is_set() {
            let instance = &self.orders.instances[self.draw(self.orders.instances.len() as u64) as usize];
            let (instance, tag) = (instance.clone(), format!("{}-{}", self.orders.prefix, self.draw(self.orders.tags)));
            self.values += 1;
            let want = match self.draw(16) {
                dice if dice < SETS => Want::Set(self.values * 1_000 + self.number as u64),
                dice if dice < REMOVES => Want::Remove,
                _ => Want::Read,
            };
            let headnode = self.draw(self.clients.len() as u64) as usize;
            let called = now(self.began);
            let asked = tokio::time::timeout(PATIENCE, self.ask(headnode, &instance, &tag, want)).await;
            let got = asked.unwrap_or_else(|_| Got::Unknown("no answer".to_owned()));
            let returned = now(self.began);
            let object = format!("{instance}/{tag}");
            print(&Event::Line(Line { client: self.number, headnode, object, want, got, called, returned }));
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Makes an instance and deletes the one before, over and over. Each call has a name and is sent to one headnode after the other until one
    /// answers, as our own tools do it.
    async fn make(self, shutdown: Shutdown) {
        let Some([image, package, network]) = self.orders.make.clone() else { return };
        let mut before = None;
        for number in 0.. {
            let name = format!("{}-{number}", self.orders.prefix);
            let wanted = CreateMachine {
                name: Some(name.clone()),
                image: image.clone(),
                package: package.clone(),
                networks: vec![NetworkChoice::Id(network.parse().expect("a network's id"))],
                ..CreateMachine::default()
            };
            let call = format!("{name}-{}", base::random::bits());
            let mut made = None;
            for attempt in 0..ROUNDS {
                let client = &self.clients[(number + attempt) % self.clients.len()];
                let asked = tokio::time::timeout(PATIENCE, client.machine_create_named(&wanted, &call)).await;
                made =
                    Some(asked.unwrap_or_else(|_| {
                        Err(ClientError::Timeout { url: String::new(), seconds: PATIENCE.as_secs() })
                    }));
                if matches!(&made, Some(Ok(_))) || shutdown.is_set() {
                    break;
                }
                tokio::time::sleep(PAUSE).await;
            }
            let Some(made) = made else { return };
            let got = made.as_ref().map_or_else(|error| Got::Unknown(base::errors::chain(error)), |_| Got::Done);
            self.say(name.clone(), true, got);
            if let Some((name, id)) = before.take() {
                let client = &self.clients[number % self.clients.len()];
                let asked = tokio::time::timeout(PATIENCE, client.machine_delete(id)).await;
                let got = match asked {
                    Ok(Ok(())) => Got::Done,
                    Ok(Err(error)) => Got::Unknown(base::errors::chain(&error)),
                    Err(_) => Got::Unknown("no answer".to_owned()),
                };
                self.say(name, false, got);
            }
            // Every third stays.
            before = made.ok().filter(|_| number % 3 != 0).map(|machine| (name, machine.id));
            if shutdown.is_set() {
                return;
            }
            tokio::time::sleep(MAKE_PAUSE).await;
        }
    }

    fn say(&self, name: String, make: bool, got: Got) {
        print(&Event::Instance(InstanceLine { name, make, got, returned: now(self.began) }));
    }

    /// What came of an operation.
    async fn ask(&self, headnode: usize, instance: &str, tag: &str, want: Want) -> Got {
        let client = &self.clients[headnode];
        let (tags, one) = (format!("/my/machines/{instance}/tags"), format!("/my/machines/{instance}/tags/{tag}"));
        let answer = match want {
            Want::Set(value) => client.call(Method::POST, &tags, Some(&json!({ tag: value }))).await,
            Want::Remove => client.call(Method::DELETE, &one, None).await,
            Want::Read => client.call(Method::GET, &one, None).await,
        };
        match answer {
            _ if want == Want::Read && client.stale().is_some() => Got::Stale,
            Ok(value) if want == Want::Read => match value.as_u64().or_else(|| value.as_str()?.parse().ok()) {
                Some(value) => Got::Value(value),
                None => Got::Refused(format!("a tag that is {value}")),
            },
            Ok(_) => Got::Done,
            // The refusal is the last sending's; another one may have done it.
            Err(ClientError::Refused { status: StatusCode::NOT_FOUND, .. })
                if want == Want::Remove && client.resent() =>
            {
                Got::AbsentByNow
            }
            Err(error) if want != Want::Read && client.resent() => Got::Unknown(base::errors::chain(&error)),
            Err(ClientError::Refused { status: StatusCode::NOT_FOUND, .. }) if !matches!(want, Want::Set(_)) => {
                Got::Absent
            }
            Err(ClientError::Refused { status, body })
                if status.is_client_error() || status == StatusCode::SERVICE_UNAVAILABLE =>
            {
                Got::Refused(format!("{status}: {}", body.message))
            }
            Err(ClientError::Connect { source, .. }) if is_unsent(source.as_ref()) => {
                Got::Refused(format!("not sent: {}", base::errors::chain(source.as_ref())))
            }
            Err(error) => Got::Unknown(base::errors::chain(&error)),
        }
    }

    fn draw(&self, below: u64) -> u64 {
        base::random::bits() % below
    }
}

/// Whether there was no connection to send anything on.
fn is_unsent(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.any(|cause| {
        let refused = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        matches!(refused, Some(std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::HostUnreachable))
    })
}

fn seconds() -> i64 {
    use base::clock::Clock as _;
    base::clock::SystemClock.now_ms() / 1_000
}
