//! The keys of SQLite files under one keyring.
//!
//! Which key a page is under stands in the page: a rotation that was cut short is gone on with when some pages are under an older key.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use keyring::pkcs11::AgentOptions;
use keyring::{AnyHsm, Keyring, MasterKey as _, Owner, Scope};
use sqlite_vfs::offline::{self, Identified};

use super::config::Sqlite;
use super::policy::{Aged, Verdict};
use super::report::{Action, Entry, Result as End};
use super::{Recorder, Run};
use crate::output::with_causes;
use crate::sqlite::{Access, Progress, Rotation, Stopped};

type Error = Box<dyn std::error::Error + Send + Sync>;
type Result<T> = std::result::Result<T, Error>;

/// What is known of a file before anything is done with it.
enum Seen {
    /// A rotation was cut short: so many pages are under older keys.
    Unfinished(u32, u64),
    Whole {
        version: u32,
        created: f64,
    },
    /// Not one of ours, and only a pattern says that it might be.
    Other,
    Plaintext,
    Failed(Error),
}

/// Looks at the files, and does what is due.
pub(super) async fn run(target: Arc<Sqlite>, run: Arc<Run>, index: usize) -> Vec<Entry> {
    let recorder = Recorder::new(&target.name, "sqlite");
    let pin = target.pin.clone();
    // A name of its own in SQLite: each target has its keyring and HSM.
    let ask = Arc::new(move |_: &keyring::HsmUri| pin.read());
    let access = match Access::new(&target.keyring, target.hsm.clone(), ask).named(format!("tde-{index}")) {
        Ok(access) => Arc::new(access),
        Err(error) => return vec![recorder.failed("keyring", Action::Look, error.as_ref())],
    };
    let ready = {
        let (access, name) = (Arc::clone(&access), target.name.clone());
        in_thread(move || access.ready(&name)).await
    };
    if let Err(error) = ready {
        return vec![recorder.failed("keyring", Action::Look, error.as_ref())];
    }
    let mut entries = Vec::new();
    entries.extend(master(&target, &run, &recorder).await);
    let (files, missing) = expand(&target.files);
    for pattern in missing {
        let detail = "no file is there".to_owned();
        entries.push(recorder.entry(&pattern, Action::Look, End::Failed, detail));
    }
    let mut tasks = Vec::new();
    for (path, named) in files {
        let (target, run, access) = (Arc::clone(&target), Arc::clone(&run), Arc::clone(&access));
        let object = path.display().to_string();
        tasks.push((object, tokio::spawn(async move { file(&target, &run, &access, path, named).await })));
    }
    for (object, task) in tasks {
        match task.await {
            Ok(entry) => entries.extend(entry),
            Err(error) => entries.push(recorder.failed(&object, Action::Look, &error)),
        }
    }
    entries
}

/// SQLite, the HSM and file systems wait without yielding.
async fn in_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await?
}

/// The files, each once, with whether it was named as such; and names that fit nothing.
fn expand(patterns: &[String]) -> (Vec<(PathBuf, bool)>, Vec<String>) {
    let (mut files, mut missing, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
    for pattern in patterns {
        // A file whose name looks like a pattern is meant as such.
        let named = Path::new(pattern).is_file() || !pattern.contains(['*', '?', '[']);
        let found: Vec<PathBuf> = match (named, glob::glob(pattern)) {
            (false, Ok(paths)) => paths.flatten().filter(|path| path.is_file()).collect(),
            _ => Path::new(pattern).is_file().then(|| pattern.into()).into_iter().collect(),
        };
        if found.is_empty() {
            missing.push(pattern.clone());
        }
        for path in found {
            // Links to the same file are one file.
            if seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())) {
                files.push((path, named));
            }
        }
    }
    (files, missing)
}

fn now() -> f64 {
    Timestamp::now().as_second() as f64
}

/// The master key of the keyring; nothing if the policy does not ask for it.
async fn master(target: &Arc<Sqlite>, run: &Run, recorder: &Recorder) -> Option<Entry> {
    target.policy.master_key?;
    let (object, action) = ("master key", Action::RotateMasterKey);
    let judged = {
        let target = Arc::clone(target);
        in_thread(move || with_keyring(&target, |keyring, hsm| judge(&target, keyring, hsm))).await
    };
    let reason = match judged {
        Ok(Some(Verdict::Due(why))) => why,
        Ok(Some(Verdict::Leave(why))) => return Some(recorder.entry(object, action, End::NothingToDo, why)),
        Ok(None) => return None,
        Err(error) => return Some(recorder.failed(object, action, error.as_ref())),
    };
    let _turn = match run.turn(recorder, object, action, &reason).await {
        Ok(turn) => turn,
        Err(entry) => return Some(entry),
    };
    let target = Arc::clone(target);
    let rotated = in_thread(move || {
        with_keyring(&target, |keyring, hsm| {
            // Another target with the same keyring may have had its turn.
            if !matches!(judge(&target, keyring, hsm)?, Some(Verdict::Due(_))) {
                return Ok(None);
            }
            // One that was interrupted, or rotated for another keyring, is taken.
            if oldest(keyring)? >= hsm.primary_version()? {
                hsm.generate_version()?;
            }
            Ok(Some(keyring.rewrap_all(&*hsm, |_| ControlFlow::Continue(()))?))
        })
    });
    Some(match rotated.await {
        Ok(Some(done)) => {
            let detail = format!(
                "{reason}; keys of {} files are wrapped under version {}",
                done.rewrapped + done.already,
                done.to
            );
            recorder.entry(object, action, End::Done, detail)
        }
        Ok(None) => recorder.entry(object, action, End::Done, format!("{reason}; done meanwhile")),
        Err(error) => recorder.failed(object, action, error.as_ref()),
    })
}

fn with_keyring<T>(
    target: &Sqlite,
    work: impl FnOnce(&keyring::Unlocked, &mut AnyHsm) -> Result<T>,
) -> Result<T> {
    let mut hsm = AnyHsm::open(&target.hsm, target.pin.read()?, AgentOptions::default())?;
    let keyring = Keyring::open(&target.keyring)?;
    keyring.require_owner(Owner::Files)?;
    let done = work(&keyring.unlock(&hsm)?, &mut hsm)?;
    hsm.close()?;
    Ok(done)
}

/// The oldest version of the master key that something is wrapped under.
fn oldest(keyring: &keyring::Unlocked) -> Result<u32> {
    let of_keyring = keyring.info()?.master_key_version;
    let scopes = keyring.survey()?.scopes;
    Ok(scopes.iter().filter_map(Scope::oldest_master_version).min().unwrap_or(of_keyring).min(of_keyring))
}

/// The HSM does not say how old a key is.
#[derive(Debug, thiserror::Error)]
#[error(
    "the HSM does not say when master-key version {0} was made: rotate it with `tde keyring rewrap --new-version`"
)]
struct NoTime(u32);

fn judge(target: &Sqlite, keyring: &keyring::Unlocked, hsm: &AnyHsm) -> Result<Option<Verdict>> {
    let version = oldest(keyring)?;
    let created = hsm.version_created(version)?.ok_or(NoTime(version))?;
    Ok(Aged::MasterKey(version).judge(&target.policy, created as f64, now()))
}

/// One file; nothing if the policy does not ask for it.
async fn file(target: &Sqlite, run: &Run, access: &Arc<Access>, path: PathBuf, named: bool) -> Option<Entry> {
    let recorder = Recorder::new(&target.name, "sqlite");
    let object = path.display().to_string();
    let seen = {
        let (access, path) = (Arc::clone(access), path.clone());
        in_thread(move || Ok(look(&access, &path, named))).await.unwrap_or_else(Seen::Failed)
    };
    let (action, reason) = match seen {
        Seen::Other => return None,
        Seen::Plaintext => {
            let detail = "a plaintext database; `tde sqlite encrypt` encrypts it".to_owned();
            return Some(recorder.entry(&object, Action::Look, End::NothingToDo, detail));
        }
        Seen::Failed(error) => return Some(recorder.failed(&object, Action::Look, error.as_ref())),
        Seen::Unfinished(version, pages) => {
            (Action::FinishRotation, format!("{pages} pages are under older keys than version {version}"))
        }
        Seen::Whole { version, created } => {
            match Aged::DataKey(version).judge(&target.policy, created, now())? {
                Verdict::Due(why) => (Action::RotateDataKey, why),
                Verdict::Leave(why) => {
                    return Some(recorder.entry(&object, Action::RotateDataKey, End::NothingToDo, why));
                }
            }
        }
    };
    let _turn = match run.turn(&recorder, &object, action, &reason).await {
        Ok(turn) => turn,
        // Nobody goes on with it.
        Err(entry) if entry.result == End::Running => {
            return Some(Entry { result: End::NotStarted, ..entry });
        }
        Err(entry) => return Some(entry),
    };
    let bar = run.show.begin(format!("{}: {object}: {}", target.name, action.name()));
    let begin = Instant::now();
    let rotation = Rotation { new_key: false, max_rate: target.policy.max_rate };
    let progress = Progress::of(run.gate.interrupt());
    let counter = progress.clone();
    let access = Arc::clone(access);
    let mut work =
        std::pin::pin!(in_thread(move || crate::sqlite::rotate(&access, &path, &rotation, &progress)));
    let done = loop {
        match tokio::time::timeout(crate::job::KEEP_UP, work.as_mut()).await {
            Ok(done) => break done,
            Err(_) => {
                let (position, total, what) = counter.now();
                bar.at(position, total, what);
            }
        }
    };
    let (end, detail) = match done {
        Ok(done) => (
            End::Done,
            format!(
                "every page is under version {}; {} were rewritten",
                done.key_version, done.rewritten_pages
            ),
        ),
        Err(error) if error.is::<Stopped>() => (End::Paused, "stopped; the next run goes on".to_owned()),
        Err(error) => (End::Failed, with_causes(error.as_ref())),
    };
    let detail = if end == End::Failed { detail } else { format!("{reason}; {detail}") };
    bar.end(&detail);
    let mut entry = recorder.entry(&object, action, end, detail);
    entry.seconds = begin.elapsed().as_secs_f64();
    Some(entry)
}

fn look(access: &Access, path: &Path, named: bool) -> Seen {
    let looked = || -> Result<Seen> {
        let path = path.canonicalize().map_err(|source| crate::sqlite::At { path: path.into(), source })?;
        let file = match offline::identify(&path)? {
            Identified::Encrypted(file) => file,
            // A pattern fits journals, empty files and what else lies there; what is damaged is not passed over.
            Identified::Empty | Identified::Foreign if !named => return Ok(Seen::Other),
            Identified::Plaintext(_) if !named => return Ok(Seen::Plaintext),
            other => return Err(crate::sqlite::not_encrypted(&path, &other).into()),
        };
        let keys = access.keys(&path, &file)?;
        let version = keys.active_version();
        let pages = file.versions(|_| ControlFlow::Continue(()))?;
        let older: u64 =
            pages.iter().filter(|(of, _)| **of != 0 && **of < version).map(|(_, pages)| pages).sum();
        if older > 0 {
            return Ok(Seen::Unfinished(version, older));
        }
        let scope = keys.scope()?;
        let created = scope.active().map_or(0, |active| active.created);
        Ok(Seen::Whole { version, created: created as f64 })
    };
    looked().unwrap_or_else(Seen::Failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_find_each_file_once() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.db", "b.db", "c.txt"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        std::os::unix::fs::symlink(dir.path().join("a.db"), dir.path().join("z.db")).unwrap();
        let name = |name: &str| dir.path().join(name).display().to_string();
        let (files, missing) = expand(&[name("b.db"), name("*.db"), name("none.db"), name("*.none")]);
        let files: Vec<_> =
            files.iter().map(|(path, named)| (path.file_name().unwrap().to_str().unwrap(), *named)).collect();
        assert_eq!(files, [("b.db", true), ("a.db", false)]);
        assert_eq!(missing, [name("none.db"), name("*.none")]);
    }
}
