//! The calls of `ClusterService` about keys that are out of step: what they ask, and their answers in messages.

use std::fmt::Write as _;

use futures_util::FutureExt as _;
use tokio::sync::mpsc;
use tonic::Status;

use crate::authz::{Permit, action};
use crate::keys::{Drifts, Repair, Synced};
use crate::model::ClusterId;
use crate::proto::v1 as pb;
use crate::records::{Difference, DriftCursor, DriftRecord, ObjectName, Oddity, Proof};

use super::{Faces, convert, status, tell};

/// Messages of a stream that wait for a slow reader.
const STREAM_DEPTH: usize = 16;

pub(super) async fn list(
    faces: &Faces,
    permit: Permit<action::ListDrift>,
    cluster: &ClusterId,
    asked: &pb::ListDriftRequest,
) -> Result<pb::ListDriftResponse, Status> {
    let limit = convert::page_size(asked.page_size)?;
    let after = convert::page_token::<DriftCursor>(&asked.page_token)?;
    let found = faces.0.keys.list_drift(permit, cluster, after.as_ref(), limit).await.map_err(status::key)?;
    let Drifts { drifts, next } = found;
    let next_page_token = next.map(convert::next_page_token).unwrap_or_default();
    let drifts = drifts.iter().map(|drift| told(cluster, drift)).collect();
    Ok(pb::ListDriftResponse { drifts, next_page_token })
}

/// Begins, and passes on what is told until it is all, the reader leaves or the daemon drains.
pub(super) async fn sync(
    faces: &Faces,
    permit: Permit<action::SyncCluster>,
    cluster: ClusterId,
    asked: &pb::SyncClusterRequest,
) -> Result<mpsc::Receiver<Result<pb::SyncClusterResponse, Status>>, Status> {
    let repair = if asked.dry_run { Repair::Tell } else { Repair::Copy };
    let mut news = faces.0.keys.sync_cluster(permit, &cluster, repair).await.map_err(status::key)?;
    let mut draining = faces.0.draining.clone();
    let (told, stream) = mpsc::channel(STREAM_DEPTH);
    tokio::spawn(async move {
        loop {
            let message = tokio::select! {
                message = news.recv() => message,
                () = told.closed() => return,
                () = draining.wait_for(|draining| *draining).map(drop) => {
                    let _ = told.send(Err(status::draining())).await;
                    return;
                }
            };
            let Some(message) = message else { return };
            let message = message.map(|synced| progress(&cluster, synced)).map_err(status::key);
            if told.send(message).await.is_err() {
                return;
            }
        }
    });
    Ok(stream)
}

fn progress(cluster: &ClusterId, synced: Synced) -> pb::SyncClusterResponse {
    let count = |keys: u32| i32::try_from(keys).unwrap_or(i32::MAX);
    pb::SyncClusterResponse {
        keys_total: count(synced.total),
        keys_done: count(synced.done),
        keys_failed: count(synced.failed),
        drift: synced.drift.map(|drift| told(cluster, &drift)),
    }
}

fn told(cluster: &ClusterId, drift: &DriftRecord) -> pb::Drift {
    let (key_id, kind, detail) = match &drift.difference {
        Difference::Unproven { key, proof, .. } => {
            let (kind, detail) = unproven(*proof);
            (key.to_string(), kind, detail.to_owned())
        }
        Difference::Odd(Oddity::Orphan(object)) => (hsm_name(cluster, object), pb::DriftKind::Orphan, orphan(object)),
        Difference::Odd(Oddity::Attributes { object, differing }) => (
            object.key().map_or_else(|| hsm_name(cluster, object), |(key, _)| key.to_string()),
            pb::DriftKind::DifferentAttributes,
            format!("its attributes are not as keyway makes them: {differing}"),
        ),
        Difference::Destroyed { key, version } => {
            let detail = format!(
                "its version {} was destroyed, and the HSM may still hold it; it goes as soon as the HSM is in service",
                version.0
            );
            (key.to_string(), pb::DriftKind::AwaitingDeletion, detail)
        }
    };
    pb::Drift { key_id, hsm_id: drift.hsm.to_string(), kind: kind.into(), detail, found_time: tell::time(drift.found) }
}

fn unproven(proof: Proof) -> (pb::DriftKind, &'static str) {
    match proof {
        Proof::Missing => (pb::DriftKind::Missing, "the HSM was asked and does not have it"),
        Proof::Unknown | Proof::Used => {
            (pb::DriftKind::Missing, "the HSM is to hold it, and it has not been proved there")
        }
        Proof::Different => (
            pb::DriftKind::DifferentMaterial,
            "another key stands under its CKA_ID, or more than one; it is not used there and is left alone",
        ),
    }
}

fn orphan(object: &ObjectName) -> String {
    let class = match object.class {
        0 => "a data object".to_owned(),
        1 => "a certificate".to_owned(),
        2 => "a public key".to_owned(),
        3 => "a private key".to_owned(),
        4 => "a secret key".to_owned(),
        other => format!("an object of class 0x{other:x}"),
    };
    format!("{class} with CKA_ID {}, which no record knows; it is left alone", id_text(&object.cka_id))
}

fn id_text(cka_id: &[u8]) -> String {
    if cka_id.is_empty() { "(none)".to_owned() } else { hex(cka_id) }
}

/// An HSM's own object: by its label, or by its `CKA_ID` when it has none.
fn hsm_name(cluster: &ClusterId, object: &ObjectName) -> String {
    if object.label.is_empty() {
        format!("hsm:{cluster}/id={}", hex(&object.cka_id))
    } else {
        format!("hsm:{cluster}/{}", percent_encoded(&object.label))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // a String takes everything
        text
    })
}

/// Everything but RFC 3986's unreserved characters.
fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(byte.into());
        } else {
            let _ = write!(encoded, "%{byte:02X}"); // a String takes everything
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_is_named_by_its_label_or_else_its_id() {
        let cluster: ClusterId = "cluster-2abcdefghij".parse().unwrap();
        let name = |label: &str| {
            hsm_name(&cluster, &ObjectName { class: 4, cka_id: vec![0x0a, 0xff], label: label.to_owned() })
        };
        assert_eq!(name("my key/1"), "hsm:cluster-2abcdefghij/my%20key%2F1");
        assert_eq!(name("id=0a"), "hsm:cluster-2abcdefghij/id%3D0a", "a label is not taken for an id");
        assert_eq!(name(""), "hsm:cluster-2abcdefghij/id=0aff");
    }
}
