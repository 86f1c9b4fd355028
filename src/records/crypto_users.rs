//! Crypto users: which there are to be on which HSMs, what is still to be done there, and the password to do it with.
//!
//! Written down before anything is done on an HSM, and closed when it is done there: what was cut short or could not be
//! done stands here as pending. A password is sealed, and goes when the last HSM has it.

use std::collections::BTreeMap;
use std::time::SystemTime;

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};

use crate::model::{ClusterId, HsmId, Password, Username};

use super::made_clusters::activate;
use super::row::{millis, named, number, parsed};
use super::{Records, Unavailable};

/// A crypto user of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CryptoUserRecord {
    pub cluster: ClusterId,
    pub username: Username,
    pub second_factor: bool,
    /// Which of his passwords is to be on the HSMs.
    pub version: u32,
    pub hsms: BTreeMap<HsmId, UserOnHsm>,
}

/// A crypto user on one HSM, as far as keyway brought it about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserOnHsm {
    /// He was there once, whole.
    pub given: bool,
    pub pending: Option<UserTask>,
    pub lock: Lock,
}

/// What is still to be done for a user on an HSM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserTask {
    /// He is to have the present password there, and to be there at all.
    Give,
    Remove,
}

/// What a new password does to the count of failed logins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    Kept,
    Opened,
}

impl CryptoUserRecord {
    pub fn is_being_removed(&self) -> bool {
        self.hsms.values().any(|on| on.pending == Some(UserTask::Remove))
    }

    /// The HSMs on which something is still to be done.
    pub fn pending(&self) -> impl Iterator<Item = (&HsmId, UserTask)> {
        self.hsms.iter().filter_map(|(hsm, on)| Some((hsm, on.pending?)))
    }
}

impl UserTask {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Give => "GIVE",
            Self::Remove => "REMOVE",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Give, Self::Remove].into_iter().find(|task| task.as_str() == text)
    }
}

/// A crypto user who is to be made.
#[derive(Debug)]
pub struct NewCryptoUser {
    pub cluster: ClusterId,
    pub username: Username,
    pub second_factor: bool,
    pub password: Password,
    pub created: SystemTime,
}

/// What became of one who was to be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddedCryptoUser {
    Added,
    /// Under this name, in whatever case.
    Exists(CryptoUserRecord),
    /// The cluster has as many as it may have.
    Full,
}

impl Records {
    /// Adds a user who is to be given to these HSMs. The first one activates a cluster that was made here.
    pub async fn add_crypto_user(
        &self,
        new: &NewCryptoUser,
        hsms: &[HsmId],
        quota: u32,
    ) -> Result<AddedCryptoUser, Unavailable> {
        let mut change = self.begin().await?;
        let twin: Option<String> = sqlx::query_scalar(
            "SELECT username FROM crypto_users WHERE cluster_id = ? AND username = ? COLLATE NOCASE",
        )
        .bind(new.cluster.as_str())
        .bind(new.username.as_str())
        .fetch_optional(&mut *change)
        .await?;
        if let Some(twin) = twin {
            let twin = twin.parse().map_err(|_| Unavailable::row("username"))?;
            let twin = read(&mut change, &new.cluster, &twin).await?.ok_or(Unavailable::row("username"))?;
            return Ok(AddedCryptoUser::Exists(twin));
        }
        let users: i64 = sqlx::query_scalar("SELECT count(*) FROM crypto_users WHERE cluster_id = ?")
            .bind(new.cluster.as_str())
            .fetch_one(&mut *change)
            .await?;
        if users >= i64::from(quota) {
            return Ok(AddedCryptoUser::Full);
        }
        insert(&mut change, &new.cluster, &new.username, new.second_factor, new.created).await?;
        activate(&mut change, &new.cluster).await?;
        self.give(&mut change, (&new.cluster, &new.username), hsms, &new.password, Lock::Opened).await?;
        change.commit().await?;
        Ok(AddedCryptoUser::Added)
    }

    /// A user who was on these HSMs before keyway knew of him. Nothing is changed when it does.
    pub async fn adopt_crypto_user(
        &self,
        cluster: &ClusterId,
        user: &Username,
        hsms: &[HsmId],
        at: SystemTime,
    ) -> Result<(), Unavailable> {
        let mut change = self.begin().await?;
        if read(&mut change, cluster, user).await?.is_some() {
            return Ok(());
        }
        insert(&mut change, cluster, user, false, at).await?;
        for hsm in hsms {
            sqlx::query(
                "INSERT INTO crypto_user_hsms (cluster_id, username, hsm_id, given, unlock) VALUES (?, ?, ?, TRUE, FALSE)",
            )
            .bind(cluster.as_str())
            .bind(user.as_str())
            .bind(hsm.as_str())
            .execute(&mut *change)
            .await?;
        }
        change.commit().await?;
        Ok(())
    }

    /// These HSMs are to give the user another password, and his logins end. `false` when there is none, or he is being
    /// removed.
    pub async fn set_crypto_user_password(
        &self,
        cluster: &ClusterId,
        user: &Username,
        hsms: &[HsmId],
        password: &Password,
        lock: Lock,
    ) -> Result<bool, Unavailable> {
        let mut change = self.begin().await?;
        let found = read(&mut change, cluster, user).await?;
        if found.is_none_or(|record| record.is_being_removed()) {
            return Ok(false);
        }
        self.give(&mut change, (cluster, user), hsms, password, lock).await?;
        end_logins(&mut change, cluster, user).await?;
        change.commit().await?;
        Ok(true)
    }

    /// The user is to be removed from these HSMs, and from every other that he may be on. `false` when there is none.
    pub async fn begin_removing_crypto_user(
        &self,
        cluster: &ClusterId,
        user: &Username,
        hsms: &[HsmId],
    ) -> Result<bool, Unavailable> {
        let mut change = self.begin().await?;
        if read(&mut change, cluster, user).await?.is_none() {
            return Ok(false);
        }
        sqlx::query("UPDATE crypto_users SET sealed = NULL WHERE cluster_id = ? AND username = ?")
            .bind(cluster.as_str())
            .bind(user.as_str())
            .execute(&mut *change)
            .await?;
        for hsm in hsms {
            sqlx::query(
                "INSERT INTO crypto_user_hsms (cluster_id, username, hsm_id, given, unlock) VALUES (?, ?, ?, FALSE, FALSE)
                 ON CONFLICT DO NOTHING",
            )
            .bind(cluster.as_str())
            .bind(user.as_str())
            .bind(hsm.as_str())
            .execute(&mut *change)
            .await?;
        }
        sqlx::query("UPDATE crypto_user_hsms SET pending = ? WHERE cluster_id = ? AND username = ?")
            .bind(UserTask::Remove.as_str())
            .bind(cluster.as_str())
            .bind(user.as_str())
            .execute(&mut *change)
            .await?;
        end_logins(&mut change, cluster, user).await?;
        change.commit().await?;
        Ok(true)
    }

    pub async fn crypto_user(
        &self,
        cluster: &ClusterId,
        user: &Username,
    ) -> Result<Option<CryptoUserRecord>, Unavailable> {
        let mut read_only = self.0.read.begin().await?;
        read(&mut read_only, cluster, user).await
    }

    /// Every crypto user of a cluster, by name.
    pub async fn crypto_users(&self, cluster: &ClusterId) -> Result<Vec<CryptoUserRecord>, Unavailable> {
        let mut read_only = self.0.read.begin().await?;
        let rows = sqlx::query("SELECT * FROM crypto_users WHERE cluster_id = ? ORDER BY username")
            .bind(cluster.as_str())
            .fetch_all(&mut *read_only)
            .await?;
        let mut users = rows.iter().map(user).collect::<Result<Vec<_>, _>>()?;
        let rows = sqlx::query("SELECT * FROM crypto_user_hsms WHERE cluster_id = ?")
            .bind(cluster.as_str())
            .fetch_all(&mut *read_only)
            .await?;
        let mut of_users: BTreeMap<Username, BTreeMap<HsmId, UserOnHsm>> = BTreeMap::new();
        for row in &rows {
            of_users.entry(parsed(row, "username")?).or_default().insert(parsed(row, "hsm_id")?, on(row)?);
        }
        for user in &mut users {
            user.hsms = of_users.remove(&user.username).unwrap_or_default();
        }
        Ok(users)
    }

    /// Those for whom something is still to be done somewhere.
    pub async fn pending_crypto_users(&self) -> Result<Vec<(ClusterId, Username)>, Unavailable> {
        let pending = "SELECT DISTINCT cluster_id, username FROM crypto_user_hsms WHERE pending IS NOT NULL
             ORDER BY cluster_id, username";
        let rows = sqlx::query(pending).fetch_all(&self.0.read).await?;
        rows.iter().map(|row| Ok((parsed(row, "cluster_id")?, parsed(row, "username")?))).collect()
    }

    /// The password that is to be given, with its version; `None` when every HSM has it.
    pub async fn pending_password(
        &self,
        cluster: &ClusterId,
        user: &Username,
    ) -> Result<Option<(u32, Password)>, Unavailable> {
        let found = sqlx::query("SELECT version, sealed FROM crypto_users WHERE cluster_id = ? AND username = ?")
            .bind(cluster.as_str())
            .bind(user.as_str())
            .fetch_optional(&self.0.read)
            .await?;
        let Some(row) = found else { return Ok(None) };
        let (version, sealed): (u32, Option<Vec<u8>>) = (number(&row, "version")?, row.try_get("sealed")?);
        let Some(sealed) = sealed else { return Ok(None) };
        let opened =
            self.0.sealer.open(&place(cluster, user, &version.to_string()), &sealed).ok_or(Unavailable::sealed())?;
        let text = String::from_utf8(opened.to_vec()).map_err(|_| Unavailable::row("sealed"))?;
        Ok(Some((version, Password::trusted(text))))
    }

    /// The HSM has given the user this password. It is forgotten when the last one has.
    pub async fn crypto_user_given(
        &self,
        cluster: &ClusterId,
        user: &Username,
        hsm: &HsmId,
        version: u32,
    ) -> Result<(), Unavailable> {
        let mut change = self.begin().await?;
        // Unless there is a newer one: that one is still to be given.
        sqlx::query(
            "UPDATE crypto_user_hsms SET given = TRUE,
                 pending = CASE WHEN (SELECT version FROM crypto_users
                                      WHERE cluster_id = ?1 AND username = ?2) = ?4 THEN NULL ELSE pending END
             WHERE cluster_id = ?1 AND username = ?2 AND hsm_id = ?3 AND pending = 'GIVE'",
        )
        .bind(cluster.as_str())
        .bind(user.as_str())
        .bind(hsm.as_str())
        .bind(version)
        .execute(&mut *change)
        .await?;
        forget_given_password(&mut change, cluster, user).await?;
        change.commit().await?;
        Ok(())
    }

    /// The HSM is not to be given the user any more: nobody can say when it comes back, if ever. His password is not
    /// kept for it. Should it come back, he counts as missing there until his password is reset.
    pub async fn crypto_user_not_to_be_given(
        &self,
        cluster: &ClusterId,
        user: &Username,
        hsm: &HsmId,
    ) -> Result<(), Unavailable> {
        let mut change = self.begin().await?;
        sqlx::query(
            "DELETE FROM crypto_user_hsms WHERE cluster_id = ? AND username = ? AND hsm_id = ? AND pending = 'GIVE'",
        )
        .bind(cluster.as_str())
        .bind(user.as_str())
        .bind(hsm.as_str())
        .execute(&mut *change)
        .await?;
        forget_given_password(&mut change, cluster, user).await?;
        change.commit().await?;
        Ok(())
    }

    /// The user is not on this HSM any more. When it was the last, nothing is left of him: neither what his tokens were, nor
    /// what they said of logins, nor the names of the keys that were his alone.
    pub async fn crypto_user_removed(
        &self,
        cluster: &ClusterId,
        user: &Username,
        hsm: &HsmId,
    ) -> Result<(), Unavailable> {
        const REMOVED: &str = "DELETE FROM crypto_user_hsms
             WHERE cluster_id = ? AND username = ? AND hsm_id = ? AND pending = 'REMOVE'";
        const GONE: &str = "DELETE FROM crypto_users WHERE cluster_id = ?1 AND username = ?2
             AND NOT EXISTS (SELECT 1 FROM crypto_user_hsms WHERE cluster_id = ?1 AND username = ?2)";
        let mut change = self.begin().await?;
        sqlx::query(REMOVED)
            .bind(cluster.as_str())
            .bind(user.as_str())
            .bind(hsm.as_str())
            .execute(&mut *change)
            .await?;
        let gone =
            sqlx::query(GONE).bind(cluster.as_str()).bind(user.as_str()).execute(&mut *change).await?.rows_affected();
        if gone > 0 {
            forget_traces(&mut change, cluster, user).await?;
        }
        change.commit().await?;
        Ok(())
    }

    async fn give(
        &self,
        change: &mut Transaction<'_, Sqlite>,
        (cluster, user): (&ClusterId, &Username),
        hsms: &[HsmId],
        password: &Password,
        lock: Lock,
    ) -> Result<(), Unavailable> {
        let version: i64 = sqlx::query_scalar(
            "UPDATE crypto_users SET version = version + 1 WHERE cluster_id = ? AND username = ? RETURNING version",
        )
        .bind(cluster.as_str())
        .bind(user.as_str())
        .fetch_one(&mut **change)
        .await?;
        let sealed = self
            .0
            .sealer
            .seal(&place(cluster, user, &version.to_string()), password.expose().as_bytes())
            .ok_or(Unavailable::sealed())?;
        sqlx::query("UPDATE crypto_users SET sealed = ? WHERE cluster_id = ? AND username = ?")
            .bind(sealed)
            .bind(cluster.as_str())
            .bind(user.as_str())
            .execute(&mut **change)
            .await?;
        for hsm in hsms {
            // A lock that is to be opened and could not be yet is opened by whoever comes later.
            sqlx::query(
                "INSERT INTO crypto_user_hsms (cluster_id, username, hsm_id, given, pending, unlock)
                 VALUES (?, ?, ?, FALSE, ?, ?)
                 ON CONFLICT (cluster_id, username, hsm_id) DO UPDATE
                 SET unlock = excluded.unlock OR (unlock AND pending IS NOT NULL), pending = excluded.pending",
            )
            .bind(cluster.as_str())
            .bind(user.as_str())
            .bind(hsm.as_str())
            .bind(UserTask::Give.as_str())
            .bind(lock == Lock::Opened)
            .execute(&mut **change)
            .await?;
        }
        Ok(())
    }
}

/// Users whose present password is known, since an HSM is still to be given it, are to be given to this HSM, too. With a key
/// store kmsuser's is the store's, whatever stands here.
pub(super) async fn give_pending_users(
    change: &mut Transaction<'_, Sqlite>,
    cluster: &ClusterId,
    hsm: &HsmId,
) -> Result<(), Unavailable> {
    sqlx::query(
        "INSERT INTO crypto_user_hsms (cluster_id, username, hsm_id, given, pending, unlock)
         SELECT cluster_id, username, ?2, FALSE, ?3, FALSE FROM crypto_users
         WHERE cluster_id = ?1 AND sealed IS NOT NULL
           AND (username <> ?4 OR NOT EXISTS (SELECT 1 FROM key_stores WHERE cluster_id = ?1))",
    )
    .bind(cluster.as_str())
    .bind(hsm.as_str())
    .bind(UserTask::Give.as_str())
    .bind(Username::kmsuser().as_str())
    .execute(&mut **change)
    .await?;
    Ok(())
}

/// Nothing is left of a user's tokens anywhere, and nothing is known of him any more.
async fn forget_traces(
    change: &mut Transaction<'_, Sqlite>,
    cluster: &ClusterId,
    user: &Username,
) -> Result<(), Unavailable> {
    for traces in [
        "DELETE FROM tokens WHERE cluster_id = ? AND username = ?",
        "DELETE FROM logins WHERE cluster_id = ? AND username = ?",
        "DELETE FROM keks WHERE cluster_id = ? AND username = ?",
        // His own went with his tokens; kmsuser's are a key store's.
        "DELETE FROM keys WHERE cluster_id = ? AND username = ? AND store_id IS NULL",
        "DELETE FROM destroyed_keys WHERE cluster_id = ? AND username = ?",
    ] {
        sqlx::query(traces).bind(cluster.as_str()).bind(user.as_str()).execute(&mut **change).await?;
    }
    // His tokens had a security officer each; kmsuser's are the HSM's own and stay counted.
    if *user != Username::kmsuser() {
        sqlx::query("DELETE FROM logins WHERE cluster_id = ? AND username = ?")
            .bind(cluster.as_str())
            .bind(Username::security_officer_of(user).as_str())
            .execute(&mut **change)
            .await?;
    }
    Ok(())
}

/// Users of the cluster who are on no HSM, now that one has left, are gone. A key store's kmsuser is not: the store knows.
pub(super) async fn forget_users_on_none(
    change: &mut Transaction<'_, Sqlite>,
    cluster: &ClusterId,
) -> Result<(), Unavailable> {
    let gone = sqlx::query(
        "DELETE FROM crypto_users WHERE cluster_id = ?1
           AND username NOT IN (SELECT username FROM crypto_user_hsms WHERE cluster_id = ?1)
           AND (username <> ?2 OR NOT EXISTS (SELECT 1 FROM key_stores WHERE cluster_id = ?1)) RETURNING username",
    )
    .bind(cluster.as_str())
    .bind(Username::kmsuser().as_str())
    .fetch_all(&mut **change)
    .await?;
    for row in &gone {
        let user = parsed(row, "username")?;
        end_logins(change, cluster, &user).await?;
        forget_traces(change, cluster, &user).await?;
    }
    Ok(())
}

async fn insert(
    change: &mut Transaction<'_, Sqlite>,
    cluster: &ClusterId,
    user: &Username,
    second_factor: bool,
    at: SystemTime,
) -> Result<(), Unavailable> {
    sqlx::query(
        "INSERT INTO crypto_users (cluster_id, username, second_factor, created, version) VALUES (?, ?, ?, ?, 0)",
    )
    .bind(cluster.as_str())
    .bind(user.as_str())
    .bind(second_factor)
    .bind(millis(at))
    .execute(&mut **change)
    .await?;
    Ok(())
}

async fn end_logins(
    change: &mut Transaction<'_, Sqlite>,
    cluster: &ClusterId,
    user: &Username,
) -> Result<(), Unavailable> {
    sqlx::query("DELETE FROM user_logins WHERE cluster_id = ? AND username = ?")
        .bind(cluster.as_str())
        .bind(user.as_str())
        .execute(&mut **change)
        .await?;
    Ok(())
}

/// Unless an HSM is still to be given it.
async fn forget_given_password(
    change: &mut Transaction<'_, Sqlite>,
    cluster: &ClusterId,
    user: &Username,
) -> Result<(), Unavailable> {
    sqlx::query(
        "UPDATE crypto_users SET sealed = NULL WHERE cluster_id = ?1 AND username = ?2 AND NOT EXISTS
         (SELECT 1 FROM crypto_user_hsms WHERE cluster_id = ?1 AND username = ?2 AND pending = 'GIVE')",
    )
    .bind(cluster.as_str())
    .bind(user.as_str())
    .execute(&mut **change)
    .await?;
    Ok(())
}

async fn read(
    change: &mut Transaction<'_, Sqlite>,
    cluster: &ClusterId,
    username: &Username,
) -> Result<Option<CryptoUserRecord>, Unavailable> {
    let found = sqlx::query("SELECT * FROM crypto_users WHERE cluster_id = ? AND username = ?")
        .bind(cluster.as_str())
        .bind(username.as_str())
        .fetch_optional(&mut **change)
        .await?;
    let Some(row) = found else { return Ok(None) };
    let rows = sqlx::query("SELECT * FROM crypto_user_hsms WHERE cluster_id = ? AND username = ?")
        .bind(cluster.as_str())
        .bind(username.as_str())
        .fetch_all(&mut **change)
        .await?;
    let hsms = rows.iter().map(|row| Ok((parsed(row, "hsm_id")?, on(row)?)));
    Ok(Some(CryptoUserRecord { hsms: hsms.collect::<Result<_, Unavailable>>()?, ..user(&row)? }))
}

fn user(row: &SqliteRow) -> Result<CryptoUserRecord, Unavailable> {
    Ok(CryptoUserRecord {
        cluster: parsed(row, "cluster_id")?,
        username: parsed(row, "username")?,
        second_factor: row.try_get("second_factor")?,
        version: number(row, "version")?,
        hsms: BTreeMap::new(),
    })
}

fn on(row: &SqliteRow) -> Result<UserOnHsm, Unavailable> {
    let is_pending = row.try_get::<Option<String>, _>("pending")?.is_some();
    Ok(UserOnHsm {
        given: row.try_get("given")?,
        pending: if is_pending { Some(named(row, "pending", UserTask::parse)?) } else { None },
        lock: if row.try_get("unlock")? { Lock::Opened } else { Lock::Kept },
    })
}

/// Where a sealed password stands.
fn place<'a>(cluster: &'a ClusterId, user: &'a Username, version: &'a str) -> [&'a str; 4] {
    ["crypto user", cluster.as_str(), user.as_str(), version]
}
