//! Where the HSMs and the records of key stores disagree: what a token holds beyond the records, and what it lacks of them.
//! What was destroyed and may still be on an HSM is one, too. What else crypto users have in their own tokens is theirs, and no disagreement.
//!
//! Strangers and odd attributes are written down as a listing showed them, and go when a later one
//! shows them no more. What a node lacks is no row of its own: it is every acknowledged version whose presence there is not proven.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::model::{CkaId, ClusterId, HsmId, KeyId, KeyVersion};

use super::row::{json, key_id, millis, named, number, parsed, time};
use super::{Proof, Records, Unavailable};

/// An object as its token names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectName {
    /// CKO_*
    pub class: u64,
    pub cka_id: Vec<u8>,
    pub label: String,
}

/// What is odd about an object in a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Oddity {
    /// No record explains it.
    Orphan(ObjectName),
    /// A key of ours that is not as keyway makes them; in what, for people.
    Attributes { object: ObjectName, differing: String },
}

/// A disagreement between the records and a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// An acknowledged version that is not proven there.
    Unproven {
        key: KeyId,
        version: KeyVersion,
        proof: Proof,
    },
    Odd(Oddity),
    /// A version that was destroyed, and may still be there.
    Destroyed {
        key: KeyId,
        version: KeyVersion,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriftRecord {
    pub hsm: HsmId,
    pub difference: Difference,
    /// When it was first seen.
    pub found: SystemTime,
}

/// Where a page of drifts ended. At one time what is unproven comes before what is odd, and that before what was destroyed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum DriftCursor {
    Unproven { found: i64, hsm: String, key: KeyId, version: u32 },
    Odd { found: i64, seq: i64 },
    Destroyed { found: i64, hsm: String, cka_id: [u8; 20] },
}

// The plus keeps the planner from reading node by node, which it would have to sort.
pub(super) const UNPROVEN: &str = "SELECT p.time AS found, p.hsm_id, p.key_id, p.version, p.proof FROM presences p
     CROSS JOIN keys k ON k.id = p.key_id
     WHERE p.cluster_id = ? AND p.username = 'kmsuser' AND p.proof <> 'USED' AND (p.time, p.hsm_id, p.key_id, p.version) > (?, ?, ?, ?)
       AND k.cluster_id = p.cluster_id AND k.username = p.username AND k.state <> 'CREATING' AND +p.hsm_id IN (SELECT value FROM json_each(?) page)
     ORDER BY p.time, p.hsm_id, p.key_id, p.version LIMIT ?";

// Attributes are odd only of a key that is proven to be the right one: of another there is more to say than that.
pub(super) const ODD: &str = "SELECT * FROM drifts d
     WHERE d.cluster_id = ? AND (d.found, d.seq) > (?, ?) AND d.hsm_id IN (SELECT value FROM json_each(?) page)
       AND (d.kind <> 'ATTRIBUTES' OR EXISTS (
         SELECT 1 FROM presences p WHERE p.key_id = substr(d.cka_id, 1, 16)
           AND p.cluster_id = d.cluster_id AND p.hsm_id = d.hsm_id AND p.proof = 'USED' AND printf('%08X', p.version) = hex(substr(d.cka_id, 17))))
     ORDER BY d.found, d.seq LIMIT ?";

// The plus does here what it does above.
pub(super) const AWAITING: &str = "SELECT d.time AS found, d.hsm_id, d.cka_id FROM destroyed_keys d
     WHERE d.cluster_id = ? AND d.username = 'kmsuser' AND (d.time, d.hsm_id, d.cka_id) > (?, ?, ?)
       AND +d.hsm_id IN (SELECT value FROM json_each(?) page)
     ORDER BY d.time, d.hsm_id, d.cka_id LIMIT ?";

impl Records {
    /// Writes down what a listing of the node shows, which may come in pages. What was seen before keeps its time.
    pub async fn note_oddities(
        &self,
        cluster: &ClusterId,
        hsm: &HsmId,
        listing: SystemTime,
        oddities: &[Oddity],
    ) -> Result<(), Unavailable> {
        if oddities.is_empty() {
            return Ok(());
        }
        let mut change = self.begin().await?;
        for oddity in oddities {
            let (kind, object, differing) = columns(oddity);
            sqlx::query(
                "INSERT INTO drifts (cluster_id, hsm_id, kind, class, cka_id, label, differing, found, listing)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8)
                 ON CONFLICT (cluster_id, hsm_id, kind, class, cka_id, label)
                 DO UPDATE SET differing = excluded.differing, listing = excluded.listing",
            )
            .bind(cluster.as_str())
            .bind(hsm.as_str())
            .bind(kind)
            .bind(object.class.cast_signed())
            .bind(object.cka_id.as_slice())
            .bind(&object.label)
            .bind(differing)
            .bind(millis(listing))
            .execute(&mut *change)
            .await?;
        }
        change.commit().await?;
        Ok(())
    }

    /// The listing of the node has come to its end: what it did not show is there no more.
    pub async fn end_listing(&self, cluster: &ClusterId, hsm: &HsmId, listing: SystemTime) -> Result<(), Unavailable> {
        sqlx::query("DELETE FROM drifts WHERE cluster_id = ? AND hsm_id = ? AND listing <> ?")
            .bind(cluster.as_str())
            .bind(hsm.as_str())
            .bind(millis(listing))
            .execute(&self.0.write)
            .await?;
        Ok(())
    }

    /// What these nodes of the cluster disagree about, oldest first, each with the cursor that leads past it.
    pub async fn list_drifts(
        &self,
        cluster: &ClusterId,
        hsms: &[HsmId],
        after: Option<&DriftCursor>,
        limit: u32,
    ) -> Result<Vec<(DriftCursor, DriftRecord)>, Unavailable> {
        let mut drifts = self.unproven(cluster, hsms, after, limit).await?;
        drifts.extend(self.list_oddities(cluster, hsms, after, limit).await?);
        drifts.extend(self.awaiting_deletion(cluster, hsms, after, limit).await?);
        drifts.sort_by_cached_key(|(cursor, _)| cursor.order());
        drifts.truncate(limit as usize);
        Ok(drifts)
    }

    async fn unproven(
        &self,
        cluster: &ClusterId,
        hsms: &[HsmId],
        after: Option<&DriftCursor>,
        limit: u32,
    ) -> Result<Vec<(DriftCursor, DriftRecord)>, Unavailable> {
        let (found, hsm, key, version) = match after {
            None => (i64::MIN, "", Vec::new(), 0),
            Some(DriftCursor::Unproven { found, hsm, key, version }) => {
                (*found, hsm.as_str(), key.as_bytes().to_vec(), *version)
            }
            Some(DriftCursor::Odd { found, .. } | DriftCursor::Destroyed { found, .. }) => {
                (found.saturating_add(1), "", Vec::new(), 0)
            }
        };
        let page = sqlx::query(UNPROVEN).bind(cluster.as_str()).bind(found).bind(hsm).bind(key).bind(version);
        let rows = page.bind(json(hsms)).bind(limit).fetch_all(&self.0.read).await?;
        rows.iter().map(unproven).collect()
    }

    /// Of those only what the nodes' tokens hold.
    pub async fn list_oddities(
        &self,
        cluster: &ClusterId,
        hsms: &[HsmId],
        after: Option<&DriftCursor>,
        limit: u32,
    ) -> Result<Vec<(DriftCursor, DriftRecord)>, Unavailable> {
        let (found, seq) = match after {
            None => (i64::MIN, 0),
            Some(DriftCursor::Unproven { found, .. }) => (*found, 0),
            Some(DriftCursor::Odd { found, seq }) => (*found, *seq),
            Some(DriftCursor::Destroyed { found, .. }) => (found.saturating_add(1), 0),
        };
        let page = sqlx::query(ODD).bind(cluster.as_str()).bind(found).bind(seq).bind(json(hsms)).bind(limit);
        page.fetch_all(&self.0.read).await?.iter().map(odd).collect()
    }
}

impl Records {
    async fn awaiting_deletion(
        &self,
        cluster: &ClusterId,
        hsms: &[HsmId],
        after: Option<&DriftCursor>,
        limit: u32,
    ) -> Result<Vec<(DriftCursor, DriftRecord)>, Unavailable> {
        let (found, hsm, cka_id) = match after {
            None => (i64::MIN, "", &[][..]),
            Some(DriftCursor::Unproven { found, .. } | DriftCursor::Odd { found, .. }) => (*found, "", &[][..]),
            Some(DriftCursor::Destroyed { found, hsm, cka_id }) => (*found, hsm.as_str(), &cka_id[..]),
        };
        let page = sqlx::query(AWAITING).bind(cluster.as_str()).bind(found).bind(hsm).bind(cka_id);
        page.bind(json(hsms)).bind(limit).fetch_all(&self.0.read).await?.iter().map(awaiting).collect()
    }
}

fn awaiting(row: &SqliteRow) -> Result<(DriftCursor, DriftRecord), Unavailable> {
    let bad = || Unavailable::row("cka_id");
    let cka_id: Vec<u8> = row.try_get("cka_id")?;
    let (key, version) = CkaId::parse(&cka_id).ok_or_else(bad)?;
    let hsm: HsmId = parsed(row, "hsm_id")?;
    let cka_id = cka_id.try_into().map_err(|_| bad())?;
    let cursor = DriftCursor::Destroyed { found: row.try_get("found")?, hsm: hsm.to_string(), cka_id };
    let difference = Difference::Destroyed { key, version };
    Ok((cursor, DriftRecord { hsm, difference, found: time(row, "found")? }))
}

fn columns(oddity: &Oddity) -> (&'static str, &ObjectName, &str) {
    match oddity {
        Oddity::Orphan(object) => ("ORPHAN", object, ""),
        Oddity::Attributes { object, differing } => ("ATTRIBUTES", object, differing),
    }
}

fn unproven(row: &SqliteRow) -> Result<(DriftCursor, DriftRecord), Unavailable> {
    let (key, version) = (key_id(row, "key_id")?, number(row, "version")?);
    let hsm: HsmId = parsed(row, "hsm_id")?;
    let cursor = DriftCursor::Unproven { found: row.try_get("found")?, hsm: hsm.to_string(), key, version };
    let proof = named(row, "proof", Proof::parse)?;
    let difference = Difference::Unproven { key, version: KeyVersion(version), proof };
    Ok((cursor, DriftRecord { hsm, difference, found: time(row, "found")? }))
}

fn odd(row: &SqliteRow) -> Result<(DriftCursor, DriftRecord), Unavailable> {
    let cursor = DriftCursor::Odd { found: row.try_get("found")?, seq: row.try_get("seq")? };
    let object = ObjectName {
        class: row.try_get::<i64, _>("class")?.cast_unsigned(),
        cka_id: row.try_get("cka_id")?,
        label: row.try_get("label")?,
    };
    let oddity = match row.try_get::<String, _>("kind")?.as_str() {
        "ORPHAN" => Oddity::Orphan(object),
        "ATTRIBUTES" => Oddity::Attributes { object, differing: row.try_get("differing")? },
        _ => return Err(Unavailable::row("kind")),
    };
    let difference = Difference::Odd(oddity);
    Ok((cursor, DriftRecord { hsm: parsed(row, "hsm_id")?, difference, found: time(row, "found")? }))
}

impl ObjectName {
    /// The key version that goes by this `CKA_ID`, if it has the form of one.
    pub fn key(&self) -> Option<(KeyId, KeyVersion)> {
        CkaId::parse(&self.cka_id)
    }
}

impl DriftCursor {
    /// Time first; the order of the variants is the order at one time.
    fn order(&self) -> (i64, Self) {
        match self {
            Self::Unproven { found, .. } | Self::Odd { found, .. } | Self::Destroyed { found, .. } => {
                (*found, self.clone())
            }
        }
    }
}

impl fmt::Display for DriftCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unproven { found, hsm, key, version } => write!(f, "{found}/{hsm}/{key}/{version}"),
            Self::Odd { found, seq } => write!(f, "{found}/{seq}"),
            Self::Destroyed { found, hsm, cka_id } => {
                write!(f, "{found}/{hsm}/")?;
                cka_id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

impl FromStr for DriftCursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let number = |text: &str| text.parse::<i64>().map_err(drop);
        let parts: Vec<&str> = text.split('/').collect();
        match parts[..] {
            [found, seq] => Ok(Self::Odd { found: number(found)?, seq: number(seq)? }),
            [found, hsm, cka_id] => Ok(Self::Destroyed {
                found: number(found)?,
                hsm: hsm.parse::<HsmId>().map_err(drop)?.to_string(),
                cka_id: twenty_bytes(cka_id).ok_or(())?,
            }),
            [found, hsm, key, version] => Ok(Self::Unproven {
                found: number(found)?,
                hsm: hsm.parse::<HsmId>().map_err(drop)?.to_string(),
                key: key.parse().map_err(drop)?,
                version: version.parse().map_err(drop)?,
            }),
            [..] => Err(()),
        }
    }
}

/// Forty hexadecimal digits.
fn twenty_bytes(digits: &str) -> Option<[u8; 20]> {
    if digits.len() != 40 || !digits.is_ascii() {
        return None;
    }
    let mut bytes = [0; 20];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[at * 2..at * 2 + 2], 16).ok()?;
    }
    Some(bytes)
}
