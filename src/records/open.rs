//! Opening the records: the directory's lock, the database, its schema, the sealing key.

use std::borrow::Cow;
use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{SqlSafeStr, SqlStr, SqlitePool};
use tokio::time::Instant;

use crate::model::{Sealer, SealingKey};

use super::{Inner, OpenError, Records, Writing};

const KEY_BYTES: usize = 32;
const READERS: u32 = 4;
const BUSY: Duration = Duration::from_secs(5);
/// A daemon that was killed while it started a worker leaves its lock to that child, until it has become the worker.
const LEFT_BEHIND: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Where the records are.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The SQLite file; made when missing.
    pub database: PathBuf,
    /// 32 bytes that only the daemon's user can read; made together with the database.
    pub sealing_key: PathBuf,
}

impl Records {
    /// Opens the records, or makes them.
    pub async fn open(settings: &Settings) -> Result<Self, OpenError> {
        let lock = lock(&settings.database).await?;
        let writing = Arc::new(Writing::default());
        // It stays for good: sqlx tells nobody of a connection that is new, or that it closes as too old.
        let writer = SqlitePoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
        let write = pool(settings, measured(writer, &writing)).await?;
        migrations().run(&write).await.map_err(|error| unmigrated(settings, error))?;
        let sealer = sealer(&settings.sealing_key, &write).await?;
        let read = pool(settings, SqlitePoolOptions::new().max_connections(READERS)).await?;
        Ok(Self(Arc::new(Inner { write, read, sealer, writing, _lock: lock })))
    }
}

/// One daemon at a time. The lock goes with the process, however it ends.
async fn lock(database: &Path) -> Result<File, OpenError> {
    let file = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::File { path, source }
    };
    if let Some(parent) = database.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(file(parent))?;
    }
    let path = database.with_extension("lock");
    let lock =
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path).map_err(file(&path))?;
    let began = Instant::now();
    loop {
        match lock.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if began.elapsed() < LEFT_BEHIND => tokio::time::sleep(LOOK_AGAIN).await,
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse(database.to_owned())),
            Err(TryLockError::Error(source)) => return Err(OpenError::File { path, source }),
        }
    }
    // SQLite would make it with the process's umask.
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(database).map_err(file(database))?;
    Ok(lock)
}

/// Notes how long each has the one writer.
fn measured(pool: SqlitePoolOptions, writing: &Arc<Writing>) -> SqlitePoolOptions {
    let (taken, given_back) = (writing.clone(), writing.clone());
    pool.before_acquire(move |_, _| {
        taken.begins();
        Box::pin(async { Ok(true) })
    })
    .after_release(move |_, _| {
        given_back.ends();
        Box::pin(async { Ok(true) })
    })
}

async fn pool(settings: &Settings, pool: SqlitePoolOptions) -> Result<SqlitePool, sqlx::Error> {
    let options = SqliteConnectOptions::new()
        .filename(&settings.database)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY);
    pool.connect_with(options).await
}

/// Every schema change there was, in order. They only ever widen.
pub(super) fn migrations() -> Migrator {
    let step =
        |version, name, sql: SqlStr| Migration::new(version, Cow::Borrowed(name), MigrationType::Simple, sql, false);
    let steps = vec![
        step(1, "first", include_str!("migrations/0001_first.sql").into_sql_str()),
        step(2, "hsms", include_str!("migrations/0002_hsms.sql").into_sql_str()),
        step(3, "drifts", include_str!("migrations/0003_drifts.sql").into_sql_str()),
        step(4, "granted logins", include_str!("migrations/0004_granted_logins.sql").into_sql_str()),
        step(5, "clusters", include_str!("migrations/0005_clusters.sql").into_sql_str()),
        step(6, "updates", include_str!("migrations/0006_updates.sql").into_sql_str()),
        step(7, "rotation", include_str!("migrations/0007_rotation.sql").into_sql_str()),
        step(8, "lineages", include_str!("migrations/0008_lineages.sql").into_sql_str()),
        step(9, "realms", include_str!("migrations/0009_realms.sql").into_sql_str()),
        step(10, "rotations", include_str!("migrations/0010_rotations.sql").into_sql_str()),
        step(11, "crypto users", include_str!("migrations/0011_crypto_users.sql").into_sql_str()),
        step(12, "logins' passwords", include_str!("migrations/0012_login_passwords.sql").into_sql_str()),
        step(13, "hsm keys", include_str!("migrations/0013_hsm_keys.sql").into_sql_str()),
        step(14, "made clusters", include_str!("migrations/0014_made_clusters.sql").into_sql_str()),
        step(15, "key life", include_str!("migrations/0015_key_life.sql").into_sql_str()),
        step(16, "key usages", include_str!("migrations/0016_key_usages.sql").into_sql_str()),
        step(17, "key rotations", include_str!("migrations/0017_rotations.sql").into_sql_str()),
        step(18, "run time", include_str!("migrations/0018_run_time.sql").into_sql_str()),
    ];
    Migrator { migrations: Cow::Owned(steps), ..Migrator::DEFAULT }
}

fn unmigrated(settings: &Settings, error: MigrateError) -> OpenError {
    match error {
        MigrateError::VersionMissing(_) => OpenError::Newer(settings.database.clone()),
        // sqlx's own enum, and it may grow.
        error => OpenError::Migration(error),
    }
}

/// The sealing key, made only when there is nothing yet that another one sealed.
async fn sealer(path: &Path, database: &SqlitePool) -> Result<Sealer, OpenError> {
    let sealed = "SELECT (SELECT count(*) FROM passwords)
        + (SELECT count(*) FROM crypto_users WHERE sealed IS NOT NULL)";
    let sealed: i64 = sqlx::query_scalar(sealed).fetch_one(database).await?;
    let key = match read_key(path)? {
        Some(key) => key,
        None if sealed > 0 => return Err(OpenError::NoSealingKey(path.to_owned())),
        None => make_key(path).map_err(|source| OpenError::File { path: path.to_owned(), source })?,
    };
    Sealer::new(&key).ok_or_else(|| OpenError::BadSealingKey(path.to_owned()))
}

fn read_key(path: &Path) -> Result<Option<SealingKey>, OpenError> {
    let failed = |source| OpenError::File { path: path.to_owned(), source };
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if file.metadata().map_err(failed)?.mode() & 0o077 != 0 {
        return Err(OpenError::OpenSealingKey(path.to_owned()));
    }
    let mut bytes = zeroize::Zeroizing::new(Vec::with_capacity(KEY_BYTES + 1));
    (&mut file).take(KEY_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    Ok(Some(SealingKey::new(bytes.to_vec())))
}

fn make_key(path: &Path) -> std::io::Result<SealingKey> {
    let mut bytes = vec![0; KEY_BYTES];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| std::io::Error::other("no random bytes"))?;
    let key = SealingKey::new(bytes);
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    // Whole or not at all: half a key would lock out everything sealed after it.
    let fresh = path.with_extension("fresh");
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&fresh)?;
    // One left over from before keeps its mode otherwise.
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(key.expose())?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    // On the disk under its name before anything is sealed with it: the database may be on another.
    File::open(directory)?.sync_all()?;
    Ok(key)
}
