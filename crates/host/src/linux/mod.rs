//! The doors as the Linux kernel opens them.

pub mod dataset;
pub mod filter;
pub mod hardware;
pub mod imagebuild;
pub mod link;
pub mod machine;
pub mod mounts;
pub mod nflog;
pub mod pool;
pub mod terminal;
pub mod zone;

mod archive;
mod bridge_calls;
mod command;
mod dataset_btrfs;
mod fabric;
mod fabric_wire;
mod filter_rules;
mod filter_watch;
mod firewall;
mod firewall_change;
mod firewall_rules;
mod firewall_terms;
mod forwarding;
mod link_wire;
mod machine_meters;
mod netlink;
mod nft_step;
mod nft_wire;
mod probe;
mod router;
mod rules_kept;
mod sight;
mod traffic;
mod underlay;
mod wires;
