//! Metrics: what meters are called outside, and the text they are told in.
//!
//! A metric is a [`Family`] and a function from meters to a number: a row of a table. Rows of instances have the names, units and
//! meanings of Triton's container monitor where Linux counts the same thing ([`instance`]); rows of machines those of Prometheus' node
//! exporter, which everybody's dashboards know, and Triton's for a machine ([`machine`]). Whoever has one subject or many renders them
//! through [`Exposition`], family by family, as the text format asks.

pub mod exposition;
pub mod instance;
pub mod machine;

pub use exposition::{Distribution, Exposition, Family, Kind, Labels, Value};
