//! The manual, inside the binary.

/// A chapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chapter {
    /// What people type.
    pub name: &'static str,
    /// What people read first.
    pub title: &'static str,
    /// Markdown.
    pub text: &'static str,
}

/// Every chapter, in reading order.
pub fn chapters() -> &'static [Chapter] {
    &[]
}
