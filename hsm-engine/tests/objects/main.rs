//! What the HSM promises about objects, through its public interface and on real files.
#![allow(missing_docs, reason = "tests")]
#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

mod attributes;
mod backups;
mod damage;
mod mechanisms;
mod people;
mod scale;
mod support;
mod visibility;
mod wrapping;
