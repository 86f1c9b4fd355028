//! For this room's tests: kmsuser's slot on an HSM of this machine.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::link::Patience;
use crate::model::Username;

use super::{LocalToken, Location, TokenName, WorkerSpec};

pub(super) fn token() -> LocalToken {
    LocalToken {
        module: PathBuf::new(),
        name: TokenName::Label("kmsuser".to_owned()),
        environment: BTreeMap::new(),
        so_pin_file: None,
        user_tokens: None,
    }
}

pub(super) fn slot(token: &LocalToken) -> WorkerSpec {
    WorkerSpec {
        cluster: "cluster-2abcdefghij".parse().unwrap(),
        hsm: "hsm-1".parse().unwrap(),
        username: Username::kmsuser(),
        location: Location::Here(token.clone()),
        sessions: 1,
        patience: Patience { quick: Duration::ZERO, slow: Duration::ZERO },
        memory_limit: u64::MAX,
    }
}
