//! One binary for all of the store's integration tests.

mod crash;
mod engines;
mod full;
mod model;
mod records;
mod stores;
