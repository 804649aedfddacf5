//! A connection that speaks text.

use std::fmt;

use postgres::{Client, NoTls, SimpleQueryMessage};

/// What a client sees of an error: message, detail and hint.
#[derive(Debug)]
pub struct SqlError {
    /// The five-character SQLSTATE; empty when the connection broke.
    pub code: String,
    /// Message, detail and hint, one a line.
    pub text: String,
}

impl fmt::Display for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}", self.code, self.text)
    }
}

impl From<postgres::Error> for SqlError {
    fn from(error: postgres::Error) -> Self {
        let Some(db) = error.as_db_error() else {
            return Self { code: String::new(), text: error.to_string() };
        };
        let mut text = db.message().to_owned();
        for more in [db.detail(), db.hint()].into_iter().flatten() {
            text.push('\n');
            text.push_str(more);
        }
        Self { code: db.code().code().to_owned(), text }
    }
}

/// A connection; statements go through the simple protocol and values come back as text.
pub struct Sql {
    client: Client,
}

impl Sql {
    /// Connects through the socket in `socket_dir`.
    pub fn connect(socket_dir: &str, port: u16, database: &str, user: &str) -> Result<Self, SqlError> {
        let client = postgres::Config::new()
            .host(socket_dir)
            .port(port)
            .dbname(database)
            .user(user)
            .application_name("tde-tests")
            .connect(NoTls)?;
        Ok(Self { client })
    }

    /// Runs statements that must succeed.
    pub fn run(&mut self, sql: &str) {
        self.try_run(sql).unwrap_or_else(|e| panic!("{e}\nin: {sql}"));
    }

    /// Runs statements.
    pub fn try_run(&mut self, sql: &str) -> Result<(), SqlError> {
        Ok(self.client.batch_execute(sql)?)
    }

    /// All rows of a query that must succeed; NULL is an empty string.
    pub fn rows(&mut self, sql: &str) -> Vec<Vec<String>> {
        self.try_rows(sql).unwrap_or_else(|e| panic!("{e}\nin: {sql}"))
    }

    /// All rows of a query; NULL is an empty string.
    pub fn try_rows(&mut self, sql: &str) -> Result<Vec<Vec<String>>, SqlError> {
        let mut rows = Vec::new();
        for message in self.client.simple_query(sql)? {
            if let SimpleQueryMessage::Row(row) = message {
                rows.push((0..row.len()).map(|i| row.get(i).unwrap_or_default().to_owned()).collect());
            }
        }
        Ok(rows)
    }

    /// The first value of the first row of a query that must succeed.
    pub fn text(&mut self, sql: &str) -> String {
        self.rows(sql).first().and_then(|row| row.first()).unwrap_or_else(|| panic!("no row: {sql}")).clone()
    }

    /// The first value as a number.
    pub fn int(&mut self, sql: &str) -> i64 {
        let text = self.text(sql);
        text.parse().unwrap_or_else(|e| panic!("{e}: {text:?} from {sql}"))
    }
}
