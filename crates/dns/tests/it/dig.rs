//! Debian's `dig`, and what it says.

use std::net::SocketAddr;

use crate::server::PATIENCE;

/// An answer as `dig` understood it. Records are `name ttl kind data`, with single blanks.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) status: String,
    pub(crate) flags: Vec<String>,
    pub(crate) answer: Vec<String>,
    pub(crate) authority: Vec<String>,
    pub(crate) additional: Vec<String>,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn has_flag(&self, flag: &str) -> bool {
        self.flags.iter().any(|held| held == flag)
    }
}

pub(crate) async fn dig(server: SocketAddr, arguments: &str) -> Answer {
    let text =
        raw(server, &format!("{arguments} +norecurse +noall +comments +answer +authority +additional +question")).await;
    let mut answer = Answer { text: text.clone(), ..Answer::default() };
    let mut section = None;
    for line in text.lines() {
        if let Some(rest) = line.split_once("status: ").map(|(_, rest)| rest) {
            answer.status = rest.split(',').next().unwrap().to_owned();
        }
        if let Some(rest) = line.strip_prefix(";; flags: ") {
            answer.flags = rest.split(';').next().unwrap().split(' ').map(str::to_owned).collect();
        }
        if let Some(rest) = line.strip_prefix(";; ") {
            section = rest.strip_suffix(" SECTION:").map(str::to_owned);
        } else if !line.starts_with(';') && !line.is_empty() {
            let record = line.split_whitespace().filter(|word| *word != "IN").collect::<Vec<_>>().join(" ");
            match section.as_deref() {
                Some("ANSWER") => answer.answer.push(record),
                Some("AUTHORITY") => answer.authority.push(record),
                Some("ADDITIONAL") => answer.additional.push(record),
                _ => {}
            }
        }
    }
    answer
}

/// What it prints.
pub(crate) async fn raw(server: SocketAddr, arguments: &str) -> String {
    let mut command = base::process::command("dig");
    command.arg(format!("@{}", server.ip())).args([
        "-p",
        &server.port().to_string(),
        "+time=20",
        "+tries=1",
        "+nocookie",
    ]);
    command.args(arguments.split_whitespace());
    let output = base::process::output(command, PATIENCE).await.expect("the tests need Debian's `bind9-dnsutils`");
    String::from_utf8(output.stdout).unwrap()
}
