//! A few stories that everybody's change must survive. A seed that failed once gets a name here.

fn survives(seed: u64, steps: usize) {
    let outcome = sim::run(seed, steps);
    assert!(outcome.violations.is_empty(), "{outcome}");
    assert!(outcome.tally.created > 0);
}

#[test]
fn short_stories() {
    for seed in 1..=10 {
        survives(seed, 60);
    }
}

#[test]
fn a_long_story() {
    survives(2026, 600);
}
