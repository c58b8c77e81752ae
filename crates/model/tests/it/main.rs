//! Properties of the model's rules.

mod diff;
