//! A headnode whose store is in a real etcd, with members that die and come back.

use std::fs;

use etcd::local::Member;

use crate::datacenter::Datacenter;

/// Members, and the runtime their processes are watched by.
struct Cluster {
    runtime: tokio::runtime::Runtime,
    members: Vec<Member>,
    _directory: tempfile::TempDir,
}

impl Cluster {
    /// `None`, with a line that says why, where etcd is not installed.
    fn start(count: usize) -> Option<Self> {
        if !etcd::local::is_installed() {
            println!("skipped: a datacenter over etcd, because etcd is not installed (Debian's package etcd-server)");
            return None;
        }
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let directory = tempfile::Builder::new().prefix("neso-it-etcd-").tempdir().expect("a directory");
        let members = runtime.block_on(Member::cluster(directory.path(), count, None, &[])).expect("a cluster");
        Some(Self { runtime, members, _directory: directory })
    }

    /// The section of the settings that names it.
    fn section(&self) -> String {
        let endpoints: Vec<String> = self.members.iter().map(|member| format!("\"{}\"", member.endpoint())).collect();
        format!("engine = \"etcd\"\nendpoints = [{}]", endpoints.join(", "))
    }

    /// Puts the store of a datacenter that does not run yet into it.
    fn keep(&self, datacenter: &Datacenter) {
        let path = datacenter.root().join(headnode::settings::DEFAULT_FILE);
        let text = fs::read_to_string(&path).expect("settings");
        fs::write(&path, text.replace("engine = \"sqlite\"", &self.section())).expect("settings are written");
    }

    fn kill(&mut self, number: usize) {
        self.runtime.block_on(self.members[number].kill()).expect("our own process can be killed");
    }

    fn start_again(&mut self, number: usize) {
        let member = &mut self.members[number];
        self.runtime
            .block_on(async {
                member.start()?;
                member.ready().await
            })
            .expect("a member comes back");
    }
}

#[test]
fn a_datacenter_lives_in_etcd() {
    let Some(mut cluster) = Cluster::start(3) else { return };
    let Some(datacenter) = Datacenter::start_after(|datacenter| cluster.keep(datacenter)) else { return };
    assert!(!datacenter.settings().headnode_dir().join("store.db").exists(), "nothing is in SQLite");
    datacenter.good(&["instance", "create", "-w", "--name", "one", "minimal", "g1-nano"]);
    // A headnode that is killed has lost nothing.
    datacenter.kill("headnode");
    datacenter.wait("another headnode", || datacenter.state("one").as_deref() == Some("running"));
    // Neither has one whose member is killed; the first is the one it talks to.
    cluster.kill(0);
    for (verb, state) in [("stop", "stopped"), ("start", "running")] {
        datacenter.good(&["instance", verb, "-w", "one"]);
        datacenter.wait(state, || datacenter.state("one").as_deref() == Some(state));
    }
    cluster.start_again(0);
    // Without a majority it reads.
    cluster.kill(1);
    cluster.kill(2);
    assert_eq!(datacenter.state("one").as_deref(), Some("running"), "reading goes on");
    cluster.start_two_again();
    datacenter.wait("a stop to be taken again", || datacenter.run(&["instance", "stop", "-w", "one"]).status.success());
    datacenter.wait_idle();
    datacenter.assert_agreed();
    datacenter.good(&["instance", "delete", "-w", "one"]);
    datacenter.wait_idle();
    datacenter.assert_clean();
}

impl Cluster {
    /// The second and the third at once: each needs the other to be ready.
    fn start_two_again(&mut self) {
        let members = &mut self.members[1..];
        self.runtime
            .block_on(async {
                for member in members.iter_mut() {
                    member.start()?;
                }
                for member in members {
                    member.ready().await?;
                }
                Ok::<_, std::io::Error>(())
            })
            .expect("members come back");
    }
}
