//! Headnodes: who they are, and what they keep together.

pub mod members;
