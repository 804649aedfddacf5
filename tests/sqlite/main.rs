//! Promises about encrypted SQLite databases, each kept with stock SQLite: Debian's library in processes of its own
//! (`c/worker.c`), where a test can kill them, break their disk and read every byte they write.
#![allow(clippy::unwrap_used, reason = "tests")]

mod concurrency;
mod errors;
mod faults;
mod kill;
mod large;
mod leak;
mod reach;
mod second;
mod stock;
mod suite;
mod tamper;
mod together;
mod traps;
mod versions;
