//! NIC tags, pools of networks, reserved addresses and tenants' VLANs, and the client's verbs for them.

use std::net::IpAddr;

use model::{
    id::{AccountId, MacAddr, ServerId},
    network::{Address, FabricVlan, Network, Nic, NicTag, Pool},
};
use serde::{Deserialize, Serialize};

use crate::{Client, Error, client::segment};

/// A network, and where what it translates leaves the datacenter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkView {
    /// The record.
    #[serde(flatten)]
    pub network: Network,
    /// Machines with instances on it, where they translate for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nat_addresses: Vec<NatAddress>,
}

/// A machine that translates for instances of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatAddress {
    /// The machine.
    pub server: ServerId,
    /// Its name.
    pub hostname: String,
    /// The address the outside sees; `None` while it has none, or has not said.
    pub address: Option<IpAddr>,
}

/// Asks for a NIC tag.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewNicTag {
    /// See [`NicTag::name`].
    pub name: String,
    /// See [`NicTag::mtu`]; 1500 when absent.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// See [`NicTag::description`].
    #[serde(default)]
    pub description: Option<String>,
}

/// A NIC tag and who is on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicTagView {
    /// The record.
    #[serde(flatten)]
    pub tag: NicTag,
    /// Names of the networks on it.
    pub networks: Vec<String>,
}

/// Asks for a pool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewPool {
    /// See [`Pool::name`].
    pub name: String,
    /// See [`Pool::description`].
    #[serde(default)]
    pub description: Option<String>,
    /// See [`Pool::owners`].
    #[serde(default)]
    pub owners: Vec<AccountId>,
    /// Networks by id or name, in the order in which they are tried.
    pub networks: Vec<String>,
}

/// A NIC of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicView {
    /// The record.
    #[serde(flatten)]
    pub nic: Nic,
    /// What its network is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_name: Option<String>,
    /// `running`, or `provisioning` while its machine makes it.
    pub state: String,
}

/// What to change of a NIC.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicChange {
    /// All its IPv6 addresses from now on, 1 to 8.
    pub ipv6_ips: Vec<std::net::Ipv6Addr>,
}

impl Client {
    /// NICs of an instance, in the order of their interfaces.
    pub async fn nics(&self, instance: &str) -> Result<Vec<NicView>, Error> {
        self.get(&format!("/v1/instances/{}/nics", segment(instance))).await
    }

    /// Changes a NIC of an instance, which runs on.
    pub async fn change_nic(&self, instance: &str, mac: MacAddr, change: &NicChange) -> Result<NicView, Error> {
        self.post(&format!("/v1/instances/{}/nics/{mac}", segment(instance)), change).await
    }

    /// Every NIC tag.
    pub async fn nic_tags(&self) -> Result<Vec<NicTagView>, Error> {
        self.get("/v1/nic-tags").await
    }

    /// Makes a NIC tag.
    pub async fn create_nic_tag(&self, tag: &NewNicTag) -> Result<NicTagView, Error> {
        self.post("/v1/nic-tags", tag).await
    }

    /// Forgets a NIC tag no network is on.
    pub async fn delete_nic_tag(&self, name: &str) -> Result<(), Error> {
        self.remove(&format!("/v1/nic-tags/{}", segment(name))).await
    }

    /// Every pool.
    pub async fn pools(&self) -> Result<Vec<Pool>, Error> {
        self.get("/v1/pools").await
    }

    /// Makes a pool.
    pub async fn create_pool(&self, pool: &NewPool) -> Result<Pool, Error> {
        self.post("/v1/pools", pool).await
    }

    /// Deletes a pool, by name or id; its networks stay.
    pub async fn delete_pool(&self, pool: &str) -> Result<(), Error> {
        self.remove(&format!("/v1/pools/{}", segment(pool))).await
    }

    /// Keeps an address from being given out by itself, or ends that.
    pub async fn reserve_address(&self, network: &str, ip: IpAddr, reserved: bool) -> Result<Option<Address>, Error> {
        let verb = if reserved { "reserve" } else { "release" };
        self.act(&format!("/v1/networks/{}/ips/{ip}/{verb}", segment(network))).await
    }

    /// Every tenant's VLANs.
    pub async fn fabric_vlans(&self) -> Result<Vec<FabricVlan>, Error> {
        self.get("/v1/fabrics").await
    }
}
