//! One machine of the datacenter: what survives its agents, and the agent that comes and goes.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::Arc,
};

use base::{
    clock::Clock as _,
    shutdown::{Shutdown, Trigger},
    task::Group,
};
use host::fake::{FakeMachine, Fate, Mortal};
use model::{
    id::{InstanceId, ServerId},
    server::{Underlay, Whereabouts},
    time::Timestamp,
    unit::Mib,
};
use node::{Agent, AgentConfig, AgentError, Execution, IdRanges, files::Disk};
use tokio::{task::JoinHandle, time::Instant};

use crate::{
    chance::Chance,
    clock::VirtualClock,
    disk::SimDisk,
    link::{Cable, SimLink},
};

/// How often a machine writes to its disks what nobody waits for, seconds.
const SYNC_SECONDS: u64 = 30;

/// Ranges of ids on a machine: few, so that they are used again all the time, and sometimes run out.
const ID_RANGES: u32 = 24;

/// Agents that die at one of their next verbs, in a hundred.
const DOOMED_PERCENT: u64 = 15;

/// Verbs within which such an agent dies.
const DOOMED_VERBS: u64 = 120;

/// A machine.
pub(crate) struct Node {
    /// Which it is.
    pub(crate) server: ServerId,
    /// What there is on it.
    pub(crate) machine: FakeMachine,
    /// Roots that came back when power went, and that nobody has asked for.
    pub(crate) revenants: BTreeSet<InstanceId>,
    pub(crate) cable: Arc<Cable>,
    pub(crate) disk: Arc<SimDisk>,
    clock: VirtualClock,
    directory: PathBuf,
    underlay: Underlay,
    agent: Option<Running>,
    /// The agent will die at one of its verbs.
    doomed: bool,
    stopped: bool,
    synced_at: Instant,
}

struct Running {
    mortal: Mortal,
    group: Group,
    task: JoinHandle<Result<(), AgentError>>,
    _trigger: Trigger,
}

impl Node {
    /// The machine number `number`, without an agent.
    pub(crate) fn new(
        number: u16,
        server: ServerId,
        memory: Mib,
        cable: Arc<Cable>,
        clock: VirtualClock,
        directory: &Path,
    ) -> Self {
        let machine = FakeMachine::new();
        machine.set_memory(memory);
        machine.set_hostname(&format!("node{number}"));
        machine.datasets.sync();
        let [high, low] = number.to_be_bytes();
        let underlay = Underlay { address: IpAddr::V4(Ipv4Addr::new(10, 255, high, low)), mtu: 1_500 };
        Self {
            server,
            machine,
            revenants: BTreeSet::new(),
            cable,
            disk: Arc::default(),
            clock,
            directory: directory.join(number.to_string()),
            underlay,
            agent: None,
            doomed: false,
            stopped: false,
            synced_at: Instant::now(),
        }
    }

    /// Where it keeps its files.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether an agent lives.
    pub(crate) fn has_agent(&self) -> bool {
        self.agent.as_ref().is_some_and(|agent| !agent.mortal.is_dead())
    }

    /// Kills the agent on the spot, if one lives, as SIGKILL would.
    pub(crate) fn kill_agent(&mut self) {
        if let Some(running) = self.agent.take() {
            running.mortal.kill();
            running.group.end();
        }
        self.stopped = false;
    }

    /// Starts an agent, unless one lives. With `chance` it may be one that dies at one of its next verbs.
    pub(crate) fn start_agent(&mut self, chance: Option<&mut Chance>) {
        if self.has_agent() {
            return;
        }
        self.kill_agent();
        self.tell_time();
        let fate = chance.and_then(|chance| {
            let verb = usize::try_from(1 + chance.below(DOOMED_VERBS)).unwrap_or(1);
            let fate = Fate { verb, takes_effect: chance.percent(50) };
            chance.percent(DOOMED_PERCENT).then_some(fate)
        });
        self.doomed = fate.is_some();
        let mortal = Mortal::new(self.machine.host(), fate);
        let link = SimLink { cable: self.cable.clone(), server: self.server };
        // Who holds the other end is nobody: a machine keeps its address here.
        let whereabouts = Whereabouts { underlay: Some(self.underlay), outside: None };
        let whereabouts = tokio::sync::watch::channel(whereabouts).1;
        let config = AgentConfig {
            id_ranges: IdRanges { first: 1 << 28, count: ID_RANGES },
            execution: Execution::Inline,
            disk: Disk::watched(self.disk.clone()),
            whereabouts,
            ..AgentConfig::new(self.server, self.directory.join("data"), self.control_dir())
        };
        let agent = Agent::new(mortal.host(), Arc::new(link), config, Arc::new(self.clock));
        let ((trigger, shutdown), group) = (Shutdown::new(), Group::default());
        let task = group.spawn("simulated agent", agent.run(shutdown));
        let (death, rest) = (mortal.clone(), group.clone());
        // A verb at which it dies ends one task; the others go with it.
        base::task::spawn("fate", async move {
            death.died().await;
            rest.end();
        });
        self.agent = Some(Running { mortal, group, task, _trigger: trigger });
    }

    /// Makes sure of an agent that does not die.
    pub(crate) fn settle(&mut self) {
        if self.doomed {
            self.kill_agent();
        }
        self.set_stopped(false);
        self.start_agent(None);
    }

    /// Stops the agent where it is, or lets it go on; whether that changed anything.
    pub(crate) fn set_stopped(&mut self, stopped: bool) -> bool {
        let Some(running) = self.agent.as_ref().filter(|_| self.stopped != stopped) else { return false };
        if stopped {
            running.group.stop();
        } else {
            running.group.go_on();
        }
        self.stopped = stopped;
        true
    }

    /// Whether the agent is stopped.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// The machine loses power. Returns how many files came back other than they were.
    pub(crate) fn lose_power(&mut self, chance: &mut Chance) -> io::Result<usize> {
        self.kill_agent();
        let lost = self.disk.lose_power(chance)?;
        let before = self.roots();
        self.machine.datasets.lose_power(|changes| usize::try_from(chance.below(changes as u64 + 1)).unwrap_or(0));
        self.revenants.extend(self.roots().difference(&before));
        self.machine.reboot();
        match std::fs::remove_dir_all(self.control_dir()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(lost),
        }
    }

    /// What happens by itself as time passes.
    pub(crate) fn tick(&mut self) {
        self.tell_time();
        // One that could not begin, because of its disk, is started again as its supervisor would.
        if self.agent.as_ref().is_some_and(|agent| agent.task.is_finished() && !agent.mortal.is_dead()) {
            self.kill_agent();
            self.start_agent(None);
        }
        if self.synced_at.elapsed().as_secs() >= SYNC_SECONDS {
            self.synced_at = Instant::now();
            self.disk.sync();
            self.machine.datasets.sync();
        }
        if !self.revenants.is_empty() {
            let roots = self.roots();
            self.revenants.retain(|id| roots.contains(id));
        }
    }

    /// Roots in its pool.
    pub(crate) fn roots(&self) -> BTreeSet<InstanceId> {
        self.machine.host().datasets.roots().unwrap_or_default().into_iter().collect()
    }

    fn tell_time(&self) {
        self.machine.set_now(Timestamp(self.clock.now_ms()));
    }

    fn control_dir(&self) -> PathBuf {
        self.directory.join("control")
    }
}
