//! The SQLite VFS for programs that use rusqlite.
