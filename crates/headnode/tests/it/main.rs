//! Tests of the headnode's doors, in one binary.

mod cloudapi;
