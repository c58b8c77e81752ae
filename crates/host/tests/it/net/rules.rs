//! How filters are applied: by elements, not by reloads; and whole again when somebody took them away.

use host::{
    fake::{Faults, filter::FakeFilters, filter::FilterMachine},
    filter::{BridgeFilter, FilterSet, Filters, NicFilter},
    link::LinkNames,
    linux::filter::LinuxFilters,
};
use model::id::{InstanceId, MacAddr};

use super::site::{in_host, run};

fn example(nics: u32) -> FilterSet {
    let bridge = BridgeFilter {
        subnet: Some("10.88.0.0/16".parse().expect("a subnet")),
        host_address: Some("10.88.0.1".parse().expect("an address")),
        nat: true,
        ..BridgeFilter::default()
    };
    let nics = (1..=nics).map(|suffix| {
        let [_, _, high, low] = suffix.to_be_bytes();
        // Every fourth has IPv6 too.
        let six = (suffix % 4 == 2).then(|| [0xfd00, 0, 0, 0, 0, 0, 0, u16::from_be_bytes([high, low])].into());
        let addresses = std::iter::once([10, 88, high, low].into()).chain(six).collect();
        let filter = NicFilter { instance: InstanceId::random(), addresses };
        (MacAddr::from_suffix(suffix), filter)
    });
    FilterSet { nics: nics.collect(), bridges: [("nb-ext".to_owned(), bridge)].into() }
}

fn elements(set: &str) -> usize {
    run(&["nft", "list", "set", "bridge", "neso", set]).matches("90:b8:d0").count()
}

/// The number the kernel gave our table when it was loaded.
fn loaded() -> String {
    let text = run(&["nft", "-a", "list", "tables", "bridge"]);
    text.lines().find(|line| line.contains("neso")).unwrap_or_default().to_owned()
        + run(&["nft", "-a", "list", "table", "bridge", "neso"]).lines().next().unwrap_or_default()
}

#[test]
fn filters_repeat_and_clear() {
    fn suite(filters: &dyn Filters) {
        filters.clear().expect("nothing to clear");
        filters.apply(&FilterSet::default()).expect("an empty set");
        assert!(filters.intact().expect("a look"));
        filters.apply(&example(3)).expect("a set");
        filters.apply(&example(3)).expect("again");
        filters.apply(&example(1)).expect("a smaller one");
        filters.clear().expect("cleared");
        filters.clear().expect("again");
    }
    suite(&FakeFilters::new(FilterMachine::default(), Faults::default()));
    in_host(|| suite(&LinuxFilters::new("neso", LinkNames::default())));
}

#[test]
fn nics_come_and_go_without_a_reload() {
    in_host(|| {
        let filters = LinuxFilters::new("neso", LinkNames::default());
        filters.apply(&example(1)).expect("a set");
        let first = loaded();
        assert!(first.contains("handle"), "{first}");
        for nics in [2, 40, 39, 300, 3] {
            filters.apply(&example(nics)).expect("a change");
            assert_eq!(elements("nic_ip"), nics as usize, "MACs in the set of {nics}");
            assert_eq!(elements("nic_arp"), 2 * nics as usize);
        }
        assert_eq!(loaded(), first, "the table was never loaded again");
        filters.apply(&example(1000)).expect("more than a batch takes");
        assert_eq!(elements("nic_ip"), 1000);
    });
}

#[test]
fn filters_somebody_took_away_come_back() {
    in_host(|| {
        let filters = LinuxFilters::new("neso", LinkNames::default());
        filters.apply(&example(2)).expect("a set");
        run(&["nft", "flush", "ruleset"]);
        filters.apply(&example(2)).expect("the same set");
        assert_eq!(elements("nic_ip"), 2);
        run(&["nft", "flush", "set", "bridge", "neso", "nic_ip"]);
        filters.apply(&example(1)).expect("a batch the kernel refuses");
        assert_eq!((elements("nic_ip"), elements("nic_arp")), (1, 2));

        // A new agent knows nothing of what the old one loaded.
        LinuxFilters::new("neso", LinkNames::default()).apply(&example(3)).expect("a set");
        assert_eq!(elements("nic_ip"), 3);
    });
}

#[test]
fn what_others_change_is_noticed() {
    in_host(|| {
        let filters = LinuxFilters::new("neso", LinkNames::default());
        assert!(!filters.intact().expect("a look"), "nothing was applied yet");
        for nics in [0, 2, 300] {
            filters.apply(&example(nics)).expect("a set");
            assert!(filters.intact().expect("a look"), "{nics} NICs, just applied");
        }
        run(&["nft", "add", "table", "inet", "theirs"]);
        assert!(filters.intact().expect("a look"), "what others do with their own is theirs");
        let first = "bridge neso nic_ip { \"nv90b8d0000001\" . 90:b8:d0:00:00:01 . 10.88.0.1 }";
        let more = "bridge neso nic_ip { \"nv90b8d0000001\" . 90:b8:d0:00:00:01 . 10.88.9.9 }";
        for damage in [
            "flush ruleset",
            "delete table inet neso",
            "flush chain bridge neso from_nic",
            "flush set bridge neso nic_arp",
            "flush set bridge neso nic_ip6",
            "flush set bridge neso nic_nd",
            "flush set inet neso host_address",
            "flush chain bridge neso advertise",
            "insert rule bridge neso from_nic accept",
            &format!("delete element {first}"),
            &format!("add element {more}"),
        ] {
            run(&["nft", damage]);
            assert!(!filters.intact().expect("a look"), "`{damage}` went unnoticed");
            filters.apply(&example(300)).expect("the same set");
            assert!(filters.intact().expect("a look"), "not whole again after `{damage}`");
            assert_eq!((elements("nic_ip"), elements("nic_arp")), (300, 600), "after `{damage}`");
        }
        run(&["sysctl", "-qw", "net.ipv4.ip_forward=0"]);
        assert!(!filters.intact().expect("a look"), "nothing is routed any more");
        filters.apply(&example(300)).expect("the same set");
        assert!(filters.intact().expect("a look"));
    });
}

#[test]
fn tables_of_others_are_left_alone() {
    in_host(|| {
        run(&["nft", "add", "table", "inet", "theirs"]);
        run(&["nft", "add", "table", "bridge", "theirs"]);
        let before = run(&["nft", "list", "ruleset"]);
        let filters = LinuxFilters::new("neso", LinkNames::default());
        let second = LinuxFilters::new("neso2", LinkNames::new("x").expect("a prefix"));
        filters.apply(&example(2)).expect("a set");
        second.apply(&FilterSet::default()).expect("another datacenter's");
        filters.clear().expect("cleared");
        assert!(run(&["nft", "list", "tables"]).contains("neso2"));
        second.clear().expect("cleared");
        assert_eq!(run(&["nft", "list", "ruleset"]), before);
    });
}
