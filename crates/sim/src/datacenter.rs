//! The parts: machines and a store that survive everything, headnodes and agents that come and go.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use base::{
    shutdown::{Shutdown, Trigger},
    task::Group,
    watch,
};
use control::{
    Control, ControlConfig,
    headnodes::{self, Announcement, Measure},
};
use model::{
    headnode::DiskSigns,
    id::{AccountId, ImageId, NetworkId, ServerId},
    part::Digest,
    unit::Mib,
};
use store::{Store, memory::Memory};
use tokio::task::JoinHandle;

use crate::{
    chance::Chance,
    clock::VirtualClock,
    furnish,
    link::{Cable, Doors, Headnode},
    machine::Node,
};

/// Memory of a machine: so little that they fill up.
const MEMORY_GIB: [u64; 3] = [2, 3, 4];

/// How wrong a machine's clock may be, milliseconds.
const CLOCK_WRONG_MS: i64 = 24 * 60 * 60 * 1_000;

/// Machines whose clock is wrong, in a hundred.
const CLOCK_WRONG_PERCENT: u64 = 10;

/// A datacenter.
pub(crate) struct Datacenter {
    /// Its machines; they survive agents.
    pub(crate) nodes: Vec<Node>,
    /// The tenants.
    pub(crate) accounts: Vec<AccountId>,
    /// The image there is.
    pub(crate) image: ImageId,
    /// The operator's networks.
    pub(crate) networks: Vec<NetworkId>,
    /// The control plane's newest handle, for looking.
    pub(crate) control: Control,
    /// Highest generation of each machine's document that was seen; must never fall.
    pub(crate) generations: BTreeMap<ServerId, u64>,
    doors: Doors,
    /// Headnodes by their places, each over a mirror of its own.
    running: Vec<Option<Running>>,
    /// The place of the one that was started last, whose handle is `control`.
    newest: usize,
    runs: u64,
    engine: Arc<Memory>,
    clock: VirtualClock,
    config: ControlConfig,
    _directory: tempfile::TempDir,
}

/// Headnodes over the one store.
const HEADNODES: usize = 2;

struct Running {
    control: Control,
    group: Group,
    trigger: Trigger,
    tasks: Vec<JoinHandle<()>>,
}

impl Datacenter {
    /// A datacenter ready for tenants: accounts, packages, networks, image and machines are there, headnode and agents run.
    pub(crate) async fn start(seed: u64, nodes: usize) -> Result<Self, control::Error> {
        let directory = tempfile::tempdir().map_err(|source| control::Error::File {
            operation: "make a directory for a simulation".to_owned(),
            source,
        })?;
        let config = ControlConfig::new("sim", directory.path().join("images"));
        let clock = VirtualClock::new();
        let engine = Arc::new(Memory::new());
        let mut running = Vec::new();
        let (control, first) = start_headnode(engine.clone(), clock, config.clone(), 0).await?;
        running.push(Some(first));
        let (accounts, image, networks) = furnish::datacenter(&control, 1 + nodes.div_ceil(10).min(11)).await?;
        let doors: Doors = Arc::new(watch::Sender::new(vec![None; HEADNODES]));
        let mut chance = Chance::new(!seed);
        let mut made = Vec::with_capacity(nodes);
        for number in 0..u16::try_from(nodes).unwrap_or(u16::MAX) {
            let server = ServerId::from_random(base::random::wide_bits());
            furnish::server(&control, server, number).await?;
            let memory = Mib(1_024 * chance.pick(&MEMORY_GIB).copied().unwrap_or(2));
            let wrong = i64::try_from(chance.below(2 * CLOCK_WRONG_MS.unsigned_abs())).unwrap_or(0) - CLOCK_WRONG_MS;
            let clock = clock.wrong_by(if chance.percent(CLOCK_WRONG_PERCENT) { wrong } else { 0 });
            let cable = Cable::new(chance.bits(), doors.clone());
            made.push(Node::new(number, server, memory, cable, clock, directory.path()));
        }
        let mut this = Self {
            nodes: made,
            accounts,
            image,
            networks,
            control,
            generations: BTreeMap::new(),
            doors,
            running,
            newest: 0,
            runs: 0,
            engine,
            clock,
            config,
            _directory: directory,
        };
        this.listen(0);
        for place in 1..HEADNODES {
            this.running.push(None);
            this.start_at(place).await?;
        }
        for node in &mut this.nodes {
            node.start_agent(None);
        }
        Ok(this)
    }

    /// What runs on the headnode besides its own tasks belongs to this group, and ends with it.
    pub(crate) fn group(&self) -> Group {
        let running = self.running.get(self.newest).and_then(Option::as_ref);
        running.map(|running| running.group.clone()).unwrap_or_default()
    }

    /// The headnode that hears a machine, by its record.
    pub(crate) fn hearing(&self, by: Option<ServerId>) -> &Control {
        let all = self.running.iter().flatten().map(|running| &running.control);
        all.into_iter().find(|control| control.headnodes.me() == by).unwrap_or(&self.control)
    }

    /// Ends the headnode that has run longest, in order or on the spot, and starts it again on the same store. The others go on.
    pub(crate) async fn restart_headnode(&mut self, in_order: bool) -> Result<(), control::Error> {
        let place = (self.newest + 1) % HEADNODES;
        self.doors.send_modify(|doors| doors[place] = None);
        if let Some(running) = self.running[place].take() {
            if in_order {
                running.trigger.fire();
                for task in running.tasks {
                    // A task that panicked was told where it happened; the invariants see what it left.
                    let _ = task.await;
                }
            }
            running.group.end();
        }
        self.start_at(place).await
    }

    async fn start_at(&mut self, place: usize) -> Result<(), control::Error> {
        let (control, running) = start_headnode(self.engine.clone(), self.clock, self.config.clone(), place).await?;
        self.control = control;
        self.running[place] = Some(running);
        self.newest = place;
        self.listen(place);
        Ok(())
    }

    /// What happens by itself on machines as time passes.
    pub(crate) fn tick(&mut self) {
        self.nodes.iter_mut().for_each(Node::tick);
    }

    fn listen(&mut self, place: usize) {
        self.runs += 1;
        let (control, group) = (self.control.clone(), self.group());
        let headnode = Arc::new(Headnode { control, group, run: self.runs });
        self.doors.send_modify(|doors| doors[place] = Some(headnode));
    }
}

/// Opens the store and starts everything a headnode runs.
async fn start_headnode(
    engine: Arc<Memory>,
    clock: VirtualClock,
    config: ControlConfig,
    place: usize,
) -> Result<(Control, Running), control::Error> {
    let group = Group::default();
    let (trigger, shutdown) = Shutdown::new();
    let opening = group.spawn("simulated headnode", open(engine, clock, config, place, shutdown));
    let (control, tasks) = match opening.await {
        Ok(opened) => opened?,
        Err(error) => return Err(control::Error::Unavailable(format!("the headnode died while it started: {error}"))),
    };
    Ok((control.clone(), Running { control, group, trigger, tasks }))
}

async fn open(
    engine: Arc<Memory>,
    clock: VirtualClock,
    mut config: ControlConfig,
    place: usize,
    shutdown: Shutdown,
) -> Result<(Control, Vec<JoinHandle<()>>), control::Error> {
    let store = Store::open(engine, control::schema())
        .await
        .map_err(|error| control::Error::Unavailable(base::errors::chain(&error)))?;
    let clock = Arc::new(clock);
    // The same after each start.
    let id = ServerId::from_random(0x4ead << 64 | place as u128);
    config.headnode = Some(id);
    let control = Control::start(store.clone(), clock.clone(), config, shutdown.clone());
    headnodes::register(&control, id, &announcement(place)).await?;
    let beats = headnodes::keep_beating(control.clone(), id, Well, shutdown.clone());
    let flows = flow::Engine::new(store, clock.clone(), control.clone()).sharing(control.headnodes.share());
    let flows = control::flows::register(flows);
    let mut loops = flow::loops::Loops::new(clock);
    control::loops::add_all(&mut loops, &control);
    let tasks = vec![
        base::task::spawn("simulated beats", beats),
        base::task::spawn("simulated flows", flows.run(shutdown.clone())),
        base::task::spawn("simulated loops", loops.run(shutdown)),
    ];
    Ok((control, tasks))
}

fn announcement(place: usize) -> Announcement {
    let at = |port: u16| format!("10.0.0.{}:{port}", place + 1);
    Announcement {
        hostname: format!("head-{place}"),
        cloudapi: at(8_443),
        node_link: at(8_444),
        ops: at(8_445),
        member: None,
        shared_settings: Digest::of(&"alike"),
        release: "1".to_owned(),
    }
}

/// A headnode to which nothing happens but its end.
struct Well;

impl Measure for Well {
    fn images_missing(&self) -> u64 {
        0
    }

    fn disk(&self) -> DiskSigns {
        DiskSigns { free_percent: Some(50.0), ..DiskSigns::default() }
    }
}

/// Files left in a directory.
pub(crate) fn files_in(path: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect()
}
