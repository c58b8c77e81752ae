//! Error bodies: every code of the contract, its HTTP status, and the shape they travel in.
//!
//! Clients branch on `code`, people read `message`, forms read `errors`. Codes are never renamed; a code this version does
//! not know is kept as text when reading ([`ErrorBody::code`]), so that an older client survives a newer server.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $status:literal;)*) => {
        /// A code of the contract.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code {
            $($(#[$doc])* $name,)*
        }

        impl Code {
            /// All codes, in the order of the contract's table.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The text in the body's `code`.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            /// The HTTP status it travels with.
            pub const fn status(self) -> u16 {
                match self {
                    $(Self::$name => $status,)*
                }
            }
        }
    };
}

codes! {
    /// What was sent is not HTTP, JSON or a form.
    BadRequest = "BadRequest", 400;
    /// Something is wrong with us, not with the request.
    InternalError = "InternalError", 500;
    /// The object is in use.
    InUseError = "InUseError", 409;
    /// A parameter has a bad value.
    InvalidArgument = "InvalidArgument", 409;
    /// Authentication failed.
    InvalidCredentials = "InvalidCredentials", 401;
    /// A header cannot be read.
    InvalidHeader = "InvalidHeader", 400;
    /// No version we speak is in the asked range.
    InvalidVersion = "InvalidVersion", 449;
    /// A required parameter is absent.
    MissingParameter = "MissingParameter", 409;
    /// The path exists, the method does not.
    MethodNotAllowed = "MethodNotAllowed", 405;
    /// The answer cannot be had in the wanted media type.
    NotAcceptable = "NotAcceptable", 406;
    /// Known caller, forbidden deed.
    NotAuthorized = "NotAuthorized", 403;
    /// The endpoint exists in the contract, not here.
    NotImplemented = "NotImplemented", 501;
    /// Too many requests, as the documents call it.
    RequestThrottled = "RequestThrottled", 420;
    /// Too many requests, as the servers answer it.
    TooManyRequests = "TooManyRequests", 429;
    /// The body is over the limit.
    RequestTooLarge = "RequestTooLarge", 413;
    /// Ask elsewhere; the `Location` header says where.
    ResourceMoved = "ResourceMoved", 302;
    /// No such thing, or not yours.
    ResourceNotFound = "ResourceNotFound", 404;
    /// The body's media type is not one of ours.
    UnsupportedMediaType = "UnsupportedMediaType", 415;
    /// Nobody knows.
    UnknownError = "UnknownError", 500;
    /// Not now: maintenance, full disk.
    ServiceUnavailable = "ServiceUnavailable", 503;
    /// No server can take the instance.
    InsufficientCapacity = "InsufficientCapacity", 409;
    /// Several fields are wrong; `errors` lists them.
    ValidationFailed = "ValidationFailed", 409;
    /// Deletion protection, or another reason to stay.
    CannotDestroyMachine = "CannotDestroyMachineError", 409;
    /// Containers have no network to go to.
    DefaultFabricNetworkNotConfigured = "DefaultFabricNetworkNotConfiguredError", 409;
    /// A volume is on a network the instance is not on.
    VolumesNotReachable = "VolumesNotReachable", 409;
    /// Only virtual machines have screens.
    MachineHasNoVnc = "MachineHasNoVNCError", 400;
    /// The instance must run for this.
    MachineStopped = "MachineStoppedError", 400;
    /// The endpoint speaks WebSocket only.
    UpgradeRequired = "UpgradeRequiredError", 400;
    /// The package may not be used on fabrics.
    InvalidFabricPackage = "InvalidFabricPackage", 409;
    /// The object is in a state that forbids this.
    InvalidState = "InvalidState", 409;
    /// Instances refer to the volume.
    VolumeInUse = "VolumeInUse", 409;
    /// The account has a volume of that name.
    VolumeAlreadyExists = "VolumeAlreadyExists", 409;
    /// No such volume.
    VolumeNotFound = "VolumeNotFound", 404;
    /// Volumes of that size are not sold.
    VolumeSizeNotAvailable = "VolumeSizeNotAvailable", 409;
    /// Volumes live on fabric networks only.
    InvalidNetworks = "InvalidNetworks", 409;
    /// The account may not use this datacenter.
    Forbidden = "Forbidden", 403;
}

/// The body of every error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// [`Code::as_str`], or a code of a newer server.
    pub code: Cow<'static, str>,
    /// For people.
    pub message: String,
    /// The fields that are wrong, for codes that come from validation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

impl ErrorBody {
    /// A body with no field errors.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code: Cow::Borrowed(code.as_str()), message: message.into(), errors: Vec::new() }
    }
}

/// One wrong field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldError {
    /// Name as the client wrote it.
    pub field: String,
    /// `Missing`, `Invalid` or `Duplicate`.
    pub code: String,
    /// What is wrong and what would be right.
    pub message: String,
}
