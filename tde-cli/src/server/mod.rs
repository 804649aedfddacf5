//! A connection to a PostgreSQL server with pg_tde.
//!
//! Which server: as libpq takes it, from a connection string, the environment and the password file ([`conninfo`]). Over TCP without
//! TLS: a connection string that demands TLS is refused.

mod conninfo;
mod passfile;

use std::time::Duration;

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Row};

pub(crate) use self::conninfo::{ConnectArgs, ConninfoError, Server, at};

/// The longest wait for one that does not answer, unless the connection string or PGCONNECT_TIMEOUT says otherwise.
const CONNECT: Duration = Duration::from_secs(15);

/// Why a server did not do it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ServerError {
    /// Which server.
    #[error(transparent)]
    Conninfo(#[from] ConninfoError),
    /// No connection.
    #[error("cannot connect to {server}: {}{hint}", said(source))]
    Connect {
        /// Which server.
        server: String,
        /// Why not.
        #[source]
        source: tokio_postgres::Error,
        /// What to do.
        hint: &'static str,
    },
    /// No answer.
    #[error("cannot connect to {server}: no answer within {} s", seconds.as_secs())]
    Silent {
        /// Which server.
        server: String,
        /// How long it was waited for.
        seconds: Duration,
    },
    /// It was there, and is not any more.
    #[error("{server} ended the connection; what it was doing may go on in it")]
    Lost {
        /// Which server.
        server: String,
        /// What was seen of it.
        #[source]
        source: tokio_postgres::Error,
    },
    /// The statement failed.
    #[error("{server}: {}", said(source))]
    Refused {
        /// Which server.
        server: String,
        /// What it said.
        #[source]
        source: tokio_postgres::Error,
    },
    /// The extension is not there.
    #[error(
        "{server}: database \"{database}\" has no extension pg_tde; connect to a database that has it, or run CREATE EXTENSION pg_tde there"
    )]
    NoExtension {
        /// Which server.
        server: String,
        /// The database.
        database: String,
    },
}

impl ServerError {
    /// Whether another connection may succeed.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Lost { .. } | Self::Silent { .. } => true,
            // It starts, stops, or is not there: class 57 of errcodes.txt, or nothing that has a code.
            Self::Connect { source, .. } => source.code().is_none_or(|code| code.code().starts_with("57P")),
            Self::Refused { source, .. } => source.code().is_some_and(|code| code.code().starts_with("57P")),
            _ => false,
        }
    }
}

/// Message, detail and hint, or what the library says with its causes.
fn said(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        let more = [db.detail(), db.hint()].into_iter().flatten();
        return more.fold(db.message().to_owned(), |text, more| format!("{text} ({more})"));
    }
    crate::output::with_causes(error)
}

/// An open connection; statements of several tasks may be under way in it one after the other.
pub(crate) struct Session {
    client: Client,
    name: String,
    database: String,
}

impl Session {
    /// Connects, and makes sure that no object of a user's schema is taken for one of the server's.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub(crate) async fn open(server: &Server) -> Result<Self, ServerError> {
        let (config, name) = (server.config(), server.name().to_owned());
        let limit = config.get_connect_timeout().copied().unwrap_or(CONNECT);
        let silent = |_| ServerError::Silent { server: name.clone(), seconds: limit };
        let connected = tokio::time::timeout(limit, config.connect(NoTls)).await.map_err(silent)?;
        let (client, connection) = connected.map_err(|source| {
            let hint = conninfo::hint(&source);
            ServerError::Connect { server: name.clone(), source, hint }
        })?;
        // It ends with the client; what it dies of, statements under way are told too.
        tokio::spawn(async move { drop(connection.await) });
        let database = config.get_dbname().unwrap_or_default().to_owned();
        let session = Self { client, name, database };
        session.rows("SELECT pg_catalog.set_config('search_path', '', false)", &[]).await?;
        Ok(session)
    }

    /// Which server this is, for people.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The rows of a query.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub(crate) async fn rows(
        &self,
        sql: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, ServerError> {
        self.client.query(sql, values).await.map_err(|source| self.error(source))
    }

    /// The only row of a query.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub(crate) async fn row(&self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Result<Row, ServerError> {
        self.client.query_one(sql, values).await.map_err(|source| self.error(source))
    }

    /// Statements without values or results.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub(crate) async fn run(&self, sql: &str) -> Result<(), ServerError> {
        self.client.batch_execute(sql).await.map_err(|source| self.error(source))
    }

    fn error(&self, source: tokio_postgres::Error) -> ServerError {
        let server = self.name.clone();
        match source.code().map(tokio_postgres::error::SqlState::code) {
            // Schema or function missing (errcodes.txt).
            Some("3F000" | "42883" | "42P01") => {
                ServerError::NoExtension { server, database: self.database.clone() }
            }
            None if self.client.is_closed() || source.is_closed() => ServerError::Lost { server, source },
            // The server ends: nothing of it remains to be asked.
            Some("57P01" | "57P02" | "57P03") => ServerError::Lost { server, source },
            _ => ServerError::Refused { server, source },
        }
    }
}

/// A value of a row, in the type that the query gives it.
pub(crate) fn get<'a, T: tokio_postgres::types::FromSql<'a>>(
    session: &Session,
    row: &'a Row,
    column: usize,
) -> Result<T, ServerError> {
    row.try_get(column).map_err(|source| ServerError::Refused { server: session.name().to_owned(), source })
}
