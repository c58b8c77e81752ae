//! The operators' contract: what `neso adm` and the headnode's ops API say to each other.
//!
//! Mutual TLS; the client certificate's organizational unit must be `operator`. Bodies are JSON. Records of the store
//! travel as they are ([`model`]); what is worked out from them travels as a view of this crate. Every answer that is
//! not 2xx carries an [`ErrorBody`].
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/datacenter` | | [`Datacenter`] |
//! | `GET /v1/accounts`, `POST`, `GET /:account` | [`NewAccount`] | [`model::account::Account`] |
//! | `POST /v1/accounts/:account/disable`, `…/enable`, `…/enable-names`, `…/disable-names` | | [`model::account::Account`] |
//! | `GET /v1/accounts/:account/keys`, `POST`, `DELETE …/:key` | [`NewKey`] | [`model::account::AccountKey`] |
//! | `GET /v1/packages`, `POST`, `GET /:package`, `POST …/activate`, `…/deactivate` | [`NewPackage`] | [`model::package::Package`] |
//! | `GET /v1/networks`, `POST`, `GET /:network`, `DELETE`, `GET …/ips` | [`NewNetwork`] | [`model::network::Network`]; [`NetworkView`] of one |
//! | `POST /v1/networks/:network/ips/:ip/reserve`, `…/release` | | [`model::network::Address`], or null |
//! | `GET /v1/nic-tags`, `POST`, `DELETE /:name` | [`NewNicTag`] | [`NicTagView`] |
//! | `GET /v1/pools`, `POST`, `DELETE /:pool` | [`NewPool`] | [`model::network::Pool`] |
//! | `GET /v1/fabrics` | | [`model::network::FabricVlan`] |
//! | `GET /v1/images`, `POST`, `GET /:image`, `DELETE`, `PUT …/file` | manifest, file | [`model::image::Image`] |
//! | `GET /v1/servers`, `GET /:server`, `POST …/accept`, `…/refuse` | | [`ServerView`] |
//! | `POST /v1/servers/:server`, `…/drain`, `DELETE ?give_up=` | [`ServerChange`], [`ServerDrain`] | [`ServerView`] |
//! | `GET /v1/invites`, `POST`, `DELETE /:invite` | [`NewInvite`] | [`model::server::Invite`], [`InviteView`] |
//! | `GET /v1/instances?account=&server=`, `GET /:id`, `POST …/start`, `…/stop`, `…/reboot`, `DELETE` | | [`InstanceView`] |
//! | `GET /v1/instances/:id/console?max_bytes=&after=` | | [`ConsoleView`] |
//! | `GET /v1/flows?unfinished=&archived=&subject=&limit=`, `GET /:flow` | | [`FlowView`] |
//! | `POST /v1/placement/explain` | [`PlacementQuestion`] | [`model::placement::Explanation`] |
//! | `GET /v1/placement/unplaced` | | [`model::placement::explain::Unplaced`] |
//! | `GET /v1/firewall/rules?account=`, `POST`, `GET /:rule`, `POST …/enable`, `…/disable`, `DELETE` | [`NewFirewallRule`] | [`FirewallRuleView`] |
//! | `POST /v1/firewall/rules/:rule` | [`FirewallRuleChange`] | [`FirewallRuleView`] |
//! | `GET /v1/firewall/log?rule=&instance=&server=&lines=&after=` | | [`FirewallLogView`] |
//! | `GET /v1/names/zones`, `GET …/:zone` | | [`names::ZoneView`]; [`names::ZoneContent`] of one |
//! | `GET /v1/names/server` | | [`names::NameServerView`] |
//! | `GET /v1/headnodes` | | [`HeadnodesView`] |
//! | `POST /v1/headnodes` | [`HeadnodesChange`] | the [`FlowView`]s that carry it out |
//! | `GET /v1/usage?month=&account=&after=` | | [`UsageView`] |
//! | `GET /v1/loops` | | [`LoopView`] |
//! | `GET /v1/certificates` | | [`CertificateView`] |
//! | `POST /v1/certificates/renew` | | [`CertificateView`], all but the authority's made anew |

/// Header of an answer from a headnode that cannot find out whether what it shows is the newest: for how many milliseconds it has not known.
pub const STALE_HEADER: &str = "neso-stale";

mod backup;
pub mod client;
pub mod firewall;
mod headnodes;
pub mod names;
pub mod networks;
pub mod path;
pub mod placement;
mod rebuild;
mod servers;
pub mod usage;

use std::{collections::BTreeMap, net::IpAddr};

use model::{
    clock::ClockReading,
    id::{AccountId, InstanceId, PackageId},
    instance::Instance,
    server::{Condition, Server, Trait},
    time::Timestamp,
    wire::WireFact,
};
use serde::{Deserialize, Serialize};

pub use backup::{BackupStanding, BackupTaken, BackupView, NewBackup};
pub use client::{Client, Error};
pub use firewall::{
    FirewallLogLine, FirewallLogQuery, FirewallLogView, FirewallRuleChange, FirewallRuleView, NewFirewallRule,
    SilentServer,
};
pub use headnodes::{HeadnodeView, HeadnodesChange, HeadnodesView, MemberView, MissingView, StoreKept, WaitingView};
pub use networks::{NatAddress, NetworkView, NewNicTag, NewPool, NicChange, NicTagView, NicView};
pub use path::{PathQuestion, PathView};
pub use placement::PlacementQuestion;
pub use rebuild::{FoundInstance, FoundRule, LostInstance, Rebuild, RebuildView, WaitingServer};
pub use servers::{Forget, InviteView, NewInvite, ServerChange, ServerDrain};
pub use usage::{AccountUsage, MachineBehind, UsageQuestion, UsageView};

/// Largest JSON body of a request, bytes: a manifest with generous texts.
pub const BODY_MAX_BYTES: usize = 256 << 10;

/// Largest image file, bytes.
pub const IMAGE_FILE_MAX_BYTES: u64 = 64 << 30;

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// Short word for programs: `NotFound`, `Invalid`, `Conflict` …
    pub code: String,
    /// What is wrong and what would be right.
    pub message: String,
    /// The fields at fault.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<FieldBody>,
}

/// A field at fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldBody {
    /// Its name.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

/// The datacenter at a glance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Datacenter {
    /// Its name.
    pub name: String,
    /// Its region.
    pub region: String,
    /// Version of the headnode.
    pub version: String,
    /// When the headnode process began.
    pub started_at: Timestamp,
    /// The headnode's clock.
    pub now: Timestamp,
    /// Revision of the store.
    pub store_revision: u64,
    /// Bytes free where the store lies.
    pub store_free_bytes: u64,
    /// Resident memory of the headnode, bytes.
    pub resident_bytes: u64,
    /// How many there are.
    pub counts: Counts,
    /// Certificates and when they end.
    pub certificates: Vec<CertificateView>,
    /// How old this headnode's newest backup is, and where it lies.
    #[serde(default)]
    pub backups: BackupStanding,
    /// What deserves a look; empty when all is well.
    pub findings: Vec<String>,
}

/// How many there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Accounts.
    pub accounts: usize,
    /// Packages, inactive ones included.
    pub packages: usize,
    /// Networks.
    pub networks: usize,
    /// Images.
    pub images: usize,
    /// Servers.
    pub servers: usize,
    /// Instances that are not deleted.
    pub instances: usize,
    /// Of these, running ones.
    pub instances_running: usize,
    /// Of these, failed ones.
    pub instances_failed: usize,
    /// Flows under way.
    pub flows_running: usize,
    /// Flows that gave up and need a person.
    pub flows_parked: usize,
}

/// A certificate and its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateView {
    /// Whose.
    pub name: String,
    /// When it ends.
    pub expires_at: Timestamp,
    /// Its serial number, hexadecimal.
    #[serde(default)]
    pub serial: String,
}

/// Asks for an account.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewAccount {
    /// See [`model::account::Account::login`].
    pub login: String,
    /// The id it had in another datacenter whose instances are known again here; drawn when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<model::id::AccountId>,
    /// Contact.
    pub email: String,
    /// May act on every account.
    #[serde(default)]
    pub operator: bool,
}

/// Asks for a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    /// What to call it; the fingerprint when absent.
    #[serde(default)]
    pub name: Option<String>,
    /// One line of OpenSSH public key text.
    pub key: String,
}

/// Asks for a package. Sizes in MiB.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewPackage {
    /// Chosen at random when absent.
    #[serde(default)]
    pub id: Option<PackageId>,
    /// See [`model::package::Package::name`].
    pub name: String,
    /// See [`model::package::Package::version`]; `1.0.0` when absent.
    #[serde(default)]
    pub version: Option<String>,
    /// See [`model::package::Package::group`].
    #[serde(default)]
    pub group: Option<String>,
    /// See [`model::package::Package::description`].
    #[serde(default)]
    pub description: Option<String>,
    /// Memory.
    pub memory: u64,
    /// Memory plus swap; twice the memory when absent.
    #[serde(default)]
    pub swap: Option<u64>,
    /// Disk quota.
    pub disk: u64,
    /// Most processes; 2,000 when absent.
    #[serde(default)]
    pub max_processes: Option<u32>,
    /// Virtual CPUs shown.
    #[serde(default)]
    pub vcpus: u32,
    /// Percent of one core.
    #[serde(default)]
    pub cpu_cap: Option<u32>,
    /// Weight; 100 when absent.
    #[serde(default)]
    pub cpu_shares: Option<u32>,
    /// See [`model::package::Package::traits`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub traits: BTreeMap<String, Trait>,
}

/// Asks for a network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewNetwork {
    /// See [`model::network::Network::name`].
    pub name: String,
    /// See [`model::network::Network::description`].
    #[serde(default)]
    pub description: Option<String>,
    /// See [`model::network::Network::owners`].
    #[serde(default)]
    pub owners: Vec<AccountId>,
    /// See [`model::network::Network::public`].
    #[serde(default)]
    pub public: bool,
    /// See [`model::network::Network::nic_tag`].
    pub nic_tag: String,
    /// See [`model::network::Network::vlan`].
    #[serde(default)]
    pub vlan: u16,
    /// The IPv4 subnet, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<ipnet::Ipv4Net>,
    /// First address given out; the first after the gateway when absent.
    #[serde(default)]
    pub range_start: Option<std::net::Ipv4Addr>,
    /// Last address given out; the last of the subnet when absent.
    #[serde(default)]
    pub range_end: Option<std::net::Ipv4Addr>,
    /// See [`model::network::Network::gateway`].
    #[serde(default)]
    pub gateway: Option<std::net::Ipv4Addr>,
    /// The IPv6 subnet, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet6: Option<ipnet::Ipv6Net>,
    /// First IPv6 address given out; the first after the gateway when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range6_start: Option<std::net::Ipv6Addr>,
    /// Last IPv6 address given out; the last of the subnet when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range6_end: Option<std::net::Ipv6Addr>,
    /// See [`model::network::Network::gateway6`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway6: Option<std::net::Ipv6Addr>,
    /// See [`model::network::Network::resolvers`].
    #[serde(default)]
    pub resolvers: Vec<IpAddr>,
    /// See [`model::network::Network::routes`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub routes: BTreeMap<ipnet::IpNet, IpAddr>,
    /// See [`model::network::Network::mtu`]; 1500 when absent.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// See [`model::network::Network::host_gateway`].
    #[serde(default)]
    pub host_gateway: bool,
    /// See [`model::network::Network::nat`].
    #[serde(default)]
    pub nat: bool,
}

/// A server, and whether it is being heard of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServerView {
    /// The record.
    #[serde(flatten)]
    pub server: Server,
    /// Its reports arrive.
    pub reachable: bool,
    /// How it is.
    pub condition: Condition,
    /// Milliseconds since its last report; `None` when it was not heard of since the headnode began.
    pub last_heard_ms: Option<u64>,
    /// Instances it has and no record knows as its own. They are left alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub strangers: Vec<InstanceId>,
    /// What a full packet of the datacenter's fabrics becomes at its address between machines, bytes; beside
    /// [`Server::underlay_mtu`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub underlay_needed: Option<u32>,
    /// Its wires to other machines; in a list of machines only those that are not well, and at most 16 of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wires: Vec<WireView>,
    /// How many of its wires are well.
    #[serde(default)]
    pub wires_well: usize,
    /// How long ago at most it tried them, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wires_age_ms: Option<u64>,
    /// Of how many machines these are its wires, when that is more than it tries in one round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wires_of: Option<u32>,
    /// Its clock beside the headnode's, as of its last report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<ClockReading>,
}

/// A machine's wire to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireView {
    /// Where the other machine is met.
    pub machine: IpAddr,
    /// Its host name, if a server is met there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// What was found out.
    #[serde(flatten)]
    pub fact: WireFact,
}

/// An instance as operators see it: the whole record, and what follows from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceView {
    /// The record: intent, fact, failure, timeline, history.
    #[serde(flatten)]
    pub instance: Instance,
    /// CloudAPI's state word.
    pub state: String,
    /// When the state is `offline`: when its machine was last heard of, and by which headnode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<LastSeen>,
    /// Address of the primary NIC.
    pub primary_ip: Option<std::net::IpAddr>,
    /// Login of its owner.
    pub owner_login: Option<String>,
}

/// The last sign of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastSeen {
    /// When.
    pub at: Timestamp,
    /// That long before this answer, milliseconds.
    pub age_ms: u64,
    /// Host name of the headnode that heard it.
    pub by: String,
}

/// A piece of what an instance wrote to its console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleView {
    /// Which instance.
    pub instance: InstanceId,
    /// What it wrote; bytes that are no UTF-8 have become U+FFFD. Whatever runs inside decides what this is: mind where
    /// you print it.
    pub text: String,
    /// To be sent as `after` to read on; `None` while nothing was ever written.
    pub next: Option<String>,
    /// What was asked for is gone: the log keeps a bounded amount.
    pub lost: bool,
}

/// A flow: a journaled job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowView {
    /// Its id.
    pub id: String,
    /// What it does, e.g. `provision`.
    pub kind: String,
    /// What it works on.
    pub subject: String,
    /// `running`, `undoing`, `succeeded`, `failed`, `parked`.
    pub state: String,
    /// Why it failed.
    pub error: Option<String>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// In order.
    pub steps: Vec<StepView>,
}

/// One step of a flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepView {
    /// Its name.
    pub name: String,
    /// What became of it.
    pub state: String,
    /// How often it was tried.
    pub attempts: u32,
    /// When it was first tried.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// What went wrong last.
    pub error: Option<String>,
}

/// A loop of the headnode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoopView {
    /// Its name.
    pub name: String,
    /// Milliseconds between passes.
    pub period_ms: u64,
    /// Milliseconds since the last good pass ended; `None` before the first.
    pub age_ms: Option<u64>,
    /// How often it ran.
    pub passes: u64,
    /// What the last pass did, in words.
    pub summary: Option<String>,
    /// What went wrong in the last pass.
    pub error: Option<String>,
}

/// Address of a network that is in use; see [`model::network::Address`].
pub type Address = model::network::Address;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_are_refused_by_name() {
        let error = serde_json::from_str::<NewKey>(r#"{"key":"ssh-ed25519 AAAA","nmae":"x"}"#).unwrap_err();
        assert!(error.to_string().contains("nmae"), "{error}");
    }

    #[test]
    fn absent_fields_take_their_defaults() {
        let package: NewPackage = serde_json::from_str(r#"{"name":"small","memory":256,"disk":1024}"#).unwrap();
        assert_eq!((package.swap, package.vcpus), (None, 0));
    }
}
