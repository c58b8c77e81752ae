//! `neso node join --adopt`: a machine whose datacenter is no more joins another one, and its instances run on.
//!
//! ```text
//! who was I? is there nothing to lose? ─► the headnode says yes ─► node ends ─► headnode put away ─► [join], certificates ─► node runs
//! ```
//! It stays the server it was, because the node holds under that name what it was told of its instances. Until the headnode said yes nothing is
//! changed; after that every piece may be done again, so the same line may run again wherever it was cut. Nothing here touches an instance, and
//! what becomes of them is decided there: by an operator, with `neso adm rebuild`.

use headnode::{Settings, kit, pki, role};
use model::id::ServerId;
use nodeapi::join::Fingerprint;

use super::{SECTION, section};
use crate::{
    answer,
    context::Place,
    down,
    failure::{Failure, Outcome},
    progress::Progress,
    up,
};

/// Files that say that a headnode's records are here.
const RECORDS: [&str; 2] = ["store.db", "cluster.json"];

/// Who this machine was in a datacenter that is no more.
pub(super) fn former(settings: &Settings, joins: Fingerprint) -> Outcome<ServerId> {
    let directory = settings.pki_dir();
    let text = std::fs::read_to_string(directory.join("server-id")).unwrap_or_default();
    let Ok(was) = text.trim().parse() else {
        return Err(Failure::new("this machine is no part of any datacenter, so it brings nothing")
            .mend("join without --adopt"));
    };
    let records = RECORDS.iter().map(|name| settings.headnode_dir().join(name)).find(|path| path.exists());
    if let Some(records) = records {
        return Err(Failure::new(format!(
            "the records of this machine's datacenter are here: `{}`; a datacenter that is not lost is not left",
            records.display()
        ))
        .mend("`neso up` runs it; if its records are of no use any more, move them away and run this line again"));
    }
    let known = std::fs::read(directory.join("ca.pem")).ok().and_then(|pem| Fingerprint::of_pem(&pem));
    // A line that was cut has replaced the one and has not used up the other.
    if known == Some(joins) && !pki::is_joining(settings) {
        return Err(Failure::new("this machine is of that datacenter already").mend("`neso up` starts its node"));
    }
    Ok(was)
}

/// Ends the processes, puts a headnode away, and turns the settings to another datacenter.
pub(super) async fn leave(
    place: &Place,
    settings: &Settings,
    address: &str,
    datacenter: &str,
    progress: &Progress,
) -> Outcome {
    down::stop_processes(place, settings, progress).await?;
    let had_headnode = settings.join.is_none() || role::path(settings).exists();
    let path = place.settings_path();
    let old = std::fs::read_to_string(&path)
        .map_err(|error| Failure::new(format!("failed to read `{}`: {error}", path.display())))?;
    let text = turned(&old, address, datacenter);
    Settings::parse(&text).map_err(Failure::new)?;
    up::write_whole(&path, &text)?;
    if had_headnode {
        // It would make an authority of its own at its next start.
        kit::remove(&path, &place.settings()?, &[])?;
        match std::fs::remove_file(role::path(settings)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// Settings that name another datacenter's headnode.
fn turned(old: &str, address: &str, datacenter: &str) -> String {
    let (before, after) = match old.split_once(SECTION) {
        None => (old, ""),
        // The section ends where the next begins.
        Some((before, rest)) => (before, rest.find("\n[").map_or("", |at| &rest[at..])),
    };
    format!("{}\n{}{after}", before.trim_end_matches('\n'), section(address, datacenter))
}

/// Starts the node; what comes then is the operator's.
pub(super) async fn start(place: &Place, progress: &Progress) -> Outcome {
    let settings = place.settings()?;
    up::start_in_background(place, &settings, progress).await?;
    answer::print(
        "Its instances run on, and nobody knows them yet. On the headnode `neso adm rebuild` shows them, and --yes makes them known.",
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_headnode_takes_the_place_of_the_old_ones() {
        let plain = Settings::generate(None).unwrap();
        let first = turned(&plain, "10.0.0.1:1", "one");
        let joined = |text: &str| Settings::parse(text).unwrap().join.map(|join| join.headnodes);
        assert_eq!(joined(&first), Some(vec!["10.0.0.1:1".to_owned()]));
        let many = first.replace("[\"10.0.0.1:1\"]", "[\n  \"10.0.0.1:1\",\n  \"10.0.0.9:1\",\n]");
        assert_eq!(joined(&many).map(|all| all.len()), Some(2));
        let (head, tail) = plain.split_once("\n[backup]\n").unwrap();
        let in_between = format!("{head}{}\n[backup]\n{tail}", section("10.0.0.1:1", "one"));
        for text in [&first, &many, &in_between] {
            let second = turned(text, "10.0.0.2:2", "two");
            let mut expected = Settings::parse(text).unwrap();
            expected.join.as_mut().unwrap().headnodes = vec!["10.0.0.2:2".to_owned()];
            assert_eq!(Settings::parse(&second).unwrap(), expected, "{second}");
            assert_eq!(turned(&second, "10.0.0.2:2", "two"), second, "once is enough");
        }
    }
}
