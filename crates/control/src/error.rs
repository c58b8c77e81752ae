//! What can go wrong with a request, in few kinds that a door can branch on.
//!
//! Every text is for the person who asked: it names the field or the object and says what would be right. What belongs to
//! the operator alone (the store's trouble, which machine refused) is a source or a field of its own.

use std::sync::Arc;

use model::{instance::Instance, placement::NoRoom, state::PublicState};
use store::Entry;

/// Result of a verb of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a request is not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such object, or the caller may not know of it.
    #[error("{what} {id} does not exist")]
    NotFound {
        /// `instance`, `package`, `network` …
        what: &'static str,
        /// What was asked for.
        id: String,
    },
    /// The instance was deleted; its last record is still here.
    #[error("instance {} was deleted", .0.id)]
    Gone(Arc<Entry<Instance>>),
    /// Fields of the request have values that are not allowed.
    #[error("{}", sentences(.0))]
    Invalid(Vec<FieldError>),
    /// The request contradicts the state of things.
    #[error("{0}")]
    Conflict(String),
    /// The object cannot go while others need it.
    #[error("{0}")]
    InUse(String),
    /// Another object has the name already.
    #[error("{what} \"{name}\" already exists")]
    AlreadyExists {
        /// `account`, `key`, `package` …
        what: &'static str,
        /// The name that is taken.
        name: String,
    },
    /// No machine can take the instance.
    #[error("{}", .0.summary())]
    InsufficientCapacity(#[from] NoRoom),
    /// The network has no free address.
    #[error("network \"{network}\" has no free address left; free some or use another network")]
    NoAddress {
        /// Its name.
        network: String,
    },
    /// Every number a tenant's VLAN could have is taken.
    #[error("all {count} numbers the datacenter has for VLANs are taken; delete a VLAN, or ask the operator for more")]
    NoVni {
        /// How many there are.
        count: u32,
    },
    /// The instance is protected.
    #[error("the instance has deletion protection; disable it first")]
    DeletionProtected,
    /// The caller may not do this.
    #[error("{0}")]
    NotAuthorized(String),
    /// The instance is in a state that does not allow this.
    #[error("cannot {verb} an instance that is {}; {hint}", state.as_str())]
    InvalidState {
        /// `start`, `stop` …
        verb: &'static str,
        /// Its state.
        state: PublicState,
        /// What would be right.
        hint: &'static str,
    },
    /// A call of the same name is still being carried out.
    #[error("the call is still being carried out; repeat it in a moment")]
    InProgress,
    /// Nothing can be written now; reading still works.
    #[error("{0}")]
    Unavailable(String),
    /// The store failed.
    #[error("the store did not take the change")]
    Store(#[source] store::CommitError),
    /// A file on the headnode could not be read or written.
    #[error("failed to {operation}")]
    File {
        /// What we were doing, to what.
        operation: String,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}

/// One field of a request that is not right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Its name as clients write it.
    pub field: String,
    /// What kind of trouble.
    pub code: FieldCode,
    /// What is wrong and what would be right.
    pub message: String,
}

/// Kinds of trouble with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldCode {
    /// It has to be there.
    Missing,
    /// Its value is not allowed.
    Invalid,
    /// Its value contradicts something else.
    Conflict,
}

impl Error {
    /// One field with a value that is not allowed.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::field(field, FieldCode::Invalid, message)
    }

    /// One field with trouble of some kind.
    pub fn field(field: impl Into<String>, code: FieldCode, message: impl Into<String>) -> Self {
        Self::Invalid(vec![FieldError { field: field.into(), code, message: message.into() }])
    }

    /// The same where the request calls field `inner` by another name.
    pub(crate) fn of_field(self, inner: &str, outer: &str) -> Self {
        let renamed = |fault: FieldError| match fault.field == inner {
            true => FieldError { field: outer.to_owned(), ..fault },
            false => fault,
        };
        match self {
            Self::Invalid(fields) => Self::Invalid(fields.into_iter().map(renamed).collect()),
            other => other,
        }
    }

    /// There is no such object.
    pub fn not_found(what: &'static str, id: impl ToString) -> Self {
        Self::NotFound { what, id: id.to_string() }
    }
}

/// Collects what is wrong with the fields of one request, so that the caller hears of everything at once.
#[derive(Debug, Default)]
pub(crate) struct Faults(Vec<FieldError>);

impl Faults {
    /// Notes `why` beside `field` when the check failed.
    pub(crate) fn check(&mut self, field: &str, outcome: Result<(), String>) {
        if let Err(why) = outcome {
            self.add(field, FieldCode::Invalid, why);
        }
    }

    /// Notes one fault.
    pub(crate) fn add(&mut self, field: impl Into<String>, code: FieldCode, message: impl Into<String>) {
        self.0.push(FieldError { field: field.into(), code, message: message.into() });
    }

    /// The value, or a default one after noting which fields are wrong; any other error is passed on.
    pub(crate) fn take<T: Default>(&mut self, outcome: crate::Result<T>) -> crate::Result<T> {
        match outcome {
            Err(Error::Invalid(fields)) => {
                self.0.extend(fields);
                Ok(T::default())
            }
            other => other,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// These faults, and `others` of fields that have none yet.
    pub(crate) fn and(mut self, others: Vec<FieldError>) -> Vec<FieldError> {
        let others: Vec<FieldError> =
            others.into_iter().filter(|other| self.0.iter().all(|known| known.field != other.field)).collect();
        self.0.extend(others);
        self.0
    }

    /// All is well, or [`Error::Invalid`] with fields as `name` calls them.
    pub(crate) fn finish_as(mut self, name: impl Fn(&str) -> &str) -> Result<()> {
        for fault in &mut self.0 {
            fault.field = name(&fault.field).to_owned();
        }
        self.finish()
    }

    /// All is well, or [`Error::Invalid`].
    pub(crate) fn finish(self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::Invalid(self.0)) }
    }
}

fn sentences(fields: &[FieldError]) -> String {
    let parts: Vec<String> = fields.iter().map(|field| format!("{}: {}", field.field, field.message)).collect();
    parts.join("; ")
}

impl From<store::CommitError> for Error {
    fn from(error: store::CommitError) -> Self {
        use store::CommitError;
        match error {
            CommitError::Conflict { .. } => {
                Self::Conflict("the object was changed by somebody else at the same time; try again".to_owned())
            }
            CommitError::Full => {
                Self::Unavailable("the datacenter's store is full; only reading and deleting work".to_owned())
            }
            other => Self::Store(other),
        }
    }
}

/// A number and what it counts: `1 instance`, `2 instances`.
pub(crate) fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
