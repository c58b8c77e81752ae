//! `neso doctor`: looks at machine and datacenter, and says how to mend each finding.
//!
//! Machine checks ([`machine`]) need nothing to run; `neso up` refuses to start while one of them is fatal. Datacenter
//! checks ([`datacenter`]) ask the running processes. Every check yields one [`Finding`]; the exit code is failure when
//! any is fatal.

mod datacenter;
pub(crate) mod machine;
mod names;

use serde::Serialize;

use crate::{
    adm::{Output, table},
    context::Place,
    failure::{Failure, Outcome},
};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// As it should be.
    Ok,
    /// Works, but somebody should know.
    Warning,
    /// Something does not work until it is mended.
    Fatal,
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// What was checked.
    pub(crate) check: &'static str,
    /// How bad.
    pub(crate) severity: Severity,
    /// What is the case.
    pub(crate) found: String,
    /// What to do about it; empty when all is well.
    pub(crate) remedy: String,
}

impl Finding {
    /// All is well.
    pub(crate) fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, severity: Severity::Ok, found: found.into(), remedy: String::new() }
    }

    /// Somebody should know.
    pub(crate) fn warning(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, severity: Severity::Warning, found: found.into(), remedy: remedy.into() }
    }

    /// Does not work.
    pub(crate) fn fatal(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, severity: Severity::Fatal, found: found.into(), remedy: remedy.into() }
    }
}

/// Checks all and prints.
pub(crate) async fn run(place: &Place, json: bool) -> Outcome {
    let settings = if place.settings_path().exists() { Some(place.settings()?) } else { None };
    let mut findings = machine::check(settings.as_ref());
    match &settings {
        Some(settings) => findings.extend(datacenter::check(settings).await),
        None => findings.push(Finding::warning(
            "settings",
            format!("`{}` does not exist: there is no datacenter here yet", place.settings_path().display()),
            "run `neso up`",
        )),
    }
    let fatal = findings.iter().filter(|finding| finding.severity == Severity::Fatal).count();
    Output { json }.show(&findings, |findings| {
        table(
            &["", "check", "found", "how to mend"],
            findings.iter().map(|finding| {
                let mark = match finding.severity {
                    Severity::Ok => "ok",
                    Severity::Warning => "look",
                    Severity::Fatal => "BAD",
                };
                vec![mark.to_owned(), finding.check.to_owned(), finding.found.clone(), finding.remedy.clone()]
            }),
        )
    })?;
    match fatal {
        0 => Ok(()),
        1 => Err(Failure::new("one check failed; the last column says how to mend it")),
        many => Err(Failure::new(format!("{many} checks failed; the last column says how to mend them"))),
    }
}
