//! From a tenant's request for a rule to the last packet it lets through, with nothing in memory and nothing left out: a datacenter of processes, a
//! real kernel, and a stream of packets between two zones that the rule cuts.
//!
//! The stream says by itself when it was cut: the moment its last packet arrived. So the end of the measure depends on no report and no look
//! at the kernel; it is late by the gap between two packets at most.

use std::{
    fs::File,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use cloudapi::types::CreateMachine;
use futures_util::future::try_join_all;
use http::Method;
use model::{id::InstanceId, instance::TagValue};
use nix::sched::{CloneFlags, setns};
use serde_json::json;

use crate::{
    datacenter::Datacenter,
    report::{Row, Section},
    runtime,
};

/// Filtered instances on the machine besides the sender.
const OTHERS: usize = 200;
/// Rules besides the one that cuts.
const RULES: u16 = 100;
/// Requests under way while they are made.
const AT_ONCE: usize = 8;
/// Rules that cut the stream, one after another.
const ROUNDS: u16 = 50;
/// Where the stream goes.
const PORT: u16 = 4_321;
/// Between two packets, without what the kernel makes of so short a sleep.
const GAP: Duration = Duration::from_micros(50);
/// A stream without a packet for so long is cut; one with a packet within [`FLOWING`] flows.
const SILENCE: Duration = Duration::from_millis(300);
const FLOWING: Duration = Duration::from_millis(10);
/// Longest wait for a stream to be cut or to flow.
const PATIENCE: Duration = Duration::from_secs(60);

/// What one rule took, milliseconds.
#[derive(Default)]
struct Times {
    cut_asked: Vec<f64>,
    cut_answered: Vec<f64>,
    flow_answered: Vec<f64>,
}

pub(super) fn measure() -> Result<Vec<Section>, String> {
    let runtime = runtime()?;
    let (datacenter, from, stream) = runtime.block_on(stage())?;
    let mut times = Times::default();
    thread::scope(|scope| {
        scope.spawn(|| stream.send());
        scope.spawn(|| stream.receive());
        let measured = runtime.block_on(rounds(&datacenter, from, &stream, &mut times));
        stream.over.store(true, Ordering::Relaxed);
        measured
    })?;
    Ok(sections(times))
}

/// The datacenter, full, and the stream's zones; the sender's id.
async fn stage() -> Result<(Datacenter, InstanceId, Stream), String> {
    let datacenter = Datacenter::start("closing").await?;
    let to = datacenter.create().await?.id;
    let from = datacenter.create_as(filtered(0)).await?.id;
    furnish(&datacenter).await?;
    let machine = datacenter.wait(to, "running").await?;
    let address = machine.primary_ip.ok_or("the receiver has no address")?;
    let stream = Stream::new(&datacenter, from, to, address)?;
    Ok((datacenter, from, stream))
}

fn sections(times: Times) -> Vec<Section> {
    let row = |name: &str, samples| Row { name: name.to_owned(), unit: "ms", samples: Ok(samples) };
    vec![Section {
        about: format!(
            "A stream of packets between two zones of one real machine, one of them filtered beside {OTHERS} others with {RULES} rules, and a rule of the tenant that cuts it and is deleted again, {ROUNDS} times: until the last packet arrives, and until the next one does. A packet leaves every 50 to 150 µs; 0 is a stream that was cut before the answer arrived."
        ),
        rows: vec![
            row("a rule more, from its request to the last packet", times.cut_asked),
            row("a rule more, from its 201 to the last packet", times.cut_answered),
            row("a rule less, from its 204 to the first packet", times.flow_answered),
        ],
    }]
}

/// An instance with a firewall, and a tag for rules to refer to.
fn filtered(number: usize) -> CreateMachine {
    let role = TagValue::Text(format!("r{}", number % 20));
    CreateMachine { firewall_enabled: Some(true), tags: [("role".to_owned(), role)].into(), ..CreateMachine::default() }
}

/// Fills the machine.
async fn furnish(datacenter: &Datacenter) -> Result<(), String> {
    for first in (0..OTHERS).step_by(AT_ONCE) {
        let some = (first..OTHERS.min(first + AT_ONCE)).map(|number| datacenter.create_as(filtered(number)));
        try_join_all(some).await?;
    }
    for number in 0..RULES {
        let role = number % 20;
        let text = format!("FROM tag role = r{role} TO all vms ALLOW tcp PORT {}", 1_000 + number);
        create_rule(datacenter, &text).await?;
    }
    Ok(())
}

/// Makes a rule and returns its id.
async fn create_rule(datacenter: &Datacenter, text: &str) -> Result<String, String> {
    let body = json!({"rule": text, "enabled": true});
    let made = datacenter.client.call(Method::POST, "/my/fwrules", Some(&body)).await;
    let made = made.map_err(|error| format!("cannot create a rule: {error}"))?;
    Ok(made["id"].as_str().ok_or("a rule without an id")?.to_owned())
}

async fn rounds(datacenter: &Datacenter, from: InstanceId, stream: &Stream, times: &mut Times) -> Result<(), String> {
    for _ in 0..ROUNDS {
        stream.wait_flowing().await?;
        let asked = stream.now();
        let rule = create_rule(datacenter, &format!("FROM vm {from} TO any BLOCK udp PORT {PORT}")).await?;
        let answered = stream.now();
        let last = stream.wait_cut().await?;
        times.cut_asked.push(milliseconds(last.saturating_sub(asked)));
        times.cut_answered.push(milliseconds(last.saturating_sub(answered)));

        stream.first.store(0, Ordering::Relaxed);
        let deleted = datacenter.client.call(Method::DELETE, &format!("/my/fwrules/{rule}"), None).await;
        deleted.map_err(|error| format!("cannot delete a rule: {error}"))?;
        let answered = stream.now();
        stream.wait_flowing().await?;
        times.flow_answered.push(milliseconds(stream.first.load(Ordering::Relaxed).saturating_sub(answered)));
    }
    Ok(())
}

/// Packets from one zone to another, and when they arrive; times in nanoseconds since its begin.
struct Stream {
    begin: Instant,
    namespaces: [File; 2],
    to: SocketAddr,
    /// When the newest packet arrived.
    last: AtomicU64,
    /// When the first one did since this was set to 0.
    first: AtomicU64,
    /// One of the threads failed.
    failed: AtomicBool,
    over: AtomicBool,
}

impl Stream {
    fn new(datacenter: &Datacenter, from: InstanceId, to: InstanceId, address: IpAddr) -> Result<Self, String> {
        let open = |id: InstanceId| {
            let path: PathBuf = datacenter.settings.paths.run.join("zones").join(id.to_string()).join("ns/net");
            File::open(&path).map_err(|error| format!("cannot open {}: {error}", path.display()))
        };
        Ok(Self {
            begin: Instant::now(),
            namespaces: [open(from)?, open(to)?],
            to: SocketAddr::new(address, PORT),
            last: AtomicU64::new(0),
            first: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            over: AtomicBool::new(false),
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Runs on a thread of its own, which ends in the zone.
    fn send(&self) {
        let work = || -> Result<(), String> {
            let socket = self.socket(0, 0)?;
            while !self.over.load(Ordering::Relaxed) {
                // One that is cut may be refused.
                let _ = socket.send_to(b"packet", self.to);
                thread::sleep(GAP);
            }
            Ok(())
        };
        self.said("send", work());
    }

    /// Likewise.
    fn receive(&self) {
        let work = || -> Result<(), String> {
            let socket = self.socket(1, PORT)?;
            socket.set_read_timeout(Some(FLOWING)).map_err(|error| error.to_string())?;
            let mut buffer = [0; 64];
            while !self.over.load(Ordering::Relaxed) {
                if socket.recv(&mut buffer).is_ok() {
                    let now = self.now();
                    self.last.store(now, Ordering::Relaxed);
                    let _ = self.first.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
                }
            }
            Ok(())
        };
        self.said("receive", work());
    }

    fn socket(&self, zone: usize, port: u16) -> Result<UdpSocket, String> {
        setns(&self.namespaces[zone], CloneFlags::CLONE_NEWNET)
            .map_err(|errno| format!("cannot enter a zone's network: {errno}"))?;
        UdpSocket::bind(("0.0.0.0", port)).map_err(|error| format!("cannot open a socket in a zone: {error}"))
    }

    fn said(&self, what: &str, outcome: Result<(), String>) {
        if let Err(why) = outcome {
            eprintln!("bench: failed to {what} the stream: {why}");
            self.failed.store(true, Ordering::Relaxed);
        }
    }

    /// Waits until packets arrive.
    async fn wait_flowing(&self) -> Result<(), String> {
        self.wait("flow", |age| age < FLOWING).await
    }

    /// Waits until none has arrived for a while; when the last one did.
    async fn wait_cut(&self) -> Result<u64, String> {
        self.wait("be cut", |age| age >= SILENCE).await?;
        Ok(self.last.load(Ordering::Relaxed))
    }

    async fn wait(&self, what: &str, holds: impl Fn(Duration) -> bool) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let age = Duration::from_nanos(self.now().saturating_sub(self.last.load(Ordering::Relaxed)));
            if self.last.load(Ordering::Relaxed) > 0 && holds(age) {
                return Ok(());
            }
            if Instant::now() > deadline || self.failed.load(Ordering::Relaxed) {
                return Err(format!("the stream does not {what}"));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn milliseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}
