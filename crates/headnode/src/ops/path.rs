//! Where a packet from one instance to another stops.

use std::net::IpAddr;

use axum::{
    Json, Router,
    extract::{Query, State},
    routing::get,
};
use control::paths::{self, Place};
use model::{
    firewall::PacketKind,
    path::{Far, Sight, walk},
};
use nodeapi::inquiry::{self, Question};
use opsapi::PathView;
use serde::Deserialize;

use super::{Answer, Ops, instances};

pub(super) fn routes() -> Router<Ops> {
    Router::new().route("/v1/path", get(path))
}

/// Echo request, of IPv4 and of IPv6.
const PING: (PacketKind, PacketKind) = (PacketKind::Icmp(8, 0), PacketKind::Icmp6(128, 0));

#[derive(Deserialize)]
struct Which {
    /// An instance.
    from: String,
    /// An instance, or an address.
    to: String,
    tcp: Option<u16>,
    udp: Option<u16>,
}

async fn path(State(ops): State<Ops>, Query(which): Query<Which>) -> Answer<PathView> {
    let from = instances::find(&ops.control, &which.from)?;
    let address: Option<IpAddr> = which.to.parse().ok();
    let (nic, to) = match address {
        Some(_) => (paths::primary(&from), None),
        None => {
            let to = instances::find(&ops.control, &which.to)?;
            let (nic, other) = paths::nics_between(&from, &to);
            (nic, Some(paths::place(&ops.control, to, other).await?))
        }
    };
    let from = paths::place(&ops.control, from, nic).await?;
    let kind = match (which.tcp, which.udp, address) {
        (Some(_), Some(_), _) => {
            return Err(control::Error::invalid("udp", "name a port of TCP or one of UDP, not both").into());
        }
        (Some(port), None, _) => PacketKind::Tcp(port),
        (None, Some(port), _) => PacketKind::Udp(port),
        (None, None, Some(IpAddr::V6(_))) => PING.1,
        (None, None, _) => PING.0,
    };
    let theirs = async {
        match &to {
            Some(to) => look(&ops, to, Some(&from)).await,
            None => Ok(Sight::default()),
        }
    };
    let (here, there) = tokio::join!(look(&ops, &from, to.as_ref()), theirs);
    let (far, name) = match (&to, address) {
        (Some(to), _) => (Far::Instance(to.end(&there)), to.alias().to_owned()),
        (None, Some(address)) => (Far::Address(address), address.to_string()),
        (None, None) => return Err(control::Error::not_found("instance", which.to).into()),
    };
    let hops = walk(&from.end(&here), &far, kind);
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
