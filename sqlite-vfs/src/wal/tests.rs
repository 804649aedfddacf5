//! The WAL under SQLite's own sequences of reads and writes.

mod faults;
mod sequences;
mod sqlite;
