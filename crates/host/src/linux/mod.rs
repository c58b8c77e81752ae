//! The doors as the Linux kernel opens them.

pub mod imagebuild;
pub mod zone;
