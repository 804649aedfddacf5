//! Locked, undumpable, self-wiping memory for key material
