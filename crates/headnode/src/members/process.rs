//! The member as a process: what etcd is started with, and when it must not be.

use std::{
    ffi::OsString,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
};

use model::{
    quorum::{CLIENT_PORT, PEER_PORT},
    time::Timestamp,
};

use crate::{
    members::{
        file::{ClusterFile, ClusterFileError, Kept, MemberFile},
        recover,
    },
    pki::{PkiError, StorePki, store_certificates},
    settings::Settings,
};

/// Where etcd is looked for beside the search path, which a supervisor may have been started without.
const PROGRAM_DIRECTORIES: [&str; 3] = ["/usr/bin", "/usr/local/bin", "/usr/sbin"];
/// Entries of the log between snapshots: a member that comes back after more gets a snapshot instead of entries, and memory is held for as many.
const SNAPSHOT_ENTRIES: u32 = 10_000;

/// Why a member cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// What says that there is one.
    #[error("read what this machine keeps of the store")]
    File(#[from] ClusterFileError),
    /// Certificates.
    #[error("prepare the member's certificates")]
    Pki(#[from] PkiError),
    /// There is none to start.
    #[error("this machine has no member of the store")]
    None,
    /// The program is missing.
    #[error("etcd is not installed: install Debian's package etcd-server (3.4 or later), without starting its service")]
    NotInstalled,
    /// Nobody may start it now.
    #[error(
        "the store is being begun anew from this member: `neso adm recover --from-this-member --yes` goes on with that"
    )]
    Recovering,
    /// Its data are gone.
    #[error(
        "the data of this machine's member are gone from `{0}`; its headnode takes it out and adds it again once a majority of the others is well"
    )]
    DataGone(PathBuf),
}

/// A program and what it is given.
#[derive(Debug)]
pub struct Command {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

/// etcd's program, if it is installed.
pub fn program() -> Option<PathBuf> {
    let search = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&search).chain(PROGRAM_DIRECTORIES.map(PathBuf::from));
    directories.map(|directory| directory.join("etcd")).find(|program| program.is_file())
}

/// Whether this machine is to run a member now.
pub fn is_wanted(settings: &Settings) -> bool {
    ClusterFile::load(settings).ok().flatten().is_some_and(|file| file.member.is_some())
}

/// How this machine's member is started. Makes its certificates.
///
/// # Errors
/// Why it must not be, or cannot be.
pub fn command(settings: &Settings, now: Timestamp) -> Result<Command, StartError> {
    let file = ClusterFile::load(settings)?.ok_or(StartError::None)?;
    let member = file.member.ok_or(StartError::None)?;
    let is_begun_anew = recover::is_under_way(settings);
    let member = match recover::to_be_filled(settings, &member) {
        Some(empty) => empty,
        None if is_begun_anew => return Err(StartError::Recovering),
        None => member,
    };
    let data = ClusterFile::data_dir(settings);
    if file.kept_in == Kept::Etcd && member.started && !has_data(&data) {
        return Err(StartError::DataGone(data));
    }
    let pki = store_certificates(settings, &member.name, &hosts(&member), now)?;
    let program = program().ok_or(StartError::NotInstalled)?;
    Ok(Command { program, arguments: arguments(settings, &member, &data, &pki) })
}

/// Whether a member has ever written in its data directory.
pub(crate) fn has_data(data: &Path) -> bool {
    let log = data.join("member").join("wal");
    std::fs::read_dir(log).is_ok_and(|mut entries| entries.any(|entry| entry.is_ok()))
}

/// What the member's certificate must be good for.
pub(crate) fn hosts(member: &MemberFile) -> Vec<String> {
    [&member.client, &member.peer].into_iter().filter_map(|address| host_of(address)).collect()
}

fn host_of(address: &str) -> Option<String> {
    let (host, _) = address.rsplit_once(':')?;
    Some(host.trim_start_matches('[').trim_end_matches(']').to_owned())
}

fn arguments(settings: &Settings, member: &MemberFile, data: &Path, pki: &StorePki) -> Vec<OsString> {
    let MemberFile { name, client, peer, token, initial_cluster, first, .. } = member;
    let store = &settings.store;
    let mut all: Vec<OsString> = Vec::new();
    let mut add = |name: &str, value: &dyn AsRef<std::ffi::OsStr>| {
        let mut argument = OsString::from(format!("--{name}="));
        argument.push(value.as_ref());
        all.push(argument);
    };
    add("name", name);
    add("data-dir", &data);
    add("listen-client-urls", &url(client));
    add("advertise-client-urls", &url(client));
    add("listen-peer-urls", &url(peer));
    add("initial-advertise-peer-urls", &url(peer));
    add("initial-cluster", initial_cluster);
    add("initial-cluster-token", token);
    add("initial-cluster-state", &if *first { "new" } else { "existing" });
    for of in ["", "peer-"] {
        add(&format!("{of}trusted-ca-file"), &pki.authority);
        add(&format!("{of}cert-file"), &pki.member.certificate);
        add(&format!("{of}key-file"), &pki.member.key);
        add(&format!("{of}client-cert-auth"), &"true");
    }
    // A machine may have several addresses, and what it dials from is not always the one it is known by. The authority signs nobody else.
    add("experimental-peer-skip-client-san-verification", &"true");
    // The gateway would dial the member with a certificate of its own.
    add("enable-grpc-gateway", &"false");
    add("quota-backend-bytes", &(store.quota_mib << 20).to_string());
    add("max-txn-ops", &store.operations_max.to_string());
    add("snapshot-count", &SNAPSHOT_ENTRIES.to_string());
    // Whoever comes back after a cut does not depose a leader that is well.
    add("pre-vote", &"true");
    add("logger", &"zap");
    add("log-outputs", &"stderr");
    all
}

/// `HOST:PORT`, as a URL.
pub(crate) fn url(address: &str) -> String {
    match address.starts_with("https://") {
        true => address.to_owned(),
        false => format!("https://{address}"),
    }
}

/// `HOST:PORT` of a URL, or of itself.
pub fn bare(address: &str) -> String {
    address.trim_start_matches("https://").trim_end_matches('/').to_owned()
}

/// Where a member on this machine is reached by headnodes and by members, both `HOST:PORT`: by the settings; else at the address between machines, the
/// one nodes dial, or the one this machine dials out from. `reported` is the address between machines that its node found.
pub fn addresses(settings: &Settings, reported: Option<IpAddr>) -> (String, String) {
    let store = &settings.store;
    let link = settings.listen.node_link.ip();
    let given = settings.fabric.underlay_address.or((!link.is_unspecified()).then_some(link));
    let ip = given.or(reported).or_else(outgoing).unwrap_or(link);
    // Several datacenters on one machine are on the loopback address; what is written down then stays.
    let free = if ip.is_loopback() { free_ports(ip) } else { None };
    let (client, peer) = free.unwrap_or((CLIENT_PORT, PEER_PORT));
    let or = |given: &Option<String>, port| given.clone().unwrap_or_else(|| SocketAddr::new(ip, port).to_string());
    (or(&store.member_client, client), or(&store.member_peer, peer))
}

/// The address that packets to elsewhere come from. Nothing is sent.
fn outgoing() -> Option<IpAddr> {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).ok()?;
    // Of the block for documentation: it is nobody's, and the default route leads there.
    socket.connect(("192.0.2.1", 9)).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified())
}

fn free_ports(ip: IpAddr) -> Option<(u16, u16)> {
    // Both held until both are known.
    let held = [TcpListener::bind((ip, 0)).ok()?, TcpListener::bind((ip, 0)).ok()?];
    Some((held[0].local_addr().ok()?.port(), held[1].local_addr().ok()?.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_both_ways() {
        assert_eq!(url("10.0.0.1:2380"), "https://10.0.0.1:2380");
        assert_eq!(url(&url("[fd00::1]:2380")), "https://[fd00::1]:2380");
        assert_eq!(bare("https://10.0.0.1:2380"), "10.0.0.1:2380");
        assert_eq!(host_of("[fd00::1]:2380").as_deref(), Some("fd00::1"));
        assert_eq!(host_of("one.example:2380").as_deref(), Some("one.example"));
    }

    #[test]
    fn a_member_that_lost_its_data_is_not_started_as_if_it_were_new() {
        let root = tempfile::tempdir().unwrap();
        let settings = Settings::parse(&Settings::generate(Some(root.path())).unwrap()).unwrap();
        let now = Timestamp(1_800_000_000_000);
        assert!(!is_wanted(&settings));
        assert!(matches!(command(&settings, now), Err(StartError::None)));
        let member = MemberFile {
            name: "one".to_owned(),
            client: "127.0.0.1:1".to_owned(),
            peer: "127.0.0.1:2".to_owned(),
            token: "t".to_owned(),
            initial_cluster: "one=https://127.0.0.1:2".to_owned(),
            first: true,
            started: false,
        };
        let endpoints = vec!["https://127.0.0.1:1".to_owned()];
        crate::pki::ensure(&settings, now).unwrap();
        crate::pki::make_store_authority(&settings, now).unwrap();
        ClusterFile::in_members(Some(member.clone()), endpoints.clone()).save(&settings).unwrap();
        assert!(is_wanted(&settings));
        if let Ok(command) = command(&settings, now) {
            let text: Vec<_> = command.arguments.iter().map(|argument| argument.to_string_lossy()).collect();
            assert!(text.iter().any(|argument| argument == "--peer-client-cert-auth=true"), "{text:?}");
            assert!(text.iter().any(|argument| argument == "--initial-cluster-state=new"), "{text:?}");
        }
        let started = MemberFile { started: true, ..member };
        ClusterFile::in_members(Some(started.clone()), endpoints).save(&settings).unwrap();
        assert!(matches!(command(&settings, now), Err(StartError::DataGone(_))));
        // While it is only being filled it may begin anew.
        ClusterFile::filling(started).save(&settings).unwrap();
        assert!(!matches!(command(&settings, now), Err(StartError::DataGone(_))));
    }
}
