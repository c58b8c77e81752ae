//! An instance seen from inside, wherever in the fleet it runs and whether or not a headnode does.
//!
//! [`Guest::shell`] is a command inside with the instance's own programs; [`Guest::enter`] is this process in the instance's network, with
//! more powers there than anything inside ever has, for raw frames and quick connections.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    process::{Child, Command, Stdio},
    thread::JoinHandle,
    time::Duration,
};

use crate::{fleet::Fleet, space::enter_network, wire::Nic};

/// How long a connection is tried that shall not come about.
const SILENCE: Duration = Duration::from_millis(700);

/// See the head of this file.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    pub(crate) name: &'static str,
    pub(crate) id: String,
    /// Which of the fleet's machines it is on; 0 is the headnode's.
    pub(crate) at: usize,
    /// Its first NIC.
    pub(crate) nic: Nic,
}

impl Guest {
    /// Its first process.
    #[track_caller]
    pub(crate) fn init(&self, fleet: &Fleet) -> u64 {
        fleet.machine(self.at).init(&self.id).unwrap_or_else(|| panic!("{} runs", self.name))
    }

    /// Runs `there` in its network.
    #[track_caller]
    pub(crate) fn enter<R: Send>(&self, fleet: &Fleet, there: impl FnOnce() -> R + Send) -> R {
        enter_network(self.init(fleet), there)
    }

    /// A line of shell inside, as its root, not yet run.
    #[track_caller]
    pub(crate) fn command(&self, fleet: &Fleet, line: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args([
            "--target",
            &self.init(fleet).to_string(),
            "--user",
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--pid",
        ]);
        command.args(["--setuid", "0", "--setgid", "0", "--", "/bin/sh", "-c", line]);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null());
        command
    }

    /// Runs a line of shell to its end: whether it succeeded, and what it printed.
    #[track_caller]
    pub(crate) fn shell(&self, fleet: &Fleet, line: &str) -> (bool, String) {
        let output = self.command(fleet, line).output().expect("`nsenter` of util-linux runs");
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    /// Whether an address answers a ping from inside.
    #[track_caller]
    pub(crate) fn pings(&self, fleet: &Fleet, address: impl Into<IpAddr>) -> bool {
        let address: IpAddr = address.into();
        self.shell(fleet, &format!("ping -c 1 -W 1 {address}")).0
    }

    /// Who answers at a door, if anybody does.
    #[track_caller]
    pub(crate) fn asks(&self, fleet: &Fleet, door: SocketAddr) -> Option<String> {
        self.enter(fleet, || {
            let mut stream = TcpStream::connect_timeout(&door, SILENCE).ok()?;
            stream.set_read_timeout(Some(SILENCE)).expect("a timeout");
            let mut text = String::new();
            stream.read_to_string(&mut text).ok()?;
            Some(text)
        })
    }

    /// Opens a door inside that tells its name, to both families.
    #[track_caller]
    pub(crate) fn serve(&self, fleet: &Fleet, port: u16) -> Door {
        let listener = self.enter(fleet, || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).expect("a port"));
        Door::open(listener, self.name)
    }

    /// Where its door is.
    pub(crate) fn door(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.nic.ip, port))
    }

    /// The same in IPv6.
    pub(crate) fn door6(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.nic.six(), port))
    }

    /// A line of shell that goes on inside, with input that stays open; [`Child::wait_with_output`] ends it.
    #[track_caller]
    pub(crate) fn begin(&self, fleet: &Fleet, line: &str) -> Child {
        let mut command = self.command(fleet, line);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("`nsenter` of util-linux runs")
    }
}

/// A listener that tells each visitor a name, until dropped.
pub(crate) struct Door {
    listener: TcpListener,
    serving: Option<JoinHandle<()>>,
}

impl Door {
    fn open(listener: TcpListener, name: &'static str) -> Self {
        let ours = listener.try_clone().expect("a second handle");
        let serving = std::thread::spawn(move || {
            while let Ok((mut visitor, _)) = ours.accept() {
                // It may have gone again.
                let _ = visitor.write_all(name.as_bytes()).and_then(|()| visitor.shutdown(Shutdown::Write));
            }
        });
        Self { listener, serving: Some(serving) }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // Whoever accepts is told that nobody comes any more.
        let _ = nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        if let Some(serving) = self.serving.take() {
            let _ = serving.join();
        }
    }
}

/// A door of the world outside; who came is told by [`Outside::visitor`].
pub(crate) struct Outside(TcpListener);

impl Outside {
    /// Opens it; to be called in the world's network.
    pub(crate) fn open(address: impl Into<IpAddr>) -> Self {
        let listener = TcpListener::bind((address.into(), 0)).expect("a port");
        listener.set_nonblocking(true).expect("it can");
        Self(listener)
    }

    /// Where it is.
    pub(crate) fn address(&self) -> SocketAddr {
        self.0.local_addr().expect("bound")
    }

    /// The address of somebody who came.
    pub(crate) fn visitor(&self) -> Option<IpAddr> {
        Some(self.0.accept().ok()?.1.ip())
    }
}
