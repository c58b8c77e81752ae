//! Whom a rule concerns, and the addresses behind names.

use std::net::IpAddr;

use model::{
    firewall::{
        Directory, FirewallRule, InstanceView, Selector, SetKey, Sides,
        directory::changed_sets,
        target::{AddressSet, SetId},
    },
    id::AccountId,
    instance::TagValue,
    pairs::Pairs,
};
use proptest::prelude::*;

use super::worlds::{self, account, instance_id, record, v4, v6};

fn view(number: u8, owner: AccountId, tags: &[(&str, TagValue)], addresses: Vec<IpAddr>) -> InstanceView {
    let tags: Pairs<String, TagValue> = tags.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    InstanceView::new(instance_id(number), owner, &tags, addresses, true)
}

fn rule(owner: Option<AccountId>, text: &str) -> FirewallRule {
    record(0, owner, text.parse().unwrap())
}

fn sides(rule: &FirewallRule, instance: &InstanceView) -> (bool, bool) {
    let Sides { inbound, outbound } = rule.sides(instance);
    (inbound, outbound)
}

#[test]
fn sides_follow_owner_tags_and_ids() {
    let (ours, theirs) = (account(1), account(2));
    let role = |role: &str| ("role", TagValue::Text(role.to_owned()));
    let www = view(1, ours, &[role("www")], vec![]);
    let foreign = view(2, theirs, &[role("www")], vec![]);

    let to_www = "FROM any TO tag role = www ALLOW tcp PORT 80";
    assert_eq!(sides(&rule(Some(ours), to_www), &www), (true, false));
    assert_eq!(sides(&rule(Some(ours), to_www), &foreign), (false, false));
    assert_eq!(sides(&rule(None, to_www), &foreign), (true, false));
    assert_eq!(sides(&rule(Some(ours), "FROM any TO tag role = db ALLOW ah"), &www), (false, false));
    assert_eq!(sides(&rule(Some(ours), "FROM tag role TO all vms ALLOW ah"), &www), (true, true));
    assert_eq!(sides(&rule(Some(ours), "FROM tag role TO any BLOCK ah"), &www), (false, true));

    let to_id = format!("FROM ip 10.0.0.1 TO vm {} ALLOW ah", www.id);
    assert_eq!(sides(&rule(Some(ours), &to_id), &www), (true, false));
    assert_eq!(sides(&rule(Some(theirs), &to_id), &www), (false, false));
    assert!(rule(None, &to_id).sides(&www).any());
    assert!(!rule(None, &to_id).sides(&foreign).any());
}

#[test]
fn values_of_tags_compare_as_texts() {
    let tags =
        [("on", TagValue::Bool(true)), ("count", TagValue::Number(5.into())), ("none", TagValue::Text(String::new()))];
    let instance = view(1, account(1), &tags, vec![]);
    for (target, expected) in [
        ("tag on = true", true),
        ("tag on = false", false),
        ("tag count = 5", true),
        ("tag count = \"5.0\"", false),
        ("tag none = \"\"", true),
        ("tag none", true),
        ("tag On", false),
    ] {
        let rule = rule(None, &format!("FROM any TO {target} ALLOW ah"));
        assert_eq!(rule.sides(&instance).inbound, expected, "{target}");
    }
}

#[test]
fn names_stand_for_addresses() {
    let (ours, theirs) = (account(1), account(2));
    let text = |text: &str| TagValue::Text(text.to_owned());
    let mut directory = Directory::new([
        view(1, ours, &[("a", text("x"))], vec![v4(1), v6(1)]),
        view(2, ours, &[("a", text("y"))], vec![v4(2)]),
        view(3, theirs, &[("a", text("x"))], vec![v4(3)]),
    ]);
    let tag = |value: Option<&str>| Selector::Tag { name: "a".to_owned(), value: value.map(str::to_owned) };
    let addresses = |directory: &Directory, scope, selector| directory.addresses(&SetKey { scope, selector });
    let set = |addresses: &[IpAddr]| addresses.iter().copied().collect::<AddressSet>();

    assert_eq!(addresses(&directory, Some(ours), Selector::AllVms), set(&[v4(1), v6(1), v4(2)]));
    assert_eq!(addresses(&directory, None, Selector::AllVms), set(&[v4(1), v6(1), v4(2), v4(3)]));
    assert_eq!(addresses(&directory, Some(ours), tag(None)), set(&[v4(1), v6(1), v4(2)]));
    assert_eq!(addresses(&directory, None, tag(Some("x"))), set(&[v4(1), v6(1), v4(3)]));
    assert_eq!(addresses(&directory, Some(theirs), Selector::Vm(instance_id(3))), set(&[v4(3)]));
    assert_eq!(addresses(&directory, Some(ours), Selector::Vm(instance_id(3))), set(&[]));

    let before = directory.insert(view(2, ours, &[("a", text("x"))], vec![v4(2)]));
    assert_eq!(addresses(&directory, Some(ours), tag(Some("x"))), set(&[v4(1), v6(1), v4(2)]));
    assert_eq!(addresses(&directory, Some(ours), tag(Some("y"))), set(&[]));
    // Only the values differ: whoever names the tag alone, or all, sees the same addresses.
    let changed = changed_sets(before.as_ref(), directory.get(instance_id(2)));
    let selectors: Vec<&Selector> =
        changed.iter().filter(|key| key.scope == Some(ours)).map(|key| &key.selector).collect();
    assert_eq!(selectors, [&tag(Some("x")), &tag(Some("y"))]);
}

#[test]
fn a_record_is_stored_with_its_text() {
    let record = FirewallRule {
        description: Some("pings".to_owned()),
        ..rule(None, "FROM any TO all vms ALLOW icmp TYPE 8 CODE 0")
    };
    let stored = serde_json::to_value(&record).unwrap();
    assert_eq!(stored["rule"], "FROM any TO all vms ALLOW icmp TYPE 8 CODE 0");
    assert_eq!(serde_json::from_value::<FirewallRule>(stored).unwrap(), record);
}

#[test]
fn names_of_sets_last() {
    // Nodes hold these names on their disks: they may not change from one version of the program to the next.
    let key = SetKey { scope: None, selector: Selector::AllVms };
    assert_eq!(SetId::of(&key).to_string(), "s9e5e81a1547354ee838cddd3");
    for text in ["", "s", "l00112233445566778899aabb", "s00112233445566778899AABB", "s+0112233445566778899aabb"] {
        assert!(text.parse::<SetId>().is_err(), "{text}");
    }
    assert_eq!("s00112233445566778899aabb".parse::<SetId>().unwrap().to_string(), "s00112233445566778899aabb");
}

proptest! {
    /// The index answers like a look at everything, whatever happened to it; and who changed says whose addresses did.
    #[test]
    fn the_directory_is_a_search(
        start in worlds::instances(),
        steps in prop::collection::vec((0..worlds::INSTANCES).prop_flat_map(|number| {
            (Just(number), prop::option::of(worlds::instance(number)))
        }), 0..6),
        rules in worlds::rules(),
    ) {
        let keys: Vec<SetKey> = rules
            .iter()
            .flat_map(|rule| {
                let sides = [rule.rule.from(), rule.rule.to()];
                sides.into_iter().flat_map(Selector::of).map(|selector| rule.key(selector)).collect::<Vec<_>>()
            })
            .collect();
        let mut directory = Directory::new(start);
        for (number, after) in steps {
            let old = directory.clone();
            let before = match after.clone() {
                Some(after) => directory.insert(after),
                None => directory.remove(instance_id(number)),
            };
            let changed = changed_sets(before.as_ref(), after.as_ref());
            for key in &keys {
                let searched: AddressSet = directory
                    .iter()
                    .filter(|instance| key.matches(instance))
                    .flat_map(|instance| instance.addresses.clone())
                    .collect();
                prop_assert_eq!(&directory.addresses(key), &searched);
                prop_assert!(changed.contains(key) || old.addresses(key) == searched, "{:?} changed unsaid", key);
            }
        }
    }
}
