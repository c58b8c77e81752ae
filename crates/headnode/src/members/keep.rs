//! Carries out what is asked of the members: control's verbs over crate etcd.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use base::clock::Clock;
use control::headnodes::members::{
    Cluster, Invitation, KeptIn, MemberFacts, MemberState, Members, MembersError, Moved, NewMember, Promotion,
};
use etcd::{Admin, Etcd, Listed, Room, Tls, Vote};
use futures_util::future::join_all;
use model::{headnode::Stage, id::ServerId, time::Timestamp};
use store::{BoxFuture, Destination, Engine, Reason, Revision, Store, sqlite::Sqlite};
use tokio::time::Instant;

use crate::{
    members::{
        file::{ClusterFile, Kept, MemberFile},
        process::{self, url},
    },
    pki::{self, StorePki},
    run::RunError,
    settings::{Settings, StoreEngine},
};

/// How long the supervisor and etcd have until the first member of a new cluster leads.
const FIRST_MEMBER_MAX: Duration = Duration::from_secs(90);
/// How often it is looked at.
const LOOK_PERIOD: Duration = Duration::from_millis(200);
/// How long a majority has to answer before one member's word is taken for how all are.
const MAJORITY_MAX: Duration = Duration::from_secs(5);
/// How long etcd may take to say its version.
const VERSION_MAX: Duration = Duration::from_secs(10);
/// The oldest etcd that will do.
const OLDEST: (u32, u32) = (3, 4);
/// Start of etcd's keys of a datacenter.
const PREFIX: &str = "neso";

/// A headnode's side of the members.
pub struct Keeper {
    settings: Settings,
    server: ServerId,
    clock: Arc<dyn Clock>,
    /// The engine, when it is one over members or over somebody else's cluster.
    // Leaf data: copied and replaced.
    engine: Mutex<Option<Arc<Etcd>>>,
    /// Held by whoever changes the file, or moves the store.
    changing: tokio::sync::Mutex<()>,
    store: OnceLock<Store>,
}

/// The engine that cluster.json and the settings say, and the one that looks after it.
pub async fn open_store(
    settings: &Settings,
    server: ServerId,
    clock: Arc<dyn Clock>,
) -> Result<(Arc<dyn Engine>, Arc<Keeper>), RunError> {
    let path = settings.headnode_dir().join("store.db");
    let file = match settings.store.engine {
        StoreEngine::Sqlite => ClusterFile::load(settings)?,
        StoreEngine::Etcd => None,
    };
    let opened = match (settings.store.engine, &file) {
        (StoreEngine::Etcd, _) => {
            // Machines have different ids, and so do two headnodes' commits.
            let config = settings.store.etcd(&settings.datacenter.name, &server.to_string());
            tracing::info!(endpoints = config.endpoints.join(", "), "the store is in etcd");
            Some(Arc::new(Etcd::open(config).await?))
        }
        (StoreEngine::Sqlite, Some(file)) if file.kept_in == Kept::Etcd => {
            put_aside(&path, Timestamp(clock.now_ms()));
            let hosts = file.member.as_ref().map(process::hosts).unwrap_or_default();
            let pki = pki::store_certificates(settings, &server.to_string(), &hosts, Timestamp(clock.now_ms()))?;
            let config = config(settings, server, &pki, own_first(file));
            tracing::info!(endpoints = config.endpoints.join(", "), "the store is in its members");
            Some(Arc::new(Etcd::open(config).await?))
        }
        (StoreEngine::Sqlite, _) => None,
    };
    let engine: Arc<dyn Engine> = match &opened {
        Some(etcd) => etcd.clone(),
        None => Arc::new(Sqlite::open(&path).await.map_err(|source| RunError::Engine { path, source })?),
    };
    let keeper = Keeper {
        settings: settings.clone(),
        server,
        clock,
        engine: Mutex::new(opened),
        changing: tokio::sync::Mutex::default(),
        store: OnceLock::new(),
    };
    Ok((engine, Arc::new(keeper)))
}

/// Our own member before the others: it is the one whose answers travel least. Where it is not known to vote it is the last resort: the others that
/// are known may all be gone by the time it does.
pub(crate) fn own_first(file: &ClusterFile) -> Vec<String> {
    let own = file.member.as_ref().map(|member| url(&member.client));
    let mut endpoints = file.endpoints.clone();
    match own {
        Some(own) if !endpoints.contains(&own) => endpoints.push(own),
        own => endpoints.sort_by_key(|endpoint| Some(endpoint) != own.as_ref()),
    }
    endpoints
}

pub(crate) fn tls(pki: &StorePki) -> Tls {
    Tls { authority: pki.authority.clone(), certificate: pki.client.certificate.clone(), key: pki.client.key.clone() }
}

/// Start of all keys of a datacenter.
pub(crate) fn prefix(settings: &Settings) -> String {
    format!("{PREFIX}/{}", settings.datacenter.name)
}

pub(crate) fn config(settings: &Settings, server: ServerId, pki: &StorePki, endpoints: Vec<String>) -> etcd::Config {
    let store = &settings.store;
    etcd::Config {
        endpoints,
        tls: Some(tls(pki)),
        prefix: prefix(settings),
        name: server.to_string(),
        operations_max: store.operations_max,
        room: Some(Room { quota_bytes: store.quota_mib << 20, reserve_bytes: store.reserve_mib << 20 }),
        data: Some(ClusterFile::data_dir(settings)),
    }
}

/// Renames the file of a store that has moved, and what lies beside it. It is never read again.
fn put_aside(path: &Path, now: Timestamp) {
    if !path.exists() {
        return;
    }
    let with = |end: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(end);
        PathBuf::from(name)
    };
    for beside in ["-wal", "-shm"] {
        match std::fs::rename(with(beside), with(&format!(".moved-{}{beside}", now.0))) {
            // SQLite takes them away itself when the last of its connections ends, which may be just now.
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, "what lies beside the old store's file cannot be put aside");
                return;
            }
            _ => {}
        }
    }
    match std::fs::rename(path, with(&format!(".moved-{}", now.0))) {
        Ok(()) => tracing::info!(path = %path.display(), "the old store's file is put aside"),
        Err(error) => tracing::warn!(%error, "the old store's file cannot be put aside"),
    }
    // It only takes up room.
    let _ = std::fs::remove_file(with(".reserve"));
}

impl Keeper {
    /// The store that [`Members::move_store`] moves. Once, at the start.
    pub fn attach(&self, store: Store) {
        // Twice would be the same store.
        let _ = self.store.set(store);
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn server(&self) -> ServerId {
        self.server
    }

    /// Whether this headnode takes part, by its record.
    pub(crate) fn stage(&self) -> Option<Stage> {
        let snapshot = self.store.get()?.snapshot();
        snapshot.get(&control::tables::HEADNODES, &self.server.to_string()).map(|record| record.stage)
    }

    pub(crate) fn now(&self) -> Timestamp {
        Timestamp(self.clock.now_ms())
    }

    /// The engine, when it is one over etcd.
    pub(crate) fn engine(&self) -> Option<Arc<Etcd>> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where the member beside this headnode is asked, when the store is in members and it has one.
    pub(crate) fn own_endpoint(&self) -> Option<String> {
        // Whatever is wrong with the file is said by who tends the members.
        Some(url(&self.in_members().ok().flatten()?.member?.client))
    }

    /// cluster.json, when the store is in members.
    pub(crate) fn in_members(&self) -> Result<Option<ClusterFile>, MembersError> {
        if self.settings.store.engine == StoreEngine::Etcd {
            return Ok(None);
        }
        let file = ClusterFile::load(&self.settings).map_err(failed("read where the store is"))?;
        Ok(file.filter(|file| file.kept_in == Kept::Etcd))
    }

    /// Changes cluster.json, alone.
    pub(crate) async fn change_file(&self, change: impl FnOnce(&mut ClusterFile)) -> Result<(), MembersError> {
        let _alone = self.changing.lock().await;
        let Some(mut file) = self.in_members()? else { return Ok(()) };
        let before = file.clone();
        change(&mut file);
        match file == before {
            true => Ok(()),
            false => file.save(&self.settings).map_err(failed("write down where the store is")),
        }
    }

    /// The cluster, for changes of it.
    pub(crate) fn admin(&self) -> Result<(Admin, ClusterFile), MembersError> {
        let file = self.in_members()?.ok_or_else(|| match self.settings.store.engine {
            StoreEngine::Etcd => {
                refused("the store is in a cluster that somebody else keeps; its members are not ours to change")
            }
            StoreEngine::Sqlite => refused("the store is in a file and has no members yet"),
        })?;
        let admin = Admin::new(&own_first(&file), Some(tls(&StorePki::of(&self.settings))));
        Ok((admin.map_err(failed("reach the store's members"))?, file))
    }

    async fn check_program(&self) -> Result<(), MembersError> {
        let program = process::program().ok_or_else(|| refused(&process::StartError::NotInstalled.to_string()))?;
        let mut command = base::process::command(&program);
        command.env_clear().arg("--version");
        let output = base::process::output(command, VERSION_MAX).await.map_err(failed("ask etcd for its version"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.lines().next().unwrap_or_default().rsplit(' ').next().unwrap_or_default();
        match is_new_enough(version) {
            true => Ok(()),
            false => Err(refused(&format!(
                "`{}` is version `{version}`; 3.4 is the oldest that will do: upgrade Debian's package etcd-server",
                program.display()
            ))),
        }
    }

    /// The member beside this headnode, noted so that the supervisor starts it.
    fn prepare_first(&self) -> Result<MemberFile, MembersError> {
        let writing = "write down where the store is";
        let noted = ClusterFile::load(&self.settings).map_err(failed(writing))?.and_then(|file| file.member);
        if let Some(member) = noted {
            return Ok(member);
        }
        let snapshot = self.store.get().map(Store::snapshot);
        let server = snapshot.and_then(|all| all.get(&control::tables::SERVERS, &self.server.to_string()));
        let (client, peer) = process::addresses(&self.settings, server.and_then(|server| server.underlay));
        let name = self.server.to_string();
        let member = MemberFile {
            initial_cluster: format!("{name}={}", url(&peer)),
            token: format!("{:032x}", base::random::wide_bits()),
            name,
            client,
            peer,
            first: true,
            started: false,
        };
        // Whatever lies there is of no cluster that is in force.
        let data = ClusterFile::data_dir(&self.settings);
        if data.exists() {
            std::fs::remove_dir_all(&data).map_err(failed("clear the member's directory"))?;
        }
        ClusterFile::filling(member.clone()).save(&self.settings).map_err(failed(writing))?;
        Ok(member)
    }

    async fn await_first(&self, admin: &Admin, endpoint: &str) -> Result<(), MembersError> {
        let deadline = Instant::now() + FIRST_MEMBER_MAX;
        loop {
            match admin.status(endpoint).await {
                Ok(status) if status.leader != 0 => return Ok(()),
                Ok(_) | Err(_) if Instant::now() < deadline => tokio::time::sleep(LOOK_PERIOD).await,
                Ok(_) => return Err(refused(&format!("the member at {endpoint} does not lead"))),
                Err(error) => {
                    let log = self.settings.paths.log.join("member.log");
                    let doing = format!(
                        "wait for this machine's member, which the supervisor starts; its log is `{}`",
                        log.display()
                    );
                    return Err(MembersError::Failed { doing, source: Box::new(error) });
                }
            }
        }
    }

    async fn do_move(&self) -> Result<Moved, MembersError> {
        let _alone = self.changing.lock().await;
        if self.kept_in() != KeptIn::File {
            return Ok(Moved::default());
        }
        let store = self.store.get().ok_or_else(|| refused("the store is not open yet"))?;
        self.check_program().await?;
        let certificates = "make the store's certificates";
        pki::make_store_authority(&self.settings, self.now()).map_err(failed(certificates))?;
        base::crash::point("members.move.authority");
        let member = self.prepare_first()?;
        base::crash::point("members.move.noted");
        let name = self.server.to_string();
        let pki = pki::store_certificates(&self.settings, &name, &process::hosts(&member), self.now());
        let pki = pki.map_err(failed(certificates))?;
        let endpoint = url(&member.client);
        let admin = Admin::new(std::slice::from_ref(&endpoint), Some(tls(&pki)));
        self.await_first(&admin.map_err(failed("reach this machine's member"))?, &endpoint).await?;
        base::crash::point("members.move.started");
        let opened = Etcd::open(config(&self.settings, self.server, &pki, vec![endpoint.clone()])).await;
        let etcd = Arc::new(opened.map_err(failed("open the new store"))?);
        let destination = Destined { etcd: etcd.clone(), settings: self.settings.clone(), member, endpoint };
        tracing::info!("the store moves to its first member");
        let moved = store.move_to(&destination).await.map_err(failed("move the store"))?;
        *self.engine.lock().unwrap_or_else(PoisonError::into_inner) = Some(etcd);
        let pause_ms = u64::try_from(moved.pause.as_millis()).unwrap_or(u64::MAX);
        tracing::info!(records = moved.records, pause_ms, "the store has moved to its first member");
        put_aside(&self.settings.headnode_dir().join("store.db"), self.now());
        Ok(Moved { records: moved.records, pause_ms })
    }

    async fn do_add(&self, new: NewMember) -> Result<Invitation, MembersError> {
        let (admin, file) = self.admin()?;
        let (name, peer) = (new.server.to_string(), url(&new.peer));
        let known = admin.members().await.map_err(failed("list the store's members"))?;
        let there = known.iter().find(|member| member.name == name || member.peers.contains(&peer));
        if let Some(other) = there.filter(|member| !member.name.is_empty() && member.name != name) {
            return Err(refused(&format!("{peer} is the address of another member, `{}`", other.name)));
        }
        if let Some(moved) = there.filter(|member| !member.peers.contains(&peer)) {
            return Err(refused(&format!(
                "server {name} has a member already, at {}: remove it first",
                moved.peers.join(", ")
            )));
        }
        // etcd takes one at a time.
        if let Some(other) =
            known.iter().find(|member| member.learner && there.is_none_or(|there| there.id != member.id))
        {
            let who = if other.name.is_empty() { other.peers.join(", ") } else { other.name.clone() };
            return Err(refused(&format!("another member is being added, `{who}`: wait for it, or remove it")));
        }
        if there.is_none() {
            admin.add_learner(&peer).await.map_err(failed("add a member"))?;
            base::crash::point("members.add.room");
        }
        let known = admin.members().await.map_err(failed("list the store's members"))?;
        Ok(invitation(&name, &peer, &known, file.member.map(|member| member.token).unwrap_or_default()))
    }

    async fn do_promote(&self, server: ServerId) -> Result<Promotion, MembersError> {
        let (admin, _) = self.admin()?;
        let known = admin.members().await.map_err(failed("list the store's members"))?;
        let name = server.to_string();
        let Some(member) = known.iter().find(|member| member.name == name) else {
            return Ok(Promotion::NotYet("its member has not started yet".to_owned()));
        };
        match admin.promote(member.id).await.map_err(failed("give a member its vote"))? {
            Vote::Given => Ok(Promotion::Voting),
            Vote::TooFarBehind => {
                let statuses = join_all(known.iter().map(|member| status(&admin, member))).await;
                let newest = statuses.iter().flatten().map(|status| status.logged).max().unwrap_or(0);
                let position = known.iter().position(|other| other.id == member.id);
                let applied = position.and_then(|position| statuses[position].as_ref().ok());
                Ok(Promotion::NotYet(match applied {
                    Some(status) => format!("it has {} of {newest} changes", status.applied.min(newest)),
                    None => "it does not answer yet".to_owned(),
                }))
            }
        }
    }

    async fn do_remove(&self, server: ServerId) -> Result<(), MembersError> {
        let (admin, _) = self.admin()?;
        // Asked first: without a majority nothing else is answered, and this says so at once.
        self.do_status().await?.check_removal(server)?;
        let known = admin.members().await.map_err(failed("list the store's members"))?;
        let (name, peer) = (server.to_string(), self.peer_of(server));
        let gone = known.iter().find(|member| {
            // One that never started has no name yet.
            member.name == name
                || (member.name.is_empty() && peer.as_ref().is_some_and(|peer| member.peers.contains(peer)))
        });
        let Some(gone) = gone else { return Ok(()) };
        admin.remove(gone.id).await.map_err(failed("take a member out"))
    }

    async fn do_status(&self) -> Result<Cluster, MembersError> {
        let (admin, _) = self.admin()?;
        let known = match tokio::time::timeout(MAJORITY_MAX, admin.members()).await {
            Ok(Ok(known)) => known,
            // Without a majority: as the one knows it that answers.
            Ok(Err(_)) | Err(_) => admin.members_as_known().await.map_err(failed("list the store's members"))?,
        };
        let statuses = join_all(known.iter().map(|member| status(&admin, member))).await;
        let newest = statuses.iter().flatten().map(|status| status.logged).max().unwrap_or(0);
        let members = known.into_iter().zip(statuses).map(|(member, status)| MemberState {
            server: member.name.parse().ok(),
            voting: !member.learner,
            said: status.map(|status| MemberFacts {
                leads: status.leader == status.id,
                behind: newest.saturating_sub(status.applied),
                version: status.version,
                size_bytes: status.size_bytes,
                used_bytes: status.used_bytes,
                alarms: status.errors,
            }),
            name: member.name,
            clients: member.clients,
            peers: member.peers,
        });
        Ok(Cluster { members: members.collect() })
    }

    /// Where the member on `server` is, by its headnode's record.
    fn peer_of(&self, server: ServerId) -> Option<String> {
        let snapshot = self.store.get()?.snapshot();
        let record = snapshot.get(&control::tables::HEADNODES, &server.to_string())?;
        record.member.as_ref().map(|member| url(&member.peer))
    }
}

/// What `member` says of itself.
pub(crate) async fn status(admin: &Admin, member: &Listed) -> Result<etcd::Status, String> {
    let Some(endpoint) = member.clients.first() else { return Err("it has not started yet".to_owned()) };
    admin.status(endpoint).await.map_err(|error| base::errors::chain(&error))
}

/// What the headnode `name` has to know to start its member at `peer`.
pub(crate) fn invitation(name: &str, peer: &str, known: &[Listed], token: String) -> Invitation {
    let cluster = known.iter().flat_map(|member| {
        let name = if member.peers.iter().any(|known| known == peer) { name } else { member.name.as_str() };
        member.peers.iter().map(move |peer| format!("{name}={peer}"))
    });
    Invitation {
        name: name.to_owned(),
        token,
        initial_cluster: cluster.collect::<Vec<_>>().join(","),
        endpoints: endpoints_of(known),
    }
}

/// Where members with a vote are reached, in one order for everybody.
pub(crate) fn endpoints_of(known: &[Listed]) -> Vec<String> {
    let mut endpoints: Vec<String> =
        known.iter().filter(|member| !member.learner).filter_map(|member| member.clients.first().cloned()).collect();
    endpoints.sort();
    endpoints
}

/// The first member, as the place a store moves to.
struct Destined {
    etcd: Arc<Etcd>,
    settings: Settings,
    member: MemberFile,
    endpoint: String,
}

impl Destination for Destined {
    fn engine(&self) -> Arc<dyn Engine> {
        self.etcd.clone()
    }

    fn raise(&self, above: Revision) -> BoxFuture<'_, Result<(), Reason>> {
        Box::pin(async move { Ok(self.etcd.raise(above).await?) })
    }

    fn switch(&self) -> BoxFuture<'_, Result<(), Reason>> {
        let member = MemberFile { started: true, ..self.member.clone() };
        let file = ClusterFile::in_members(Some(member), vec![self.endpoint.clone()]);
        Box::pin(std::future::ready(file.save(&self.settings).map_err(Reason::from)))
    }
}

impl Members for Keeper {
    fn kept_in(&self) -> KeptIn {
        match (self.settings.store.engine, self.engine()) {
            (StoreEngine::Etcd, _) => KeptIn::ElsewhereKept,
            (StoreEngine::Sqlite, Some(_)) => KeptIn::Members,
            (StoreEngine::Sqlite, None) => KeptIn::File,
        }
    }

    fn check(&self) -> BoxFuture<'_, Result<(), MembersError>> {
        Box::pin(self.check_program())
    }

    fn move_store(&self) -> BoxFuture<'_, Result<Moved, MembersError>> {
        Box::pin(self.do_move())
    }

    fn add_learner(&self, new: NewMember) -> BoxFuture<'_, Result<Invitation, MembersError>> {
        Box::pin(self.do_add(new))
    }

    fn promote(&self, server: ServerId) -> BoxFuture<'_, Result<Promotion, MembersError>> {
        Box::pin(self.do_promote(server))
    }

    fn remove(&self, server: ServerId) -> BoxFuture<'_, Result<(), MembersError>> {
        Box::pin(self.do_remove(server))
    }

    fn status(&self) -> BoxFuture<'_, Result<Cluster, MembersError>> {
        Box::pin(self.do_status())
    }
}

pub(crate) fn refused(why: &str) -> MembersError {
    MembersError::Refused(why.to_owned())
}

pub(crate) fn failed<E: std::error::Error + Send + Sync + 'static>(
    doing: &'static str,
) -> impl FnOnce(E) -> MembersError {
    move |error| MembersError::Failed { doing: doing.to_owned(), source: Box::new(error) }
}

fn is_new_enough(version: &str) -> bool {
    let mut parts = version.trim().split('.').map(str::parse::<u32>);
    matches!((parts.next(), parts.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= OLDEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(id: u64, name: &str, learner: bool) -> Listed {
        let clients = if name.is_empty() { Vec::new() } else { vec![format!("https://10.0.0.{id}:2379")] };
        Listed { id, name: name.to_owned(), peers: vec![format!("https://10.0.0.{id}:2380")], clients, learner }
    }

    #[test]
    fn a_member_that_never_started_is_invited_by_its_name() {
        let known = [listed(2, "b", false), listed(1, "a", false), listed(3, "", true)];
        let invited = invitation("c", "https://10.0.0.3:2380", &known, "t".to_owned());
        assert_eq!(invited.initial_cluster, "b=https://10.0.0.2:2380,a=https://10.0.0.1:2380,c=https://10.0.0.3:2380");
        assert_eq!(invited.endpoints, ["https://10.0.0.1:2379", "https://10.0.0.2:2379"]);
    }

    #[test]
    fn our_own_member_is_asked_first() {
        let member = MemberFile {
            name: "b".to_owned(),
            client: "10.0.0.2:2379".to_owned(),
            peer: "10.0.0.2:2380".to_owned(),
            token: String::new(),
            initial_cluster: String::new(),
            first: false,
            started: true,
        };
        let endpoints = ["https://10.0.0.1:2379", "https://10.0.0.2:2379", "https://10.0.0.3:2379"].map(str::to_owned);
        let file = ClusterFile::in_members(Some(member), endpoints.to_vec());
        assert_eq!(own_first(&file), [&endpoints[1], &endpoints[0], &endpoints[2]].map(Clone::clone));
        let learner = ClusterFile { endpoints: vec![endpoints[0].clone()], ..file };
        assert_eq!(own_first(&learner), endpoints[..2], "nobody else may be left");
    }
}
