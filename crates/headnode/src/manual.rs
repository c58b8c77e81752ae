//! The manual, inside the binary.
