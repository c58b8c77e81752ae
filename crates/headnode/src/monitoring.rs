//! Prometheus beside a headnode: Debian's program, with a configuration, certificates and targets of our making.
//!
//! ```text
//! neso adm monitoring enable ─► monitoring/wanted.json ─► supervisor ─► neso monitor ─► prometheus, as a user of its own
//!                                                            headnode's loop ─► targets, rules, certificate, as they change
//! ```
//! It is a child of the supervisor and not of the headnode, whose end is the first thing it has to tell of. It listens on the loopback address alone, and shows the
//! ops API a certificate that is good for reading metrics and nothing else. Headnodes are asked themselves; machines through this headnode, which asks them.
//!
//! Rejected: Debian's own service, whose settings are the administrator's; and targets that Prometheus fetches from a headnode, because that headnode may be the one
//! that is gone.

pub mod notify;

use std::{
    fs, io,
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use base::daemon::{self, PidFile};
use control::{Control, headnodes, servers};
use flow::loops::Loop;
use model::{headnode::Stage, time::Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::json;
use store::BoxFuture;

use self::notify::Notify;
use crate::{
    pki::{self, PkiError, make_directory, write_file},
    settings::{Settings, local},
    telemetry::rules::RULES,
};

/// Where Prometheus listens unless that is taken. Its own service has 9090.
pub const PORT: u16 = 9_164;
/// Name of Prometheus among the processes of a machine.
pub const MONITOR: &str = "monitor";
/// Name of Alertmanager likewise.
pub const NOTIFIER: &str = "notifier";
/// How often targets and certificates are looked at.
const PERIOD: Duration = Duration::from_secs(5);
/// User it runs as, which Debian's package makes.
const USER: &str = "prometheus";
/// Where the program is looked for beside the search path.
const PROGRAM_DIRECTORIES: [&str; 2] = ["/usr/bin", "/usr/local/bin"];

/// Why there is no Prometheus here.
#[derive(Debug, thiserror::Error)]
pub enum MonitoringError {
    /// A file.
    #[error("failed to {doing} `{path}`")]
    Io {
        /// Operation.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// What is wanted is not readable.
    #[error("`{path}` is damaged; `neso adm monitoring enable` writes it anew")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        #[source]
        source: serde_json::Error,
    },
    /// Certificates.
    #[error("failed to prepare Prometheus' certificate")]
    Pki(#[from] PkiError),
    /// Nobody asked for it.
    #[error("Prometheus is not wanted on this machine: `neso adm monitoring enable`")]
    NotWanted,
    /// Nobody said who is told.
    #[error("nobody is told of alerts on this machine: `neso adm alerts notify`")]
    NobodyToTell,
    /// The program that tells is missing.
    #[error(
        "Alertmanager is not installed: install Debian's package prometheus-alertmanager, and stop and disable its service"
    )]
    NoAlertmanager,
    /// There is nobody to run it as, and root must not.
    #[error("there is no user `{USER}` on this machine; Debian's package prometheus makes it")]
    NoUser,
    /// The program is missing.
    #[error("Prometheus is not installed: install Debian's package prometheus, and stop and disable its service")]
    NotInstalled,
}

impl MonitoringError {
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }
}

/// What an operator asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// Of this record.
    pub version: u32,
    /// Where it listens, on the loopback address.
    pub port: u16,
    /// Days for which it keeps what it saw.
    pub keep_days: u32,
    /// MiB of it at most; the oldest goes first.
    pub keep_mib: u64,
    /// Seconds between two looks.
    pub every_seconds: u32,
    /// Who is told of alerts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notify: Option<Notify>,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { version: 1, port: free_port(PORT), keep_days: 30, keep_mib: 4_096, every_seconds: 15, notify: None }
    }
}

impl Wanted {
    /// What is written down, if anything is.
    pub fn load(settings: &Settings) -> Result<Option<Self>, MonitoringError> {
        let path = path(settings);
        match fs::read(&path) {
            Ok(text) => {
                serde_json::from_slice(&text).map(Some).map_err(|source| MonitoringError::Damaged { path, source })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(MonitoringError::io("read", &path)(error)),
        }
    }

    /// Writes it down; the supervisor does the rest.
    pub fn save(&self, settings: &Settings) -> Result<(), MonitoringError> {
        make_directory(&directory(settings))?;
        let text = serde_json::to_vec_pretty(self).expect("plain data");
        Ok(write_file(&path(settings), &text, 0o600)?)
    }

    /// It is not wanted any more.
    pub fn remove(settings: &Settings) -> Result<(), MonitoringError> {
        let path = path(settings);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(MonitoringError::io("remove", &path)(error)),
            _ => Ok(()),
        }
    }
}

/// A program and what it is given.
#[derive(Debug)]
pub struct Start {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<std::ffi::OsString>,
}

/// A port for it: the usual one, or any that is free where several datacenters are on one machine.
pub fn free_port(usual: u16) -> u16 {
    let held = TcpListener::bind((Ipv4Addr::LOCALHOST, usual)).or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    held.and_then(|held| held.local_addr()).map_or(usual, |address| address.port())
}

fn path(settings: &Settings) -> PathBuf {
    directory(settings).join("wanted.json")
}

/// Where everything of it lies.
pub fn directory(settings: &Settings) -> PathBuf {
    settings.paths.data.join("monitoring")
}

/// What it has seen.
pub fn data_directory(settings: &Settings) -> PathBuf {
    directory(settings).join("data")
}

/// Whether this machine is to run it.
pub fn is_wanted(settings: &Settings) -> bool {
    path(settings).exists()
}

/// The program, if it is installed.
pub fn program() -> Option<PathBuf> {
    program_named("prometheus")
}

fn program_named(name: &str) -> Option<PathBuf> {
    let search = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&search).chain(PROGRAM_DIRECTORIES.map(PathBuf::from));
    directories.map(|directory| directory.join(name)).find(|program| program.is_file())
}

/// Who it runs as, user and group; `None` when we are not root and cannot choose.
///
/// # Errors
/// There is no such user.
pub fn user() -> Result<Option<(u32, u32)>, MonitoringError> {
    if !daemon::is_root() {
        return Ok(None);
    }
    let found = nix::unistd::User::from_name(USER).ok().flatten().ok_or(MonitoringError::NoUser)?;
    Ok(Some((found.uid.as_raw(), found.gid.as_raw())))
}

/// How it is started, from its directory. Makes what it needs.
///
/// # Errors
/// Why it must not be, or cannot be.
pub fn command(settings: &Settings, now: Timestamp) -> Result<Start, MonitoringError> {
    let wanted = Wanted::load(settings)?.ok_or(MonitoringError::NotWanted)?;
    let program = program().ok_or(MonitoringError::NotInstalled)?;
    prepare(settings, &wanted, now)?;
    own_directory(&data_directory(settings))?;
    let arguments = [
        "--config.file=prometheus.yml".to_owned(),
        "--storage.tsdb.path=data".to_owned(),
        format!("--storage.tsdb.retention.time={}d", wanted.keep_days),
        format!("--storage.tsdb.retention.size={}MB", wanted.keep_mib),
        format!("--web.listen-address=127.0.0.1:{}", wanted.port),
    ];
    Ok(Start { program, arguments: arguments.into_iter().map(Into::into).collect() })
}

/// A directory in which the user that programs run as writes.
fn own_directory(path: &Path) -> Result<(), MonitoringError> {
    fs::create_dir_all(path).map_err(MonitoringError::io("make directory", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(MonitoringError::io("close", path))?;
    match user()? {
        Some((uid, gid)) => chown(path, Some(uid), Some(gid)).map_err(MonitoringError::io("hand over", path)),
        None => Ok(()),
    }
}

/// The directory with everything in it, which programs look into and do not change.
fn prepare_directory(settings: &Settings) -> Result<(), MonitoringError> {
    let directory = directory(settings);
    make_directory(&directory)?;
    let Some((_, gid)) = user()? else { return Ok(()) };
    chown(&directory, None, Some(gid)).map_err(MonitoringError::io("hand over", &directory))?;
    let mode = fs::Permissions::from_mode(0o750);
    fs::set_permissions(&directory, mode).map_err(MonitoringError::io("open", &directory))
}

/// Writes configuration, rules and certificate where they differ. Returns whether Prometheus has to read its configuration again.
fn prepare(settings: &Settings, wanted: &Wanted, now: Timestamp) -> Result<bool, MonitoringError> {
    let directory = directory(settings);
    prepare_directory(settings)?;
    let identity = pki::watcher(settings, &directory, now)?;
    for path in [&identity.certificate, &identity.key] {
        share(path)?;
    }
    // The copy beside the operator's certificate is there for whoever is to know it.
    let authority = settings.pki_dir().join("ca.pem");
    let authority = fs::read(&authority).map_err(MonitoringError::io("read", &authority))?;
    place(&directory.join("ca.pem"), &authority)?;
    for file in ["headnodes.json", "nodes.json"] {
        if !directory.join(file).exists() {
            place(&directory.join(file), b"[]")?;
        }
    }
    let rules = place(&directory.join("rules.yml"), RULES.as_bytes())?;
    let configuration = configuration(&settings.datacenter.name, wanted);
    Ok(place(&directory.join("prometheus.yml"), configuration.as_bytes())? || rules)
}

/// Writes a file that Prometheus reads, unless it says the same already. Returns whether it did not.
fn place(path: &Path, text: &[u8]) -> Result<bool, MonitoringError> {
    if fs::read(path).is_ok_and(|held| held == text) {
        return Ok(false);
    }
    // In place when it may be read already: Prometheus looks as soon as it is there.
    let beside = partial(path);
    write_file(&beside, text, 0o600)?;
    share(&beside)?;
    fs::rename(&beside, path).map_err(MonitoringError::io("replace", path))?;
    Ok(true)
}

/// Where a file is written before it is in its place.
fn partial(path: &Path) -> PathBuf {
    path.with_extension("partial")
}

/// Lets the user that Prometheus runs as read a file.
fn share(path: &Path) -> Result<(), MonitoringError> {
    let Some((_, gid)) = user()? else { return Ok(()) };
    chown(path, None, Some(gid)).map_err(MonitoringError::io("share", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o640)).map_err(MonitoringError::io("share", path))
}

/// Prometheus' configuration.
fn configuration(datacenter: &str, wanted: &Wanted) -> String {
    // What JSON writes YAML reads.
    let datacenter = json!(datacenter);
    let every = wanted.every_seconds;
    let mut text = format!(
        "# Made by neso, and replaced as the datacenter changes.\n\
         global:\n  scrape_interval: {every}s\n  scrape_timeout: {every}s\n  evaluation_interval: {every}s\n  \
         external_labels: {{datacenter: {datacenter}}}\n\
         rule_files: [rules.yml]\n"
    );
    if let Some(notify) = &wanted.notify {
        text.push_str(&format!(
            "alerting: {{alertmanagers: [{{static_configs: [{{targets: ['127.0.0.1:{}']}}]}}]}}\n",
            notify.port
        ));
    }
    text.push_str("scrape_configs:\n");
    for (job, file, honor) in [("neso-headnode", "headnodes.json", true), ("neso-node", "nodes.json", false)] {
        text.push_str(&format!(
            "  - job_name: {job}\n    scheme: https\n    metrics_path: /v1/metrics\n    honor_labels: {honor}\n    \
             tls_config: {{ca_file: ca.pem, cert_file: watcher.pem, key_file: watcher.key, server_name: {}}}\n    \
             file_sd_configs: [{{files: [{file}], refresh_interval: 30s}}]\n",
            nodeapi::HEADNODE_NAME
        ));
    }
    text
}

/// Headnodes, as Prometheus' `file_sd_configs` reads them.
fn headnode_targets(control: &Control) -> String {
    let all = headnodes::list(control).into_iter().filter(|view| view.headnode.stage == Stage::Active);
    let target = |view: headnodes::HeadnodeView| {
        let one = &view.headnode;
        json!({ "targets": [one.ops], "labels": { "headnode": one.hostname, "server": one.id } })
    };
    json!(all.map(target).collect::<Vec<_>>()).to_string()
}

/// Machines, likewise; all are asked through the headnode at `ops`.
fn node_targets(control: &Control, ops: &str) -> String {
    let target = |view: servers::ServerView| {
        let server = &view.server;
        json!({
            "targets": [ops],
            "labels": {
                "__metrics_path__": format!("/v1/servers/{}/metrics", server.id),
                "instance": server.hostname,
                "node": server.hostname,
                "server": server.id,
            },
        })
    };
    json!(servers::list(control).into_iter().map(target).collect::<Vec<_>>()).to_string()
}

/// Keeps targets, rules and certificate true where Prometheus is wanted.
#[derive(Clone)]
pub struct FollowFleet {
    control: Control,
    settings: Arc<Settings>,
    monitor: Arc<Reader>,
    notifier: Arc<Reader>,
}

impl FollowFleet {
    /// On this machine.
    pub fn new(control: Control, settings: Settings) -> Self {
        let (monitor, notifier) = (Reader::new(MONITOR), Reader::new(NOTIFIER));
        Self { control, settings: Arc::new(settings), monitor, notifier }
    }

    fn follow(&self) -> Result<String, MonitoringError> {
        let wanted = Wanted::load(&self.settings)?;
        if wanted.as_ref().is_none_or(|wanted| wanted.notify.is_none()) {
            // A pass may have written it just as it was no longer wanted.
            notify::remove_configuration(&self.settings)?;
        }
        let Some(wanted) = wanted else { return Ok(String::new()) };
        let is_new = self.monitor.follow(&self.settings, || prepare(&self.settings, &wanted, self.control.now()))?;
        let directory = directory(&self.settings);
        let ops = local(self.settings.listen.ops).to_string();
        // Prometheus sees for itself when these change.
        let headnodes = place(&directory.join("headnodes.json"), headnode_targets(&self.control).as_bytes())?;
        let nodes = place(&directory.join("nodes.json"), node_targets(&self.control, &ops).as_bytes())?;
        if let Some(notify) = &wanted.notify {
            self.notifier.follow(&self.settings, || notify::prepare(&self.settings, notify))?;
        }
        Ok(if is_new || headnodes || nodes { "Prometheus was told what changed".to_owned() } else { String::new() })
    }
}

impl Loop for FollowFleet {
    fn name(&self) -> &'static str {
        "follow fleet for Prometheus"
    }

    fn period(&self) -> Duration {
        PERIOD
    }

    fn pass(&self) -> BoxFuture<'_, Result<String, Box<dyn std::error::Error + Send + Sync>>> {
        Box::pin(async {
            let following = self.clone();
            // It waits for locks and for the disk.
            Ok(base::task::blocking("follow fleet", move || following.follow()).await?)
        })
    }
}

/// A program that reads what is written for it when it is told to.
#[derive(Debug)]
struct Reader {
    name: &'static str,
    /// Something may have been written that it was not told of yet, maybe by the headnode before this one.
    is_due: AtomicBool,
}

impl Reader {
    fn new(name: &'static str) -> Arc<Self> {
        Arc::new(Self { name, is_due: AtomicBool::new(true) })
    }

    /// Writes what it reads, and tells it where that is new or was written by a pass that failed. Returns whether it was so.
    fn follow(
        &self,
        settings: &Settings,
        write: impl FnOnce() -> Result<bool, MonitoringError>,
    ) -> Result<bool, MonitoringError> {
        let was_due = self.is_due.swap(true, Ordering::Relaxed);
        let is_new = write()? || was_due;
        if is_new && let Some(pid) = PidFile::holder(&settings.paths.run.join(format!("{}.pid", self.name))) {
            // It may just end; the next one reads what is there.
            let _ = daemon::reload(pid);
        }
        self.is_due.store(false, Ordering::Relaxed);
        Ok(is_new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn prometheus_takes_what_is_made_for_it() {
        let root = tempfile::tempdir().unwrap();
        let settings = Settings::parse(&Settings::generate(Some(root.path())).unwrap()).unwrap();
        let now = Timestamp(1_800_000_000_000);
        assert!(!is_wanted(&settings) && matches!(command(&settings, now), Err(MonitoringError::NotWanted)));
        pki::ensure(&settings, now).unwrap();
        let wanted = Wanted { port: 1, ..Wanted::default() };
        wanted.save(&settings).unwrap();
        assert_eq!(Wanted::load(&settings).unwrap(), Some(wanted.clone()));
        assert!(prepare(&settings, &wanted, now).unwrap(), "all is new");
        assert!(!prepare(&settings, &wanted, now).unwrap(), "nothing is");
        let mut check = base::process::command("promtool");
        check.args(["check", "config", "prometheus.yml"]).current_dir(directory(&settings));
        let output = base::process::output(check, Duration::from_secs(60)).await;
        let output = output.expect("the tests need promtool, of Debian's package prometheus");
        assert!(output.success(), "{}", String::from_utf8_lossy(&[output.stdout, output.stderr].concat()));
        let (_, key) =
            (pki::watcher(&settings, &directory(&settings), now).unwrap(), directory(&settings).join("watcher.key"));
        let mode = fs::metadata(key).unwrap().permissions().mode() & 0o777;
        assert!(mode & 0o007 == 0, "{mode:o}: strangers must not read the key");
        Wanted::remove(&settings).unwrap();
        Wanted::remove(&settings).unwrap();
        assert!(!is_wanted(&settings));
    }

    #[test]
    fn what_was_written_before_a_failure_is_told_later() {
        let root = tempfile::tempdir().unwrap();
        let settings = Settings::parse(&Settings::generate(Some(root.path())).unwrap()).unwrap();
        let reader = Reader::new(MONITOR);
        let full = |path: &Path| MonitoringError::io("replace", path)(io::Error::from(io::ErrorKind::StorageFull));
        assert!(reader.follow(&settings, || Ok(false)).unwrap(), "who wrote last may have ended before it told");
        assert!(!reader.follow(&settings, || Ok(false)).unwrap());
        assert!(reader.follow(&settings, || Err(full(root.path()))).is_err());
        assert!(reader.follow(&settings, || Ok(false)).unwrap(), "some of it may have been new");
        assert!(!reader.follow(&settings, || Ok(false)).unwrap(), "it was told");
        assert!(reader.follow(&settings, || Ok(true)).unwrap());
    }
}
