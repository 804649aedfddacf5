//! Promises about HSMs, each kept with real tokens and real clients.
#![allow(clippy::unwrap_used, reason = "tests")]

mod api;
mod bench;
mod java;
mod master_key;
mod programs;
mod python;
mod tools;
mod web;
