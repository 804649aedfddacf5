//! Page ciphers and the encrypted page formats: pure cryptography, no I/O
