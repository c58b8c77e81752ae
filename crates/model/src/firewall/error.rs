//! What can be wrong with a rule, said so that the person who typed it can mend it.
//!
//! In the first users' contract a bad rule is status 422, code `InvalidParameters` and one entry in `errors`, with code
//! [`RuleError::CODE`], field [`RuleError::FIELD`] and the error's text as message; a rule that is not given is `MissingParameter`.
//! Positions count characters from 0, as the language's first users know it.

/// Why a text or a combination of parts is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RuleError {
    /// Longer than [`super::rule::TEXT_MAX_BYTES`], as given or in canonical form.
    #[error("rule has {bytes} bytes{}; at most {max} are allowed", if *.canonical { " in its canonical form" } else { "" })]
    TooLong {
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        max: usize,
        /// Whether the text was short enough, but not its canonical form.
        canonical: bool,
    },
    /// Something else should stand here.
    #[error("expected {expected}, found {found}, at character {at}")]
    Unexpected {
        /// What would be right.
        expected: String,
        /// What is there.
        found: String,
        /// Characters before it.
        at: usize,
    },
    /// No end of a quoted text.
    #[error("the quote at character {at} is never closed")]
    UnclosedQuote {
        /// Characters before the opening quote.
        at: usize,
    },
    /// An escape the language does not have, or one that is no character.
    #[error(
        "\"{text}\" at character {at} is not an escape; known are \\\" \\\\ \\/ \\( \\) \\b \\f \\n \\r \\t and \\uXXXX"
    )]
    Escape {
        /// The escape.
        text: String,
        /// Characters before its backslash.
        at: usize,
    },
    /// Not an address that can be a peer.
    #[error("IP address \"{text}\" is invalid, at character {at}")]
    Address {
        /// As given.
        text: String,
        /// Characters before it.
        at: usize,
    },
    /// Not a subnet.
    #[error("subnet \"{text}\" is invalid ({why}), at character {at}")]
    Subnet {
        /// As given.
        text: String,
        /// What of it.
        why: &'static str,
        /// Characters before it.
        at: usize,
    },
    /// Not an instance's id.
    #[error("UUID \"{text}\" is invalid, at character {at}")]
    Uuid {
        /// As given.
        text: String,
        /// Characters before it.
        at: usize,
    },
    /// Not a number in its range.
    #[error("{what} \"{text}\" is invalid: it must be a number from {min} to {max}, at character {at}")]
    Number {
        /// "port number", "ICMP type" …
        what: &'static str,
        /// As given.
        text: String,
        /// Least value.
        min: u16,
        /// Greatest value.
        max: u16,
        /// Characters before it.
        at: usize,
    },
    /// A range that ends before it starts.
    #[error("the end of the range ({end}) cannot be less than the start ({start})")]
    Range {
        /// First port.
        start: u16,
        /// Last port.
        end: u16,
    },
    /// Newer than the version of the language that was asked for.
    #[error("the rule uses a feature ({feature}) that the language has since version {since}")]
    TooNew {
        /// In words.
        feature: &'static str,
        /// The version that brought it.
        since: u8,
    },
    /// More targets than [`super::rule::TARGETS_MAX`].
    #[error("maximum of {max} targets allowed per side; {side} has {count}")]
    TooManyTargets {
        /// `FROM` or `TO`.
        side: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        max: usize,
    },
    /// No target on a side. Texts cannot say this; parts can.
    #[error("{side} has no target")]
    NoTarget {
        /// `FROM` or `TO`.
        side: &'static str,
    },
    /// More ports or types than the version of the language allows.
    #[error("maximum of {max} {what} allowed; {count} are given")]
    TooManyPorts {
        /// `ports` or `types`.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        max: usize,
    },
    /// No port or type. Texts cannot say this; parts can.
    #[error("the rule names no {what}")]
    NoPort {
        /// `port` or `type`.
        what: &'static str,
    },
    /// A port of 0, a priority above 100. Texts cannot say this; parts can.
    #[error("{what} {value} is invalid: it must be from {min} to {max}")]
    OutOfRange {
        /// "port number" or "priority".
        what: &'static str,
        /// As given.
        value: u16,
        /// Least value.
        min: u16,
        /// Greatest value.
        max: u16,
    },
    /// A protocol of one family with an address or subnet of the other.
    #[error("rule affects {protocol} but contains {target}, which is of the other family")]
    WrongFamily {
        /// `ICMPv4` or `ICMPv6`.
        protocol: &'static str,
        /// The target, canonical.
        target: String,
    },
    /// Nothing on either side that could be an instance.
    #[error("rule does not affect VMs: at least one side must be a tag, a vm or all vms")]
    NoInstances,
}

impl RuleError {
    /// The error code of a field that is wrong.
    pub const CODE: &'static str = "InvalidParameter";
    /// The field that is wrong.
    pub const FIELD: &'static str = "rule";
}
