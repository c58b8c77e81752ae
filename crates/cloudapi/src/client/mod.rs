//! Under way in the next commit.
