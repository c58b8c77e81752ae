//! Which releases may work on one store at a time.
//!
//! Headnodes are restarted one after the other, so for some minutes two releases read and write the same records. What a release writes is read by the one after
//! it and by the one before it, and by no other: a change of a stored form takes two releases. So headnodes may be one release apart. One that is further
//! away does not start beside the others, in either direction; it says which release has to come first.

use std::fmt;

/// A release's number. Patches change no stored form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release {
    major: u64,
    minor: u64,
}

impl Release {
    /// Reads `MAJOR.MINOR` and whatever follows; `None` when it is no such text, as tests' names are.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(['.', '-', '+']);
        Some(Self { major: parts.next()?.parse().ok()?, minor: parts.next()?.parse().ok()? })
    }

    /// Whether both may work on one store.
    fn is_beside(self, other: Self) -> bool {
        self.major == other.major && self.minor.abs_diff(other.minor) <= 1
    }

    /// The one that is next on the way from `from` to here, where that has a number.
    fn step_from(self, from: Self) -> Option<Self> {
        let minor = if self > from { from.minor + 1 } else { from.minor.checked_sub(1)? };
        (self.major == from.major).then_some(Self { minor, ..from })
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Whether a program of release `ours` may start beside headnodes that run `theirs`, named.
///
/// # Errors
/// Why not, and what to do.
pub fn may_start<'a>(ours: &str, theirs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<(), String> {
    let Some(us) = Release::parse(ours) else { return Ok(()) };
    for (name, release) in theirs {
        let Some(them) = Release::parse(release).filter(|them| !us.is_beside(*them)) else { continue };
        let next = match us.step_from(them) {
            Some(step) => format!("install release {step} on all headnodes first, one after the other"),
            None => "install the releases between them on all headnodes first, one after the other".to_owned(),
        };
        let (kind, reads) = match us > them {
            true => ("too new", "it may write what those cannot read"),
            false => ("too old", "it may not read what those have written"),
        };
        return Err(format!(
            "this program is release {ours}, {kind} to work beside {name}, which runs {release}: {reads}; {next}"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_work_side_by_side_and_others_are_told_what_comes_first() {
        let start = |ours: &str, theirs: &[&str]| may_start(ours, theirs.iter().map(|release| ("head", *release)));
        for (ours, theirs) in [("0.1.0", "0.1.9"), ("0.2.0", "0.1.0"), ("0.1.0", "0.2.0-rc.1"), ("3.4.1", "3.5.0+git")]
        {
            assert_eq!(start(ours, &[theirs]), Ok(()), "{ours} beside {theirs}");
        }
        let why = start("0.3.0", &["0.2.1", "0.1.0"]).unwrap_err();
        assert!(why.contains("too new") && why.contains("runs 0.1.0") && why.contains("install release 0.2 "), "{why}");
        let why = start("0.1.0", &["0.4.0"]).unwrap_err();
        assert!(why.contains("too old") && why.contains("install release 0.3 "), "{why}");
        let why = start("1.0.0", &["0.9.0"]).unwrap_err();
        assert!(why.contains("too new") && why.contains("the releases between"), "{why}");
        assert_eq!(start("test", &["0.9.0"]), Ok(()));
        assert_eq!(start("0.9.0", &["", "test"]), Ok(()));
        assert_eq!(start("0.9.0", &[]), Ok(()));
    }
}
