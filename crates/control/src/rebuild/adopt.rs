//! Making the record of an instance from what its machine was told of it.
//!
//! One pure decision on one snapshot says what becomes of it, for the operator who only looks as for the one who acts. What
//! records it refers to and nobody knows are made too, under names that say so ([`super::missing`]); only what somebody
//! else holds meanwhile (an address, an Ethernet address, the id) refuses it.

use std::net::{IpAddr, Ipv6Addr};

use model::{
    compile::ROOT_AUTHORIZED_KEYS,
    id::{AccountId, InstanceId, PackageId, ServerId},
    instance::{Caller, Instance, Intent, Wanted},
    network::{Address, Nic},
    placement::Demand,
    server::Server,
    target::{LastTold, NicTarget, ZoneFact, ZoneState},
    time::Timestamp,
};
use store::{Snapshot, Transaction};

use super::{missing, noted};
use crate::{
    Control, Error, Result,
    accounts::keys,
    placement,
    tables::{ACCOUNTS, ADDRESSES, CLAIMS, Claim, IMAGES, INSTANCES, SERVERS, address_key},
};

/// What becomes of an instance no record knows.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// Which.
    pub instance: InstanceId,
    /// The machine that has it.
    pub server: ServerId,
    /// The name it will have.
    pub alias: String,
    /// Whose it is.
    pub owner: AccountId,
    /// Name of its package.
    pub package: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// How it is.
    pub state: Option<ZoneState>,
    /// Why it cannot be adopted.
    pub refused: Option<String>,
    /// What will be otherwise than it was.
    pub notes: Vec<String>,
}

/// Says what would become of an instance of `server`, without changing anything.
pub fn judge(control: &Control, server: ServerId, id: InstanceId, told: &LastTold) -> Judgement {
    decide(control, &control.snapshot(), &Caller::System, (server, id), told, control.now()).0
}

/// Makes an instance of `server` known again, in one commit, unless the judgement refuses it.
pub async fn adopt(
    control: &Control,
    caller: &Caller,
    server: ServerId,
    id: InstanceId,
    told: &LastTold,
) -> Result<Judgement> {
    let (_, judgement) = control
        .store
        .update(|snapshot| {
            let (judgement, made) = decide(control, snapshot, caller, (server, id), told, control.now());
            Ok::<_, Error>((made.unwrap_or_default(), judgement))
        })
        .await?;
    if judgement.refused.is_none() {
        tracing::info!(instance = %id, %server, "an instance is known again");
    }
    Ok(judgement)
}

fn decide(
    control: &Control,
    snapshot: &Snapshot,
    caller: &Caller,
    (server, id): (ServerId, InstanceId),
    told: &LastTold,
    now: Timestamp,
) -> (Judgement, Option<Transaction>) {
    let zone = &told.zone;
    let report = control.reports.get(server);
    let fact = report.as_ref().and_then(|taken| taken.report.zones.get(&id)).map(|fact| ZoneFact::clone(fact));
    let mut judgement = Judgement {
        instance: id,
        server,
        alias: zone.alias.clone(),
        owner: zone.owner,
        package: zone.package_name.clone(),
        addresses: zone.nics.iter().flat_map(|nic| nic.addresses().map(|net| net.addr())).collect(),
        state: fact.as_ref().map(|fact| fact.state),
        refused: None,
        notes: Vec::new(),
    };
    let making = Making { control, snapshot, id, told, now };
    match making.all(caller, server, fact, &mut judgement) {
        Ok(transaction) => (judgement, Some(transaction)),
        Err(why) => {
            judgement.refused = Some(why);
            (judgement, None)
        }
    }
}

/// What one decision starts from.
struct Making<'a> {
    control: &'a Control,
    snapshot: &'a Snapshot,
    id: InstanceId,
    told: &'a LastTold,
    now: Timestamp,
}

impl Making<'_> {
    /// The whole transaction, or why there is none.
    fn all(
        &self,
        caller: &Caller,
        server: ServerId,
        fact: Option<ZoneFact>,
        judgement: &mut Judgement,
    ) -> Result<Transaction, String> {
        let (snapshot, zone) = (self.snapshot, &self.told.zone);
        if let Some(known) = snapshot.get(&INSTANCES, &self.id.to_string()) {
            return Err(match known.server == server {
                true => "it is known already".to_owned(),
                false => format!("a record says that it is on server {}", known.server),
            });
        }
        let Some(machine) = snapshot.get(&SERVERS, &server.to_string()) else {
            return Err(format!("there is no server {server}"));
        };
        if fact.as_ref().is_none_or(|fact| !super::is_there(fact)) {
            return Err("its machine has nothing of it any more".to_owned());
        }
        let notes = &mut judgement.notes;
        let mut transaction = Transaction::new();
        if snapshot.get(&ACCOUNTS, &zone.owner.to_string()).is_none() {
            transaction = missing::account(snapshot, zone.owner, self.now, notes, transaction)?;
        }
        let package = zone.package.unwrap_or_else(|| PackageId::from_random(base::random::wide_bits()));
        transaction = missing::package(snapshot, package, zone, self.now, notes, transaction);
        if snapshot.get(&IMAGES, &zone.image.to_string()).is_none() {
            notes.push(format!("nobody knows its image {}: import it to create more of the kind", zone.image));
        }
        let (alias, claimed) = self.alias(notes, transaction)?;
        judgement.alias.clone_from(&alias);
        transaction = claimed;
        for nic in &zone.nics {
            transaction = missing::network(snapshot, self.told, nic, self.now, notes, transaction)?;
        }
        let (nics, held) = self.nics(transaction)?;
        transaction = missing::set_aside(snapshot, self.told, self.now, notes, held)?;
        let instance = self.record(caller, (server, fact), (alias, package, nics), notes);
        let reserved = machine.reserved.plus(Demand::held_by(&instance));
        let promised = placement::with_room(self.control, Server { reserved, ..machine.value.clone() });
        Ok(transaction.replace(&SERVERS, &machine, promised).create(&INSTANCES, instance))
    }

    /// Its name, or one like it when another instance of its owner has that by now.
    fn alias(&self, notes: &mut Vec<String>, transaction: Transaction) -> Result<(String, Transaction), String> {
        let owner = self.told.zone.owner;
        let had = &self.told.zone.alias;
        let other = || {
            let end = format!("-{}", self.id.short());
            let room = self.control.config.alias_max.saturating_sub(end.len());
            had.chars().take(room).chain(end.chars()).collect::<String>()
        };
        for alias in [had.clone(), other()] {
            let name = Claim::alias(owner, &alias);
            if self.snapshot.get(&CLAIMS, &name).is_some() {
                continue;
            }
            if alias != *had {
                notes.push(format!("the name \"{had}\" is another instance's by now: it is called \"{alias}\""));
            }
            return Ok((alias, transaction.create(&CLAIMS, Claim { name, holder: self.id.to_string() })));
        }
        Err(format!("the name \"{had}\" is another instance's by now"))
    }

    /// Its NICs, with their addresses taken.
    fn nics(&self, mut transaction: Transaction) -> Result<(Vec<Nic>, Transaction), String> {
        let mut nics = Vec::new();
        for told in &self.told.zone.nics {
            let name = Claim::mac(told.mac);
            if let Some(claim) = self.snapshot.get(&CLAIMS, &name) {
                return Err(format!("its Ethernet address {} is instance {}'s by now", told.mac, claim.holder));
            }
            transaction = transaction.create(&CLAIMS, Claim { name, holder: self.id.to_string() });
            for net in told.addresses() {
                transaction = self.address(told, net.addr(), transaction)?;
            }
            let mut ips6 = told.addresses6.iter().map(|net| net.addr());
            nics.push(Nic {
                mac: told.mac,
                interface: told.interface.clone(),
                network: told.network,
                ip: told.address.map(|net| net.addr()),
                ip6: ips6.next(),
                more6: ips6.collect::<Vec<Ipv6Addr>>(),
                primary: told.primary,
            });
        }
        Ok((nics, transaction))
    }

    fn address(&self, nic: &NicTarget, ip: IpAddr, transaction: Transaction) -> Result<Transaction, String> {
        let owner = self.told.zone.owner;
        let held = |reserved| Address {
            network: nic.network,
            ip,
            instance: Some(self.id),
            owner: Some(owner),
            reserved,
            created_at: self.now,
        };
        match self.snapshot.get(&ADDRESSES, &address_key(nic.network, ip)) {
            None => Ok(transaction.create(&ADDRESSES, held(false))),
            Some(free) if free.instance.is_none() && free.owner.is_none_or(|of| of == owner) => {
                Ok(transaction.replace(&ADDRESSES, &free, held(free.reserved)))
            }
            Some(taken) => {
                let by = taken.instance.map_or_else(|| "another account".to_owned(), |by| format!("instance {by}"));
                Err(format!("{by} has its address {ip} by now; take it away there first"))
            }
        }
    }

    fn record(
        &self,
        caller: &Caller,
        (server, fact): (ServerId, Option<ZoneFact>),
        (alias, package, nics): (String, PackageId, Vec<Nic>),
        notes: &mut Vec<String>,
    ) -> Instance {
        let zone = &self.told.zone;
        let runs = fact.as_ref().is_some_and(|fact| fact.state == ZoneState::Running);
        let wanted = match zone.wanted {
            Wanted::Absent => {
                notes.push("its deletion had been asked for and was not carried out: delete it again".to_owned());
                if runs { Wanted::Running } else { Wanted::Stopped }
            }
            wanted => wanted,
        };
        let done = |count: fn(&ZoneFact) -> u64| fact.as_ref().map_or(0, count);
        // The owner's keys stand in for this while the tenant set none.
        let mut metadata = zone.metadata.to_map();
        let account_keys = keys::authorized_keys(self.snapshot, zone.owner);
        if !account_keys.is_empty() && metadata.get(ROOT_AUTHORIZED_KEYS) == Some(&account_keys) {
            metadata.remove(ROOT_AUTHORIZED_KEYS);
        }
        let mut instance = Instance {
            id: self.id,
            owner: zone.owner,
            alias,
            brand: zone.brand,
            image: zone.image,
            package,
            package_name: zone.package_name.clone(),
            limits: zone.limits.clone(),
            affinity: Vec::new(),
            server,
            nics,
            metadata: metadata.into(),
            internal_metadata: zone.internal_metadata.clone(),
            tags: zone.tags.clone(),
            firewall_enabled: self.told.firewall,
            deletion_protection: false,
            intent: Intent {
                wanted,
                starts: zone.starts.max(done(|fact| fact.starts_done)),
                reboots: zone.reboots.max(done(|fact| fact.reboots_done)),
            },
            fact: fact.map(|fact| ZoneFact { guest_metadata: Vec::new(), ..fact }),
            released: false,
            lost_at: None,
            failure: None,
            flow: None,
            timeline: Vec::new(),
            guest_metadata_seen: zone.guest_metadata_seen,
            metadata_edits: 0,
            metadata_edits_served: 0,
            history: Vec::new(),
            created_at: zone.created_at,
            updated_at: self.now,
            delete_asked_at: None,
            deleted_at: None,
        };
        noted(&mut instance, caller.clone(), "rebuild", None, self.now);
        instance
    }
}
