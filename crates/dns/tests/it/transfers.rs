//! Zone transfers as `dig` asks for them: who may, what it gets, and what becomes of strangers and bad keys.

use std::{sync::atomic::Ordering, time::Duration};

use dns::{Algorithm, Change, Data, Limits, Policy, Secret, TransferRule, TsigKey};
use tokio::io::AsyncWriteExt;

use crate::{
    dig::raw,
    server::{Running, address, name, set, until, zone},
};

/// The secret of [`key`] as other programs take it.
pub(crate) const SECRET: &str = "c2VjcmV0IG9mIHRoZSB0ZXN0cywgMzIgYnl0ZXMgICE=";

pub(crate) fn key() -> TsigKey {
    let secret = Secret::new(b"secret of the tests, 32 bytes  !".to_vec());
    TsigKey { name: name("transfer"), algorithm: Algorithm::HmacSha256, secret }
}

pub(crate) fn rule(network: &str, key: Option<&str>) -> TransferRule {
    TransferRule { network: network.parse().unwrap(), key: key.map(name) }
}

fn keyed() -> Policy {
    Policy { transfers: vec![rule("127.0.0.0/8", Some("transfer"))], keys: vec![key()], ..Policy::default() }
}

/// The records of a transfer, in their order.
pub(crate) fn records(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| !line.starts_with(';') && !line.is_empty() && !line.contains("TSIG"));
    lines.map(|line| line.split_whitespace().filter(|word| *word != "IN").collect::<Vec<_>>().join(" ")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_zone_begins_and_ends_with_its_own_record() {
    let policy = Policy { transfers: vec![rule("127.0.0.1/32", None)], ..Policy::default() };
    let running = Running::start(zone(), policy).await;
    // Enough for many messages.
    let changes: Vec<Change> = (0..3000)
        .map(|number| Change { name: name(&format!("host-{number}.example")), before: vec![], after: vec![address(1)] })
        .collect();
    running.change(2, &changes);
    let all = records(&raw(running.address(), "example AXFR +onesoa").await);
    assert_eq!(all.iter().filter(|record| record.contains(" SOA ")).count(), 1);
    assert_eq!(all.len(), 1 + 3000 + 117);
    assert!(all.contains(&"host-2999.example. 30 A 192.0.2.1".to_owned()));
    let counters = running.server.counters();
    assert_eq!(counters.transfers_whole.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn differences_are_what_changed_and_no_more() {
    let policy = Policy { transfers: vec![rule("127.0.0.1/32", None)], ..Policy::default() };
    let running = Running::start(zone(), policy).await;
    let change = |of: &str, before: &[u8], after: &[u8]| {
        let sets = |lasts: &[u8]| {
            let records: Vec<Data> = lasts.iter().map(|last| Data::A([192, 0, 2, *last].into())).collect();
            if records.is_empty() { vec![] } else { vec![set(30, &records)] }
        };
        Change { name: name(of), before: sets(before), after: sets(after) }
    };
    running.change(10, &[change("new.example", &[], &[1, 2])]);
    running.change(11, &[change("new.example", &[1, 2], &[2, 3]), change("two.example", &[2], &[])]);
    let soa = |serial: u32| format!("example. 60 SOA ns.example. hostmaster.example. {serial} 3600 600 86400 20");
    let a = |of: &str, last: u8| format!("{of}.example. 30 A 192.0.2.{last}");
    let all = records(&raw(running.address(), "example IXFR=1").await);
    let wanted = [
        soa(11),
        soa(1),
        soa(10),
        a("new", 1),
        a("new", 2),
        soa(10),
        a("new", 1),
        a("two", 2),
        soa(11),
        a("new", 3),
        soa(11),
    ];
    assert_eq!(all, wanted, "of what stays nothing is said");
    assert_eq!(records(&raw(running.address(), "example IXFR=11").await), [soa(11)], "nothing is new");
    assert_eq!(records(&raw(running.address(), "example IXFR=12").await), [soa(11)], "nor for who is ahead");
    let whole = records(&raw(running.address(), "example IXFR=5").await);
    assert!(whole.len() > 100, "a serial that never was: the whole zone");
    let counters = running.server.counters();
    assert_eq!(counters.transfers_differences.load(Ordering::Relaxed), 3);
    assert_eq!(counters.transfers_whole.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_and_bad_keys_get_nothing() {
    let running = Running::start(zone(), keyed()).await;
    let at = running.address();
    let counters = running.server.counters();
    let refused = |text: &str| text.contains("Transfer failed") || text.contains("status: REFUSED");
    assert!(refused(&raw(at, "example AXFR").await), "without the key");
    assert!(refused(&raw(at, "example IXFR=1").await), "without the key");
    assert_eq!(counters.transfers_refused.load(Ordering::Relaxed), 2);
    let with = async |algorithm: &str, key: &str, secret: &str| {
        raw(at, &format!("example AXFR -y {algorithm}:{key}:{secret}")).await
    };
    let good = with("hmac-sha256", "transfer", SECRET).await;
    assert!(records(&good).len() > 100 && !good.contains("tsig verify failure"), "{good}");
    let wrong = with("hmac-sha256", "transfer", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").await;
    assert!(wrong.contains("BADSIG") && records(&wrong).is_empty(), "{wrong}");
    let unknown = with("hmac-sha256", "stranger", SECRET).await;
    assert!(unknown.contains("BADKEY") && records(&unknown).is_empty(), "{unknown}");
    let other = with("hmac-sha512", "transfer", SECRET).await;
    assert!(other.contains("BADKEY") && records(&other).is_empty(), "{other}");
    assert_eq!(counters.transfers_refused.load(Ordering::Relaxed), 5);
    // The rules may change while it runs.
    running.server.set_policy(Policy { transfers: vec![rule("10.0.0.0/8", Some("transfer"))], ..keyed() });
    assert!(refused(&with("hmac-sha256", "transfer", SECRET).await), "from elsewhere");
    // A signed question that is no transfer is answered, and signed.
    let signed = raw(at, &format!("www.example A +norecurse -y hmac-sha256:transfer:{SECRET}")).await;
    assert!(
        signed.contains("192.0.2.1") && signed.contains("TSIG PSEUDOSECTION") && !signed.contains("WARNING"),
        "{signed}"
    );
    let over = raw(at, &format!("example IXFR=0 +notcp -y hmac-sha256:transfer:{SECRET}")).await;
    assert!(records(&over).is_empty(), "{over}");
    assert_eq!(counters.transfers_refused.load(Ordering::Relaxed), 7);
    running.server.set_policy(keyed());
    let serial = raw(at, &format!("example IXFR=0 +notcp -y hmac-sha256:transfer:{SECRET}")).await;
    assert_eq!(records(&serial).iter().filter(|record| record.contains(" SOA ")).count(), 1, "{serial}");
    assert!(records(&serial).len() < 4, "over UDP the serial alone: {serial}");
    let elsewhere = raw(at, &format!("elsewhere AXFR -y hmac-sha256:transfer:{SECRET}")).await;
    assert!(elsewhere.contains("Transfer failed"), "{elsewhere}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_does_not_take_its_zone_is_left() {
    let limits = Limits { transfers: 1, patience: Duration::from_secs(5), ..Limits::default() };
    let policy = Policy { transfers: vec![rule("127.0.0.1/32", None)], ..Policy::default() };
    let running = Running::start_at(([127, 0, 0, 1], 0).into(), zone(), policy, limits).await;
    // More than the kernel keeps for a connection.
    let text = Data::Txt(vec![vec![b'x'; 255]; 100]);
    let changes: Vec<Change> = (0..600)
        .map(|number| Change {
            name: name(&format!("large-{number}.example")),
            before: vec![],
            after: vec![set(1, std::slice::from_ref(&text))],
        })
        .collect();
    running.change(2, &changes);
    let mut stalled = tokio::net::TcpStream::connect(running.address()).await.unwrap();
    let question = b"\0\x19\0\x07\0\0\0\x01\0\0\0\0\0\0\x07example\0\0\xfc\0\x01";
    stalled.write_all(question).await.unwrap();
    let counters = running.server.counters();
    until("the stalled transfer was given up", async || counters.transfers_failed.load(Ordering::Relaxed) == 1).await;
    // The only place for a transfer is free again. What dig prints is more than is kept of it.
    raw(running.address(), "example AXFR +onesoa +noall").await;
    until("another has the whole zone", async || counters.transfers_whole.load(Ordering::Relaxed) == 1).await;
    assert_eq!(counters.transfers_failed.load(Ordering::Relaxed), 1);
    drop(stalled);
}
