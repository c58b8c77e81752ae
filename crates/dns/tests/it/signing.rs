//! Signed zones, judged by those who know: Debian's `dnssec-verify` over the whole zone, `delv` over single answers, and BIND as a
//! secondary that takes differences.

use std::collections::BTreeSet;

use base::{
    clock::{Clock as _, SystemClock},
    random::Chance,
};
use dns::{Change, Data, Policy, Signing, Zone, ZoneKey, sign, unsigned};

use crate::{
    dig::raw,
    secondaries::{Kind, Secondary, following, free_port},
    server::{PATIENCE, Running, address, name, set, soa},
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
        let signed = sign(&plain(), &[], &[], 2, &keys, now_s()).unwrap();
        assert!(unsigned(&signed, &keys, now_s(), 10).is_empty());
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
async fn a_change_signs_what_it_touches_and_the_zone_stays_good() {
    let keys = [key(Signing::Ed25519)];
    let mut zone = sign(&plain(), &[], &[], 2, &keys, now_s()).unwrap();
    zone = sign(&zone, &[change("new.example", &[], &[7])], &[], 3, &keys, now_s()).unwrap();
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
        zone = sign(&zone, &changes, &[], zone.serial() + 1, &keys, now_s()).unwrap();
    }
    running.set(zone.clone());
    verify(&running).await;
    for text in held.keys() {
        let answer = judged(&running, &keys[0], &format!("{text} A")).await;
        assert!(answer.contains("; fully validated"), "{text}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secondary_takes_a_signed_zones_differences() {
    let keys = [key(Signing::EcdsaP256)];
    let mut zone = sign(&plain(), &[], &[], 2, &keys, now_s()).unwrap();
    let (directory, port) = (tempfile::Builder::new().prefix("dns-it-").tempdir().unwrap(), free_port());
    let running = Running::start(zone.clone(), following(port)).await;
    let secondary = Secondary::start(Kind::Bind, directory.path(), port, running.address());
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
        zone = sign(&zone, &changes, &[], zone.serial() + 1, &keys, now_s()).unwrap();
        running.set(zone.clone());
        same(&zone).await;
    }
    let counters = running.server.counters();
    let sent = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
    assert!(sent(&counters.transfers_differences) >= 5, "{counters:?}");
    secondary.stop().await;
}

#[test]
fn signatures_are_renewed_before_they_end_and_keys_are_rolled() {
    let (old, new) = (key(Signing::Ed25519), key(Signing::Ed25519));
    let (tag, start) = (old.tag(), 1_795_000_000);
    let mut keys = vec![old];
    let zone = sign(&plain(), &[], &[], 2, &keys, start).unwrap();
    let day = 86_400;
    assert!(unsigned(&zone, &keys, start + 8 * day, 100).is_empty());
    let due = unsigned(&zone, &keys, start + 10 * day, 100);
    assert_eq!(due.len(), 6);
    let part = sign(&zone, &[], &due[..2], 3, &keys, start + 10 * day).unwrap();
    assert!((3..=4).contains(&unsigned(&part, &keys, start + 10 * day, 100).len()), "two, and the apex");
    keys.push(new);
    let both = sign(&zone, &[], &unsigned(&zone, &keys, start, 100), 3, &keys, start).unwrap();
    let count = |zone: &Zone| zone.rrsets(&name("www.example"))[0].signatures().count();
    assert_eq!((count(&zone), count(&both)), (1, 2));
    keys.remove(0);
    assert_ne!(keys[0].tag(), tag);
    let all: Vec<_> = both.names().map(|(name, _)| name.clone()).collect();
    let rolled = sign(&both, &[], &all, 4, &keys, start).unwrap();
    assert_eq!(count(&rolled), 1);
    assert!(unsigned(&rolled, &keys, start, 100).is_empty());
}

#[test]
fn what_cannot_be_signed_is_refused() {
    let keys = [key(Signing::Ed25519)];
    let zone = sign(&plain(), &[], &[], 2, &keys, 0).unwrap();
    let refused = |changes: &[Change]| sign(&zone, changes, &[], 3, &keys, 0).unwrap_err().to_string();
    assert_eq!(sign(&zone, &[], &[], 3, &[], 0).unwrap_err().to_string(), "a zone is signed with one to 4 keys, not 0");
    assert_eq!(
        refused(&[change("www.example", &[9], &[])]),
        "`www.example` has not the records that the change takes away"
    );
    let cut = Change { name: name("sub.example"), before: vec![], after: vec![set(1, &[Data::Ns(name("x"))])] };
    assert_eq!(refused(&[cut]), "`sub.example` has name servers of its own: zones with such parts are not signed");
    assert!(ZoneKey::read(Signing::EcdsaP256, b"no key").is_err());
}
