//! What a datacenter needs before tenants come: accounts, packages, networks, an image, machines.

use std::{collections::BTreeMap, io, net::Ipv4Addr};

use bytes::Bytes;
use control::{Control, accounts, images, networks, packages, servers};
use model::{
    id::{AccountId, ImageId, NetworkId, ServerId},
    image::{Compression, ImageKind, Requirements, manifest},
    layout::Layout,
    unit::{CpuShares, Mib},
};

/// An empty tar archive, and its SHA-256.
const ARCHIVE: [u8; 1024] = [0; 1024];
const ARCHIVE_SHA256: &str = "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";

/// The operator's networks: name, NIC tag, VLAN, subnet. One is small, so that its addresses are used again all the time; two share
/// a tag and two a subnet.
const NETWORKS: [(&str, &str, u16, &str); 3] = [
    ("external", "ext", 0, "10.88.0.0/23"),
    ("private", "priv", 0, "10.88.0.0/27"),
    ("storage", "priv", 7, "10.99.0.0/26"),
];

/// Names of the packages, smallest first.
pub(crate) const PACKAGES: [&str; 3] = ["small", "medium", "large"];

/// Makes what tenants need: as many accounts as asked for, packages, an image, networks.
pub(crate) async fn datacenter(
    control: &Control,
    tenants: usize,
) -> Result<(Vec<AccountId>, ImageId, Vec<NetworkId>), control::Error> {
    let mut tenants_made = Vec::new();
    for number in 0..tenants {
        let new = accounts::NewAccount { login: format!("tenant{number}"), ..accounts::NewAccount::default() };
        tenants_made.push(accounts::create(control, new).await?.id);
    }
    for (name, size) in PACKAGES.into_iter().zip(1u64..) {
        packages::create(control, package(name, size)).await?;
    }
    let mut made = Vec::new();
    for (name, tag, vlan, subnet) in NETWORKS {
        made.push(networks::create(control, network(name, tag, vlan, subnet)).await?.id);
    }
    let image = ImageId::from_random(base::random::wide_bits());
    let owner = tenants_made.first().copied().unwrap_or(AccountId::from_random(0));
    images::create(control, owner, manifest_of(image)).await?;
    let content = futures_util::stream::iter([Ok::<_, io::Error>(Bytes::from_static(&ARCHIVE))]);
    images::add_file(control, image, content).await?;
    Ok((tenants_made, image, made))
}

/// Makes machine number `number` known.
pub(crate) async fn server(control: &Control, id: ServerId, number: u16) -> Result<(), control::Error> {
    let new = servers::NewServer { hostname: format!("node{number}"), ..Default::default() };
    servers::register(control, id, new).await.map(drop)
}

fn package(name: &str, size: u64) -> packages::NewPackage {
    packages::NewPackage {
        id: None,
        name: name.to_owned(),
        version: "1.0.0".to_owned(),
        group: None,
        description: None,
        memory: Mib(256 * size),
        swap: None,
        disk: Mib(1024 * size),
        max_processes: 500,
        vcpus: 0,
        cpu_cap: None,
        cpu_shares: CpuShares(100),
        traits: BTreeMap::new(),
        brand: None,
    }
}

fn network(name: &str, tag: &str, vlan: u16, subnet: &str) -> networks::NewNetwork {
    let subnet: ipnet::Ipv4Net = subnet.parse().expect("the constants are subnets");
    let is_external = tag == "ext";
    networks::NewNetwork {
        name: name.to_owned(),
        nic_tag: tag.to_owned(),
        vlan,
        host_gateway: is_external,
        nat: is_external,
        layout: Layout {
            subnet: Some(subnet),
            gateway: subnet.hosts().next().filter(|_| is_external || vlan == 0),
            resolvers: vec![Ipv4Addr::new(192, 0, 2, 53).into()],
            ..Layout::default()
        },
        ..networks::NewNetwork::default()
    }
}

fn manifest_of(id: ImageId) -> manifest::Manifest {
    manifest::Manifest {
        id,
        name: "empty".to_owned(),
        version: "1".to_owned(),
        description: None,
        homepage: None,
        eula: None,
        os: "linux".to_owned(),
        kind: ImageKind::LxDataset,
        public: true,
        acl: Vec::new(),
        tags: BTreeMap::new(),
        requirements: Requirements::default(),
        published_at: None,
        file: manifest::ExpectedFile {
            sha1: None,
            sha256: Some(ARCHIVE_SHA256.to_owned()),
            size: Some(ARCHIVE.len() as u64),
            compression: Compression::None,
        },
    }
}
