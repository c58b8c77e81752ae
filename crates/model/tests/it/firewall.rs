//! The firewall: its language, its documents, and that they mean the same.

mod compile;
mod cost;
mod language;
mod whom;
mod worlds;
