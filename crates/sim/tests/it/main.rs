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

#[test]
fn a_seed_repeats_its_story_exactly() {
    for seed in [3, 2026] {
        let (one, other) = (sim::run(seed, 120), sim::run(seed, 120));
        assert_eq!(one.diary, other.diary, "the stories of seed {seed} part");
        assert_eq!(one.trace, other.trace, "seed {seed}");
    }
    assert_ne!(sim::run(3, 40).trace, sim::run(4, 40).trace);
}
