//! An HSM inside the process: keys enter as random bytes, leave only wrapped
