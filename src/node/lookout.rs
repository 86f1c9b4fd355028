//! Looks each second whether a token that nobody is logged in to can be reached. No login, no session.

use std::time::Duration;

use crate::host::{Host, Lookout, WorkerSpec};
use crate::model::with_causes;

use super::TokenFacts;
use super::supervise::{REACH_EVERY, facts, jittered};

/// What is known of a node that nobody is logged in to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    Reached(TokenFacts),
    /// Why not, for people.
    Unreached(String),
}

/// Looks until it is dropped, and tells each change.
pub async fn look_out(spec: WorkerSpec, host: Host, tell: impl Fn(Reach)) {
    loop {
        let why = match host.look(&spec).await {
            Ok(mut lookout) => {
                tell(Reach::Reached(facts(lookout.link())));
                until_gone(&mut lookout).await
            }
            Err(error) => with_causes(&error),
        };
        tell(Reach::Unreached(why));
        pause().await;
    }
}

async fn until_gone(lookout: &mut Lookout) -> String {
    loop {
        pause().await;
        if let Err(error) = lookout.check().await {
            return with_causes(&error);
        }
    }
}

async fn pause() {
    const EVERY: Duration = REACH_EVERY;
    tokio::time::sleep(jittered(EVERY)).await;
}
