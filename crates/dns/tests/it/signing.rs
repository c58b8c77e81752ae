//! Signed zones, judged by those who know: Debian's `dnssec-verify` over the whole zone, `delv` over single answers, and BIND as a
//! secondary that takes differences.

use std::collections::BTreeSet;

use base::{
    clock::{Clock as _, SystemClock},
    random::Chance,
};
use dns::{Change, Data, Duty, Policy, Signing, Zone, ZoneKey, is_due, sign, sign_whole};

use crate::{
    dig::raw,
    secondaries::{Kind, Secondary, following, free_port},
    server::{PATIENCE, Running, address, name, set, soa, until},
    transfers::{SECRET, records, rule},
};

fn now_s() -> u64 {
    u64::try_from(SystemClock.now_ms() / 1000).unwrap()
}

fn key(signing: Signing) -> ZoneKey {
    ZoneKey::read(signing, &ZoneKey::generate(signing).unwrap()).unwrap()
}

/// A zone without parts of its own, at serial 1.
fn plain() -> Zone {
    let names = [
        ("example", vec![set(3600, &[Data::Ns(name("ns.example"))])]),
        ("ns.example", vec![set(3600, &[Data::A([127, 0, 0, 1].into())])]),
        ("www.example", vec![address(1), set(30, &[Data::Txt(vec![b"hello".to_vec()])])]),
        ("alias.example", vec![set(30, &[Data::Cname(name("www.example"))])]),
        ("a.b.c.example", vec![address(3)]),
        ("strange.example", vec![set(30, &[Data::Other(dns::Kind(65_280), vec![1, 2, 3])])]),
    ];
    Zone::load(name("example"), soa(), 1, names.map(|(text, rrsets)| (name(text), rrsets)), []).unwrap()
}

fn change(of: &str, before: &[u8], after: &[u8]) -> Change {
    let sets = |all: &[u8]| all.iter().map(|last| address(*last)).collect();
    Change { name: name(of), before: sets(before), after: sets(after) }
}

fn open() -> Policy {
    Policy { transfers: vec![rule("127.0.0.1/32", None)], ..Policy::default() }
}

/// Debian's judgement of the whole zone.
async fn verify(running: &Running) {
    let directory = tempfile::Builder::new().prefix("dns-it-").tempdir().unwrap();
    let file = directory.path().join("zone");
    std::fs::write(&file, raw(running.address(), "example AXFR +onesoa").await).unwrap();
    let mut command = base::process::command("dnssec-verify");
    command.args(["-o", "example", "-z"]).arg(&file);
    let output = base::process::output(command, PATIENCE).await.expect("the tests need Debian's `bind9-utils`");
    let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.success() && text.contains("Zone fully signed"), "{text}");
}

/// What `delv` says of a question.
async fn judged(running: &Running, key: &ZoneKey, question: &str) -> String {
    let directory = tempfile::Builder::new().prefix("dns-it-").tempdir().unwrap();
    let file = directory.path().join("anchors");
    let record = key.parent_record(&name("example"));
    let words: Vec<&str> = record.split(' ').collect();
    let anchor =
        format!("trust-anchors {{ example. static-ds {} {} {} \"{}\"; }};\n", words[3], words[4], words[5], words[6]);
    std::fs::write(&file, anchor).unwrap();
    let mut command = base::process::command("delv");
    command
        .args([&format!("@{}", running.address().ip()), "-p", &running.address().port().to_string(), "-a"])
        .arg(&file);
    command.arg("+root=example").args(question.split(' '));
    let output = base::process::output(command, PATIENCE).await.unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_zone_is_good_with_either_way_of_signing() {
    for signing in [Signing::EcdsaP256, Signing::Ed25519] {
        let keys = [key(signing)];
        let signed = sign(&plain(), &[], 2, &keys, now_s()).unwrap();
        assert!(!is_due(&signed, &keys, now_s()));
        let running = Running::start(signed, open()).await;
        verify(&running).await;
        for question in
            ["www.example A", "www.example TXT", "alias.example A", "example SOA", "example DNSKEY", "a.b.c.example A"]
        {
            let text = judged(&running, &keys[0], question).await;
            assert!(text.contains("; fully validated"), "{signing:?} {question}: {text}");
        }
        // No such kind, no such name, a name that only has names below, one before the first and one after the last.
        let denied = [
            "www.example AAAA",
            "nobody.example A",
            "b.c.example A",
            "0.example A",
            "zzz.www.example A",
            "zzzz.example A",
        ];
        for question in denied {
            let text = judged(&running, &keys[0], question).await;
            assert!(text.contains("; negative response, fully validated"), "{signing:?} {question}: {text}");
        }
        let other = judged(&running, &key(signing), "www.example A").await;
        assert!(!other.contains("fully validated"), "with another key: {other}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_star_stands_for_is_shown_to_be_so() {
    let keys = [key(Signing::Ed25519)];
    let star = Change {
        name: name("*.stars.example"),
        before: Vec::new(),
        after: vec![address(9), set(30, &[Data::Txt(vec![b"any".to_vec()])])],
    };
    let alias = Change {
        name: name("*.alias-stars.example"),
        before: Vec::new(),
        after: vec![set(30, &[Data::Cname(name("www.example"))])],
    };
    let one = change("one.stars.example", &[], &[8]);
    let signed = sign(&plain(), &[star, alias, one], 2, &keys, now_s()).unwrap();
    let running = Running::start(signed, open()).await;
    verify(&running).await;
    for question in ["x.stars.example A", "x.y.stars.example TXT", "one.stars.example A", "x.alias-stars.example A"] {
        let text = judged(&running, &keys[0], question).await;
        assert!(text.contains("; fully validated"), "{question}: {text}");
    }
    for question in ["x.stars.example AAAA", "stars.example A", "x.one.stars.example A", "one.stars.example TXT"] {
        let text = judged(&running, &keys[0], question).await;
        assert!(text.contains("; negative response, fully validated"), "{question}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_signs_what_it_touches_and_the_zone_stays_good() {
    let keys = [key(Signing::Ed25519)];
    let mut zone = sign(&plain(), &[], 2, &keys, now_s()).unwrap();
    zone = sign(&zone, &[change("new.example", &[], &[7])], 3, &keys, now_s()).unwrap();
    let touched: BTreeSet<String> =
        zone.since(2).unwrap().flat_map(|one| &one.changes).map(|one| one.name.to_string()).collect();
    let wanted = ["new.example", "a.b.c.example"].map(str::to_owned);
    assert_eq!(touched, BTreeSet::from(wanted), "itself, and the one before it");

    let running = Running::start(zone.clone(), open()).await;
    let mut chance = Chance::new(3);
    let mut held = std::collections::BTreeMap::from([("new.example".to_owned(), 7_u8)]);
    for _ in 0..60 {
        let mut changes: Vec<Change> = Vec::new();
        for _ in 0..1 + chance.bits() % 4 {
            let text = format!("n{}.m{}.example", chance.bits() % 12, chance.bits() % 2);
            if changes.iter().any(|change| change.name == name(&text)) {
                continue;
            }
            let before: Vec<u8> = held.remove(&text).into_iter().collect();
            let last = chance.bits().to_be_bytes()[0];
            let after: Vec<u8> = if chance.bits().is_multiple_of(3) { vec![] } else { vec![last] };
            held.extend(after.iter().map(|last| (text.clone(), *last)));
            changes.push(change(&text, &before, &after));
        }
        zone = sign(&zone, &changes, zone.serial() + 1, &keys, now_s()).unwrap();
    }
    running.set(zone.clone());
    verify(&running).await;
    for text in held.keys() {
        let answer = judged(&running, &keys[0], &format!("{text} A")).await;
        assert!(answer.contains("; fully validated"), "{text}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secondaries_take_a_signed_zones_differences() {
    for kind in [Kind::Bind, Kind::Knot, Kind::Nsd] {
        takes_differences(kind).await;
    }
}

async fn takes_differences(kind: Kind) {
    let keys = [key(Signing::EcdsaP256)];
    let mut zone = sign(&plain(), &[], 2, &keys, now_s()).unwrap();
    let (directory, port) = (tempfile::Builder::new().prefix("dns-it-").tempdir().unwrap(), free_port());
    let running = Running::start(zone.clone(), following(port)).await;
    let secondary = Secondary::start(kind, directory.path(), port, running.address());
    let same = async |zone: &Zone| {
        secondary.reaches(zone.serial(), directory.path()).await;
        let key = format!("-y hmac-sha256:transfer:{SECRET}");
        let ours = records(&raw(running.address(), &format!("example AXFR +onesoa {key}")).await);
        let ours: BTreeSet<String> = ours.into_iter().map(|record| record.to_lowercase()).collect();
        assert_eq!(secondary.records().await, ours);
        assert!(ours.iter().any(|record| record.contains(" rrsig nsec ")), "{ours:?}");
    };
    same(&zone).await;
    for last in 1..6 {
        let before: Vec<u8> = if last == 1 { vec![] } else { vec![last - 1] };
        let other = format!("n{last}.example");
        let changes = [change("new.example", &before, &[last]), change(&other, &[], &[last])];
        zone = sign(&zone, &changes, zone.serial() + 1, &keys, now_s()).unwrap();
        running.set(zone.clone());
        same(&zone).await;
    }
    let counters = running.server.counters();
    let sent = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
    assert!(sent(&counters.transfers_differences) >= 5, "{counters:?}");
    let serial = Some(zone.serial());
    until("the secondary is known as it is", async || {
        let peers = running.server.peers();
        // The last that went to this address is what we fetched ourselves to compare it.
        peers.len() == 1 && (peers[0].has, peers[0].told, peers[0].was_whole) == (serial, serial, Some(true))
    })
    .await;
    secondary.stop().await;
}

/// Every record with its signatures, the zone's own among them.
fn everything(zone: &Zone) -> BTreeSet<(String, String, Vec<Vec<u8>>)> {
    let names = zone.names().flat_map(|(name, rrsets)| rrsets.iter().map(move |rrset| (name, rrset)));
    let sets = names.map(|(name, rrset)| {
        (name.to_string(), format!("{rrset:?}"), rrset.signatures().map(<[u8]>::to_vec).collect())
    });
    let own = zone.soa_signatures().map(<[u8]>::to_vec).collect();
    sets.chain([(zone.apex().to_string(), zone.serial().to_string(), own)]).collect()
}

#[test]
fn what_came_before_changes_nothing() {
    // One has signed every change for three weeks, the other begins at the end with the same names: neither could be told from the other.
    let secret = ZoneKey::generate(Signing::Ed25519).unwrap();
    let keys = [ZoneKey::read(Signing::Ed25519, &secret).unwrap()];
    let (mut bare, mut zone) = (plain(), sign(&plain(), &[], 2, &keys, 1_795_000_000).unwrap());
    let (mut chance, mut now) = (Chance::new(11), 1_795_000_000);
    for serial in 3..60 {
        let text = format!("n{}.m{}.example", chance.bits() % 9, chance.bits() % 2);
        let before = bare.rrsets(&name(&text)).to_vec();
        let after =
            if chance.bits().is_multiple_of(3) { vec![] } else { vec![address(chance.bits().to_be_bytes()[0])] };
        let changes = [Change { name: name(&text), before, after }];
        // Most changes come soon after one another; now and then nothing happens for long.
        now += if serial % 4 == 0 { 35 * 3600 } else { u64::from(chance.bits().to_be_bytes()[0]) * 11 };
        bare = bare.with(serial, &changes).unwrap();
        zone = sign(&zone, &changes, serial, &keys, now).unwrap();
        let names: Vec<_> = bare.names().map(|(name, rrsets)| (name.clone(), rrsets.to_vec())).collect();
        let loaded = Zone::load(name("example"), soa(), serial - 1, names, []).unwrap();
        let anew = sign(&loaded, &[], serial, &keys, now).unwrap();
        assert_eq!(everything(&zone), everything(&anew), "at serial {serial}");
    }
}

#[test]
fn a_zone_that_was_changed_otherwise_is_looked_through() {
    let keys = [key(Signing::Ed25519)];
    let signed = sign(&plain(), &[], 2, &keys, 1_795_000_000).unwrap();
    let other = signed.with(3, &[change("new.example", &[], &[9])]).unwrap();
    assert!(is_due(&other, &keys, 1_795_000_000));
    let again = sign(&other, &[], 4, &keys, 1_795_000_000).unwrap();
    assert!(!is_due(&again, &keys, 1_795_000_000));
    assert_eq!(signers(&again, "new.example", dns::Kind::A), [keys[0].tag()]);
}

#[test]
fn signatures_are_renewed_before_they_end_and_keys_are_rolled() {
    let (old, new) = (key(Signing::Ed25519), key(Signing::Ed25519));
    let (tag, start, day) = (old.tag(), 1_795_000_000, 86_400);
    let mut keys = vec![old];
    let mut zone = sign(&plain(), &[], 2, &keys, start).unwrap();
    assert!(!is_due(&zone, &keys, start));
    let mut renewed = Vec::new();
    for half_day in 1..=16 {
        let now = start + half_day * day / 2;
        let serial = zone.serial() + 1;
        zone = sign(&zone, &[], serial, &keys, now).unwrap();
        renewed.push(zone.since(serial - 1).unwrap().map(|one| one.changes.len()).sum::<usize>());
        for (name, rrsets) in zone.names() {
            for signature in rrsets.iter().flat_map(|rrset| rrset.signatures()) {
                let time = |at: usize| u64::from(u32::from_be_bytes(signature[at..at + 4].try_into().unwrap()));
                assert!(time(12) < now && time(8) > now + 9 * day, "{name} is good from {} to {}", time(12), time(8));
            }
        }
    }
    assert_eq!(renewed.iter().sum::<usize>(), 12, "each of six names every four days: {renewed:?}");
    assert!(renewed.iter().all(|names| *names < 6), "not all at once: {renewed:?}");
    let now = start + 8 * day;
    keys.push(new);
    assert!(is_due(&zone, &keys, now));
    let count = |zone: &Zone| zone.rrsets(&name("www.example"))[0].signatures().count();
    let both = sign(&zone, &[], zone.serial() + 1, &keys, now).unwrap();
    assert_eq!((count(&zone), count(&both)), (1, 2));
    keys.remove(0);
    assert_ne!(keys[0].tag(), tag);
    let rolled = sign(&both, &[], both.serial() + 1, &keys, now).unwrap();
    assert_eq!(count(&rolled), 1);
    assert!(!is_due(&rolled, &keys, now));
}

/// Who signs a set of a name, by tags.
fn signers(zone: &Zone, of: &str, kind: dns::Kind) -> Vec<u16> {
    let rrset = zone.rrsets(&name(of)).iter().find(|rrset| rrset.kind() == kind).unwrap();
    rrset.signatures().map(|signature| u16::from_be_bytes([signature[16], signature[17]])).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_key_does_its_duty() {
    let secrets: Vec<Vec<u8>> = (0..4).map(|_| ZoneKey::generate(Signing::Ed25519).unwrap()).collect();
    let key = |at: usize, duty| ZoneKey::with_duty(Signing::Ed25519, &secrets[at], duty).unwrap();
    let start = [key(0, Duty::Keys), key(1, Duty::Records)];
    let zone = sign_whole(&plain(), &start, now_s()).unwrap();
    assert_eq!((zone.serial(), zone.since(0).is_none()), (1, true), "nothing leads to it");
    assert_eq!(signers(&zone, "example", dns::Kind::DNSKEY), [start[0].tag()]);
    assert_eq!(signers(&zone, "www.example", dns::Kind::A), [start[1].tag()]);
    assert!(!is_due(&zone, &start, now_s()));

    // One that is only shown changes the set of keys and nothing else.
    let announced = [key(0, Duty::Keys), key(1, Duty::Records), key(2, Duty::Shown)];
    assert!(is_due(&zone, &announced, now_s()));
    let next = sign(&zone, &[], 2, &announced, now_s()).unwrap();
    let touched: Vec<String> =
        next.since(1).unwrap().flat_map(|one| &one.changes).map(|one| one.name.to_string()).collect();
    assert_eq!(touched, ["example"]);
    let running = Running::start(next.clone(), open()).await;
    verify(&running).await;

    // The next signs, with a second key for the keys.
    let both = [key(0, Duty::Keys), key(1, Duty::Shown), key(2, Duty::Records), key(3, Duty::Keys)];
    let rolled = sign(&next, &[], 3, &both, now_s()).unwrap();
    assert_eq!(signers(&rolled, "www.example", dns::Kind::A), [both[2].tag()]);
    assert_eq!(signers(&rolled, "example", dns::Kind::DNSKEY), [both[0].tag(), both[3].tag()]);
    running.set(rolled);
    verify(&running).await;
    for anchor in [&both[0], &both[3]] {
        let text = judged(&running, anchor, "www.example A").await;
        assert!(text.contains("; fully validated"), "{text}");
    }
    let refused = |keys: &[ZoneKey]| sign(&next, &[], 3, keys, now_s()).unwrap_err().to_string();
    assert_eq!(refused(&[key(0, Duty::Keys), key(1, Duty::Shown)]), "no key signs the zone's records");
    assert_eq!(refused(&[key(1, Duty::Records)]), "no key signs the zone's keys");
}

#[test]
fn what_cannot_be_signed_is_refused() {
    let keys = [key(Signing::Ed25519)];
    let zone = sign(&plain(), &[], 2, &keys, 0).unwrap();
    let refused = |changes: &[Change]| sign(&zone, changes, 3, &keys, 0).unwrap_err().to_string();
    assert_eq!(sign(&zone, &[], 3, &[], 0).unwrap_err().to_string(), "a zone is signed with one to 8 keys, not 0");
    assert_eq!(
        refused(&[change("www.example", &[9], &[])]),
        "`www.example` has not the records that the change takes away"
    );
    let cut = Change { name: name("sub.example"), before: vec![], after: vec![set(1, &[Data::Ns(name("x"))])] };
    assert_eq!(refused(&[cut]), "`sub.example` has name servers of its own: zones with such parts are not signed");
    assert!(ZoneKey::read(Signing::EcdsaP256, b"no key").is_err());
}
