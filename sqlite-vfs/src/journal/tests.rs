//! The journal under SQLite's own sequences of reads and writes.

mod faults;
mod pager;
mod sequences;
