//! What every process of the workspace stands on: a clock and a chance that tests can own, tasks with names, queues with limits,
//! shutdown, backoff, error chains, histograms, logging, and the one door (beside `host`) to other programs.
//!
//! Nothing here knows a noun of the datacenter.

pub mod backoff;
pub mod channel;
pub mod clock;
pub mod crash;
pub mod daemon;
pub mod errors;
pub mod histogram;
pub mod log;
pub mod own;
pub mod process;
pub mod random;
pub mod release;
pub mod shutdown;
pub mod task;
pub mod watch;
