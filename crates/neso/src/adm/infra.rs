//! `neso adm package|network|image|server …`: what instances are made of.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use ipnet::IpNet;
use model::{id::AccountId, image::Image, network::Network, package::Package, server::Trait};
use opsapi::{Client, NetworkView, NewNetwork, NewPackage};

use super::{Output, bytes, details, or_dash, table};
use crate::{failure::Outcome, importing, progress::Progress};

/// What to do with packages.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Packages {
    /// List packages.
    #[command(visible_alias = "ls")]
    List,
    /// Show one package.
    Get {
        /// Name or id.
        package: String,
    },
    /// Make a package. Sizes in MiB.
    Create {
        /// Name tenants use.
        name: String,
        /// Memory.
        #[arg(long)]
        memory: u64,
        /// Memory plus swap; twice the memory when absent.
        #[arg(long)]
        swap: Option<u64>,
        /// Disk quota.
        #[arg(long)]
        disk: u64,
        /// Most processes.
        #[arg(long)]
        max_processes: Option<u32>,
        /// Ceiling on CPU time, percent of one core.
        #[arg(long)]
        cpu_cap: Option<u32>,
        /// Weight under contention.
        #[arg(long)]
        cpu_shares: Option<u32>,
        /// Groups packages of one family.
        #[arg(long)]
        group: Option<String>,
        /// Shown to tenants.
        #[arg(long)]
        description: Option<String>,
        /// Trait its instances ask of their machine, `name` or `name=value`; may be repeated. Machines with traits are kept for them.
        #[arg(long = "trait", value_parser = super::named_trait)]
        traits: Vec<(String, Trait)>,
    },
    /// Offer a package.
    Activate {
        /// Name or id.
        package: String,
    },
    /// Offer a package no longer; instances keep it.
    Deactivate {
        /// Name or id.
        package: String,
    },
}

/// Runs it.
pub(crate) async fn packages(client: &Client, output: Output, command: Packages) -> Outcome {
    match command {
        Packages::List => output.show(&client.packages().await?, |packages| package_listing(packages)),
        Packages::Get { package } => output.show(&vec![client.package(&package).await?], |one| package_listing(one)),
        Packages::Create {
            name,
            memory,
            swap,
            disk,
            max_processes,
            cpu_cap,
            cpu_shares,
            group,
            description,
            traits,
        } => {
            let wish = NewPackage {
                id: None,
                name,
                version: None,
                group,
                description,
                memory,
                swap,
                disk,
                max_processes,
                vcpus: 0,
                cpu_cap,
                cpu_shares,
                traits: traits.into_iter().collect(),
            };
            output.show(&vec![client.create_package(&wish).await?], |one| package_listing(one))
        }
        Packages::Activate { package } => {
            output.show(&vec![client.set_package_active(&package, true).await?], |one| package_listing(one))
        }
        Packages::Deactivate { package } => {
            output.show(&vec![client.set_package_active(&package, false).await?], |one| package_listing(one))
        }
    }
}

fn package_listing(packages: &[Package]) -> comfy_table::Table {
    table(
        &["name", "id", "memory", "swap", "disk", "cpu cap", "processes", "state"],
        packages.iter().map(|package| {
            vec![
                package.name.clone(),
                package.id.to_string(),
                package.memory.to_string(),
                package.swap.to_string(),
                package.disk.to_string(),
                package.cpu_cap.map_or_else(|| "none".to_owned(), |cap| format!("{}%", cap.0)),
                package.max_processes.to_string(),
                if package.active { "active" } else { "inactive" }.to_owned(),
            ]
        }),
    )
}

/// What to do with networks.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Networks {
    /// List networks.
    #[command(visible_alias = "ls")]
    List,
    /// Show one network.
    Get {
        /// Name or id.
        network: String,
    },
    /// Make a network.
    Create(Box<NetworkWish>),
    /// List a network's addresses that are in use or reserved.
    Ips {
        /// Name or id.
        network: String,
    },
    /// Keep an address from being given out by itself.
    Reserve {
        /// Name or id.
        network: String,
        /// The address.
        ip: std::net::IpAddr,
    },
    /// End the reservation of an address.
    Release {
        /// Name or id.
        network: String,
        /// The address.
        ip: std::net::IpAddr,
    },
    /// Remove a network nobody uses.
    #[command(visible_alias = "rm")]
    Delete {
        /// Name or id.
        network: String,
    },
}

/// A network to be made.
#[derive(Debug, clap::Args)]
pub(crate) struct NetworkWish {
    /// Name tenants see.
    name: String,
    /// The IPv4 subnet, e.g. 10.5.0.0/24.
    #[arg(long, required_unless_present = "subnet6")]
    subnet: Option<ipnet::Ipv4Net>,
    /// Bridge tag: with the VLAN it names the segment, which carries this network alone.
    #[arg(long)]
    nic_tag: String,
    /// 802.1Q VLAN; 0 is untagged.
    #[arg(long, default_value_t = 0)]
    vlan: u16,
    /// First address given out.
    #[arg(long)]
    range_start: Option<Ipv4Addr>,
    /// Last address given out.
    #[arg(long)]
    range_end: Option<Ipv4Addr>,
    /// The gateway.
    #[arg(long)]
    gateway: Option<Ipv4Addr>,
    /// An IPv6 subnet, e.g. fd00:5::/64: beside the other, where instances get an address of each, or alone.
    #[arg(long)]
    subnet6: Option<ipnet::Ipv6Net>,
    /// First IPv6 address given out.
    #[arg(long)]
    range6_start: Option<Ipv6Addr>,
    /// Last IPv6 address given out.
    #[arg(long)]
    range6_end: Option<Ipv6Addr>,
    /// The IPv6 gateway.
    #[arg(long)]
    gateway6: Option<Ipv6Addr>,
    /// Name servers, up to 4.
    #[arg(long)]
    resolver: Vec<IpAddr>,
    /// A static route, SUBNET=NEXT-HOP, of either family; may be repeated.
    #[arg(long = "route", value_parser = route)]
    routes: Vec<(IpNet, IpAddr)>,
    /// Login or id of an account that sees it; everybody when absent.
    #[arg(long)]
    owner: Vec<String>,
    /// Reachable from outside.
    #[arg(long)]
    public: bool,
    /// The node holds the gateways' addresses.
    #[arg(long)]
    host_gateway: bool,
    /// Masquerade towards the outside; IPv6 addresses that are good everywhere are routed instead.
    #[arg(long)]
    nat: bool,
    /// Bytes.
    #[arg(long)]
    mtu: Option<u16>,
}

impl NetworkWish {
    fn asked(self, owners: Vec<AccountId>) -> NewNetwork {
        NewNetwork {
            name: self.name,
            description: None,
            owners,
            public: self.public,
            nic_tag: self.nic_tag,
            vlan: self.vlan,
            subnet: self.subnet,
            range_start: self.range_start,
            range_end: self.range_end,
            gateway: self.gateway,
            subnet6: self.subnet6,
            range6_start: self.range6_start,
            range6_end: self.range6_end,
            gateway6: self.gateway6,
            resolvers: self.resolver,
            routes: self.routes.into_iter().collect(),
            mtu: self.mtu,
            host_gateway: self.host_gateway,
            nat: self.nat,
        }
    }
}

/// `10.9.0.0/16=10.5.0.7`.
fn route(text: &str) -> Result<(IpNet, IpAddr), String> {
    let parsed = text.split_once('=').and_then(|(to, via)| Some((to.parse().ok()?, via.parse().ok()?)));
    parsed.ok_or_else(|| "write a subnet, \"=\" and the next hop, like 10.9.0.0/16=10.5.0.7".to_owned())
}

/// Runs it.
pub(crate) async fn networks(client: &Client, output: Output, command: Networks) -> Outcome {
    match command {
        Networks::List => output.show(&client.networks().await?, |networks| network_listing(networks)),
        Networks::Get { network } => output.show(&client.network(&network).await?, network_view),
        Networks::Create(wish) => {
            let mut owners = Vec::new();
            for owner in &wish.owner {
                owners.push(client.account(owner).await?.id);
            }
            output.show(&client.create_network(&wish.asked(owners)).await?, network_details)
        }
        Networks::Ips { network } => output.show(&client.addresses(&network).await?, |addresses| {
            table(
                &["ip", "instance", "owner", "reserved", "since"],
                addresses.iter().map(|address| {
                    vec![
                        address.ip.to_string(),
                        or_dash(address.instance),
                        or_dash(address.owner),
                        address.reserved.to_string(),
                        address.created_at.to_string(),
                    ]
                }),
            )
        }),
        Networks::Reserve { network, ip } => {
            client.reserve_address(&network, ip, true).await?;
            output.say(format!("Reserved {ip}."))
        }
        Networks::Release { network, ip } => {
            client.reserve_address(&network, ip, false).await?;
            output.say(format!("{ip} is no longer reserved."))
        }
        Networks::Delete { network } => {
            client.delete_network(&network).await?;
            output.say(format!("Deleted network {network}."))
        }
    }
}

fn network_listing(networks: &[Network]) -> comfy_table::Table {
    table(
        &["name", "id", "subnet", "gateway", "tag", "vlan", "nat", "seen by"],
        networks.iter().map(|network| {
            vec![
                network.name.clone(),
                network.id.to_string(),
                subnets(network),
                or_dash(network.gateway.map(IpAddr::V4).or(network.gateway6.map(IpAddr::V6))),
                network.nic_tag.clone(),
                network.vlan.to_string(),
                network.nat.to_string(),
                if network.owners.is_empty() {
                    "everybody".to_owned()
                } else {
                    match network.owners.len() {
                        1 => "1 account".to_owned(),
                        more => format!("{more} accounts"),
                    }
                },
            ]
        }),
    )
}

/// Its subnets of both families.
fn subnets(network: &Network) -> String {
    let all: Vec<String> = network.subnets().map(|subnet| subnet.to_string()).collect();
    all.join(", ")
}

fn network_view(view: &NetworkView) -> comfy_table::Table {
    let mut lines = network_lines(&view.network);
    for nat in &view.nat_addresses {
        lines.push(("leaves as", format!("{} from {}", or_dash(nat.address), nat.hostname)));
    }
    details(&lines)
}

fn network_details(network: &Network) -> comfy_table::Table {
    details(&network_lines(network))
}

fn network_lines(network: &Network) -> Vec<(&'static str, String)> {
    let resolvers: Vec<String> = network.resolvers.iter().map(ToString::to_string).collect();
    let routes: Vec<String> = network.routes.iter().map(|(to, via)| format!("{to} via {via}")).collect();
    let given_out = network.range_start.zip(network.range_end);
    let nat = network.fabric.map_or(network.nat, |fabric| fabric.internet_nat);
    let mut lines = vec![
        ("name", network.name.clone()),
        ("id", network.id.to_string()),
        ("subnet", or_dash(network.subnet)),
        ("given out", or_dash(given_out.map(|(first, last)| format!("{first} to {last}")))),
        ("gateway", or_dash(network.gateway)),
        ("IPv6 subnet", or_dash(network.subnet6)),
        ("IPv6 given out", or_dash(network.range6.map(|(first, last)| format!("{first} to {last}")))),
        ("IPv6 gateway", or_dash(network.gateway6)),
        ("routes", routes.join(", ")),
        ("resolvers", resolvers.join(", ")),
        ("nic tag, vlan", format!("{}, {}", network.nic_tag, network.vlan)),
        ("mtu", network.mtu.to_string()),
        ("public", network.public.to_string()),
        ("node holds gateway", network.host_gateway.to_string()),
        ("nat", nat.to_string()),
    ];
    if let Some(fabric) = network.fabric {
        lines.push(("vni", fabric.vni.to_string()));
        lines.push(("routed", fabric.routed.to_string()));
    }
    lines
}

/// What to do with images.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Images {
    /// List images.
    #[command(visible_alias = "ls")]
    List,
    /// Show one image.
    Get {
        /// Id, name, or name@version.
        image: String,
    },
    /// Import an image from its manifest and file.
    Import {
        /// The manifest (`.imgmanifest`, JSON).
        manifest: PathBuf,
        /// The file; beside the manifest with the same name when absent.
        #[arg(long, short)]
        file: Option<PathBuf>,
    },
    /// Remove an image no instance uses.
    #[command(visible_alias = "rm")]
    Delete {
        /// Id, name, or name@version.
        image: String,
    },
}

/// Runs it.
pub(crate) async fn images(client: &Client, output: Output, command: Images) -> Outcome {
    match command {
        Images::List => output.show(&client.images().await?, |images| image_listing(images)),
        Images::Get { image } => output.show(&client.image(&image).await?, image_details),
        Images::Import { manifest, file } => {
            let progress = if output.json { Progress::silent() } else { Progress::new() };
            let image = importing::import(client, &manifest, file.as_deref(), &progress).await?;
            output.show(&image, image_details)
        }
        Images::Delete { image } => {
            client.delete_image(&image).await?;
            output.say(format!("Deleted image {image}."))
        }
    }
}

fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}

fn image_listing(images: &[Image]) -> comfy_table::Table {
    table(
        &["name", "version", "id", "state", "size", "published"],
        images.iter().map(|image| {
            vec![
                image.name.clone(),
                image.version.clone(),
                image.id.to_string(),
                word(&image.state),
                image.file.as_ref().map_or_else(|| "-".to_owned(), |file| bytes(file.size)),
                or_dash(image.published_at),
            ]
        }),
    )
}

fn image_details(image: &Image) -> comfy_table::Table {
    let mut lines = vec![
        ("name", image.name.clone()),
        ("version", image.version.clone()),
        ("id", image.id.to_string()),
        ("state", word(&image.state)),
        ("public", image.public.to_string()),
        ("description", or_dash(image.description.as_ref())),
        ("published", or_dash(image.published_at)),
    ];
    if let Some(file) = &image.file {
        lines.push(("size", bytes(file.size)));
        lines.push(("sha256", file.sha256.clone()));
    }
    if let Some(error) = &image.error {
        lines.push(("error", error.clone()));
    }
    details(&lines)
}
