//! What a machine pays for the NICs of a large fleet, when few of them matter to it.
//!
//! The control plane here is the real one over the memory store, with a fleet of machines and tenants' segments; one machine is
//! *ours*. The documents it makes for ours go to a process of their own, which holds them and makes the kernel's entries as an
//! agent does, in a network namespace: its memory and its times are what an agent's fabrics cost. Three fleets differ in how many
//! NICs there are and how many matter; if cost follows what matters, the first two are alike and the third is not.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    net::{IpAddr, Ipv4Addr},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use base::{
    clock::{Clock as _, SystemClock},
    shutdown::{Shutdown, Trigger},
};
use control::{Control, ControlConfig, servers, tables};
use host::{
    fabric::FabricSet,
    link::{LinkNames, Links as _},
    linux::link::LinuxLinks,
};
use model::{
    delta::{Held, TargetDelta, TargetNews},
    id::{AccountId, ImageId, InstanceId, NetworkId, PackageId, ServerId},
    network::{Fabric, Network},
    server::Server,
    target::Target,
    time::Timestamp,
};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use store::{Store, Transaction, memory::Memory};

use super::space::run;
use crate::{
    api,
    datacenter::memory,
    report::{Row, Section},
    runtime,
};

/// First argument of the process that stands for an agent.
pub(crate) const CHILD: &str = "fabric-child";

/// Machines beside ours.
const MACHINES: u32 = 100;
/// NICs moved from one machine to another, one at a time: of those that matter, and as many of the others.
const MOVES: usize = 40;
/// How long to look for a document that shall not come: a hundred times what one takes that shall.
const SILENCE: Duration = Duration::from_millis(100);
/// Records of one commit.
const COMMIT: usize = 50;
/// Of the child's interfaces.
const PREFIX: &str = "zq";
/// The child's address between machines.
const OURS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);

/// Name, segments, and remote NICs on each; ours has one more on the first.
const FLEETS: [(&str, u32, u32); 3] = [
    ("10 remote NICs in all, all matter", 1, 10),
    ("10,000 remote NICs, 10 matter", 1_000, 10),
    ("10,000 remote NICs, all matter", 1, 10_000),
];

/// What one fleet showed.
#[derive(Default)]
struct Seen {
    entries: f64,
    agent_kib: f64,
    document_kib: f64,
    delta_bytes: Vec<f64>,
    told_ms: Vec<f64>,
    all_ms: Vec<f64>,
    first_ms: f64,
    done_ms: Vec<f64>,
    /// Documents that came of NICs that do not matter.
    needless: usize,
    strangers: usize,
}

/// Runs this part of the benchmark.
pub(super) fn measure() -> Result<Vec<Section>, String> {
    let runtime = runtime()?;
    let all: Vec<Seen> = FLEETS
        .iter()
        .map(|(name, segments, each)| {
            runtime.block_on(one_fleet(*segments, *each)).map_err(|why| format!("{name}: {why}"))
        })
        .collect::<Result<_, _>>()?;
    let rows = |unit: &'static str, value: &dyn Fn(&Seen) -> Vec<f64>| -> Vec<Row> {
        let row = |((name, _, _), seen): (&(&str, u32, u32), &Seen)| Row {
            name: (*name).to_owned(),
            unit,
            samples: Ok(value(seen)),
        };
        FLEETS.iter().zip(&all).map(row).collect()
    };
    let (needless, strangers) = all.iter().fold((0, 0), |(a, b), seen| (a + seen.needless, b + seen.strangers));
    let section = |about: &str, rows: Vec<Row>| Section { about: about.to_owned(), rows };
    Ok(vec![
        section(
            &format!(
                "A machine with one NIC on one tenant's segment, in a fleet of {MACHINES} others: entries in its kernel (forwarding and neighbours). {strangers} moves of NICs that do not matter to it made {needless} new documents for it (looked for {} ms each).",
                SILENCE.as_millis()
            ),
            rows("entries", &|seen| vec![seen.entries]),
        ),
        section(
            "Private memory that an agent's part for fabrics grows by: holding the document, making the entries.",
            rows("KiB", &|seen| vec![seen.agent_kib]),
        ),
        section("The machine's whole document, as JSON.", rows("KiB", &|seen| vec![seen.document_kib])),
        section(
            &format!("What is sent of it when one NIC that matters moves to another machine; {MOVES} moves."),
            rows("bytes", &|seen| seen.delta_bytes.clone()),
        ),
        section(
            "From the commit of such a move until the control plane has the new document.",
            rows("ms", &|seen| seen.told_ms.clone()),
        ),
        section(
            "From the commit of such a move until the control plane has made what is new for each machine that hears of it, one after another.",
            rows("ms", &|seen| seen.all_ms.clone()),
        ),
        section(
            "From the new document to the changed kernel: everything is read, one entry is written.",
            rows("ms", &|seen| seen.done_ms.clone()),
        ),
        section("From nothing to all entries in the kernel.", rows("ms", &|seen| vec![seen.first_ms])),
    ])
}

async fn one_fleet(segments: u32, each: u32) -> Result<Seen, String> {
    let fleet = Fleet::start(segments, each).await?;
    let mut agent = Agent::start()?;
    let mut target = fleet.next(0).await?;
    let first = agent.take(&target)?;
    let mut seen = Seen { document_kib: encoded(&target)?.len() as f64 / 1024.0, first_ms: first, ..Seen::default() };
    for turn in 0..MOVES {
        let nic = fleet.matters.get(turn % fleet.matters.len()).ok_or("no NIC matters")?;
        let began = Instant::now();
        fleet.shift(*nic).await?;
        let next = fleet.next(target.generation).await?;
        seen.told_ms.push(began.elapsed().as_secs_f64() * 1000.0);
        seen.delta_bytes.push(encoded(&TargetDelta::between(&target, &next))?.len() as f64);
        target = next;
        seen.done_ms.push(agent.take(&target)?);
        if let Some(stranger) = fleet.strangers.get(turn * fleet.strangers.len() / MOVES) {
            fleet.shift(*stranger).await?;
            seen.strangers += 1;
            let told = tokio::time::timeout(SILENCE, fleet.next(target.generation)).await;
            if let Ok(next) = told {
                target = next?;
                seen.needless += 1;
            }
        }
    }
    let mut held: BTreeMap<ServerId, Held> = BTreeMap::new();
    fleet.tell(&mut held).await?;
    for turn in 0..MOVES {
        let nic = fleet.matters.get(turn % fleet.matters.len()).ok_or("no NIC matters")?;
        let have = held.get(&fleet.ours).map_or(0, |held| held.generation);
        let began = Instant::now();
        fleet.shift(*nic).await?;
        fleet.next(have).await?;
        fleet.tell(&mut held).await?;
        seen.all_ms.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    let last = agent.finish()?;
    (seen.entries, seen.agent_kib) = (last.0, last.1);
    Ok(seen)
}

fn encoded(value: &impl serde::Serialize) -> Result<String, String> {
    serde_json::to_string(value).map_err(|error| format!("cannot encode a document: {error}"))
}

/// A control plane over a fleet.
struct Fleet {
    control: Control,
    ours: ServerId,
    machines: Vec<ServerId>,
    /// Remote NICs' instances on the segment that ours is on.
    matters: Vec<InstanceId>,
    /// The others.
    strangers: Vec<InstanceId>,
    _trigger: Trigger,
}

impl Fleet {
    async fn start(segments: u32, each: u32) -> Result<Self, String> {
        let text = |error: &dyn std::error::Error| base::errors::chain(error);
        let store = Store::open(Arc::new(Memory::default()), control::schema()).await.map_err(|error| text(&error))?;
        let now = Timestamp(SystemClock.now_ms());
        let ours = ServerId::random();
        let machines: Vec<ServerId> = (0..MACHINES).map(|_| ServerId::random()).collect();
        let mut records = vec![Transaction::new().create(&tables::SERVERS, server(ours, OURS, now))];
        for (server_id, last) in machines.iter().zip(1..) {
            let underlay = Ipv4Addr::from(u32::from(Ipv4Addr::new(192, 0, 2, 0)) + last);
            records.push(Transaction::new().create(&tables::SERVERS, server(*server_id, underlay, now)));
        }
        let (image, package) = (ImageId::random(), PackageId::random());
        let (mut matters, mut strangers, mut count) = (Vec::new(), Vec::new(), 0);
        for vni in 1..=segments {
            let (owner, network) = (AccountId::random(), NetworkId::random());
            records.push(Transaction::new().create(&tables::NETWORKS, segment(network, owner, vni, now)));
            let here = (vni == 1).then_some(ours);
            let elsewhere = (0..each).map(|nic| machines[((vni + nic) % MACHINES) as usize]);
            for at in here.into_iter().chain(elsewhere) {
                count += 1;
                let instance = api::instance(count, owner, image, package, at, network, now);
                match vni {
                    _ if at == ours => {}
                    1 => matters.push(instance.id),
                    _ => strangers.push(instance.id),
                }
                records.push(Transaction::new().create(&tables::INSTANCES, instance));
            }
        }
        let mut records = records.into_iter();
        loop {
            let part: Vec<Transaction> = records.by_ref().take(COMMIT).collect();
            if part.is_empty() {
                break;
            }
            let part = part.into_iter().fold(Transaction::new(), Transaction::and);
            store.commit(part).await.map_err(|error| text(&error))?;
        }
        let (trigger, shutdown) = Shutdown::new();
        let config = ControlConfig::new("bench", "/nonexistent");
        let control = Control::start(store, Arc::new(SystemClock), config, shutdown);
        Ok(Self { control, ours, machines, matters, strangers, _trigger: trigger })
    }

    /// The document of ours that is newer than generation `have`.
    async fn next(&self, have: u64) -> Result<Target, String> {
        let next = servers::watch_target(&self.control, self.ours, have).await;
        next.map_err(|error| base::errors::chain(&error))?.ok_or_else(|| "no new document came".to_owned())
    }

    /// Makes what is new for every machine whose document is another than it holds.
    async fn tell(&self, held: &mut BTreeMap<ServerId, Held>) -> Result<(), String> {
        for id in self.machines.iter().chain([&self.ours]) {
            let text = |error: control::Error| base::errors::chain(&error);
            let has = held.get(id).copied().unwrap_or(Held { generation: 0, digest: None });
            if servers::get(&self.control, *id).map_err(text)?.target_generation == has.generation {
                continue;
            }
            let news = servers::watch_news(&self.control, *id, has).await.map_err(text)?;
            let (generation, digest) = match news.ok_or("no new document came")? {
                TargetNews::Whole(target) => (target.generation, target.digest()),
                TargetNews::Delta(delta) => (delta.generation, delta.digest),
            };
            held.insert(*id, Held { generation, digest: Some(digest) });
        }
        Ok(())
    }

    /// Moves an instance to the next machine.
    async fn shift(&self, id: InstanceId) -> Result<(), String> {
        let moved = self.control.store.update(|snapshot| {
            let Some(entry) = snapshot.get(&tables::INSTANCES, &id.to_string()) else {
                return Ok((Transaction::new(), ()));
            };
            let mut instance = entry.value.clone();
            let at = self.machines.iter().position(|machine| *machine == instance.server).unwrap_or(0);
            instance.server = self.machines[(at + 1) % self.machines.len()];
            Ok::<_, store::CommitError>((Transaction::new().replace(&tables::INSTANCES, &entry, instance), ()))
        });
        moved.await.map(drop).map_err(|error| base::errors::chain(&error))
    }
}

fn server(id: ServerId, underlay: Ipv4Addr, now: Timestamp) -> Server {
    Server {
        last_seen_at: Some(now),
        underlay: Some(IpAddr::from(underlay)),
        underlay_mtu: Some(1500),
        ..Server::new(id, format!("m-{}", id.short()), now)
    }
}

fn segment(id: NetworkId, owner: AccountId, vni: u32, now: Timestamp) -> Network {
    Network {
        id,
        name: format!("segment-{vni}"),
        description: None,
        owners: vec![owner],
        public: false,
        nic_tag: Fabric::tag(vni),
        vlan: 0,
        subnet: Some(ipnet::Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8)),
        range_start: Some(Ipv4Addr::new(10, 0, 0, 1)),
        range_end: Some(Ipv4Addr::new(10, 255, 255, 254)),
        gateway: None,
        resolvers: Vec::new(),
        routes: BTreeMap::new(),
        mtu: 1400,
        host_gateway: false,
        nat: false,
        fabric: Some(Fabric { vni, internet_nat: false, routed: false }),
        subnet6: None,
        range6: None,
        gateway6: None,
        created_at: now,
    }
}

/// The process that stands for an agent.
struct Agent {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Agent {
    fn start() -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
        let mut child = Command::new(program)
            .arg(CHILD)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("cannot start this program again: {error}"))?;
        let to = child.stdin.take().ok_or("the child has no input")?;
        let from = BufReader::new(child.stdout.take().ok_or("the child has no output")?);
        Ok(Self { child, to, from })
    }

    /// Hands it a document; milliseconds until the kernel is as it says.
    fn take(&mut self, target: &Target) -> Result<f64, String> {
        self.ask(&encoded(target)?)?["ms"].as_f64().ok_or_else(|| "the child did not say how long it took".to_owned())
    }

    /// Entries in its kernel, and KiB it has grown by.
    fn finish(mut self) -> Result<(f64, f64), String> {
        let last = self.ask("null")?;
        // It has something to clear away.
        self.child.wait().map_err(|error| format!("cannot wait for the child: {error}"))?;
        let figure = |name: &str| last[name].as_f64().ok_or_else(|| format!("the child did not say {name}"));
        Ok((figure("entries")?, figure("grown_kib")?))
    }

    fn ask(&mut self, line: &str) -> Result<Value, String> {
        let text = |error: std::io::Error| format!("cannot talk to the child: {error}");
        writeln!(self.to, "{line}").and_then(|()| self.to.flush()).map_err(text)?;
        let mut answer = String::new();
        self.from.read_line(&mut answer).map_err(text)?;
        let answer: Value =
            serde_json::from_str(&answer).map_err(|_| "the child ended without an answer".to_owned())?;
        match answer["error"].as_str() {
            Some(why) => Err(why.to_owned()),
            None => Ok(answer),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It has ended by itself unless something went wrong.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The child's work: makes each document it reads so, and says how long that took; `null` asks for what it came to.
pub(crate) fn child() -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|error| format!("cannot make a network namespace: {error}"))?;
    run("ip link set lo up")?;
    let links = LinuxLinks::new(LinkNames::new(PREFIX).map_err(|error| error.to_string())?);
    let answered = answer_all(&links);
    // The namespace of its wires has a name and would outlive it.
    links.program(&FabricSet::default()).map_err(|error| base::errors::chain(&error))?;
    answered
}

fn answer_all(links: &LinuxLinks) -> Result<(), String> {
    let private = || memory(std::process::id()).map_or(f64::NAN, |(_, private)| private / 1024.0);
    let (mut before, mut held): (Option<f64>, Option<(Target, FabricSet)>) = (None, None);
    for line in std::io::stdin().lines() {
        let line = line.map_err(|error| format!("cannot read a document: {error}"))?;
        if line == "null" {
            let name = LinkNames::new(PREFIX).map_err(|error| error.to_string())?;
            let vnis: Vec<u32> = held.iter().flat_map(|(_, set)| set.segments.keys().copied()).collect();
            let entries = entries(&name, &vnis)?;
            drop(line);
            println!("{}", json!({"entries": entries, "grown_kib": private() - before.unwrap_or(f64::NAN)}));
            return Ok(());
        }
        before.get_or_insert_with(private);
        let target: Target = serde_json::from_str(&line).map_err(|error| format!("cannot read a document: {error}"))?;
        let began = Instant::now();
        let fabrics = FabricSet::of(&target);
        let answer = match links.program(&fabrics) {
            Ok(()) => json!({"ms": began.elapsed().as_secs_f64() * 1000.0}),
            Err(error) => json!({"error": base::errors::chain(&error)}),
        };
        held = Some((target, fabrics));
        println!("{answer}");
    }
    Ok(())
}

/// Entries that lead to other machines, and addresses bridges answer for.
fn entries(names: &LinkNames, vnis: &[u32]) -> Result<usize, String> {
    let mut count = 0;
    for vni in vnis {
        let known = run(&format!("bridge fdb show dev {}", names.vxlan(*vni)))?;
        count += known.lines().filter(|line| line.contains("90:b8:d0")).count();
    }
    let neighbours = run("ip neigh show nud permanent")?;
    Ok(count + neighbours.lines().filter(|line| line.contains("90:b8:d0")).count())
}
