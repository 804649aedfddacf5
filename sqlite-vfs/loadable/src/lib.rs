//! The SQLite VFS as a loadable extension and a C library.
