//! `neso instance cert`: what a tenant's Prometheus needs, ready to be used. The certificate is signed by the account's SSH key and has a key of its
//! own, so that the SSH key itself stays where it is.

use std::{fs, path::PathBuf};

use cloudapi::{
    client::{Client, Profile, Signer},
    signature::http_date,
};
use headnode::cmon::issue::Draft;
use http::Uri;
use serde_json::json;

use super::now;
use crate::{
    adm::Output,
    answer,
    failure::{Failure, Outcome},
    up::key,
};

/// Where to put what, and for how long.
#[derive(Debug, clap::Args)]
pub(super) struct Cert {
    /// Where the files go; what was made there before is replaced.
    #[arg(long, short, default_value = ".", value_name = "DIRECTORY")]
    directory: PathBuf,
    /// Days the certificate is good for.
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3_650))]
    days: u32,
}

/// The files.
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    prometheus: PathBuf,
}

/// Where the monitor is, and how it is known.
struct Place {
    host: String,
    port: u16,
    /// The authority of its certificate.
    authority: Option<PathBuf>,
    /// Whether its certificate is taken unseen.
    insecure: bool,
}

pub(super) async fn run(profile: Option<&str>, output: Output, cert: &Cert) -> Outcome {
    let environment = |name: &str| std::env::var(name).ok();
    let profile = Profile::load(profile, &environment)?;
    let signer = Signer::find(&profile.key_id, &environment).await?;
    let client = Client::new(&profile, Signer::find(&profile.key_id, &environment).await?, now)?;
    let services = client.services().await?;
    let url = services.get("cmon").ok_or_else(|| Failure::new("this datacenter has no container monitor (cmon)"))?;
    let place = place(url, &profile)?;
    // Whose key signs is who is let in, also where the profile acts on another account.
    let login = &profile.account;
    let began = now();
    let draft = Draft::new(login, &signer.fingerprint_md5, began, cert.days)?;
    let signature = signer.sign(&draft.to_be_signed(signer.algorithm())?).await?;
    let issued = draft.signed(signer.algorithm(), signature)?;

    let directory = std::path::absolute(&cert.directory)
        .and_then(|directory| fs::create_dir_all(&directory).map(|()| directory))
        .map_err(|error| Failure::new(format!("failed to make `{}`: {error}", cert.directory.display())))?;
    let file = |ending: &str| directory.join(format!("cmon-{login}-{ending}"));
    let files = Files { certificate: file("cert.pem"), key: file("key.pem"), prometheus: file("prometheus.yml") };
    let text = prometheus(login, &place, &files);
    for (path, content, mode) in [
        (&files.key, &issued.key, 0o600),
        (&files.certificate, &issued.certificate, 0o644),
        (&files.prometheus, &text, 0o644),
    ] {
        key::write(path, content.as_bytes(), mode)
            .map_err(|error| Failure::new(format!("failed to write `{}`: {error}", path.display())))?;
    }
    let ends = http_date(began + i64::from(cert.days) * 86_400);
    if output.json {
        let told = json!({
            "certificate": files.certificate, "key": files.key, "prometheus": files.prometheus, "url": url, "ends": ends,
        });
        return Ok(answer::print(serde_json::to_string_pretty(&told)?)?);
    }
    output.say(format!(
        "Made a certificate for {login}, good until {ends}:\n  {}\n  {}\nTo watch all instances of {login}:\n  prometheus --config.file={}",
        files.certificate.display(),
        files.key.display(),
        files.prometheus.display(),
    ))
}

fn place(url: &str, profile: &Profile) -> Outcome<Place> {
    let wrong = || Failure::new(format!("the datacenter says its container monitor is at `{url}`, which is no URL"));
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    // A profile that takes any certificate may name authorities for something else.
    let authority = profile.ca_file.as_ref().filter(|_| !profile.insecure);
    Ok(Place {
        host: uri.host().ok_or_else(wrong)?.to_owned(),
        port: uri.port_u16().unwrap_or(9_163),
        authority: authority.map(std::path::absolute).transpose()?,
        insecure: profile.insecure,
    })
}

/// A configuration of Prometheus. JSON's texts are YAML's.
fn prometheus(login: &str, place: &Place, files: &Files) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let path = |path: &PathBuf| quoted(&path.display().to_string());
    let tls = |indent: &str| {
        let mut lines = vec![
            "tls_config:".to_owned(),
            format!("  cert_file: {}", path(&files.certificate)),
            format!("  key_file: {}", path(&files.key)),
        ];
        lines.extend(place.authority.as_ref().map(|authority| format!("  ca_file: {}", path(authority))));
        lines.extend(place.insecure.then(|| "  insecure_skip_verify: true".to_owned()));
        lines.iter().map(|line| format!("{indent}{line}\n")).collect::<String>()
    };
    let (account, host, port) = (quoted(login), quoted(&place.host), place.port);
    let job = quoted(&format!("triton-{login}"));
    format!(
        "# Made by `neso instance cert`. Every instance of {login} that runs is watched; where only some are to be, name their groups\n\
         # (tag triton.cmon.groups) below the account as `groups: [\"web\"]`.\n\
         global:\n  scrape_interval: 15s\n  scrape_timeout: 10s\n\
         scrape_configs:\n  - job_name: {job}\n    scheme: https\n{}    \
         triton_sd_configs:\n      - account: {account}\n        role: container\n        endpoint: {host}\n        dns_suffix: {host}\n        \
         port: {port}\n        version: 1\n{}    \
         relabel_configs:\n      - source_labels: [__meta_triton_machine_id]\n        target_label: instance\n      \
         - source_labels: [__meta_triton_machine_alias]\n        target_label: alias\n",
        tls("    "),
        tls("        "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_profile_trusts_is_trusted() {
        let mut profile = Profile {
            name: "env".to_owned(),
            url: "https://127.0.0.1:8443".to_owned(),
            account: "demo".to_owned(),
            act_as: None,
            key_id: String::new(),
            insecure: false,
            ca_file: Some("/etc/ca.pem".into()),
        };
        let read = |profile: &Profile| {
            let place = place("https://cmon.example:9163", profile).unwrap();
            (place.authority, place.insecure)
        };
        assert_eq!(read(&profile), (Some("/etc/ca.pem".into()), false));
        profile.insecure = true;
        assert_eq!(read(&profile), (None, true));
    }

    #[test]
    fn the_configuration_says_where_and_with_what() {
        let file = |name: &str| PathBuf::from("/srv/a b").join(name);
        let files = Files { certificate: file("c"), key: file("k"), prometheus: file("p") };
        let mut place =
            Place { host: "cmon.dc-1.example".into(), port: 9_163, authority: Some(file("ca.pem")), insecure: false };
        let text = prometheus("demo", &place, &files);
        for line in [
            "  - job_name: \"triton-demo\"",
            "    tls_config:",
            "      ca_file: \"/srv/a b/ca.pem\"",
            "      - account: \"demo\"",
            "        endpoint: \"cmon.dc-1.example\"",
            "        tls_config:",
            "          key_file: \"/srv/a b/k\"",
            "        target_label: alias",
        ] {
            assert!(text.lines().any(|told| told == line), "{line} is missing in\n{text}");
        }
        assert!(!text.contains("insecure"), "{text}");
        place = Place { authority: None, insecure: true, ..place };
        assert_eq!(prometheus("demo", &place, &files).matches("insecure_skip_verify: true").count(), 2);
    }
}
