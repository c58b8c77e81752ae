//! Guests that ask and tell: the metadata service through its real socket.

use std::{path::Path, time::Duration};

use mdata::{
    Answer, Command,
    client::{self, AnswerV1},
};
use model::{instance::Wanted, target::ZoneState};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
};

use crate::world::{DEADLINE, World};

async fn line(stream: &mut BufReader<UnixStream>) -> String {
    let mut line = String::new();
    tokio::time::timeout(DEADLINE, stream.read_line(&mut line)).await.expect("an answer").unwrap();
    line.trim_end_matches('\n').to_owned()
}

async fn ask(socket: &Path, command: Command) -> Answer {
    let mut stream = BufReader::new(UnixStream::connect(socket).await.unwrap());
    stream.write_all(client::NEGOTIATE.as_bytes()).await.unwrap();
    assert_eq!(line(&mut stream).await, "V2_OK");
    stream.write_all(client::ask_v2("1f", &command).as_bytes()).await.unwrap();
    client::answer_v2("1f", &line(&mut stream).await).unwrap()
}

async fn get(socket: &Path, key: &str) -> Answer {
    ask(socket, Command::Get(key.to_owned())).await
}

async fn put(socket: &Path, key: &str, value: &str) -> Answer {
    ask(socket, Command::Put { key: key.to_owned(), value: value.to_owned() }).await
}

fn success(value: &str) -> Answer {
    Answer::Success(Some(value.to_owned()))
}

#[tokio::test]
async fn a_guest_reads_and_writes() {
    let world = World::new();
    let agent = world.start();
    let id = world.create(1);
    world.headnode.wait_state(id, ZoneState::Running).await;
    let socket = world.socket_path(id);

    assert_eq!(get(&socket, "sdc:uuid").await, success(&id.to_string()));
    assert_eq!(get(&socket, "sdc:server_uuid").await, success(&world.config.server.to_string()));
    assert_eq!(get(&socket, "sdc:nics.0.ip").await, success("10.88.0.10"));
    assert!(matches!(get(&socket, "sdc:boot_timestamp").await, Answer::Success(Some(_))));
    assert_eq!(get(&socket, "sdc:nonsense").await, Answer::NotFound);
    assert_eq!(get(&socket, "user-script").await, success("#!/bin/sh\necho hi\n"));
    assert_eq!(get(&socket, "root_pw").await, success("secret"));
    assert_eq!(ask(&socket, Command::Keys).await, success("root_pw\nuser-script"));
    assert!(matches!(put(&socket, "sdc:alias", "x").await, Answer::Failure(_)));
    assert!(matches!(ask(&socket, Command::Delete("sdc:alias".to_owned())).await, Answer::Failure(_)));

    assert_eq!(put(&socket, "color", "blue").await, Answer::Success(None));
    assert_eq!(get(&socket, "color").await, success("blue"));
    assert_eq!(ask(&socket, Command::Delete("user-script".to_owned())).await, Answer::Success(None));
    assert_eq!(get(&socket, "user-script").await, Answer::NotFound);
    assert_eq!(ask(&socket, Command::Delete("user-script".to_owned())).await, Answer::NotFound);
    assert_eq!(ask(&socket, Command::Keys).await, success("color\nroot_pw"));
    let fact = world.headnode.wait_fact(id, "two changes", |fact| fact.guest_metadata.len() == 2).await;
    assert_eq!((fact.guest_metadata[0].key.as_str(), fact.guest_metadata[0].sequence), ("color", 1));

    // Another agent still knows, until the control plane has taken it over.
    agent.end().await;
    world.headnode.forget_reports();
    let agent = world.start();
    world.headnode.wait("a new run", |report| report.zones.contains_key(&id)).await;
    assert_eq!(get(&socket, "color").await, success("blue"));
    world.headnode.zone(id, |zone| {
        zone.guest_metadata_seen = 2;
        zone.metadata = [("color".to_owned(), "green".to_owned())].into();
    });
    world.headnode.wait_fact(id, "no change", |fact| fact.guest_metadata.is_empty()).await;
    assert_eq!(get(&socket, "color").await, success("green"));
    assert_eq!(get(&socket, "user-script").await, Answer::NotFound);
    assert_eq!(put(&socket, "next", "1").await, Answer::Success(None));
    let fact = world.headnode.wait_fact(id, "a change", |fact| !fact.guest_metadata.is_empty()).await;
    assert_eq!(fact.guest_metadata[0].sequence, 3);

    world.headnode.zone(id, |zone| zone.wanted = Wanted::Absent);
    world.headnode.wait_state(id, ZoneState::Absent).await;
    world.assert_empty();
    agent.end().await;
}

#[tokio::test]
async fn version_1_and_nonsense() {
    let world = World::new();
    let agent = world.start();
    let id = world.create(0);
    world.headnode.wait_state(id, ZoneState::Running).await;
    let mut stream = BufReader::new(UnixStream::connect(world.socket_path(id)).await.unwrap());
    stream.write_all(b"\nGET user-script\n").await.unwrap();
    assert_eq!(line(&mut stream).await, "invalid command");
    let mut answer = AnswerV1::default();
    let answer = loop {
        if let Some(answer) = answer.line(&line(&mut stream).await).unwrap() {
            break answer;
        }
    };
    assert_eq!(answer, success("#!/bin/sh\necho hi\n"));
    // A line without an end is cut off, and the others are served meanwhile.
    let mut flood = UnixStream::connect(world.socket_path(id)).await.unwrap();
    let flooded = async {
        let junk = vec![b'x'; 64 << 10];
        for _ in 0..16 {
            if flood.write_all(&junk).await.is_err() {
                return;
            }
        }
        let mut rest = [0; 1];
        assert!(matches!(flood.read(&mut rest).await, Ok(0) | Err(_)), "a flood is cut off");
    };
    tokio::time::timeout(DEADLINE, flooded).await.expect("a flood is cut off in time");
    assert_eq!(get(&world.socket_path(id), "sdc:alias").await, success("web"));
    agent.end().await;
}

#[tokio::test]
async fn idle_guests_do_not_lock_others_out_for_ever() {
    let world = World::new();
    let agent = world.start();
    let id = world.create(0);
    world.headnode.wait_state(id, ZoneState::Running).await;
    let socket = world.socket_path(id);
    let mut idle = Vec::new();
    for _ in 0..8 {
        let mut stream = BufReader::new(UnixStream::connect(&socket).await.unwrap());
        stream.write_all(b"KEYS\n").await.unwrap();
        assert_eq!(line(&mut stream).await, "SUCCESS");
        idle.push(stream);
    }
    // The ninth waits for its turn …
    let ninth = tokio::time::timeout(Duration::from_millis(100), get(&socket, "sdc:alias")).await;
    assert!(ninth.is_err());
    // … and gets it when one of the others leaves.
    idle.pop();
    assert_eq!(get(&socket, "sdc:alias").await, success("web"));
    agent.end().await;
}
