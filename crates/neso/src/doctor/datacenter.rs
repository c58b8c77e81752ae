//! Checks of the datacenter: processes, certificates, store, nodes, flows, loops.

use std::time::Duration;

use base::{
    clock::{Clock as _, SystemClock},
    daemon::PidFile,
};
use headnode::Settings;
use model::{
    clock::{self, ClockReading, Exchange},
    time::Timestamp,
};
use nodeapi::join::{Door, Fingerprint};
use opsapi::{CertificateView, Client, ServerView, StoreKept, WireView};
use tokio::time::Instant;

use super::Finding;
use crate::{
    adm::servers::wire_trouble,
    supervise::{self, children},
};

/// A certificate that ends sooner than this deserves a look: renewal should have happened long before, days.
const CERTIFICATE_DAYS: i64 = 30;
/// The authority is not renewed by itself, and nothing it signs outlives it: time to plan, days.
const AUTHORITY_DAYS: i64 = 180;
/// The ops API gets this long.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
/// How a clock is set and kept.
const SET_CLOCK: &str = "on that machine `timedatectl set-ntp true`, or another time service";
/// Wires of one machine that are told one by one.
const WIRES_SHOWN: usize = 3;
/// A loop whose last pass is this many periods ago is stuck.
const LOOP_PERIODS: u64 = 5;

/// All datacenter checks.
pub(super) async fn check(settings: &Settings) -> Vec<Finding> {
    if !base::daemon::is_root() {
        return vec![Finding::warning(
            "datacenter",
            "not looked at: only root may read its processes' files and the operator's key",
            "run it as root, for example with sudo",
        )];
    }
    let mut findings = processes(settings);
    if headnode::members::recover::is_under_way(settings) {
        let found = "the store is being begun anew from this machine's member, and that was cut";
        findings.push(Finding::fatal("headnode", found, "`neso adm recover --from-this-member --yes` goes on"));
    }
    if let Some(join) = settings.join.as_ref().filter(|_| !headnode::role::runs_headnode(settings)) {
        let headnodes = join.headnodes.join(", ");
        findings.push(Finding::ok("headnode", format!("elsewhere, at {headnodes}; its own `neso doctor` says more")));
        findings.push(
            tokio::time::timeout(ANSWER_PATIENCE, beside_headnode(settings, &join.headnodes)).await.unwrap_or_else(
                |_| {
                    Finding::fatal(
                        "clock",
                        format!("no headnode said its time within {} s", ANSWER_PATIENCE.as_secs()),
                        "look at the way there",
                    )
                },
            ),
        );
        return findings;
    }
    findings.extend(underlay(settings));
    let asked = tokio::time::timeout(ANSWER_PATIENCE, ask(settings)).await;
    match asked {
        Ok(Ok(answers)) => findings.extend(answers),
        Ok(Err(failure)) => findings.push(Finding::fatal(
            "ops API",
            failure.message,
            failure
                .remedy
                .unwrap_or_else(|| format!("look at `{}`", supervise::log_file(settings, "headnode").display())),
        )),
        Err(_) => findings.push(Finding::fatal(
            "ops API",
            format!("no answer within {} s", ANSWER_PATIENCE.as_secs()),
            format!("look at `{}`", supervise::log_file(settings, "headnode").display()),
        )),
    }
    findings
}

/// This machine's clock beside that of the headnode it joined, which tells its time to anybody: that works also where certificates
/// look wrong because the clock is.
async fn beside_headnode(settings: &Settings, headnodes: &[String]) -> Finding {
    let path = settings.pki_dir().join("ca.pem");
    let Some(authority) = std::fs::read(&path).ok().and_then(|pem| Fingerprint::of_pem(&pem)) else {
        return Finding::fatal("clock", format!("`{}` is no certificate", path.display()), "join again");
    };
    let mut failure = String::new();
    for headnode in headnodes {
        let asked = Instant::now();
        match Door::hello(headnode, authority).await {
            Ok(hello) => {
                let (waited, heard) = (asked.elapsed(), Timestamp(SystemClock.now_ms()));
                let reading = Exchange { heard, waited, received: hello.now, answered: hello.now }.reading();
                return reading.map_or_else(
                    || Finding::warning("clock", "was set while it was looked at", "look again"),
                    own_clock,
                );
            }
            Err(error) => failure = base::errors::chain(&error),
        }
    }
    Finding::fatal("clock", format!("no headnode says its time: {failure}"), "look at the way there")
}

fn own_clock(reading: ClockReading) -> Finding {
    let off = clock::beside(reading.ahead_ms, "the headnode's");
    match reading {
        _ if reading.surely_off_ms() > clock::CERTIFICATES_MS => {
            Finding::fatal("clock", format!("{off}: certificates look wrong by it"), SET_CLOCK)
        }
        _ if reading.is_off() => Finding::warning("clock", off, SET_CLOCK),
        _ => Finding::ok(
            "clock",
            format!("within {} ms of the headnode's", reading.ahead_ms.unsigned_abs() + reading.within_ms),
        ),
    }
}

/// Clocks of machines beside the headnode's. If several others agree that this one is wrong, it is.
fn clocks(servers: &[ServerView]) -> Vec<Finding> {
    let told = servers.iter().filter(|view| view.reachable).filter_map(|view| Some((view, view.clock?)));
    let (others, own): (Vec<_>, Vec<_>) = told.partition(|(view, _)| !view.server.headnode);
    let [(_, first), rest @ ..] = others.as_slice() else { return Vec::new() };
    let agree = |one: &(&ServerView, ClockReading)| {
        one.1.is_off() && one.1.ahead_ms.abs_diff(first.ahead_ms) <= clock::OFF_MS + one.1.within_ms + first.within_ms
    };
    if !rest.is_empty() && others.iter().all(agree) && own.iter().all(|(_, reading)| !reading.is_off()) {
        let found = format!(
            "the headnode's is {}, by the {} machines that report to it, which agree",
            clock::words(first.ahead_ms.saturating_neg()),
            others.len()
        );
        return vec![Finding::warning("clock", found, SET_CLOCK)];
    }
    let off = others.iter().filter(|(_, reading)| reading.is_off());
    off.map(|(view, reading)| {
        let found = format!("{}'s is {}", view.server.hostname, clock::beside(reading.ahead_ms, "the headnode's"));
        match reading.surely_off_ms() > clock::CERTIFICATES_MS {
            true => {
                let found = format!(
                    "{found}: if it is the machine's that is wrong, it will not get in again once its connection breaks"
                );
                Finding::fatal("clock", found, SET_CLOCK)
            }
            false => Finding::warning("clock", found, SET_CLOCK),
        }
    })
    .collect()
}

fn processes(settings: &Settings) -> Vec<Finding> {
    children(settings)
        .iter()
        .map(|name| match PidFile::holder(&supervise::pid_file(settings, name)) {
            Some(pid) => Finding::ok(name, format!("runs as process {pid}")),
            None => Finding::fatal(
                name,
                "does not run",
                format!("`neso up`; if it ends again, `{}` says why", supervise::log_file(settings, name).display()),
            ),
        })
        .collect()
}

/// Whether it is known where other machines meet this one; nothing to say where none can join.
fn underlay(settings: &Settings) -> Option<Finding> {
    let many = match crate::machine::underlay(settings) {
        Ok(None) => return None,
        Ok(Some(address)) => {
            return Some(Finding::ok("underlay", format!("other machines meet this one at {address}")));
        }
        Err(many) => many,
    };
    let all: Vec<String> = many.iter().map(ToString::to_string).collect();
    let found = match many.is_empty() {
        true => "this machine has no address at which others could meet it".to_owned(),
        false => format!("others could meet this machine at any of {}", all.join(", ")),
    };
    let remedy = "tenants' own networks end at this machine until the settings say fabric.underlay_address; then `neso down \
                  --keep-instances` and `neso up`";
    Some(Finding::warning("underlay", found, remedy))
}

async fn ask(settings: &Settings) -> crate::failure::Outcome<Vec<Finding>> {
    let client = crate::adm::client(settings)?;
    let info = client.datacenter().await?;
    let mut findings = vec![Finding::ok("ops API", format!("version {} at {}", info.version, settings.listen.ops))];
    findings.extend(info.certificates.iter().map(|found| certificate(settings, found, info.now)));
    findings.push(disk(info.store_free_bytes));
    findings.extend(servers(&client, info.now).await?);
    findings.extend(headnodes(&client).await?);
    findings.extend(flows(&client).await?);
    findings.extend(loops(&client).await?);
    findings.push(super::names::check(&client).await?);
    findings.extend(info.findings.into_iter().map(|found| Finding::warning("headnode", found, "see `neso adm info`")));
    Ok(findings)
}

fn certificate(settings: &Settings, found: &CertificateView, now: Timestamp) -> Finding {
    let days = (found.expires_at.0 - now.0) / 86_400_000;
    let ends = format!("{} ends at {}", found.name, found.expires_at);
    match (found.name.as_str(), days) {
        ("authority", ..AUTHORITY_DAYS) => Finding::fatal(
            "certificate",
            format!("{ends}, and every other one with it"),
            format!(
                "move `ca.pem` and `ca.key` out of `{}`, then `neso down` and `neso up`: they make a new authority and all \
                 certificates",
                settings.pki_dir().display()
            ),
        ),
        (_, ..CERTIFICATE_DAYS) => Finding::fatal(
            "certificate",
            ends,
            "`neso adm certificate renew`, or `neso up` when that cannot be reached",
        ),
        (name, days) => Finding::ok("certificate", format!("{name} is good for {days} days")),
    }
}

fn disk(free: u64) -> Finding {
    let found = format!("{} free", crate::adm::bytes(free));
    match free {
        0..0x1000_0000 => Finding::fatal("store", found, "free some space: without it nothing can be written down"),
        _ => Finding::ok("store", found),
    }
}

async fn servers(client: &Client, now: Timestamp) -> crate::failure::Outcome<Vec<Finding>> {
    let servers = client.servers().await?;
    if servers.is_empty() {
        return Ok(vec![Finding::fatal("servers", "none has reported yet", "look at the node's log")]);
    }
    let strangers: Vec<Finding> = servers.iter().filter_map(strangers).collect();
    let clocks = clocks(&servers);
    let waiting: Vec<Finding> = servers.iter().filter_map(waiting).collect();
    let wires: Vec<Finding> = servers.iter().filter(|view| view.reachable).flat_map(wires).collect();
    let mut findings: Vec<Finding> = servers
        .into_iter()
        .map(|view| match view.reachable {
            true => Finding::ok("server", format!("{} reports", view.server.hostname)),
            false => Finding::fatal(
                "server",
                format!(
                    "{} was last heard of {}; its instances go on without it",
                    view.server.hostname,
                    crate::adm::ago(now, view.server.last_seen_at)
                ),
                "look at that machine and its node's log",
            ),
        })
        .collect();
    findings.extend(strangers);
    findings.extend(clocks);
    findings.extend(waiting);
    findings.extend(wires);
    Ok(findings)
}

/// What is wrong between a machine and others: too small packets, and others that do not answer.
fn wires(view: &ServerView) -> Vec<Finding> {
    let name = &view.server.hostname;
    let mut findings = Vec::new();
    if let (Some(mtu), Some(needed)) = (view.server.underlay_mtu, view.underlay_needed)
        && mtu < needed
    {
        findings.push(Finding::warning(
            "wire",
            format!("{name} takes packets of {mtu} bytes between machines, and full ones of fabrics need {needed}"),
            "raise the MTU of its interface and of the switch, or lower fabric.mtu in the settings for new networks",
        ));
    }
    let troubled: Vec<&WireView> = view.wires.iter().filter(|wire| !wire.fact.is_well()).collect();
    let remedy = "look at the cables, switches and firewalls between the two, which must let pings and the fabric's UDP port \
                  through; `neso adm path A B --probe` tries again";
    findings.extend(
        troubled
            .iter()
            .take(WIRES_SHOWN)
            .map(|wire| Finding::warning("wire", format!("from {name} {}", wire_trouble(wire)), remedy)),
    );
    if troubled.len() > WIRES_SHOWN {
        let found = format!("{name} has more wires that are not well");
        findings.push(Finding::warning("wire", found, format!("`neso adm server get {}` lists them", view.server.id)));
    }
    findings
}

/// Instances on a machine that no record knows, as after a restore of an older store.
fn strangers(view: &ServerView) -> Option<Finding> {
    let first = view.strangers.first()?;
    Some(Finding::warning(
        "server",
        format!(
            "{} has {} instances that no record knows, {first} among them; they are left alone",
            view.server.hostname,
            view.strangers.len()
        ),
        "`neso adm rebuild` says what they are and whether they can be known again; --yes makes them known",
    ))
}

/// What is to be done about headnodes; one that is meant to be alone is no finding.
async fn headnodes(client: &Client) -> crate::failure::Outcome<Vec<Finding>> {
    let view = client.headnodes().await?;
    if let Some(waiting) = view.waiting {
        let remedy = match view.store {
            StoreKept::Elsewhere => {
                "the members are kept by somebody else, who is to start them: all goes on by itself as soon as enough of them answer"
            }
            _ => {
                "start those machines, or `neso up` there: all goes on by itself as soon as enough of them answer; if they \
                 are gone for good, `neso adm recover --from-this-member`"
            }
        };
        return Ok(vec![Finding::fatal("majority", waiting.text, remedy)]);
    }
    if view.headnodes.len() < 2 && view.changes.is_empty() {
        return Ok(Vec::new());
    }
    if view.advice.is_empty() {
        return Ok(vec![Finding::ok("headnodes", format!("{}; now {}", view.meaning, view.may_be_lost))]);
    }
    let all = view.advice.into_iter();
    Ok(all.map(|found| Finding::warning("headnodes", found, "`neso adm ha status` shows all of them")).collect())
}

/// A machine that is told nothing since the store was restored.
fn waiting(view: &ServerView) -> Option<Finding> {
    let restored = view.server.restored?;
    let name = &view.server.hostname;
    let found = match restored.compared {
        _ if restored.brought => format!("{name} came with instances of another datacenter, and is told nothing yet"),
        true => format!("{name} is told nothing since the restore of the backup of {}", restored.taken_at),
        false => format!("{name} was not heard of since the restore of the backup of {}", restored.taken_at),
    };
    Some(Finding::warning("server", found, "`neso adm rebuild` says what it waits for"))
}

async fn flows(client: &Client) -> crate::failure::Outcome<Vec<Finding>> {
    let parked: Vec<_> = client.flows(true).await?.into_iter().filter(|flow| flow.state == "parked").collect();
    if parked.is_empty() {
        return Ok(vec![Finding::ok("flows", "none is parked")]);
    }
    Ok(parked
        .into_iter()
        .map(|flow| {
            Finding::warning(
                "flow",
                format!("{} of {} is parked: {}", flow.kind, flow.subject, flow.error.unwrap_or_default()),
                format!("`neso adm flow show {}` lists its steps and reasons", flow.id),
            )
        })
        .collect())
}

async fn loops(client: &Client) -> crate::failure::Outcome<Vec<Finding>> {
    let troubled: Vec<Finding> = client
        .loops()
        .await?
        .into_iter()
        .filter_map(|status| {
            let late = status.age_ms.is_some_and(|age| age > status.period_ms.saturating_mul(LOOP_PERIODS));
            let found = match (&status.error, late) {
                (Some(error), _) => format!("{} failed: {error}", status.name),
                (None, true) => format!("{} has not run for {} s", status.name, status.age_ms.unwrap_or(0) / 1_000),
                (None, false) => return None,
            };
            Some(Finding::warning("loop", found, "it tries again by itself; `neso adm loops` shows all"))
        })
        .collect();
    Ok(match troubled.is_empty() {
        true => vec![Finding::ok("loops", "all ran in time")],
        false => troubled,
    })
}

#[cfg(test)]
mod tests {
    use model::{
        id::ServerId,
        server::{Condition, Server},
    };

    use super::*;

    #[test]
    fn the_end_of_the_authority_is_named_in_time() {
        let settings = Settings::parse(&Settings::generate(None).unwrap()).unwrap();
        let told = |name: &str, days: i64| {
            let (now, name) = (Timestamp(1_800_000_000_000), name.to_owned());
            let expires_at = now.plus_millis(days * 86_400_000);
            let finding = certificate(&settings, &CertificateView { name, expires_at, serial: String::new() }, now);
            serde_json::to_string(&finding).unwrap()
        };
        let late = told("authority", AUTHORITY_DAYS - 1);
        assert!(late.contains("authority ends at") && late.contains("ca.pem"), "{late}");
        assert!(told("authority", AUTHORITY_DAYS + 1).contains("is good for"));
        assert!(told("node", AUTHORITY_DAYS - 1).contains("is good for"));
        assert!(told("node", 1).contains("certificate renew"));
    }

    #[test]
    fn a_wrong_clock_is_the_machines_or_the_headnodes() {
        let told = |clocks_ahead: &[(bool, i64)]| {
            let view_of = |server: &Server, clock: Option<ClockReading>| {
                let mut view = serde_json::to_value(server).unwrap();
                view["reachable"] = true.into();
                view["condition"] = serde_json::to_value(Condition::Running).unwrap();
                view["clock"] = serde_json::to_value(clock).unwrap();
                serde_json::from_value::<ServerView>(view).unwrap()
            };
            let view = |(number, (headnode, ahead_ms)): (usize, &(bool, i64))| {
                let mut server = Server::new(ServerId::random(), format!("m{number}"), Timestamp(0));
                server.headnode = *headnode;
                let clock = Some(ClockReading { ahead_ms: *ahead_ms, within_ms: 5 });
                view_of(&server, clock)
            };
            let servers: Vec<ServerView> = clocks_ahead.iter().enumerate().map(view).collect();
            serde_json::to_string(&super::clocks(&servers)).unwrap()
        };
        assert_eq!(told(&[(true, 0), (false, 900), (false, -900)]), "[]");
        let one = told(&[(true, 0), (false, 2_500), (false, 0)]);
        assert!(one.contains("m1's is 2.5 s ahead of") && one.contains("warning"), "{one}");
        let day = told(&[(true, 0), (false, -90_000_000)]);
        assert!(day.contains("1 d 1 h behind the") && day.contains("fatal"), "{day}");
        let own = told(&[(true, 0), (false, -7_000), (false, -7_600)]);
        assert!(own.contains("the headnode's is 7.0 s ahead, by the 2 machines"), "{own}");
    }
}
