//! What was left over on HSMs that were out of reach, or cut short by a crash, is done when they are back.
//!
//! It is tried again after a pause that grows, and at once when an HSM comes back into use.

use std::time::Duration;

use crate::records::Unavailable;

use super::Users;

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Runs as long as the daemon.
pub(super) async fn run(users: Users) {
    let mut resumed = users.0.key_stores.listed();
    let mut pause = FIRST_PAUSE;
    loop {
        resumed.borrow_and_update();
        match round(&users).await {
            Ok(0) => {
                pause = FIRST_PAUSE;
                users.0.left_over.notified().await;
            }
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "crypto users cannot be caught up with; trying again"),
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
            _ = resumed.changed() => pause = FIRST_PAUSE,
        }
    }
}

/// Does what can be done; how many users are still pending.
async fn round(users: &Users) -> Result<usize, Unavailable> {
    for (cluster, user) in users.0.records.pending_crypto_users().await? {
        let Ok(settings) = users.declared(&cluster) else { continue };
        let _changing = users.turn(&cluster).await;
        users.settle(&cluster, &settings, &user).await?;
    }
    Ok(users.0.records.pending_crypto_users().await?.len())
}
