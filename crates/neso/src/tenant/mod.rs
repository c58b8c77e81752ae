//! `neso instance` and, in `nouns`, the rest: the tenant's client over CloudAPI, with the profiles and keys of `triton`.
//!
//! [`Tenant`] is the connection and the few compound verbs (`find`: resolve a name; wait for a state) that commands and
//! `neso up` share; `show` makes tables. Names, short ids and ids are accepted wherever an object is named, as triton does.

pub(crate) mod call;
mod cert;
mod changes;
mod find;
pub(crate) mod nouns;
mod show;
pub(crate) mod stats;
pub(crate) mod wishes;

use std::{
    net::Ipv6Addr,
    path::PathBuf,
    time::{Duration, Instant},
};

use base::{clock::Clock as _, clock::SystemClock};
use cloudapi::{
    client::{Client, ClientError, MachineFilter, Profile, Signer},
    types::{Audit, CreateMachine, Machine},
};
use headnode::Settings;
use model::{
    id::{InstanceId, MacAddr},
    time::Timestamp,
};

use crate::{
    adm::Output,
    failure::{Failure, Outcome},
    up::key::TenantKey,
};

/// How often a wait asks again: the triton command's own pace.
const POLL: Duration = Duration::from_millis(500);
/// `--wait` waits this long.
const WAIT_PATIENCE: Duration = Duration::from_secs(600);

/// Tenants' commands.
#[derive(Debug, clap::Args)]
pub(crate) struct Command {
    /// Profile; by default the environment (TRITON_URL …), then triton's current one.
    #[arg(short, long, global = true, env = "TRITON_PROFILE")]
    profile: Option<String>,
    /// Print JSON.
    #[arg(short, long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List instances.
    #[command(visible_alias = "ls")]
    List {
        /// Filters as in CloudAPI, e.g. `state=running`, `tag.role=web`.
        filters: Vec<String>,
    },
    /// Show one instance.
    Get {
        /// Id, short id or name.
        instance: String,
    },
    /// Create an instance.
    Create(Create),
    /// Start an instance.
    Start(On),
    /// Stop an instance.
    Stop(On),
    /// Reboot an instance.
    Reboot(On),
    /// Delete an instance.
    #[command(visible_alias = "rm")]
    Delete(On),
    /// Refuse the deletion of an instance from now on.
    EnableDeletionProtection {
        /// Id, short id or name.
        instance: String,
    },
    /// Allow the deletion of an instance again.
    DisableDeletionProtection {
        /// Id, short id or name.
        instance: String,
    },
    /// Change an instance's package.
    Resize {
        /// Id, short id or name.
        instance: String,
        /// Name or id of the new package.
        package: String,
    },
    /// Rename an instance.
    Rename {
        /// Id, short id or name.
        instance: String,
        /// The new name.
        name: String,
    },
    /// Print the primary address.
    Ip {
        /// Id, short id or name.
        instance: String,
    },
    /// Log in with ssh.
    Ssh {
        /// Id, short id or name; with a user before `@` (root by default).
        instance: String,
        /// Further arguments for ssh.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Show what happened to an instance, with the provision timeline.
    Audit {
        /// Id, short id or name.
        instance: String,
    },
    /// Show changes of instances as they happen, or what has changed since an earlier look.
    Changes(changes::Listen),
    /// Show what instances use: CPU, memory, disk space, traffic.
    Stats(stats::Look),
    /// List or change tags.
    Tags {
        /// Id, short id or name.
        instance: String,
        /// `key=value` sets, `key=` deletes; none lists.
        changes: Vec<String>,
    },
    /// List or change metadata.
    Metadata {
        /// Id, short id or name.
        instance: String,
        /// `key=value` sets, `key=` deletes; none lists.
        changes: Vec<String>,
    },
    /// List, add or remove NICs; the instance runs on.
    Nics {
        /// Id, short id or name.
        instance: String,
        /// Add a NIC on this network (id or name), unless there is one; with certain addresses, at most one of IPv4 and 8 of IPv6,
        /// when they follow a `=`.
        #[arg(long, value_name = "NETWORK[=IP,…]")]
        add: Option<String>,
        /// Remove the NIC with this Ethernet address.
        #[arg(long, value_name = "MAC")]
        remove: Option<MacAddr>,
        /// All IPv6 addresses of a NIC from now on, 1 to 8, between commas.
        #[arg(long, value_name = "MAC=IPV6,…", value_parser = wishes::addresses6)]
        set: Option<(MacAddr, Vec<Ipv6Addr>)>,
    },
    /// Make a certificate for the container monitor, and a configuration of Prometheus that watches the account's instances with it.
    Cert(cert::Cert),
    /// List images that can be used.
    Images,
    /// List packages that can be used.
    Packages,
    /// List networks that can be used.
    Networks,
}

/// What a new instance should be.
#[derive(Debug, clap::Args)]
struct Create {
    /// Image: id, short id, name, or name@version.
    image: String,
    /// Package: id or name.
    package: String,
    /// Name; `{{shortId}}` is replaced.
    #[arg(long, short)]
    name: Option<String>,
    /// Network: id or name; repeatable, the first is the primary one. With certain addresses, at most one of IPv4 and 8 of IPv6, when
    /// they follow a `=`: `-N web=10.3.0.9,fd00:3::9`.
    #[arg(long = "network", short = 'N', value_name = "NETWORK[=IP,…]")]
    networks: Vec<String>,
    /// Metadata, `key=value`; repeatable.
    #[arg(long = "metadata", short = 'm')]
    metadata: Vec<String>,
    /// Script run at every boot.
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// Tag, `key=value`; repeatable.
    #[arg(long = "tag", short = 't')]
    tags: Vec<String>,
    /// Refuse deletion until told otherwise.
    #[arg(long)]
    deletion_protection: bool,
    /// Name of this call: sent again with the same name, it makes no second instance. One is made up when none is given.
    #[arg(long, value_name = "NAME")]
    idempotency_key: Option<String>,
    /// Wait until it runs.
    #[arg(long, short)]
    wait: bool,
}

/// An instance something is done to.
#[derive(Debug, clap::Args)]
struct On {
    /// Id, short id or name.
    instance: String,
    /// Wait until it is done.
    #[arg(long, short)]
    wait: bool,
}

impl Command {
    /// It goes on until it is interrupted.
    pub(crate) const fn is_endless(&self) -> bool {
        match &self.verb {
            Verb::Changes(listen) => listen.is_endless(),
            Verb::Stats(look) => look.is_endless(),
            _ => false,
        }
    }
}

/// Runs it.
pub(crate) async fn run(command: Command) -> Outcome {
    if let Verb::Cert(cert) = &command.verb {
        return cert::run(command.profile.as_deref(), Output { json: command.json }, cert).await;
    }
    let tenant = Tenant::of_profile(command.profile.as_deref()).await?;
    let outcome = ask(&tenant, Output { json: command.json }, command.verb).await;
    crate::answer::note_if_stale(tenant.client.stale());
    outcome
}

async fn ask(tenant: &Tenant, output: Output, verb: Verb) -> Outcome {
    match verb {
        Verb::List { filters } => show::instances(output, &tenant.client.machines(&filter(&filters)?).await?),
        Verb::Get { instance } => {
            // What lists leave out, names in DNS among it, is in the answer about one.
            let id = tenant.find_id(&instance).await?;
            show::instance(output, &tenant.client.machine(id).await?)
        }
        Verb::Create(create) => create_and_show(tenant, output, create).await,
        Verb::Start(on) => act(tenant, output, on, Act { verb: "start", until: "running" }).await,
        Verb::Stop(on) => act(tenant, output, on, Act { verb: "stop", until: "stopped" }).await,
        Verb::Reboot(on) => reboot(tenant, output, on).await,
        Verb::Delete(on) => delete(tenant, output, on).await,
        Verb::EnableDeletionProtection { instance } => protect(tenant, output, &instance, true).await,
        Verb::DisableDeletionProtection { instance } => protect(tenant, output, &instance, false).await,
        Verb::Resize { instance, package } => {
            let machine = tenant.find_one(&instance).await?;
            tenant.client.machine_resize(machine.id, &tenant.package(&package).await?).await?;
            output.say(format!("Resizing instance {}", words(&machine)))
        }
        Verb::Rename { instance, name } => {
            let machine = tenant.find_one(&instance).await?;
            tenant.client.machine_rename(machine.id, &name).await?;
            output.say(format!("Renaming instance {} to {name}", words(&machine)))
        }
        Verb::Ip { instance } => {
            let machine = tenant.find_one(&instance).await?;
            output.say(tenant_ip(&machine)?)
        }
        Verb::Ssh { instance, arguments } => ssh(tenant, &instance, arguments).await,
        Verb::Audit { instance } => {
            let id = tenant.find_id(&instance).await?;
            show::audit(output, &tenant.client.machine_audit(id).await?)
        }
        Verb::Changes(listen) => changes::listen(tenant, output, listen).await,
        Verb::Stats(look) => stats::show(tenant, output, look).await,
        Verb::Tags { instance, changes } => tags(tenant, output, &instance, &changes).await,
        Verb::Metadata { instance, changes } => metadata(tenant, output, &instance, &changes).await,
        Verb::Nics { instance, add, remove, set } => {
            let machine = tenant.find_one(&instance).await?;
            if let Some(mac) = remove {
                tenant.client.nic_delete(machine.id, mac).await?;
            }
            if let Some((mac, ipv6_ips)) = set {
                tenant.client.nic_set_addresses6(machine.id, mac, &ipv6_ips).await?;
            }
            if let Some(asked) = add {
                let (network, choice) = tenant.choice(&asked).await?;
                if !tenant.client.nics(machine.id).await?.iter().any(|nic| nic.network == network) {
                    tenant.client.nic_add(machine.id, &choice).await?;
                }
            }
            show::nics(output, &tenant.client.nics(machine.id).await?)
        }
        // It needs the key itself, and is done before.
        Verb::Cert(_) => Ok(()),
        Verb::Images => show::images(output, &tenant.client.images(&[]).await?),
        Verb::Packages => show::packages(output, &tenant.client.packages(&[]).await?),
        Verb::Networks => show::networks(output, &tenant.client.networks().await?),
    }
}

/// Filters of the contract; a wrong one would otherwise just not filter.
fn filter(filters: &[String]) -> Outcome<MachineFilter> {
    const KNOWN: [&str; 11] =
        ["name", "state", "type", "brand", "image", "package", "memory", "tombstone", "docker", "credentials", "tags"];
    filters.iter().try_fold(MachineFilter::default(), |filter, text| {
        let (key, value) = pair(text)?;
        if !KNOWN.contains(&key.as_str()) && !key.starts_with("tag.") {
            return Err(Failure::new(format!("instances cannot be filtered by \"{key}\""))
                .mend(format!("use tag.KEY or one of {}", KNOWN.join(", "))));
        }
        Ok(filter.with(key, value))
    })
}

/// `key=value`.
fn pair(text: &str) -> Outcome<(String, String)> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(Failure::new(format!("\"{text}\" is not of the form key=value"))),
    }
}

fn pairs(texts: &[String]) -> Outcome<Vec<(String, String)>> {
    texts.iter().map(|text| pair(text)).collect()
}

fn words(machine: &Machine<'_>) -> String {
    format!("{} ({})", machine.name, machine.id)
}

fn tenant_ip(machine: &Machine<'_>) -> Outcome<String> {
    match machine.primary_ip.or(machine.ips.first().copied()) {
        Some(ip) => Ok(ip.to_string()),
        None => Err(Failure::new(format!("instance {} has no address", words(machine)))),
    }
}

async fn create_and_show(tenant: &Tenant, output: Output, create: Create) -> Outcome {
    let mut networks = Vec::new();
    for asked in &create.networks {
        networks.push(tenant.choice(asked).await?.1);
    }
    wishes::same_form(&mut networks);
    let mut metadata: std::collections::BTreeMap<_, _> = pairs(&create.metadata)?.into_iter().collect();
    if let Some(path) = &create.script {
        let script = std::fs::read_to_string(path)
            .map_err(|error| Failure::new(format!("failed to read script `{}`: {error}", path.display())))?;
        metadata.insert("user-script".into(), script);
    }
    let tags = pairs(&create.tags)?.into_iter().map(|(key, value)| (key, show::tag_value(&value))).collect();
    let wanted = CreateMachine {
        name: create.name,
        package: tenant.package(&create.package).await?,
        image: tenant.image(&create.image).await?,
        networks,
        metadata,
        tags,
        deletion_protection: create.deletion_protection.then_some(true),
        ..CreateMachine::default()
    };
    let machine = match &create.idempotency_key {
        Some(name) => tenant.client.machine_create_named(&wanted, name).await?,
        None => tenant.client.machine_create(&wanted).await?,
    };
    if !create.wait {
        return match output.json {
            true => show::instance(output, &machine),
            false => output.say(format!("Creating instance {}", words(&machine))),
        };
    }
    output.say(format!("Creating instance {}", words(&machine)))?;
    let machine = tenant.wait(machine.id, "running", WAIT_PATIENCE).await?;
    show::instance(output, &machine)
}

/// A verb and the state it leads to.
struct Act {
    verb: &'static str,
    until: &'static str,
}

async fn act(tenant: &Tenant, output: Output, on: On, act: Act) -> Outcome {
    let machine = tenant.find_one(&on.instance).await?;
    tenant.client.machine_action(machine.id, act.verb).await?;
    if on.wait {
        tenant.wait(machine.id, act.until, WAIT_PATIENCE).await?;
    }
    output.say(format!("{} instance {}: {}", act.verb, words(&machine), if on.wait { act.until } else { "asked" }))
}

async fn protect(tenant: &Tenant, output: Output, instance: &str, protected: bool) -> Outcome {
    let machine = tenant.find_one(instance).await?;
    let verb = if protected { "enable" } else { "disable" };
    tenant.client.machine_action(machine.id, &format!("{verb}_deletion_protection")).await?;
    output.say(format!("Instance {} can{} be deleted.", words(&machine), if protected { "not" } else { "" }))
}

/// A reboot begins and ends in the same state, so its end is told by the audit record it leaves.
async fn reboot(tenant: &Tenant, output: Output, on: On) -> Outcome {
    let machine = tenant.find_one(&on.instance).await?;
    let before = tenant.last_reboot(machine.id).await?.map(|record| record.time);
    tenant.client.machine_action(machine.id, "reboot").await?;
    if on.wait {
        tenant.wait_rebooted(machine.id, before).await?;
    }
    output.say(format!("reboot instance {}: {}", words(&machine), if on.wait { "running" } else { "asked" }))
}

async fn delete(tenant: &Tenant, output: Output, on: On) -> Outcome {
    let machine = tenant.find_one(&on.instance).await?;
    tenant.client.machine_delete(machine.id).await?;
    if on.wait {
        tenant.wait(machine.id, "deleted", WAIT_PATIENCE).await?;
    }
    output.say(format!("{} instance {}", if on.wait { "Deleted" } else { "Deleting" }, words(&machine)))
}

async fn ssh(tenant: &Tenant, instance: &str, arguments: Vec<String>) -> Outcome {
    let (user, name) = instance.split_once('@').unwrap_or(("root", instance));
    let machine = tenant.find_one(name).await?;
    let target = format!("{user}@{}", tenant_ip(&machine)?);
    let mut line: Vec<String> = Vec::new();
    if let Some(key) = &tenant.key_file {
        line.extend(["-i".to_owned(), key.display().to_string()]);
    }
    line.push(target);
    line.extend(arguments);
    let code = base::daemon::run_attached("ssh", &line)
        .await
        .map_err(|error| Failure::new(format!("failed to run ssh: {error}")).mend("apt install openssh-client"))?;
    match code {
        0 => Ok(()),
        code => std::process::exit(code),
    }
}

async fn tags(tenant: &Tenant, output: Output, instance: &str, changes: &[String]) -> Outcome {
    let id = tenant.find_one(instance).await?.id;
    let (remove, set): (Vec<_>, Vec<_>) = pairs(changes)?.into_iter().partition(|(_, value)| value.is_empty());
    for (key, _) in remove {
        tenant.client.tag_delete(id, &key).await?;
    }
    if !set.is_empty() {
        let set = set.into_iter().map(|(key, value)| (key, show::tag_value(&value))).collect();
        tenant.client.tags_add(id, &set).await?;
    }
    show::pairs(output, &tenant.client.tags(id).await?)
}

async fn metadata(tenant: &Tenant, output: Output, instance: &str, changes: &[String]) -> Outcome {
    let id = tenant.find_one(instance).await?.id;
    let (remove, set): (Vec<_>, Vec<_>) = pairs(changes)?.into_iter().partition(|(_, value)| value.is_empty());
    for (key, _) in remove {
        tenant.client.metadata_delete(id, &key).await?;
    }
    if !set.is_empty() {
        tenant.client.metadata_add(id, &set.into_iter().collect()).await?;
    }
    show::pairs(output, &tenant.client.metadata(id).await?)
}

/// An instance as `neso up` speaks of it.
#[derive(Debug, Clone)]
pub(crate) struct FirstInstance {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) ip: Option<String>,
}

impl FirstInstance {
    fn of(machine: &Machine<'_>) -> Self {
        let ip = machine.primary_ip.or(machine.ips.first().copied());
        Self { id: machine.id.to_string(), name: machine.name.to_string(), ip: ip.map(|ip| ip.to_string()) }
    }
}

/// A tenant's connection.
pub(crate) struct Tenant {
    client: Client,
    key_file: Option<PathBuf>,
}

impl Tenant {
    /// The tenant of a triton profile.
    async fn of_profile(wanted: Option<&str>) -> Outcome<Self> {
        let environment = |name: &str| std::env::var(name).ok();
        let profile = Profile::load(wanted, &environment)?;
        let signer = Signer::find(&profile.key_id, &environment).await?;
        let origin = PathBuf::from(&signer.origin);
        let key_file = origin.is_file().then_some(origin);
        Ok(Self { client: Client::new(&profile, signer, now)?, key_file })
    }

    /// The tenant `neso up` made, with its key and the datacenter's own authority.
    pub(crate) fn open(settings: &Settings, login: &str, key: &TenantKey, fingerprint: &str) -> Outcome<Self> {
        let profile = Profile {
            name: "up".to_owned(),
            url: settings.cloudapi_url(),
            account: login.to_owned(),
            act_as: None,
            key_id: fingerprint.to_owned(),
            insecure: false,
            ca_file: Some(settings.paths.operator.join("ca.pem")),
        };
        let signer = Signer::from_file(&key.path)?;
        Ok(Self { client: Client::new(&profile, signer, now)?, key_file: Some(key.path.clone()) })
    }

    /// An instance, if it is still there.
    pub(crate) async fn find(&self, id: &str) -> Outcome<Option<FirstInstance>> {
        let Ok(id) = id.parse() else { return Ok(None) };
        match self.client.machine(id).await {
            Ok(machine) if machine.state == "deleted" => Ok(None),
            Ok(machine) => Ok(Some(FirstInstance::of(&machine))),
            Err(ClientError::Refused { status, .. }) if status.as_u16() == 404 => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Asks for an instance.
    pub(crate) async fn create(&self, image: &str, package: &str, name: &str) -> Outcome<FirstInstance> {
        let wanted = CreateMachine {
            name: Some(name.to_owned()),
            package: self.package(package).await?,
            image: self.image(image).await?,
            ..CreateMachine::default()
        };
        Ok(FirstInstance::of(&self.client.machine_create(&wanted).await?))
    }

    /// Waits until an instance runs.
    pub(crate) async fn wait_running(&self, id: &str, patience: Duration) -> Outcome<FirstInstance> {
        let id = id.parse().map_err(|_| Failure::new(format!("\"{id}\" is no instance id")))?;
        Ok(FirstInstance::of(&self.wait(id, "running", patience).await?))
    }

    /// Waits until an instance is in a state; failing is an end too.
    async fn wait(&self, id: InstanceId, state: &str, patience: Duration) -> Outcome<Machine<'static>> {
        let start = Instant::now();
        loop {
            let machine = self.client.machine(id).await?;
            if machine.state == state {
                return Ok(machine);
            }
            if machine.state == "failed" {
                let why = machine.failure.as_deref().unwrap_or("no reason was recorded");
                return Err(Failure::new(format!("instance {} failed: {why}", words(&machine)))
                    .mend(format!("`neso adm instance get {id}` shows its timeline and history")));
            }
            if start.elapsed() > patience {
                let why =
                    format!("instance {} is still {} after {} s", words(&machine), machine.state, patience.as_secs());
                return Err(Failure::new(why).mend(format!("`neso adm instance get {id}` shows what it waits for")));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The newest reboot in an instance's audit.
    async fn last_reboot(&self, id: InstanceId) -> Outcome<Option<Audit<'static>>> {
        let audit = self.client.machine_audit(id).await?;
        Ok(audit.into_iter().filter(|record| record.action == "reboot").max_by_key(|record| record.time))
    }

    /// Waits until a reboot later than `before` is in the audit.
    async fn wait_rebooted(&self, id: InstanceId, before: Option<Timestamp>) -> Outcome {
        let start = Instant::now();
        loop {
            if let Some(record) = self.last_reboot(id).await?.filter(|record| Some(record.time) > before) {
                let why = record.error.as_deref().unwrap_or("no reason was recorded");
                return match &*record.success {
                    "yes" => Ok(()),
                    _ => Err(Failure::new(format!("the reboot of instance {id} failed: {why}"))
                        .mend(format!("`neso adm instance get {id}` shows its history"))),
                };
            }
            if start.elapsed() > WAIT_PATIENCE {
                let why = format!("instance {id} has not rebooted after {} s", WAIT_PATIENCE.as_secs());
                return Err(Failure::new(why).mend(format!("`neso adm instance get {id}` shows what it waits for")));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Seconds since the epoch: what signatures carry.
fn now() -> i64 {
    SystemClock.now_ms() / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_known_ones() {
        let text = |text: &str| filter(&[text.to_owned()]);
        assert!(text("state=running").is_ok() && text("tag.role=web").is_ok());
        let refused = text("foo=bar").unwrap_err();
        assert!(refused.message.contains("\"foo\"") && refused.remedy.unwrap().contains("state"));
        assert!(pair("novalue").is_err());
        assert_eq!(pair("a=b=c").unwrap(), ("a".to_owned(), "b=c".to_owned()));
    }
}
