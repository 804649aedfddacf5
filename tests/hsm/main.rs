//! Promises about HSMs, each kept with real tokens and real clients.
#![allow(clippy::unwrap_used, reason = "tests")]

mod master_key;
mod programs;
mod softhsm2;
