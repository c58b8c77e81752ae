//! What clients did and were told, and what it must mean.
//!
//! The object is one tag of one instance: it is set to values nobody sets twice, removed, and read. Its owner's instance record holds it, so that
//! all objects of an instance are changed through one record, as everything in a datacenter is.

use serde::{Deserialize, Serialize};

use crate::checker::{self, Doubt, Model, Span};

/// A line of the load's output.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Event {
    /// An operation that has ended.
    Line(Line),
    /// An instance that was to be made or deleted.
    Instance(InstanceLine),
    /// Something that was done to the datacenter.
    Mark(Mark),
}

/// An instance that was to be made or deleted, and what its client was told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct InstanceLine {
    /// Its name, which no other has.
    pub(crate) name: String,
    /// Made, or deleted.
    pub(crate) make: bool,
    /// What came of it.
    pub(crate) got: Got,
    /// See [`Line::called`].
    pub(crate) returned: u64,
}

/// Something that was done to the datacenter.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// What.
    pub(crate) name: String,
    /// When: see [`Line::called`].
    pub(crate) at: u64,
}

/// One operation, as its client wrote it down.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Line {
    /// Which client.
    pub(crate) client: usize,
    /// Number of the headnode that was to be asked first.
    pub(crate) headnode: usize,
    /// The tag.
    pub(crate) object: String,
    /// What was wanted.
    pub(crate) want: Want,
    /// What came of it.
    pub(crate) got: Got,
    /// Nanoseconds since the load began.
    pub(crate) called: u64,
    /// See `called`.
    pub(crate) returned: u64,
}

/// What was wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Want {
    Set(u64),
    Remove,
    Read,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Got {
    /// It is done.
    Done,
    /// There is no such tag.
    Absent,
    /// It is this.
    Value(u64),
    /// This, but it may be old, the headnode says.
    Stale,
    /// There is no such tag, says the last sending of a removal; one before it, whose answer was lost, may have removed it, or may yet.
    AbsentByNow,
    /// It was certainly not done.
    Refused(String),
    /// Nobody knows.
    Unknown(String),
}

impl Line {
    /// Whether it changed something, and its client was told so.
    pub(crate) fn is_acknowledged_change(&self) -> bool {
        self.want != Want::Read && self.got == Got::Done
    }
}

impl Got {
    /// Whether nobody knows if it was done.
    pub(crate) fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown(_) | Self::AbsentByNow)
    }

    /// Whether the client got nothing for its question.
    pub(crate) fn is_failure(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Unknown(_))
    }
}

/// A tag.
struct Tag;

impl Model for Tag {
    type State = Option<u64>;
    type Action = (Want, Got);

    fn initial() -> Self::State {
        None
    }

    fn apply(state: &Self::State, (want, got): &Self::Action) -> Option<Self::State> {
        match (want, got) {
            (Want::Set(value), _) => Some(Some(*value)),
            (Want::Remove, Got::Done) => state.map(|_| None),
            (Want::Remove, Got::Absent) => state.is_none().then_some(None),
            (Want::Remove, _) => Some(None),
            (Want::Read, Got::Value(value)) => (*state == Some(*value)).then_some(*state),
            (Want::Read, _) => state.is_none().then_some(None),
        }
    }
}

/// Checks every object by itself; the words name the first that cannot have happened.
pub(crate) fn check(lines: &[Line]) -> Result<(), String> {
    let mut objects: Vec<&str> = lines.iter().map(|line| line.object.as_str()).collect();
    objects.sort_unstable();
    objects.dedup();
    for object in objects {
        let about: Vec<&Line> = lines.iter().filter(|line| line.object == object && says_something(line)).collect();
        let about: Vec<&Line> = about.iter().copied().filter(|line| matters(line, &about)).collect();
        let spans: Vec<Span<(Want, Got)>> = about
            .iter()
            .map(|line| Span {
                called: line.called,
                returned: (!line.got.is_unknown()).then_some(line.returned),
                action: (line.want, line.got.clone()),
            })
            .collect();
        let longest = match checker::check::<Tag>(&spans) {
            Ok(()) => continue,
            Err(Doubt::Undecided) => {
                return Err(format!("{object}: too much is unknown to decide whether it is linearizable"));
            }
            Err(Doubt::Impossible(longest)) => longest,
        };
        let left: Vec<String> = (0..about.len())
            .filter(|position| !longest.contains(position))
            .take(8)
            .map(|position| format!("{:?}", about[position]))
            .collect();
        return Err(format!(
            "{object} is not linearizable: after {} operations nothing fits of\n{}",
            longest.len(),
            left.join("\n")
        ));
    }
    Ok(())
}

/// A value that nobody knows to have been set, nobody read, and nobody can have removed, is as if it was never set.
fn matters(line: &Line, about: &[&Line]) -> bool {
    let Want::Set(value) = line.want else { return true };
    let is_seen = |other: &&Line| {
        other.got == Got::Value(value)
            || other.want == Want::Remove && other.got == Got::Done && other.returned > line.called
    };
    !line.got.is_unknown() || about.iter().any(is_seen)
}

/// What was refused did not happen, and a read that failed or may be old says nothing.
fn says_something(line: &Line) -> bool {
    match line.got {
        Got::Refused(_) | Got::Stale => false,
        Got::Unknown(_) | Got::AbsentByNow => line.want != Want::Read,
        Got::Done | Got::Absent | Got::Value(_) => true,
    }
}

/// What there must be, and what there must not be, by what was acknowledged. Instances of which nobody knows are in neither.
pub(crate) fn owed(lines: &[InstanceLine]) -> (Vec<&str>, Vec<&str>) {
    let acknowledged = |make: bool| {
        lines.iter().filter(move |line| line.make == make && line.got == Got::Done).map(|line| line.name.as_str())
    };
    let touched: Vec<&str> = lines.iter().filter(|line| !line.make).map(|line| line.name.as_str()).collect();
    (acknowledged(true).filter(|name| !touched.contains(name)).collect(), acknowledged(false).collect())
}
