//! From what went wrong to what the client is told. The one place where `control`'s errors meet the contract's codes.

use std::sync::Arc;

use cloudapi::{
    error::{Code, ErrorBody, FieldError},
    signature::SignatureError,
};
use control::{Error, FieldCode};
use http::header;
use model::instance::Instance;
use store::Entry;
use tracing::error;

/// Why a request is not answered as it wished.
#[derive(Debug)]
pub(super) enum ApiError {
    /// A code and its words.
    Refused {
        code: Code,
        body: ErrorBody,
        /// Further headers: `Location`, `Retry-After` …
        headers: Vec<(http::HeaderName, String)>,
    },
    /// The instance is deleted: its last state travels with status 410.
    Gone(Arc<Entry<Instance>>),
}

impl ApiError {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self::Refused { code, body: ErrorBody::new(code, message), headers: Vec::new() }
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::ResourceNotFound, message)
    }

    /// A parameter that has to be there.
    pub(super) fn missing(field: &str) -> Self {
        Self::field(Code::MissingParameter, field, "Missing", format!("{field} must be specified"))
    }

    /// A parameter with a bad value.
    pub(super) fn invalid(field: &str, message: impl Into<String>) -> Self {
        Self::field(Code::InvalidArgument, field, "Invalid", message.into())
    }

    fn field(code: Code, field: &str, kind: &str, message: String) -> Self {
        let mut body = ErrorBody::new(code, message.clone());
        body.errors.push(FieldError { field: field.to_owned(), code: kind.to_owned(), message });
        Self::Refused { code, body, headers: Vec::new() }
    }

    pub(super) fn with_header(mut self, name: http::HeaderName, value: impl Into<String>) -> Self {
        if let Self::Refused { headers, .. } = &mut self {
            headers.push((name, value.into()));
        }
        self
    }
}

impl From<SignatureError> for ApiError {
    fn from(error: SignatureError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        let code = match error {
            Error::Gone(instance) => return Self::Gone(instance),
            Error::Invalid(fields) => return invalid_fields(fields.into_iter().map(field_error).collect()),
            Error::NotFound { .. } => Code::ResourceNotFound,
            Error::Conflict(_) | Error::AlreadyExists { .. } => Code::InvalidArgument,
            Error::InUse(_) => Code::InUseError,
            Error::InsufficientCapacity(_) | Error::NoAddress { .. } | Error::NoVni { .. } => {
                Code::InsufficientCapacity
            }
            Error::DeletionProtected => Code::CannotDestroyMachine,
            Error::NotAuthorized(_) => Code::NotAuthorized,
            Error::InvalidState { .. } => Code::InvalidState,
            Error::InProgress => return in_progress(text),
            Error::Unavailable(_) => Code::ServiceUnavailable,
            // Not 503: who hears that takes it for not done.
            Error::Store(store::CommitError::Engine(_)) => {
                error!(error = base::errors::chain(&error), "request failed");
                let text = "the datacenter's records cannot be written at the moment; whether this was done is not known: look, \
                            then repeat it";
                return Self::new(Code::InternalError, text);
            }
            Error::Store(_) | Error::File { .. } => {
                // The reason is the operator's; the tenant cannot do anything about it.
                error!(error = base::errors::chain(&error), "request failed");
                return Self::new(Code::InternalError, "something is wrong on our side; try again later");
            }
        };
        Self::new(code, text)
    }
}

/// What is wrong with the fields of one request, collected so that the client hears of everything at once.
#[derive(Debug, Default)]
pub(super) struct Faults {
    fields: Vec<FieldError>,
    /// What no field is to blame for.
    other: Option<ApiError>,
}

impl Faults {
    /// The value of a field, or a default one whose fault is noted.
    pub(super) fn take<T: Default>(&mut self, read: Result<T, ApiError>) -> T {
        read.unwrap_or_else(|error| {
            self.add(error);
            T::default()
        })
    }

    /// Notes one refusal.
    pub(super) fn add(&mut self, error: ApiError) {
        match error {
            ApiError::Refused { body, .. } if !body.errors.is_empty() => self.fields.extend(body.errors),
            other => drop(self.other.get_or_insert(other)),
        }
    }

    /// Notes what else is wrong, of fields nothing is noted of yet.
    pub(super) fn add_others(&mut self, fields: Vec<control::FieldError>) {
        let known: Vec<String> = self.fields.iter().map(|known| known.field.clone()).collect();
        let is_known = |field: &str| known.iter().any(|known| known == field);
        self.fields.extend(fields.into_iter().filter(|new| !is_known(&new.field)).map(field_error));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.fields.is_empty() && self.other.is_none()
    }

    /// All is well, or the refusal.
    pub(super) fn finish(self) -> Result<(), ApiError> {
        match self.other {
            _ if !self.fields.is_empty() => Err(invalid_fields(self.fields)),
            Some(other) => Err(other),
            None => Ok(()),
        }
    }
}

/// A named call whose first sending is not answered yet: the client only has to be patient.
fn in_progress(text: String) -> ApiError {
    ApiError::field(Code::InUseError, control::repeats::FIELD, "InProgress", text).with_header(header::RETRY_AFTER, "1")
}

fn field_error(field: control::FieldError) -> FieldError {
    let code = match field.code {
        FieldCode::Missing => "Missing",
        FieldCode::Invalid => "Invalid",
        FieldCode::Conflict => "Conflict",
    };
    FieldError { field: field.field, code: code.to_owned(), message: field.message }
}

fn invalid_fields(fields: Vec<FieldError>) -> ApiError {
    let code = match fields.as_slice() {
        [one] if one.code == "Missing" => Code::MissingParameter,
        [_] => Code::InvalidArgument,
        _ => Code::ValidationFailed,
    };
    let sentence = |field: &FieldError| match field.message.contains(&field.field) {
        true => field.message.clone(),
        false => format!("{}: {}", field.field, field.message),
    };
    let sentences: Vec<String> = fields.iter().map(sentence).collect();
    let body = ErrorBody { errors: fields, ..ErrorBody::new(code, sentences.join("; ")) };
    ApiError::Refused { code, body, headers: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_been_done_is_told_from_what_was_not() {
        let told = |error: Error| match ApiError::from(error) {
            ApiError::Refused { code, body, .. } => (code, body.message),
            ApiError::Gone(_) => panic!("it is no instance"),
        };
        let lost = store::EngineError::Failed { doing: "commit to etcd".to_owned(), source: "no answer".into() };
        let (code, message) = told(store::CommitError::Engine(Arc::new(lost)).into());
        assert_eq!(code, Code::InternalError);
        assert!(message.contains("whether this was done is not known"), "{message}");
        let (code, _) = told(Error::Unavailable("not now".to_owned()));
        assert_eq!(code, Code::ServiceUnavailable);
    }
}
