//! Throughput and latency of one TCP connection between two zones on two machines.
//!
//! All paths stand side by side and take turns, and each round begins with another, so that a busy machine is busy for all. Plain
//! VXLAN is there twice: how far the two are apart is how much of any difference is noise.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::machine::{ByHand, Fabric, SEGMENT_MTU, Zone, bare};
use crate::report::{Row, Section};

/// Measured rounds; one more comes first and warms up.
const ROUNDS: usize = 25;
/// How long a path is measured in a round, once for throughput and once for latency.
const WINDOW: Duration = Duration::from_millis(500);
/// Before counting begins, so that the connection is at its speed.
const WARM: Duration = Duration::from_millis(100);
/// Longest wait for a byte: nothing here takes that long unless it never comes.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of one write.
const CHUNK: usize = 128 * 1024;

const NAMES: [&str; 4] = ["plain VXLAN by hand", "plain VXLAN by hand, a second one", "our fabric", "bare veth"];

/// Runs this part of the benchmark.
pub(super) fn measure() -> Result<Vec<Section>, String> {
    let pairs = (0..NAMES.len()).map(|_| Ok([Zone::new(1)?, Zone::new(2)?])).collect::<Result<Vec<_>, String>>()?;
    let plain = [ByHand::new()?, ByHand::new()?];
    let mut fabric = Fabric::new()?;
    for (at, ((first, second), ours)) in pairs[0].iter().zip(&pairs[1]).zip(&pairs[2]).enumerate() {
        plain[0].connect(first, at)?;
        plain[1].connect(second, at)?;
        fabric.connect(ours, at)?;
    }
    bare(&pairs[3][0], &pairs[3][1])?;

    let (mut rates, mut times) = (vec![Vec::new(); NAMES.len()], vec![Vec::new(); NAMES.len()]);
    for round in 0..=ROUNDS {
        for turn in 0..NAMES.len() {
            let path = (round + turn) % NAMES.len();
            let named = |why: String| format!("{}: {why}", NAMES[path]);
            let [from, to] = &pairs[path];
            let (rate, time) = (throughput(from, to).map_err(named)?, round_trip(from, to).map_err(named)?);
            if round > 0 {
                rates[path].push(rate);
                times[path].push(time);
            }
        }
    }
    Ok(sections(rates, times))
}

fn sections(rates: Vec<Vec<f64>>, times: Vec<Vec<f64>>) -> Vec<Section> {
    let paired = |all: &[Vec<f64>], path: usize, inverse: bool| -> Vec<f64> {
        let pairs = all[path].iter().zip(&all[0]);
        pairs.map(|(ours, plain)| if inverse { plain / ours } else { ours / plain }).collect()
    };
    let ratios = |what: &str, all: &[Vec<f64>], inverse: bool| -> Vec<Row> {
        let row = |path: usize| Row {
            name: format!("{what}, {}", NAMES[path]),
            unit: "×",
            samples: Ok(paired(all, path, inverse)),
        };
        (1..NAMES.len()).map(row).collect()
    };
    let throughput = ratios("throughput", &rates, false);
    let round_trips = ratios("round trips", &times, true);
    let rows = |unit: &'static str, all: Vec<Vec<f64>>| -> Vec<Row> {
        NAMES.iter().zip(all).map(|(name, all)| Row { name: (*name).to_owned(), unit, samples: Ok(all) }).collect()
    };
    vec![
        Section {
            about: format!(
                "One TCP connection from a zone on one machine to a zone on another, the machines being network namespaces with a veth pair between them. Ours is what an agent makes, anti-spoofing included; plain VXLAN has a bridge on each side too; both with an MTU of {SEGMENT_MTU}. Throughput, {ROUNDS} rounds of {} ms, taking turns.",
                WINDOW.as_millis()
            ),
            rows: rows("Gbit/s", rates),
        },
        Section {
            about: "One byte there and one back on the same connections: mean of a round.".to_owned(),
            rows: rows("µs", times),
        },
        Section {
            about: "Against plain VXLAN in the same round; more is better. The first row is plain VXLAN against itself: the noise of this machine.".to_owned(),
            rows: throughput.into_iter().chain(round_trips).collect(),
        },
    ]
}

/// A connection from one zone to another: the end it comes from, and the end it leads to.
fn connection(from: &Zone, to: &Zone) -> Result<(TcpStream, TcpStream), String> {
    let text = |error: std::io::Error| format!("cannot connect {} with {}: {error}", from.address, to.address);
    let listener = to.space.enter(|| TcpListener::bind((to.address, 0)).map_err(text))?;
    let at = listener.local_addr().map_err(text)?;
    let here = from.space.enter(|| TcpStream::connect_timeout(&at, PATIENCE).map_err(text))?;
    let (there, _) = listener.accept().map_err(text)?;
    for end in [&here, &there] {
        end.set_read_timeout(Some(PATIENCE)).map_err(text)?;
        end.set_write_timeout(Some(PATIENCE)).map_err(text)?;
        end.set_nodelay(true).map_err(text)?;
    }
    Ok((here, there))
}

/// Gigabits per second that arrive.
fn throughput(from: &Zone, to: &Zone) -> Result<f64, String> {
    let (mut sender, mut receiver) = connection(from, to)?;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let chunk = vec![7; CHUNK];
            while !over.load(Ordering::Relaxed) {
                // The other side ends the connection when it has counted enough.
                if sender.write_all(&chunk).is_err() {
                    return;
                }
            }
        });
        let counted = count(&mut receiver);
        over.store(true, Ordering::Relaxed);
        drop(receiver);
        sending.join().map_err(|_| "a thread panicked")?;
        counted
    })
}

fn count(receiver: &mut TcpStream) -> Result<f64, String> {
    let mut buffer = vec![0; CHUNK];
    let (mut began, mut bytes, mut warm) = (Instant::now(), 0_u64, false);
    loop {
        let read = receiver.read(&mut buffer).map_err(|error| format!("nothing arrives: {error}"))?;
        if read == 0 {
            return Err("the connection ended early".to_owned());
        }
        bytes += read as u64;
        if !warm && began.elapsed() >= WARM {
            (began, bytes, warm) = (Instant::now(), 0, true);
        } else if warm && began.elapsed() >= WINDOW {
            return Ok(bytes as f64 * 8.0 / began.elapsed().as_secs_f64() / 1e9);
        }
    }
}

/// Microseconds for a byte there and one back, in the mean.
fn round_trip(from: &Zone, to: &Zone) -> Result<f64, String> {
    let (mut here, mut there) = connection(from, to)?;
    thread::scope(|scope| {
        let echoing = scope.spawn(move || {
            let mut byte = [0];
            while there.read_exact(&mut byte).is_ok() && there.write_all(&byte).is_ok() {}
        });
        let mut times = || -> std::io::Result<f64> {
            let (mut byte, mut count, mut began) = ([1], 0_u32, Instant::now());
            let mut warm = false;
            loop {
                here.write_all(&byte)?;
                here.read_exact(&mut byte)?;
                count += 1;
                if !warm && began.elapsed() >= WARM {
                    (began, count, warm) = (Instant::now(), 0, true);
                } else if warm && began.elapsed() >= WINDOW {
                    return Ok(began.elapsed().as_secs_f64() * 1e6 / f64::from(count));
                }
            }
        };
        let time = times().map_err(|error| format!("no echo: {error}"));
        drop(here);
        echoing.join().map_err(|_| "a thread panicked")?;
        time
    })
}
