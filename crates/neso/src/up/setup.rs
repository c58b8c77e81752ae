//! Setup: accounts, packages, networks, images and the first instance, each made only when it is not there.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use headnode::Settings;
use ipnet::{Ipv4Net, Ipv6Net};
use model::{
    account::AccountKey,
    image::{Image, ImageState},
};
use opsapi::{Client, Error as OpsError, NewAccount, NewKey, NewNetwork, NewPackage};
use tokio::time::Instant;

use super::key::{self, TenantKey};
use crate::{
    failure::{Failure, Outcome},
    image, importing,
    progress::Progress,
    tenant::{FirstInstance, Tenant},
};

/// The node gets this long to report for the first time.
const NODE_PATIENCE: Duration = Duration::from_secs(60);
/// How often we look.
const NODE_POLL: Duration = Duration::from_millis(100);
/// The first instance gets this long to run: its node unpacks the image first.
const INSTANCE_PATIENCE: Duration = Duration::from_secs(180);

/// A size the first `neso up` makes: name, memory, swap and disk in MiB, percent of one core.
const PACKAGES: [(&str, u64, u64, u64, u32, &str); 5] = [
    ("g1-nano", 128, 256, 2 << 10, 50, "128 MiB, half a core"),
    ("g1-micro", 256, 512, 5 << 10, 100, "256 MiB, one core"),
    ("g1-small", 1 << 10, 2 << 10, 10 << 10, 100, "1 GiB, one core"),
    ("g1-medium", 2 << 10, 4 << 10, 20 << 10, 200, "2 GiB, two cores"),
    ("g1-large", 4 << 10, 8 << 10, 40 << 10, 400, "4 GiB, four cores"),
];
/// Processes an instance of these packages may have.
const MAX_PROCESSES: u32 = 2_000;

/// What there is afterwards.
pub(super) struct Ready {
    pub(super) tenant_key: TenantKey,
    pub(super) key: AccountKey,
    pub(super) instance: Option<FirstInstance>,
}

/// Makes what is missing.
pub(super) async fn run(settings: &Settings, client: &Client, progress: &Progress) -> Outcome<Ready> {
    let (tenant_key, key) = accounts(settings, client, progress).await?;
    packages(client, progress).await?;
    networks(settings, client, progress).await?;
    wait_for_node(settings, client, progress).await?;
    for name in &settings.first_run.images {
        ensure_image(settings, client, progress, name).await?;
    }
    let instance = first_instance(settings, progress, &tenant_key, &key).await?;
    Ok(Ready { tenant_key, key, instance })
}

async fn accounts(settings: &Settings, client: &Client, progress: &Progress) -> Outcome<(TenantKey, AccountKey)> {
    let first = &settings.first_run;
    for (login, operator) in [(&first.operator, true), (&first.tenant, false)] {
        if absent(client.account(login).await)?.is_some() {
            continue;
        }
        let step = progress.step(format!("Making account {login}"));
        let email = format!("{login}@{}", settings.datacenter.dns_suffix);
        client.create_account(&NewAccount { login: login.clone(), id: None, email, operator }).await?;
        client.set_account_names(login, true).await?;
        step.done(if operator { "an operator" } else { "a tenant" });
    }
    let (tenant_key, fresh) = key::ensure(settings)?;
    if fresh {
        progress.step("Making an SSH key").done(&tenant_key.path.display().to_string());
    }
    let line: Vec<&str> = tenant_key.public.split_whitespace().take(2).collect();
    let known = client.keys(&first.tenant).await?;
    let found = known.into_iter().find(|key| key.openssh.split_whitespace().take(2).eq(line.iter().copied()));
    let key = match found {
        Some(key) => key,
        None => {
            let step = progress.step(format!("Adding the key to {}", first.tenant));
            let key = client.add_key(&first.tenant, &NewKey { name: None, key: tenant_key.public.clone() }).await?;
            step.done(&key.fingerprint_md5);
            key
        }
    };
    Ok((tenant_key, key))
}

async fn packages(client: &Client, progress: &Progress) -> Outcome {
    let mut made = Vec::new();
    let present = client.packages().await?;
    if !present.is_empty() {
        return Ok(());
    }
    for (name, memory, swap, disk, cpu_cap, description) in PACKAGES {
        let wish = NewPackage {
            id: None,
            name: name.to_owned(),
            version: None,
            group: Some("g1".to_owned()),
            description: Some(description.to_owned()),
            memory,
            swap: Some(swap),
            disk,
            max_processes: Some(MAX_PROCESSES),
            vcpus: 0,
            cpu_cap: Some(cpu_cap),
            // A share for each 10 MiB: under contention bigger instances get more.
            cpu_shares: Some(u32::try_from(memory / 10).unwrap_or(u32::MAX).max(10)),
            traits: BTreeMap::new(),
        };
        client.create_package(&wish).await?;
        made.push(name);
    }
    progress.step("Making packages").done(&made.join(", "));
    Ok(())
}

async fn networks(settings: &Settings, client: &Client, progress: &Progress) -> Outcome {
    let external = &settings.external;
    let private = &settings.private;
    let wishes = [
        NewNetwork {
            name: "external".into(),
            description: Some("Reaches outside the datacenter".into()),
            owners: Vec::new(),
            public: true,
            nic_tag: "ext".into(),
            vlan: 0,
            subnet: Some(external.subnet),
            range_start: nth(external.subnet, 9),
            range_end: None,
            gateway: nth(external.subnet, 0),
            subnet6: external.subnet6,
            gateway6: external.subnet6.and_then(first6),
            resolvers: external.resolvers.clone(),
            mtu: None,
            host_gateway: true,
            nat: external.nat,
            ..NewNetwork::default()
        },
        NewNetwork {
            name: "private".into(),
            description: Some("Between instances, without a gateway".into()),
            owners: Vec::new(),
            public: false,
            nic_tag: "priv".into(),
            vlan: 0,
            subnet: Some(private.subnet),
            range_start: nth(private.subnet, 9),
            range_end: None,
            gateway: None,
            subnet6: private.subnet6,
            resolvers: private.resolvers.clone(),
            mtu: None,
            ..NewNetwork::default()
        },
    ];
    if !client.networks().await?.is_empty() {
        return Ok(());
    }
    for wish in wishes {
        let step = progress.step(format!("Making network {}", wish.name));
        let network = client.create_network(&wish).await?;
        let subnets: Vec<String> = network.subnets().map(|subnet| subnet.to_string()).collect();
        step.done(&subnets.join(", "));
    }
    Ok(())
}

/// The first address after the subnet's own, which all its routers answer to.
fn first6(subnet: Ipv6Net) -> Option<std::net::Ipv6Addr> {
    subnet.hosts().nth(1)
}

/// The `n`th usable address, or the first of a subnet too small for that.
fn nth(subnet: Ipv4Net, n: usize) -> Option<std::net::Ipv4Addr> {
    let usable = 1_usize.checked_shl(u32::from(32 - subnet.prefix_len()))?.saturating_sub(2);
    subnet.hosts().nth(if n < usable / 2 { n } else { n.min(1) })
}

async fn wait_for_node(settings: &Settings, client: &Client, progress: &Progress) -> Outcome {
    let step = progress.step("Waiting for the node");
    let start = Instant::now();
    loop {
        if client.servers().await?.iter().any(|view| view.reachable) {
            step.unchanged();
            return Ok(());
        }
        if start.elapsed() > NODE_PATIENCE {
            let log = crate::supervise::log_file(settings, "node");
            return Err(Failure::new(format!("the node has not reported within {} s", NODE_PATIENCE.as_secs()))
                .mend(format!("look at `{}`", log.display())));
        }
        tokio::time::sleep(NODE_POLL).await;
    }
}

async fn ensure_image(settings: &Settings, client: &Client, progress: &Progress, name: &str) -> Outcome {
    let usable = |image: &Image| image.name == name && image.state == ImageState::Active;
    if client.images().await?.iter().any(usable) {
        return Ok(());
    }
    let manifest = build(settings, progress, name).await?;
    importing::import(client, &manifest, None, progress).await?;
    if let Some(directory) = manifest.parent() {
        // The headnode has its own copy now; what stays costs space and nothing else.
        let _ = std::fs::remove_dir_all(directory);
    }
    Ok(())
}

async fn build(settings: &Settings, progress: &Progress, name: &str) -> Outcome<PathBuf> {
    let directory = settings.paths.data.join("images-built").join(name);
    std::fs::create_dir_all(&directory)
        .map_err(|error| Failure::new(format!("failed to make `{}`: {error}", directory.display())))?;
    let step = progress.step(format!("Building image {name}"));
    let (say, mut heard) = tokio::sync::mpsc::channel::<String>(16);
    let owned = name.to_owned();
    let work = base::task::blocking("build image", move || {
        image::build(&owned, &directory, &move |words| {
            // A full channel only drops words of progress.
            let _ = say.try_send(words.to_owned());
        })
    });
    let tell = async {
        while let Some(words) = heard.recv().await {
            step.say(&words);
        }
    };
    let (manifest, ()) = tokio::join!(work, tell);
    let manifest = manifest?;
    step.done("done");
    Ok(manifest)
}

/// The first instance, through the public API as its tenant. A mark in the data directory says that it was made once, so
/// that it does not come back after its tenant deleted it.
async fn first_instance(
    settings: &Settings,
    progress: &Progress,
    tenant_key: &TenantKey,
    key: &AccountKey,
) -> Outcome<Option<FirstInstance>> {
    let first = &settings.first_run;
    if first.instance_image.is_empty() {
        return Ok(None);
    }
    let mark = settings.paths.data.join("first-instance");
    let tenant = Tenant::open(settings, &first.tenant, tenant_key, &key.fingerprint_md5)?;
    if let Ok(text) = std::fs::read_to_string(&mark) {
        return tenant.find(text.trim()).await;
    }
    let step = progress.step(format!("Creating the first instance from {}", first.instance_image));
    let instance = tenant.create(&first.instance_image, &first.instance_package, "first").await?;
    std::fs::write(&mark, format!("{}\n", instance.id))
        .map_err(|error| Failure::new(format!("failed to write `{}`: {error}", mark.display())))?;
    let instance = tenant.wait_running(&instance.id, INSTANCE_PATIENCE).await?;
    step.done(&format!("{} runs at {}", instance.name, instance.ip.as_deref().unwrap_or("no address")));
    Ok(Some(instance))
}

/// `None` for what is not there.
fn absent<T>(answer: Result<T, OpsError>) -> Outcome<Option<T>> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_small_subnets_stay_inside() {
        assert_eq!(nth("10.0.0.0/16".parse().unwrap(), 9), Some("10.0.0.10".parse().unwrap()));
        assert_eq!(nth("10.0.0.0/29".parse().unwrap(), 9), Some("10.0.0.2".parse().unwrap()));
        assert_eq!(nth("10.0.0.0/29".parse().unwrap(), 0), Some("10.0.0.1".parse().unwrap()));
    }
}
