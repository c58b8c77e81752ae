//! `neso adm firewall log`: what rules logged, once or as it comes.

use std::{io, time::Duration};

use model::firewall::log::{LogDirection, LogEvent};
use opsapi::{Client, FirewallLogLine, FirewallLogQuery};

use super::Output;
use crate::{answer, failure::Outcome};

/// How often a follower asks for more: little work for the machines.
const POLL: Duration = Duration::from_millis(500);

/// What to print.
#[derive(Debug, clap::Args)]
pub(crate) struct Log {
    /// Lines of this rule, by its id.
    #[arg(long)]
    rule: Option<String>,
    /// Lines of this instance: id, short id or name.
    #[arg(long)]
    instance: Option<String>,
    /// Lines of this machine alone, by its id or host name.
    #[arg(long)]
    server: Option<String>,
    /// At most so many of what is there.
    #[arg(long, default_value_t = 100)]
    lines: u32,
    /// Go on.
    #[arg(short, long)]
    follow: bool,
}

/// Runs it. As JSON, each line is an object of its own.
pub(super) async fn run(client: &Client, output: Output, log: Log) -> Outcome {
    let Log { rule, instance, server, lines, follow } = log;
    let mut query = FirewallLogQuery { rule, instance, server, lines, after: None };
    let mut told_silent = Vec::new();
    loop {
        let view = client.firewall_log(&query).await?;
        if view.lost {
            eprintln!("neso: some lines are gone: machines keep a bounded number");
        }
        for silent in view.silent {
            // Once is enough for who follows.
            if !told_silent.contains(&silent.server) {
                told_silent.push(silent.server);
                eprintln!("neso: no lines of server {}: {}", silent.server, silent.why);
            }
        }
        for line in &view.entries {
            let text = if output.json { serde_json::to_string(line)? } else { shown(line) };
            match answer::print_text(&format!("{text}\n")) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                other => other?,
            }
        }
        if !follow {
            return Ok(());
        }
        if view.entries.is_empty() {
            tokio::time::sleep(POLL).await;
        }
        query.after = Some(view.next);
    }
}

fn shown(line: &FirewallLogLine) -> String {
    let entry = &line.entry;
    let event = match entry.event {
        LogEvent::Allow => "allow ",
        LogEvent::Reject => "reject",
    };
    let direction = match entry.direction {
        LogDirection::In => "in ",
        LogDirection::Out => "out",
    };
    let end = |address: std::net::IpAddr, port: Option<u16>| match port {
        Some(port) => std::net::SocketAddr::new(address, port).to_string(),
        None => address.to_string(),
    };
    let (from, to) = (end(entry.source_ip, entry.source_port), end(entry.destination_ip, entry.destination_port));
    let icmp = match (entry.icmp_type, entry.icmp_code) {
        (Some(kind), Some(code)) => format!(" type {kind} code {code}"),
        _ => String::new(),
    };
    let vm = entry.alias.clone().unwrap_or_else(|| entry.vm.to_string());
    format!("{} {event} {direction} {vm}: {}{icmp} {from} -> {to} rule {}", entry.time, entry.protocol, entry.rule)
}
