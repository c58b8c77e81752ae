//! Where a packet from one instance to another stops.

use std::net::IpAddr;

use axum::{
    Json, Router,
    extract::{Query, State},
    routing::get,
};
use control::paths::{self, Family, Place};
use model::{
    firewall::PacketKind,
    path::{Far, Sight, walk},
    wire::Tried,
};
use nodeapi::inquiry::{self, Question};
use opsapi::{PathQuestion, PathView};

use super::{Answer, Ops, instances};

pub(super) fn routes() -> Router<Ops> {
    Router::new().route("/v1/path", get(path))
}

/// Echo request, of IPv4 and of IPv6.
const PING: (PacketKind, PacketKind) = (PacketKind::Icmp(8, 0), PacketKind::Icmp6(128, 0));

async fn path(State(ops): State<Ops>, Query(which): Query<PathQuestion>) -> Answer<PathView> {
    let from = instances::find(&ops.control, &which.from)?;
    let address: Option<IpAddr> = which.to.parse().ok();
    let family = match address {
        Some(IpAddr::V6(_)) => Family::V6,
        None if which.ipv6 => Family::V6,
        Some(IpAddr::V4(_)) if which.ipv6 => {
            return Err(control::Error::invalid("ipv6", "does not go with an IPv4 address").into());
        }
        Some(IpAddr::V4(_)) | None => Family::V4,
    };
    let (nic, to) = match address {
        Some(_) => (paths::primary(&from), None),
        None => {
            let to = instances::find(&ops.control, &which.to)?;
            let (nic, other) = paths::nics_between(&from, &to, family);
            (nic, Some(paths::place(&ops.control, to, other, family).await?))
        }
    };
    let from = paths::place(&ops.control, from, nic, family).await?;
    let kind = match (which.tcp, which.udp, address) {
        (Some(_), Some(_), _) => {
            return Err(control::Error::invalid("udp", "name a port of TCP or one of UDP, not both").into());
        }
        (Some(port), None, _) => PacketKind::Tcp(port),
        (None, Some(port), _) => PacketKind::Udp(port),
        (None, None, _) if family == Family::V6 => PING.1,
        (None, None, _) => PING.0,
    };
    let theirs = async {
        match &to {
            Some(to) => look(&ops, to, Some(&from)).await,
            None => Ok(Sight::default()),
        }
    };
    let wires = wires(&ops, &from, to.as_ref(), which.probe);
    let (here, there, (wire, wire_back)) = tokio::join!(look(&ops, &from, to.as_ref()), theirs, wires);
    let (far, name) = match (&to, address) {
        (Some(to), _) => (Far::Instance(to.end(&there, &wire_back)), to.alias().to_owned()),
        (None, Some(address)) => (Far::Address(address), address.to_string()),
        (None, None) => return Err(control::Error::not_found("instance", which.to).into()),
    };
    let hops = walk(&from.end(&here, &wire), &far, kind);
    Ok(Json(PathView { from: from.alias().to_owned(), to: name, hops }))
}

/// What a machine's kernel has, or why that is not known.
async fn look(ops: &Ops, place: &Place, other: Option<&Place>) -> Result<Sight, String> {
    let look = place.look(other).ok_or("the machine's document does not have the instance's network yet")?;
    match ops.inquiries.ask(place.server(), Question::Path(Box::new(look))).await {
        Ok(inquiry::Answer::Path(sight)) => Ok(sight),
        Ok(_) => Err("the machine answered something else".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

type Wire = Result<Tried, String>;

/// What each machine found out about its wire to the other, or finds out now when it is to probe.
async fn wires(ops: &Ops, from: &Place, to: Option<&Place>, probe: bool) -> (Wire, Wire) {
    let Some(to) = to else { return (Err(String::new()), Err(String::new())) };
    match probe && from.server() != to.server() {
        true => tokio::join!(try_now(ops, from, to), try_now(ops, to, from)),
        false => (from.tried(to), to.tried(from)),
    }
}

async fn try_now(ops: &Ops, from: &Place, to: &Place) -> Wire {
    let machine = to.underlay().ok_or_else(|| "the other machine has no address between machines".to_owned())?;
    match ops.inquiries.ask(from.server(), Question::Wire { machine }).await {
        Ok(inquiry::Answer::Wire(fact)) => Ok(Tried { fact, age_ms: 0 }),
        Ok(_) => Err("the machine answered something else".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
