//! Endpoints of the contract for things this datacenter does not have yet. Where the truth is "none", the answer is an
//! empty list or 404, exactly as if they were there and unused; asking to make one is answered 501.

use cloudapi::error::Code;
use control::instances;

use super::{call::Call, error::ApiError, machines::not_here, reply::Reply};

/// None of these.
pub(super) async fn list(_call: Call) -> Result<Reply, ApiError> {
    Ok(Reply::json::<[u8; 0]>(&[]))
}

/// Not this one.
pub(super) async fn one(call: Call) -> Result<Reply, ApiError> {
    Err(ApiError::not_found(format!("{} does not exist", call.segment(0))))
}

/// Nobody can make one.
pub(super) async fn unavailable(call: Call) -> Result<Reply, ApiError> {
    Err(not_here(call.operation))
}

/// None of these on this instance.
pub(super) async fn machine_list(call: Call) -> Result<Reply, ApiError> {
    instances::get(call.control(), call.scope(), call.machine()?)?;
    Ok(Reply::json::<[u8; 0]>(&[]).counted(0, None))
}

/// Not this one on this instance.
pub(super) async fn machine_one(call: Call) -> Result<Reply, ApiError> {
    instances::get(call.control(), call.scope(), call.machine()?)?;
    Err(ApiError::not_found(format!("{} does not exist", call.segment(1))))
}

/// Nobody can do this to an instance.
pub(super) async fn machine_unavailable(call: Call) -> Result<Reply, ApiError> {
    instances::get(call.control(), call.scope(), call.machine()?)?;
    Err(not_here(call.operation))
}

/// Containers have no screen.
pub(super) async fn vnc(call: Call) -> Result<Reply, ApiError> {
    instances::get(call.control(), call.scope(), call.machine()?)?;
    Err(ApiError::new(Code::MachineHasNoVnc, "only virtual machines have a screen to look at"))
}

/// Images from instances and from other datacenters.
pub(super) async fn image_create(_call: Call) -> Result<Reply, ApiError> {
    Err(not_here("making images out of instances, or importing them from other datacenters"))
}

/// Not this volume.
pub(super) async fn volume(call: Call) -> Result<Reply, ApiError> {
    Err(ApiError::new(Code::VolumeNotFound, format!("volume {} does not exist", call.segment(0))))
}

/// Kinds of things that could carry a role if there were any.
const TAGGABLE: [&str; 11] = [
    "datacenters",
    "fwrules",
    "images",
    "keys",
    "machines",
    "networks",
    "packages",
    "policies",
    "roles",
    "services",
    "users",
];

/// Roles do not exist, so nothing can carry one.
pub(super) async fn role_tags(call: Call) -> Result<Reply, ApiError> {
    match call.segment(0) {
        kind if kind.is_empty() || TAGGABLE.contains(&kind) => Err(not_here("role tags")),
        kind => Err(ApiError::not_found(format!("/{}/{kind} does not exist", call.account.login))),
    }
}

/// What only a delegated token opens.
pub(super) async fn delegated(_call: Call) -> Result<Reply, ApiError> {
    Err(ApiError::new(Code::NotAuthorized, "this needs a delegated token"))
}
