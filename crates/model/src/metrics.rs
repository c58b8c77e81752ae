//! Metrics: what meters are called outside, and the text they are told in.
//!
//! A metric is a [`Family`] and a function from meters to a number: a row of a table. Rows of instances have the names, units and
//! meanings of Triton's container monitor where Linux counts the same thing ([`instance`]); rows of machines those of Prometheus' node
//! exporter, which everybody's dashboards know, and Triton's for a machine ([`machine`]); those of the agent are ours ([`agent`]). Whoever has one subject or many renders them
//! through [`Exposition`], family by family, as the text format asks. Which instances are watched together is said by [`groups`].

pub mod agent;
pub mod exposition;
pub mod groups;
pub mod instance;
pub mod machine;

pub use exposition::{Distribution, Exposition, Family, Kind, Labels, Value};

#[cfg(test)]
mod tests {
    use super::{agent, exposition::Row, instance, machine};

    /// The manual's chapter has every metric.
    #[test]
    fn the_manual_names_them_all() {
        let chapter = include_str!("../../../docs/metrics.md");
        fn names<T>(rows: &[Row<T>]) -> impl Iterator<Item = &'static str> {
            rows.iter().map(|row| row.family.name)
        }
        let all = names(instance::ROWS).chain(names(instance::NIC_ROWS)).chain(names(machine::ROWS));
        let all = all.chain(names(machine::CPU_ROWS)).chain(names(machine::DISK_ROWS)).chain(names(machine::LINK_ROWS));
        let all = all.chain(names(agent::ROWS)).chain(names(agent::VERB_ROWS));
        for name in all {
            assert!(chapter.contains(&format!("| `{name}` |")), "docs/metrics.md lacks {name}");
        }
    }
}
