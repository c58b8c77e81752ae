//! `neso adm monitoring`: Prometheus beside this machine's headnode.

use std::time::Duration;

use base::daemon::PidFile;
use headnode::{
    Settings,
    monitoring::{self, Wanted, notify},
    role,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use super::{Output, details, or_dash, table};
use crate::{
    context::Place,
    failure::{Failure, Outcome},
    progress::Progress,
    supervise,
};

/// How long Prometheus may take to be there: it reads what it has seen first.
const START_PATIENCE: Duration = Duration::from_secs(120);
/// How long it may take to answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(20);
/// Largest answer that is taken, bytes.
const ANSWER_MAX_BYTES: u64 = 64 << 20;
const POLL: Duration = Duration::from_millis(200);

/// Commands about Prometheus.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Start Prometheus beside this machine's headnode, now and whenever that starts; again with other numbers to change them.
    Enable {
        /// Keep what it saw for so many days [default: 30].
        #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=3_650))]
        keep_days: Option<u32>,
        /// Keep so many MiB at most; the oldest goes first [default: 4096].
        #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(64..=16_777_216))]
        keep_mib: Option<u64>,
        /// Look every so many seconds, 10 to 300: a member of the store that is silent may cost eight [default: 15].
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(10..=300))]
        every: Option<u32>,
        /// Listen at this port of the loopback address [default: 9164, or one that is free].
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
        port: Option<u16>,
    },
    /// Show where it listens, and how each of its targets is.
    Status,
    /// End it. What it saw stays, for when it is started again.
    Disable {
        /// Remove what it saw, too.
        #[arg(long)]
        purge: bool,
    },
}

/// Runs it.
pub(crate) async fn run(place: &Place, output: Output, command: Command) -> Outcome {
    let settings = place.settings()?;
    match command {
        Command::Enable { keep_days, keep_mib, every, port } => {
            let change = |wanted: &mut Wanted| {
                wanted.keep_days = keep_days.unwrap_or(wanted.keep_days);
                wanted.keep_mib = keep_mib.unwrap_or(wanted.keep_mib);
                wanted.every_seconds = every.unwrap_or(wanted.every_seconds);
                wanted.port = port.unwrap_or(wanted.port);
            };
            enable(&settings, output, change).await
        }
        Command::Status => status(&settings, output).await,
        Command::Disable { purge } => disable(&settings, output, purge).await,
    }
}

async fn enable(settings: &Settings, output: Output, change: impl FnOnce(&mut Wanted)) -> Outcome {
    if !role::runs_headnode(settings) {
        return Err(Failure::new("this machine runs no headnode; Prometheus is started beside one")
            .mend("type it on a headnode: `neso adm ha status` says which machines are"));
    }
    if monitoring::program().is_none() {
        return Err(Failure::from(monitoring::MonitoringError::NotInstalled)
            .mend("apt-get install --no-install-recommends prometheus; systemctl disable --now prometheus"));
    }
    monitoring::user().map_err(|error| {
        Failure::from(error).mend(
            "apt-get install --reinstall --no-install-recommends prometheus, or adduser --system --group prometheus",
        )
    })?;
    let held = Wanted::load(settings).unwrap_or_default();
    let mut wanted = held.clone().unwrap_or_default();
    change(&mut wanted);
    let step = Progress::new().step("Starting Prometheus");
    let mut ended = None;
    if held.as_ref() != Some(&wanted) {
        wanted.save(settings)?;
        // Its arguments have changed; whoever keeps it running starts it again.
        ended = end(settings, supervise::MONITOR);
    }
    await_ready(settings, wanted.port, supervise::MONITOR, ended).await?;
    step.done(&format!("http://127.0.0.1:{}", wanted.port));
    output.say(format!(
        "It looks every {} s and keeps {} days, {} MiB at most. `neso adm monitoring status` shows its targets, `neso adm alerts` what it finds wrong.",
        wanted.every_seconds, wanted.keep_days, wanted.keep_mib
    ))
}

async fn disable(settings: &Settings, output: Output, purge: bool) -> Outcome {
    Wanted::remove(settings)?;
    for name in [supervise::NOTIFIER, supervise::MONITOR] {
        end(settings, name);
    }
    let again = "`neso adm monitoring disable` again, or look at its log";
    for (name, program) in [(supervise::NOTIFIER, "Alertmanager"), (supervise::MONITOR, "Prometheus")] {
        await_end(settings, name).map_err(|()| Failure::new(format!("{program} does not end")).mend(again))?;
    }
    notify::remove(settings)?;
    let data = monitoring::data_directory(settings);
    if purge && data.exists() {
        std::fs::remove_dir_all(&data)?;
    }
    output.say(match purge || !data.exists() {
        true => "Prometheus has ended".to_owned(),
        false => format!("Prometheus has ended; what it saw is in `{}`", data.display()),
    })
}

/// Asks one of the two to end, if it is there. Returns which process that was.
pub(super) fn end(settings: &Settings, name: &str) -> Option<u32> {
    let pid = PidFile::holder(&supervise::pid_file(settings, name))?;
    // It may have ended since.
    let _ = base::daemon::terminate(pid);
    Some(pid)
}

/// Waits until one of the two has ended. Fails when it does not.
pub(super) fn await_end(settings: &Settings, name: &str) -> Result<(), ()> {
    PidFile::wait_released(&supervise::pid_file(settings, name), ANSWER_PATIENCE).then_some(()).ok_or(())
}

/// Waits until one of the two answers, and not the process that was told to end.
pub(super) async fn await_ready(settings: &Settings, port: u16, name: &str, ended: Option<u32>) -> Outcome {
    let begun = Instant::now();
    let is_there = || PidFile::holder(&supervise::pid_file(settings, name)).is_some_and(|pid| Some(pid) != ended);
    while !is_there() || ask_text(port, "GET", "/-/ready", None).await.is_err() {
        if begun.elapsed() > START_PATIENCE {
            let log = supervise::log_file(settings, name);
            return Err(Failure::new(format!("the process {name} did not come up")).mend(format!(
                "its log is `{}`; it is started by `neso up` or systemd, so one of them must run",
                log.display()
            )));
        }
        sleep(POLL).await;
    }
    Ok(())
}

/// Of Prometheus' answers, what is told here.
#[derive(Debug, Deserialize)]
struct Envelope<T> {
    data: T,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all(deserialize = "camelCase"))]
struct Targets {
    active_targets: Vec<Target>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all(deserialize = "camelCase"))]
struct Target {
    labels: std::collections::BTreeMap<String, String>,
    health: String,
    last_error: String,
    last_scrape_duration: f64,
}

#[derive(Debug, Serialize)]
struct Standing {
    address: String,
    #[serde(flatten)]
    wanted: Wanted,
    targets: Vec<Target>,
}

async fn status(settings: &Settings, output: Output) -> Outcome {
    let Some(wanted) = Wanted::load(settings)? else {
        return Err(Failure::from(monitoring::MonitoringError::NotWanted));
    };
    let found: Envelope<Targets> = ask(wanted.port, "/api/v1/targets?state=active").await?;
    let address = format!("http://127.0.0.1:{}", wanted.port);
    let standing = Standing { address, wanted, targets: found.data.active_targets };
    output.show(&standing, |standing| {
        let label = |target: &Target, name: &str| target.labels.get(name).cloned();
        table(
            &["job", "target", "health", "took", "error"],
            standing.targets.iter().map(|target| {
                let name = label(target, "node").or_else(|| label(target, "headnode"));
                let took = format!("{:.0} ms", target.last_scrape_duration * 1e3);
                let error = Some(target.last_error.clone()).filter(|error| !error.is_empty());
                vec![or_dash(label(target, "job")), or_dash(name), target.health.clone(), took, or_dash(error)]
            }),
        )
    })?;
    output.say(details(&[("address", standing.address.clone())]))
}

/// Asks Prometheus or Alertmanager.
pub(super) async fn ask<T: DeserializeOwned>(port: u16, path: &str) -> Outcome<T> {
    let text = ask_text(port, "GET", path, None).await.map_err(|error| {
        Failure::new(format!("nothing answers at 127.0.0.1:{port}: {error}"))
            .mend("`neso up` starts it; its log is beside the headnode's, `monitor.log` or `notifier.log`")
    })?;
    Ok(serde_json::from_slice(&text)?)
}

/// One question over HTTP/1.0, whose answer ends with the connection.
pub(super) async fn ask_text(port: u16, method: &str, path: &str, body: Option<&Value>) -> std::io::Result<Vec<u8>> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let question = format!(
        "{method} {path} HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let asking = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(question.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_MAX_BYTES).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = timeout(ANSWER_PATIENCE, asking).await.map_err(std::io::Error::other)??;
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(answer.len());
    let status = String::from_utf8_lossy(&answer[..head]).lines().next().unwrap_or_default().to_owned();
    match status.split(' ').nth(1) {
        Some("200") => Ok(answer[(head + 4).min(answer.len())..].to_vec()),
        _ => Err(std::io::Error::other(format!("it answered \"{status}\""))),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn who_was_told_to_end_is_not_taken_for_who_comes() {
        let root = tempfile::tempdir().expect("a directory");
        let settings =
            Settings::parse(&Settings::generate(Some(root.path())).expect("settings")).expect("they are right");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("it has one").port();
        let answering = base::task::spawn("answers", async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut question = [0; 4_096];
                // Whoever goes away wants no answer.
                let _ = stream.read(&mut question).await;
                let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n").await;
            }
        });
        let held = PidFile::take(&supervise::pid_file(&settings, supervise::MONITOR)).expect("nobody has it");
        let me = Some(std::process::id());
        let waiting = timeout(POLL * 5, await_ready(&settings, port, supervise::MONITOR, me)).await;
        assert!(waiting.is_err(), "what answers is about to end");
        await_ready(&settings, port, supervise::MONITOR, None).await.expect("it is the one");
        drop(held);
        answering.abort();
    }
}
