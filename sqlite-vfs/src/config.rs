//! What the VFS is registered with.

use crate::keys::Settings;

/// How the VFS is registered.
#[derive(Debug)]
pub struct Config {
    /// Its name, for `vfs=NAME`.
    pub name: String,
    /// Name of the VFS below; SQLite's default if none.
    pub parent: Option<String>,
    /// Whether databases that name no VFS are opened with it, too. Plaintext databases are then refused unless
    /// they name the VFS below.
    pub make_default: bool,
    /// Where keys come from, for databases whose URI does not say.
    pub keys: Settings,
}

/// Name of the VFS unless another one is asked for.
pub const VFS_NAME: &str = "tde";

/// If this environment variable is `1`, the VFS becomes SQLite's default as soon as it is registered.
pub const DEFAULT_VARIABLE: &str = "TDE_SQLITE_DEFAULT";

impl Default for Config {
    fn default() -> Self {
        let make_default = std::env::var_os(DEFAULT_VARIABLE).is_some_and(|value| value == "1");
        Self { name: VFS_NAME.to_owned(), parent: None, make_default, keys: Settings::default() }
    }
}
