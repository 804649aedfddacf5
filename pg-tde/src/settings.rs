//! The settings that a DBA writes into `postgresql.conf`.

use std::ffi::CString;
use std::path::PathBuf;
use std::time::Duration;

use page_cipher::CipherId;
use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting};

use crate::ffi::server;

static HSM: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);
static PIN_COMMAND: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);
static PIN_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(30);
static PKCS11_AGENT: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);
static KEYRING: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c"pg_tde"));
static CIPHER: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c"aes-256-hctr2"));

static ENCRYPT_WAL: GucSetting<bool> = GucSetting::<bool>::new(false);
static ENCRYPT_TEMP_FILES: GucSetting<bool> = GucSetting::<bool>::new(false);
static ENFORCE: GucSetting<bool> = GucSetting::<bool>::new(false);
static HSM_CHECK_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(300);
static LOCK_ON_REFUSAL: GucSetting<bool> = GucSetting::<bool>::new(false);
static JOB_COST_DELAY: GucSetting<f64> = GucSetting::<f64>::new(2.0);
static JOB_COST_LIMIT: GucSetting<i32> = GucSetting::<i32>::new(256);
static JOB_LOG_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(60);

/// Makes the settings known to the server and refuses others of our prefix.
pub(crate) fn define() {
    GucRegistry::define_string_guc(
        c"pg_tde.hsm",
        c"Where the master key lives.",
        c"soft:DIRECTORY for the software HSM in the server, optionally with ?user=NAME&key=LABEL; pkcs11:token=NAME;object=LABEL?module-path=FILE for a token of any vendor (RFC 7512).",
        &HSM,
        GucContext::Postmaster,
        GucFlags::SUPERUSER_ONLY,
    );
    GucRegistry::define_string_guc(
        c"pg_tde.pin_command",
        c"Shell command that prints the PIN of the HSM user.",
        c"",
        &PIN_COMMAND,
        GucContext::Sighup,
        GucFlags::SUPERUSER_ONLY,
    );
    GucRegistry::define_int_guc(
        c"pg_tde.pin_command_timeout",
        c"How long the PIN command may take.",
        c"",
        &PIN_TIMEOUT,
        1,
        600,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
    GucRegistry::define_string_guc(
        c"pg_tde.pkcs11_agent",
        c"Program that loads a vendor's PKCS#11 module.",
        c"An absolute path; if empty, tde-pkcs11-agent beside the server's program, in /usr/local/bin or in /usr/bin.",
        &PKCS11_AGENT,
        GucContext::Postmaster,
        GucFlags::SUPERUSER_ONLY,
    );
    GucRegistry::define_string_guc(
        c"pg_tde.keyring",
        c"Directory of the wrapped data keys.",
        c"A relative path is below the data directory.",
        &KEYRING,
        GucContext::Postmaster,
        GucFlags::SUPERUSER_ONLY,
    );
    GucRegistry::define_string_guc(
        c"pg_tde.cipher",
        c"Cipher of tablespaces that are encrypted from now on.",
        c"aes-256-hctr2 or aes-256-xts.",
        &CIPHER,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"pg_tde.encrypt_wal",
        c"Encrypts the write-ahead log.",
        c"Segments that are begun after the change; those written before stay as they are.",
        &ENCRYPT_WAL,
        GucContext::Postmaster,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"pg_tde.encrypt_temp_files",
        c"Encrypts temporary files, spill files of logical decoding and pending notifications.",
        c"Under a key that is made at server start and never stored.",
        &ENCRYPT_TEMP_FILES,
        GucContext::Postmaster,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"pg_tde.enforce_encryption",
        c"Refuses to make permanent or unlogged relations outside of encrypted tablespaces.",
        c"",
        &ENFORCE,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"pg_tde.hsm_check_interval",
        c"How often the server asks the HSM whether it may still use the master key.",
        c"0 switches that off.",
        &HSM_CHECK_INTERVAL,
        0,
        86_400,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
    GucRegistry::define_bool_guc(
        c"pg_tde.lock_on_refusal",
        c"Locks the server, as tde.lock() does, when the HSM refuses the master key.",
        c"Not when the HSM does not answer.",
        &LOCK_ON_REFUSAL,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_float_guc(
        c"pg_tde.job_cost_delay",
        c"How long a job that rewrites pages pauses, again and again.",
        c"0 lets it run as fast as it can.",
        &JOB_COST_DELAY,
        0.0,
        10_000.0,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"pg_tde.job_cost_limit",
        c"How many pages a job rewrites between two pauses.",
        c"",
        &JOB_COST_LIMIT,
        1,
        1_000_000,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"pg_tde.job_log_interval",
        c"How often the log is told how far a job is.",
        c"",
        &JOB_LOG_INTERVAL,
        1,
        86_400,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
    server::reserve_prefix(c"pg_tde");
}

fn text(setting: &GucSetting<Option<CString>>) -> Option<String> {
    let value = setting.get()?.to_string_lossy().into_owned();
    (!value.is_empty()).then_some(value)
}

/// `pg_tde.hsm`
pub(crate) fn hsm() -> Option<String> {
    text(&HSM)
}

/// `pg_tde.pin_command`
pub(crate) fn pin_command() -> Option<String> {
    text(&PIN_COMMAND)
}

/// `pg_tde.pin_command_timeout`
pub(crate) fn pin_command_timeout() -> Duration {
    Duration::from_secs(PIN_TIMEOUT.get().unsigned_abs().into())
}

/// `pg_tde.pkcs11_agent`
pub(crate) fn pkcs11_agent() -> Option<PathBuf> {
    text(&PKCS11_AGENT).map(PathBuf::from)
}

/// `pg_tde.keyring` as an absolute path.
pub(crate) fn keyring_directory() -> PathBuf {
    let name = text(&KEYRING).unwrap_or_else(|| "pg_tde".to_owned());
    server::data_directory().join(name)
}

/// `pg_tde.encrypt_wal`
pub(crate) fn encrypt_wal() -> bool {
    ENCRYPT_WAL.get()
}

/// `pg_tde.encrypt_temp_files`
pub(crate) fn encrypt_temp_files() -> bool {
    ENCRYPT_TEMP_FILES.get()
}

/// `pg_tde.enforce_encryption`
pub(crate) fn enforce_encryption() -> bool {
    ENFORCE.get()
}

/// `pg_tde.hsm_check_interval`
pub(crate) fn hsm_check_interval() -> Option<Duration> {
    let seconds = HSM_CHECK_INTERVAL.get().unsigned_abs();
    (seconds != 0).then(|| Duration::from_secs(seconds.into()))
}

/// `pg_tde.lock_on_refusal`
pub(crate) fn lock_on_refusal() -> bool {
    LOCK_ON_REFUSAL.get()
}

/// `pg_tde.job_cost_delay`
pub(crate) fn job_cost_delay() -> Duration {
    Duration::from_secs_f64(JOB_COST_DELAY.get().max(0.0) / 1000.0)
}

/// `pg_tde.job_cost_limit`
pub(crate) fn job_cost_limit() -> u32 {
    JOB_COST_LIMIT.get().unsigned_abs()
}

/// `pg_tde.job_log_interval`
pub(crate) fn job_log_interval() -> Duration {
    Duration::from_secs(JOB_LOG_INTERVAL.get().unsigned_abs().into())
}

/// `pg_tde.cipher`
///
/// # Errors
/// The text, when it names no cipher for PostgreSQL pages.
pub(crate) fn cipher() -> Result<CipherId, UnknownCipher> {
    parse_cipher(&text(&CIPHER).unwrap_or_default())
}

/// A cipher by the name that people type.
///
/// # Errors
/// The text, when it names no cipher for PostgreSQL pages.
pub(crate) fn parse_cipher(name: &str) -> Result<CipherId, UnknownCipher> {
    match name.parse() {
        Ok(cipher @ (CipherId::Aes256Hctr2 | CipherId::Aes256Xts)) => Ok(cipher),
        _ => Err(UnknownCipher(name.to_owned())),
    }
}

/// Not a cipher for PostgreSQL pages.
#[derive(Debug, thiserror::Error)]
#[error("\"{0}\" is not a cipher for tablespaces: use aes-256-hctr2 or aes-256-xts")]
pub(crate) struct UnknownCipher(String);
