//! A node that answers, but much too late.

use std::time::{Duration, Instant};

use faulty_pkcs11::{On, Rule};

use super::{node, ready};
use crate::rig::{Clients, Load, pb, wait_async};

#[tokio::test]
async fn a_node_much_slower_than_its_siblings_is_put_aside_and_taken_back_when_it_is_quick_again() {
    let (rig, mut clients, store, key) = ready().await;
    let load = Load::start(&clients, &key, 8);
    load.more(50).await;
    rig.faults("hsm-2").set([Rule::delay(On::all(), Duration::from_millis(150))]);
    let told = clients.until_health(&store, "hsm-2", pb::HsmHealth::Slow).await;
    assert_eq!(told.connection_state(), pb::ConnectionState::Connected);
    load.more(50).await;
    load.unharmed().await;
    // Nobody waits for it any more.
    let ciphertext = clients.encrypt(&key, b"x").await;
    let begun = Instant::now();
    for _ in 0..9 {
        assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"x");
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(node(&told, "hsm-2").worker_restarts, 0, "slow is not stuck");
    rig.faults("hsm-2").clear();
    clients.all_healthy(&store).await;
}

#[tokio::test]
async fn a_node_that_makes_rsa_pairs_for_seconds_is_not_slow() {
    let (rig, mut clients, store, _) = ready().await;
    let make = |mut clients: Clients| {
        let mut request = pb::CreateKeyRequest { key_store_id: store.clone(), ..Default::default() };
        request.set_key_spec(pb::KeySpec::Rsa2048);
        request.set_key_usage(pb::KeyUsage::SignVerify);
        let mut request = tonic::Request::new(request);
        request.set_timeout(Duration::from_secs(120));
        async move { clients.keys.create_key(request).await }
    };
    // Each HSM has said by then what it can do, which takes it pairs as well.
    make(clients.clone()).await.expect("it is made");
    for hsm in ["hsm-1", "hsm-2", "hsm-3"] {
        rig.faults(hsm).set([Rule::delay(faulty_pkcs11::Function::C_GenerateKeyPair, Duration::from_secs(5))]);
    }
    let making: Vec<_> = (0..6).map(|_| tokio::spawn(make(clients.clone()))).collect();
    while !making.iter().all(tokio::task::JoinHandle::is_finished) {
        let told = clients.settled(&store).await;
        let slow = told.nodes.iter().find(|node| node.health() == pb::HsmHealth::Slow);
        assert!(slow.is_none(), "what callers ask for made it look slow: {slow:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for made in making {
        made.await.expect("no panic").expect("it is made");
    }
}

#[tokio::test]
async fn the_latencies_of_recent_operations_are_told_for_each_hsm() {
    let (rig, mut clients, _, key) = ready().await;
    rig.faults("hsm-1").set([Rule::delay(faulty_pkcs11::Function::C_Encrypt, Duration::from_millis(20))]);
    for _ in 0..30 {
        clients.encrypt(&key, b"x").await;
    }
    let hsms = wait_async(|| {
        let mut clients = clients.clone();
        async move {
            let clusters = clients.clusters.describe_clusters(pb::DescribeClustersRequest::default()).await.unwrap();
            let hsms = clusters.into_inner().clusters.remove(0).hsms;
            // Each was looked at since it came into service, and has served.
            hsms.iter().all(|hsm| hsm.last_proof_time.is_some() && hsm.latency_p50.is_some()).then_some(hsms)
        }
    })
    .await;
    let p99 = |hsm: &pb::Hsm| {
        let told = hsm.latency_p99.expect("there were operations");
        Duration::new(told.seconds.unsigned_abs(), told.nanos.unsigned_abs())
    };
    assert!(p99(&hsms[0]) >= Duration::from_millis(20), "{:?}", p99(&hsms[0]));
}

#[tokio::test]
async fn a_canary_that_waits_behind_callers_makes_no_node_slow() {
    let (rig, clients, _, key) = ready().await;
    // What callers ask for is slow, and fills every session; the canary only decrypts.
    rig.faults("hsm-2").set([Rule::delay(faulty_pkcs11::Function::C_Encrypt, Duration::from_millis(150))]);
    let load = Load::start(&clients, &key, 96);
    load.more(200).await;
    let seen = std::sync::Mutex::new(std::collections::BTreeSet::new());
    wait_async(|| {
        let (mut clients, seen) = (clients.clone(), &seen);
        async move {
            let clusters = clients.clusters.describe_clusters(pb::DescribeClustersRequest::default()).await.unwrap();
            let hsm = clusters.into_inner().clusters.remove(0).hsms.remove(1);
            assert_eq!(hsm.health(), pb::HsmHealth::Healthy);
            let proof = hsm.last_proof_time?;
            let mut seen = seen.lock().unwrap();
            seen.insert((proof.seconds, proof.nanos));
            (seen.len() > 8).then_some(())
        }
    })
    .await;
    load.unharmed().await;
}
