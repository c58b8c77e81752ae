//! Component tests: the real control plane over a real store, with a machine that is played by hand.

mod accounts;
mod fabrics;
mod firewall;
mod flows;
mod growing;
mod headnodes;
mod histories;
mod images;
mod instances;
mod join;
mod loops;
mod names;
mod nics;
mod placement;
mod pools;
mod races;
mod rebuild;
mod records;
mod repeats;
mod restart;
mod six;
mod targets;
mod turns;
mod usage;
mod world;
