\echo Use "CREATE EXTENSION pg_tde" to load this file. \quit

CREATE FUNCTION tde.encrypt_tablespace(name text, cipher text DEFAULT NULL, wait boolean DEFAULT false)
RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'encrypt_tablespace_wrapper';
COMMENT ON FUNCTION tde.encrypt_tablespace(text, text, boolean) IS
'encrypt everything that is stored in a tablespace from now on; returns the job that rewrites what it holds, NULL if it is empty';

CREATE FUNCTION tde.decrypt_tablespace(name text, wait boolean DEFAULT false)
RETURNS bigint
LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'decrypt_tablespace_wrapper';
COMMENT ON FUNCTION tde.decrypt_tablespace(text, boolean) IS
'store a tablespace in clear from now on; returns the job that rewrites what is there';

CREATE FUNCTION tde.rotate_data_key(name text, wait boolean DEFAULT false)
RETURNS bigint
LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'rotate_data_key_wrapper';
COMMENT ON FUNCTION tde.rotate_data_key(text, boolean) IS
'make a new version of a tablespace''s data key and write under it from now on; returns the job that rewrites what is there';

CREATE FUNCTION tde.rotate_wal_key()
RETURNS integer
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'rotate_wal_key_wrapper';
COMMENT ON FUNCTION tde.rotate_wal_key() IS
'make a new version of the write-ahead log''s data key; segments that are begun from now on are written under it';

CREATE FUNCTION tde.wal_status()
RETURNS TABLE (line bigint, key_version integer, accepts_plain boolean)
LANGUAGE c VOLATILE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'wal_status_wrapper';
COMMENT ON FUNCTION tde.wal_status() IS
'how new segments of the write-ahead log are written (NULL: in clear), and whether segments in clear are accepted';

CREATE FUNCTION tde.pause_job(job bigint)
RETURNS void
LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'pause_job_wrapper';
COMMENT ON FUNCTION tde.pause_job(bigint) IS
'make a job wait, also after a restart of this server';

CREATE FUNCTION tde.resume_job(job bigint)
RETURNS void
LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'resume_job_wrapper';
COMMENT ON FUNCTION tde.resume_job(bigint) IS
'let a paused job go on';

CREATE FUNCTION tde.cancel_job(job bigint)
RETURNS bigint
LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cancel_job_wrapper';
COMMENT ON FUNCTION tde.cancel_job(bigint) IS
'turn a job back: decrypt what was being encrypted, encrypt again what was being decrypted; returns the job that does it';

CREATE FUNCTION tde.rotate_master_key()
RETURNS integer
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'rotate_master_key_wrapper';
COMMENT ON FUNCTION tde.rotate_master_key() IS
'make a new version of the master key and wrap every data key under it; no page is touched';

CREATE FUNCTION tde.destroy_key_version(name text, key_version integer, waiting_period interval DEFAULT '30 days',
                                        confirm boolean DEFAULT false)
RETURNS text
LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'destroy_key_version_wrapper';
COMMENT ON FUNCTION tde.destroy_key_version(text, integer, interval, boolean) IS
'plan the destruction of an old version of a tablespace''s data key; with confirm, after the waiting period: destroy it if nothing needs it';

CREATE FUNCTION tde.cancel_key_destruction(name text, key_version integer)
RETURNS void
LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cancel_key_destruction_wrapper';
COMMENT ON FUNCTION tde.cancel_key_destruction(text, integer) IS
'take the planned destruction of a version of a tablespace''s data key back';

CREATE FUNCTION tde.shred_keys(line bigint, waiting_period interval DEFAULT '30 days', confirm boolean DEFAULT false)
RETURNS text
LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'shred_keys_wrapper';
COMMENT ON FUNCTION tde.shred_keys(bigint, interval, boolean) IS
'plan the destruction of all data keys of a tablespace that was dropped or decrypted, by their line in tde.keys; with confirm, after the waiting period: destroy them';

CREATE FUNCTION tde.cancel_shred_keys(line bigint)
RETURNS void
LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'cancel_shred_keys_wrapper';
COMMENT ON FUNCTION tde.cancel_shred_keys(bigint) IS
'take the planned destruction of all data keys of a line back';

CREATE FUNCTION tde.lock()
RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'lock_keys_wrapper';
COMMENT ON FUNCTION tde.lock() IS
'wipe the keys of all tablespaces from the memory of this server; what is encrypted cannot be used until tde.unlock()';

CREATE FUNCTION tde.unlock()
RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'unlock_keys_wrapper';
COMMENT ON FUNCTION tde.unlock() IS
'ask the HSM for the keys again';

CREATE FUNCTION tde.is_locked()
RETURNS boolean
LANGUAGE c VOLATILE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'is_locked_wrapper';
COMMENT ON FUNCTION tde.is_locked() IS
'whether the keys of this server are locked';

CREATE FUNCTION tde.tablespace_is_encrypted(tablespace oid)
RETURNS boolean
LANGUAGE c STRICT STABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'tablespace_is_encrypted_wrapper';
COMMENT ON FUNCTION tde.tablespace_is_encrypted(oid) IS
'whether what is stored in a tablespace is encrypted';

CREATE FUNCTION tde.is_encrypted(relation regclass)
RETURNS boolean
LANGUAGE sql STRICT STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT tde.tablespace_is_encrypted(coalesce(nullif(c.reltablespace, 0), d.dattablespace))
    FROM pg_class c, pg_database d
    WHERE c.oid = relation AND d.datname = current_database() AND c.relkind IN ('r', 'i', 'm', 't', 'S')
$$;
COMMENT ON FUNCTION tde.is_encrypted(regclass) IS
'whether the storage of a relation is encrypted; NULL for what has no storage';

CREATE FUNCTION tde.check_files(name text)
RETURNS TABLE (database oid, relfilenode oid, fork text, blocks bigint, zero_blocks bigint,
               damaged bigint, first_damaged bigint, detail text)
LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'check_files_wrapper';
COMMENT ON FUNCTION tde.check_files(text) IS
'what tde.verify_tablespace finds, without names';

CREATE FUNCTION tde.verify_tablespace(name text)
RETURNS TABLE (database name, relation text, fork text, blocks bigint, zero_blocks bigint,
               damaged bigint, first_damaged bigint, detail text)
LANGUAGE sql STRICT VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT d.datname,
           coalesce(CASE WHEN d.datname = current_database()
                         THEN pg_filenode_relation(t.oid, f.relfilenode)::text END,
                    'relfilenode ' || f.relfilenode),
           f.fork, f.blocks, f.zero_blocks, f.damaged, f.first_damaged, f.detail
    FROM tde.check_files(verify_tablespace.name) f
    JOIN pg_tablespace t ON t.spcname = verify_tablespace.name
    LEFT JOIN pg_database d ON d.oid = f.database
    ORDER BY f.damaged DESC, 1, 2, 3
$$;
COMMENT ON FUNCTION tde.verify_tablespace(text) IS
'open every page in the files of an encrypted tablespace and report those that do not open';

CREATE FUNCTION tde.tablespace_lines()
RETURNS TABLE (line bigint, tablespace oid, cipher text, key_version integer,
               encrypted_from text, dropped_at text, unwrapped boolean, state text)
LANGUAGE c STRICT VOLATILE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'tablespace_lines_wrapper';

CREATE FUNCTION tde.job_table()
RETURNS TABLE (job bigint, tablespace oid, kind text, phase text, database oid, relation oid, blocks_done bigint,
               blocks_total bigint, blocks_verified bigint, blocks_per_second bigint, pid integer, paused boolean,
               attempts integer, started timestamptz)
LANGUAGE c STRICT VOLATILE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'job_table_wrapper';

CREATE FUNCTION tde.key_versions()
RETURNS TABLE (line bigint, scope text, state text, cipher text, key_version integer,
               key_state text, created timestamptz, master_key_version integer, destroy_after timestamptz)
LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'key_versions_wrapper';

CREATE FUNCTION tde.master_key_versions()
RETURNS TABLE (version integer, created timestamptz, data_keys bigint, newest boolean)
LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'master_key_versions_wrapper';
COMMENT ON FUNCTION tde.master_key_versions() IS
'versions of the master key that data keys are wrapped under, and the newest, as the HSM knows them; created is NULL if it does not say';

CREATE FUNCTION tde.counters()
RETURNS TABLE (pages_encrypted bigint, pages_decrypted bigint, pages_refused bigint,
               torn_maps bigint, double_writes bigint, torn_in_recovery bigint)
LANGUAGE c STRICT VOLATILE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'counters_wrapper';

CREATE VIEW tde.tablespaces AS
    SELECT t.spcname AS name, t.oid, coalesce(l.state, 'plain') AS state,
           l.cipher, l.key_version, l.line AS key_line, l.encrypted_from::pg_lsn AS encrypted_from
    FROM pg_catalog.pg_tablespace t
    LEFT JOIN tde.tablespace_lines() l ON l.tablespace = t.oid AND l.dropped_at IS NULL;
COMMENT ON VIEW tde.tablespaces IS 'every tablespace and how it is stored';

CREATE VIEW tde.jobs AS
    SELECT j.job, j.kind, t.spcname AS tablespace, j.phase, d.datname AS database,
           coalesce(CASE WHEN d.datname = pg_catalog.current_database()
                         THEN (SELECT c.oid::regclass::text FROM pg_catalog.pg_class c WHERE c.oid = j.relation) END,
                    j.relation::text) AS relation,
           j.blocks_done, j.blocks_total, j.attempts, j.started
    FROM tde.job_table() j
    LEFT JOIN pg_catalog.pg_tablespace t ON t.oid = j.tablespace
    LEFT JOIN pg_catalog.pg_database d ON d.oid = j.database;
COMMENT ON VIEW tde.jobs IS 'jobs that rewrite pages: under way, and those that ended lately';

CREATE VIEW tde.job_progress AS
    SELECT j.pid, j.job, j.kind, t.spcname AS tablespace, j.database AS datid, d.datname, j.relation AS relid, j.phase,
           j.blocks_total, j.blocks_done, j.blocks_verified,
           round(j.blocks_per_second / 128.0, 1) AS mb_per_second,
           CASE WHEN j.blocks_per_second > 0
                THEN clock_timestamp() + make_interval(secs =>
                     (j.blocks_total - CASE j.phase WHEN 'verifying files' THEN j.blocks_verified ELSE j.blocks_done END)
                     / j.blocks_per_second::float8) END AS estimated_end,
           j.paused, j.attempts, j.started,
           CASE j.phase WHEN 'waiting for transactions' THEN
               (SELECT string_agg(coalesce('process ' || l.pid,
                           (SELECT 'prepared transaction ' || p.gid FROM pg_catalog.pg_locks x
                            JOIN pg_catalog.pg_prepared_xacts p ON p.transaction = x.transactionid
                            WHERE x.pid IS NULL AND x.virtualtransaction = l.virtualtransaction LIMIT 1),
                           'a prepared transaction'), ', ')
                FROM pg_catalog.pg_locks l
                WHERE l.locktype = 'object' AND l.granted AND l.database = 0
                  AND l.classid = 'pg_catalog.pg_tablespace'::regclass AND l.objid = j.tablespace AND l.objsubid = 1) END
               AS waits_for
    FROM tde.job_table() j
    LEFT JOIN pg_catalog.pg_tablespace t ON t.oid = j.tablespace
    LEFT JOIN pg_catalog.pg_database d ON d.oid = j.database
    WHERE j.phase <> 'done';
COMMENT ON VIEW tde.job_progress IS
'jobs under way: how far, how fast, and until when the present phase will take at that rate';

CREATE VIEW tde.keys AS SELECT * FROM tde.key_versions();
COMMENT ON VIEW tde.keys IS 'every version of every data key in the keyring, without the keys';

CREATE VIEW tde.stats AS SELECT * FROM tde.counters();
COMMENT ON VIEW tde.stats IS 'pages since the server started';

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA tde FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA tde FROM PUBLIC;
REVOKE ALL ON SCHEMA tde FROM PUBLIC;
