//! Too much, too little, and on and off.

use std::time::Duration;

use faulty_pkcs11::Function::*;
use faulty_pkcs11::{On, Rule};
use tonic::Code;

use super::{node, ready};
use crate::rig::{Load, kill, pb, reason, wait_async};

#[tokio::test]
async fn a_flood_of_ciphertexts_that_are_none_ejects_no_node_and_is_held_back() {
    let (rig, mut clients, store, key) = ready().await;
    let other = clients.key(&store).await.key_id;
    let mut bad = clients.encrypt(&key, b"x").await;
    *bad.last_mut().unwrap() ^= 1;
    let load = Load::start(&clients, &other, 4);
    load.more(50).await;
    let workers = rig.workers();
    let (mut refused_as_bad, mut held_back) = (0, 0);
    let each = rig.rounds(1_250);
    let floods = (0..8).map(|_| {
        let (mut clients, bad) = (clients.clone(), bad.clone());
        tokio::spawn(async move {
            let mut codes = Vec::new();
            for _ in 0..each {
                codes.push(reason(&clients.decrypt(&bad).await.unwrap_err()));
            }
            codes
        })
    });
    for flood in floods.collect::<Vec<_>>() {
        for told in flood.await.unwrap() {
            match (told.0, told.1.as_str()) {
                (Code::InvalidArgument, "INVALID_CIPHERTEXT") => refused_as_bad += 1,
                (Code::ResourceExhausted, "THROTTLING") => held_back += 1,
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(refused_as_bad + held_back, 8 * each);
    assert!(refused_as_bad >= 100 && held_back > 0, "{refused_as_bad} {held_back}");
    assert_eq!(rig.workers(), workers, "no worker was replaced");
    load.unharmed().await;
    clients.all_healthy(&store).await;
}

#[tokio::test]
async fn disconnecting_lets_running_calls_end_or_refuses_them_in_words() {
    let (_rig, mut clients, store, key) = ready().await;
    let load = Load::start(&clients, &key, 32);
    load.more(100).await;
    clients.disconnect(&store).await;
    load.more(32).await;
    for refused in load.refusals().await {
        let told = reason(&refused);
        assert!(
            told == (Code::FailedPrecondition, "KMS_INVALID_STATE".to_owned())
                || told == (Code::Unavailable, "NO_NODE".to_owned()),
            "{refused}"
        );
    }
}

#[tokio::test]
async fn with_every_node_hung_calls_end_by_their_deadline_and_the_queue_is_bounded() {
    let (rig, clients, _, key) = ready().await;
    for hsm in ["hsm-1", "hsm-2", "hsm-3"] {
        rig.faults(hsm).set([Rule::block(On::all())]);
    }
    let calls = (0..64).map(|_| {
        let (mut clients, key) = (clients.clone(), key.clone());
        tokio::spawn(async move {
            let mut request =
                tonic::Request::new(pb::EncryptRequest { key_id: key, plaintext: b"x".to_vec(), ..Default::default() });
            request.set_timeout(Duration::from_secs(2));
            let begun = std::time::Instant::now();
            (clients.crypto.encrypt(request).await.unwrap_err(), begun.elapsed())
        })
    });
    for call in calls.collect::<Vec<_>>() {
        let (refused, took) = call.await.unwrap();
        assert!(took < Duration::from_secs(4), "{took:?}: {refused}");
        // The client's own clock may be the first to say so.
        let told = [Code::DeadlineExceeded, Code::Cancelled, Code::Unavailable, Code::Internal];
        assert!(told.contains(&refused.code()), "{refused}");
    }
    for hsm in ["hsm-1", "hsm-2", "hsm-3"] {
        rig.faults(hsm).clear();
    }
    for (pid, _) in rig.workers() {
        kill(pid);
    }
}

#[tokio::test]
async fn at_the_queues_bound_calls_are_refused_at_once_with_pushback() {
    let mut rig = crate::rig::Rig::new().faulty().nodes(2).zones(2).start();
    rig.stop_daemon();
    rig.start_daemon_with(&["--pool-size", "1", "--queue-limit", "8"]);
    let mut clients = rig.clients().await;
    let store = clients.connected_store(&rig, "main").await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    for hsm in ["hsm-1", "hsm-2"] {
        rig.faults(hsm).set([Rule::delay(C_Encrypt, Duration::from_millis(50))]);
    }
    let calls = (0..200).map(|_| {
        let (mut clients, key) = (clients.clone(), key.clone());
        tokio::spawn(async move {
            let request = pb::EncryptRequest { key_id: key, plaintext: b"x".to_vec(), ..Default::default() };
            clients.crypto.encrypt(request).await
        })
    });
    let mut refused = Vec::new();
    let mut served = 0;
    for call in calls.collect::<Vec<_>>() {
        match call.await.unwrap() {
            Ok(_) => served += 1,
            Err(status) => refused.push(status),
        }
    }
    // One session with sixteen requests handed over and eight waiting, twice.
    assert!(served >= 40 && !refused.is_empty(), "{served} served, {} refused", refused.len());
    for status in refused {
        assert_eq!(reason(&status), (Code::ResourceExhausted, "SESSIONS_EXHAUSTED".to_owned()), "{status}");
        assert!(status.metadata().get("grpc-retry-pushback-ms").is_some());
    }
}

#[tokio::test]
async fn with_two_zones_down_one_serves_and_all_come_back_with_one_login_each() {
    let (rig, mut clients, store, key) = ready().await;
    let load = Load::start(&clients, &key, 16);
    load.more(50).await;
    let before = ["hsm-2", "hsm-3"].map(|hsm| rig.faults(hsm).count(C_Login));
    for hsm in ["hsm-2", "hsm-3"] {
        std::fs::rename(rig.path(&format!("hsms/{hsm}/kmsuser/tokens")), rig.path(&format!("hsms/{hsm}/away")))
            .unwrap();
        clients.until_health(&store, hsm, pb::HsmHealth::Unreachable).await;
    }
    load.more(100).await;
    let request = pb::CreateKeyRequest { key_store_id: store.clone(), ..Default::default() };
    let refused = clients.keys.create_key(request).await.unwrap_err();
    assert_eq!(reason(&refused), (Code::Unavailable, "NO_NODE".to_owned()), "making needs two zones: {refused}");
    for hsm in ["hsm-2", "hsm-3"] {
        std::fs::rename(rig.path(&format!("hsms/{hsm}/away")), rig.path(&format!("hsms/{hsm}/kmsuser/tokens")))
            .unwrap();
    }
    clients.all_healthy(&store).await;
    load.unharmed().await;
    for (hsm, before) in ["hsm-2", "hsm-3"].into_iter().zip(before) {
        assert_eq!(rig.faults(hsm).count(C_Login), before + 1, "{hsm}");
    }
}

#[tokio::test]
async fn a_node_that_comes_and_goes_is_logged_in_to_less_and_less_often() {
    let (rig, mut clients, store, key) = ready().await;
    let load = Load::start(&clients, &key, 8);
    let before = rig.faults("hsm-1").count(C_Login);
    for times in 1..=5 {
        for pid in rig.workers_of("hsm-1") {
            kill(pid);
        }
        clients.until_replaced(&store, "hsm-1", times).await;
    }
    let journal = rig.faults("hsm-1").journal();
    let logins: Vec<_> = journal.into_iter().filter(|entry| entry.function == C_Login).skip(before - 1).collect();
    assert_eq!(logins.len(), 6, "one for each time it came back: {logins:?}");
    let pauses: Vec<_> = logins.windows(2).map(|pair| pair[1].at - pair[0].at).collect();
    // The pauses double from a tenth of a second, less a quarter at most: the fifth is 1.6 s.
    assert!(pauses[4] >= Duration::from_millis(1_200), "{pauses:?}");
    assert_eq!(node(&clients.all_healthy(&store).await, "hsm-1").worker_restarts, 5);
    load.unharmed().await;
}

#[tokio::test]
async fn a_clock_that_jumps_changes_no_nodes_health_and_ends_no_call() {
    let (rig, mut clients, store) = crate::rig::Rig::new().seams().connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    let load = Load::start(&clients, &key, 8);
    for offset in ["86400", "-86400", "0"] {
        std::fs::write(rig.path("daemon/seams/clock-offset"), offset).unwrap();
        load.more(50).await;
        kill(rig.worker_of("hsm-1"));
        let before = clients.all_healthy(&store).await;
        clients.until_replaced(&store, "hsm-1", node(&before, "hsm-1").worker_restarts.max(1)).await;
    }
    load.unharmed().await;
    wait_async(|| async { (rig.workers().len() == 3).then_some(()) }).await;
}
