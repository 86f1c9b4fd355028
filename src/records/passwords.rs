//! Which password is in force on which node, while keyway changes it.
//!
//! A node has one *confirmed* password, which it has accepted, and at most one *candidate*, which it may have been given.
//! Both stay sealed until the node's own login settles which one it is. A version that an operator gives is newer than
//! every one before it, and so counts for all nodes at once: what stood here of older ones counts no more.

use std::collections::BTreeMap;
use std::time::SystemTime;

use sqlx::{Row, Sqlite, Transaction};

use crate::model::{ClusterId, HsmId, Password, PasswordVersion, Username};

use super::logins::{LoginAnswer, close_login};
use super::row::{millis, number, parsed, time_if_any};
use super::{Records, Unavailable};

/// A crypto user's password on one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodePassword {
    pub confirmed: PasswordVersion,
    /// Newer than `confirmed`, and not settled.
    pub candidate: Option<PasswordVersion>,
}

/// Whose password, on which cluster, and which version an operator gave last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PasswordOwner {
    pub cluster: ClusterId,
    pub username: Username,
    pub given: PasswordVersion,
}

/// What becomes of a node's candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CandidateFate {
    /// It is the node's password.
    Confirmed,
    /// The change did not happen: it is dropped for ever.
    Dropped,
    /// Its open attempt was not refused: it may be offered once more.
    OnceMore,
}

/// The last rotation of which a node has confirmed that it happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// When its password was made.
    pub time: SystemTime,
    /// In which attempt to connect; `None` for one of long ago.
    pub attempt: Option<u32>,
}

impl NodePassword {
    /// On a node where nothing was changed since the operator gave it.
    pub const fn unchanged(given: PasswordVersion) -> Self {
        Self { confirmed: given, candidate: None }
    }

    /// As it counts beside what the operator gave last.
    fn since(self, given: PasswordVersion) -> Self {
        Self { confirmed: self.confirmed.max(given), candidate: self.candidate.filter(|candidate| *candidate > given) }
    }
}

impl Records {
    /// The nodes on which the password was changed, or may have been, or is known not to have been, since the operator gave
    /// it.
    pub async fn node_passwords(&self, owner: &PasswordOwner) -> Result<BTreeMap<HsmId, NodePassword>, Unavailable> {
        let rows = sqlx::query("SELECT * FROM node_passwords WHERE cluster_id = ? AND username = ?")
            .bind(owner.cluster.as_str())
            .bind(owner.username.as_str())
            .fetch_all(&self.0.read)
            .await?;
        let mut found = BTreeMap::new();
        for row in &rows {
            let candidate: Option<u32> = row.try_get("candidate")?;
            let confirmed = PasswordVersion(number(row, "confirmed")?);
            let stored = NodePassword { confirmed, candidate: candidate.map(PasswordVersion) };
            let counts = stored.since(owner.given);
            if counts != NodePassword::unchanged(owner.given) || confirmed == owner.given {
                found.insert(parsed(row, "hsm_id")?, counts);
            }
        }
        Ok(found)
    }

    /// A password that a node has, or may have.
    pub async fn password_of(&self, owner: &PasswordOwner, version: PasswordVersion) -> Result<Password, Unavailable> {
        let password = self.password(&owner.cluster, &owner.username, version).await?;
        password.ok_or(Unavailable::row("version"))
    }

    /// Seals a password that was made at this time, in this attempt to connect. No node has it yet.
    pub async fn new_password(
        &self,
        owner: &PasswordOwner,
        password: &Password,
        time: SystemTime,
        attempt: u32,
    ) -> Result<PasswordVersion, Unavailable> {
        let mut change = self.begin().await?;
        let version = self.add_password(&mut change, &owner.cluster, &owner.username, password).await?;
        sqlx::query("UPDATE passwords SET made = ?, made_in = ? WHERE cluster_id = ? AND username = ? AND version = ?")
            .bind(millis(time))
            .bind(attempt)
            .bind(owner.cluster.as_str())
            .bind(owner.username.as_str())
            .bind(version.0)
            .execute(&mut *change)
            .await?;
        change.commit().await?;
        Ok(version)
    }

    /// These nodes may be given the candidate from now on; each one's password is told with it. All of them, or, when one
    /// has an unsettled candidate already, or the candidate was forgotten meanwhile, none: `false`.
    pub async fn set_candidate(
        &self,
        owner: &PasswordOwner,
        nodes: &[(HsmId, PasswordVersion)],
        candidate: PasswordVersion,
    ) -> Result<bool, Unavailable> {
        let mut change = self.begin().await?;
        let sealed = sqlx::query("SELECT 1 FROM passwords WHERE cluster_id = ? AND username = ? AND version = ?")
            .bind(owner.cluster.as_str())
            .bind(owner.username.as_str())
            .bind(candidate.0);
        if sealed.fetch_optional(&mut *change).await?.is_none() {
            return Ok(false);
        }
        for (hsm, confirmed) in nodes {
            let written = sqlx::query(
                "INSERT INTO node_passwords (cluster_id, username, hsm_id, confirmed, candidate) VALUES (?, ?, ?, ?, ?)
                 ON CONFLICT (cluster_id, username, hsm_id) DO UPDATE
                 SET confirmed = excluded.confirmed, candidate = excluded.candidate
                 WHERE candidate IS NULL OR candidate <= ?",
            )
            .bind(owner.cluster.as_str())
            .bind(owner.username.as_str())
            .bind(hsm.as_str())
            .bind(confirmed.0)
            .bind(candidate.0)
            .bind(owner.given.0)
            .execute(&mut *change)
            .await?;
            if written.rows_affected() == 0 {
                return Ok(false);
            }
        }
        change.commit().await?;
        Ok(true)
    }

    /// Whoever made the change says that it is made here: the candidate counts as one that the node has accepted.
    pub async fn candidate_was_set(
        &self,
        owner: &PasswordOwner,
        nodes: &[HsmId],
        candidate: PasswordVersion,
    ) -> Result<(), Unavailable> {
        const ACCEPTED: &str =
            "INSERT INTO logins (cluster_id, username, hsm_id, version, proven, attempt_open, refused)
             VALUES (?, ?, ?, ?, TRUE, FALSE, FALSE)
             ON CONFLICT (cluster_id, username, hsm_id, version) DO UPDATE SET proven = TRUE";
        self.for_each_node(ACCEPTED, owner, nodes, candidate).await
    }

    /// It is unlikely that the change was made on these nodes: the candidate counts as one whose attempt was not answered,
    /// so that they are asked for the other one.
    pub async fn doubt_candidate(
        &self,
        owner: &PasswordOwner,
        nodes: &[HsmId],
        candidate: PasswordVersion,
    ) -> Result<(), Unavailable> {
        const UNANSWERED: &str =
            "INSERT INTO logins (cluster_id, username, hsm_id, version, proven, attempt_open, refused)
             SELECT cluster_id, username, hsm_id, candidate, FALSE, TRUE, FALSE FROM node_passwords
             WHERE cluster_id = ? AND username = ? AND hsm_id = ? AND candidate = ?
             ON CONFLICT (cluster_id, username, hsm_id, version) DO UPDATE SET proven = FALSE, attempt_open = TRUE";
        self.for_each_node(UNANSWERED, owner, nodes, candidate).await
    }

    /// All of them or none. The statement takes cluster, user, HSM and version.
    async fn for_each_node(
        &self,
        statement: &'static str,
        owner: &PasswordOwner,
        nodes: &[HsmId],
        version: PasswordVersion,
    ) -> Result<(), Unavailable> {
        let mut change = self.begin().await?;
        for hsm in nodes {
            sqlx::query(statement)
                .bind(owner.cluster.as_str())
                .bind(owner.username.as_str())
                .bind(hsm.as_str())
                .bind(version.0)
                .execute(&mut *change)
                .await?;
        }
        change.commit().await?;
        Ok(())
    }

    /// An answer of the node's that settles its candidate as well. A daemon that is killed finds both in the records, or
    /// neither: one alone could cost the node another attempt, or an operator's act.
    pub async fn login_settled(
        &self,
        owner: &PasswordOwner,
        hsm: &HsmId,
        answer: (PasswordVersion, LoginAnswer),
        candidate: (PasswordVersion, CandidateFate),
    ) -> Result<(), Unavailable> {
        let PasswordOwner { cluster, username, .. } = owner;
        let (asked, answer) = answer;
        let (candidate, fate) = candidate;
        let mut change = self.begin().await?;
        close_login(&mut change, cluster, hsm, username, asked, answer).await?;
        match fate {
            CandidateFate::Confirmed => candidate_confirmed(&mut change, owner, hsm, candidate).await?,
            CandidateFate::Dropped => candidate_dropped(&mut change, owner, hsm, candidate).await?,
            CandidateFate::OnceMore => {
                close_login(&mut change, cluster, hsm, username, candidate, LoginAnswer::NotMade).await?;
            }
        }
        change.commit().await?;
        Ok(())
    }

    /// The change did not happen on this node: its candidate is dropped for ever.
    pub async fn drop_candidate(
        &self,
        owner: &PasswordOwner,
        hsm: &HsmId,
        candidate: PasswordVersion,
    ) -> Result<(), Unavailable> {
        let mut change = self.begin().await?;
        candidate_dropped(&mut change, owner, hsm, candidate).await?;
        change.commit().await?;
        Ok(())
    }

    /// When the password of the cluster's key store was last rotated.
    pub async fn password_rotated(&self, cluster: &ClusterId) -> Result<Option<Rotation>, Unavailable> {
        let row = sqlx::query("SELECT password_rotated, rotated_in FROM key_stores WHERE cluster_id = ?")
            .bind(cluster.as_str())
            .fetch_optional(&self.0.read)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let attempt = row.try_get("rotated_in")?;
        Ok(time_if_any(&row, "password_rotated")?.map(|time| Rotation { time, attempt }))
    }

    /// Passwords that no node has any more go, and what was known of their logins: no version comes again. What the
    /// operator gave stays, for an HSM that joins with it.
    pub async fn forget_passwords(&self, owner: &PasswordOwner) -> Result<(), Unavailable> {
        const PASSWORDS: &str = "DELETE FROM passwords WHERE cluster_id = ?1 AND username = ?2 AND version <> ?3
             AND version NOT IN (SELECT confirmed FROM node_passwords WHERE cluster_id = ?1 AND username = ?2)
             AND version NOT IN (SELECT candidate FROM node_passwords
                                 WHERE cluster_id = ?1 AND username = ?2 AND candidate IS NOT NULL)";
        const LOGINS: &str = "DELETE FROM logins WHERE cluster_id = ?1 AND username = ?2 AND version <> ?3
             AND version NOT IN (SELECT version FROM passwords WHERE cluster_id = ?1 AND username = ?2)";
        let mut change = self.begin().await?;
        for unneeded in [PASSWORDS, LOGINS] {
            sqlx::query(unneeded)
                .bind(owner.cluster.as_str())
                .bind(owner.username.as_str())
                .bind(owner.given.0)
                .execute(&mut *change)
                .await?;
        }
        change.commit().await?;
        Ok(())
    }
}

/// A number that no password of the user's has had.
pub(super) async fn next_version(
    change: &mut Transaction<'_, Sqlite>,
    cluster: &ClusterId,
    user: &Username,
) -> Result<PasswordVersion, Unavailable> {
    let version: i64 = sqlx::query_scalar(
        "INSERT INTO password_versions (cluster_id, username, last) VALUES (?, ?, 1)
         ON CONFLICT (cluster_id, username) DO UPDATE SET last = last + 1 RETURNING last",
    )
    .bind(cluster.as_str())
    .bind(user.as_str())
    .fetch_one(&mut **change)
    .await?;
    Ok(PasswordVersion(u32::try_from(version).map_err(|_| Unavailable::row("last"))?))
}

/// The first node to confirm a candidate says that the rotation happened: when its password was made.
async fn candidate_confirmed(
    change: &mut Transaction<'_, Sqlite>,
    owner: &PasswordOwner,
    hsm: &HsmId,
    candidate: PasswordVersion,
) -> Result<(), Unavailable> {
    sqlx::query(
        "UPDATE key_stores SET (password_rotated, rotated_in) =
             (SELECT made, made_in FROM passwords WHERE cluster_id = ?1 AND username = ?2 AND version = ?3)
         WHERE cluster_id = ?1 AND NOT EXISTS
             (SELECT 1 FROM node_passwords WHERE cluster_id = ?1 AND username = ?2 AND confirmed >= ?3)",
    )
    .bind(owner.cluster.as_str())
    .bind(owner.username.as_str())
    .bind(candidate.0)
    .execute(&mut **change)
    .await?;
    sqlx::query(
        "UPDATE node_passwords SET confirmed = candidate, candidate = NULL
         WHERE cluster_id = ? AND username = ? AND hsm_id = ? AND candidate = ?",
    )
    .bind(owner.cluster.as_str())
    .bind(owner.username.as_str())
    .bind(hsm.as_str())
    .bind(candidate.0)
    .execute(&mut **change)
    .await?;
    Ok(())
}

async fn candidate_dropped(
    change: &mut Transaction<'_, Sqlite>,
    owner: &PasswordOwner,
    hsm: &HsmId,
    candidate: PasswordVersion,
) -> Result<(), Unavailable> {
    sqlx::query(
        "UPDATE node_passwords SET candidate = NULL
         WHERE cluster_id = ? AND username = ? AND hsm_id = ? AND candidate = ?",
    )
    .bind(owner.cluster.as_str())
    .bind(owner.username.as_str())
    .bind(hsm.as_str())
    .bind(candidate.0)
    .execute(&mut **change)
    .await?;
    Ok(())
}
