//! Tenants whose client knows one URL: the manual's example of an address that moves, run as it is printed, with the unmodified `triton`.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Output},
};

use crate::{
    fleet::{Fleet, Machine},
    space::Space,
};

/// The chapter the example stands in.
const CHAPTER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reaching.md");
/// The example's name and address, and ours.
const NAME: &str = "cloud.example.org";
const EXAMPLE: &str = "10.0.0.9/24";
const ADDRESS: &str = "10.77.0.9";
const PORT: u16 = 8443;

/// What keeps this from being tried here, if anything does.
pub(crate) fn lack() -> Option<String> {
    let runs = |program: &str| Command::new(program).arg("--version").output().is_ok_and(|done| done.status.success());
    ["keepalived", "curl", &triton()]
        .into_iter()
        .find(|program| !runs(program))
        .map(|lack| format!("`{lack}` is not installed"))
}

fn triton() -> String {
    std::env::var("NESO_TRITON").unwrap_or_else(|_| "triton".to_owned())
}

/// Settings of a headnode that is called by the example's name, at the port the example says.
pub(crate) fn settle(text: String) -> String {
    let lines = text.lines().map(|line| match line {
        "names = []" => format!("names = [\"{NAME}\"]"),
        _ if line.starts_with("cloudapi = \"0.0.0.0:") => format!("cloudapi = \"0.0.0.0:{PORT}\""),
        _ => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

/// The block of the chapter that keepalived reads, with our address.
fn example() -> String {
    let chapter = fs::read_to_string(CHAPTER).expect("the chapter");
    let mut blocks = chapter.split("```").skip(1).step_by(2);
    let block = blocks.find(|block| block.contains("vrrp_instance")).expect("an example for keepalived");
    assert!(block.contains(EXAMPLE) && block.contains(&format!("127.0.0.1:{PORT}")), "{block}");
    block.replace(EXAMPLE, &format!("{ADDRESS}/24"))
}

/// A tenant who knows one URL and the datacenter's authority.
pub(crate) struct Tenant {
    space: Space,
    hosts: PathBuf,
    environment: Vec<(String, String)>,
}

impl Tenant {
    /// A machine of clients whose names come from a file.
    pub(crate) fn new(fleet: &Fleet) -> Self {
        let (space, hosts) = (fleet.client(), fleet.head.root.join("hosts"));
        fs::write(&hosts, "").expect("a file");
        space.run(&format!("mount --bind {} /etc/hosts", hosts.display()));
        let mut environment = fleet.head.tenant.clone();
        environment.retain(|(name, _)| name != "TRITON_URL" && name != "TRITON_TLS_INSECURE");
        let authority = fleet.head.settings().pki_dir().join("ca.pem");
        let own = [
            ("TRITON_URL", format!("https://{NAME}:{PORT}")),
            ("NODE_EXTRA_CA_CERTS", authority.display().to_string()),
            ("HOME", fleet.head.root.join("home").display().to_string()),
        ];
        environment.extend(own.map(|(name, value)| (name.to_owned(), value)));
        Self { space, hosts, environment }
    }

    /// The name means these addresses from now on.
    pub(crate) fn finds<'a>(&self, addresses: impl IntoIterator<Item = &'a str>) {
        let lines: Vec<String> = addresses.into_iter().map(|address| format!("{address} {NAME}\n")).collect();
        fs::write(&self.hosts, format!("127.0.0.1 localhost\n{}", lines.concat())).expect("a file");
    }

    /// Runs the tenant's command.
    pub(crate) fn triton(&self, arguments: &[&str]) -> Output {
        let mut command = self.space.command(triton());
        command.env_remove("SSH_AUTH_SOCK").env("NODE_NO_WARNINGS", "1").envs(self.environment.clone());
        command.args(arguments).output().expect("the tenant's command runs")
    }
}

/// Whether the interpreter under `triton` tries a name's other addresses.
pub(crate) fn tries_all_addresses() -> bool {
    let output = Command::new("node").arg("--version").output().expect("what `triton` runs on is there");
    let version = String::from_utf8_lossy(&output.stdout).into_owned();
    let major = version.trim_start_matches('v').split('.').next().and_then(|major| major.parse::<u32>().ok());
    major.is_some_and(|major| major >= 20)
}

/// The address of the example, among the machines of a fleet.
pub(crate) struct Moving {
    movers: Vec<Child>,
}

impl Moving {
    /// Its address.
    pub(crate) const ADDRESS: &str = ADDRESS;

    /// Starts the daemon of the example on each of `machines`.
    pub(crate) fn start(machines: &[&Machine]) -> Self {
        Self { movers: machines.iter().map(|machine| Self::mover(machine)).collect() }
    }

    fn mover(machine: &Machine) -> Child {
        let path = |name: &str| machine.root.join(name);
        fs::write(path("keepalived.conf"), example()).expect("a file");
        let log = fs::File::create(path("keepalived.log")).expect("a file");
        let mut command = machine.space.command("keepalived");
        command.args(["--dont-fork", "--log-console", "--vrrp", "--use-file"]).arg(path("keepalived.conf"));
        command.arg("--pid").arg(path("keepalived.pid")).arg("--vrrp_pid").arg(path("keepalived.vrrp.pid"));
        command.stderr(log.try_clone().expect("a file")).stdout(log).spawn().expect("keepalived runs")
    }

    /// Which of `machines` have the address.
    pub(crate) fn holders<'a>(machines: &[&'a Machine]) -> Vec<&'a str> {
        let has = |machine: &&&Machine| machine.space.run("ip -4 -oneline address show dev eth0").contains(ADDRESS);
        machines.iter().filter(has).map(|machine| machine.name.as_str()).collect()
    }
}

impl Drop for Moving {
    fn drop(&mut self) {
        for mover in &mut self.movers {
            // It ends its own child and gives the address back.
            let _ = base::daemon::terminate(mover.id());
            let _ = mover.wait();
        }
    }
}
