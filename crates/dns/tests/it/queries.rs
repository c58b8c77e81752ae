//! Questions and answers.

use std::sync::{Arc, atomic::Ordering};

use dns::{Change, Limits, Outcome, Policy, RateLimit, View, Zones};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
};

use crate::{
    dig::dig,
    server::{PATIENCE, Running, address, name, until, zone},
};

const SOA: &str = "example. 20 SOA ns.example. hostmaster.example. 1 3600 600 86400 20";

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_is_answered_over_both_transports() {
    let running = Running::start(zone(), Policy::default()).await;
    let at = running.address();
    for transport in ["+notcp", "+tcp"] {
        let good = async |question: &str| {
            let answer = dig(at, &format!("{question} {transport}")).await;
            assert_eq!(answer.status, "NOERROR", "{}", answer.text);
            assert!(answer.has_flag("aa") && !answer.has_flag("ra"), "{}", answer.text);
            answer
        };
        assert_eq!(good("www.example A").await.answer, ["www.example. 30 A 192.0.2.1"]);
        assert_eq!(good("www.example AAAA").await.answer, ["www.example. 30 AAAA 2001:db8::1"]);
        assert_eq!(good("www.example TXT").await.answer, ["www.example. 30 TXT \"hello\""]);
        assert_eq!(good("strange.example TYPE65280").await.answer, [r"strange.example. 30 TYPE65280 \# 3 010203"]);
        assert_eq!(good("example NS").await.answer, ["example. 3600 NS ns.example."]);
        assert_eq!(good("example NS").await.additional, ["ns.example. 3600 A 127.0.0.1"]);
        assert_eq!(good("example SOA").await.answer, [SOA.replace("example. 20", "example. 60")]);
        let service = good("_http._tcp.web.example SRV").await;
        assert_eq!(service.answer.len(), 3);
        let mut additional = service.additional.clone();
        additional.sort();
        let wanted = ["two.example. 30 A 192.0.2.2", "www.example. 30 A 192.0.2.1", "www.example. 30 AAAA 2001:db8::1"];
        assert_eq!(additional, wanted, "each once");
        let any = good("www.example ANY").await;
        assert_eq!(any.answer.len(), 1, "one set is enough: {}", any.text);
        let chain = good("chain.example A").await.answer;
        let followed = [
            "chain.example. 30 CNAME alias.example.",
            "alias.example. 30 CNAME www.example.",
            "www.example. 30 A 192.0.2.1",
        ];
        assert_eq!(chain, followed);
        assert_eq!(good("alias.example CNAME").await.answer, ["alias.example. 30 CNAME www.example."]);
        assert_eq!(good("out.example A").await.answer, ["out.example. 30 CNAME www.elsewhere."]);
        assert!(good("loop.example A").await.answer.len() < 20);
        // Nothing of the kind: no error, and for how long that holds.
        for question in ["www.example MX", "www.example TYPE65281", "b.c.example A", "example A", "ns.example DS"] {
            let nothing = good(question).await;
            assert_eq!(
                (nothing.answer.len(), nothing.authority.as_slice()),
                (0, [SOA.to_owned()].as_slice()),
                "{question}"
            );
        }
        let missing = dig(at, &format!("nobody.www.example A {transport}")).await;
        assert_eq!((missing.status.as_str(), missing.authority.as_slice()), ("NXDOMAIN", [SOA.to_owned()].as_slice()));
        assert!(missing.has_flag("aa"));
    }
    let counters = running.server.counters();
    assert!(counters.udp.load(Ordering::Relaxed) >= 19 && counters.tcp.load(Ordering::Relaxed) >= 19);
    assert_eq!(counters.outcomes[Outcome::NoSuchName as usize].load(Ordering::Relaxed), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_ours_is_refused_in_the_protocols_way() {
    let running = Running::start(zone(), Policy::default()).await;
    let at = running.address();
    for (question, status) in [
        ("www.elsewhere A", "REFUSED"),
        (". NS", "REFUSED"),
        ("www.example A -c CH", "REFUSED"),
        ("version.bind TXT -c CH", "REFUSED"),
        ("www.example A +edns=1 +noednsnegotiation", "BADVERS"),
        ("www.example A +opcode=2", "NOTIMP"),
        ("www.example A +opcode=5", "NOTIMP"),
        ("example SOA +opcode=4", "REFUSED"),
        ("example AXFR", "REFUSED"),
        ("www.example MAILB", "NOTIMP"),
    ] {
        let answer = dig(at, question).await;
        assert_eq!(answer.status, status, "{question}: {}", answer.text);
        assert!(!answer.has_flag("aa"), "{question}: {}", answer.text);
    }
    let counters = running.server.counters();
    assert_eq!(counters.notify_received.load(Ordering::Relaxed), 1);
    assert_eq!(counters.transfers_refused.load(Ordering::Relaxed), 1);
    // A part that has name servers of its own.
    let referred = dig(at, "host.sub.example A").await;
    assert_eq!(referred.status, "NOERROR");
    assert!(!referred.has_flag("aa"));
    assert_eq!(referred.authority, ["sub.example. 3600 NS ns.sub.example."]);
    assert_eq!(referred.additional, ["ns.sub.example. 3600 A 192.0.2.53"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_star_stands_for_what_is_not_there() {
    let running = Running::start(zone(), Policy::default()).await;
    let at = running.address();
    let asked = async |question: &str| {
        let answer = dig(at, question).await;
        (answer.status.clone(), answer.answer.clone())
    };
    let none = |status: &str| (status.to_owned(), Vec::<String>::new());
    assert_eq!(asked("x.many.example A").await, none("NXDOMAIN"));
    let any = Change { name: name("*.many.example"), before: vec![], after: vec![address(9)] };
    let one = Change { name: name("a.b.many.example"), before: vec![], after: vec![address(8)] };
    running.change(2, &[any.clone(), one.clone()]);
    let is = |text: &str, last: u8| ("NOERROR".to_owned(), vec![format!("{text}. 30 A 192.0.2.{last}")]);
    assert_eq!(asked("x.many.example A").await, is("x.many.example", 9));
    assert_eq!(asked("x.y.many.example A +tcp").await, is("x.y.many.example", 9));
    assert_eq!(asked("*.many.example A").await, is("*.many.example", 9));
    assert_eq!(asked("x.many.example AAAA").await, none("NOERROR"));
    // What is there is itself, also when it only has names below it; and below it the star is not reached.
    assert_eq!(asked("a.b.many.example A").await, is("a.b.many.example", 8));
    assert_eq!(asked("b.many.example A").await, none("NOERROR"));
    assert_eq!(asked("x.b.many.example A").await, none("NXDOMAIN"));
    assert_eq!(asked("many.example AAAA").await, none("NOERROR"));
    assert_eq!(asked("x.example A").await, none("NXDOMAIN"));
    let back = |change: Change| Change { before: change.after, after: change.before, ..change };
    running.change(3, &[back(any), back(one)]);
    assert_eq!(asked("x.many.example A").await, none("NXDOMAIN"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_a_datagram_is_had_over_a_connection() {
    let running = Running::start(zone(), Policy::default()).await;
    let at = running.address();
    let cut = dig(at, "many.example A +ignore").await;
    assert!(cut.has_flag("tc") && cut.answer.is_empty(), "{}", cut.text);
    assert!(dig(at, "many.example A +noedns +ignore").await.has_flag("tc"));
    assert_eq!(dig(at, "many.example A").await.answer.len(), 100, "dig comes again");
    assert_eq!(running.server.counters().truncated.load(Ordering::Relaxed), 3);
    // The first of many is another for each question, so that clients spread.
    let mut firsts = std::collections::BTreeSet::new();
    for _ in 0..30 {
        firsts.insert(dig(at, "many.example A +tcp").await.answer[0].clone());
    }
    assert!(firsts.len() > 3, "{firsts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_come_back_as_they_were_sent() {
    let running = Running::start(zone(), Policy::default()).await;
    let answer = dig(running.address(), "wWw.ExAmPlE A").await;
    assert_eq!(answer.answer, ["wWw.ExAmPlE. 30 A 192.0.2.1"]);
    let missing = dig(running.address(), "nO.ExAmPlE A").await;
    assert!(missing.authority[0].starts_with("ExAmPlE. 20 SOA"), "compressed to the question: {}", missing.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_of_both_families_are_answered_from() {
    if std::net::UdpSocket::bind("[::1]:0").is_err() {
        println!("skipped: this machine has no IPv6");
        return;
    }
    let at = "[::1]:0".parse().unwrap();
    let running = Running::start_at(at, zone(), Policy::default(), Limits::default()).await;
    for transport in ["+notcp", "+tcp"] {
        let answer = dig(running.address(), &format!("www.example A {transport}")).await;
        assert_eq!(answer.answer, ["www.example. 30 A 192.0.2.1"], "{}", answer.text);
    }
}

fn question(id: u8, text: &str) -> Vec<u8> {
    let mut message = vec![0, id, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(name(text).as_wire());
    message.extend_from_slice(&[0, 1, 0, 1]);
    message
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_in_a_row_are_answered_in_their_order() {
    let running = Running::start(zone(), Policy::default()).await;
    let mut stream = TcpStream::connect(running.address()).await.unwrap();
    let all: Vec<u8> = (0..200).flat_map(|id| framed(&question(id, "many.example"))).collect();
    // In pieces that end in the middle of questions.
    let (mut reader, mut writer) = stream.split();
    let write = async {
        for piece in all.chunks(777) {
            writer.write_all(piece).await.unwrap();
        }
    };
    let read = async {
        for id in 0..200 {
            let len = usize::from(reader.read_u16().await.unwrap());
            let mut answer = vec![0; len];
            reader.read_exact(&mut answer).await.unwrap();
            assert_eq!((answer[1], answer[3] & 15, answer[7]), (id, 0, 100), "in order, no error, all records");
        }
    };
    tokio::time::timeout(PATIENCE, async { tokio::join!(write, read) }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_have_limits() {
    let idle = std::time::Duration::from_millis(300);
    let limits = Limits { connections_of_one: 2, idle, ..Limits::default() };
    let running = Running::start_at(([127, 0, 0, 1], 0).into(), zone(), Policy::default(), limits).await;
    let connect = async || TcpStream::connect(running.address()).await.unwrap();
    let ends = async |stream: &mut TcpStream| {
        let mut byte = [0];
        tokio::time::timeout(PATIENCE, stream.read(&mut byte)).await.unwrap().unwrap_or(0) == 0
    };
    let (mut one, mut two) = (connect().await, connect().await);
    let counters = running.server.counters();
    let refused = async || counters.connections_refused.load(Ordering::Relaxed) > 0;
    let mut three = connect().await;
    assert!(ends(&mut three).await);
    assert!(refused().await);
    assert!(ends(&mut one).await && ends(&mut two).await, "they asked nothing");
    until("there is room again", async || {
        let mut again = connect().await;
        let asked = again.write_all(&framed(&question(1, "www.example"))).await;
        asked.is_ok() && again.read_u16().await.is_ok()
    })
    .await;
    let mut large = connect().await;
    large.write_all(&[0xff; 100]).await.unwrap();
    assert!(ends(&mut large).await, "a question of 65,535 bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_answers_have_a_limit() {
    let policy = Policy { rate: Some(RateLimit { per_second: 1, slip: 2 }), ..Policy::default() };
    let running = Running::start(zone(), policy).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(running.address()).await.unwrap();
    let counters = running.server.counters();
    for id in 0..60 {
        socket.send(&question(id, "www.example")).await.unwrap();
    }
    until("all were looked at", async || counters.udp.load(Ordering::Relaxed) == 60).await;
    let limited = counters.limited.load(Ordering::Relaxed);
    assert!(limited > 30, "{limited}");
    let (mut whole, mut cut, mut buffer) = (0, 0, [0; 1500]);
    until("all answers are there", async || {
        while socket.try_recv(&mut buffer).is_ok() {
            if buffer[2] & 2 == 0 { whole += 1 } else { cut += 1 }
        }
        whole + cut == 60 - limited.div_ceil(2) + limited % 2
    })
    .await;
    assert!(whole > 0 && cut > 0, "{whole} {cut}");
    running.server.set_policy(Policy::default());
    until("there is no limit any more", async || {
        let before = counters.limited.load(Ordering::Relaxed);
        for _ in 0..5 {
            dig(running.address(), "two.example A +tries=1 +time=1").await;
        }
        counters.limited.load(Ordering::Relaxed) == before
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_below_a_star_have_a_limit_together() {
    let policy = Policy { rate: Some(RateLimit { per_second: 1, slip: 0 }), ..Policy::default() };
    let running = Running::start(zone(), policy).await;
    running.change(2, &[Change { name: name("*.many.example"), before: vec![], after: vec![address(9)] }]);
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(running.address()).await.unwrap();
    let counters = running.server.counters();
    for id in 0..200 {
        socket.send(&question(id, &format!("x{id}.many.example"))).await.unwrap();
    }
    until("all were looked at", async || counters.udp.load(Ordering::Relaxed) == 200).await;
    let limited = counters.limited.load(Ordering::Relaxed);
    assert!(limited > 100, "{limited}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_in_the_next_answer_and_views_are_kept_apart() {
    let running = Running::start(zone(), Policy::default()).await;
    let at = running.address();
    let after = vec![address(77)];
    running.change(2, &[dns::Change { name: name("new.example"), before: vec![], after }]);
    assert_eq!(dig(at, "new.example A").await.answer, ["new.example. 30 A 192.0.2.77"]);
    assert_eq!(dig(at, "new.example A +tcp").await.answer, ["new.example. 30 A 192.0.2.77"]);
    let elsewhere = View::Networks(Arc::from(["10.0.0.0/8".parse().unwrap()].as_slice()));
    running.zones.send_replace(Arc::new(Zones::new([(elsewhere, running.zone())])));
    assert_eq!(dig(at, "new.example A").await.status, "REFUSED");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_use_is_said_so() {
    let running = Running::start(zone(), Policy::default()).await;
    let (_zones, receiver) = base::watch::channel(Arc::new(Zones::default()));
    let (_trigger, shutdown) = base::shutdown::Shutdown::new();
    let addresses = vec![running.address()];
    let settings = dns::Settings { addresses, threads: 1, limits: Limits::default(), policy: Policy::default() };
    let error = dns::Server::start(settings, receiver, Arc::new(base::clock::SystemClock), shutdown).await.unwrap_err();
    assert_eq!(error.to_string(), format!("listen for DNS on {} over TCP", running.address()));
}
