//! CloudAPI over the real control plane on a store in memory, with requests signed by real keys.

mod changefeed;
mod changes;
mod fabrics;
mod fwrules;
mod monitor;
mod repeats;
mod shapes;
mod stage;
mod stats;
mod strangers;
mod wire;
