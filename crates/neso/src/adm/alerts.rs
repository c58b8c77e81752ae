//! `neso adm alerts`: what this machine's Prometheus finds wrong, who is told of it, and windows in which nobody is.

use std::path::{Path, PathBuf};

use base::clock::{Clock as _, SystemClock};
use headnode::monitoring::{
    self, MonitoringError, Wanted,
    notify::{self, Mail, Notify},
};
use model::time::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Output,
    monitoring::{ask, ask_text, await_end, await_ready, end},
    or_dash, table,
};
use crate::{
    context::Place,
    failure::{Failure, Outcome},
    install,
    progress::Progress,
    supervise,
};

/// Milliseconds of an hour.
const HOUR_MS: u64 = 3_600_000;

/// See the head of this file.
#[derive(Debug, clap::Args)]
pub(crate) struct Command {
    /// Also what is not wrong for long enough yet.
    #[arg(long)]
    pending: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Say who is told, by Alertmanager beside Prometheus; replaces what was said before.
    Notify(Told),
    /// Tell nobody from now on.
    Quiet,
    /// Begin a window of maintenance: what is wrong in it is shown, and nobody is told.
    Silence(Window),
    /// List windows of maintenance that have not ended.
    Silences,
    /// End a window of maintenance.
    Unsilence {
        /// Its id.
        id: String,
    },
}

/// Who is told.
#[derive(Debug, clap::Args)]
struct Told {
    /// Whom to mail; may be given several times.
    #[arg(long, value_name = "ADDRESS", requires = "smtp")]
    mail_to: Vec<String>,
    /// Whose mail it is.
    #[arg(long, value_name = "ADDRESS", requires = "mail_to")]
    mail_from: Option<String>,
    /// Server that takes the mail.
    #[arg(long, value_name = "HOST:PORT", requires = "mail_from")]
    smtp: Option<String>,
    /// Who we are for that server.
    #[arg(long, value_name = "NAME", requires = "smtp_password_file")]
    smtp_user: Option<String>,
    /// File with the password, readable for root alone.
    #[arg(long, value_name = "FILE", requires = "smtp_user")]
    smtp_password_file: Option<PathBuf>,
    /// Mail also without TLS: for a server on this machine.
    #[arg(long)]
    smtp_plain: bool,
    /// URL to which alerts are sent as JSON; may be given several times.
    #[arg(long, value_name = "URL")]
    webhook: Vec<String>,
    /// Gather what belongs together for so many seconds before anybody is told.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    gather: u32,
    /// Say it again after so many hours.
    #[arg(long, value_name = "HOURS", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=168))]
    again: u32,
}

/// A window of maintenance.
#[derive(Debug, clap::Args)]
struct Window {
    /// How long it lasts.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=720))]
    hours: u32,
    /// What for.
    #[arg(long)]
    why: String,
    /// For alerts of this name.
    #[arg(long)]
    alert: Option<String>,
    /// For alerts about this machine.
    #[arg(long)]
    node: Option<String>,
    /// For alerts about this headnode.
    #[arg(long)]
    headnode: Option<String>,
    /// For all alerts.
    #[arg(long, conflicts_with_all = ["alert", "node", "headnode"])]
    all: bool,
}

/// Runs it.
pub(crate) async fn run(place: &Place, output: Output, command: Command) -> Outcome {
    let settings = place.settings()?;
    let wanted = Wanted::load(&settings)?.ok_or(MonitoringError::NotWanted)?;
    let port = || wanted.notify.as_ref().map(|notify| notify.port).ok_or(MonitoringError::NobodyToTell);
    match command.verb {
        None => list(&wanted, output, command.pending).await,
        Some(Verb::Notify(told)) => tell(place, output, wanted, told).await,
        Some(Verb::Quiet) => {
            Wanted { notify: None, ..wanted }.save(&settings)?;
            end(&settings, supervise::NOTIFIER);
            await_end(&settings, supervise::NOTIFIER).map_err(|()| {
                Failure::new("Alertmanager does not end").mend("`neso adm alerts quiet` again, or look at its log")
            })?;
            notify::remove(&settings)?;
            output.say("nobody is told any more; `neso adm alerts` still shows what is wrong")
        }
        Some(Verb::Silence(window)) => silence(port()?, output, &window).await,
        Some(Verb::Silences) => silences(port()?, output).await,
        Some(Verb::Unsilence { id }) => {
            let is_id = id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
            if !is_id {
                return Err(
                    Failure::new(format!("\"{id}\" is no window's id")).mend("`neso adm alerts silences` lists them")
                );
            }
            ask_text(port()?, "DELETE", &format!("/api/v2/silence/{id}"), None).await.map_err(refused)?;
            output.say(format!("window {id} has ended"))
        }
    }
}

fn refused(error: std::io::Error) -> Failure {
    Failure::new(format!("Alertmanager does not do it: {error}"))
        .mend("its log is `notifier.log` beside the headnode's")
}

/// Where units do not see what lies there: `ProtectHome` and `PrivateTmp`.
const HIDDEN: [&str; 5] = ["/home", "/root", "/run/user", "/tmp", "/var/tmp"];

fn is_hidden(path: &Path) -> bool {
    HIDDEN.iter().any(|hidden| path.starts_with(hidden))
}

/// The file with the password, as processes find it that start elsewhere; it is read once.
fn password_file(typed: &Path, by_units: bool) -> Outcome<PathBuf> {
    let flag = "--smtp-password-file";
    let fail = |error: std::io::Error| {
        Failure::new(format!("{flag}: failed to read `{}`: {error}", typed.display())).mend(
            "write the password, and nothing else, into a file that root may read, such as /etc/neso/smtp-password",
        )
    };
    let path = std::path::absolute(typed).map_err(fail)?;
    let text = std::fs::read_to_string(&path).map_err(fail)?;
    if text.trim_end().is_empty() {
        return Err(fail(std::io::Error::other("it is empty")));
    }
    let behind_links = path.canonicalize().map_err(fail)?;
    if by_units && (is_hidden(&path) || is_hidden(&behind_links)) {
        return Err(Failure::new(format!("{flag}: `{}` is hidden from neso's units", path.display()))
            .mend(format!("put it elsewhere than below {}: /etc/neso/smtp-password", HIDDEN.join(", "))));
    }
    Ok(path)
}

async fn tell(place: &Place, output: Output, wanted: Wanted, told: Told) -> Outcome {
    let settings = &place.settings()?;
    if notify::program().is_none() {
        return Err(Failure::from(MonitoringError::NoAlertmanager).mend(
            "apt-get install --no-install-recommends prometheus-alertmanager; systemctl disable --now prometheus-alertmanager",
        ));
    }
    let by_units = install::is_installed(place);
    let password_file = told.smtp_password_file.map(|typed| password_file(&typed, by_units)).transpose()?;
    let mail = told.smtp.map(|server| Mail {
        to: told.mail_to,
        from: told.mail_from.unwrap_or_default(),
        server,
        user: told.smtp_user,
        password_file,
        plain: told.smtp_plain,
    });
    let port = wanted.notify.as_ref().map_or_else(|| monitoring::free_port(notify::PORT), |notify| notify.port);
    let notify = Notify { port, mail, webhooks: told.webhook, gather_seconds: told.gather, again_hours: told.again };
    if let Err((field, why)) = notify.check() {
        return Err(
            Failure::new(format!("--{field}: {why}")).mend("name somebody with --mail-to, or a program with --webhook")
        );
    }
    let step = Progress::new().step("Starting Alertmanager");
    Wanted { notify: Some(notify), ..wanted }.save(settings)?;
    let ended = end(settings, supervise::NOTIFIER);
    await_ready(settings, port, supervise::NOTIFIER, ended).await?;
    step.done(&format!("http://127.0.0.1:{port}"));
    output.say("Prometheus is told within seconds. `neso adm alerts silence` begins a window of maintenance.")
}

#[derive(Debug, Deserialize)]
struct Envelope {
    data: Alerts,
}

#[derive(Debug, Deserialize)]
struct Alerts {
    alerts: Vec<Alert>,
}

/// Something that Prometheus finds wrong.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all(deserialize = "camelCase"))]
pub(crate) struct Alert {
    labels: std::collections::BTreeMap<String, String>,
    annotations: std::collections::BTreeMap<String, String>,
    state: String,
    active_at: String,
    /// In a window of maintenance.
    #[serde(default)]
    silenced: bool,
}

impl Alert {
    /// Nobody is told of it, because it is in a window of maintenance.
    pub(crate) const fn is_silenced(&self) -> bool {
        self.silenced
    }

    /// In one line.
    pub(crate) fn words(&self) -> String {
        let severity = self.labels.get("severity").map_or("", String::as_str);
        let summary = self.annotations.get("summary").or_else(|| self.labels.get("alertname"));
        format!("{severity}: {}", summary.map_or("", String::as_str))
    }
}

/// What is wrong, the most urgent first; `pending`: also what is not wrong for long enough yet.
pub(crate) async fn found(wanted: &Wanted, pending: bool) -> Outcome<Vec<Alert>> {
    let found: Envelope = ask(wanted.port, "/api/v1/alerts").await?;
    let mut alerts: Vec<Alert> =
        found.data.alerts.into_iter().filter(|alert| pending || alert.state == "firing").collect();
    if let Some(notify) = &wanted.notify {
        // What nobody is told of is the only thing it knows better; without it all is shown as told.
        let known: Vec<Value> = ask(notify.port, "/api/v2/alerts?silenced=true").await.unwrap_or_default();
        for alert in &mut alerts {
            let is_it = |one: &&Value| alert.labels.iter().all(|(name, value)| one["labels"][name] == **value);
            alert.silenced = known.iter().find(is_it).is_some_and(|one| one["status"]["state"] == "suppressed");
        }
    }
    alerts.sort_by_key(|alert| (alert.silenced, severity(alert) != "critical", alert.active_at.clone()));
    Ok(alerts)
}

fn severity(alert: &Alert) -> String {
    alert.labels.get("severity").cloned().unwrap_or_default()
}

async fn list(wanted: &Wanted, output: Output, pending: bool) -> Outcome {
    let alerts = found(wanted, pending).await?;
    output.show(&alerts, |alerts| {
        table(
            &["severity", "state", "since", "what", "what to do"],
            alerts.iter().map(|alert| {
                let says = |name: &str| or_dash(alert.annotations.get(name));
                let since = alert.active_at.split('.').next().unwrap_or_default().to_owned();
                let state = if alert.silenced { "in maintenance" } else { &alert.state };
                vec![severity(alert), state.to_owned(), since, says("summary"), says("description")]
            }),
        )
    })
}

async fn silence(port: u16, output: Output, window: &Window) -> Outcome {
    let named = [("alertname", &window.alert), ("node", &window.node), ("headnode", &window.headnode)];
    let equal = |(name, value): (&str, &Option<String>)| {
        value.as_ref().map(|value| json!({ "name": name, "value": value, "isRegex": false, "isEqual": true }))
    };
    let mut matchers: Vec<Value> = named.into_iter().filter_map(equal).collect();
    if window.all {
        matchers.push(json!({ "name": "alertname", "value": ".+", "isRegex": true, "isEqual": true }));
    }
    if matchers.is_empty() {
        return Err(Failure::new("it is not said what the window is for").mend("--alert, --node, --headnode, or --all"));
    }
    let begins = Timestamp(SystemClock.now_ms());
    let ends = begins.plus_millis(i64::try_from(u64::from(window.hours) * HOUR_MS)?);
    let body = json!({
        "matchers": matchers,
        "startsAt": begins.to_string(),
        "endsAt": ends.to_string(),
        "createdBy": "neso",
        "comment": window.why,
    });
    let answer = ask_text(port, "POST", "/api/v2/silences", Some(&body)).await.map_err(refused)?;
    let answer: Value = serde_json::from_slice(&answer)?;
    output.show(&answer, |answer| {
        let id = answer["silenceID"].as_str().unwrap_or_default().to_owned();
        table(&["window", "ends"], [vec![id, ends.to_string()]])
    })
}

async fn silences(port: u16, output: Output) -> Outcome {
    let found: Vec<Value> = ask(port, "/api/v2/silences").await?;
    let open: Vec<&Value> = found.iter().filter(|one| one["status"]["state"] != "expired").collect();
    output.show(&open, |open| {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        table(
            &["window", "ends", "for", "why"],
            open.iter().map(|one| {
                let matchers = one["matchers"].as_array().into_iter().flatten();
                let what: Vec<String> =
                    matchers.map(|matcher| format!("{}={}", text(&matcher["name"]), text(&matcher["value"]))).collect();
                vec![text(&one["id"]), text(&one["endsAt"]), what.join(" "), text(&one["comment"])]
            }),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_where_processes_find_it_that_start_elsewhere() {
        let below = tempfile::tempdir_in(".").expect("a directory");
        let below = below.path().file_name().map(PathBuf::from).expect("a name");
        let typed = below.join("password");
        let refusal = |by_units| password_file(&typed, by_units).expect_err("it is refused").message;
        assert!(refusal(false).starts_with("--smtp-password-file: "), "it is not there");
        std::fs::write(&typed, "\n").expect("a file");
        assert!(refusal(false).contains("empty"));
        std::fs::write(&typed, "secret\n").expect("a file");
        let found = password_file(&typed, false).expect("it can be read");
        assert!(found.is_absolute() && found.ends_with(&typed));
    }

    #[test]
    fn what_units_do_not_see_is_refused_where_they_read_it() {
        let directory = tempfile::tempdir_in("/tmp").expect("a directory");
        let typed = directory.path().join("password");
        std::fs::write(&typed, "secret").expect("a file");
        assert_eq!(password_file(&typed, false).expect("nothing is hidden without units"), typed);
        let refused = password_file(&typed, true).expect_err("it is hidden");
        assert!(refused.message.starts_with("--smtp-password-file: ") && refused.message.contains("hidden"));
        for (path, hidden) in
            [("/root/password", true), ("/run/user/0/x", true), ("/rooted/x", false), ("/etc/neso/x", false)]
        {
            assert_eq!(is_hidden(Path::new(path)), hidden, "{path}");
        }
    }
}
