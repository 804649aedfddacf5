//! A client that keeps its rows outside of the database as well.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use tde_tests::{Cluster, Sql};

/// Numbers that look random and are the same in every run (xorshift64).
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// From 0 to below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Table `checked` of a database, and what its rows must be.
pub(crate) struct Ledger {
    database: &'static str,
    rows: BTreeMap<u32, String>,
    /// With the transaction whose commit was not answered.
    perhaps: Option<BTreeMap<u32, String>>,
    numbers: Numbers,
    /// Transactions that the server has acknowledged.
    pub(crate) acknowledged: u32,
    /// What ended the work.
    pub(crate) error: Option<String>,
}

impl Ledger {
    pub(crate) fn new(cluster: &Cluster, database: &'static str, tablespace: &str) -> Self {
        cluster.connect(database).run(&format!(
            "CREATE TABLE checked (id int PRIMARY KEY USING INDEX TABLESPACE {tablespace}, filler text) TABLESPACE {tablespace}"
        ));
        let numbers = Numbers::new(database.len() as u64 + 77);
        Self { database, rows: BTreeMap::new(), perhaps: None, numbers, acknowledged: 0, error: None }
    }

    /// Changes rows in a thread of its own until it is stopped or the server does not answer.
    pub(crate) fn work(mut self, cluster: &Cluster, stop: Arc<AtomicBool>) -> JoinHandle<Self> {
        assert!(self.perhaps.is_none(), "not checked since the last error");
        let mut sql = cluster.connect(self.database);
        self.error = None;
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let (statement, after) = self.transaction();
                match sql.try_run(&statement) {
                    Ok(()) => {
                        self.rows = after;
                        self.acknowledged += 1;
                    }
                    Err(error) => {
                        self.perhaps = Some(after);
                        self.error = Some(error.to_string());
                        break;
                    }
                }
            }
            self
        })
    }

    /// Inserts, updates and deletes; what the rows are afterwards.
    fn transaction(&mut self) -> (String, BTreeMap<u32, String>) {
        let mut after = self.rows.clone();
        let mut statement = "BEGIN;".to_owned();
        for _ in 0..=self.numbers.below(4) {
            let id = self.numbers.below(400) as u32;
            if after.contains_key(&id) && self.numbers.below(4) == 0 {
                after.remove(&id);
                statement += &format!("DELETE FROM checked WHERE id = {id};");
                continue;
            }
            let mut filler = "canary-ledger-".to_owned();
            // Some of them go to the TOAST table.
            let words = if self.numbers.below(20) == 0 { 500 } else { self.numbers.below(60) };
            (0..words).for_each(|_| filler += &format!("{:016x}", self.numbers.below(u64::MAX)));
            statement += &format!(
                "INSERT INTO checked VALUES ({id}, '{filler}') ON CONFLICT (id) DO UPDATE SET filler = excluded.filler;"
            );
            after.insert(id, filler);
        }
        (statement + "COMMIT", after)
    }

    /// The rows in the database are those outside of it, found through a scan and through the index.
    pub(crate) fn check(&mut self, cluster: &Cluster, when: &str) {
        let found = Self::rows_of(&mut cluster.connect(self.database), when);
        if let Some(perhaps) = self.perhaps.take()
            && found == perhaps
        {
            self.rows = perhaps;
        }
        self.compare(&found, when);
    }

    /// [`Self::check`] on a server that follows, where nothing is in doubt any more.
    pub(crate) fn check_copy(&self, cluster: &Cluster, when: &str) {
        self.compare(&Self::rows_of(&mut cluster.connect(self.database), when), when);
    }

    fn compare(&self, found: &BTreeMap<u32, String>, when: &str) {
        let differing: Vec<_> = (0..400).filter(|id| found.get(id) != self.rows.get(id)).collect();
        assert!(
            differing.is_empty(),
            "{when}: rows {differing:?} of {} differ after {} transactions: {:?} and {:?}",
            self.database,
            self.acknowledged,
            differing.iter().map(|id| found.get(id)).collect::<Vec<_>>(),
            differing.iter().map(|id| self.rows.get(id)).collect::<Vec<_>>()
        );
    }

    fn rows_of(sql: &mut Sql, when: &str) -> BTreeMap<u32, String> {
        let mut read = |order: &str| -> BTreeMap<u32, String> {
            let rows = sql.rows(&format!("{order}; SELECT id, filler FROM checked ORDER BY id"));
            rows.into_iter().map(|mut row| (row[0].parse().unwrap(), row.remove(1))).collect()
        };
        let scan = read("SET enable_indexscan = off; SET enable_bitmapscan = off");
        let index = read("RESET ALL; SET enable_seqscan = off; SET enable_sort = off");
        assert_eq!(scan, index, "{when}: scan and index differ");
        scan
    }
}
