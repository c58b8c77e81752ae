//! Who is told of alerts, and how: Debian's Alertmanager beside Prometheus, with a configuration made of a few answers.
//!
//! It groups what belongs together, says when it is over, says it again while it is not, and keeps windows of maintenance in which nobody is told. All of that
//! is its own, and done over and over elsewhere; here is only what it is started with.

use std::{fs, io, path::PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    MonitoringError, Start, Wanted, directory, own_directory, partial, place, prepare_directory, program_named,
};
use crate::settings::Settings;

/// Where Alertmanager listens unless that is taken. Its own service has 9093.
pub const PORT: u16 = 9_165;
/// People and programs that are told at most.
const RECEIVERS_MAX: usize = 32;
/// Bytes of an address or a URL at most.
const TEXT_MAX_BYTES: usize = 512;

/// Who is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Notify {
    /// Where Alertmanager listens, on the loopback address.
    pub port: u16,
    /// By mail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mail: Option<Mail>,
    /// Programs, each by a POST to its URL.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub webhooks: Vec<String>,
    /// Seconds for which what belongs together is gathered before anybody is told.
    pub gather_seconds: u32,
    /// Hours after which it is said again.
    pub again_hours: u32,
}

/// Mail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mail {
    /// To whom.
    pub to: Vec<String>,
    /// From whom.
    pub from: String,
    /// `HOST:PORT` of the server that takes it.
    pub server: String,
    /// Who we are there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// File with the password for that, readable for root alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// Also without TLS.
    #[serde(default)]
    pub plain: bool,
}

impl Notify {
    /// What does not fit, by field.
    ///
    /// # Errors
    /// The field, and why.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let mail = self.mail.as_ref();
        let told = mail.map_or(0, |mail| mail.to.len()) + self.webhooks.len();
        if told == 0 {
            return Err(("to", "nobody is to be told".to_owned()));
        }
        if told > RECEIVERS_MAX {
            return Err(("to", format!("at most {RECEIVERS_MAX} are told")));
        }
        let bad_text =
            |text: &str| text.is_empty() || text.len() > TEXT_MAX_BYTES || text.chars().any(char::is_control);
        for url in &self.webhooks {
            if bad_text(url) || !(url.starts_with("http://") || url.starts_with("https://")) {
                return Err(("webhook", format!("\"{url}\" is no URL")));
            }
        }
        let Some(mail) = mail else { return Ok(()) };
        for (field, address) in mail.to.iter().map(|to| ("mail-to", to)).chain([("mail-from", &mail.from)]) {
            if bad_text(address) || !address.contains('@') || address.contains(',') {
                return Err((field, format!("\"{address}\" is no address")));
            }
        }
        let port = mail.server.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
        match port {
            Some((host, _)) if !bad_text(host) => Ok(()),
            _ => Err(("smtp", format!("\"{}\" is not HOST:PORT", mail.server))),
        }
    }

    /// Alertmanager's configuration: what JSON writes, YAML reads.
    fn configuration(&self, password: Option<&str>) -> Value {
        let mails = self.mail.iter().map(|mail| {
            let mut config = json!({
                "to": mail.to.join(", "),
                "from": mail.from,
                "smarthost": mail.server,
                "require_tls": !mail.plain,
                "send_resolved": true,
            });
            if let (Some(user), Some(password)) = (&mail.user, password) {
                config["auth_username"] = json!(user);
                config["auth_password"] = json!(password);
            }
            config
        });
        let webhooks = self.webhooks.iter().map(|url| json!({ "url": url, "send_resolved": true }));
        json!({
            "route": {
                "receiver": "people",
                "group_by": ["alertname"],
                "group_wait": format!("{}s", self.gather_seconds),
                "group_interval": format!("{}s", self.gather_seconds.saturating_mul(4).max(1)),
                "repeat_interval": format!("{}h", self.again_hours),
            },
            "receivers": [{
                "name": "people",
                "email_configs": mails.collect::<Vec<_>>(),
                "webhook_configs": webhooks.collect::<Vec<_>>(),
            }],
        })
    }
}

/// Alertmanager's program, if it is installed.
pub fn program() -> Option<PathBuf> {
    program_named("prometheus-alertmanager")
}

/// Whether this machine is to run it.
pub fn is_wanted(settings: &Settings) -> bool {
    Wanted::load(settings).ok().flatten().is_some_and(|wanted| wanted.notify.is_some())
}

/// How it is started, from the directory of [`super`]. Makes what it needs.
///
/// # Errors
/// Why it must not be, or cannot be.
pub fn command(settings: &Settings) -> Result<Start, MonitoringError> {
    let notify = Wanted::load(settings)?.and_then(|wanted| wanted.notify).ok_or(MonitoringError::NobodyToTell)?;
    let program = program().ok_or(MonitoringError::NoAlertmanager)?;
    prepare_directory(settings)?;
    prepare(settings, &notify)?;
    own_directory(&alerts(settings))?;
    let arguments = [
        "--config.file=alertmanager.yml".to_owned(),
        "--storage.path=alerts".to_owned(),
        // Others would be told of it, and asked, on a port open to all.
        "--cluster.listen-address=".to_owned(),
        format!("--web.listen-address=127.0.0.1:{}", notify.port),
    ];
    Ok(Start { program, arguments: arguments.into_iter().map(Into::into).collect() })
}

/// Removes what it was started with, a password among that, and its windows of maintenance: once it has ended.
///
/// # Errors
/// What could not be removed.
pub fn remove(settings: &Settings) -> Result<(), MonitoringError> {
    remove_configuration(settings)?;
    let alerts = alerts(settings);
    match fs::remove_dir_all(&alerts) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(MonitoringError::io("remove", &alerts)(error)),
        _ => Ok(()),
    }
}

/// Removes its configuration alone, which it has read if it still runs.
pub(super) fn remove_configuration(settings: &Settings) -> Result<(), MonitoringError> {
    let configuration = configuration_path(settings);
    for path in [partial(&configuration), configuration] {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(MonitoringError::io("remove", &path)(error));
            }
            _ => (),
        }
    }
    Ok(())
}

fn configuration_path(settings: &Settings) -> PathBuf {
    directory(settings).join("alertmanager.yml")
}

/// What it writes down itself.
fn alerts(settings: &Settings) -> PathBuf {
    directory(settings).join("alerts")
}

/// Writes its configuration where that differs. Returns whether it does.
pub(super) fn prepare(settings: &Settings, notify: &Notify) -> Result<bool, MonitoringError> {
    let file = notify.mail.as_ref().and_then(|mail| mail.password_file.as_ref());
    let password = file.map(|path| fs::read_to_string(path).map_err(MonitoringError::io("read", path))).transpose()?;
    let text = notify.configuration(password.as_deref().map(str::trim_end)).to_string();
    place(&configuration_path(settings), text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn notify() -> Notify {
        let mail = Mail {
            to: vec!["ana@example.org".to_owned(), "bob@example.org".to_owned()],
            from: "neso@example.org".to_owned(),
            server: "mail.example.org:587".to_owned(),
            user: Some("neso".to_owned()),
            password_file: None,
            plain: false,
        };
        Notify {
            port: 1,
            mail: Some(mail),
            webhooks: vec!["https://hooks.example.org/a?b=c".to_owned()],
            gather_seconds: 30,
            again_hours: 4,
        }
    }

    #[tokio::test]
    async fn alertmanager_takes_what_is_made_for_it() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("alertmanager.yml");
        std::fs::write(&path, notify().configuration(Some("a \"word\": #1")).to_string()).unwrap();
        let mut check = base::process::command("amtool");
        check.arg("check-config").arg(&path);
        let output = base::process::output(check, Duration::from_secs(60)).await;
        let output = output.expect("the tests need amtool, of Debian's package prometheus-alertmanager");
        assert!(output.success(), "{}", String::from_utf8_lossy(&[output.stdout, output.stderr].concat()));
    }

    #[test]
    fn nothing_of_it_stays_behind() {
        let root = tempfile::tempdir().unwrap();
        let settings = Settings::parse(&Settings::generate(Some(root.path())).unwrap()).unwrap();
        let password_file = root.path().join("password");
        fs::write(&password_file, "secret\n").unwrap();
        let mut notify = notify();
        notify.mail.as_mut().unwrap().password_file = Some(password_file);
        prepare_directory(&settings).unwrap();
        assert!(prepare(&settings, &notify).unwrap() && !prepare(&settings, &notify).unwrap());
        own_directory(&alerts(&settings)).unwrap();
        fs::write(alerts(&settings).join("silences"), "").unwrap();
        assert!(fs::read_to_string(configuration_path(&settings)).unwrap().contains("\"secret\""));
        for _ in 0..2 {
            remove(&settings).unwrap();
            assert_eq!(fs::read_dir(directory(&settings)).unwrap().count(), 0);
        }
    }

    #[test]
    fn what_cannot_be_told_to_is_refused_by_its_field() {
        assert_eq!(notify().check(), Ok(()));
        let field = |change: fn(&mut Notify)| {
            let mut changed = notify();
            change(&mut changed);
            changed.check().map_err(|(field, _)| field)
        };
        assert_eq!(field(|n| (n.mail, n.webhooks) = (None, Vec::new())), Err("to"));
        assert_eq!(field(|n| n.webhooks = vec!["ftp://x".to_owned()]), Err("webhook"));
        assert_eq!(field(|n| n.webhooks = vec!["https://x\n".to_owned()]), Err("webhook"));
        assert_eq!(field(|n| n.webhooks = vec!["https://x".to_owned(); RECEIVERS_MAX]), Err("to"));
        assert_eq!(field(|n| n.mail.as_mut().unwrap().to.push("nobody".to_owned())), Err("mail-to"));
        assert_eq!(field(|n| n.mail.as_mut().unwrap().from = "a@b, c@d".to_owned()), Err("mail-from"));
        assert_eq!(field(|n| n.mail.as_mut().unwrap().server = "mail.example.org".to_owned()), Err("smtp"));
    }
}
