//! From what went wrong to what the client is told. The one place where `control`'s errors meet the contract's codes.

use std::sync::Arc;

use cloudapi::{
    error::{Code, ErrorBody, FieldError},
    signature::SignatureError,
};
use control::{Error, FieldCode};
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
            Error::Invalid(fields) => return invalid_fields(text, fields),
            Error::NotFound { .. } => Code::ResourceNotFound,
            Error::Conflict(_) | Error::AlreadyExists { .. } => Code::InvalidArgument,
            Error::InUse(_) => Code::InUseError,
            Error::InsufficientCapacity(_) | Error::NoAddress { .. } => Code::InsufficientCapacity,
            Error::DeletionProtected => Code::CannotDestroyMachine,
            Error::NotAuthorized(_) => Code::NotAuthorized,
            Error::InvalidState { .. } => Code::InvalidState,
            Error::Unavailable(_) => Code::ServiceUnavailable,
            Error::Store(_) | Error::File { .. } => {
                // The reason is the operator's; the tenant cannot do anything about it.
                error!(error = base::errors::chain(&error), "request failed");
                return Self::new(Code::InternalError, "something is wrong on our side; try again later");
            }
        };
        Self::new(code, text)
    }
}

fn invalid_fields(text: String, fields: Vec<control::FieldError>) -> ApiError {
    let code = match fields.as_slice() {
        [one] if one.code == FieldCode::Missing => Code::MissingParameter,
        [_] => Code::InvalidArgument,
        _ => Code::ValidationFailed,
    };
    let mut body = ErrorBody::new(code, text);
    body.errors = fields
        .into_iter()
        .map(|field| FieldError {
            field: field.field,
            code: match field.code {
                FieldCode::Missing => "Missing",
                FieldCode::Invalid => "Invalid",
                FieldCode::Conflict => "Conflict",
            }
            .to_owned(),
            message: field.message,
        })
        .collect();
    ApiError::Refused { code, body, headers: Vec::new() }
}
