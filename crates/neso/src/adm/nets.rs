//! `neso adm nic-tag|pool|fabric …`: what networks lie on, and what tenants drew themselves.

use opsapi::{Client, NewNicTag, NewPool};

use super::{Output, or_dash, table};
use crate::failure::Outcome;

/// What to do with NIC tags.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum NicTags {
    /// List NIC tags.
    #[command(visible_alias = "ls")]
    List,
    /// Make a NIC tag.
    Create {
        /// 1 to 10 lower-case letters and digits.
        name: String,
        /// Bytes its frames carry, 1500 to 9000.
        #[arg(long)]
        mtu: Option<u16>,
        /// For people.
        #[arg(long)]
        description: Option<String>,
    },
    /// Forget a NIC tag no network is on.
    #[command(visible_alias = "rm")]
    Delete {
        /// Its name.
        name: String,
    },
}

/// Runs it.
pub(crate) async fn nic_tags(client: &Client, output: Output, command: NicTags) -> Outcome {
    let tags = match command {
        NicTags::List => client.nic_tags().await?,
        NicTags::Create { name, mtu, description } => {
            vec![client.create_nic_tag(&NewNicTag { name, mtu, description }).await?]
        }
        NicTags::Delete { name } => {
            client.delete_nic_tag(&name).await?;
            return output.say(format!("Deleted NIC tag {name}."));
        }
    };
    output.show(&tags, |tags| {
        table(
            &["name", "mtu", "networks", "description"],
            tags.iter().map(|view| {
                let tag = &view.tag;
                let networks = view.networks.join(", ");
                vec![tag.name.clone(), tag.mtu.to_string(), networks, or_dash(tag.description.as_ref())]
            }),
        )
    })
}

/// What to do with pools of networks.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Pools {
    /// List pools.
    #[command(visible_alias = "ls")]
    List,
    /// Make a pool.
    Create {
        /// Name tenants see.
        name: String,
        /// Network by id or name, in the order in which they are tried; may be repeated.
        #[arg(long = "network", required = true)]
        networks: Vec<String>,
        /// Login or id of an account that sees it; everybody when absent.
        #[arg(long)]
        owner: Vec<String>,
        /// Shown to tenants.
        #[arg(long)]
        description: Option<String>,
    },
    /// Delete a pool; its networks stay.
    #[command(visible_alias = "rm")]
    Delete {
        /// Name or id.
        pool: String,
    },
}

/// Runs it.
pub(crate) async fn pools(client: &Client, output: Output, command: Pools) -> Outcome {
    let pools = match command {
        Pools::List => client.pools().await?,
        Pools::Create { name, networks, owner, description } => {
            let mut owners = Vec::new();
            for owner in owner {
                owners.push(client.account(&owner).await?.id);
            }
            vec![client.create_pool(&NewPool { name, description, owners, networks }).await?]
        }
        Pools::Delete { pool } => {
            client.delete_pool(&pool).await?;
            return output.say(format!("Deleted pool {pool}."));
        }
    };
    output.show(&pools, |pools| {
        table(
            &["name", "id", "networks"],
            pools.iter().map(|pool| {
                let networks: Vec<String> = pool.networks.iter().map(ToString::to_string).collect();
                vec![pool.name.clone(), pool.id.to_string(), networks.join(", ")]
            }),
        )
    })
}

/// What to see of tenants' own networks.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Fabrics {
    /// List every tenant's VLANs and their numbers in the datacenter.
    #[command(visible_alias = "ls")]
    List,
}

/// Runs it.
pub(crate) async fn fabrics(client: &Client, output: Output, command: Fabrics) -> Outcome {
    let Fabrics::List = command;
    output.show(&client.fabric_vlans().await?, |vlans| {
        table(
            &["owner", "vlan", "name", "vni", "created"],
            vlans.iter().map(|vlan| {
                let (owner, created) = (vlan.owner.to_string(), vlan.created_at.to_string());
                vec![owner, vlan.vlan.to_string(), vlan.name.clone(), vlan.vni.to_string(), created]
            }),
        )
    })
}
