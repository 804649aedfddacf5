//! Which server, as PostgreSQL's own programs take it.
//!
//! | what | option | connection string | environment | otherwise |
//! |---|---|---|---|---|
//! | host or socket directory | `--host` | `host` | `PGHOST` | `/var/run/postgresql`, `/tmp`, `localhost`: the first that is there |
//! | port | `--port` | `port` | `PGPORT` | 5432 |
//! | user | `--username` | `user` | `PGUSER` | the operating system's |
//! | database | `--dbname` | `dbname` | `PGDATABASE` | `postgres` |
//! | password | never | refused | `PGPASSWORD` | `PGPASSFILE`, `~/.pgpass` |
//!
//! A connection string (`--dbname 'host=... port=...'` or a URL) with a password is refused: command lines and configuration files are read
//! by others.

use std::env;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

use super::passfile::{self, PassfileError, Wanted};

/// Where Debian and PostgreSQL's own builds keep sockets.
const SOCKETS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// A server whose machine is gone is noticed within a few of these.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Which server.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct ConnectArgs {
    /// Database with the extension, or a connection string: "host=... port=... dbname=..." or postgresql://...
    #[arg(short = 'd', long, value_name = "NAME|CONNINFO")]
    pub(crate) dbname: Option<String>,
    /// The server's host, or the directory of its socket [default: PGHOST, or the local socket]
    #[arg(long, value_name = "HOST")]
    pub(crate) host: Option<String>,
    /// The server's port [default: PGPORT, or 5432]
    #[arg(short = 'p', long)]
    pub(crate) port: Option<u16>,
    /// A superuser, or a role that was granted the functions in schema tde [default: PGUSER, or yours]
    #[arg(short = 'U', long, value_name = "NAME")]
    pub(crate) username: Option<String>,
}

/// It is not clear which server, or how to log in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ConninfoError {
    /// Not a connection string.
    #[error("\"{text}\" is no connection string")]
    Malformed {
        /// What was given.
        text: String,
        /// Why not.
        #[source]
        source: tokio_postgres::Error,
    },
    /// A secret where others can read it.
    #[error(
        "the connection string for {server} has a password: others can read it there; use PGPASSWORD or a password file (PGPASSFILE, ~/.pgpass)"
    )]
    Password {
        /// Which server.
        server: String,
    },
    /// TLS is not built in.
    #[error(
        "{server} is to be reached with TLS, which this program does not speak; connect through a local socket or a tunnel, or say sslmode=disable"
    )]
    Tls {
        /// Which server.
        server: String,
    },
    /// Something that would be ignored.
    #[error("{name} is set, which this program does not know: unset it and give --host, --port and --dbname")]
    Unknown {
        /// The variable.
        name: &'static str,
    },
    /// Not a number or the like.
    #[error("{name} is \"{value}\", which cannot be used")]
    Value {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// The password file.
    #[error(transparent)]
    Passfile(#[from] PassfileError),
}

/// A server, and how to log in to it.
#[derive(Clone)]
pub(crate) struct Server {
    config: Config,
    name: String,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Server {
    /// Everything that connecting needs.
    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// `host:port`, for people.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// From options, environment and password file.
    ///
    /// # Errors
    /// See [`ConninfoError`].
    pub(crate) fn of(args: &ConnectArgs) -> Result<Self, ConninfoError> {
        let is_conninfo = |text: &str| text.contains('=') || text.contains("://");
        let mut config = match args.dbname.as_deref() {
            Some(text) if is_conninfo(text) => parse(text)?,
            Some(name) => Config::new().dbname(name).clone(),
            None => Config::new(),
        };
        if let Some(host) = &args.host {
            add_hosts(&mut config, host);
        }
        if let Some(port) = args.port {
            config.port(port);
        }
        if let Some(user) = &args.username {
            config.user(user);
        }
        complete(
            config,
            |name| env::var(name).ok().filter(|value| !value.is_empty()),
            passfile::path().as_deref(),
        )
    }
}

/// A server that a connection string names; the rest from environment and password file.
///
/// # Errors
/// See [`ConninfoError`].
pub(crate) fn at(conninfo: &str) -> Result<Server, ConninfoError> {
    Server::of(&ConnectArgs { dbname: Some(conninfo.to_owned()), ..ConnectArgs::default() })
}

fn parse(text: &str) -> Result<Config, ConninfoError> {
    // The text may hold a password.
    let shown = if text.contains("password") || text.contains('@') { "(not shown)" } else { text };
    let config: Config =
        text.parse().map_err(|source| ConninfoError::Malformed { text: shown.to_owned(), source })?;
    match config.get_password() {
        Some(_) => Err(ConninfoError::Password { server: name_of(&config) }),
        None => Ok(config),
    }
}

/// What nobody has said comes from the environment, from the password file, or is what PostgreSQL's programs take.
fn complete(
    mut config: Config,
    get: impl Fn(&'static str) -> Option<String>,
    passfile: Option<&Path>,
) -> Result<Server, ConninfoError> {
    for name in ["PGSERVICE", "PGSERVICEFILE", "PGHOSTADDR"] {
        if get(name).is_some() {
            return Err(ConninfoError::Unknown { name });
        }
    }
    let number = |name: &'static str| {
        let parsed =
            get(name).map(|value| value.parse::<u16>().map_err(|_| ConninfoError::Value { name, value }));
        parsed.transpose()
    };
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        match get("PGHOST") {
            Some(host) => add_hosts(&mut config, &host),
            None => match SOCKETS.iter().find(|dir| Path::new(dir).is_dir()) {
                Some(dir) => drop(config.host_path(dir)),
                None => drop(config.host("localhost")),
            },
        }
    }
    if config.get_ports().is_empty() {
        config.port(number("PGPORT")?.unwrap_or(5432));
    }
    if config.get_user().is_none()
        && let Some(user) = get("PGUSER")
    {
        config.user(user);
    }
    if config.get_dbname().is_none() {
        config.dbname(get("PGDATABASE").unwrap_or_else(|| "postgres".to_owned()));
    }
    if config.get_options().is_none()
        && let Some(options) = get("PGOPTIONS")
    {
        config.options(options);
    }
    if config.get_connect_timeout().is_none()
        && let Some(seconds) = number("PGCONNECT_TIMEOUT")?.filter(|seconds| *seconds > 0)
    {
        config.connect_timeout(Duration::from_secs(seconds.into()));
    }
    if config.get_application_name().is_none() {
        config.application_name("tde");
    }
    // A connection without a word may be dead: jobs are watched for hours.
    config.keepalives_idle(KEEPALIVE);
    if config.get_tcp_user_timeout().is_none() {
        config.tcp_user_timeout(2 * KEEPALIVE);
    }
    let name = name_of(&config);
    let demanded =
        get("PGSSLMODE").is_some_and(|mode| !["disable", "allow", "prefer"].contains(&mode.as_str()));
    if config.get_ssl_mode() == SslMode::Require || demanded {
        return Err(ConninfoError::Tls { server: name });
    }
    if let Some(password) = get("PGPASSWORD") {
        config.password(password);
    } else if let Some(path) = passfile {
        let user = config.get_user().map(str::to_owned).or_else(|| get("USER")).unwrap_or_default();
        for (index, host) in config.clone().get_hosts().iter().enumerate() {
            let (ports, database) = (config.get_ports(), config.get_dbname().unwrap_or_default());
            let port = ports.get(index).or_else(|| ports.first()).copied().unwrap_or(5432);
            let wanted = Wanted { host: &host_of(host), port, database, user: &user };
            if let Some(password) = passfile::password(path, &wanted)? {
                config.password(password.as_slice());
                break;
            }
        }
    }
    Ok(Server { config, name })
}

/// Several are separated by commas.
fn add_hosts(config: &mut Config, hosts: &str) {
    for host in hosts.split(',') {
        config.host(host);
    }
}

/// As password files name it.
fn host_of(host: &Host) -> String {
    match host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(path) if SOCKETS.iter().any(|dir| path == Path::new(dir)) => "localhost".to_owned(),
        Host::Unix(path) => path.display().to_string(),
    }
}

fn name_of(config: &Config) -> String {
    let host = config.get_hosts().first().map(|host| match host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(path) => path.display().to_string(),
    });
    let host = host.or_else(|| config.get_hostaddrs().first().map(ToString::to_string));
    let port = config.get_ports().first().copied().unwrap_or(5432);
    format!("{}:{port}", host.unwrap_or_else(|| "the local server".to_owned()))
}

/// What to do when it does not work.
pub(super) fn hint(error: &tokio_postgres::Error) -> &'static str {
    match error.code().map(tokio_postgres::error::SqlState::code) {
        Some("28P01") => "; is the one in PGPASSWORD or the password file right?",
        None if crate::output::with_causes(error).contains("password missing") => {
            "; set PGPASSWORD, or write a line for it into ~/.pgpass"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(text: &str, environment: &[(&str, &str)]) -> Result<Server, ConninfoError> {
        let get = |name: &'static str| {
            environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        complete(parse(text)?, get, None)
    }

    #[test]
    fn the_environment_fills_what_the_string_leaves_open() {
        let environment = [("PGHOST", "/run/a"), ("PGPORT", "6001"), ("PGUSER", "dba"), ("PGDATABASE", "x")];
        let all = server("", &environment).unwrap();
        assert_eq!(all.name(), "/run/a:6001");
        assert_eq!((all.config.get_user(), all.config.get_dbname()), (Some("dba"), Some("x")));
        let given = server("host=db port=7 user=me dbname=d", &environment).unwrap();
        assert_eq!(given.name(), "db:7");
        assert_eq!((given.config.get_user(), given.config.get_dbname()), (Some("me"), Some("d")));
        assert_eq!(server("host=db", &[]).unwrap().config.get_dbname(), Some("postgres"));
        let url = server("postgresql://me@db:8/d", &[("PGPASSWORD", "secret")]).unwrap();
        assert_eq!((url.name(), url.config.get_password()), ("db:8", Some(&b"secret"[..])));
        assert!(!format!("{url:?}").contains("secret"));
    }

    #[test]
    fn what_cannot_be_done_as_said_is_refused() {
        for text in ["host=db password=x", "postgresql://me:x@db/d"] {
            let error = server(text, &[]).unwrap_err();
            assert!(matches!(error, ConninfoError::Password { .. }), "{error}");
        }
        assert!(matches!(server("host=db sslmode=require", &[]), Err(ConninfoError::Tls { .. })));
        assert!(matches!(server("host=db", &[("PGSSLMODE", "verify-full")]), Err(ConninfoError::Tls { .. })));
        assert!(matches!(server("", &[("PGSERVICE", "x")]), Err(ConninfoError::Unknown { .. })));
        assert!(matches!(server("host=db", &[("PGPORT", "x")]), Err(ConninfoError::Value { .. })));
        let malformed = server("host=db nonsense=1 password=x", &[]).unwrap_err().to_string();
        assert!(!malformed.contains("=x"), "{malformed}");
    }
}
