//! Transparent data encryption for stock PostgreSQL.
//!
//! Loaded by `shared_preload_libraries`, the library replaces six entries of the server's storage manager table, so
//! that every page of an encrypted tablespace is ciphertext in its file and plaintext in shared buffers.
//!
//! ```text
//! ffi/         everything unsafe: table, hooks, the server's functions, SQL functions, start-up, version differences
//! page_io      what happens to a page between buffer and disk
//! process      what one server process knows: ciphers and a view of the key table
//! key_table    the keys of the running server, in shared memory of our own; span: from where to where in the WAL each counts
//! keys         from the HSM and the keyring into the key table; line_facts: what a record says of each version
//! manifest     what the data directory itself says of its keys
//! tablespace   changing how a tablespace is stored
//! destroy      destroying keys that nothing needs any more; needs: what does
//! lock         forgetting all keys until they are given back; watch: whether the HSM still lets them be used
//! trial        reading pages that may be one of several things
//! jobs         rewriting the pages of a tablespace in the background; rewrite: one database of it; job_table: what others see; job_file: hints on disk
//! placeholder  torn pages that recovery meets before their image
//! double_write pages that the WAL cannot repair when they are torn
//! wal          the record that carries key lines to standbys
//! verify       reads the files and tries to open every page
//! ```
#![deny(unsafe_code)]

mod destroy;
mod double_write;
#[allow(unsafe_code)]
mod ffi;
mod job_file;
mod job_table;
mod jobs;
mod key_error;
mod key_table;
mod keys;
mod line_facts;
mod lock;
mod manifest;
mod needs;
mod page_io;
mod pin_command;
mod placeholder;
mod process;
mod redirected;
mod report;
mod rewrite;
mod settings;
mod span;
mod staged;
mod tablespace;
mod tablespace_error;
mod tablespace_files;
mod trial;
mod verify;
mod wal;
mod wal_keys;
mod wal_table;
mod watch;
