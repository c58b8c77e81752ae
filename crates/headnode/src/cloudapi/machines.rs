//! Instances: list, get, act on, delete.

use cloudapi::{error::Code, types::Machine};
use control::{
    firewall,
    instances::{self, InstanceFilter, InstanceView, PAGE_MAX},
    names,
};
use http::StatusCode;
use model::{instance::Brand, state::PublicState};

use super::{
    call::Call,
    enforced,
    error::{ApiError, Faults},
    machine_view::{Show, machine},
    params::{Params, scalar},
    reply::Reply,
};

/// The states of everything that is there, which the contract calls `active`.
const ACTIVE: [PublicState; 6] = [
    PublicState::Provisioning,
    PublicState::Running,
    PublicState::Stopping,
    PublicState::Stopped,
    PublicState::Offline,
    PublicState::Failed,
];

/// `GET /:account/machines`.
pub(super) async fn list(call: Call) -> Result<Reply, ApiError> {
    let (params, mut faults) = (&call.params, Faults::default());
    let number =
        |number: Option<u64>, default| number.map_or(default, |number| usize::try_from(number).unwrap_or(usize::MAX));
    let limit = number(faults.take(params.number("limit")), PAGE_MAX).clamp(1, PAGE_MAX);
    let offset = number(faults.take(params.number("offset")), 0);
    let filter = filter(params, &mut faults);
    let any_tag = faults.take(params.text("tags")).as_deref() == Some("*");
    let show = faults.take(show(&call));
    faults.finish()?;
    let views = match filter {
        Some(filter) if any_tag => tagged(&call, &filter, limit, offset),
        Some(filter) => instances::list(call.control(), call.scope(), &filter, limit, offset),
        None => Vec::new(),
    };
    let machines: Vec<_> = views.iter().map(|view| machine(view, call.version, show)).collect();
    Ok(Reply::json(&machines).counted(machines.len(), Some(limit)))
}

/// `GET /:account/machines/:machine`.
pub(super) async fn get(call: Call) -> Result<Reply, ApiError> {
    let (id, wait) = (call.machine()?, enforced::wanted(&call.query)?);
    let view = instances::get(call.control(), call.scope(), id)?;
    let found = match wait {
        true => Some(firewall::wait_enforced(call.control(), id).await),
        false => None,
    };
    let shown = machine(&view, call.version, show(&call)?);
    // Triton's: on an account without names the field is not there.
    let dns_names = call.account.names_enabled.then(|| names::of_instance(call.control(), id));
    Ok(Reply::json(&Machine { enforced: found.as_ref().map(enforced::shown), dns_names, ..shown }))
}

/// `POST /:account/machines/:machine`.
pub(super) async fn act(call: Call) -> Result<Reply, ApiError> {
    let (id, wait) = (call.machine()?, enforced::wanted(&call.query)?);
    let (control, caller, scope) = (call.control(), call.caller(), call.scope());
    let action = call.params.required("action")?;
    match action.as_str() {
        "start" => instances::start(control, &caller, scope, id).await?,
        "stop" => instances::stop(control, &caller, scope, id).await?,
        "reboot" => instances::reboot(control, &caller, scope, id).await?,
        "resize" => {
            let package = call.params.required("package")?;
            instances::resize(control, &caller, scope, id, &package).await?
        }
        "rename" => {
            let name = call.params.required("name")?;
            instances::rename(control, &caller, scope, id, &name).await?
        }
        "enable_firewall" => instances::set_firewall(control, &caller, scope, id, true).await?,
        "disable_firewall" => instances::set_firewall(control, &caller, scope, id, false).await?,
        "enable_deletion_protection" => instances::set_deletion_protection(control, &caller, scope, id, true).await?,
        "disable_deletion_protection" => instances::set_deletion_protection(control, &caller, scope, id, false).await?,
        other => {
            // A deleted or foreign instance is reported before a wrong word.
            instances::get(control, scope, id)?;
            let message = format!(
                "\"{other}\" is not an action; use start, stop, reboot, resize, rename, enable_firewall, \
                 disable_firewall, enable_deletion_protection or disable_deletion_protection"
            );
            return Err(ApiError::invalid("action", message));
        }
    };
    Ok(enforced::answered(&call, id, wait, Reply::empty(StatusCode::ACCEPTED)).await)
}

/// `DELETE /:account/machines/:machine`.
pub(super) async fn delete(call: Call) -> Result<Reply, ApiError> {
    instances::delete(call.control(), &call.caller(), call.scope(), call.machine()?).await?;
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}

/// What to show beyond the usual.
pub(super) fn show(call: &Call) -> Result<Show, ApiError> {
    Ok(Show { credentials: call.params.flag("credentials")?.unwrap_or(false), operator: call.operator })
}

/// The contract's filters; `None` is a filter nothing here can pass.
fn filter(params: &Params, faults: &mut Faults) -> Option<InstanceFilter> {
    let mut filter = InstanceFilter {
        name: faults.take(params.text("name")),
        memory: faults.take(params.number("memory")),
        package: faults.take(params.text("package")),
        image: faults.take(params.parsed("image", "the id of an image")),
        ..InstanceFilter::default()
    };
    match faults.take(params.text("type")).as_deref() {
        None => {}
        Some("smartmachine") => filter.brand = Some(Brand::Lx),
        Some("virtualmachine") => filter.brand = Some(Brand::Kvm),
        Some(other) => faults.add(not_valid("type", other, "smartmachine or virtualmachine")),
    }
    let mut possible = true;
    if let Some(brand) = faults.take(params.text("brand")) {
        let wanted = [Brand::Lx, Brand::Kvm].into_iter().find(|known| known.as_str() == brand);
        possible &= wanted.is_some() && filter.brand.is_none_or(|other| Some(other) == wanted);
        filter.brand = wanted;
    }
    possible &= faults.take(params.flag("docker")) != Some(true);
    possible &= states(params, &mut filter, faults);
    for (key, value) in params.iter() {
        if let Some(tag) = key.strip_prefix("tag.") {
            match scalar(value) {
                Some(value) => filter.tags.push((tag.to_owned(), value)),
                None => faults.add(ApiError::invalid(key, format!("{key} must be one value"))),
            }
        }
    }
    possible.then_some(filter)
}

/// Which states pass; false when none can. Failed instances stay in the list until they are deleted: somebody has to see
/// them.
fn states(params: &Params, filter: &mut InstanceFilter, faults: &mut Faults) -> bool {
    match faults.take(params.scalar("tombstone")).as_deref() {
        None | Some("false" | "0") => {}
        Some("true") => filter.tombstone_ms = Some(i64::MAX),
        Some(minutes) => match minutes.parse::<u32>() {
            Ok(minutes) => filter.tombstone_ms = Some(i64::from(minutes) * 60_000),
            Err(_) => faults.add(not_valid("tombstone", minutes, "true, or a number of minutes")),
        },
    }
    match faults.take(params.text("state")).as_deref() {
        None => {}
        // These three are one in the contract.
        Some("active" | "provisioning" | "stopping") => filter.states = ACTIVE.to_vec(),
        Some("running") => filter.state = Some(PublicState::Running),
        Some("stopped") => filter.state = Some(PublicState::Stopped),
        Some("failed") => filter.state = Some(PublicState::Failed),
        Some("offline") => filter.state = Some(PublicState::Offline),
        Some("destroyed" | "deleted") => filter.state = Some(PublicState::Deleted),
        Some("unknown" | "ready") => return false,
        Some(other) => {
            let known = "provisioning, running, stopping, stopped, offline, failed, active or destroyed";
            faults.add(not_valid("state", other, known));
        }
    }
    true
}

fn not_valid(field: &str, value: &str, known: &str) -> ApiError {
    ApiError::invalid(field, format!("{value} is not a valid {field}; use {known}"))
}

/// Instances with any tag at all, which the records have no index for: page by page through all of them.
fn tagged(call: &Call, filter: &InstanceFilter, limit: usize, offset: usize) -> Vec<InstanceView> {
    let mut found = Vec::new();
    let mut passed = 0;
    loop {
        let page = instances::list(call.control(), call.scope(), filter, PAGE_MAX, passed);
        passed += page.len();
        let last = page.len() < PAGE_MAX;
        found.extend(page.into_iter().filter(|view| !view.instance.tags.is_empty()));
        if last || found.len() >= offset.saturating_add(limit) {
            return found.into_iter().skip(offset).take(limit).collect();
        }
    }
}

/// An answer for what exists only on virtual machines and the like.
pub(super) fn not_here(what: &str) -> ApiError {
    ApiError::new(Code::NotImplemented, format!("this datacenter does not offer {what}"))
}
