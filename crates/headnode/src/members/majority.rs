//! Whether the store has a majority, and who is missing when it has not.
//!
//! A headnode that starts and finds no majority serves what its member holds. Here it is asked each second whether there is one now; then the store goes on
//! by itself, and what waits for that begins ([`await_majority`]). A majority that is lost while the headnode runs is noticed in the same way. Who answers and
//! who does not is asked at the members' doors for each other, which are open also while those for clients are not.

use std::{sync::Arc, time::Duration};

use base::shutdown::Shutdown;
use control::{
    Control,
    headnodes::{Missing, NoMajority},
    tables::{BEATS, HEADNODES},
};
use etcd::{Admin, Etcd, OpenError};
use futures_util::future::join_all;
use model::{headnode::Headnode, id::ServerId, time::Timestamp};
use serde::Deserialize;
use store::{Entry, Store};

use crate::{
    members::{
        file::ClusterFile,
        keep::Keeper,
        left_behind,
        process::{bare, url},
    },
    run::RunError,
    settings::StoreEngine,
};

/// How often it is looked.
const PERIOD: Duration = Duration::from_secs(1);
/// One look in so many asks others whether the store was begun anew elsewhere.
const ERA_ROUNDS: u64 = 10;
/// A majority that is lost for no longer is none that anybody is told of: its members elect, milliseconds.
const GRACE_MS: u64 = 3_000;

/// A member as others write it down.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Written {
    #[serde(default)]
    pub(crate) name: String,
    #[serde(rename = "peerURLs", default)]
    pub(crate) peers: Vec<String>,
    #[serde(rename = "isLearner", default)]
    pub(crate) learner: bool,
}

/// Watches over the majority until `shutdown`, and says what it finds.
///
/// # Errors
/// When there is a majority and its store cannot be used; when the store was begun anew elsewhere.
pub async fn watch(control: Control, keeper: Arc<Keeper>, shutdown: Shutdown) -> Result<(), RunError> {
    let mut since = control.headnodes.lacking().map(|lack| lack.since);
    for round in 1_u64.. {
        if shutdown.is_set() {
            break;
        }
        if round.is_multiple_of(ERA_ROUNDS) {
            let look = left_behind::refuse(&control, keeper.settings(), keeper.server());
            shutdown.unless(look).await.unwrap_or(Ok(()))?;
        }
        if let Some(engine) = keeper.engine() {
            let look = look(&control, &keeper, &engine, &mut since);
            shutdown.unless(look).await.unwrap_or(Ok(()))?;
        }
        // The end of the wait is looked at above.
        let _ = shutdown.unless(tokio::time::sleep(PERIOD)).await;
    }
    Ok(())
}

async fn look(
    control: &Control,
    keeper: &Keeper,
    engine: &Etcd,
    since: &mut Option<Timestamp>,
) -> Result<(), OpenError> {
    let begun = *since.get_or_insert_with(|| control.now());
    let is_there = match engine.is_waiting() {
        // Both take their time while somebody does not answer.
        true => {
            let (settled, lack) = tokio::join!(engine.settle(), missing(control, keeper, begun));
            let settled = settled?;
            if !settled {
                say(control, lack);
            }
            settled
        }
        false => engine.has_majority().await,
    };
    if is_there {
        *since = None;
        if control.headnodes.lacking().is_some() {
            tracing::info!(since = %begun, "the store has a majority again");
            control.headnodes.lack(None);
        }
        return Ok(());
    }
    if !engine.is_waiting() && control.now().millis_since(begun) >= GRACE_MS {
        say(control, missing(control, keeper, begun).await);
    }
    Ok(())
}

/// Says what was found before any door is open.
pub async fn say_at_start(control: &Control, keeper: &Keeper) {
    say(control, missing(control, keeper, control.now()).await);
}

/// Ends when everything that was ever committed is here and more can be; also when all ends.
pub async fn await_majority(control: &Control, keeper: &Keeper, shutdown: &Shutdown) {
    let there = async {
        while keeper.is_waiting() || control.store.fresh().await.is_err() {
            tokio::time::sleep(PERIOD / 10).await;
        }
    };
    // Which of the two it was is seen by the caller.
    let _ = shutdown.unless(there).await;
}

/// Notes it, and logs what is news of it.
fn say(control: &Control, lack: NoMajority) {
    let before = control.headnodes.lacking();
    let names = |lack: &NoMajority| lack.missing.iter().map(|missing| missing.name.clone()).collect::<Vec<_>>();
    if before.is_none_or(|before| names(&before) != names(&lack)) {
        tracing::warn!("{}; reads are answered, nothing can be changed", lack.for_operators());
    }
    control.headnodes.lack(Some(lack));
}

/// Of when the newest beat is that `store` shows.
pub(crate) fn newest_beat(store: &Store) -> Option<Timestamp> {
    store.snapshot().scan(&BEATS).map(|beat| beat.at).max()
}

async fn missing(control: &Control, keeper: &Keeper, since: Timestamp) -> NoMajority {
    let probed = match keeper.in_members() {
        Ok(Some(file)) => probe_ours(control, keeper, &file).await,
        _ => probe_theirs(keeper).await,
    };
    let mut lack = NoMajority {
        since,
        as_of: newest_beat(&control.store),
        voting: probed.len(),
        answering: Vec::new(),
        missing: Vec::new(),
    };
    for (missing, answers) in probed {
        match answers {
            true => lack.answering.push(missing.name),
            false => lack.missing.push(missing),
        }
    }
    lack
}

/// Members of a cluster that somebody else keeps: the endpoints that are known.
async fn probe_theirs(keeper: &Keeper) -> Vec<(Missing, bool)> {
    let Ok(admin) = keeper.admin_to_look() else { return Vec::new() };
    let all = keeper.settings().store.endpoints.iter().map(async |endpoint| {
        let address = bare(endpoint).trim_start_matches("http://").to_owned();
        let missing = Missing { name: address.clone(), address, server: None, last_beat: None };
        (missing, admin.status(endpoint).await.is_ok())
    });
    join_all(all).await
}

/// Members of ours, by the first that says whom it knows; else by the records.
async fn probe_ours(control: &Control, keeper: &Keeper, file: &ClusterFile) -> Vec<(Missing, bool)> {
    let Ok(admin) = keeper.admin_to_look() else { return Vec::new() };
    let snapshot = control.snapshot();
    let headnodes: Vec<_> = snapshot.scan(&HEADNODES).collect();
    let own = file.member.as_ref().map(|member| url(&member.peer));
    let recorded = headnodes.iter().filter_map(|one| Some(one.member.as_ref()?.peer.clone()));
    let peers: Vec<String> = own.into_iter().chain(recorded).collect();
    let known = match first_list(&admin, &peers).await {
        Some(known) => known,
        None => headnodes.iter().filter_map(|one| written(one)).collect(),
    };
    let voting = known.into_iter().filter(|member| !member.learner);
    let all = voting.map(async |member| {
        let peer = member.peers.first().cloned().unwrap_or_default();
        let server = member.name.parse::<ServerId>().ok();
        let record = headnodes.iter().find(|one| Some(one.id) == server);
        let last_beat = server.and_then(|id| snapshot.get(&BEATS, &id.to_string())).map(|beat| beat.at);
        let name = record.map_or_else(|| member.name.clone(), |one| one.hostname.clone());
        let answers = admin.members_of(&peer).await.is_ok();
        (Missing { name, address: bare(&peer), server, last_beat }, answers)
    });
    join_all(all).await
}

fn written(headnode: &Entry<Headnode>) -> Option<Written> {
    let peer = headnode.member.as_ref()?.peer.clone();
    Some(Written { name: headnode.id.to_string(), peers: vec![peer], learner: false })
}

async fn first_list(admin: &Admin, peers: &[String]) -> Option<Vec<Written>> {
    for peer in peers {
        if let Ok(text) = admin.members_of(peer).await
            && let Ok(known) = serde_json::from_str::<Vec<Written>>(&text)
        {
            return Some(known);
        }
    }
    None
}

impl Keeper {
    /// Whether the store was opened without a majority and none was seen since.
    pub fn is_waiting(&self) -> bool {
        self.engine().is_some_and(|engine| engine.is_waiting())
    }

    /// To ask how members are, also of a cluster that somebody else keeps.
    fn admin_to_look(&self) -> Result<Admin, etcd::AdminError> {
        let settings = self.settings();
        match settings.store.engine {
            StoreEngine::Etcd => {
                let config = settings.store.etcd(&settings.datacenter.name, &self.server().to_string());
                Admin::new(&config.endpoints, config.tls)
            }
            StoreEngine::Sqlite => {
                self.admin().map(|(admin, _)| admin).map_err(|error| etcd::AdminError::Endpoint(error.to_string()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_member_writes_is_read() {
        let text = r#"[{"id":14602905668476546170,"peerURLs":["https://10.0.0.1:2380"],"name":"a","clientURLs":["https://10.0.0.1:2379"]},
            {"id":1,"peerURLs":["https://10.0.0.2:2380"],"isLearner":true}]"#;
        let known: Vec<Written> = serde_json::from_str(text).unwrap();
        assert_eq!((known[0].name.as_str(), known[0].learner, known[1].learner), ("a", false, true));
        assert_eq!(known[1].peers, ["https://10.0.0.2:2380"]);
    }
}
