//! Data keys, their versions and states, wrapped by a master key that stays in the HSM
