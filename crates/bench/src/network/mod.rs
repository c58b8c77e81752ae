//! The network between machines: a tenant's segment as the product carries it, beside plain VXLAN set up by hand, beside nothing.
//!
//! Three questions, one module each: how fast a long path is ([`paths`]), how soon a NIC that was just made is reached
//! ([`first`]), and what a machine pays for the NICs of a large fleet, of which few matter to it ([`crowd`]). Machines and zones are
//! network namespaces of this benchmark alone ([`space`]); nothing of the machine's own network is touched.

mod crowd;
mod first;
mod machine;
mod paths;
mod space;

pub(crate) use crowd::{CHILD, child};

use crate::report::Section;

/// Runs the benchmark.
pub(crate) fn measure() -> Result<Vec<Section>, String> {
    let mut sections = paths::measure()?;
    sections.extend(first::measure()?);
    sections.extend(crowd::measure()?);
    Ok(sections)
}
