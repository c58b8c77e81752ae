//! How soon a zone that was just given a NIC is reached from another machine.

use std::{
    net::{TcpListener, TcpStream},
    time::{Duration, Instant},
};

use super::machine::{ByHand, Fabric, Zone};
use crate::report::{Row, Section};

/// NICs made on each kind of path.
const SAMPLES: u32 = 30;
/// Longest wait for a connection.
const PATIENCE: Duration = Duration::from_secs(10);
/// The machine of the zone that is there already, and that of the new ones.
const HERE: usize = 0;
const THERE: usize = 1;

/// Runs this part of the benchmark.
pub(super) fn measure() -> Result<Vec<Section>, String> {
    let (mut fabric, plain) = (Fabric::new()?, ByHand::new()?);
    let [old, other] = [Zone::new(1)?, Zone::new(1)?];
    fabric.connect(&old, HERE)?;
    plain.connect(&other, HERE)?;
    let (mut made, mut first, mut again, mut by_hand) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for number in 2..2 + SAMPLES {
        let zone = Zone::new(number)?;
        let began = Instant::now();
        fabric.connect(&zone, THERE)?;
        made.push(began.elapsed().as_secs_f64() * 1000.0);
        let server = listener(&zone)?;
        first.push(connected(&old, &server)?);
        again.push(connected(&old, &server)?);
        fabric.disconnect(&zone, THERE)?;

        let zone = Zone::new(number)?;
        plain.connect(&zone, THERE)?;
        by_hand.push(connected(&other, &listener(&zone)?)?);
        plain.disconnect(&zone, THERE)?;
    }
    let row = |name: &str, samples: Vec<f64>| Row { name: name.to_owned(), unit: "ms", samples: Ok(samples) };
    Ok(vec![Section {
        about: format!(
            "First packet: {SAMPLES} new NICs, each on one machine and reached by TCP from a zone on the other. This is the machines' part alone; how long the control plane takes to tell them is below."
        ),
        rows: vec![
            row("plain VXLAN by hand, the first connection", by_hand),
            row("our fabric, the first connection", first),
            row("our fabric, the second connection", again),
            row("our fabric, making the NIC, its filters and its peer entry", made),
        ],
    }])
}

fn listener(zone: &Zone) -> Result<TcpListener, String> {
    zone.space.enter(|| TcpListener::bind((zone.address, 0)).map_err(|error| format!("cannot listen: {error}")))
}

/// Milliseconds until a connection to `server` from a zone stands.
fn connected(from: &Zone, server: &TcpListener) -> Result<f64, String> {
    let at = server.local_addr().map_err(|error| error.to_string())?;
    from.space.enter(|| {
        let began = Instant::now();
        TcpStream::connect_timeout(&at, PATIENCE).map_err(|error| format!("cannot reach {at}: {error}"))?;
        Ok(began.elapsed().as_secs_f64() * 1000.0)
    })
}
