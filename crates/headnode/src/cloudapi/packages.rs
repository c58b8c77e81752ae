//! Packages.

use std::borrow::Cow;

use cloudapi::types::Package;
use control::packages::{self, PackageFilter};

use super::{
    call::Call,
    error::{ApiError, Faults},
    reply::Reply,
};

/// `GET /:account/packages`.
pub(super) async fn list(call: Call) -> Result<Reply, ApiError> {
    let params = &call.params;
    let mut faults = Faults::default();
    let filter = PackageFilter {
        name: faults.take(params.text("name")),
        memory: faults.take(params.number("memory")),
        disk: faults.take(params.number("disk")),
        swap: faults.take(params.number("swap")),
        max_processes: faults.take(params.number("lwps")).map(|number| u32::try_from(number).unwrap_or(u32::MAX)),
        vcpus: faults.take(params.number("vcpus")).map(|number| u32::try_from(number).unwrap_or(u32::MAX)),
        version: faults.take(params.text("version")),
        group: faults.take(params.text("group")),
        inactive: false,
    };
    let flexible = faults.take(params.flag("flexible_disk"));
    faults.finish()?;
    let packages = match flexible {
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
