//! A machine, a headnode that says what it is told to say, and agents that come and go.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use base::{
    clock::{Clock as _, SystemClock},
    shutdown::{Shutdown, Trigger},
};
use bytes::Bytes;
use host::{Host, fake::FakeMachine};
use model::{
    delta::{Held, ReportNews, TargetDelta, TargetNews},
    id::{AccountId, ImageId, InquiryId, InstanceId, MacAddr, NetworkId, ServerId},
    image::Compression,
    instance::{Brand, Wanted},
    pairs::Pairs,
    part::Digest,
    target::{ImageTarget, Limits, NetworkTarget, NicTarget, Report, Target, ZoneFact, ZoneState, ZoneTarget},
    time::Timestamp,
    unit::{CpuShares, Mib},
};
use node::{Agent, AgentConfig, AgentError, Execution, IdRanges};
use nodeapi::{
    ReportAnswer,
    inquiry::{Answer, Inquiry, Question},
    link::{BoxFuture, Chunks, HeadnodeLink, LinkError},
};
use tokio::{sync::watch, task::JoinHandle};

/// How long anything may take before a test says that it does not happen. Far above what is needed, so that a busy machine
/// does not fail tests.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// An empty tar archive, and its SHA-256.
const ARCHIVE: [u8; 1024] = [0; 1024];
const ARCHIVE_SHA256: &str = "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";

/// A headnode that lives in the test.
pub(crate) struct Headnode {
    target: watch::Sender<Target>,
    report: watch::Sender<Option<Report>>,
    question: watch::Sender<Option<Inquiry>>,
    answer: watch::Sender<Option<(InquiryId, Answer)>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    cut: bool,
    image_requests: usize,
    reports: Vec<Report>,
    archive: Option<Vec<u8>>,
    /// How far its clock is ahead of the machine's; `None` for a headnode that does not tell.
    clock: Option<i64>,
    /// Targets that were sent, of which the agent holds one.
    sent: Vec<Target>,
    /// The last report, whole.
    held: Option<Report>,
    /// Forms in which targets and reports travelled.
    deltas: usize,
    wholes: usize,
}

impl Headnode {
    fn new(server: ServerId) -> Arc<Self> {
        let network = NetworkTarget {
            nic_tag: "ext".to_owned(),
            vlan: 0,
            subnet: Some("10.88.0.0/24".parse().unwrap()),
            host_address: Some(Ipv4Addr::new(10, 88, 0, 1)),
            nat: true,
            mtu: 1500,
            ..NetworkTarget::default()
        };
        let image = ImageTarget { sha256: ARCHIVE_SHA256.to_owned(), size: 1024, compression: Compression::None };
        let target = Target {
            server,
            generation: 0,
            datacenter: "test".to_owned(),
            networks: BTreeMap::from([(network_id(), network)]),
            images: BTreeMap::from([(image_id(), image)]),
            zones: BTreeMap::new(),
            firewall: Default::default(),
            underlay: None,
            vxlan_port: model::network::VXLAN_PORT,
            peers: Default::default(),
            headnode: None,
            headnodes: Vec::new(),
        };
        let (target, report) = (watch::Sender::new(target), watch::Sender::new(None));
        let (question, answer) = (watch::Sender::new(None), watch::Sender::new(None));
        Arc::new(Self { target, report, question, answer, state: Mutex::default() })
    }

    /// Changes the target and counts its generation up.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Target)) {
        self.target.send_modify(|target| {
            change(target);
            target.generation += 1;
        });
    }

    pub(crate) fn zone(&self, id: InstanceId, change: impl FnOnce(&mut ZoneTarget)) {
        self.change(|target| change(target.zones.get_mut(&id).expect("a zone the test made")));
    }

    /// Offers a target as it is, whatever its generation.
    pub(crate) fn offer(&self, target: Target) {
        self.target.send_replace(target);
    }

    pub(crate) fn target_now(&self) -> Target {
        self.target.borrow().clone()
    }

    /// Cuts or mends the connection; what waits ends at once.
    pub(crate) fn cut(&self, cut: bool) {
        self.state.lock().unwrap().cut = cut;
        self.target.send_modify(|_| {});
    }

    pub(crate) fn image_requests(&self) -> usize {
        self.state.lock().unwrap().image_requests
    }

    /// Delivers something else than the archive that was promised.
    pub(crate) fn deliver(&self, archive: Vec<u8>) {
        self.state.lock().unwrap().archive = Some(archive);
    }

    /// Tells the time from now on, so many milliseconds ahead of the machine's clock.
    pub(crate) fn set_clock(&self, ahead_ms: i64) {
        self.state.lock().unwrap().clock = Some(ahead_ms);
    }

    pub(crate) fn last_report(&self) -> Option<Report> {
        self.report.borrow().clone()
    }

    /// Waits for a report that fits.
    pub(crate) async fn wait(&self, what: &str, fits: impl Fn(&Report) -> bool) -> Report {
        let mut reports = self.report.subscribe();
        let waited =
            tokio::time::timeout(DEADLINE, reports.wait_for(|report| report.as_ref().is_some_and(&fits))).await;
        match waited {
            Ok(report) => report.expect("the headnode outlives its waiters").clone().expect("it fits"),
            Err(_) => panic!("no report with {what}; the last one: {:#?}", self.last_report()),
        }
    }

    /// Asks the agent something.
    pub(crate) async fn ask(&self, question: Question) -> Answer {
        let id = InquiryId::random();
        let mut answers = self.answer.subscribe();
        self.question.send_replace(Some(Inquiry { id, question }));
        let answered = answers.wait_for(|answer| answer.as_ref().is_some_and(|(to, _)| *to == id));
        let answered = tokio::time::timeout(DEADLINE, answered).await.expect("an answer in time");
        answered.expect("the headnode outlives its waiters").clone().expect("it fits").1
    }

    /// Waits for a fact of one instance.
    pub(crate) async fn wait_fact(&self, id: InstanceId, what: &str, fits: impl Fn(&ZoneFact) -> bool) -> ZoneFact {
        let report = self.wait(what, |report| report.zones.get(&id).is_some_and(|fact| fits(fact))).await;
        ZoneFact::clone(&report.zones[&id])
    }

    pub(crate) async fn wait_state(&self, id: InstanceId, state: ZoneState) -> ZoneFact {
        self.wait_fact(id, &format!("{id} {state:?}"), |fact| fact.state == state).await
    }

    /// Waits until the agent has written down the newest target and said so.
    pub(crate) async fn wait_seen(&self) -> Report {
        let generation = self.target.borrow().generation;
        self.wait("the newest target", |report| report.target_seen >= generation).await
    }

    /// Forgets what was reported, so that the next wait sees the next agent's words.
    pub(crate) fn forget_reports(&self) {
        self.report.send_replace(None);
    }

    /// Every report until the newest target was seen.
    pub(crate) async fn reports_until_seen(&self) -> Vec<Report> {
        self.wait_seen().await;
        self.state.lock().unwrap().reports.clone()
    }

    /// The shortest form of a target, as a real headnode has it.
    fn news(&self, target: Target, held: Option<Digest>) -> TargetNews {
        let mut state = self.state.lock().unwrap();
        let base = state.sent.iter().find(|sent| held == Some(sent.digest()));
        let news = match base {
            Some(base) => TargetNews::Delta(Box::new(TargetDelta::between(base, &target))),
            None => TargetNews::Whole(target.clone()),
        };
        match &news {
            TargetNews::Whole(_) => state.wholes += 1,
            TargetNews::Delta(_) => state.deltas += 1,
        }
        state.sent.push(target);
        news
    }

    /// Forgets what was sent and reported, as a headnode that starts anew does.
    pub(crate) fn forget(&self) {
        let mut state = self.state.lock().unwrap();
        (state.sent, state.held) = (Vec::new(), None);
    }

    /// How many documents travelled as deltas and as wholes.
    pub(crate) fn travelled(&self) -> (usize, usize) {
        let state = self.state.lock().unwrap();
        (state.deltas, state.wholes)
    }

    fn check(&self, doing: &str) -> Result<(), LinkError> {
        if self.state.lock().unwrap().cut {
            return Err(LinkError::Unreachable { doing: doing.to_owned(), source: "the cable is cut".into() });
        }
        Ok(())
    }
}

impl HeadnodeLink for Headnode {
    fn target(&self, held: Held) -> BoxFuture<'_, Result<Option<TargetNews>, LinkError>> {
        Box::pin(async move {
            let mut targets = self.target.subscribe();
            loop {
                self.check("fetch the target")?;
                let target = targets.borrow_and_update().clone();
                if target.generation != held.generation {
                    return Ok(Some(self.news(target, held.digest)));
                }
                if targets.changed().await.is_err() {
                    return Ok(None);
                }
            }
        })
    }

    fn report<'a>(&'a self, news: &'a ReportNews) -> BoxFuture<'a, Result<ReportAnswer, LinkError>> {
        Box::pin(async move {
            self.check("report")?;
            let generation = self.target.borrow().generation;
            let (report, held) = {
                let mut state = self.state.lock().unwrap();
                let report = match news {
                    ReportNews::Whole(report) => {
                        state.wholes += 1;
                        Some(Report::clone(report))
                    }
                    ReportNews::Delta(delta) => {
                        state.deltas += 1;
                        state.held.as_ref().and_then(|held| delta.apply(held.digest(), held).ok())
                    }
                };
                if let Some(report) = &report {
                    state.held = Some(report.clone());
                    state.reports.push(report.clone());
                }
                (report, state.held.as_ref().map(Report::digest))
            };
            if report.is_some() {
                self.report.send_replace(report);
            }
            let clock = self.state.lock().unwrap().clock;
            let now = clock.map(|ahead| Timestamp(SystemClock.now_ms() + ahead));
            Ok(ReportAnswer { generation, held, received_at: now, answered_at: now })
        })
    }

    fn image<'a>(&'a self, sha256: &'a str) -> BoxFuture<'a, Result<Box<dyn Chunks>, LinkError>> {
        Box::pin(async move {
            self.check("fetch an image")?;
            let mut state = self.state.lock().unwrap();
            state.image_requests += 1;
            assert_eq!(sha256, ARCHIVE_SHA256);
            let archive = state.archive.clone().unwrap_or_else(|| ARCHIVE.to_vec());
            let pieces = archive.chunks(100).map(Bytes::copy_from_slice).collect::<Vec<_>>();
            let chunks: Box<dyn Chunks> = Box::new(Pieces(pieces.into_iter()));
            Ok(chunks)
        })
    }

    fn inquiry<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<Inquiry>, LinkError>> {
        Box::pin(async move {
            self.check("wait for a question")?;
            let mut questions = self.question.subscribe();
            let _ = questions.wait_for(Option::is_some).await;
            Ok(self.question.send_replace(None))
        })
    }

    fn answer<'a>(&'a self, _: &'a str, id: InquiryId, answer: &'a Answer) -> BoxFuture<'a, Result<(), LinkError>> {
        Box::pin(async move {
            self.check("answer a question")?;
            self.answer.send_replace(Some((id, answer.clone())));
            Ok(())
        })
    }
}

struct Pieces(std::vec::IntoIter<Bytes>);

impl Chunks for Pieces {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, LinkError>> {
        Box::pin(async { Ok(self.0.next()) })
    }
}

/// Everything that outlives an agent.
pub(crate) struct World {
    pub(crate) machine: FakeMachine,
    pub(crate) headnode: Arc<Headnode>,
    pub(crate) config: AgentConfig,
    directory: tempfile::TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let server = ServerId::random();
        let (data, control) = (directory.path().join("data"), directory.path().join("control"));
        let mut config = AgentConfig::new(server, data, control);
        config.id_ranges = IdRanges { first: 1 << 28, count: 100 };
        Self { machine: FakeMachine::new(), headnode: Headnode::new(server), config, directory }
    }

    pub(crate) fn start(&self) -> Running {
        self.start_on(self.machine.host())
    }

    pub(crate) fn start_on(&self, host: Host) -> Running {
        let agent = self.agent(host, Execution::Threads);
        let (trigger, shutdown) = Shutdown::new();
        Running { trigger, task: base::task::spawn("agent under test", agent.run(shutdown)) }
    }

    /// One whose clock somebody else turns.
    pub(crate) fn start_by(&self, clock: Arc<dyn base::clock::Clock>) -> Running {
        let agent = Agent::new(self.machine.host(), self.headnode.clone(), self.config.clone(), clock);
        let (trigger, shutdown) = Shutdown::new();
        Running { trigger, task: base::task::spawn("agent under test", agent.run(shutdown)) }
    }

    pub(crate) fn agent(&self, host: Host, execution: Execution) -> Agent {
        let config = AgentConfig { execution, ..self.config.clone() };
        Agent::new(host, self.headnode.clone(), config, Arc::new(SystemClock))
    }

    /// Asks for a new zone with `nics` NICs.
    pub(crate) fn create(&self, nics: u8) -> InstanceId {
        let id = InstanceId::random();
        self.headnode.change(|target| {
            let first = u8::try_from(target.zones.len()).unwrap() * 4 + 10;
            target.zones.insert(id, zone((0..nics).map(|index| nic(first, index)).collect()).into());
        });
        id
    }

    pub(crate) fn ledger_path(&self, id: InstanceId) -> PathBuf {
        self.config.data_dir.join("zones").join(format!("{id}.json"))
    }

    pub(crate) fn socket_path(&self, id: InstanceId) -> PathBuf {
        self.config.control_dir.join(id.to_string()).join("metadata.sock")
    }

    /// Asserts that no trace of any instance is left.
    pub(crate) fn assert_empty(&self) {
        let host = self.machine.host();
        assert_eq!(host.zones.list().unwrap(), []);
        assert_eq!(host.datasets.roots().unwrap(), []);
        assert_eq!(host.links.nics().unwrap(), []);
        assert!(self.machine.filters.current().nics.is_empty());
        for directory in
            [self.config.data_dir.join("zones"), self.config.data_dir.join("incoming"), self.config.control_dir.clone()]
        {
            let left: Vec<_> = std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
            assert!(left.is_empty(), "{left:?}");
        }
    }

    /// A place for a test's own files.
    pub(crate) fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }
}

/// An agent that runs.
pub(crate) struct Running {
    trigger: Trigger,
    task: JoinHandle<Result<(), AgentError>>,
}

impl Running {
    pub(crate) async fn end(self) {
        self.trigger.fire();
        tokio::time::timeout(DEADLINE, self.task).await.expect("an agent ends").unwrap().unwrap();
    }
}

pub(crate) fn network_id() -> NetworkId {
    "0b8a1f0e-5a3c-4f0e-9d52-7d2f4c0f9a11".parse().unwrap()
}

pub(crate) fn image_id() -> ImageId {
    "1b8a1f0e-5a3c-4f0e-9d52-7d2f4c0f9a11".parse().unwrap()
}

pub(crate) fn limits(size: u64) -> Limits {
    Limits {
        memory: Mib(64 * size),
        swap: Mib(128 * size),
        disk: Mib(1024 * size),
        max_processes: 100,
        cpu_cap: None,
        cpu_shares: CpuShares(100),
    }
}

pub(crate) fn nic(first: u8, index: u8) -> NicTarget {
    NicTarget {
        mac: MacAddr::from_suffix(u32::from(first) << 8 | u32::from(index)),
        interface: format!("net{index}"),
        network: network_id(),
        address: Some(format!("10.88.0.{}/24", first + index).parse().unwrap()),
        gateway: (index == 0).then_some(Ipv4Addr::new(10, 88, 0, 1)),
        addresses6: Vec::new(),
        gateway6: None,
        primary: index == 0,
        mtu: 1500,
    }
}

pub(crate) fn zone(nics: Vec<NicTarget>) -> ZoneTarget {
    ZoneTarget {
        wanted: Wanted::Running,
        starts: 1,
        reboots: 0,
        owner: AccountId::random(),
        alias: "web".to_owned(),
        hostname: "web".to_owned(),
        brand: Brand::Lx,
        image: image_id(),
        package_name: "small".to_owned(),
        package_version: None,
        package: None,
        limits: limits(1),
        nics,
        resolvers: vec!["9.9.9.9".parse().unwrap()],
        dns_domain: Some("example.test".to_owned()),
        routes: BTreeMap::new(),
        metadata: Pairs::from([("user-script".to_owned(), "#!/bin/sh\necho hi\n".to_owned())]),
        internal_metadata: Pairs::from([("root_pw".to_owned(), "secret".to_owned())]),
        tags: Pairs::default(),
        guest_metadata_seen: 0,
        created_at: Timestamp(1_700_000_000_000),
    }
}

/// Waits until something that no report tells is so.
pub(crate) async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let waited = tokio::time::timeout(DEADLINE, async {
        while !holds() {
            // The condition has no event of its own; look again soon.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("it does not happen: {what}"));
}
