//! A server in a scratch folder.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use rustix::process::Signal;

use crate::process::both;
use crate::{PgRoot, Process, Scratch, SoftHsm, Sql, SqlError, command_output, plain_mode};

const PORT: u16 = 5432;
const START_LIMIT: Duration = Duration::from_secs(120);

/// What a server that refused to start left in its log.
#[derive(Debug)]
pub struct StartFailure {
    /// The lines it logged during this start.
    pub log: String,
    /// How long it took to give up.
    pub after: Duration,
}

/// What a new cluster shall look like.
pub struct Builder {
    checksums: bool,
    tde: bool,
    fsync: bool,
    segment_megabytes: u32,
    conf: Vec<(String, String)>,
}

impl Builder {
    /// Page checksums on or off (on unless said).
    pub fn checksums(mut self, on: bool) -> Self {
        self.checksums = on;
        self
    }

    /// Whether pg_tde is preloaded and has an HSM (yes unless said, or unless in plain mode).
    pub fn tde(mut self, on: bool) -> Self {
        self.tde = on && !plain_mode();
        self
    }

    /// `fsync` on: for tests in which the server is killed.
    pub fn fsync(mut self) -> Self {
        self.fsync = true;
        self
    }

    /// Size of WAL segments (16 MB unless said).
    pub fn segments(mut self, megabytes: u32) -> Self {
        self.segment_megabytes = megabytes;
        self
    }

    /// A setting for `postgresql.conf`; a later one wins.
    pub fn conf(mut self, name: &str, value: &str) -> Self {
        self.conf.push((name.into(), value.into()));
        self
    }

    /// initdb and HSM set-up, without starting the server.
    pub fn create(self) -> Cluster {
        let root = PgRoot::get();
        let cluster = Cluster::folders(root);
        let mut initdb = root.command(root.bin("initdb"));
        initdb.args(["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C"]);
        initdb.arg(format!("--wal-segsize={}", self.segment_megabytes)).arg("-D");
        initdb.arg(&cluster.data);
        if self.checksums {
            initdb.arg("--data-checksums");
        }
        command_output(&mut initdb);
        let mut cluster = cluster;
        let mut conf = Cluster::base_conf(&cluster.socket_dir());
        conf.push(("fsync".into(), if self.fsync { "on" } else { "off" }.into()));
        if self.tde {
            let hsm = SoftHsm::init(root, &cluster.scratch.path().join("keys"));
            conf.push(("shared_preload_libraries".into(), "pg_tde".into()));
            conf.extend(hsm.settings());
            cluster.hsm = Some(hsm);
            cluster.tde = true;
        }
        conf.extend(self.conf);
        for (name, value) in &conf {
            cluster.configure(name, value);
        }
        cluster
    }

    /// [`Self::create`], start, and with pg_tde `CREATE EXTENSION` in database postgres.
    pub fn start(self) -> Cluster {
        let tde = self.tde;
        let mut cluster = self.create();
        cluster.start();
        if tde {
            cluster.run("CREATE EXTENSION pg_tde");
        }
        cluster
    }
}

/// A PostgreSQL server and everything that belongs to it, in one scratch folder.
pub struct Cluster {
    root: &'static PgRoot,
    scratch: Scratch,
    data: PathBuf,
    hsm: Option<SoftHsm>,
    tde: bool,
    server: Option<Child>,
    environment: Vec<(String, String)>,
    log_start: u64,
}

impl Cluster {
    /// A cluster with pg_tde preloaded, an HSM and page checksums.
    pub fn builder() -> Builder {
        Builder { checksums: true, tde: !plain_mode(), fsync: false, segment_megabytes: 16, conf: Vec::new() }
    }

    /// A started cluster as [`Self::builder`] makes it.
    pub fn with_tde() -> Self {
        Self::builder().start()
    }

    fn folders(root: &'static PgRoot) -> Self {
        let scratch = Scratch::new();
        for name in ["sock", "ts"] {
            let dir = scratch.path().join(name);
            fs::create_dir(&dir).unwrap();
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
            root.own(&dir);
        }
        root.own(scratch.path());
        let data = scratch.path().join("data");
        Self {
            root,
            scratch,
            data,
            hsm: None,
            tde: false,
            server: None,
            environment: Vec::new(),
            log_start: 0,
        }
    }

    fn base_conf(socket_dir: &str) -> Vec<(String, String)> {
        [
            ("listen_addresses", ""),
            ("unix_socket_directories", socket_dir),
            ("max_connections", "30"),
            ("shared_buffers", "16MB"),
            ("min_wal_size", "32MB"),
            ("log_line_prefix", "%m [%p] "),
            ("log_checkpoints", "off"),
            ("timezone", "UTC"),
        ]
        .map(|(n, v)| (n.to_owned(), v.to_owned()))
        .to_vec()
    }

    /// A streaming standby of `primary`, made with the stock `pg_basebackup` and started. Tablespaces land in a
    /// folder of the standby's own; it shares the primary's HSM.
    pub fn standby_of(primary: &Self) -> Self {
        let mut standby = Self::folders(primary.root);
        standby.tde = primary.tde;
        command_output(&mut standby.base_backup(primary, &["--write-recovery-conf", "--checkpoint=fast"]));
        standby.configure("unix_socket_directories", &standby.socket_dir());
        standby.configure("hot_standby", "on");
        standby.start();
        standby
    }

    /// A cluster restored from a stock `pg_basebackup` of `primary`, not started. `meanwhile` runs while the backup is
    /// under way; throttle it with `--max-rate` to make that certain.
    pub fn backup_of(primary: &Self, options: &[&str], meanwhile: impl FnOnce()) -> Self {
        let mut backup = Self::folders(primary.root);
        backup.tde = primary.tde;
        let mut child = backup.base_backup(primary, options).spawn().unwrap();
        let begin = Instant::now();
        let streaming =
            "SELECT count(*) FROM pg_stat_progress_basebackup WHERE phase = 'streaming database files'";
        while child.try_wait().unwrap().is_none() && primary.int(streaming) == 0 {
            assert!(begin.elapsed() < START_LIMIT, "the backup did not start");
            thread::sleep(Duration::from_millis(5));
        }
        meanwhile();
        assert!(child.wait().unwrap().success(), "pg_basebackup failed");
        backup.configure("unix_socket_directories", &backup.socket_dir());
        backup
    }

    /// A copy of a cluster that is not running, its tablespaces included. It shares the other's HSM.
    pub fn copy_of(other: &Self) -> Self {
        assert!(other.server.is_none(), "it is running");
        let mut copy = Self::folders(other.root);
        copy.tde = other.tde;
        for (from, to) in [(&other.data, &copy.data), (&other.ts_dir().join("."), &copy.ts_dir())] {
            command_output(Command::new("cp").arg("-a").arg(from).arg(to));
        }
        for link in fs::read_dir(copy.data.join("pg_tblspc")).unwrap() {
            let link = link.unwrap().path();
            if let Ok(target) = fs::read_link(&link) {
                fs::remove_file(&link).unwrap();
                let own = copy.ts_dir().join(target.file_name().expect("a tablespace's folder"));
                std::os::unix::fs::symlink(own, &link).unwrap();
            }
        }
        copy.configure("unix_socket_directories", &copy.socket_dir());
        copy
    }

    fn base_backup(&self, primary: &Self, options: &[&str]) -> Command {
        let mut command = primary.tool("pg_basebackup");
        command.arg("-D").arg(&self.data).args(options);
        // One inside the data directory, which has no path of its own, is copied with it.
        let outside = "SELECT l FROM pg_tablespace, pg_tablespace_location(oid) l WHERE l LIKE '/%'";
        for row in primary.rows(outside) {
            let name = Path::new(&row[0]).file_name().unwrap();
            command.arg("-T").arg(format!("{}={}", row[0], self.ts_dir().join(name).display()));
        }
        command
    }

    /// Where its data directory is.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The folder that holds its tablespaces, one folder each.
    pub fn ts_dir(&self) -> PathBuf {
        self.scratch.path().join("ts")
    }

    /// Its scratch folder.
    pub fn dir(&self) -> &Path {
        self.scratch.path()
    }

    /// Its software HSM; panics without pg_tde, and for a standby, which shares its primary's.
    pub fn hsm(&self) -> &SoftHsm {
        self.hsm.as_ref().expect("a cluster with pg_tde")
    }

    /// Whether it has pg_tde.
    pub fn has_tde(&self) -> bool {
        self.tde
    }

    /// The installed copy it runs from.
    pub fn root(&self) -> &'static PgRoot {
        self.root
    }

    fn socket_dir(&self) -> String {
        self.scratch.path().join("sock").to_str().unwrap().to_owned()
    }

    /// Appends a setting to `postgresql.conf`.
    pub fn configure(&self, name: &str, value: &str) {
        let path = self.data.join("postgresql.conf");
        let mut text = fs::read_to_string(&path).unwrap();
        writeln!(text, "{name} = '{}'", value.replace('\'', "''")).unwrap();
        fs::write(&path, text).unwrap();
    }

    /// A variable in the environment of the server from its next start on.
    pub fn environment(&mut self, name: &str, value: &str) {
        self.environment.push((name.into(), value.into()));
    }

    // Starting and stopping.

    /// Starts the server and waits until it takes connections (on a standby: read-only ones).
    pub fn start(&mut self) {
        self.try_start().unwrap_or_else(|f| panic!("the server did not start; it logged:\n{}", f.log));
    }

    /// Starts the server; its log when it gives up.
    pub fn try_start(&mut self) -> Result<(), StartFailure> {
        assert!(self.server.is_none(), "already started");
        self.log_start = self.log_len();
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path()).unwrap();
        let begin = Instant::now();
        let mut server = self
            .root
            .command(self.root.bin("postgres"))
            .arg("-D")
            .arg(&self.data)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        loop {
            if server.try_wait().unwrap().is_some() {
                return Err(StartFailure { log: self.log_since_start(), after: begin.elapsed() });
            }
            if self.takes_connections(server.id()) {
                self.server = Some(server);
                return Ok(());
            }
            if begin.elapsed() > START_LIMIT {
                self.server = Some(server);
                self.crash();
                panic!("no start within {START_LIMIT:?}:\n{}", self.log_since_start());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// `postmaster.pid` names this postmaster in line 1 and says `ready` or `standby` in line 8 (miscadmin.h).
    fn takes_connections(&self, pid: u32) -> bool {
        let Ok(text) = fs::read_to_string(self.data.join("postmaster.pid")) else { return false };
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        lines.first() == Some(&pid.to_string().as_str())
            && matches!(lines.get(7), Some(&"ready" | &"standby"))
    }

    /// Fast shutdown, with its checkpoint.
    pub fn stop(&mut self) {
        let mut server = self.server.take().expect("a running server");
        self.process_of(&server).signal(Signal::INT);
        let status = server.wait().unwrap();
        assert!(status.success(), "shutdown ended with {status}:\n{}", self.log_since_start());
    }

    /// Stop and start.
    pub fn restart(&mut self) {
        self.stop();
        self.start();
    }

    /// Waits for a server that is ending by itself; panics if it goes on.
    pub fn wait_for_end(&mut self) {
        let begin = Instant::now();
        while self.server.as_mut().expect("a server that was started").try_wait().unwrap().is_none() {
            assert!(begin.elapsed() < START_LIMIT, "it goes on:\n{}", self.log_since_start());
            thread::sleep(Duration::from_millis(20));
        }
        self.server = None;
    }

    /// SIGKILL to the postmaster and to all its children, as a power cut would.
    pub fn crash(&mut self) {
        let mut server = self.server.take().expect("a running server");
        let process = self.process_of(&server);
        // Its zombie must be reaped while waiting for it to go.
        let reaper = thread::spawn(move || server.wait());
        process.kill_with_children();
        reaper.join().unwrap().unwrap();
    }

    /// [`Self::crash`] and start again.
    pub fn crash_and_recover(&mut self) {
        self.crash();
        self.start();
    }

    /// The postmaster.
    pub fn postmaster(&self) -> Process {
        self.process_of(self.server.as_ref().expect("a running server"))
    }

    fn process_of(&self, server: &Child) -> Process {
        Process::find(server.id() as i32)
            .unwrap_or_else(|| panic!("the server is gone:\n{}", self.log_since_start()))
    }

    /// SIGKILLs one backend that a client of the test owns; returns when the server has restarted itself.
    pub fn kill_a_backend(&self) {
        let mut session = self.connect("postgres");
        let pid = session.int("SELECT pg_backend_pid()") as i32;
        self.kill_backend(Process::find(pid).expect("a backend"));
    }

    /// SIGKILLs `backend`; returns when the server has restarted itself.
    pub fn kill_backend(&self, backend: Process) {
        let mark = self.log_mark();
        backend.signal(Signal::KILL);
        let begin = Instant::now();
        while !self.log_from(mark).contains("all server processes terminated; reinitializing") {
            assert!(!self.log_from(mark).contains("shutting down due to"), "{}", self.log_from(mark));
            assert!(begin.elapsed() < START_LIMIT, "the server did not notice:\n{}", self.log_from(mark));
            thread::sleep(Duration::from_millis(10));
        }
        self.wait_until_up();
    }

    /// Waits until a query succeeds again.
    pub fn wait_until_up(&self) {
        let begin = Instant::now();
        while self.try_connect("postgres").and_then(|mut sql| sql.try_run("SELECT 1")).is_err() {
            assert!(
                begin.elapsed() < START_LIMIT,
                "the server did not come back:\n{}",
                self.log_since_start()
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    // The log.

    /// The server's log file.
    pub fn log_path(&self) -> PathBuf {
        self.scratch.path().join("log")
    }

    fn log_len(&self) -> u64 {
        fs::metadata(self.log_path()).map_or(0, |m| m.len())
    }

    /// The whole log.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// What was logged since the last start.
    pub fn log_since_start(&self) -> String {
        self.log_from(self.log_start)
    }

    /// A mark for [`Self::log_from`].
    pub fn log_mark(&self) -> u64 {
        self.log_len()
    }

    /// What was logged since `mark`.
    pub fn log_from(&self, mark: u64) -> String {
        let all = fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&all[(mark as usize).min(all.len())..]).into_owned()
    }

    // Clients and tools.

    /// A connection as superuser.
    pub fn connect(&self, database: &str) -> Sql {
        self.try_connect(database)
            .unwrap_or_else(|e| panic!("connect to {database}: {e}\n{}", self.log_since_start()))
    }

    /// A connection as superuser, if the server takes one.
    pub fn try_connect(&self, database: &str) -> Result<Sql, SqlError> {
        self.connect_as(database, "postgres")
    }

    /// A connection as `user`.
    pub fn connect_as(&self, database: &str, user: &str) -> Result<Sql, SqlError> {
        Sql::connect(&self.socket_dir(), PORT, database, user)
    }

    /// [`Sql::run`] in a connection of its own to database postgres.
    pub fn run(&self, sql: &str) {
        self.connect("postgres").run(sql);
    }

    /// [`Sql::try_run`] in a connection of its own to database postgres.
    pub fn try_run(&self, sql: &str) -> Result<(), SqlError> {
        self.connect("postgres").try_run(sql)
    }

    /// [`Sql::rows`] in a connection of its own to database postgres.
    pub fn rows(&self, sql: &str) -> Vec<Vec<String>> {
        self.connect("postgres").rows(sql)
    }

    /// [`Sql::text`] in a connection of its own to database postgres.
    pub fn text(&self, sql: &str) -> String {
        self.connect("postgres").text(sql)
    }

    /// [`Sql::int`] in a connection of its own to database postgres.
    pub fn int(&self, sql: &str) -> i64 {
        self.connect("postgres").int(sql)
    }

    /// One of PostgreSQL's programs as a client of this server, in database postgres unless said otherwise.
    pub fn tool(&self, program: &str) -> Command {
        let mut command = self.root.command(self.root.bin(program));
        command.env("PGHOST", self.socket_dir()).env("PGPORT", PORT.to_string()).env("PGUSER", "postgres");
        command.env("PGDATABASE", "postgres").env("PGAPPNAME", program);
        command
    }

    /// Runs one of PostgreSQL's programs to its end; panics when it fails.
    pub fn tool_output(&self, program: &str, arguments: &[&str]) -> String {
        command_output(self.tool(program).args(arguments))
    }

    /// Runs one of PostgreSQL's programs that may fail: whether it succeeded, and what it printed.
    pub fn try_tool(&self, program: &str, arguments: &[&str]) -> (bool, String) {
        let output = self.tool(program).args(arguments).output().unwrap();
        (output.status.success(), both(&output))
    }

    /// Promotes a standby. Not by `pg_promote`: a query of that waits on the replay that may be waiting for it.
    pub fn promote(&self) {
        self.tool_output("pg_ctl", &["promote", "--wait", "--silent", "-D", self.data.to_str().unwrap()]);
    }

    /// Runs a script with `psql`, stopping at the first error, and returns its unadorned output.
    pub fn psql(&self, database: &str, script: &str) -> String {
        self.tool_output("psql", &["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", script])
    }

    // Tablespaces and files.

    /// Makes tablespace `name` in a folder of its own.
    pub fn plain_tablespace(&self, name: &str) -> PathBuf {
        let dir = self.ts_dir().join(name);
        fs::create_dir(&dir).unwrap();
        self.root.own(&dir);
        self.run(&format!("CREATE TABLESPACE {name} LOCATION '{}'", dir.display()));
        dir
    }

    /// Makes tablespace `name` and encrypts it with the default cipher.
    pub fn encrypted_tablespace(&self, name: &str) -> PathBuf {
        self.tablespace_with_cipher(name, "aes-256-hctr2")
    }

    /// Makes tablespace `name` and encrypts it with `cipher`.
    pub fn tablespace_with_cipher(&self, name: &str, cipher: &str) -> PathBuf {
        let dir = self.plain_tablespace(name);
        if !plain_mode() {
            self.run(&format!("SELECT tde.encrypt_tablespace('{name}', cipher => '{cipher}')"));
        }
        dir
    }

    /// The first segment of relation `name`'s main fork, in database postgres. Other forks and segments append
    /// `_fsm`, `_vm`, `_init` and `.1`.
    pub fn file_of(&self, name: &str) -> PathBuf {
        self.file_in("postgres", name)
    }

    /// [`Self::file_of`] in another database.
    pub fn file_in(&self, database: &str, name: &str) -> PathBuf {
        let relative = self.connect(database).text(&format!("SELECT pg_relation_filepath('{name}')"));
        self.data.join(relative)
    }

    /// Writes every dirty buffer out without a checkpoint, by reading another relation over the whole buffer pool.
    /// Needs small `shared_buffers`; makes the relation at the first call.
    pub fn evict_buffers(&self) {
        let mut sql = self.connect("postgres");
        sql.run("CREATE EXTENSION IF NOT EXISTS pg_prewarm");
        let buffers = sql.int("SELECT setting::int FROM pg_settings WHERE name = 'shared_buffers'");
        if sql.text("SELECT to_regclass('evict_filler') IS NULL") == "t" {
            // One row a page, enough pages to turn the clock hand of the buffer pool past every usage count of 5.
            sql.run(
                "CREATE TABLE evict_filler (filler text) WITH (fillfactor = 10, autovacuum_enabled = off)",
            );
            sql.run("ALTER TABLE evict_filler ALTER filler SET STORAGE PLAIN");
            sql.run(&format!(
                "INSERT INTO evict_filler SELECT repeat('x', 4500) FROM generate_series(1, {})",
                buffers * 8
            ));
        }
        sql.run("SELECT pg_prewarm('evict_filler', 'buffer')");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            // It may be gone already, and this may run while a test fails: nothing here may panic.
            let process = Process::find(server.id() as i32);
            let reaper = thread::spawn(move || server.wait());
            if let Some(process) = process {
                process.kill_with_children();
            }
            let _ = reaper.join();
        }
        if thread::panicking() {
            let log = self.log_since_start();
            let tail: Vec<&str> = log.lines().rev().take(25).collect();
            eprintln!("last lines of {}:", self.log_path().display());
            for line in tail.iter().rev() {
                eprintln!("  {line}");
            }
        }
    }
}
