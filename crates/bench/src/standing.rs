//! Records of instances that have been running for long, for benchmarks that begin with a full datacenter.

use std::{collections::BTreeMap, net::Ipv4Addr};

use control::{
    networks::NewNetwork,
    tables::{self, Claim},
};
use flow::{FLOWS, FlowId, FlowRecord, FlowState, Notes, StepRecord, StepState};
use model::{
    id::{AccountId, ImageId, InstanceId, MacAddr, NetworkId, PackageId, ServerId},
    instance::{Brand, Instance, Intent, Wanted},
    layout::Layout,
    network::{Address, Nic},
    pairs::Pairs,
    placement::{Demand, Policy, roominess},
    server::{Hardware, Server},
    target::{Limits, ZoneFact, ZoneState},
    time::Timestamp,
    unit::{CpuCap, CpuShares, Mib},
};
use store::Transaction;

/// Networks of a full datacenter; each holds 2^14 addresses.
pub(crate) const NETWORKS: u32 = 32;
/// Instances of one transaction: with everything that belongs to them it fits into one commit of every engine.
const TOGETHER: u32 = 10;
/// Machines in a rack.
const RACK: u32 = 40;

/// Whose instances of what, and where.
pub(crate) struct World {
    pub(crate) accounts: Vec<AccountId>,
    /// [`NETWORKS`] of them, made of [`network`].
    pub(crate) networks: Vec<NetworkId>,
    pub(crate) image: ImageId,
    pub(crate) policy: Policy,
    pub(crate) on_each: u32,
    /// Whether each instance has the job that made it, ended.
    pub(crate) jobs: bool,
}

impl World {
    /// Machine `number` with its instances: its id, and the transactions that write all that.
    pub(crate) fn machine(&self, number: u32, now: Timestamp) -> (ServerId, Vec<Transaction>) {
        let id = ServerId::random();
        let rack = Some(format!("r{}", number / RACK));
        let mut server = Server { hardware: hardware(), rack, ..Server::new(id, format!("m{number}"), now) };
        let (mut transactions, mut transaction) = (Vec::new(), Transaction::new());
        for slot in 0..self.on_each {
            let index = number * self.on_each + slot;
            let owner = self.accounts[index as usize % self.accounts.len()];
            let network = self.networks[index as usize % self.networks.len()];
            let instance = full(index, owner, self.image, network, id, now);
            server.reserved = server.reserved.plus(Demand::of(&instance.limits));
            let nic = &instance.nics[0];
            let address = Address {
                network,
                ip: nic.first_address().expect("it was given one"),
                instance: Some(instance.id),
                owner: Some(owner),
                reserved: false,
                created_at: now,
            };
            let holder = instance.id.to_string();
            if self.jobs {
                transaction = transaction.create(&FLOWS, job(&instance, now));
            }
            transaction = transaction
                .create(&tables::CLAIMS, Claim { name: format!("mac/{}", nic.mac.bare()), holder: holder.clone() })
                .create(&tables::CLAIMS, Claim { name: format!("alias/{owner}/{}", instance.alias), holder })
                .create(&tables::ADDRESSES, address)
                .create(&tables::INSTANCES, instance);
            if slot % TOGETHER == TOGETHER - 1 {
                transactions.push(std::mem::take(&mut transaction));
            }
        }
        server.roominess = roominess(&self.policy, &server);
        transactions.push(transaction.create(&tables::SERVERS, server));
        (id, transactions)
    }
}

/// What every machine of a full datacenter has.
pub(crate) fn hardware() -> Hardware {
    Hardware { memory: Mib(256 << 10), cpus: 64, pool_size: Mib(8 << 20), ..Hardware::default() }
}

/// Network `number` of a full datacenter.
pub(crate) fn network(number: u32) -> NewNetwork {
    let subnet = Ipv4Addr::from_bits(first_address(number));
    NewNetwork {
        name: format!("net{number}"),
        nic_tag: "external".to_owned(),
        // A segment of its own.
        vlan: u16::try_from(number).unwrap_or(0),
        layout: Layout { subnet: Some(ipnet::Ipv4Net::new_assert(subnet, 18)), ..Layout::default() },
        ..NewNetwork::default()
    }
}

const fn first_address(network: u32) -> u32 {
    0x0a40_0000 | network << 14
}

/// One that has been running for long. `index` is its number in the datacenter.
pub(crate) fn full(
    index: u32,
    owner: AccountId,
    image: ImageId,
    network: NetworkId,
    server: ServerId,
    now: Timestamp,
) -> Instance {
    let limits = Limits {
        memory: Mib(1_024),
        swap: Mib(2_048),
        disk: Mib(10_240),
        max_processes: 500,
        cpu_cap: Some(CpuCap(100)),
        cpu_shares: CpuShares(100),
    };
    let ip = Ipv4Addr::from_bits(first_address(index % NETWORKS) + 2 + index / NETWORKS);
    let of = Standing {
        alias: format!("standing-{index}"),
        owner,
        image,
        package: PackageId::random(),
        package_name: "bench",
        limits,
        server,
        nic: Nic {
            mac: MacAddr::from_suffix(index),
            interface: "net0".to_owned(),
            network,
            ip: Some(ip),
            ip6: None,
            more6: Vec::new(),
            primary: true,
        },
    };
    instance(of, now)
}

/// The job that made an instance, long ended.
fn job(of: &Instance, now: Timestamp) -> FlowRecord {
    let step = StepRecord {
        name: "await_running".to_owned(),
        state: StepState::Done,
        attempts: 0,
        started_at: Some(now.0),
        ended_at: Some(now.0),
        error: None,
    };
    FlowRecord {
        id: FlowId::new(now.0),
        kind: "provision".to_owned(),
        subject: of.id.to_string(),
        group: of.owner.to_string(),
        input: serde_json::json!({"instance": of.id}),
        notes: Notes::default(),
        steps: vec![step],
        state: FlowState::Succeeded,
        error: None,
        created_at: now.0,
        ended_at: Some(now.0),
    }
}

/// What tells one such instance from another.
pub(crate) struct Standing {
    pub(crate) alias: String,
    pub(crate) owner: AccountId,
    pub(crate) image: ImageId,
    pub(crate) package: PackageId,
    pub(crate) package_name: &'static str,
    pub(crate) limits: Limits,
    pub(crate) server: ServerId,
    pub(crate) nic: Nic,
}

/// Its record; it was made at `now`, is as wanted, and has nothing under way.
pub(crate) fn instance(of: Standing, now: Timestamp) -> Instance {
    Instance {
        id: InstanceId::random(),
        owner: of.owner,
        alias: of.alias,
        brand: Brand::Lx,
        image: of.image,
        package: of.package,
        package_name: of.package_name.to_owned(),
        affinity: Vec::new(),
        limits: of.limits.clone(),
        server: of.server,
        nics: vec![of.nic.clone()],
        metadata: Pairs::from([("root_authorized_keys".to_owned(), "ssh-ed25519 AAAA bench".to_owned())]),
        internal_metadata: Pairs::default(),
        tags: Pairs::default(),
        firewall_enabled: false,
        deletion_protection: false,
        intent: Intent { wanted: Wanted::Running, starts: 1, reboots: 0 },
        fact: Some(ZoneFact {
            state: ZoneState::Running,
            starts_done: 1,
            reboots_done: 0,
            started_at: Some(now),
            exit: None,
            error: None,
            timeline: Vec::new(),
            limits: Some(of.limits),
            nics: vec![of.nic.mac],
            addresses6: BTreeMap::new(),
            gave_up: false,
            oom_kills: 0,
            guest_metadata: Vec::new(),
        }),
        lost_at: None,
        failure: None,
        flow: None,
        timeline: Vec::new(),
        guest_metadata_seen: 0,
        metadata_edits: 0,
        metadata_edits_served: 0,
        history: Vec::new(),
        created_at: now,
        updated_at: now,
        deleted_at: None,
        delete_asked_at: None,
        released: false,
    }
}
