//! Tests that look inside: crash points, bytes, counts.

mod basics;
mod bytes;
mod counts;
mod crash;
mod damage;
mod destroy;
mod processes;
mod random;
mod sqlite;
mod support;
mod transfer;
