//! Promises about encrypted tablespaces, each kept on a real server.
#![allow(clippy::unwrap_used, reason = "tests")]

mod canary;
mod crash;
mod ddl;
mod decrypt;
mod demo;
mod double_write;
mod enforce;
mod filled;
mod interrupted;
mod job_control;
mod job_trouble;
mod jobs;
mod keys;
mod pkcs11;
mod races;
mod refusals;
mod regress;
mod restore;
mod rotation;
mod secrets;
mod standby;
mod stock_tools;
mod tamper;
mod torn;
mod unsupported;
mod wal;
mod wal_crash;
mod wal_nodes;
