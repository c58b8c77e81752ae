//! Machines: those that are part of the datacenter, and invitations for others.

use std::collections::{BTreeMap, BTreeSet};

use model::{
    clock,
    id::InstanceId,
    meters::NodeMeters,
    metrics::{Exposition, Labels, instance, machine},
    server::{Condition, Invite, Ratios, Server, Trait},
    time::Timestamp,
    unit::Mib,
};
use opsapi::{Client, InstanceView, InviteView, NewInvite, ServerChange, ServerView, WireView};

use super::{Output, ago, bytes, details, named_trait, or_dash, table};
use crate::{
    answer,
    failure::{Failure, Outcome},
};

/// What to do with servers.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Servers {
    /// List servers.
    #[command(visible_alias = "ls")]
    List,
    /// Show one server.
    Get {
        /// Id or host name.
        server: String,
    },
    /// Show what a server and its instances use, as Prometheus reads it.
    Metrics {
        /// Id or host name.
        server: String,
    },
    /// Change what is said of a server.
    Set(Set),
    /// Let a server take no new instances; those it has stay.
    #[command(visible_alias = "refuse")]
    Cordon {
        /// Id or host name.
        server: String,
    },
    /// Let a server take new instances again.
    #[command(visible_alias = "accept")]
    Uncordon {
        /// Id or host name.
        server: String,
    },
    /// Empty a server: it takes nothing new, and what is left on it is shown.
    Drain {
        /// Id or host name.
        server: String,
        /// Why, for whoever looks later.
        #[arg(long, default_value = "")]
        reason: String,
        /// Also stop what is left; it starts again with `neso instance start`.
        #[arg(long)]
        stop: bool,
    },
    /// Forget a server: it is locked out at once.
    Forget {
        /// Id or host name.
        server: String,
        /// Instance (id) that is lost with a machine that will not come back; once for each.
        #[arg(long, value_name = "INSTANCE")]
        give_up: Vec<String>,
    },
}

/// See [`Servers::Set`].
#[derive(Debug, clap::Args)]
pub(crate) struct Set {
    /// Id or host name.
    server: String,
    /// Free text.
    #[arg(long)]
    comments: Option<String>,
    /// Rack; empty takes it out.
    #[arg(long)]
    rack: Option<String>,
    /// Trait to set, `name` or `name=value`; may be repeated.
    #[arg(long = "trait", value_parser = named_trait, value_name = "NAME[=VALUE]")]
    traits: Vec<(String, Trait)>,
    /// Trait to take away; may be repeated.
    #[arg(long, value_name = "NAME")]
    no_trait: Vec<String>,
    /// Memory kept for the machine itself, MiB. With any of the next four, those not named are the datacenter's again.
    #[arg(long, value_name = "MIB")]
    memory_kept: Option<u64>,
    /// Percent of the remaining memory that may be promised.
    #[arg(long, value_name = "PERCENT")]
    memory_percent: Option<u32>,
    /// Percent of the pool that may be promised.
    #[arg(long, value_name = "PERCENT")]
    disk_percent: Option<u32>,
    /// Percent of all cores' time that may be promised.
    #[arg(long, value_name = "PERCENT")]
    cpu_percent: Option<u32>,
    /// Most instances.
    #[arg(long, value_name = "COUNT")]
    instances_max: Option<u32>,
    /// Its hardware was replaced: take the machine that reports next for it.
    #[arg(long)]
    new_hardware: bool,
}

impl Set {
    fn change(self) -> (String, ServerChange) {
        let ratios = Ratios {
            memory_kept: self.memory_kept.map(Mib),
            memory_percent: self.memory_percent,
            disk_percent: self.disk_percent,
            cpu_percent: self.cpu_percent,
            instances_max: self.instances_max,
        };
        let change = ServerChange {
            comments: self.comments,
            rack: self.rack,
            traits: self.traits.into_iter().collect(),
            no_traits: self.no_trait.into_iter().collect::<BTreeSet<_>>(),
            ratios: (!ratios.is_empty()).then_some(ratios),
            new_hardware: self.new_hardware,
        };
        (self.server, change)
    }
}

/// All numbers of a machine, its instances told apart by their id.
fn metrics(output: Output, meters: &NodeMeters) -> Outcome {
    if output.json {
        return Ok(answer::print(serde_json::to_string_pretty(meters)?)?);
    }
    let mut text = Exposition::default();
    machine::all(&meters.machine, meters.at, &mut text);
    let label = |id: &InstanceId| Labels::none().with("instance", &id.to_string());
    let instances: Vec<_> = meters.instances.iter().map(|(id, meters)| (label(id), meters)).collect();
    instance::all(&instances, &mut text);
    Ok(answer::print_text(&text.into_text())?)
}

/// Runs it.
pub(crate) async fn servers(client: &Client, output: Output, command: Servers) -> Outcome {
    match command {
        Servers::List => output.show(&client.servers().await?, |servers| server_listing(servers)),
        Servers::Get { server } => output.show(&client.server(&server).await?, server_details),
        Servers::Metrics { server } => metrics(output, &client.meters(&server).await?),
        Servers::Set(set) => {
            let (server, change) = set.change();
            output.show(&client.change_server(&server, &change).await?, server_details)
        }
        Servers::Uncordon { server } => output.show(&client.set_server_accepts(&server, true).await?, server_details),
        Servers::Cordon { server } => output.show(&client.set_server_accepts(&server, false).await?, server_details),
        Servers::Drain { server, reason, stop } => drain(client, output, &server, &reason, stop).await,
        Servers::Forget { server, give_up } => {
            client.forget_server(&server, &give_up).await?;
            output.say(format!(
                "Forgot server {server}; it is locked out. On it, `neso clean-data` removes what is left."
            ))
        }
    }
}

async fn drain(client: &Client, output: Output, server: &str, reason: &str, stop: bool) -> Outcome {
    let view = client.drain_server(server, reason).await?;
    let left = client.instances(None, Some(&view.server.id.to_string())).await?;
    let mut failed = Vec::new();
    for instance in left.iter().filter(|instance| stop && instance.state == "running") {
        let id = instance.instance.id.to_string();
        if let Err(error) = client.instance_action(&id, "stop").await {
            failed.push(format!("{id}: {error}"));
        }
    }
    output.show(&left, |left| left_listing(left))?;
    match failed.is_empty() {
        true => Ok(()),
        false => Err(Failure::new(format!("some instances could not be stopped: {}", failed.join("; ")))),
    }
}

fn left_listing(left: &[InstanceView]) -> comfy_table::Table {
    table(
        &["left on it", "id", "owner", "state"],
        left.iter().map(|view| {
            let (instance, owner) = (&view.instance, or_dash(view.owner_login.as_ref()));
            vec![instance.alias.clone(), instance.id.to_string(), owner, view.state.clone()]
        }),
    )
}

fn condition(view: &ServerView) -> String {
    let for_seconds = view.last_heard_ms.map(|ms| format!(" for {}", duration(ms))).unwrap_or_default();
    match view.condition {
        Condition::SettingUp => "setting up".to_owned(),
        Condition::Running => match view.clock.filter(|clock| clock.is_off()) {
            Some(clock) => format!("running, clock {}", clock::words(clock.ahead_ms)),
            None => "running".to_owned(),
        },
        Condition::Drained => "drained".to_owned(),
        Condition::Rebooting { .. } => format!("rebooting{for_seconds}"),
        Condition::Restarting { .. } => format!("agent restarts{for_seconds}"),
        Condition::Unreachable { since: Some(_) } => format!("unreachable{for_seconds}"),
        Condition::Unreachable { since: None } => "unreachable".to_owned(),
    }
}

fn duration(ms: u64) -> String {
    let since = i64::try_from(ms).unwrap_or(i64::MAX);
    ago(Timestamp(since), Some(Timestamp(0))).trim_end_matches(" ago").to_owned()
}

fn server_listing(servers: &[ServerView]) -> comfy_table::Table {
    table(
        &["hostname", "id", "state", "rack", "instances", "memory used", "disk used", "takes new"],
        servers.iter().map(|view| {
            let Server { hostname, id, reserved, hardware, accepts_instances, rack, drain, .. } = &view.server;
            let takes = match (accepts_instances, drain) {
                (true, _) => "yes",
                (false, None) => "no",
                (false, Some(_)) => "draining",
            };
            vec![
                hostname.clone(),
                id.to_string(),
                condition(view),
                or_dash(rack.as_ref()),
                reserved.instances.to_string(),
                format!("{} of {}", reserved.memory, hardware.memory),
                format!("{} of {}", reserved.disk, hardware.pool_size),
                takes.to_owned(),
            ]
        }),
    )
}

fn tag_words(tags: &BTreeSet<String>) -> String {
    tags.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn trait_words(traits: &BTreeMap<String, Trait>) -> String {
    let word = |(name, value): (&String, &Trait)| match value {
        Trait::Flag(true) => name.clone(),
        Trait::Flag(false) => format!("{name}=false"),
        Trait::Text(one) => format!("{name}={one}"),
        Trait::List(several) => format!("{name}={}", several.join(",")),
    };
    match traits.is_empty() {
        true => "-".to_owned(),
        false => traits.iter().map(word).collect::<Vec<_>>().join(" "),
    }
}

fn server_details(view: &ServerView) -> comfy_table::Table {
    let server = &view.server;
    let hardware = &server.hardware;
    let mut lines = vec![
        ("hostname", server.hostname.clone()),
        ("id", server.id.to_string()),
        ("state", condition(view)),
        ("takes new instances", server.accepts_instances.to_string()),
        ("headnode", server.headnode.to_string()),
        ("rack", or_dash(server.rack.as_ref())),
        ("traits", trait_words(&server.traits)),
        ("nic tags", server.nic_tags.as_ref().map_or_else(|| "all".to_owned(), tag_words)),
        ("comments", server.comments.clone()),
        ("cpu", format!("{} × {}", hardware.cpus, hardware.cpu_model)),
        ("memory", format!("{} promised of {}", server.reserved.memory, hardware.memory)),
        ("disk", format!("{} promised of {}", server.reserved.disk, hardware.pool_size)),
        ("instances", server.reserved.instances.to_string()),
        ("product", hardware.product.clone()),
        ("identity", server.identity.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string)),
        ("address", or_dash(server.underlay.as_ref())),
        ("largest packet there", width(view)),
        ("other machines", wires(view)),
        ("clock", clock_words(view)),
        ("kernel", hardware.kernel.clone()),
        ("agent", hardware.agent_version.clone()),
        ("boot", or_dash(server.boot_id.as_ref())),
        ("target written down", server.target_seen.to_string()),
        ("joined", server.created_at.to_string()),
    ];
    if let Some(drain) = &server.drain {
        lines.push(("draining", format!("since {} {}", drain.since, drain.reason)));
    }
    lines.extend(
        hardware.disks.iter().map(|disk| ("disk", format!("{} {} {}", disk.name, bytes(disk.size), disk.model))),
    );
    let troubled = view.wires.iter().filter(|wire| !wire.fact.is_well());
    lines.extend(troubled.map(|wire| ("wire", wire_trouble(wire))));
    lines.extend(hardware.cards.iter().map(|card| ("network card", format!("{} {}", card.name, card.mac))));
    if !view.strangers.is_empty() {
        let ids: Vec<String> = view.strangers.iter().map(ToString::to_string).collect();
        lines.push(("instances no record knows", ids.join(" ")));
    }
    details(&lines)
}

/// How large packets at its address between machines may be, and whether that is enough.
fn width(view: &ServerView) -> String {
    match (view.server.underlay_mtu, view.underlay_needed) {
        (Some(mtu), Some(needed)) if mtu < needed => {
            format!("{mtu} bytes: too small, full packets of fabrics need {needed}")
        }
        (Some(mtu), Some(needed)) => format!("{mtu} bytes, of which fabrics need {needed}"),
        (mtu, _) => or_dash(mtu),
    }
}

/// Its clock beside the headnode's.
fn clock_words(view: &ServerView) -> String {
    match (view.clock, view.server.clock_ahead_ms) {
        (Some(clock), _) if clock.is_off() => {
            format!("{}, to {} ms; what it reports is set right by that", clock::words(clock.ahead_ms), clock.within_ms)
        }
        (Some(clock), _) => format!("within {} ms of the headnode's", clock.ahead_ms.unsigned_abs() + clock.within_ms),
        (None, Some(ahead)) => format!("{} when it was last heard of", clock::words(ahead)),
        (None, None) => "-".to_owned(),
    }
}

/// How its wires to machines with a peer are.
fn wires(view: &ServerView) -> String {
    let troubled = view.wires.iter().filter(|wire| !wire.fact.is_well()).count();
    match view.wires_age_ms {
        None => "none is tried: no instance here has a neighbour elsewhere".to_owned(),
        Some(age) => {
            let of = view.wires_of.map(|of| format!(" of {of}, the others in turn")).unwrap_or_default();
            format!("{} well, {troubled} not, tried {} ago{of}", view.wires_well, duration(age))
        }
    }
}

/// What is wrong with a wire.
pub(crate) fn wire_trouble(wire: &WireView) -> String {
    let WireView { machine, hostname, fact } = wire;
    let to = hostname.as_ref().map_or_else(|| machine.to_string(), |name| format!("{name} ({machine})"));
    match fact.mtu {
        Some(mtu) if mtu >= fact.needed => {
            format!("to {to}: it answers pings and no VXLAN, whose UDP port is closed on the way, or there")
        }
        Some(mtu) => format!("to {to}: up to {mtu} bytes arrive whole, and {} are needed", fact.needed),
        None => format!("to {to}: no answer since {}", fact.since),
    }
}

/// Machines that are not part of the datacenter yet.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Nodes {
    /// Make an invitation for one machine, and print the line to run on it.
    Invite {
        /// How long it is good for.
        #[arg(long, default_value_t = 24)]
        hours: u32,
        /// The machine may bring the instances it has of a datacenter that is no more.
        #[arg(long)]
        adopt: bool,
        /// Trait the machine gets, `name` or `name=value`; may be repeated.
        #[arg(long = "trait", value_parser = named_trait, value_name = "NAME[=VALUE]")]
        traits: Vec<(String, Trait)>,
        /// Rack the machine gets.
        #[arg(long)]
        rack: Option<String>,
        /// Comment the machine gets.
        #[arg(long, default_value = "")]
        comments: String,
        /// Where the new machine reaches this one's node link; from the settings when absent.
        #[arg(long, value_name = "HOST:PORT")]
        address: Option<String>,
    },
    /// List invitations.
    Invites,
    /// Take an invitation back.
    Withdraw {
        /// Its id.
        invite: String,
    },
}

/// Runs it.
pub(crate) async fn nodes(client: &Client, output: Output, command: Nodes) -> Outcome {
    match command {
        Nodes::Invite { hours, adopt, traits, rack, comments, address } => {
            let traits = traits.into_iter().collect();
            let made = client.invite(&NewInvite { hours, adopt, traits, rack, comments, address }).await?;
            match output.json {
                true => answer::print(serde_json::to_string_pretty(&made)?)?,
                false => answer::print(line(&made))?,
            }
            Ok(())
        }
        Nodes::Invites => output.show(&client.invites().await?, |invites| invite_listing(invites)),
        Nodes::Withdraw { invite } => {
            client.withdraw_invite(&invite).await?;
            output.say(format!("Withdrew invitation {invite}."))
        }
    }
}

fn line(made: &InviteView) -> String {
    let InviteView { invite, token, address, fingerprint } = made;
    let adopt = if invite.adopt { " --adopt" } else { "" };
    format!("echo {token} | neso node join {address} --fingerprint {fingerprint}{adopt}")
}

fn invite_listing(invites: &[Invite]) -> comfy_table::Table {
    table(
        &["id", "made", "expires", "used by", "rack", "traits"],
        invites.iter().map(|invite| {
            vec![
                invite.id.to_string(),
                invite.created_at.to_string(),
                invite.expires_at.to_string(),
                or_dash(invite.used_by),
                or_dash(invite.rack.as_ref()),
                trait_words(&invite.traits),
            ]
        }),
    )
}
