//! What this headnode says of itself to the others: how it is reached, and how it fares. See [`control::headnodes`].

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use base::shutdown::Shutdown;
use control::{
    Control,
    headnodes::{self, Announcement, Measure},
    servers,
};
use flow::loops::Loop;
use model::{
    headnode::{CopySigns, DiskSigns, MemberAddresses},
    id::ServerId,
};
use serde::{Deserialize, Serialize};
use store::BoxFuture;

use crate::{
    copies::CopyProbe,
    disk::DiskProbe,
    members::{Keeper, file::ClusterFile, process::url},
    settings::Settings,
};

/// How often the record of this headnode is compared with what is so: an address may change while it runs.
const PERIOD: Duration = Duration::from_secs(15);

/// File beside the store that says where all headnodes are, for commands on this machine that find this one dead.
const ADDRESSES_FILE: &str = "headnodes.json";

/// What this headnode says when it starts. `reported` is the address its own machine has between machines, as far as it is known.
pub fn announcement(settings: &Settings, hostname: String, reported: Option<IpAddr>) -> Announcement {
    let reached = |listen: SocketAddr| reached_at(settings, listen, reported).unwrap_or_else(|| listen.to_string());
    Announcement {
        hostname,
        cloudapi: reached(settings.listen.cloudapi),
        node_link: reached(settings.listen.node_link),
        ops: reached(settings.listen.ops),
        member: own_member(settings),
        shared_settings: settings.shared().digest(),
        release: base::release::name().to_owned(),
    }
}

/// The member of the store's cluster on this machine, as others reach it.
fn own_member(settings: &Settings) -> Option<MemberAddresses> {
    // Whatever is wrong with the file is said where the store is opened.
    let member = ClusterFile::load(settings).ok().flatten()?.member?;
    Some(MemberAddresses { client: url(&member.client), peer: url(&member.peer) })
}

/// Where other machines find what listens at `listen`, `HOST:PORT`; `None` when that cannot be told.
pub fn reached_at(settings: &Settings, listen: SocketAddr, reported: Option<IpAddr>) -> Option<String> {
    if !listen.ip().is_unspecified() {
        return Some(listen.to_string());
    }
    let address = settings
        .fabric
        .underlay_address
        .or(reported)
        .map(|address| SocketAddr::new(address, listen.port()).to_string());
    address.or_else(|| settings.listen.names.first().map(|name| format!("{name}:{}", listen.port())))
}

/// What is measured outside the control plane.
#[derive(Clone)]
pub struct Measurements {
    disk: Arc<DiskProbe>,
    copies: Arc<CopyProbe>,
    images_missing: Arc<AtomicU64>,
}

impl Measurements {
    /// Of the disk with the headnode's files, and of its copies of the store; `images_missing` is counted elsewhere.
    pub fn new(settings: &Settings, keeper: &Arc<Keeper>, images_missing: Arc<AtomicU64>) -> Self {
        let disk = Arc::new(DiskProbe::new(settings.headnode_dir()));
        Self { disk, copies: Arc::new(CopyProbe::new(keeper.clone())), images_missing }
    }

    /// Measures until `shutdown`.
    pub async fn measure(self, control: Control, shutdown: Shutdown) {
        tokio::join!(self.disk.run(control.clone(), shutdown.clone()), self.copies.run(control, shutdown));
    }
}

impl Measure for Measurements {
    fn images_missing(&self) -> u64 {
        self.images_missing.load(Ordering::Relaxed)
    }

    fn disk(&self) -> DiskSigns {
        self.disk.signs()
    }

    fn copies(&self) -> CopySigns {
        self.copies.signs()
    }
}

/// Keeps the record of this headnode true.
pub struct Announce {
    /// Over the records.
    pub control: Control,
    /// Which headnode this is.
    pub id: ServerId,
    /// Its settings.
    pub settings: Arc<Settings>,
    /// What the machine calls itself.
    pub hostname: String,
}

impl Announce {
    /// What there is to say now.
    pub fn now(&self) -> Announcement {
        let reported = servers::get(&self.control, self.id).ok().and_then(|view| view.server.underlay);
        announcement(&self.settings, self.hostname.clone(), reported)
    }
}

/// Where headnodes are, as a file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Addresses {
    version: u32,
    ops: Vec<String>,
}

impl Announce {
    /// Writes down where everybody is, when that is news.
    fn write_addresses(&self) -> std::io::Result<()> {
        let ops = headnodes::list(&self.control).into_iter().map(|view| view.headnode.ops.clone()).collect();
        let path = self.settings.headnode_dir().join(ADDRESSES_FILE);
        let text = serde_json::to_string(&Addresses { version: 1, ops }).map_err(std::io::Error::other)?;
        if std::fs::read_to_string(&path).is_ok_and(|held| held == text) {
            return Ok(());
        }
        let partial = path.with_extension("partial");
        std::fs::write(&partial, &text)?;
        std::fs::rename(&partial, &path)
    }
}

/// `HOST:PORT` of every headnode's ops API, as far as the headnode of this machine has written it down.
pub fn known_ops(settings: &Settings) -> Vec<String> {
    let text = std::fs::read_to_string(settings.headnode_dir().join(ADDRESSES_FILE)).unwrap_or_default();
    serde_json::from_str::<Addresses>(&text).unwrap_or_default().ops
}

impl Loop for Announce {
    fn name(&self) -> &'static str {
        "announce headnode"
    }

    fn period(&self) -> Duration {
        PERIOD
    }

    fn pass(&self) -> BoxFuture<'_, Result<String, Box<dyn std::error::Error + Send + Sync>>> {
        Box::pin(async {
            self.write_addresses()?;
            let is_new = headnodes::refresh(&self.control, self.id, &self.now()).await?;
            Ok(if is_new { "this headnode's addresses changed".to_owned() } else { String::new() })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_told_an_address_they_can_dial() {
        let text = Settings::generate(None).unwrap();
        let mut settings = Settings::parse(&text).unwrap();
        let any: SocketAddr = "0.0.0.0:8444".parse().unwrap();
        settings.listen.names.clear();
        assert_eq!(reached_at(&settings, any, None), None);
        settings.listen.names = vec!["head-1.example.org".to_owned()];
        assert_eq!(reached_at(&settings, any, None).unwrap(), "head-1.example.org:8444");
        assert_eq!(reached_at(&settings, any, Some("fd00::1".parse().unwrap())).unwrap(), "[fd00::1]:8444");
        settings.fabric.underlay_address = Some("10.0.0.1".parse().unwrap());
        assert_eq!(reached_at(&settings, any, Some("10.0.0.2".parse().unwrap())).unwrap(), "10.0.0.1:8444");
        assert_eq!(reached_at(&settings, "10.9.9.9:1".parse().unwrap(), None).unwrap(), "10.9.9.9:1");
    }
}
