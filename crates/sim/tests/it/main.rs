//! Some stories that everybody's change must survive, and some that nobody has heard yet. A seed that failed once gets a name here.

use sim::Plan;

fn survives(plan: Plan) {
    let outcome = sim::run(plan);
    assert!(outcome.violations.is_empty(), "{outcome}");
    assert!(outcome.tally.created > 0, "{outcome}");
}

#[test]
fn short_stories_of_few_machines() {
    for seed in 1..=8 {
        survives(Plan { seed, nodes: 1 + usize::try_from(seed).unwrap() % 4, steps: 80 });
    }
}

#[test]
fn a_long_story_of_some_machines() {
    survives(Plan { seed: 2026, nodes: 5, steps: 400 });
}

#[test]
fn a_story_of_two_hundred_machines() {
    survives(Plan { seed: 200, nodes: 200, steps: 25 });
}

/// A resize to a smaller size was overtaken, and the old size was given back though somebody else had the room by then.
#[test]
fn stories_of_a_shrink_that_failed() {
    for seed in [1022, 1098, 1102] {
        survives(Plan { seed, nodes: 2, steps: 120 });
    }
}

/// A journal's line was refused by a full disk, and power went before the whole was written.
#[test]
fn a_story_of_a_refused_line() {
    survives(Plan { seed: 1283, nodes: 2, steps: 120 });
}

/// Prints its seeds: what fails here once is played again by the line it prints, and then gets a name.
#[test]
fn stories_nobody_has_heard_yet() {
    for nodes in [3, 12] {
        let seed = base::random::bits() >> 32;
        let plan = Plan { seed, nodes, steps: 80 };
        println!("a new story: cargo xtask sim --seed {seed} --nodes {nodes} --steps 80");
        survives(plan);
    }
}

#[test]
fn a_seed_repeats_its_story_exactly() {
    for plan in [Plan { seed: 3, nodes: 1, steps: 120 }, Plan { seed: 2026, nodes: 30, steps: 40 }] {
        let (one, other) = (sim::run(plan), sim::run(plan));
        assert_eq!(one.diary, other.diary, "the stories of {plan:?} part");
        assert_eq!(one.trace, other.trace, "{plan:?}");
    }
    let other = |seed| sim::run(Plan { seed, nodes: 2, steps: 30 }).trace;
    assert_ne!(other(3), other(4));
}
