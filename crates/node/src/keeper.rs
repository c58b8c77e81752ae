//! The keeper of the target: refuses what is not ours or older than what we hold, writes down the rest, then tells.
//!
//! ```text
//!  target.json     a whole target                                    replaced now and then
//!  target.journal  what is new since, one delta a line               one line and one write-through for each news
//! ```
//! What must be on the disk before anything acts on it then costs what changed, not what there is. A line begins with the digest
//! of the rest of it, and a delta names the target it starts from: reading stops at the first line that was cut short, and passes
//! over lines that are part of the whole already because the machine died between replacing it and emptying the journal. The
//! journal is folded into the whole when an agent starts or ends, and when it has grown longer than is worth keeping.
//!
//! The files say their version. A damaged whole counts as none: the next headnode sends the target anew, and until then
//! nothing is stopped or removed, because instances without a target are left alone.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use model::{delta::TargetDelta, id::ServerId, part::Digest, target::Target};
use serde::{Deserialize, Serialize};

use crate::{
    error::AgentError,
    files::{self, Disk, Durability},
};

/// Version of the files' shape.
const VERSION: u32 = 1;

/// Length up to which a journal is kept, bytes; one that is longer is still kept while it is shorter than the whole.
const JOURNAL_KEPT_BYTES: u64 = 256 << 10;

/// What becomes of a target that was offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offer {
    /// Write it down and act on it.
    Newer,
    /// It is what we hold.
    Held,
    /// It is older than what we hold.
    Older,
    /// It is for another machine.
    Foreign,
}

/// Judges a target that was offered.
pub(crate) fn judge(server: ServerId, held: Option<&Target>, offered: &Target) -> Offer {
    if offered.server != server {
        return Offer::Foreign;
    }
    match held.map(|held| offered.generation.cmp(&held.generation)) {
        None | Some(std::cmp::Ordering::Greater) => Offer::Newer,
        Some(std::cmp::Ordering::Equal) => Offer::Held,
        Some(std::cmp::Ordering::Less) => Offer::Older,
    }
}

/// Owns the files of the target while an agent runs.
pub(crate) struct Keeper {
    disk: Disk,
    whole: PathBuf,
    journal: PathBuf,
    /// The journal, ready for the next line; `None` when a line may have failed half-way, so that the whole must be written.
    open: Option<File>,
    journal_bytes: u64,
    whole_bytes: u64,
}

#[derive(Serialize)]
struct Written<'a> {
    version: u32,
    target: &'a Target,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Deserialize)]
struct Read {
    target: Target,
}

#[derive(Serialize)]
struct Line<'a> {
    version: u32,
    delta: &'a TargetDelta,
}

#[derive(Deserialize)]
struct ReadLine {
    delta: TargetDelta,
}

// === impl Keeper ===

impl Keeper {
    /// Reads the target of the last run, and takes over its files.
    pub(crate) fn open(
        disk: Disk,
        data_dir: &Path,
        server: ServerId,
    ) -> Result<(Self, Option<Arc<Target>>), AgentError> {
        let mut keeper = Self {
            disk,
            whole: data_dir.join("target.json"),
            journal: data_dir.join("target.journal"),
            open: None,
            journal_bytes: 0,
            whole_bytes: 0,
        };
        let fails = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| AgentError::File { doing, path, source }
        };
        let target = read_whole(&keeper.whole, server)?;
        let lines = files::read(&keeper.journal).map_err(fails("read", &keeper.journal))?;
        let lines = lines.filter(|lines| !lines.is_empty());
        let target = match (target, lines) {
            (Some(whole), Some(lines)) => {
                let target = replay(whole, &lines).map_err(|found| AgentError::Newer {
                    path: keeper.journal.clone(),
                    found,
                    known: VERSION,
                })?;
                keeper.keep_whole(&target).map_err(fails("write", &keeper.whole))?;
                Some(target)
            }
            (target, _) => target,
        };
        Ok((keeper, target.map(Arc::new)))
    }

    /// Writes a newer target down so that it survives the loss of power: instances are started from it when nobody else is there.
    /// `delta` leads to it from the one written before; without one the whole is written.
    pub(crate) fn keep(&mut self, target: &Target, delta: Option<&TargetDelta>) -> io::Result<()> {
        let is_long = self.journal_bytes > JOURNAL_KEPT_BYTES.max(self.whole_bytes);
        match (delta, self.open.take()) {
            (Some(delta), Some(journal)) if !is_long => self.append(journal, delta),
            _ => self.keep_whole(target),
        }
    }

    /// Folds the journal into the whole.
    pub(crate) fn fold(&mut self, target: &Target) -> io::Result<()> {
        if self.journal_bytes > 0 { self.keep_whole(target) } else { Ok(()) }
    }

    fn append(&mut self, mut journal: File, delta: &TargetDelta) -> io::Result<()> {
        let line = line(delta)?;
        self.disk.append(&mut journal, &self.journal, &line)?;
        self.journal_bytes += line.len() as u64;
        self.open = Some(journal);
        Ok(())
    }

    fn keep_whole(&mut self, target: &Target) -> io::Result<()> {
        let content = serde_json::to_vec(&Written { version: VERSION, target })?;
        self.disk.replace(&self.whole, &content, Durability::Power)?;
        // Only now: what is in the journal is in the whole.
        self.open = Some(self.disk.begin(&self.journal)?);
        (self.journal_bytes, self.whole_bytes) = (0, content.len() as u64);
        Ok(())
    }
}

/// One line of the journal.
fn line(delta: &TargetDelta) -> io::Result<Vec<u8>> {
    let content = serde_json::to_vec(&Line { version: VERSION, delta })?;
    let mut line = format!("{} ", Digest::of_bytes(&content)).into_bytes();
    line.extend_from_slice(&content);
    line.push(b'\n');
    Ok(line)
}

/// The target after the lines of `journal` that follow on `whole`. Fails with the version of a line that a newer program wrote.
fn replay(whole: Target, journal: &[u8]) -> Result<Target, u32> {
    let mut target = whole;
    for line in journal.split_inclusive(|byte| *byte == b'\n') {
        let Some(content) = intact(line) else {
            tracing::warn!(
                generation = target.generation,
                "the last line of the target's journal was cut short; ignored"
            );
            break;
        };
        match serde_json::from_slice::<Version>(content) {
            Ok(Version { version }) if version > VERSION => return Err(version),
            _ => {}
        }
        let Ok(ReadLine { delta }) = serde_json::from_slice(content) else {
            tracing::error!(
                generation = target.generation,
                "a line of the target's journal makes no sense; ignored with all after it"
            );
            break;
        };
        if delta.generation <= target.generation {
            continue;
        }
        match delta.apply(&target) {
            Ok(next) => target = next,
            Err(error) => {
                tracing::error!(generation = target.generation, %error, "a line of the target's journal does not follow; ignored with all after it");
                break;
            }
        }
    }
    Ok(target)
}

/// The content of a line that is as it was written.
fn intact(line: &[u8]) -> Option<&[u8]> {
    let line = line.strip_suffix(b"\n")?;
    let at = line.iter().position(|byte| *byte == b' ')?;
    let digest: Digest = std::str::from_utf8(&line[..at]).ok()?.parse().ok()?;
    let content = &line[at + 1..];
    (Digest::of_bytes(content) == digest).then_some(content)
}

fn read_whole(path: &Path, server: ServerId) -> Result<Option<Target>, AgentError> {
    let content =
        files::read(path).map_err(|source| AgentError::File { doing: "read", path: path.to_owned(), source })?;
    let Some(content) = content else { return Ok(None) };
    match serde_json::from_slice::<Version>(&content) {
        Ok(Version { version }) if version > VERSION => {
            return Err(AgentError::Newer { path: path.to_owned(), found: version, known: VERSION });
        }
        _ => {}
    }
    match serde_json::from_slice::<Read>(&content) {
        Ok(Read { target }) if target.server == server => Ok(Some(target)),
        Ok(Read { target }) => {
            tracing::warn!(path = %path.display(), server = %target.server, "the stored target is for another machine; ignored");
            Ok(None)
        }
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "the stored target is damaged; waiting for a headnode");
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use model::target::ImageTarget;
    use proptest::prelude::*;

    use super::*;

    fn target(server: ServerId, generation: u64) -> Target {
        Target { generation, datacenter: "here".to_owned(), ..crate::shared::empty_target(server) }
    }

    /// The next target, which says something else.
    fn next(target: &Target) -> (Target, TargetDelta) {
        let generation = target.generation + 3;
        let mut next = Target { generation, ..target.clone() };
        let image = ImageTarget {
            sha256: generation.to_string().repeat(4_000),
            size: 1,
            compression: model::image::Compression::None,
        };
        next.images.insert(model::id::ImageId::random(), image);
        let delta = TargetDelta::between(target, &next);
        (next, delta)
    }

    fn open(directory: &Path, server: ServerId) -> (Keeper, Option<Arc<Target>>) {
        Keeper::open(Disk::default(), directory, server).unwrap()
    }

    #[test]
    fn only_newer_ones_of_ours() {
        let (ours, other) = (ServerId::random(), ServerId::random());
        let held = target(ours, 5);
        assert_eq!(judge(ours, None, &target(ours, 0)), Offer::Newer);
        assert_eq!(judge(ours, Some(&held), &target(ours, 6)), Offer::Newer);
        assert_eq!(judge(ours, Some(&held), &target(ours, 5)), Offer::Held);
        assert_eq!(judge(ours, Some(&held), &target(ours, 4)), Offer::Older);
        assert_eq!(judge(ours, Some(&held), &target(other, 6)), Offer::Foreign);
    }

    #[test]
    fn damage_and_the_future_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let server = ServerId::random();
        let (mut keeper, none) = open(directory.path(), server);
        assert!(none.is_none());
        keeper.keep(&target(server, 7), None).unwrap();
        assert_eq!(open(directory.path(), server).1.unwrap().generation, 7);
        assert!(open(directory.path(), ServerId::random()).1.is_none());
        let path = directory.path().join("target.json");
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(open(directory.path(), server).1.is_none());
        std::fs::write(&path, r#"{"version":99,"goal":{}}"#).unwrap();
        assert!(matches!(
            Keeper::open(Disk::default(), directory.path(), server),
            Err(AgentError::Newer { found: 99, .. })
        ));
        std::fs::write(&path, whole).unwrap();
        let content = r#"{"version":98,"change":{}}"#;
        let line = format!("{} {content}\n", Digest::of_bytes(content.as_bytes()));
        std::fs::write(directory.path().join("target.journal"), line).unwrap();
        assert!(matches!(
            Keeper::open(Disk::default(), directory.path(), server),
            Err(AgentError::Newer { found: 98, .. })
        ));
    }

    #[test]
    fn deltas_are_lines_until_they_are_folded_in() {
        let directory = tempfile::tempdir().unwrap();
        let (server, journal) = (ServerId::random(), directory.path().join("target.journal"));
        let mut now = target(server, 1);
        let (mut keeper, _) = open(directory.path(), server);
        // The first is whole in any case: there is nothing it could follow on.
        let (first, delta) = next(&now);
        keeper.keep(&first, Some(&delta)).unwrap();
        now = first;
        for _ in 0..3 {
            let (next, delta) = next(&now);
            keeper.keep(&next, Some(&delta)).unwrap();
            now = next;
        }
        let lines = std::fs::read(&journal).unwrap();
        assert_eq!(lines.iter().filter(|byte| **byte == b'\n').count(), 3);
        drop(keeper);
        // The next agent knows all, and begins a new journal.
        let (mut keeper, held) = open(directory.path(), server);
        assert_eq!(*held.unwrap(), now);
        assert!(std::fs::read(&journal).unwrap().is_empty());
        // An old journal beside a newer whole, as after a death between the two, changes nothing.
        std::fs::write(&journal, lines).unwrap();
        assert_eq!(*open(directory.path(), server).1.unwrap(), now);
        let (next, delta) = next(&now);
        keeper.keep(&next, Some(&delta)).unwrap();
        keeper.fold(&next).unwrap();
        assert!(std::fs::read(&journal).unwrap().is_empty());
        assert_eq!(*open(directory.path(), server).1.unwrap(), next);
    }

    #[test]
    fn a_long_journal_becomes_a_whole() {
        let directory = tempfile::tempdir().unwrap();
        let server = ServerId::random();
        let (mut keeper, _) = open(directory.path(), server);
        let mut now = target(server, 1);
        keeper.keep(&now, None).unwrap();
        let mut folded = 0;
        while folded < 2 {
            let (next, delta) = next(&now);
            let before = keeper.journal_bytes;
            keeper.keep(&next, Some(&delta)).unwrap();
            now = next;
            assert!(keeper.journal_bytes < 2 * JOURNAL_KEPT_BYTES.max(keeper.whole_bytes), "it grows without end");
            folded += usize::from(keeper.journal_bytes < before);
        }
        assert_eq!(*open(directory.path(), server).1.unwrap(), now);
    }

    proptest! {
        /// A journal that was cut anywhere, or had a byte changed anywhere, leads to one of the targets on the way: that of the last
        /// whole line before the damage.
        #[test]
        fn damage_leads_to_a_target_on_the_way(count in 1..6_usize, at in 0.0..1.0_f64, cut: bool, flip in 1..=255_u8) {
            let mut way = vec![target(ServerId::random(), 1)];
            let (mut journal, mut ends) = (Vec::new(), vec![0]);
            for _ in 0..count {
                let (next, delta) = next(way.last().unwrap());
                journal.extend(line(&delta).unwrap());
                ends.push(journal.len());
                way.push(next);
            }
            let at = (at * journal.len() as f64) as usize;
            if cut {
                journal.truncate(at);
            } else {
                journal[at] ^= flip;
            }
            let whole_lines = ends.iter().filter(|end| **end <= at).count() - 1;
            let reached = replay(way[0].clone(), &journal).unwrap();
            prop_assert_eq!(&reached, &way[whole_lines]);
        }

        #[test]
        fn any_bytes_are_a_journal(bytes: Vec<u8>) {
            let whole = target(ServerId::random(), 1);
            prop_assert_eq!(replay(whole.clone(), &bytes), Ok(whole));
        }
    }
}
