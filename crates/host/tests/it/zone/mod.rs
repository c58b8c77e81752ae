//! Zones: the shared suite, and what only a real kernel can show.

mod boot;
mod faults;
mod limits;
mod site;
mod walls;
