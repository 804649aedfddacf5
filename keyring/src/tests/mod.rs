//! Tests that look inside: crash points, bytes, counts.

mod basics;
mod support;
