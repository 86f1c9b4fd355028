//! Who is logged in as a crypto user. A login is known by the hash of its token, and the password with it is sealed under
//! a key that the token alone gives: what stands here logs nobody in.

use std::time::{Duration, SystemTime};

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::model::{ClusterId, HsmId, PasswordVersion, Username};

use super::logins::login_proved;
use super::passwords::next_version;
use super::row::{millis, number, parsed, time};
use super::{Records, Unavailable};

/// A login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserLoginRecord {
    pub token_sha256: [u8; 32],
    pub cluster: ClusterId,
    pub username: Username,
    /// Whose it is: nobody else's requests may carry its token.
    pub caller: String,
    /// What a renewal adds.
    pub ttl: Duration,
    pub expires: SystemTime,
    /// The password, for who has the token.
    pub sealed: Vec<u8>,
    /// Which of the user's passwords it is. kmsuser's is numbered anew for each login.
    pub version: PasswordVersion,
}

/// What became of one that was to be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddedLogin {
    /// With this number for the password.
    Added(PasswordVersion),
    /// As many are logged in as may be.
    Full,
    /// The user was given another password meanwhile, or is being removed.
    Outdated,
}

impl Records {
    /// Adds a login as the user who has this version of his password, as `proved_on` has just said, unless there are `most`.
    /// Those that have expired by `now` go. A user of whom keyway knows nothing else has version 0.
    pub async fn add_user_login(
        &self,
        login: &UserLoginRecord,
        proved_on: &HsmId,
        most: u32,
        now: SystemTime,
    ) -> Result<AddedLogin, Unavailable> {
        let mut change = self.begin().await?;
        sqlx::query("DELETE FROM user_logins WHERE expires <= ?").bind(millis(now)).execute(&mut *change).await?;
        let present = sqlx::query(
            "SELECT version, EXISTS (SELECT 1 FROM crypto_user_hsms h WHERE h.cluster_id = u.cluster_id
                 AND h.username = u.username AND h.pending = 'REMOVE') AS removed
             FROM crypto_users u WHERE cluster_id = ? AND username = ?",
        )
        .bind(login.cluster.as_str())
        .bind(login.username.as_str())
        .fetch_optional(&mut *change)
        .await?;
        let present = match &present {
            Some(row) if row.try_get::<bool, _>("removed")? => None,
            Some(row) => Some(PasswordVersion(number(row, "version")?)),
            None => Some(PasswordVersion(0)),
        };
        if present != Some(login.version) {
            return Ok(AddedLogin::Outdated);
        }
        let logins: i64 = sqlx::query_scalar("SELECT count(*) FROM user_logins").fetch_one(&mut *change).await?;
        if logins >= i64::from(most) {
            change.commit().await?;
            return Ok(AddedLogin::Full);
        }
        // What keyway knows of kmsuser's passwords changes with his key store's: the one that was proved is a new one.
        let version = if login.username == Username::kmsuser() {
            next_version(&mut change, &login.cluster, &login.username).await?
        } else {
            login.version
        };
        login_proved(&mut change, &login.cluster, proved_on, &login.username, version).await?;
        sqlx::query(
            "INSERT INTO user_logins (token_sha256, cluster_id, username, caller, ttl, expires, sealed, version)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(login.token_sha256.as_slice())
        .bind(login.cluster.as_str())
        .bind(login.username.as_str())
        .bind(&login.caller)
        .bind(i64::try_from(login.ttl.as_millis()).unwrap_or(i64::MAX))
        .bind(millis(login.expires))
        .bind(&login.sealed)
        .bind(version.0)
        .execute(&mut *change)
        .await?;
        change.commit().await?;
        Ok(AddedLogin::Added(version))
    }

    /// The login of this token, if it is the caller's and has not expired.
    pub async fn user_login(
        &self,
        token_sha256: &[u8; 32],
        caller: &str,
        now: SystemTime,
    ) -> Result<Option<UserLoginRecord>, Unavailable> {
        let found = sqlx::query("SELECT * FROM user_logins WHERE token_sha256 = ? AND caller = ? AND expires > ?")
            .bind(token_sha256.as_slice())
            .bind(caller)
            .bind(millis(now))
            .fetch_optional(&self.0.read)
            .await?;
        found.as_ref().map(login).transpose()
    }

    /// Makes the login last until `now` and its length. `None` when it is not there, not the caller's, or has expired.
    pub async fn renew_user_login(
        &self,
        token_sha256: &[u8; 32],
        caller: &str,
        now: SystemTime,
    ) -> Result<Option<UserLoginRecord>, Unavailable> {
        let renewed = sqlx::query(
            "UPDATE user_logins SET expires = ?3 + ttl WHERE token_sha256 = ?1 AND caller = ?2 AND expires > ?3
             RETURNING *",
        )
        .bind(token_sha256.as_slice())
        .bind(caller)
        .bind(millis(now))
        .fetch_optional(&self.0.write)
        .await?;
        renewed.as_ref().map(login).transpose()
    }

    /// Ends the caller's login: as whom it was. `None`: one that is not there has ended.
    pub async fn end_user_login(
        &self,
        token_sha256: &[u8; 32],
        caller: &str,
    ) -> Result<Option<(ClusterId, Username)>, Unavailable> {
        let ended =
            sqlx::query("DELETE FROM user_logins WHERE token_sha256 = ? AND caller = ? RETURNING cluster_id, username")
                .bind(token_sha256.as_slice())
                .bind(caller)
                .fetch_optional(&self.0.write)
                .await?;
        ended.as_ref().map(|row| Ok((parsed(row, "cluster_id")?, parsed(row, "username")?))).transpose()
    }

    /// When the last of those who are logged in as this user will be no more, unless somebody renews. `None`: nobody is.
    pub async fn logged_in_until(
        &self,
        cluster: &ClusterId,
        user: &Username,
        now: SystemTime,
    ) -> Result<Option<SystemTime>, Unavailable> {
        let last = sqlx::query(
            "SELECT expires FROM user_logins WHERE cluster_id = ? AND username = ? AND expires > ?
             ORDER BY expires DESC LIMIT 1",
        )
        .bind(cluster.as_str())
        .bind(user.as_str())
        .bind(millis(now))
        .fetch_optional(&self.0.read)
        .await?;
        last.as_ref().map(|row| time(row, "expires")).transpose()
    }
}

fn login(row: &SqliteRow) -> Result<UserLoginRecord, Unavailable> {
    let token: Vec<u8> = row.try_get("token_sha256")?;
    let ttl: i64 = row.try_get("ttl")?;
    Ok(UserLoginRecord {
        token_sha256: token.try_into().map_err(|_| Unavailable::row("token_sha256"))?,
        cluster: parsed(row, "cluster_id")?,
        username: parsed(row, "username")?,
        caller: row.try_get("caller")?,
        ttl: Duration::from_millis(ttl.unsigned_abs()),
        expires: time(row, "expires")?,
        sealed: row.try_get("sealed")?,
        version: PasswordVersion(number(row, "version")?),
    })
}
