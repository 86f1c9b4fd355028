//! The daemon itself is killed and replaced, or changes the password, while callers work.

use std::collections::BTreeMap;

use tokio::task::block_in_place;
use tonic::Code;

use super::{DEADLINE, PACE, callers};
use crate::rig::{Clients, Load, Rig, engine, reason};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_is_killed_and_one_that_is_upgraded_cost_callers_who_repeat_nothing_and_no_key() {
    let Some(_) = engine() else { return };
    let (mut rig, mut clients, store) = Rig::new().contained().connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    let load = Load::persistent(&clients, &key, 4, PACE, DEADLINE);
    let making = tokio::spawn(make_keys(clients.clone(), store.clone(), 30));
    load.more(20).await;
    block_in_place(|| rig.kill_daemon());
    block_in_place(|| rig.start_daemon());
    load.more(20).await;
    clients.all_healthy(&store).await;
    block_in_place(|| rig.upgrade_daemon());
    load.more(20).await;
    clients.all_healthy(&store).await;
    for key in making.await.unwrap() {
        let ciphertext = clients.encrypt(&key, b"kept").await;
        assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"kept");
    }
    assert!(load.unharmed().await > 0);
}

/// Those that were acknowledged, at the first time or when the same was asked for again.
async fn make_keys(mut clients: Clients, store: String, count: usize) -> Vec<String> {
    let mut made = Vec::new();
    for number in 0..count {
        made.push(clients.key_in_the_end(&store, &format!("request-{number}")).await.key_id);
        tokio::time::sleep(PACE).await;
    }
    made
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_changed_under_load_refuses_callers_only_while_the_store_is_not_connected_and_says_so() {
    let Some(_) = engine() else { return };
    let (_rig, mut clients, store) = Rig::new().rotating().contained().connected().await;
    let before = clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    let load = callers(&clients, &key);
    load.more(20).await;
    clients.disconnect(&store).await;
    load.more(4).await;
    clients.connect(&store).await;
    clients.settled(&store).await;
    let after = clients.all_healthy(&store).await;
    for (before, after) in before.nodes.iter().zip(&after.nodes) {
        assert_eq!(after.password_version, before.password_version + 1, "{}", after.hsm_id);
    }
    // Callers who were refused know the state; who asks now is served.
    clients.encrypt(&key, b"x").await;
    let mut told: BTreeMap<_, usize> = BTreeMap::new();
    for status in load.refusals().await {
        let (code, reason) = reason(&status);
        *told.entry((format!("{code:?}"), reason)).or_default() += 1;
    }
    let state = (format!("{:?}", Code::FailedPrecondition), "KMS_INVALID_STATE".to_owned());
    assert_eq!(told.keys().collect::<Vec<_>>(), [&state], "{told:?}");
}
