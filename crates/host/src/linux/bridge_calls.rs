//! Whether what bridges carry goes through the rules for what is routed too.
//!
//! The kernel's `br_netfilter` hands bridged frames to the IP hooks: those of every bridge while its switches are on, as they are when it is
//! loaded (or built in), and those of bridges that are told to one by one. Frames of a filtered bridge need that way; all others only pay for it, about a
//! tenth of what a packet costs between two machines, and more with every rule there is. So the switches go off where they concern
//! nobody else: where this module was loaded by us, and where all bridges are ours. Beside a foreign bridge they stay as they are, since Docker for
//! one separates its containers by them; whoever makes such a bridge later turns on what he needs.

use std::path::Path;

use super::{
    command,
    link::{links, open, set_sysctl, sysctl_is},
};
use crate::{
    error::{Error, Result},
    link::LinkNames,
};

/// The switches of all bridges at once; of the calling thread's network namespace.
const SWITCHES: &str = "/proc/sys/net/bridge";

const NAMES: [&str; 3] = ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables"];

/// Makes sure that bridges can be told to hand frames on.
pub(super) fn make_possible() -> Result<()> {
    if Path::new(SWITCHES).exists() {
        return Ok(());
    }
    let loaded = command::run("modprobe", &["br_netfilter"], "");
    if !Path::new(SWITCHES).exists() {
        if let Err(error) = loaded {
            tracing::warn!(error = %base::errors::chain(&error), "failed to load br_netfilter");
        }
        return Err(Error::Lacking {
            what: "the kernel module `br_netfilter`".to_owned(),
            remedy: "install the kernel's modules, or load it (`modprobe br_netfilter`)".to_owned(),
        });
    }
    turn_off()
}

/// Spares all bridges the detour if they are all ours.
pub(super) fn spare(names: &LinkNames) -> Result<()> {
    if !Path::new(SWITCHES).exists() || !is_any_on()? {
        return Ok(());
    }
    let prefix = names.bridge_prefix();
    let foreign =
        links(&mut open()?)?.into_iter().find(|link| link.kind == "bridge" && !link.name.starts_with(&prefix));
    match foreign {
        Some(bridge) => {
            tracing::info!(bridge = bridge.name, "frames of all bridges pass the rules for routed packets; left so");
            Ok(())
        }
        None => turn_off(),
    }
}

fn is_any_on() -> Result<bool> {
    for name in NAMES {
        if !sysctl_is(&format!("net/bridge/{name}"), "0")? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn turn_off() -> Result<()> {
    NAMES.iter().try_for_each(|name| set_sysctl(&format!("net/bridge/{name}"), "0"))
}
