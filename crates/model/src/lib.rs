//! The nouns of a datacenter and the rules between them.
//!
//! Everything here is a value or a function from values to values: no IO, no async, no clock and no randomness that is
//! not an argument. The rest of the workspace reads records out of the store, asks this crate what they mean, and acts.
//!
//! Reading order: [`id`], [`unit`] and [`time`] are the words; [`account`], [`package`], [`network`], [`image`],
//! [`instance`], [`server`], [`headnode`] and [`repeat`] are the records; [`target`] is the document a node receives and the facts it returns, made of
//! [`part`]s, and [`delta`] what is new in one since another;
//! [`state`] says what the public sees of both, [`diff`] what a node does next. Decisions of the control plane are
//! [`placement`], [`layout`] and [`address`], [`compile`] (records to target) and [`firewall`] (rules to what nodes enforce); [`path`] says where a
//! packet stops, [`wire`] how machines try the wires between them, [`clock`] how far their clocks are off; [`role`] whether a machine
//! runs a headnode, [`quorum`] whether it may; [`names`] what instances are called in DNS; [`rules`] says what
//! names, tags and metadata may be. [`meters`] are what is used, [`metrics`] what that is called outside.

pub mod id;
pub mod time;
pub mod unit;

pub mod account;
pub mod headnode;
pub mod image;
pub mod instance;
pub mod network;
pub mod package;
pub mod pairs;
pub mod repeat;
pub mod server;

pub mod address;
pub mod behind;
pub mod changed;
pub mod clock;
pub mod compile;
pub mod delta;
pub mod diff;
pub mod firewall;
pub mod layout;
pub mod meters;
pub mod metrics;
pub mod names;
pub mod part;
pub mod path;
pub mod peers;
pub mod placement;
pub mod quorum;
pub mod rates;
pub mod release;
pub mod role;
pub mod rules;
pub mod state;
pub mod target;
pub mod usage;
pub mod wire;
