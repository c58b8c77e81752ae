//! How a command fails: one sentence for a person, with what to do about it, and an exit code.

/// A failure as a person reads it.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What went wrong, causes included.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) remedy: Option<String>,
}

impl Failure {
    /// A failure without advice.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), remedy: None }
    }

    /// Adds what to do about it.
    pub(crate) fn mend(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)?;
        match &self.remedy {
            Some(remedy) => write!(f, "\n  → {remedy}"),
            None => Ok(()),
        }
    }
}

impl<E: std::error::Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let remedy = advice(&error);
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            if !message.contains(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            source = cause.source();
        }
        Self { message, remedy }
    }
}

/// What to do about failures of the two APIs, whichever command met them.
fn advice(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    if let Some(error) = error.downcast_ref::<cloudapi::client::ClientError>() {
        return tenant_advice(error);
    }
    if let Some(headnode::members::recover::RecoverError::Refused { next, .. }) = error.downcast_ref() {
        return Some(next.clone());
    }
    let advice = match error.downcast_ref::<opsapi::Error>()? {
        opsapi::Error::Connect { .. } => "`neso up` starts it; `neso doctor` says what keeps it from running",
        opsapi::Error::Broken { source } if is_tls(&**source) => {
            "the headnode does not take this operator's certificate: `neso up` makes a new one; run it where the headnode is"
        }
        opsapi::Error::Broken { .. } => "the headnode may be restarting: try again; `neso doctor` says how it is",
        error if error.is_not_found() => "the noun's `list` shows what there is",
        _ => return None,
    };
    Some(advice.to_owned())
}

fn tenant_advice(error: &cloudapi::client::ClientError) -> Option<String> {
    use cloudapi::client::ClientError;
    let advice = match error {
        ClientError::Connect { source, .. } if is_tls(&**source) => {
            "the datacenter's authority is not trusted here: name its ca.pem in TRITON_CA_FILE, or set TRITON_TLS_INSECURE=1"
        }
        ClientError::Connect { .. } => {
            "is the URL of the profile right, and the headnode up? On its machine, `neso up` starts it and `neso doctor` says more"
        }
        ClientError::Timeout { .. } => "on the headnode's machine, `neso doctor` says what it is busy with",
        ClientError::Refused { status, body } => match (status.as_u16(), &*body.code) {
            (401, _) => {
                "is the profile's key one of the account's, and this machine's clock right? An operator sees the keys with `neso adm account keys LOGIN`"
            }
            (404, "ResourceNotFound") => "the noun's `list` shows what there is",
            (409, "CannotDestroyMachineError") => {
                "if it is to go: `neso instance disable-deletion-protection`, then delete it again"
            }
            (429, _) => "wait a moment and ask less often",
            _ => return None,
        },
        _ => return None,
    };
    Some(advice.to_owned())
}

/// Whether the two ends did not agree on certificates.
fn is_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|error| {
        let text = error.to_string();
        text.contains("certificate") || text.contains("UnknownIssuer") || text.contains("fatal alert")
    })
}

/// Result of a command.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;
