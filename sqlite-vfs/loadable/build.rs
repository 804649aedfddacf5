//! The extension must stay loaded: SQLite keeps the addresses of the VFS for as long as the process runs.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
