//! The machine itself: what it is made of, which boot this is.

use model::{meters::MachineMeters, server::Hardware, time::Timestamp};

use crate::error::Result;

/// What the machine is.
pub trait Machine: Send + Sync {
    /// CPU, memory, pool, kernel.
    fn hardware(&self) -> Result<Hardware>;

    /// Host name.
    fn hostname(&self) -> Result<String>;

    /// The kernel's id of this boot: changes with every start of the machine.
    fn boot_id(&self) -> Result<String>;

    /// Whether this boot is being ended: who stops now stops with the machine. False where nobody can tell.
    fn goes_down(&self) -> bool;

    /// What it used since its boot, but for what the other doors know: interfaces and the pool.
    fn meters(&self) -> Result<MachineMeters>;

    /// Wall-clock time.
    fn now(&self) -> Timestamp;
}
