//! What rules with logging decide is handed out: for whom, which way, from and to where.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use base::channel::Receiver;
use host::{
    filter::{Filters, LogNews, Logged},
    link::LinkNames,
    linux::filter::LinuxFilters,
};
use model::firewall::{Action, Direction};

use super::{
    firewall::Scene,
    frames::pings6,
    site::{PATIENCE, SILENCE, Site, Zone, connects, in_host, listen, network6, run},
};

/// The next line, soon.
fn next(news: &mut Receiver<LogNews>) -> Logged {
    let begun = Instant::now();
    loop {
        match news.try_recv() {
            Some(LogNews::Packet(logged)) => return logged,
            Some(LogNews::Lost(count)) => panic!("{count} lines were lost of a few"),
            None => assert!(begun.elapsed() < PATIENCE, "no line of the log"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Nothing more comes, as far as one can wait for nothing.
fn silent(news: &mut Receiver<LogNews>) -> bool {
    std::thread::sleep(SILENCE);
    news.try_recv().is_none()
}

fn send(from: &Zone, to: SocketAddr) -> u16 {
    from.namespace.enter(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port");
        socket.send_to(b"x", to).expect("it is sent");
        socket.local_addr().expect("bound").port()
    })
}

#[test]
fn what_rules_decide_is_told() {
    in_host(|| {
        let ext = network6("ext", "10.88.0.0/16", "fd00:88::/64");
        let mut site = Site::new();
        site.bridge(&ext);
        let (web, db) = (site.zone(&ext), site.zone(&ext));
        let mut scene = Scene::new();
        let web_id = scene.add(&web, "nb-ext", true, &["web"]);
        let db_id = scene.add(&db, "nb-ext", true, &["db"]);
        let served = db.namespace.enter(listen);
        let port = served.local_addr().expect("bound").port();
        let to = SocketAddr::from((db.address, port));
        scene.logged_rule(&format!("FROM tag web TO tag db ALLOW tcp PORT {port}"));
        scene.logged_rule("FROM tag web TO any BLOCK udp PORT 53");
        scene.logged_rule("FROM any TO tag db ALLOW icmp6 TYPE 128 CODE 0");
        let rules: Vec<_> = scene.rule_ids();

        let mut news = site.filters.logged().expect("this kernel hands out logs");
        site.filters.apply_firewall(&scene.firewall()).expect("a firewall");
        assert!(run(&["nft", "list", "table", "inet", "neso_fw"]).contains("group"), "not to the kernel's log");
        assert!(web.namespace.enter(|| connects(to, PATIENCE)));
        let (left, line) = (next(&mut news), next(&mut news));
        assert_eq!((left.rule, left.direction, left.instance), (rules[0], Direction::Outbound, web_id));
        assert_eq!(left.packet, line.packet, "both ends' firewalls let it through");
        assert_eq!((line.rule, line.action, line.direction), (rules[0], Action::Allow, Direction::Inbound));
        assert_eq!((line.instance, line.packet.protocol), (db_id, 6));
        assert_eq!((line.packet.source, line.packet.destination), (web.address.into(), db.address.into()));
        assert_eq!(line.packet.ports.map(|(_, to)| to), Some(port));
        assert!(silent(&mut news), "of a connection that is let through only its first packet");

        let from = send(&web, SocketAddr::from((db.address, 53)));
        let line = next(&mut news);
        assert_eq!((line.rule, line.action, line.direction), (rules[1], Action::Block, Direction::Outbound));
        assert_eq!((line.instance, line.packet.ports), (web_id, Some((from, 53))));

        assert!(web.namespace.enter(|| pings6(db.six(), PATIENCE)));
        let line = next(&mut news);
        assert_eq!((line.rule, line.instance, line.packet.icmp), (rules[2], db_id, Some((128, 0))));
        assert_eq!(line.packet.source, web.six());

        // A flood is told of, but not all of it.
        for _ in 0..500 {
            send(&web, SocketAddr::from((db.address, 53)));
        }
        next(&mut news);
        std::thread::sleep(SILENCE);
        let told = std::iter::from_fn(|| news.try_recv()).count();
        assert!((1..250).contains(&told), "{told} of 500");
        assert!(site.filters.logged().is_err(), "a second reader at once is refused");
        drop(news);
        let begun = Instant::now();
        let mut again = loop {
            match site.filters.logged() {
                Ok(news) => break news,
                Err(error) => assert!(begun.elapsed() < PATIENCE, "the first reader never ends: {error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        std::iter::from_fn(|| again.try_recv()).for_each(drop);
        assert!(web.namespace.enter(|| connects(to, PATIENCE)));
        assert_eq!(next(&mut again).rule, rules[0], "whoever comes next reads on");
    });
}

#[test]
fn rules_log_to_the_kernels_log_until_it_can_be_read() {
    in_host(|| {
        let ext = network6("ext", "10.88.0.0/16", "fd00:88::/64");
        let mut site = Site::new();
        site.bridge(&ext);
        let (web, db) = (site.zone(&ext), site.zone(&ext));
        let mut scene = Scene::new();
        let web_id = scene.add(&web, "nb-ext", true, &["web"]);
        scene.logged_rule("FROM tag web TO any BLOCK udp PORT 53");
        let logging = || {
            let rules = run(&["nft", "list", "table", "inet", "neso_fw"]);
            let lines: Vec<&str> = rules.lines().filter(|line| line.contains("log prefix")).collect();
            (lines.len(), lines.iter().filter(|line| line.contains("group")).count())
        };

        // An agent that ran before still reads.
        let before = LinuxFilters::new("neso", LinkNames::default());
        let reader = before.logged().expect("this kernel hands out logs");
        assert!(site.filters.logged().is_err(), "one reader at a time");
        site.filters.apply_firewall(&scene.firewall()).expect("a firewall");
        let (lines, handed_out) = logging();
        assert!(lines > 0 && handed_out == 0, "{handed_out} of {lines} are handed out, to nobody");
        assert!(site.filters.intact().expect("a look"), "as it should be for now");

        drop(reader);
        let begun = Instant::now();
        let mut news = loop {
            match site.filters.logged() {
                Ok(news) => break news,
                Err(error) => assert!(begun.elapsed() < PATIENCE, "the first reader never ends: {error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(!site.filters.intact().expect("a look"), "rules still log where nobody looks");
        site.filters.apply_firewall(&scene.firewall()).expect("the same firewall");
        assert_eq!(logging(), (lines, lines));
        assert!(site.filters.intact().expect("a look"));
        send(&web, SocketAddr::from((db.address, 53)));
        assert_eq!(next(&mut news).instance, web_id);
    });
}
