//! Whether this machine could run a headnode: looked at when a headnode asks, and changing nothing.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    time::Duration,
};

use model::{
    quorum::{CLIENT_PORT, Fitness, PEER_PORT},
    role::HeadnodeState,
};

use crate::shared::Shared;

/// etcd says its version at once, or something is wrong with it.
const VERSION_PATIENCE: Duration = Duration::from_secs(5);
/// Ports that are tried one after the other.
const PORTS_TRIED: u16 = 64;

pub(crate) async fn look(shared: &Shared) -> Fitness {
    let etcd = etcd_version().await;
    // One that runs a headnode already has its ports.
    let runs = shared.config.headnode.borrow().as_ref().is_some_and(|fact| fact.state == HeadnodeState::Ready);
    let listens = if runs { Vec::new() } else { shared.config.headnode_listens.clone() };
    let client_port = free_port(CLIENT_PORT, |_| true);
    Fitness {
        release: shared.config.version.clone(),
        now: shared.now(),
        etcd,
        client_port,
        peer_port: free_port(PEER_PORT, |port| Some(port) != client_port),
        taken: listens.into_iter().filter(|address| !is_free(*address)).map(|address| address.port()).collect(),
    }
}

/// What the installed etcd calls itself.
async fn etcd_version() -> Option<String> {
    let mut command = base::process::command("etcd");
    command.arg("--version");
    let output = base::process::output(command, VERSION_PATIENCE).await.ok().filter(base::process::Output::success)?;
    version_in(&String::from_utf8_lossy(&output.stdout))
}

fn version_in(text: &str) -> Option<String> {
    text.lines().find_map(|line| Some(line.strip_prefix("etcd Version:")?.trim().to_owned()))
}

/// The first port from `first` on that nothing listens on and that `fits`.
fn free_port(first: u16, fits: impl Fn(u16) -> bool) -> Option<u16> {
    let ports = first..first.saturating_add(PORTS_TRIED);
    ports.into_iter().find(|port| fits(*port) && is_free(SocketAddr::from((Ipv4Addr::UNSPECIFIED, *port))))
}

/// Whether one could listen there. What listens is closed at once.
fn is_free(address: SocketAddr) -> bool {
    TcpListener::bind(address).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcd_says_its_version_in_its_first_line() {
        let text =
            "etcd Version: 3.4.23\nGit SHA: Not provided (use ./build instead of go build)\nGo Version: go1.19\n";
        assert_eq!(version_in(text).as_deref(), Some("3.4.23"));
        assert_eq!(version_in("flag provided but not defined"), None);
    }

    #[test]
    fn a_port_that_is_taken_is_passed_over() {
        let taken = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        assert!(!is_free(taken.local_addr().unwrap()));
        assert_ne!(free_port(port, |_| true), Some(port));
        drop(taken);
    }
}
