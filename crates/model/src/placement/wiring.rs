//! Which network of a pool an instance gets: one that its machine is wired to.
//!
//! A pool is several networks that are asked for as one, and they may lie on different NIC tags (one per rack, say). So the network
//! is not chosen before the machine is: a machine passes if each pool that is asked for has a network on one of its tags, no network
//! twice, and when the machine is chosen the same function says which.

use std::collections::BTreeSet;

use crate::id::NetworkId;

/// One NIC that may be on any of several networks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    /// The pool's name, for reasons.
    pub pool: String,
    /// What it may be on, the first that fits: networks that have addresses to give, each with its NIC tag.
    pub networks: Vec<(NetworkId, String)>,
}

/// Gives each of `choices` a network of its own on one of the tags in `wired`, or on any where a machine does not say which it has.
/// Earlier choices get what stands first in their lists where that is possible for all.
///
/// # Errors
/// The first choice for which there is none.
pub fn assign<'a>(choices: &'a [Choice], wired: Option<&BTreeSet<String>>) -> Result<Vec<NetworkId>, &'a Choice> {
    // Augmenting paths: as many rounds as choices, each looking at every list once at most.
    let mut given: Vec<Option<NetworkId>> = vec![None; choices.len()];
    for (position, choice) in choices.iter().enumerate() {
        if !settle(choices, wired, position, &mut given, &mut BTreeSet::new()) {
            return Err(choice);
        }
    }
    Ok(given.into_iter().flatten().collect())
}

/// Finds `position` a network, moving others to another of theirs if need be.
fn settle(
    choices: &[Choice],
    wired: Option<&BTreeSet<String>>,
    position: usize,
    given: &mut Vec<Option<NetworkId>>,
    tried: &mut BTreeSet<NetworkId>,
) -> bool {
    let reachable = |tag: &String| wired.is_none_or(|wired| wired.contains(tag));
    let networks = || choices[position].networks.iter().filter(|(_, tag)| reachable(tag)).map(|(id, _)| *id);
    // A free one first, so that nobody moves without need.
    if let Some(free) = networks().find(|id| !given.contains(&Some(*id))) {
        given[position] = Some(free);
        return true;
    }
    for id in networks() {
        let Some(holder) = given.iter().position(|held| *held == Some(id)).filter(|_| tried.insert(id)) else {
            continue;
        };
        if settle(choices, wired, holder, given, tried) {
            given[position] = Some(id);
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn network(number: u8) -> NetworkId {
        NetworkId::new(uuid::Uuid::from_u128(number.into()))
    }

    fn choice(networks: &[(u8, &str)]) -> Choice {
        let networks = networks.iter().map(|(id, tag)| (network(*id), (*tag).to_owned())).collect();
        Choice { pool: "p".to_owned(), networks }
    }

    fn wired(tags: &[&str]) -> BTreeSet<String> {
        tags.iter().map(|tag| (*tag).to_owned()).collect()
    }

    #[test]
    fn the_first_that_the_machine_is_wired_to() {
        let racks = [choice(&[(1, "rack1"), (2, "rack2"), (3, "rack2")])];
        assert_eq!(assign(&racks, None), Ok(vec![network(1)]));
        assert_eq!(assign(&racks, Some(&wired(&["rack2"]))), Ok(vec![network(2)]));
        assert_eq!(assign(&racks, Some(&wired(&["rack3"]))), Err(&racks[0]));
        assert_eq!(assign(&[], Some(&wired(&[]))), Ok(vec![]));
        // The second moves the first to its other one.
        let two = [choice(&[(1, "a"), (2, "a")]), choice(&[(1, "a")])];
        assert_eq!(assign(&two, None), Ok(vec![network(2), network(1)]));
        let twice = [choice(&[(1, "a")]), choice(&[(1, "a")])];
        assert_eq!(assign(&twice, None), Err(&twice[1]));
    }

    proptest! {
        #[test]
        fn whenever_there_is_a_way_it_is_found(
            lists in prop::collection::vec(prop::collection::vec((0_u8..5, 0_u8..3), 0..4), 0..5),
            tags in prop::collection::btree_set(0_u8..3, 0..3),
        ) {
            // A network has one tag: its number decides.
            let tag = |number: u8| format!("t{}", number % 3);
            let choices: Vec<Choice> = lists
                .iter()
                .map(|list| Choice {
                    pool: String::new(),
                    networks: list.iter().map(|(number, _)| (network(*number), tag(*number))).collect(),
                })
                .collect();
            let wired: BTreeSet<String> = tags.iter().map(|number| format!("t{number}")).collect();
            let fits = |choice: &Choice, id: NetworkId| {
                choice.networks.iter().any(|(other, tag)| *other == id && wired.contains(tag))
            };
            match assign(&choices, Some(&wired)) {
                Ok(given) => {
                    prop_assert_eq!(given.len(), choices.len());
                    prop_assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), given.len(), "no network twice");
                    prop_assert!(choices.iter().zip(&given).all(|(choice, id)| fits(choice, *id)));
                }
                Err(_) => {
                    let ways = (0..6_usize.pow(u32::try_from(choices.len()).unwrap())).any(|mut code| {
                        let mut used = BTreeSet::new();
                        choices.iter().all(|choice| {
                            let id = network(u8::try_from(code % 6).unwrap());
                            code /= 6;
                            fits(choice, id) && used.insert(id)
                        })
                    });
                    prop_assert!(!ways, "there is a way");
                }
            }
        }
    }
}
