//! Opening a keyspace: what must be known before the first commit.
//!
//! Everything that is wrong with a cluster is said here, with what to do about it: too old, another layout, smaller limits than the
//! settings say, a certificate it does not take.
//!
//! A cluster without a majority is opened all the same, as one of its members holds it (see `held`): it is read, nothing is committed, and whoever
//! opened it asks now and then whether there is a majority ([`Etcd::settle`]), upon which all goes on as if it had been there from the beginning.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex as Leaf, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use bytes::Bytes;
use store::{Revision, engine::Limits};
use tokio::{sync::Mutex, time::Instant};

use crate::{
    ANSWER_MAX, COMMIT_BYTES_MAX, Endpoint, Etcd, Lane, PATIENCE_MAX, Room, Tls, TlsError,
    bolt::FileError,
    call::{CallError, Code},
    cluster::Cluster,
    deadline,
    held::Held,
    keys::Keys,
    mark::{Mark, Nonce, Unclear},
    messages::{
        Compare, Expected, PutRequest, RangeRequest, RangeResponse, Request, StatusRequest, StatusResponse, TxnRequest,
        TxnResponse, path,
    },
    replay::LogFacts,
    revisions::Base,
    space::Space,
};

/// Checks and writes of one transaction that etcd takes unless it is started with `--max-txn-ops`.
pub const OPERATIONS_MAX_DEFAULT: usize = 128;
/// Of these the mark takes two: etcd counts the longest list, of checks or of writes, which gets one more, and what is nested in it, which is
/// one.
const OPERATIONS_OF_A_MARK: usize = 2;
/// Fewest that make sense: a commit of a few records, and the mark.
const OPERATIONS_MIN: usize = 16;
/// The oldest etcd that has all that is used here.
const OLDEST: (u32, u32) = (3, 4);
/// How long a majority has to answer before what one member holds is taken: members that are well answer in milliseconds, and one that elects settles soon.
const MAJORITY_MAX: Duration = Duration::from_secs(2);
/// The same for each later look.
const SETTLE_MAX: Duration = Duration::from_secs(2);
/// How records and marks lie under the prefix.
const FORMAT: &str = "1";
/// Longest name of somebody who commits.
const NAME_BYTES_MAX: usize = 128;

/// How to reach a cluster, and what to use of it.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its members, `https://HOST[:PORT]`.
    pub endpoints: Vec<String>,
    /// Certificates; none only for members on this machine's loopback address.
    pub tls: Option<Tls>,
    /// Start of all keys, between slashes: the datacenter's own.
    pub prefix: String,
    /// Who commits. No two processes may have the same name at a time: the later one takes over from the earlier one, whose commits fail from then on.
    pub name: String,
    /// The members' `--max-txn-ops`.
    pub operations_max: usize,
    /// How large their files may become; not looked at when absent.
    pub room: Option<Room>,
    /// Data directory of the member on this machine, if there is one: read while no member answers.
    pub data: Option<PathBuf>,
}

/// Why a cluster cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration itself.
    #[error("{0}")]
    Config(String),
    /// The certificates.
    #[error("prepare the certificates for etcd")]
    Tls(#[from] TlsError),
    /// No member answered, or the one that did refused.
    #[error("ask etcd ({members})")]
    Ask {
        /// All of them.
        members: String,
        /// The last one's words.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Too old.
    #[error("etcd is version {found}; 3.4 is the oldest that will do: upgrade it")]
    TooOld {
        /// What it says of itself.
        found: String,
    },
    /// It takes shorter transactions than it should.
    #[error(
        "etcd takes fewer than {wanted} operations in a transaction: start it with --max-txn-ops={wanted}, or lower `operations_max`"
    )]
    Operations {
        /// What was configured.
        wanted: usize,
    },
    /// The prefix is in use by something else.
    #[error("the store under `{prefix}` has layout {found}, this program knows {FORMAT}")]
    Format {
        /// Where.
        prefix: String,
        /// What is written there.
        found: String,
    },
    /// Since this was opened without a majority, the store has become another one.
    #[error("the store under `{prefix}` was begun anew meanwhile: start again")]
    Another {
        /// Where.
        prefix: String,
    },
    /// The file of this machine's member.
    #[error("read this machine's member of etcd, because no other one answers")]
    File(#[from] FileError),
    /// What is added to revisions cannot be read.
    #[error("the store under `{prefix}` is damaged: its revisions' base is `{found}`, which is no number")]
    Base {
        /// Where.
        prefix: String,
        /// What is written there.
        found: String,
    },
}

impl OpenError {
    /// Whether more members would mend it.
    fn is_lack_of_members(&self) -> bool {
        match self {
            Self::Ask { source, .. } => source.downcast_ref::<CallError>().is_some_and(CallError::is_the_members_fault),
            _ => false,
        }
    }

    /// Whether time will not mend it.
    fn is_lack_of_trust(&self) -> bool {
        match self {
            Self::Ask { source, .. } => matches!(source.downcast_ref(), Some(CallError::Untrusted { .. })),
            _ => false,
        }
    }
}

impl Etcd {
    /// Connect, and take over the mark of [`Config::name`]; without a majority, read what one member holds.
    ///
    /// # Errors
    /// With the reason, and what to do about it.
    pub async fn open(config: Config) -> Result<Self, OpenError> {
        let endpoints = check(&config).map_err(OpenError::Config)?;
        if let Some(tls) = &config.tls {
            tls.client_config()?;
        }
        let cluster = Arc::new(Cluster::new(endpoints, config.tls.clone()));
        let keys = Keys::below(&config.prefix);
        let until = deadline();
        let (base, mark, held) = loop {
            let opening = Opening::new(&cluster, &keys, MAJORITY_MAX);
            match opening.all(&config).await {
                Ok((base, mark)) => break (base, mark, None),
                Err(error) if error.is_lack_of_members() => {
                    if let Some(held) = opening.held(&config).await? {
                        let mark = Mark { key: keys.mark(&config.name), revision: 0 };
                        break (base_of(&config.prefix, held.base.as_ref())?, mark, Some(Arc::new(held)));
                    }
                    if error.is_lack_of_trust() || Instant::now() >= until {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        };
        Ok(Self {
            cluster,
            keys,
            limits: Limits { records: config.operations_max - OPERATIONS_OF_A_MARK, bytes: COMMIT_BYTES_MAX },
            base: AtomicU64::new(base),
            space: Space::new(config.room),
            held: Arc::new(Leaf::new(held)),
            lane: Mutex::new(Lane { mark, unsettled: None }),
            config,
        })
    }

    /// Looks whether there is a majority now, if there was none yet; returns whether there is or was one.
    ///
    /// # Errors
    /// When there is one and it is not one to be used.
    pub async fn settle(&self) -> Result<bool, OpenError> {
        if !self.is_waiting() {
            return Ok(true);
        }
        let mut lane = self.lane.lock().await;
        match Opening::new(&self.cluster, &self.keys, SETTLE_MAX).all(&self.config).await {
            Ok((base, _)) if base != self.base().0 => Err(OpenError::Another { prefix: self.config.prefix.clone() }),
            Ok((_, mark)) => {
                lane.mark = mark;
                *self.held.lock().unwrap_or_else(PoisonError::into_inner) = None;
                Ok(true)
            }
            Err(error) if error.is_lack_of_members() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// All that one member holds below one prefix, in its file and in its log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survived {
    /// The store's newest revision.
    pub revision: Revision,
    /// The newest in the file alone.
    pub file_revision: Revision,
    /// Values as they were stored, by the store's key.
    pub records: BTreeMap<String, Bytes>,
    /// Number of the last entry of the log that is in the file.
    pub applied: u64,
    /// What was taken from the log.
    pub log: LogFacts,
    /// Each member the file knows, as etcd writes it down: JSON.
    pub members: Vec<Bytes>,
}

/// Reads what lies below a member's data directory, of the keyspace under `prefix`: the file, and what is in the log only, as far as that can be
/// followed. Takes as long as reading all of it.
///
/// # Errors
/// When the file cannot be read, is damaged, or holds no store that this program knows.
pub fn survived(data: &Path, prefix: &str) -> Result<Survived, OpenError> {
    let (held, beside) = Held::read_all(&Keys::below(prefix), data)?;
    check_layout(prefix, &held.format.unwrap_or_default())?;
    let base = |found| base_of(prefix, found).map(Base);
    let records = held.records.into_iter().map(|(key, (_, value))| (key, value)).collect();
    Ok(Survived {
        revision: base(held.base.as_ref())?.up(held.revision),
        file_revision: base(beside.base.as_ref())?.up(beside.revision),
        records,
        applied: beside.applied,
        log: beside.log,
        members: beside.members,
    })
}

struct Opening {
    cluster: Arc<Cluster>,
    keys: Keys,
    deadline: Instant,
}

impl Opening {
    fn new(cluster: &Arc<Cluster>, keys: &Keys, within: Duration) -> Self {
        Self { cluster: cluster.clone(), keys: keys.clone(), deadline: Instant::now() + within }
    }

    /// What a majority answers: what is added to revisions, and our mark.
    async fn all(&self, config: &Config) -> Result<(u64, Mark), OpenError> {
        self.check_version().await?;
        self.check_operations(config.operations_max).await?;
        self.check_format(&config.prefix).await?;
        let base = self.read_base(&config.prefix).await?;
        Ok((base, self.take_mark(&config.name).await?))
    }

    /// What one member holds, if it was ever opened there.
    async fn held(&self, config: &Config) -> Result<Option<Held>, OpenError> {
        let (endpoints, tls) = self.cluster.endpoints();
        let held = match (Held::ask(&self.keys, &endpoints, tls).await, &config.data) {
            (Ok(held), _) => held,
            (Err(_), Some(data)) if crate::held::file_of(data).exists() => {
                let (keys, data) = (self.keys.clone(), data.clone());
                base::task::blocking("read member", move || Held::read_file(&keys, &data)).await?
            }
            (Err(error), _) => {
                tracing::debug!(error = base::errors::chain(&error), "no member says what it holds");
                return Ok(None);
            }
        };
        match &held.format {
            None => Ok(None),
            Some(format) => check_layout(&config.prefix, format).map(|()| Some(held)),
        }
    }

    async fn check_version(&self) -> Result<(), OpenError> {
        let asked = self.cluster.ask_any(path::STATUS, &StatusRequest {}, ANSWER_MAX, self.deadline).await;
        let status: StatusResponse = asked.map_err(|error| self.failed(error))?;
        match is_new_enough(&status.version) {
            true => Ok(()),
            false => Err(OpenError::TooOld { found: status.version }),
        }
    }

    /// A transaction as long as the longest, which cannot come true: etcd measures it before anything else.
    async fn check_operations(&self, wanted: usize) -> Result<(), OpenError> {
        let key = self.keys.format();
        let never = |_| Compare::new(key.clone(), Expected::Version(-1));
        let question = TxnRequest { compare: (0..wanted).map(never).collect(), ..TxnRequest::default() };
        match self.cluster.ask_any::<_, TxnResponse>(path::TXN, &question, ANSWER_MAX, self.deadline).await {
            Err(CallError::Refused { code: Code::InvalidArgument, message, .. }) if message.contains("too many") => {
                Err(OpenError::Operations { wanted })
            }
            answer => answer.map(|_| ()).map_err(|error| self.failed(error)),
        }
    }

    async fn check_format(&self, prefix: &str) -> Result<(), OpenError> {
        let key = self.keys.format();
        let question = TxnRequest {
            compare: vec![Compare::new(key.clone(), Expected::Version(0))],
            success: vec![
                Request::Put(PutRequest { key: key.clone(), value: Bytes::from_static(FORMAT.as_bytes()) }).into(),
            ],
            failure: vec![Request::Range(RangeRequest { key, ..RangeRequest::default() }).into()],
        };
        // Asked twice it does no harm.
        let asked = self.cluster.ask_any(path::TXN, &question, PATIENCE_MAX, self.deadline).await;
        let answer: TxnResponse = asked.map_err(|error| self.failed(error))?;
        if answer.succeeded {
            return Ok(());
        }
        let range = answer.responses.first().and_then(|response| response.range.as_ref());
        let found = range.and_then(|range| range.kvs.first()).ok_or_else(|| self.failed(Unclear))?;
        check_layout(prefix, &found.value)
    }

    /// What is added to etcd's revisions.
    async fn read_base(&self, prefix: &str) -> Result<u64, OpenError> {
        let question = RangeRequest { key: self.keys.base(), ..RangeRequest::default() };
        let asked = self.cluster.ask_any(path::RANGE, &question, ANSWER_MAX, self.deadline).await;
        let answer: RangeResponse = asked.map_err(|error| self.failed(error))?;
        base_of(prefix, answer.kvs.first().map(|kv| &kv.value))
    }

    async fn take_mark(&self, name: &str) -> Result<Mark, OpenError> {
        let nonce = Nonce(base::random::wide_bits());
        let mut mark = Mark { key: self.keys.mark(name), revision: 0 };
        let look = mark.look();
        let asked = self.cluster.ask_any(path::RANGE, &look, ANSWER_MAX, self.deadline).await;
        let found: RangeResponse = asked.map_err(|error| self.failed(error))?;
        mark.revision = found.kvs.first().map_or(0, |kv| kv.mod_revision);
        loop {
            // A repetition after a lost answer finds our own number and is content.
            let question = mark.take(nonce);
            let asked = self.cluster.ask_any(path::TXN, &question, PATIENCE_MAX, self.deadline).await;
            let answer: TxnResponse = asked.map_err(|error| self.failed(error))?;
            let (revision, ours) = mark.taken(nonce, &answer).map_err(|error| self.failed(error))?;
            mark.revision = revision;
            if ours {
                return Ok(mark);
            }
            if Instant::now() >= self.deadline {
                return Err(OpenError::Config(format!("`{name}` is in use by a process that commits all the time")));
            }
        }
    }

    fn failed(&self, source: impl std::error::Error + Send + Sync + 'static) -> OpenError {
        OpenError::Ask { members: self.cluster.names(), source: Box::new(source) }
    }
}

fn check_layout(prefix: &str, found: &Bytes) -> Result<(), OpenError> {
    let wrong = || OpenError::Format { prefix: prefix.to_owned(), found: String::from_utf8_lossy(found).into_owned() };
    if found == FORMAT.as_bytes() { Ok(()) } else { Err(wrong()) }
}

fn base_of(prefix: &str, found: Option<&Bytes>) -> Result<u64, OpenError> {
    let Some(value) = found else { return Ok(0) };
    let text = String::from_utf8_lossy(value);
    text.parse().map_err(|_| OpenError::Base { prefix: prefix.to_owned(), found: text.clone().into_owned() })
}

fn check(config: &Config) -> Result<Vec<Endpoint>, String> {
    if config.endpoints.is_empty() {
        return Err("no endpoint of etcd is given".to_owned());
    }
    let plain = |text: &str| {
        !text.is_empty()
            && text.len() <= NAME_BYTES_MAX
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    if config.operations_max < OPERATIONS_MIN {
        return Err(format!(
            "{} operations in a transaction are too few; {OPERATIONS_MIN} will do",
            config.operations_max
        ));
    }
    if !plain(&config.name) {
        return Err(format!(
            "`{}` is no name to commit under: letters, digits, `-`, `_` and `.` make one",
            config.name
        ));
    }
    if !config.prefix.trim_matches('/').split('/').all(plain) {
        return Err(format!("`{}` is no prefix of keys", config.prefix));
    }
    let endpoints: Vec<Endpoint> =
        config.endpoints.iter().map(|text| Endpoint::parse(text)).collect::<Result<_, _>>()?;
    match endpoints.iter().find(|endpoint| endpoint.is_tls()) {
        Some(endpoint) if config.tls.is_none() => {
            Err(format!("etcd at {endpoint} is to be reached with TLS, but no certificates are given"))
        }
        _ => Ok(endpoints),
    }
}

fn is_new_enough(version: &str) -> bool {
    let mut parts = version.split('.').map(str::parse::<u32>);
    matches!((parts.next(), parts.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= OLDEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        for (version, fits) in [
            ("3.4.23", true),
            ("3.10.0", true),
            ("4.0.0", true),
            ("3.3.27", false),
            ("2.9.0", false),
            ("", false),
            ("x.y", false),
        ] {
            assert_eq!(is_new_enough(version), fits, "{version}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        let good = Config {
            endpoints: vec!["http://127.0.0.1:2379".to_owned()],
            tls: None,
            prefix: "neso/dc-1".to_owned(),
            name: "one".to_owned(),
            operations_max: 128,
            room: None,
            data: None,
        };
        assert!(check(&good).is_ok());
        let wrong = |change: fn(&mut Config)| {
            let mut config = good.clone();
            change(&mut config);
            check(&config).unwrap_err()
        };
        assert!(wrong(|config| config.endpoints.clear()).contains("no endpoint"));
        assert!(wrong(|config| config.name = "a/b".to_owned()).contains("a/b"));
        assert!(wrong(|config| config.prefix = "a//b".to_owned()).contains("prefix"));
        assert!(wrong(|config| config.operations_max = 0).contains("too few"));
        assert!(wrong(|config| config.endpoints[0] = "https://10.0.0.1".to_owned()).contains("no certificates"));
    }
}
