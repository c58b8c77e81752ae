//! The datacenters of the cloud and the services beside this one.

use cloudapi::error::Code;
use http::header;

use super::{call::Call, error::ApiError, reply::Reply};

/// `GET /:account/datacenters`.
pub(super) async fn datacenters(call: Call) -> Result<Reply, ApiError> {
    Ok(Reply::json(&call.api.options.datacenters))
}

/// `GET /:account/datacenters/:datacenter`: over there, please.
pub(super) async fn datacenter(call: Call) -> Result<Reply, ApiError> {
    let name = call.segment(0);
    let Some(url) = call.api.options.datacenters.get(name) else {
        return Err(ApiError::not_found(format!("datacenter {name} does not exist")));
    };
    Err(ApiError::new(Code::ResourceMoved, format!("{name} is at {url}")).with_header(header::LOCATION, url))
}

/// `GET /:account/services`.
pub(super) async fn services(call: Call) -> Result<Reply, ApiError> {
    Ok(Reply::json(&call.api.options.services))
}
