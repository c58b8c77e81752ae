//! `neso node join`: from a machine nobody knows to one that takes instances, and `neso node renew`.
//!
//! ```text
//! machine checks ─► authority by its fingerprint, clocks ─► key, request ─► token ─► certificate ─► settings ─► node runs
//! ```
//! The token comes on standard input, so that it stands neither in the list of processes nor in a shell's history of arguments.
//! A machine whose datacenter is no more joins with its instances: [`adopt`].
//!
//! Before the headnode said yes only the key is written, so that this machine may ask again when the answer was lost; the server's id is
//! written last, and its presence means that this machine has joined.

mod adopt;

use std::{io::Read as _, path::Path, time::Duration};

use base::clock::{Clock as _, SystemClock};
use headnode::{Settings, pki, settings::is_address};
use host::linux::hardware::Sources;
use model::time::Timestamp;
use nodeapi::{
    client::Client as LinkClient,
    join::{Door, Fingerprint, JoinRequest},
};

use crate::{
    context::Place,
    failure::{Failure, Outcome},
    machine,
    progress::Progress,
    up,
};

/// Bytes of standard input that are looked at for a token.
const TOKEN_MAX: u64 = 256;
/// The node gets this long to hear from its headnode.
const TARGET_PATIENCE: Duration = Duration::from_secs(60);
/// How often we look whether it has.
const TARGET_POLL: Duration = Duration::from_millis(100);

/// Verbs of `neso node`; without one, the agent runs.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// Join a datacenter; reads the token of `neso adm node invite` from standard input.
    Join(Arguments),
    /// Get another certificate now, as happens by itself in time.
    Renew,
}

/// What `neso adm node invite` prints.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Node link of the headnode, `HOST:PORT`.
    headnode: String,
    /// Fingerprint of the datacenter's authority, `SHA256:…`.
    #[arg(long)]
    fingerprint: String,
    /// This machine's datacenter is no more: join with the instances it has, which run on. The invitation must allow it.
    #[arg(long)]
    adopt: bool,
    /// Only write settings and certificates; `neso up` starts the node.
    #[arg(long)]
    no_start: bool,
}

/// Runs it.
pub(crate) async fn run(place: &Place, verb: Verb) -> Outcome {
    if !base::daemon::is_root() {
        return Err(
            Failure::new("only root may change what this machine is").mend("run it as root, for example with sudo")
        );
    }
    match verb {
        Verb::Join(arguments) => join(place, &arguments).await,
        Verb::Renew => renew(place).await,
    }
}

async fn join(place: &Place, arguments: &Arguments) -> Outcome {
    let address = &arguments.headnode;
    if !is_address(address) {
        return Err(Failure::new(format!("`{address}` is not HOST:PORT")));
    }
    let fingerprint: Fingerprint = arguments
        .fingerprint
        .parse()
        .map_err(|why: String| Failure::new(format!("`{}` is no fingerprint: {why}", arguments.fingerprint)))?;
    let token = read_token()?;
    let progress = Progress::new();
    let was = match arguments.adopt {
        true => Some(adopt::former(&place.settings()?, fingerprint)?),
        false => None,
    };
    let settings = up::prepare_node(place, &progress)?;
    if was.is_none() {
        refuse_member(&settings)?;
    }

    let step = progress.step(format!("Joining through {address}"));
    let (door, hello) = Door::open(address, fingerprint, now()).await?;
    let renewal = pki::pending_request(&settings)?;
    let request = JoinRequest {
        token,
        request_pem: renewal.request_pem.clone(),
        hostname: hostname(),
        identity: Sources::default().identity(),
        now: now(),
        adopt: was,
    };
    let answer = door.join(&request).await?;
    if was.is_some() {
        adopt::leave(place, &settings, address, &answer.datacenter, &progress).await?;
    } else {
        write_join(place, address, &answer.datacenter)?;
    }
    pki::enroll(&settings, answer.server, &answer.authority_pem, &renewal, &answer.certificate_pem)?;
    step.done(&format!("{}, as server {}", hello.datacenter, answer.server));
    match arguments.no_start {
        true => Ok(()),
        false if was.is_some() => adopt::start(place, &progress).await,
        false => start(place, &progress).await,
    }
}

/// Starts the node of a machine that joined, and waits until it heard from its headnode.
pub(crate) async fn start(place: &Place, progress: &Progress) -> Outcome {
    let settings = place.settings()?;
    up::start_in_background(place, &settings, progress).await?;
    wait_for_word(&settings, progress).await
}

/// Waits until the node of a machine that joined heard from its headnode.
pub(crate) async fn wait_for_word(settings: &Settings, progress: &Progress) -> Outcome {
    let step = progress.step("Waiting for the headnode's word");
    let target = settings.node_dir().join("target.json");
    let begun = tokio::time::Instant::now();
    while !target.exists() {
        if begun.elapsed() > TARGET_PATIENCE {
            let log = crate::supervise::log_file(settings, "node");
            return Err(Failure::new(format!("the headnode said nothing within {} s", TARGET_PATIENCE.as_secs()))
                .mend(format!("`{}` says why; the node goes on trying", log.display())));
        }
        tokio::time::sleep(TARGET_POLL).await;
    }
    step.done("ready for instances");
    Ok(())
}

async fn renew(place: &Place) -> Outcome {
    let settings = place.settings()?;
    if settings.join.is_none() {
        return Err(Failure::new("this machine runs the headnode").mend("use `neso adm certificate renew`"));
    }
    let member = pki::member(&settings, now())?;
    let link = LinkClient::new(&machine::link_settings(&settings, &member)?)?;
    let progress = Progress::new();
    let step = progress.step("Renewing the certificate");
    obtain(&member, &link).await?;
    step.done(&member.node.serial()?);
    Ok(())
}

/// Gets another certificate and puts it in place.
pub(crate) async fn obtain(member: &pki::Member, link: &LinkClient) -> Outcome {
    let renewal = pki::request()?;
    let certificate = link.certify(renewal.request_pem.clone()).await?;
    Ok(pki::renew_member(member, &renewal, &certificate)?)
}

fn read_token() -> Outcome<String> {
    use std::io::IsTerminal as _;
    if std::io::stdin().is_terminal() {
        eprint!("Token: ");
    }
    let mut text = String::new();
    let mut line = std::io::BufReader::new(std::io::stdin().take(TOKEN_MAX));
    std::io::BufRead::read_line(&mut line, &mut text)?;
    match text.trim() {
        "" => Err(Failure::new("there is no token on standard input")
            .mend("run the whole line that `neso adm node invite` printed: `echo TOKEN | neso node join …`")),
        token => Ok(token.to_owned()),
    }
}

/// A machine is part of one datacenter, once.
fn refuse_member(settings: &Settings) -> Outcome {
    let id = std::fs::read_to_string(settings.pki_dir().join("server-id")).unwrap_or_default();
    match (id.trim(), &settings.join) {
        ("", _) => Ok(()),
        (id, Some(join)) => Err(Failure::new(format!(
            "this machine joined already, as server {id} through {}",
            join.headnodes.join(", ")
        ))
        .mend(
            "`neso up` starts its node; to leave, `neso clean-data`; if that datacenter is no more, --adopt joins another one with the instances",
        )),
        (id, None) => Err(Failure::new(format!("this machine runs a datacenter of its own, as server {id}"))
            .mend("join from another machine, or give that datacenter up with `neso clean-data`")),
    }
}

/// Adds to the settings where the headnode is, and what its datacenter is called.
fn write_join(place: &Place, address: &str, datacenter: &str) -> Outcome {
    let path = place.settings_path();
    let read = |path: &Path| {
        std::fs::read_to_string(path)
            .map_err(|error| Failure::new(format!("failed to read `{}`: {error}", path.display())))
    };
    let old = read(&path)?;
    let text = match old.contains(SECTION) {
        true => old,
        false => format!("{old}{}", section(address, datacenter)),
    };
    Settings::parse(&text).map_err(Failure::new)?;
    up::write_whole(&path, &text)
}

/// How the settings' section begins.
const SECTION: &str = "\n[join]\n";

fn section(address: &str, datacenter: &str) -> String {
    format!(
        "{SECTION}# This machine runs a node and no headnode; datacenter {datacenter:?} is led from here:\nheadnodes = [{address:?}]\n"
    )
}

fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "localhost".to_owned() } else { name.trim().to_owned() }
}

fn now() -> Timestamp {
    Timestamp(SystemClock.now_ms())
}
