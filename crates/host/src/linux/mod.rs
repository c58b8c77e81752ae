//! The doors as the Linux kernel opens them.

pub mod imagebuild;
