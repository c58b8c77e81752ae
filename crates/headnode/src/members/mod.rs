//! The members that keep the store, one beside each headnode: children of the same supervisor, cared for by the headnode.
//!
//! ```text
//!   cluster.json ──► which store is opened at a start          (file)
//!                └─► `neso member`: how etcd is started        (process)
//!   a machine that becomes a headnode ─► what it is given      (kit)
//!   a flow's steps ─► move the store, add, promote, remove     (keep: control's trait over crate etcd)
//!   a majority that is missing ─► who is waited for           (majority)
//!   one member that is left ─► a new beginning; who was left behind hears of it   (recover, left_behind)
//!   every ten seconds ─► addresses, history, file size, alarms, lost data   (tend)
//!   this machine is sick ─► its member leads no more          (hand_over)
//! ```
//! A member lives through its headnode's end, and a headnode through its member's: it talks to another one. Nothing here decides who leads or
//! counts votes; etcd does. Who had better not lead is told to hand over.

pub mod file;
mod hand_over;
mod keep;
mod kit;
pub mod left_behind;
pub mod majority;
pub mod process;
pub mod recover;
mod survivor;
mod tend;
mod unrecovered;

pub use hand_over::HandOver;
pub use keep::{Keeper, open_store};
pub use kit::kit;
pub use tend::TendMembers;
