//! Packages.

use std::borrow::Cow;

use cloudapi::types::Package;
use control::packages::{self, PackageFilter};

use super::{call::Call, error::ApiError, reply::Reply};

/// `GET /:account/packages`.
pub(super) async fn list(call: Call) -> Result<Reply, ApiError> {
    let params = &call.params;
    let small = |key: &str| -> Result<Option<u32>, ApiError> {
        Ok(params.number(key)?.map(|number| u32::try_from(number).unwrap_or(u32::MAX)))
    };
    let filter = PackageFilter {
        name: params.text("name")?,
        memory: params.number("memory")?,
        disk: params.number("disk")?,
        swap: params.number("swap")?,
        max_processes: small("lwps")?,
        vcpus: small("vcpus")?,
        version: params.text("version")?,
        group: params.text("group")?,
        inactive: false,
    };
    let packages = match params.flag("flexible_disk")? {
        Some(true) => Vec::new(),
        _ => packages::list(call.control(), &filter),
    };
    let shown: Vec<Package<'_>> = packages.iter().map(|package| show(package)).collect();
    Ok(Reply::json(&shown))
}

/// `GET /:account/packages/:package`, by id or name.
pub(super) async fn get(call: Call) -> Result<Reply, ApiError> {
    let package = packages::get(call.control(), call.segment(0))?;
    Ok(Reply::json(&show(&package)))
}

fn show(package: &model::package::Package) -> Package<'_> {
    Package {
        brand: package.brand.map(|brand| Cow::Borrowed(brand.as_str())),
        default: false,
        description: package.description.as_deref().map(Cow::Borrowed),
        disk: package.disk,
        group: package.group.as_deref().map(Cow::Borrowed),
        id: package.id,
        lwps: package.max_processes,
        memory: package.memory,
        name: Cow::Borrowed(&package.name),
        swap: package.swap,
        vcpus: package.vcpus,
        version: Some(Cow::Borrowed(&package.version)),
    }
}
