//! What the HSM promises, through its public interface and on real files.
#![allow(missing_docs, reason = "tests")]
#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod audit;
mod damage;
mod files;
mod keys;
mod lockout;
mod processes;
mod roles;
mod secrecy;
mod support;
