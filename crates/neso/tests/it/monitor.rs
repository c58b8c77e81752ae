//! The container monitor of a running datacenter, as tenants use it: the unmodified `triton` command makes a certificate, Debian's Prometheus
//! finds and scrapes with it. Everything is at the ports that clients take for granted, on a loopback address of the test's own; names are
//! answered by the datacenter's own name server, which is all that Prometheus knows.

use std::{
    collections::BTreeSet,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use serde_json::Value;

use crate::datacenter::Datacenter;

const ZONE: &str = "dc-1.neso.internal";

/// What is missing for these tests, if anything is.
fn lack(triton: &str) -> Option<String> {
    let runs = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).stdin(Stdio::null()).output();
        output.is_ok_and(|output| output.status.success())
    };
    [
        (triton, "--version", "npm install -g triton"),
        ("prometheus", "--version", "Debian's package prometheus"),
        ("curl", "--version", "Debian's package curl"),
    ]
    .into_iter()
    .find(|(program, argument, _)| !runs(program, argument))
    .map(|(program, _, how)| format!("`{program}` cannot be run ({how})"))
}

/// A loopback address of this process alone.
fn own_address() -> Ipv4Addr {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 77, high, low.max(1))
}

/// Doors and names at their usual ports of `own`.
fn at_usual_ports(datacenter: &Datacenter, own: Ipv4Addr) {
    let path = datacenter.root().join(headnode::settings::DEFAULT_FILE);
    let text = fs::read_to_string(&path).expect("settings");
    let lines = text.lines().map(|line| match line.split_once(" = ") {
        Some(("cloudapi", _)) => format!("cloudapi = \"{own}:8443\""),
        Some(("cmon", _)) => format!("cmon = \"{own}:9163\""),
        Some(("listen", _)) => format!("listen = [\"{own}:53\"]"),
        _ => line.to_owned(),
    });
    fs::write(&path, lines.collect::<Vec<_>>().join("\n")).expect("settings are written");
}

/// A child that ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A datacenter, and what watches it.
struct Site {
    datacenter: Datacenter,
    own: Ipv4Addr,
    triton: String,
    directory: PathBuf,
}

/// Somebody with an account and a key.
struct Person {
    login: &'static str,
    key_id: String,
    key: PathBuf,
}

impl Site {
    /// A person with a key of NIST's curve: the triton command makes certificates with no other kind that is made today.
    fn person(&self, login: &'static str, operator: bool) -> Person {
        let key = self.datacenter.root().join("home/.ssh").join(format!("{login}_ecdsa"));
        let file = key.display().to_string();
        good(Command::new("ssh-keygen").args(["-q", "-t", "ecdsa", "-N", "", "-f", &file]));
        let public = format!("{file}.pub");
        if login == "demo" {
            self.datacenter.good(&["adm", "account", "add-key", login, &public]);
        } else {
            let mut arguments =
                vec!["adm", "account", "create", login, "--email", "someone@example.com", "--key", &public];
            arguments.extend(operator.then_some("--operator"));
            self.datacenter.good(&arguments);
        }
        let told = good(Command::new("ssh-keygen").args(["-l", "-E", "md5", "-f", &public]));
        let key_id = told.split_whitespace().nth(1).and_then(|word| word.strip_prefix("MD5:")).expect("a fingerprint");
        Person { login, key_id: key_id.to_owned(), key }
    }

    /// One of our commands as somebody.
    fn as_person(&self, person: &Person, arguments: &[&str]) -> String {
        let mut command = self.datacenter.command(arguments);
        good(command.env("TRITON_ACCOUNT", person.login).env("TRITON_KEY_ID", &person.key_id))
    }

    /// A certificate by the triton command, through an agent that holds the person's key; its directory.
    fn certgen(&self, person: &Person) -> PathBuf {
        let directory = self.directory.join(format!("triton-{}", person.login));
        // The command looks for keys there as well, and gives up where that is not.
        fs::create_dir_all(directory.join(".ssh")).expect("a directory");
        let socket = directory.join("agent");
        let agent = Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket).stdout(Stdio::null()).spawn();
        let _agent = Process(agent.expect("`ssh-agent` runs"));
        self.datacenter.wait("the agent", || socket.exists());
        good(Command::new("ssh-add").arg("-q").arg(&person.key).env("SSH_AUTH_SOCK", &socket));
        let mut command = Command::new(&self.triton);
        command
            .args(["profile", "cmon-certgen", "-y"])
            .current_dir(&directory)
            .env("HOME", &directory)
            .env("SSH_AUTH_SOCK", &socket)
            .env("TRITON_URL", self.datacenter.said("TRITON_URL"))
            .env("TRITON_ACCOUNT", person.login)
            .env("TRITON_KEY_ID", &person.key_id)
            .env("TRITON_TLS_INSECURE", "1")
            .env("NODE_NO_WARNINGS", "1");
        let told = good(&mut command);
        assert!(told.contains("CMON authentication certificate and key"), "{told}");
        directory
    }

    fn authority(&self) -> String {
        self.datacenter.settings().paths.operator.join("ca.pem").display().to_string()
    }

    /// Prometheus that knows no name server but the datacenter's. `port` of the address is its own.
    fn prometheus(&self, configuration: &Path, port: u16) -> Process {
        let name = configuration.file_stem().expect("a file").to_string_lossy().into_owned();
        let data = self.directory.join(format!("data-{name}-{port}"));
        let resolver = self.directory.join("resolv.conf");
        fs::write(&resolver, format!("nameserver {}\n", self.own)).expect("a file");
        let log = fs::File::create(self.directory.join(format!("{name}-{port}.log"))).expect("a log");
        let script = "mount --bind \"$1\" /etc/resolv.conf && shift && exec prometheus \"$@\"";
        let child = Command::new("unshare")
            .args(["-m", "sh", "-c", script, "sh"])
            .arg(&resolver)
            .arg(format!("--config.file={}", configuration.display()))
            .arg(format!("--storage.tsdb.path={}", data.display()))
            .arg(format!("--web.listen-address={}:{port}", self.own))
            .current_dir(configuration.parent().expect("a file in a directory"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        Process(child.expect("`unshare` runs"))
    }

    /// The values of a label of what a query finds.
    fn query(&self, port: u16, query: &str, label: &str) -> BTreeSet<String> {
        let url = format!("http://{}:{port}/api/v1/query", self.own);
        let output =
            Command::new("curl").args(["-s", "-G", &url, "--data-urlencode", &format!("query={query}")]).output();
        let output = output.expect("`curl` runs");
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let found = answer["data"]["result"].as_array().cloned().unwrap_or_default();
        found.iter().filter_map(|one| Some(one["metric"][label].as_str()?.to_owned())).collect()
    }

    /// Waits until Prometheus has found and scraped these and no others.
    fn watches(&self, port: u16, wanted: &[&str], label: &str) {
        let wanted: BTreeSet<String> = wanted.iter().map(|one| (*one).to_owned()).collect();
        self.datacenter.wait(&format!("Prometheus to watch {wanted:?}\n{}", self.logs()), || {
            self.query(port, "up == 1", label) == wanted && self.query(port, "up", label) == wanted
        });
    }

    fn logs(&self) -> String {
        let files = fs::read_dir(&self.directory).into_iter().flatten().flatten().map(|entry| entry.path());
        let logs = files.filter(|path| path.extension().is_some_and(|ending| ending == "log"));
        logs.map(|path| fs::read_to_string(path).unwrap_or_default()).collect()
    }

    /// Status and body of a request to the monitor with somebody's certificate.
    fn ask(&self, certificate: Option<(&Path, &Path)>, host: &str, path: &str) -> (u16, String) {
        let mut command = Command::new("curl");
        command.args(["-s", "-w", "\n%{http_code}", "--cacert", &self.authority()]);
        command.args(["--resolve", &format!("{host}:9163:{}", self.own)]);
        if let Some((certificate, key)) = certificate {
            command.arg("--cert").arg(certificate).arg("--key").arg(key);
        }
        let output = command.arg(format!("https://{host}:9163{path}")).output().expect("`curl` runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, status) = text.rsplit_once('\n').expect("a status");
        (status.parse().unwrap_or(0), body.to_owned())
    }

    /// An instance of the tenant's that runs; its id.
    fn create(&self, name: &str) -> String {
        self.datacenter.good(&["instance", "create", "-w", "--name", name, "minimal", "g1-nano"]);
        let one = self.datacenter.json(&["instance", "-j", "get", name]);
        one["id"].as_str().expect("an id").to_owned()
    }
}

#[track_caller]
fn good(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().expect("the command runs");
    let (out, err) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?} failed\n--- out\n{out}\n--- err\n{err}");
    out.into_owned()
}

/// The triton command's configuration, which trusts what the world trusts, with the datacenter's own authority.
fn with_authority(configuration: &Path, authority: &str, also: &str) -> PathBuf {
    let text = fs::read_to_string(configuration).expect("a configuration");
    let lines = text.lines().flat_map(|line| {
        let indent = &line[..line.len() - line.trim_start().len()];
        let trust = line.contains("key_file:").then(|| format!("{indent}ca_file: {authority}"));
        let further = line.contains("- account:").then(|| also.to_owned()).filter(|also| !also.is_empty());
        [Some(line.to_owned()), trust, further].into_iter().flatten().collect::<Vec<_>>()
    });
    let path = configuration.with_file_name("prometheus-with-authority.yml");
    fs::write(&path, lines.collect::<Vec<_>>().join("\n") + "\n").expect("a configuration");
    path
}

#[test]
fn prometheus_watches_an_accounts_instances_and_no_others() {
    let triton = std::env::var("NESO_TRITON").unwrap_or_else(|_| "triton".to_owned());
    if let Some(lack) = lack(&triton) {
        println!("skipped: Prometheus on a datacenter, because {lack}");
        return;
    }
    let own = own_address();
    let Some(datacenter) = Datacenter::start_after(|datacenter| at_usual_ports(datacenter, own)) else { return };
    let directory = datacenter.root().join("watching");
    fs::create_dir_all(&directory).expect("a directory");
    let site = Site { datacenter, own, triton, directory };
    let (web, db) = (site.create("web"), site.create("db"));
    let (demo, eve, root) = (site.person("demo", false), site.person("eve", false), site.person("root1", true));
    site.as_person(&eve, &["instance", "create", "-w", "--name", "other", "minimal", "g1-nano"]);
    let other: Value = serde_json::from_str(&site.as_person(&eve, &["instance", "-j", "get", "other"])).expect("JSON");
    let other = other["id"].as_str().expect("an id");
    let server = site.datacenter.json(&["adm", "-j", "server", "list"])[0]["id"].clone();
    let server = server.as_str().expect("a server").to_owned();

    tritons_certificate(&site, &demo, &[&web, &db]);
    our_certificate(&site, &eve, other);
    machines(&site, &root, &server);
    strangers(&site, &eve, &web, &server);
    // What stops is watched no more.
    site.datacenter.good(&["instance", "stop", "-w", "db"]);
    let files = site.directory.join("triton-demo");
    let shown = (files.join("cmon-demo-cert.pem"), files.join("cmon-demo-key.pem"));
    let (status, listed) = site.ask(Some((&shown.0, &shown.1)), &format!("cmon.{ZONE}"), "/v1/discover");
    assert!(status == 200 && listed.contains(&web) && !listed.contains(&db), "{status} {listed}");
    for name in ["web", "db"] {
        site.datacenter.good(&["instance", "delete", "-w", name]);
    }
    site.as_person(&eve, &["instance", "delete", "-w", "other"]);
    site.datacenter.assert_clean();
}

/// The triton command makes a certificate, and Prometheus works with the configuration it writes.
fn tritons_certificate(site: &Site, demo: &Person, instances: &[&str]) {
    let files = site.certgen(demo);
    let configuration = with_authority(&files.join("cmon-demo-prometheus.yml"), &site.authority(), "");
    let _prometheus = site.prometheus(&configuration, 9_090);
    site.watches(9_090, instances, "instance");
    let used = site.query(9_090, "mem_agg_usage > 0 and on(instance) cpu_sys_usage", "alias");
    assert_eq!(used, BTreeSet::from(["db".to_owned(), "web".to_owned()]));
}

/// Ours makes one with the key of any kind, and a configuration that is used as it is.
fn our_certificate(site: &Site, eve: &Person, other: &str) {
    let directory = site.directory.join("ours");
    let path = directory.display().to_string();
    let mut command = site.datacenter.command(&["instance", "-j", "cert", "--directory", &path]);
    command.env("TRITON_ACCOUNT", eve.login).env("TRITON_KEY_ID", &eve.key_id);
    command.env_remove("TRITON_TLS_INSECURE").env("NODE_EXTRA_CA_CERTS", site.authority());
    let told: Value = serde_json::from_str(&good(&mut command)).expect("JSON");
    assert_eq!(told["url"], format!("https://cmon.{ZONE}:9163"));
    let configuration = directory.join("cmon-eve-prometheus.yml");
    let _prometheus = site.prometheus(&configuration, 9_091);
    site.watches(9_091, &[other], "instance");

    // The tenant of `neso up` has a key of Ed25519.
    site.datacenter.good(&["instance", "cert", "--directory", &path]);
    let (certificate, key) = (directory.join("cmon-demo-cert.pem"), directory.join("cmon-demo-key.pem"));
    let (status, listed) = site.ask(Some((&certificate, &key)), &format!("cmon.{ZONE}"), "/v1/discover");
    assert_eq!(status, 200, "{listed}");
}

/// Operators' Prometheus watches machines.
fn machines(site: &Site, root: &Person, server: &str) {
    let files = site.certgen(root);
    let configuration = files.join("cmon-root1-prometheus.yml");
    let configuration = with_authority(&configuration, &site.authority(), "            role: cn");
    let _prometheus = site.prometheus(&configuration, 9_092);
    site.watches(9_092, &[server], "instance");
    assert!(!site.query(9_092, "node_load1", "instance").is_empty());
}

/// Whoever may not see something is told what Triton tells, is logged once and counted.
fn strangers(site: &Site, eve: &Person, web: &str, server: &str) {
    let file = |ending: &str| site.directory.join("ours").join(format!("cmon-{}-{ending}.pem", eve.login));
    let (certificate, key) = (file("cert"), file("key"));
    let shown = Some((certificate.as_path(), key.as_path()));
    let host = |id: &str| format!("{id}.cmon.{ZONE}");
    for _ in 0..3 {
        assert_eq!(site.ask(shown, &host(web), "/metrics").0, 404, "another's instance");
    }
    assert_eq!(site.ask(shown, &host(server), "/metrics").0, 404, "a machine");
    assert_eq!(site.ask(shown, &format!("cmon.{ZONE}"), "/v1/gz/discover").0, 403);
    assert_eq!(site.ask(shown, &format!("cmon.{ZONE}"), "/v1/discover?groups=a..b").0, 400);
    assert_eq!(site.ask(None, &host(web), "/metrics").0, 401);
    assert_eq!(site.ask(None, &host(web), "/_ping"), (200, "OK".to_owned()));
    // The key that signed is taken away.
    site.datacenter.good(&["adm", "account", "remove-key", eve.login, &eve.key_id]);
    assert_eq!(site.ask(shown, &format!("cmon.{ZONE}"), "/v1/discover").0, 401);
    let public = format!("{}.pub", eve.key.display());
    site.datacenter.good(&["adm", "account", "add-key", eve.login, &public]);
    assert_eq!(site.ask(shown, &format!("cmon.{ZONE}"), "/v1/discover").0, 200);

    let operator = site.datacenter.settings().paths.operator;
    let (certificate, key) = (operator.join("operator.pem"), operator.join("operator.key"));
    let (status, told) = site.ask(Some((&certificate, &key)), &site.own.to_string(), "/metrics");
    assert_eq!(status, 200, "{told}");
    for line in [
        "neso_monitor_refusals_total{why=\"not theirs\"} 4",
        "neso_monitor_refusals_total{why=\"stranger\"} 2",
        "neso_monitor_refusals_total{why=\"bad groups\"} 1",
    ] {
        assert!(told.lines().any(|found| found == line), "{line} is missing in\n{told}");
    }
    let log = fs::read_to_string(site.datacenter.root().join("var/log/neso/headnode.log")).expect("a log");
    let logged =
        log.lines().filter(|line| line.contains("refused a watcher") && line.contains("nothing here that you may see"));
    assert_eq!(logged.count(), 1, "{log}");
}
