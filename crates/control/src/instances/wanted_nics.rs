//! The NICs a new instance is to have: on networks that are named, or on one of a pool, which is chosen with the machine.

use std::sync::Arc;

use model::{
    account::Account,
    id::PoolId,
    network::{Network, Nic},
    placement::{Choice, wiring},
    server::Server,
};
use store::{Entry, Snapshot, Transaction};

use super::{NetworkChoice, create::HELD_MAX, nics::held};
use crate::{
    Control, Error, FieldCode, Result, Scope,
    networks::{
        self,
        allocate::{self, Given, Holder, Taken},
        pools::{self, OpenPool},
    },
};

/// The NICs in the order of their interfaces.
#[derive(Default)]
pub(super) struct WantedNics(Vec<WantedNic>);

struct WantedNic {
    on: On,
    choice: NetworkChoice,
}

enum On {
    Network(Arc<Entry<Network>>),
    Pool(OpenPool),
}

impl WantedNics {
    /// The networks that were asked for, or the defaults.
    pub(super) fn look_up(
        control: &Control,
        snapshot: &Snapshot,
        owner: &Account,
        asked: &[NetworkChoice],
    ) -> Result<Self> {
        if asked.is_empty() {
            return Ok(Self(defaults(control, snapshot, owner)));
        }
        if asked.iter().filter(|choice| choice.primary).count() > 1 {
            return Err(Error::field("networks", FieldCode::Conflict, "only one network can be the primary one"));
        }
        let scope = Scope::Account(owner.id);
        let named: Vec<_> = asked.iter().map(|choice| networks::visible(snapshot, scope, choice.network)).collect();
        let is_named = |id| named.iter().flatten().any(|network| network.id == id);
        // Every pool may need as many networks of one tag as there are pools.
        let pools = named.iter().filter(|network| network.is_none()).count();
        let mut wanted: Vec<WantedNic> = Vec::with_capacity(asked.len());
        for (choice, network) in asked.iter().zip(&named) {
            let on = match network {
                Some(network) => {
                    check(network, choice, &wanted)?;
                    On::Network(network.clone())
                }
                None => {
                    let pool = pools::visible(snapshot, scope, PoolId::new(choice.network.uuid()));
                    let pool = pool
                        .ok_or_else(|| Error::invalid("networks", format!("there is no network {}", choice.network)))?;
                    if choice.names_an_address() {
                        let why = "a certain address can be asked for on a network, not on a pool of networks";
                        return Err(Error::invalid("networks", why));
                    }
                    On::Pool(pools::open(control, snapshot, pool, is_named, pools)?)
                }
            };
            wanted.push(WantedNic { on, choice: choice.clone() });
        }
        Ok(Self(wanted))
    }

    /// The networks that are named.
    pub(super) fn fixed(&self) -> impl Iterator<Item = &Network> {
        self.0.iter().filter_map(|nic| match &nic.on {
            On::Network(network) => Some(&network.value),
            On::Pool(_) => None,
        })
    }

    /// The choices that are open.
    pub(super) fn choices(&self) -> Vec<Choice> {
        let choice = |nic: &WantedNic| match &nic.on {
            On::Network(_) => None,
            On::Pool(pool) => Some(pool.choice()),
        };
        self.0.iter().filter_map(choice).collect()
    }

    /// Gives each a network that `server` is wired to, and addresses there.
    pub(super) fn wire(
        &self,
        control: &Control,
        snapshot: &Snapshot,
        server: &Server,
        holder: Holder,
        mut transaction: Transaction,
    ) -> Result<(Vec<Nic>, Transaction)> {
        let choices = self.choices();
        let given = wiring::assign(&choices, server.nic_tags.as_ref());
        let mut given = given.map_err(|choice| Error::NoAddress { network: choice.pool.clone() })?.into_iter();
        let mut on = Vec::with_capacity(self.0.len());
        for nic in &self.0 {
            let network = match &nic.on {
                On::Network(network) => network.clone(),
                On::Pool(pool) => {
                    let id = given.next().expect("every choice was given a network");
                    pool.network(id).expect("which is one of its own")
                }
            };
            on.push((network, &nic.choice));
        }
        let mut taken = Taken::default();
        let mut nics = Vec::with_capacity(on.len());
        // Where nobody chose, the way out: the first public network.
        let asked = on.iter().position(|(_, choice)| choice.primary);
        let primary = asked.or_else(|| on.iter().position(|(network, _)| network.public)).unwrap_or(0);
        for (number, (network, choice)) in on.iter().enumerate() {
            let (Given { ip, ip6, more6 }, with_ip) =
                allocate::addresses_of(control, snapshot, network, choice.wanted(), holder, &mut taken, transaction)?;
            let (mac, with_mac) = allocate::mac(snapshot, holder.instance, allocate::chance, &mut taken, with_ip)?;
            transaction = with_mac;
            let (interface, network) = (format!("net{number}"), network.id);
            nics.push(Nic { mac, interface, network, ip, ip6, more6, primary: number == primary });
        }
        if held(&nics) > HELD_MAX {
            let why = format!("an instance can hold {HELD_MAX} addresses at most, Ethernet addresses among them");
            return Err(Error::invalid("networks", why));
        }
        Ok((nics, transaction))
    }
}

fn defaults(control: &Control, snapshot: &Snapshot, owner: &Account) -> Vec<WantedNic> {
    let scope = Scope::Account(owner.id);
    let own = owner.default_network.and_then(|id| networks::visible(snapshot, scope, id));
    let usual = control.config.default_networks.iter();
    let usual = usual.filter_map(|name| networks::by_name(snapshot, scope, name));
    let defaults: Vec<_> = match own {
        // Its own network stands for the shared ones; the way out is still the datacenter's.
        Some(network) if network.fabric.is_some() => usual.filter(|usual| usual.public).chain([network]).collect(),
        Some(network) => vec![network],
        None => usual.collect(),
    };
    let nic = |network: Arc<Entry<Network>>| {
        let choice = NetworkChoice::any(network.id);
        WantedNic { on: On::Network(network), choice }
    };
    defaults.into_iter().map(nic).collect()
}

/// Whether a named network can be had beside those `before` it.
fn check(network: &Network, choice: &NetworkChoice, before: &[WantedNic]) -> Result<()> {
    let is_same = |nic: &WantedNic| matches!(&nic.on, On::Network(other) if other.id == network.id);
    if before.iter().any(is_same) {
        return Err(Error::field("networks", FieldCode::Conflict, format!("network {} is named twice", network.id)));
    }
    if choice.names_an_address() && network.public {
        let why = format!("network \"{}\" is public; its addresses cannot be chosen", network.name);
        return Err(Error::invalid("networks", why));
    }
    Ok(())
}
