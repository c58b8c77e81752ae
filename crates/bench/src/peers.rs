//! The peers of the benchmark `create`: what else on this machine turns an image into a running container.
//!
//! Each is started for real in a scratch directory, asked for the same thing (a busybox root, 128 MiB, one core, 500
//! processes) and removed again. Some rewrite packet filters and switch bridged traffic through them, and some need a cgroup
//! v1 view without the unified hierarchy, so the whole comparison runs in mount and network namespaces of its own: this
//! module starts its own binary again under `unshare`, and the child prints one JSON line per peer. A peer that is not
//! installed is reported as absent, never as zero.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// First argument of the child.
pub(crate) const CHILD: &str = "peers-child";

/// What a peer showed.
pub(crate) struct PeerFigures {
    /// e.g. `crun create+start`.
    pub(crate) name: String,
    /// Milliseconds, one at a time; or why there are none.
    pub(crate) single: Result<Vec<f64>, String>,
    /// Creates per second at eight at once.
    pub(crate) rate_at_8: Result<f64, String>,
}

/// Runs every peer `runs` times; the caller is the benchmark's binary itself.
pub(crate) fn measure(runs: usize) -> Result<Vec<PeerFigures>, String> {
    let program = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--net", "--"])
        .arg(program)
        .args([CHILD, &runs.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cannot start `unshare`: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).map(|line| figures(&line)).collect())
}

fn figures(line: &Value) -> PeerFigures {
    let name = line["name"].as_str().unwrap_or("?").to_owned();
    if let Some(why) = line["absent"].as_str() {
        return PeerFigures { name, single: Err(why.to_owned()), rate_at_8: Err(why.to_owned()) };
    }
    let single = line["ms"].as_array().map(|all| all.iter().filter_map(Value::as_f64).collect()).unwrap_or_default();
    let rate = line["rate_at_8"].as_f64().ok_or_else(|| "no figure".to_owned());
    PeerFigures { name, single: Ok(single), rate_at_8: rate }
}

/// The child's work: prints one line per peer.
pub(crate) fn child(arguments: &[String]) -> Result<(), String> {
    let runs = arguments.first().and_then(|runs| runs.parse().ok()).unwrap_or(15);
    // Only our own mount namespace sees this; where there is no hybrid layout there is nothing to hide.
    let _ = Command::new("umount").arg("/sys/fs/cgroup/unified").stderr(Stdio::null()).status();
    run("ip", &["link", "set", "lo", "up"])?;
    // A sysfs of this network namespace, below which the control groups stay.
    run(
        "sh",
        &[
            "-c",
            "d=$(mktemp -d) && mount --rbind /sys/fs/cgroup $d && mount -t sysfs sysfs /sys && mount --rbind $d /sys/fs/cgroup",
        ],
    )?;
    let scratch = Scratch::new()?;
    for peer in [crun, runc, lxc, docker, podman, incus] as [fn(&Scratch, usize) -> Measured; 6] {
        let line = match peer(&scratch, runs) {
            (name, Ok((single, rate))) => json!({"name": name, "ms": single, "rate_at_8": rate}),
            (name, Err(why)) => json!({"name": name, "absent": why}),
        };
        println!("{line}");
    }
    Ok(())
}

type Measured = (&'static str, Result<(Vec<f64>, f64), String>);

/// A btrfs pool on a loop file with a busybox root in it.
struct Scratch {
    dir: PathBuf,
}

impl Scratch {
    fn new() -> Result<Self, String> {
        let dir = PathBuf::from(format!("/tmp/neso-bench-peers-{}", std::process::id()));
        let scratch = Self { dir };
        let pool = scratch.path("pool");
        fs::create_dir_all(&pool).map_err(|error| format!("cannot make {}: {error}", pool.display()))?;
        let image = scratch.path("pool.img");
        run("truncate", &["-s", "6G", &text(&image)])?;
        run("mkfs.btrfs", &["-q", "-f", &text(&image)])?;
        run("mount", &["-o", "loop", &text(&image), &text(&pool)])?;
        let root = scratch.root();
        for name in ["bin", "sbin", "proc", "sys", "dev", "etc", "tmp"] {
            fs::create_dir_all(root.join(name)).map_err(|error| format!("cannot make the root: {error}"))?;
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).map_err(|error| format!("no busybox here: {error}"))?;
        for applet in ["sh", "sleep"] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).map_err(|error| error.to_string())?;
        }
        let init = root.join("sbin/init");
        fs::write(&init, "#!/bin/sh\nexec /bin/sleep 100000\n").map_err(|error| error.to_string())?;
        run("chmod", &["755", &text(&init)])?;
        run("tar", &["-C", &text(&root), "-czf", &text(&scratch.path("root.tgz")), "."])?;
        Ok(scratch)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn root(&self) -> PathBuf {
        self.path("pool/bundle/rootfs")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Best effort: the mount namespace ends with this process anyway.
        let _ = Command::new("umount").arg("-l").arg(self.path("pool")).stderr(Stdio::null()).status();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Runs a command to its end. Its errors go through a file and not a pipe: what it leaves running keeps a pipe open.
fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let log = std::env::temp_dir().join(format!("neso-bench-{:?}.err", thread::current().id()));
    let errors = fs::File::create(&log).map_err(|error| format!("cannot write {}: {error}", log.display()))?;
    let status = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors)
        .status()
        .map_err(|error| format!("cannot run {program}: {error}"))?;
    if status.success() {
        return Ok(());
    }
    let stderr = fs::read_to_string(&log).unwrap_or_default();
    Err(format!("{program}: {}", stderr.lines().last().unwrap_or("no message")))
}

/// `runs` single starts, then eight threads that start two each; `start` gets a name that was not used before.
fn timed(runs: usize, start: impl Fn(&str) -> Result<(), String> + Sync) -> Result<(Vec<f64>, f64), String> {
    start("warm")?;
    let mut single = Vec::with_capacity(runs);
    for index in 0..runs {
        let began = Instant::now();
        start(&format!("one{index}"))?;
        single.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    let (threads, each) = (8, 4);
    let began = Instant::now();
    let outcome: Result<Vec<()>, String> = thread::scope(|scope| {
        let start = &start;
        let workers: Vec<_> = (0..threads)
            .map(|thread| scope.spawn(move || (0..each).try_for_each(|index| start(&format!("many{thread}x{index}")))))
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| Err("a thread panicked".into()))).collect()
    });
    outcome?;
    Ok((single, f64::from(threads * each) / began.elapsed().as_secs_f64()))
}

fn oci(scratch: &Scratch, runs: usize, runtime: &str) -> Result<(Vec<f64>, f64), String> {
    let bundle = text(&scratch.path("pool/bundle"));
    let _ = fs::remove_file(format!("{bundle}/config.json"));
    run("sh", &["-c", &format!("cd {bundle} && runc spec")])
        .or_else(|_| run("sh", &["-c", &format!("cd {bundle} && crun spec")]))?;
    let path = format!("{bundle}/config.json");
    let mut spec: Value = serde_json::from_str(&fs::read_to_string(&path).map_err(|error| error.to_string())?)
        .map_err(|error| error.to_string())?;
    spec["process"]["args"] = json!(["/bin/sleep", "100000"]);
    spec["process"]["terminal"] = json!(false);
    spec["root"]["readonly"] = json!(false);
    spec["linux"]["resources"]["memory"] = json!({"limit": 128 << 20});
    spec["linux"]["resources"]["cpu"] = json!({"shares": 100, "quota": 100_000, "period": 100_000});
    spec["linux"]["resources"]["pids"] = json!({"limit": 500});
    fs::write(&path, spec.to_string()).map_err(|error| error.to_string())?;
    let state = text(&scratch.path(&format!("state-{runtime}")));
    let names = std::sync::Mutex::new(Vec::new());
    let outcome = timed(runs, |name| {
        let name = format!("nesobench-{name}");
        names.lock().map_err(|error| error.to_string())?.push(name.clone());
        run(runtime, &["--root", &state, "create", "--bundle", &bundle, &name])?;
        run(runtime, &["--root", &state, "start", &name])
    });
    for name in names.into_inner().unwrap_or_default() {
        let _ = run(runtime, &["--root", &state, "delete", "-f", &name]);
    }
    outcome
}

fn crun(scratch: &Scratch, runs: usize) -> Measured {
    ("crun create+start", oci(scratch, runs, "crun"))
}

fn runc(scratch: &Scratch, runs: usize) -> Measured {
    ("runc create+start", oci(scratch, runs, "runc"))
}

fn lxc(scratch: &Scratch, runs: usize) -> Measured {
    let path = text(&scratch.path("lxc"));
    let root = text(&scratch.root());
    let config = text(&scratch.path("lxc.conf"));
    let content = format!(
        "lxc.rootfs.path = dir:{root}\nlxc.net.0.type = none\nlxc.mount.auto = proc:mixed sys:ro\nlxc.cgroup.memory.limit_in_bytes = 128M\nlxc.cgroup.pids.max = 500\n"
    );
    if let Err(error) = fs::write(&config, content).and_then(|()| fs::create_dir_all(&path)) {
        return ("lxc-start -d", Err(error.to_string()));
    }
    let names = std::sync::Mutex::new(Vec::new());
    let outcome = timed(runs, |name| {
        names.lock().map_err(|error| error.to_string())?.push(name.to_owned());
        run("lxc-start", &["-d", "-P", &path, "-n", name, "-f", &config])
    });
    for name in names.into_inner().unwrap_or_default() {
        let _ = run("lxc-stop", &["-k", "-P", &path, "-n", &name]);
    }
    ("lxc-start -d", outcome)
}

/// A daemon that ends with the comparison.
struct Daemon(Child);

impl Daemon {
    fn start(program: &str, args: &[&str], log: &Path, environment: &[(&str, &str)]) -> Result<Self, String> {
        let log = fs::File::create(log).map_err(|error| error.to_string())?;
        let errors = log.try_clone().map_err(|error| error.to_string())?;
        Command::new(program)
            .args(args)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map(Self)
            .map_err(|error| format!("cannot start {program}: {error}"))
    }

    fn wait_until(ready: impl Fn() -> Result<(), String>) -> Result<(), String> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            match ready() {
                Ok(()) => return Ok(()),
                Err(why) if Instant::now() > deadline => return Err(format!("not ready after 30 s: {why}")),
                Err(_) => thread::sleep(Duration::from_millis(200)),
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = run("kill", &["-TERM", &self.0.id().to_string()]);
        let deadline = Instant::now() + Duration::from_secs(15);
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(100));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn docker(scratch: &Scratch, runs: usize) -> Measured {
    let measure = || {
        let socket = format!("unix://{}", text(&scratch.path("docker.sock")));
        let (data, exec, pid) =
            (text(&scratch.path("pool/docker")), text(&scratch.path("docker-run")), text(&scratch.path("docker.pid")));
        let arguments =
            ["--data-root", &data, "--exec-root", &exec, "--pidfile", &pid, "-H", &socket, "--storage-driver", "btrfs"];
        let _daemon = Daemon::start("dockerd", &arguments, &scratch.path("docker.log"), &[])?;
        let docker = |args: &[&str]| run("docker", &[&["-H", &socket], args].concat());
        Daemon::wait_until(|| docker(&["version"]))?;
        docker(&["import", &text(&scratch.path("root.tgz")), "nesobench"])?;
        let limits = ["-m", "128m", "--cpus", "1", "--pids-limit", "500"];
        let outcome = timed(runs, |name| {
            docker(&[&["run", "-d", "--name", name], &limits[..], &["nesobench", "/bin/sleep", "100000"]].concat())
        });
        let _ = run("sh", &["-c", &format!("docker -H {socket} rm -f $(docker -H {socket} ps -aq)")]);
        outcome
    };
    ("docker run -d", measure())
}

fn podman(scratch: &Scratch, runs: usize) -> Measured {
    let measure = || {
        let (data, state) = (text(&scratch.path("pool/podman")), text(&scratch.path("podman-run")));
        let base = [
            "--root",
            &data,
            "--runroot",
            &state,
            "--storage-driver",
            "btrfs",
            "--cgroup-manager",
            "cgroupfs",
            "--runtime",
            "crun",
        ];
        let podman = |args: &[&str]| run("podman", &[&base[..], args].concat());
        podman(&["import", &text(&scratch.path("root.tgz")), "nesobench"])?;
        let limits = [
            "-m",
            "128m",
            "--cpus",
            "1",
            "--pids-limit",
            "500",
            "--ulimit",
            "nofile=1024:1024",
            "--ulimit",
            "nproc=1024:1024",
        ];
        let outcome = timed(runs, |name| {
            podman(&[&["run", "-d", "--name", name], &limits[..], &["nesobench", "/bin/sleep", "100000"]].concat())
        });
        let _ = podman(&["rm", "-a", "-f", "-t", "0"]);
        outcome
    };
    ("podman run -d", measure())
}

const INCUS_PRESEED: &str = "storage_pools:
- name: default
  driver: btrfs
  config: {size: 4GiB}
networks:
- name: nesobenchi
  type: bridge
  config: {ipv4.address: 10.199.7.1/24, ipv4.nat: \"false\", ipv6.address: none}
profiles:
- name: default
  config: {limits.memory: 128MiB, limits.cpu.allowance: 100ms/100ms, limits.processes: \"500\"}
  devices:
    root: {type: disk, path: /, pool: default}
    eth0: {type: nic, network: nesobenchi, name: eth0}
";

fn incus(scratch: &Scratch, runs: usize) -> Measured {
    let measure = || {
        let dir = text(&scratch.path("incus"));
        fs::create_dir_all(&dir).map_err(|error| error.to_string())?;
        let socket = format!("{dir}/unix.socket");
        let environment = [("INCUS_DIR", dir.as_str()), ("INCUS_SOCKET", socket.as_str())];
        let shell =
            |command: &str| run("sh", &["-c", &format!("export INCUS_DIR={dir} INCUS_SOCKET={socket}; {command}")]);
        let daemon =
            Daemon::start("/usr/libexec/incus/incusd", &["--group", "root"], &scratch.path("incus.log"), &environment)?;
        Daemon::wait_until(|| shell("incus info"))?;
        let preseed = scratch.path("incus.yaml");
        fs::write(&preseed, INCUS_PRESEED).map_err(|error| error.to_string())?;
        shell(&format!("incus admin init --preseed < {}", text(&preseed)))?;
        let image = scratch.path("incus-image");
        fs::create_dir_all(&image).map_err(|error| error.to_string())?;
        fs::write(
            image.join("metadata.yaml"),
            "architecture: x86_64\ncreation_date: 1700000000\nproperties: {description: bench}\n",
        )
        .map_err(|error| error.to_string())?;
        shell(&format!(
            "cd {0} && cp -a {1} rootfs && tar -czf ../incus.tgz metadata.yaml rootfs && incus image import ../incus.tgz --alias nesobench",
            text(&image),
            text(&scratch.root())
        ))?;
        let outcome = timed(runs, |name| shell(&format!("incus launch nesobench nb-{name}")));
        let _ = shell("incus delete -f $(incus list -f csv -c n)");
        let _ = shell(
            "incus profile device remove default eth0; incus network delete nesobenchi; incus image delete nesobench",
        );
        drop(daemon);
        outcome
    };
    ("incus launch", measure())
}
