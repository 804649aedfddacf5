//! How the library is linked.

fn main() {
    // AWS-LC has destructors run when a thread ends. A program that unloads the library must not take their code away: the dynamic linker
    // keeps it (DF_1_NODELETE).
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    println!("cargo::rerun-if-changed=build.rs");
}
