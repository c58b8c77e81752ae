//! Messages that nobody who means well sends: answered in the protocol's own way or not at all, and afterwards the server answers as before.

use std::sync::{Arc, atomic::Ordering};

use base::random::Chance;
use dns::{Outcome, Policy, View, Zones};
use proptest::prelude::*;
use tokio::net::UdpSocket;

use crate::{
    dig::dig,
    server::{Running, until, zone},
};

fn zones() -> Zones {
    Zones::new([(View::Everybody, zone())])
}

/// What must hold of every answer.
fn check(message: &[u8], reply: &[u8]) {
    assert!(reply.len() >= 12 && reply.len() <= 1232 + 512);
    assert_eq!(reply[..2], message[..2], "it bears the question's number");
    assert_eq!(reply[2] & 0x80, 0x80, "it is an answer");
    assert_eq!(message[2] & 0x80, 0, "nobody answers an answer");
}

proptest! {
    #[test]
    fn strange_bytes_get_an_answer_or_none(bytes in prop::collection::vec(any::<u8>(), 0..700)) {
        if let Some(reply) = dns::reply(&zones(), &Policy::default(), [192, 0, 2, 9].into(), 1000, &bytes) {
            check(&bytes, &reply);
        }
    }

    #[test]
    fn a_question_for_any_name_and_kind_is_answered(
        labels in prop::collection::vec("[a-z_]{1,5}", 0..4), kind in any::<u16>(), edns in prop::option::of((any::<u16>(), any::<bool>()))
    ) {
        let below: String = labels.iter().map(|label| format!("{label}.")).collect();
        let name: dns::Name = format!("{below}example").parse().unwrap();
        let mut message = vec![1, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns.is_some())];
        message.extend_from_slice(name.as_wire());
        message.extend_from_slice(&kind.to_be_bytes());
        message.extend_from_slice(&[0, 1]);
        if let Some((size, dnssec)) = edns {
            message.extend_from_slice(&[0, 0, 41]);
            message.extend_from_slice(&size.to_be_bytes());
            message.extend_from_slice(&[0, 0, u8::from(dnssec) << 7, 0, 0, 0]);
        }
        let reply = dns::reply(&zones(), &Policy::default(), [192, 0, 2, 9].into(), 1000, &message);
        let reply = reply.expect("a question is answered");
        check(&message, &reply);
        let most = edns.map_or(512, |(size, _)| usize::from(size).clamp(512, 1232));
        prop_assert!(reply.len() <= most);
        prop_assert_eq!(&reply[12..message.len().min(12 + name.as_wire().len() + 4)], &message[12..12 + name.as_wire().len() + 4]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_broken_messages_harms_nothing() {
    let running = Running::start(zone(), Policy::default()).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut chance = Chance::new(7);
    let plain = b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\x01\x03www\x07example\0\0\x01\0\x01\0\0\x29\x04\xd0\0\0\x80\0\0\0";
    let counters = running.server.counters();
    let seen =
        |counters: &Arc<dns::Counters>| counters.udp.load(Ordering::Relaxed) + counters.dropped.load(Ordering::Relaxed);
    let mut sent = 0;
    for _ in 0..5000 {
        let mut message = plain.to_vec();
        for _ in 0..1 + chance.bits() % 4 {
            let at = usize::try_from(chance.bits()).unwrap() % message.len();
            message[at] = chance.bits().to_le_bytes()[0];
        }
        message.truncate(usize::try_from(chance.bits()).unwrap() % (message.len() * 2));
        if socket.send_to(&message, running.address()).await.is_ok() {
            sent += 1;
        }
        if sent % 100 == 0 {
            until("the server has caught up", async || seen(&counters) >= sent).await;
        }
    }
    until("all were looked at", async || seen(&counters) >= sent).await;
    assert!(counters.outcomes[Outcome::Malformed as usize].load(Ordering::Relaxed) > 1000);
    assert_eq!(dig(running.address(), "www.example A").await.answer, ["www.example. 30 A 192.0.2.1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_do_not_talk_to_each_other() {
    // Whoever invents a sender's address makes one server answer another; each answer must end it.
    let (one, two) = (Running::start(zone(), Policy::default()).await, Running::start(zone(), Policy::default()).await);
    let notify = b"\0\x07\x20\0\0\x01\0\0\0\0\0\0\x07example\0\0\x06\0\x01";
    let client = [127, 0, 0, 1].into();
    let refused = dns::reply(&zones(), &Policy::default(), client, 0, notify).unwrap();
    assert_eq!(refused[3] & 15, 5, "we are nobody's secondary");
    assert!(dns::reply(&zones(), &Policy::default(), client, 0, &refused).is_none());
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for running in [&one, &two] {
        socket.send_to(&refused, running.address()).await.unwrap();
    }
    for running in [&one, &two] {
        let counters = running.server.counters();
        until("it was dropped", async || counters.dropped.load(Ordering::Relaxed) == 1).await;
        assert_eq!(counters.udp.load(Ordering::Relaxed), 0);
    }
}
