//! How the store's keys lie in etcd's keyspace: `<prefix>r/<table>/<key>` for records, `<prefix>m/<name>` for the marks of those who
//! commit, `<prefix>format` for the layout itself, `<prefix>base` for
//! what is added to revisions. One prefix per datacenter, so that several can share a cluster, and one watch sees all of it.

use bytes::Bytes;

#[derive(Debug, Clone)]
pub(crate) struct Keys {
    prefix: String,
}

impl Keys {
    /// `prefix` ends with a `/`.
    pub(crate) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// Below a prefix as the configuration names it.
    pub(crate) fn below(prefix: &str) -> Self {
        Self::new(&format!("/{}/", prefix.trim_matches('/')))
    }

    pub(crate) fn format(&self) -> Bytes {
        Bytes::from(format!("{}format", self.prefix))
    }

    /// What is added to etcd's revisions.
    pub(crate) fn base(&self) -> Bytes {
        Bytes::from(format!("{}base", self.prefix))
    }

    pub(crate) fn mark(&self, name: &str) -> Bytes {
        Bytes::from(format!("{}m/{name}", self.prefix))
    }

    /// First key and end of all marks.
    pub(crate) fn marks(&self) -> (Bytes, Bytes) {
        (self.mark(""), Bytes::from(format!("{}n", self.prefix)))
    }

    pub(crate) fn record(&self, key: &str) -> Bytes {
        Bytes::from(format!("{}r/{key}", self.prefix))
    }

    /// First key of the records after `after`; empty is before all of them.
    pub(crate) fn records_after(&self, after: &str) -> Bytes {
        match after.is_empty() {
            true => self.record(""),
            false => self.record(&format!("{after}\0")),
        }
    }

    /// The end of all records, itself not one.
    pub(crate) fn records_end(&self) -> Bytes {
        Bytes::from(format!("{}s", self.prefix))
    }

    /// First key and end of everything.
    pub(crate) fn all(&self) -> (Bytes, Bytes) {
        // The prefix ends with a `/`, whose successor is `0`.
        let end = format!("{}0", self.prefix.trim_end_matches('/'));
        (Bytes::from(self.prefix.clone()), Bytes::from(end))
    }

    /// The store's key of an etcd key; `None` when that is no record.
    pub(crate) fn record_of(&self, key: &[u8]) -> Option<String> {
        let rest = key.strip_prefix(self.prefix.as_bytes())?.strip_prefix(b"r/")?;
        Some(String::from_utf8_lossy(rest).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_what_they_should() {
        let keys = Keys::new("/neso/dc/");
        let (start, end) = keys.all();
        let within = |key: &Bytes| *key >= start && *key < end;
        assert!([keys.format(), keys.base(), keys.mark("a"), keys.record("t/k")].iter().all(within));
        assert!(!within(&Keys::new("/neso/dc2/").record("t/k")));
        let is_record = |key: &Bytes| *key >= keys.records_after("") && *key < keys.records_end();
        assert!(is_record(&keys.record("a/b")) && is_record(&keys.record("\u{10ffff}/b")));
        let (first, past) = keys.marks();
        assert!(keys.mark("a") >= first && keys.mark("\u{10ffff}") < past && keys.record("") >= past);
        assert!(!is_record(&keys.mark("a")) && !is_record(&keys.format()) && !is_record(&keys.base()));
        assert!(keys.record("t/a") < keys.records_after("t/a") && keys.records_after("t/a") <= keys.record("t/a\0"));
        assert_eq!(keys.record_of(&keys.record("t/k")).as_deref(), Some("t/k"));
        assert_eq!(keys.record_of(&keys.mark("k")), None);
    }
}
