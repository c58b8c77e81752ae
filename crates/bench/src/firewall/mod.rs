//! The firewall of a full machine: a thousand rules, five hundred filtered instances.
//!
//! Five questions. What does it cost to work out the document, and how big is it? How long does the real kernel take to
//! follow one change, and does that grow with the number of rules? How long until a hundred machines have said that they enforce it? How long
//! until packets stop on a real machine? And what does a packet pay on its way through a bridge? The first two and the last are asked at several sizes side by side. The kernel's part happens in network namespaces of this process, which end with it; it needs root.

mod closing;
mod ground;
mod packets;
mod spread;
mod world;

use std::time::Instant;

use host::filter::Filters as _;
use model::firewall::{FirewallTarget, diff, directory::changed_sets};

use self::{ground::Ground, world::World};
use crate::report::{Row, Section};

/// Rules of the machines compared.
const SIZES: [u32; 3] = [10, 100, 1_000];
/// Changes of each kind at each size.
const CHANGES: u32 = 20;

/// Runs the benchmark.
pub(crate) fn measure() -> Result<Vec<Section>, String> {
    let mut sections = documents();
    sections.extend(changes()?);
    sections.extend(spread::measure()?);
    sections.extend(closing::measure()?);
    sections.extend(packets::measure()?);
    Ok(sections)
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1_000.0
}

/// What the control plane works out, and what travels.
fn documents() -> Vec<Section> {
    let (mut compiled, mut elsewhere, mut here, mut sizes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for size in SIZES {
        let mut world = World::new(size);
        let mut samples = [Vec::new(), Vec::new(), Vec::new()];
        let mut held = world.compile();
        for round in 0..CHANGES {
            let start = Instant::now();
            std::hint::black_box(world.compile());
            samples[0].push(milliseconds(start));

            let (before, after) = world.tag_elsewhere(round);
            let mut next = held.clone();
            let start = Instant::now();
            next.refresh(&world.directory, &changed_sets(before.as_ref(), Some(&after)));
            std::hint::black_box(diff(&held, &next));
            samples[1].push(milliseconds(start));
            held = next;

            world.tag_here(round);
            let start = Instant::now();
            let next = world.compile();
            std::hint::black_box(diff(&held, &next));
            samples[2].push(milliseconds(start));
            held = next;
        }
        let [all, set, own] = samples;
        let row = |samples| Row { name: format!("{size} rules"), unit: "ms", samples: Ok(samples) };
        compiled.push(row(all));
        elsewhere.push(row(set));
        here.push(row(own));
        sizes.push(size_of(size, &held));
    }
    let section = |about: String, rows| Section { about, rows };
    let (all, on) = (world::EVERYWHERE, world::HERE);
    vec![
        section(
            format!(
                "The document of a machine with {on} filtered instances of {all}, compiled anew: what a rule that comes or goes costs, for each machine it concerns."
            ),
            compiled,
        ),
        section(
            "One tag of an instance on another machine: sets looked up again, and the difference.".to_owned(),
            elsewhere,
        ),
        section("One tag of an instance on this machine: compiled anew, and the difference.".to_owned(), here),
        section(
            "Size of that document as JSON; every rule on every instance it filters would be the pairs.".to_owned(),
            sizes,
        ),
    ]
}

fn size_of(rules: u32, target: &FirewallTarget) -> Row {
    let pairs: usize = target
        .instances
        .values()
        .flat_map(|filter| filter.inbound.iter().chain(&filter.outbound))
        .filter_map(|id| target.layers.get(id))
        .map(|layer| layer.rules.len())
        .sum();
    let bytes = serde_json::to_vec(target).map_or(f64::NAN, |text| text.len() as f64);
    Row::one(format!("{rules} rules, {pairs} pairs"), "KiB", bytes / 1_024.0)
}

/// One change after another in the real kernel, the sizes taking turns.
fn changes() -> Result<Vec<Section>, String> {
    let mut stages = Vec::new();
    for size in SIZES {
        let ground = Ground::new()?;
        let world = World::new(size);
        let start = Instant::now();
        ground.enter(|site| {
            site.filters.apply_firewall(&world.firewall()).map_err(|error| base::errors::chain(&error))
        })?;
        stages.push((size, ground, world, milliseconds(start), [const { Vec::new() }; 4]));
    }
    for round in 0..CHANGES {
        for (_, ground, world, _, samples) in &mut stages {
            for (kind, samples) in samples.iter_mut().enumerate() {
                match kind {
                    0 => drop(world.tag_elsewhere(round)),
                    1 => world.tag_here(round),
                    2 => world.address_here(round),
                    _ => world.rule_changed(round),
                }
                let wanted = world.firewall();
                let taken = ground.enter(|site| {
                    let start = Instant::now();
                    site.filters.apply_firewall(&wanted).map_err(|error| base::errors::chain(&error))?;
                    Ok(milliseconds(start))
                })?;
                samples.push(taken);
            }
        }
    }
    let about = [
        "Time until the kernel enforces one tag more or less of an instance elsewhere: elements of sets.",
        "The same for a tag of an instance here: its two chains too.",
        "The same for an address of an instance here: maps, and the sets of its tags.",
        "The same for the text of one rule.",
    ];
    let mut sections = vec![Section {
        about: format!(
            "Time until the kernel enforces the whole firewall of a machine with {} filtered instances, which had none: at the start of the machine only.",
            world::HERE
        ),
        rows: stages.iter().map(|(size, _, _, whole, _)| Row::one(format!("{size} rules"), "ms", *whole)).collect(),
    }];
    for (kind, about) in about.into_iter().enumerate() {
        let rows = stages.iter().map(|(size, _, _, _, samples)| Row {
            name: format!("{size} rules"),
            unit: "ms",
            samples: Ok(samples[kind].clone()),
        });
        sections.push(Section { about: format!("{about} {CHANGES} changes, sizes in turn; one that no rule here refers to counts too, and costs no transaction: most of those of tags at 10 rules."), rows: rows.collect() });
    }
    Ok(sections)
}
