//! What is done on each side. Work that writes ends with a checkpoint, so that the pages' way to the disk counts.

use std::time::{Duration, Instant};

use super::Bench;

/// One side of a pair: work done in a second of wall-clock time, and processor seconds for one unit of it.
#[derive(Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) speed: f64,
    pub(crate) cpu: f64,
}

impl Bench<'_> {
    /// `work` returns how many units it did; the backends it used must have ended.
    fn sample(&self, work: impl FnOnce() -> f64) -> Sample {
        let postmaster = self.cluster.postmaster();
        let (cpu, begin) = (postmaster.reaped_cpu(), Instant::now());
        let units = work();
        let elapsed = begin.elapsed().as_secs_f64();
        // The postmaster reaps a backend shortly after its client has gone.
        std::thread::sleep(Duration::from_millis(100));
        let cpu = (postmaster.reaped_cpu() - cpu).as_secs_f64().max(0.01);
        Sample { speed: units / elapsed, cpu: cpu / units }
    }

    pub(crate) fn pgbench(&self, space: &str, clients: u32, options: &[&str]) -> Sample {
        let (seconds, clients) = (self.effort.seconds.to_string(), clients.to_string());
        let fixed = ["-n", "-c", &clients, "-j", "1", "-M", "prepared", "-T", &seconds];
        self.sample(|| {
            let report = self.cluster.tool_output("pgbench", &[&fixed, options, &[space]].concat());
            let line = report.lines().find(|l| l.contains("transactions actually processed")).unwrap();
            line.rsplit(' ').next().unwrap().split('/').next().unwrap().parse().unwrap()
        })
    }

    /// Statements on the table of rows.
    fn on_rows(&self, space: &str, before: &str, statement: &str) -> Sample {
        self.connect(space).run(before);
        self.sample(|| {
            let mut sql = self.connect(space);
            sql.run(statement);
            sql.run("CHECKPOINT");
            f64::from(self.effort.rows)
        })
    }

    pub(crate) fn copy(&self, space: &str) -> Sample {
        let csv = self.cluster.ts_dir().join("rows.csv");
        let copy = format!(
            "CREATE TABLE loaded (id int, secret text, k int, at timestamptz, filler text); COPY loaded FROM '{}'",
            csv.display()
        );
        self.on_rows(space, "DROP TABLE IF EXISTS loaded", &copy)
    }

    /// Two clients that load as fast as they can: much WAL, little else.
    pub(crate) fn copy_storm(&self, space: &str) -> Sample {
        let csv = self.cluster.ts_dir().join("rows.csv");
        let loads = [0, 1].map(|client| {
            let table = format!("storm_{client} (id int, secret text, k int, at timestamptz, filler text)");
            self.connect(space).run(&format!("DROP TABLE IF EXISTS storm_{client}; CREATE TABLE {table}"));
            format!("COPY storm_{client} FROM '{}'", csv.display())
        });
        self.sample(|| {
            std::thread::scope(|scope| {
                for load in &loads {
                    scope.spawn(|| self.connect(space).run(load));
                }
            });
            f64::from(2 * self.effort.rows)
        })
    }

    fn spilling(&self, space: &str, settings: &str, query: &str) -> Sample {
        self.sample(|| {
            let mut sql = self.connect(space);
            sql.run(&format!("SET work_mem = '1MB'; {settings}"));
            sql.run(query);
            f64::from(self.effort.rows)
        })
    }

    pub(crate) fn spilling_sort(&self, space: &str) -> Sample {
        self.spilling(space, "", "SELECT secret FROM sorted ORDER BY secret OFFSET 1000000000")
    }

    pub(crate) fn spilling_join(&self, space: &str) -> Sample {
        let hash_only = "SET enable_mergejoin = off; SET enable_nestloop = off";
        self.spilling(space, hash_only, "SELECT count(*) FROM sorted a JOIN sorted b USING (secret)")
    }

    pub(crate) fn create_index(&self, space: &str) -> Sample {
        self.on_rows(space, "DROP INDEX IF EXISTS by_secret", "CREATE INDEX by_secret ON loaded (secret)")
    }

    pub(crate) fn create_table_as(&self, space: &str) -> Sample {
        self.on_rows(space, "DROP TABLE IF EXISTS copied", "CREATE TABLE copied AS SELECT * FROM loaded")
    }

    /// The worst case that other products publish: every row read, changed and written to a new file.
    pub(crate) fn alter_rewrite(&self, space: &str) -> Sample {
        let before = "ALTER TABLE copied ALTER COLUMN k TYPE int";
        self.on_rows(space, before, "ALTER TABLE copied ALTER COLUMN k TYPE bigint")
    }

    pub(crate) fn update_all(&self, space: &str) -> Sample {
        self.on_rows(space, "VACUUM FULL copied", "UPDATE copied SET k = k + 1")
    }

    pub(crate) fn vacuum_full(&self, space: &str) -> Sample {
        self.on_rows(space, "", "VACUUM FULL loaded")
    }

    pub(crate) fn scan(&self, space: &str) -> Sample {
        const TIMES: u32 = 5;
        self.sample(|| {
            let mut sql = self.connect(space);
            for _ in 0..TIMES {
                assert_eq!(sql.int("SELECT count(*) FROM loaded"), i64::from(self.effort.rows));
            }
            f64::from(self.effort.rows * TIMES)
        })
    }

    /// Each relation has a key of its own: what making the keys costs.
    pub(crate) fn small_tables(&self, space: &str) -> Sample {
        const TABLES: u32 = 2000;
        let of_each = |template: &str| {
            format!(
                "DO $$ BEGIN FOR i IN 1..{TABLES} LOOP EXECUTE format('{template}', i); COMMIT; END LOOP; END $$"
            )
        };
        self.connect(space).run(&of_each("DROP TABLE IF EXISTS small_%s"));
        self.sample(|| {
            self.connect(space).run(&of_each("CREATE TABLE small_%1$s AS SELECT %1$s AS i"));
            let mut sql = self.connect(space);
            sql.run("CHECKPOINT");
            sql.run(&of_each("SELECT * FROM small_%s"));
            f64::from(TABLES)
        })
    }
}
