//! Routing IPv6 on a machine that may itself be configured by router advertisements.
//!
//! The kernel lets a machine that forwards IPv6 ignore advertisements, unless an interface is told to heed them all the same: it would
//! lose its own address and default route some minutes after its first tenant got IPv6. So interfaces that heed them are told so
//! first. Networks of ours never do: nobody on them is a router but the machine.

use std::fs;

use super::link::{set_sysctl, sysctl_is};
use crate::error::{Error, Result};

/// Whether the machine routes IPv6 at all.
pub(super) const FORWARDING6: &str = "net/ipv6/conf/all/forwarding";

/// Where each interface has its IPv6 parameters.
const INTERFACES: &str = "net/ipv6/conf";

/// Makes the machine route IPv6, and go on being configured as it was.
pub(super) fn enable6() -> Result<()> {
    if sysctl_is(FORWARDING6, "1")? {
        return Ok(());
    }
    let path = format!("/proc/sys/{INTERFACES}");
    let listed = fs::read_dir(&path).map_err(|source| Error::os(format!("list `{path}`"), source))?;
    for entry in listed.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let heeds = format!("{INTERFACES}/{name}/accept_ra");
        // An interface may go away meanwhile.
        if matches!(sysctl_is(&heeds, "1"), Ok(true)) {
            match set_sysctl(&heeds, "2") {
                Err(Error::Os { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
    }
    set_sysctl(FORWARDING6, "1")
}
