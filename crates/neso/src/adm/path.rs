//! `neso adm path`: the way of a packet, a line per hop, and where it stops.

use model::path::{Hop, Verdict};
use opsapi::{Client, PathQuestion};

use super::{Output, table};
use crate::failure::Outcome;

/// From where to where, and what is sent.
#[derive(Debug, clap::Args)]
pub(crate) struct Command {
    /// The instance that sends, by id, short id or alias.
    from: String,
    /// The instance it sends to, or an address outside.
    to: String,
    /// A TCP connection to this port, not a ping.
    #[arg(long, value_name = "PORT", conflicts_with = "udp")]
    tcp: Option<u16>,
    /// A UDP packet to this port, not a ping.
    #[arg(long, value_name = "PORT")]
    udp: Option<u16>,
    /// Between the IPv6 addresses of two instances.
    #[arg(long, short = '6')]
    ipv6: bool,
    /// Have both machines try the wire between them now.
    #[arg(long)]
    probe: bool,
}

/// Runs it.
pub(crate) async fn run(client: &Client, output: Output, command: Command) -> Outcome {
    let Command { from, to, tcp, udp, ipv6, probe } = command;
    let view = client.path(&PathQuestion { from, to, tcp, udp, ipv6, probe }).await?;
    output.show(&view, |view| rows(&view.hops))?;
    if output.json {
        return Ok(());
    }
    output.say(match view.stop() {
        Some(hop) => format!("It stops at {}: {} ({}).", hop.host, hop.what, hop.says),
        None => format!("Nothing that was looked at keeps a packet of {} from {}.", view.from, view.to),
    })
}

fn rows(hops: &[Hop]) -> comfy_table::Table {
    table(
        &["machine", "hop", "", "says"],
        hops.iter().map(|hop| {
            let verdict = match hop.verdict {
                Verdict::Passes => "ok",
                Verdict::Stops => "stops here",
                Verdict::Unknown => "not known",
            };
            vec![hop.host.clone(), hop.what.clone(), verdict.to_owned(), hop.says.clone()]
        }),
    )
}
