//! NICs of an instance.

use std::net::Ipv6Addr;

use control::instances::nics;
use http::{StatusCode, header};
use model::id::{InstanceId, MacAddr};
use serde_json::Value;

use super::{
    call::Call,
    create, enforced,
    error::{ApiError, Faults},
    machine_view::nic,
    reply::Reply,
};

/// `GET /:account/machines/:machine/nics`.
pub(super) async fn list(call: Call) -> Result<Reply, ApiError> {
    let views = nics::list(call.control(), call.scope(), call.machine()?)?;
    let shown: Vec<_> = views.iter().map(nic).collect();
    Ok(Reply::json(&shown).counted(shown.len(), None))
}

/// `POST /:account/machines/:machine/nics`.
pub(super) async fn add(call: Call) -> Result<Reply, ApiError> {
    let id = call.machine()?;
    let wait = enforced::wanted(&call.query)?;
    let mut faults = Faults::default();
    let wanted = call.params.get("network").ok_or_else(|| ApiError::missing("network"));
    let choice = faults.take(wanted.and_then(|wanted| create::network("network", wanted)).map(Some));
    let primary = faults.take(call.params.flag("primary")).unwrap_or(false);
    faults.finish()?;
    let mut choice = choice.expect("what is missing is a fault");
    choice.primary |= primary;
    // When the call is repeated, the NIC that is there is the one it made.
    if !call.control().is_repeated()
        && let Some(there) = nics::on_network(call.control(), call.scope(), id, &choice)?
    {
        return Ok(Reply::empty(StatusCode::FOUND).header(header::LOCATION, location(&call, id, there.nic.mac)));
    }
    let view = nics::add(call.control(), &call.caller(), call.scope(), id, choice).await?;
    let location = location(&call, id, view.nic.mac);
    let reply = Reply::json(&nic(&view)).status(StatusCode::CREATED).header(header::LOCATION, location);
    Ok(enforced::answered(&call, id, wait, reply).await)
}

/// `GET /:account/machines/:machine/nics/:mac`.
pub(super) async fn get(call: Call) -> Result<Reply, ApiError> {
    let view = nics::get(call.control(), call.scope(), call.machine()?, call.id("NIC", 1)?)?;
    Ok(Reply::json(&nic(&view)))
}

/// `PUT /:account/machines/:machine/nics/:mac`. Ours: Triton changes NICs by taking them away and adding others.
pub(super) async fn update(call: Call) -> Result<Reply, ApiError> {
    let (id, mac) = (call.machine()?, call.id("NIC", 1)?);
    let wait = enforced::wanted(&call.query)?;
    if call.params.get("ipv6_ips").is_none() {
        return Err(ApiError::missing("ipv6_ips"));
    }
    let one = |value: &Value| {
        let ip = value.as_str().and_then(|text| text.parse::<Ipv6Addr>().ok());
        ip.ok_or_else(|| ApiError::invalid("ipv6_ips", format!("ipv6_ips: {value} is not an IPv6 address")))
    };
    let wanted: Vec<Ipv6Addr> = call.params.list("ipv6_ips").iter().map(one).collect::<Result<_, _>>()?;
    let view = nics::set_addresses6(call.control(), &call.caller(), call.scope(), id, mac, &wanted).await?;
    let reply = Reply::json(&nic(&view)).status(StatusCode::ACCEPTED);
    Ok(enforced::answered(&call, id, wait, reply).await)
}

/// `DELETE /:account/machines/:machine/nics/:mac`.
pub(super) async fn remove(call: Call) -> Result<Reply, ApiError> {
    let (id, mac) = (call.machine()?, call.id("NIC", 1)?);
    let wait = enforced::wanted(&call.query)?;
    nics::remove(call.control(), &call.caller(), call.scope(), id, mac).await?;
    Ok(enforced::answered(&call, id, wait, Reply::empty(StatusCode::NO_CONTENT)).await)
}

fn location(call: &Call, id: InstanceId, mac: MacAddr) -> String {
    format!("/{}/machines/{id}/nics/{}", call.account.login, mac.bare())
}
