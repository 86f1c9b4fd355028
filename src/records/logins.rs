//! The login budget: what each node has said of each password, written down before it is asked.
//!
//! At most one failed attempt for each node and password: an attempt is opened before the call and
//! closed by its answer. One that was never answered counts as failed, unless the password was good there before.
//! The security officer's PIN of each token is counted in the same way, under a name that no crypto user has.

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};

use crate::model::{ClusterId, HsmId, PasswordVersion, Username};

use super::row::{number, parsed};
use super::{Records, Unavailable, password_checks};

/// Whether a login may be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoginLeave {
    /// The attempt is written down: make it. If it is not answered, there is no other.
    Granted,
    /// The same, and the password was good on this node before: one that is not answered spoils nothing.
    GrantedAgain,
    /// The node refused this password before.
    Refused,
    /// An earlier attempt was never answered.
    Unsettled,
}

/// How an attempt was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoginAnswer {
    Accepted,
    Refused,
    /// The token was certainly not asked.
    NotMade,
}

/// What is known of a password on a node where it was once to be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// No attempt is open, and none was answered.
    Untried,
    /// The same, and an operator wants one made, whatever this node or another has said.
    Granted,
    /// An attempt was begun and never answered.
    Unsettled,
    /// The node has accepted it, and not refused it since.
    Proven,
    /// The node has refused it.
    Refused,
}

// Nothing stands there yet of a node that was not asked because another had refused.
const GRANTED: &str = "INSERT INTO logins
         (cluster_id, username, hsm_id, version, proven, attempt_open, refused, granted)
     VALUES (?, ?, ?, ?, FALSE, FALSE, FALSE, TRUE)
     ON CONFLICT (cluster_id, username, hsm_id, version)
     DO UPDATE SET refused = FALSE, attempt_open = FALSE, granted = TRUE WHERE NOT proven";

impl Records {
    pub async fn begin_login(
        &self,
        cluster: &ClusterId,
        hsm: &HsmId,
        user: &Username,
        version: PasswordVersion,
    ) -> Result<LoginLeave, Unavailable> {
        let mut change = self.begin().await?;
        let before = sqlx::query(
            "SELECT proven, attempt_open, refused, granted FROM logins
             WHERE cluster_id = ? AND username = ? AND hsm_id = ? AND version = ?",
        )
        .bind(cluster.as_str())
        .bind(user.as_str())
        .bind(hsm.as_str())
        .bind(version.0)
        .fetch_optional(&mut *change)
        .await?;
        let granted = match before.as_ref().map(standing).transpose()? {
            Some(Standing::Refused) => return Ok(LoginLeave::Refused),
            Some(Standing::Unsettled) => return Ok(LoginLeave::Unsettled),
            Some(Standing::Proven) => LoginLeave::GrantedAgain,
            Some(Standing::Untried | Standing::Granted) | None => LoginLeave::Granted,
        };
        sqlx::query(
            "INSERT INTO logins (cluster_id, username, hsm_id, version, proven, attempt_open, refused)
             VALUES (?, ?, ?, ?, FALSE, TRUE, FALSE)
             ON CONFLICT (cluster_id, username, hsm_id, version) DO UPDATE SET attempt_open = TRUE",
        )
        .bind(cluster.as_str())
        .bind(user.as_str())
        .bind(hsm.as_str())
        .bind(version.0)
        .execute(&mut *change)
        .await?;
        change.commit().await?;
        Ok(granted)
    }

    /// The node accepted the password.
    pub async fn login_succeeded(
        &self,
        cluster: &ClusterId,
        hsm: &HsmId,
        user: &Username,
        version: PasswordVersion,
    ) -> Result<(), Unavailable> {
        self.login_answered(cluster, hsm, user, version, LoginAnswer::Accepted).await
    }

    /// The node refused the password: it is not tried there again.
    pub async fn login_refused(
        &self,
        cluster: &ClusterId,
        hsm: &HsmId,
        user: &Username,
        version: PasswordVersion,
    ) -> Result<(), Unavailable> {
        self.login_answered(cluster, hsm, user, version, LoginAnswer::Refused).await
    }

    /// The attempt never reached the token, so that it cannot have counted there. Only for who knows this for certain.
    pub async fn login_not_made(
        &self,
        cluster: &ClusterId,
        hsm: &HsmId,
        user: &Username,
        version: PasswordVersion,
    ) -> Result<(), Unavailable> {
        self.login_answered(cluster, hsm, user, version, LoginAnswer::NotMade).await
    }

    pub async fn login_answered(
        &self,
        cluster: &ClusterId,
        hsm: &HsmId,
        user: &Username,
        version: PasswordVersion,
        answer: LoginAnswer,
    ) -> Result<(), Unavailable> {
        let mut change = self.begin().await?;
        close_login(&mut change, cluster, hsm, user, version, answer).await?;
        change.commit().await?;
        Ok(())
    }

    /// An operator's act: attempts that were never answered may be made once more, with each of the user's passwords, and
    /// the security officer's as well. A refusal stays.
    pub async fn forgive_unsettled(&self, cluster: &ClusterId, user: &Username) -> Result<(), Unavailable> {
        let so = Username::security_officer_of(user);
        sqlx::query("UPDATE logins SET attempt_open = FALSE WHERE cluster_id = ? AND username IN (?, ?)")
            .bind(cluster.as_str())
            .bind(user.as_str())
            .bind(so.as_str())
            .execute(&self.0.write)
            .await?;
        Ok(())
    }

    /// An operator's act on one node: whatever it or another said of this password, or of its security officer's PIN, it is
    /// to be asked exactly once more. What it accepts needs no leave, and stays as it is.
    pub async fn allow_one_login(
        &self,
        cluster: &ClusterId,
        hsm: &HsmId,
        user: &Username,
        version: PasswordVersion,
    ) -> Result<(), Unavailable> {
        self.write_login(GRANTED, cluster, hsm, user, version).await?;
        self.allow_one_security_officer_login(cluster, hsm, user).await
    }

    /// An operator's act, or that the token is being made with this very PIN: the security officer of the user's token is to
    /// be logged in once more, whatever was said of his PIN.
    pub async fn allow_one_security_officer_login(
        &self,
        cluster: &ClusterId,
        hsm: &HsmId,
        user: &Username,
    ) -> Result<(), Unavailable> {
        let so = Username::security_officer_of(user);
        self.write_login(GRANTED, cluster, hsm, &so, PasswordVersion::SO_PIN).await
    }

    /// What one node has said of one password.
    pub async fn login_standing_on(
        &self,
        cluster: &ClusterId,
        hsm: &HsmId,
        user: &Username,
        version: PasswordVersion,
    ) -> Result<Standing, Unavailable> {
        let standings = self.login_standing(cluster, user).await?;
        let here = standings.into_iter().find(|(on, of, _)| on == hsm && *of == version);
        Ok(here.map_or(Standing::Untried, |(_, _, standing)| standing))
    }

    /// What the nodes have said of a user's passwords.
    pub async fn login_standing(
        &self,
        cluster: &ClusterId,
        user: &Username,
    ) -> Result<Vec<(HsmId, PasswordVersion, Standing)>, Unavailable> {
        let rows = sqlx::query("SELECT * FROM logins WHERE cluster_id = ? AND username = ? ORDER BY hsm_id, version")
            .bind(cluster.as_str())
            .bind(user.as_str())
            .fetch_all(&self.0.read)
            .await?;
        rows.iter()
            .map(|row| Ok((parsed(row, "hsm_id")?, PasswordVersion(number(row, "version")?), standing(row)?)))
            .collect()
    }

    async fn write_login(
        &self,
        how: &'static str,
        cluster: &ClusterId,
        hsm: &HsmId,
        user: &Username,
        version: PasswordVersion,
    ) -> Result<(), Unavailable> {
        sqlx::query(how)
            .bind(cluster.as_str())
            .bind(user.as_str())
            .bind(hsm.as_str())
            .bind(version.0)
            .execute(&self.0.write)
            .await?;
        Ok(())
    }
}

/// The password was tried past the budget, for somebody who gave it, and accepted: it may be offered here again.
pub(super) async fn login_proved(
    change: &mut Transaction<'_, Sqlite>,
    cluster: &ClusterId,
    hsm: &HsmId,
    user: &Username,
    version: PasswordVersion,
) -> Result<(), Unavailable> {
    sqlx::query(
        "INSERT INTO logins (cluster_id, username, hsm_id, version, proven, attempt_open, refused)
         VALUES (?, ?, ?, ?, TRUE, FALSE, FALSE)
         ON CONFLICT (cluster_id, username, hsm_id, version)
         DO UPDATE SET proven = TRUE, attempt_open = FALSE, refused = FALSE, granted = FALSE",
    )
    .bind(cluster.as_str())
    .bind(user.as_str())
    .bind(hsm.as_str())
    .bind(version.0)
    .execute(&mut **change)
    .await?;
    Ok(())
}

pub(super) async fn close_login(
    change: &mut Transaction<'_, Sqlite>,
    cluster: &ClusterId,
    hsm: &HsmId,
    user: &Username,
    version: PasswordVersion,
    answer: LoginAnswer,
) -> Result<(), Unavailable> {
    let how = match answer {
        LoginAnswer::Accepted => {
            "UPDATE logins SET proven = TRUE, attempt_open = FALSE, granted = FALSE
             WHERE cluster_id = ? AND username = ? AND hsm_id = ? AND version = ?"
        }
        // What it accepted before counts no more: the next try, if an operator grants one, is a first one.
        LoginAnswer::Refused => {
            "UPDATE logins SET refused = TRUE, attempt_open = FALSE, proven = FALSE, granted = FALSE
             WHERE cluster_id = ? AND username = ? AND hsm_id = ? AND version = ?"
        }
        LoginAnswer::NotMade => {
            "UPDATE logins SET attempt_open = FALSE
             WHERE cluster_id = ? AND username = ? AND hsm_id = ? AND version = ?"
        }
    };
    sqlx::query(how)
        .bind(cluster.as_str())
        .bind(user.as_str())
        .bind(hsm.as_str())
        .bind(version.0)
        .execute(&mut **change)
        .await?;
    // An HSM that has accepted its user's password has forgotten those that were wrong.
    if answer == LoginAnswer::Accepted && *user == Username::kmsuser() {
        password_checks::allow(change, cluster, hsm).await?;
    }
    Ok(())
}

fn standing(row: &SqliteRow) -> Result<Standing, Unavailable> {
    let told = |column| row.try_get::<bool, _>(column);
    Ok(match (told("refused")?, told("proven")?, told("attempt_open")?, told("granted")?) {
        (true, _, _, _) => Standing::Refused,
        (false, true, _, _) => Standing::Proven,
        (false, false, true, _) => Standing::Unsettled,
        (false, false, false, true) => Standing::Granted,
        (false, false, false, false) => Standing::Untried,
    })
}
