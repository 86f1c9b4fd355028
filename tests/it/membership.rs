//! HSMs that are declared otherwise while their key store is connected: they join, are drained and leave.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use faulty_pkcs11::Function::{C_Encrypt, C_EncryptInit, C_GenerateKey, C_Initialize, C_Login, C_UnwrapKey};
use faulty_pkcs11::Rule;
use faulty_pkcs11::ckr::{CKR_GENERAL_ERROR, CKR_PIN_INCORRECT};

use crate::rig::{Clients, Declaring, Load, Rig, pb, refused, wait_async, with_line_for, without};

/// Keys enough to be a few at once on their way.
const KEYS: usize = 20;

/// Three HSMs in three zones of which two are declared, and a key store on these.
async fn two_of_three() -> (Declaring, Clients, String, String) {
    let (declaring, mut clients) = Declaring::over(Rig::new()).await;
    let all = declaring.configuration();
    declaring.reload(&without(&all, "hsm-3")).await;
    let store = clients.connected_store(&declaring.rig, "main").await;
    assert_eq!(clients.all_healthy(&store).await.nodes.len(), 2);
    (declaring, clients, store, all)
}

async fn three() -> (Declaring, Clients, String, String) {
    let (declaring, mut clients) = Declaring::over(Rig::new()).await;
    let store = clients.connected_store(&declaring.rig, "main").await;
    assert_eq!(clients.all_healthy(&store).await.nodes.len(), 3);
    let all = declaring.configuration();
    (declaring, clients, store, all)
}

/// A ciphertext under each of so many new keys, with the number of its key in it.
async fn ciphertexts(clients: &mut Clients, store: &str, keys: usize) -> Vec<Vec<u8>> {
    let mut ciphertexts = Vec::new();
    for number in 0..keys {
        let key = clients.key(store).await.key_id;
        ciphertexts.push(clients.encrypt(&key, &number.to_be_bytes()).await);
    }
    ciphertexts
}

async fn all_open(clients: &mut Clients, ciphertexts: &[Vec<u8>]) {
    for (number, ciphertext) in ciphertexts.iter().enumerate() {
        assert_eq!(clients.decrypt(ciphertext).await.expect("its key is there"), number.to_be_bytes());
    }
}

/// Out of use: what is asked from then on, others answer.
async fn drain(clients: &mut Clients, declaring: &Declaring, hsm: &str) {
    let (cluster_id, hsm_id) = (declaring.rig.cluster_id(), hsm.to_owned());
    let request = pb::DrainHsmRequest { cluster_id, hsm_id, note: "to be looked at".to_owned(), drain_timeout: None };
    clients.clusters.drain_hsm(request).await.expect("it is known");
    let is_drained = |node: &pb::NodeConnection| node.hsm_id != hsm || node.health() == pb::HsmHealth::Drained;
    let clients = &*clients;
    wait_async(|| async { told(clients).await.iter().flat_map(|it| &it.nodes).all(is_drained).then_some(()) }).await;
}

async fn told(clients: &Clients) -> Vec<pb::KeyStore> {
    let described = clients.clone().stores.describe_key_stores(pb::DescribeKeyStoresRequest::default()).await;
    described.expect("they are told").into_inner().key_stores
}

fn is_healthy(node: &pb::NodeConnection) -> bool {
    node.health() == pb::HsmHealth::Healthy
}

/// How many have every key, be they slow.
fn serving(store: &pb::KeyStore) -> usize {
    let serves = |node: &&pb::NodeConnection| matches!(node.health(), pb::HsmHealth::Healthy | pb::HsmHealth::Slow);
    store.nodes.iter().filter(serves).count()
}

fn hsms(store: &pb::KeyStore) -> Vec<&str> {
    store.nodes.iter().map(|node| node.hsm_id.as_str()).collect()
}

fn are_healthy(count: usize) -> impl Fn(&pb::KeyStore) -> bool {
    move |store| store.nodes.len() == count && store.nodes.iter().all(is_healthy)
}

#[tokio::test]
async fn an_hsm_that_is_declared_later_joins_takes_every_key_and_serves_alone() {
    let (declaring, mut clients, store, all) = two_of_three().await;
    let key = clients.key(&store).await.key_id;
    let ciphertexts = ciphertexts(&mut clients, &store, KEYS).await;
    let load = Load::start(&clients, &key, 2);
    load.more(20).await;

    declaring.reload(&all).await;
    let told = clients.watch_until(&store, are_healthy(3)).await;
    assert_eq!(told.nodes[2].hsm_id, "hsm-3");
    assert_eq!(told.nodes[2].keys_missing, 0);
    load.more(20).await;
    drain(&mut clients, &declaring, "hsm-1").await;
    drain(&mut clients, &declaring, "hsm-2").await;
    load.more(20).await;
    load.unharmed().await;
    all_open(&mut clients, &ciphertexts).await;
}

#[tokio::test]
async fn what_an_hsm_lacks_is_known_from_the_moment_it_joins() {
    let (declaring, mut clients, store, all) = two_of_three().await;
    let ciphertexts = ciphertexts(&mut clients, &store, KEYS).await;
    declaring.reload(&all.replace("[clusters", "# the same\n[clusters")).await;
    clients.watch_until(&store, are_healthy(3)).await;
    declaring.reload(&without(&all, "hsm-3")).await;
    clients.watch_until(&store, are_healthy(2)).await;

    // Away, it misses keys. Out of use, it is not even looked at when it is back.
    let more = self::ciphertexts(&mut clients, &store, 3).await;
    declaring.reload(&with_line_for(&all, "hsm-3", "state = \"DEGRADED\"")).await;
    drain(&mut clients, &declaring, "hsm-3").await;
    declaring.reload(&all).await;
    let is_out_of_use = |store: &pb::KeyStore| {
        store.nodes.get(2).is_some_and(|node| {
            assert_eq!(node.keys_missing, 3);
            node.health() == pb::HsmHealth::Drained
        })
    };
    clients.watch_until(&store, is_out_of_use).await;

    clients.resume_hsm(&declaring.rig.cluster_id(), "hsm-3", false).await;
    clients.watch_until(&store, are_healthy(3)).await;
    drain(&mut clients, &declaring, "hsm-1").await;
    drain(&mut clients, &declaring, "hsm-2").await;
    all_open(&mut clients, &ciphertexts).await;
    all_open(&mut clients, &more).await;
}

#[tokio::test]
async fn an_hsm_that_is_declared_no_more_leaves_under_traffic_and_no_call_is_refused() {
    let (declaring, mut clients, store, all) = three().await;
    let key = clients.key(&store).await.key_id;
    let load = Load::start(&clients, &key, 4);
    load.more(40).await;

    declaring.reload(&without(&all, "hsm-1")).await;
    let told = clients.watch_until(&store, are_healthy(2)).await;
    assert!(told.nodes.iter().all(|node| node.hsm_id != "hsm-1"));
    wait_async(|| async { declaring.rig.workers_of("hsm-1").is_empty().then_some(()) }).await;
    let ciphertexts = ciphertexts(&mut clients, &store, 3).await;
    load.more(40).await;

    declaring.reload(&all).await;
    clients.watch_until(&store, are_healthy(3)).await;
    load.more(40).await;
    let off = with_line_for(&all, "hsm-2", "state = \"DEGRADED\"");
    declaring.reload(&off).await;
    clients.watch_until(&store, are_healthy(2)).await;
    load.more(40).await;
    load.unharmed().await;
    drain(&mut clients, &declaring, "hsm-3").await;
    all_open(&mut clients, &ciphertexts).await;
}

#[tokio::test]
async fn a_changed_pool_size_is_taken_up_by_one_hsm_after_the_other_and_no_call_is_refused() {
    let (declaring, mut clients, store, all) = three().await;
    let key = clients.key(&store).await.key_id;
    let load = Load::start(&clients, &key, 4);
    load.more(40).await;
    let larger = ["hsm-1", "hsm-2", "hsm-3"].iter().fold(all, |all, hsm| with_line_for(&all, hsm, "pool_size = 3"));
    declaring.reload(&larger).await;
    let fewest = Cell::new(3);
    let is_larger = |node: &pb::NodeConnection| is_healthy(node) && node.sessions_limit == 3;
    let told = clients.watch_until(&store, |store| {
        fewest.set(fewest.get().min(serving(store)));
        store.nodes.len() == 3 && store.nodes.iter().all(is_larger)
    });
    told.await;
    assert!(fewest.get() >= 2, "one at a time");
    load.more(40).await;
    load.unharmed().await;
}

#[tokio::test]
async fn the_last_hsm_that_serves_goes_when_it_is_declared_no_more_and_its_keys_are_counted_in_the_log() {
    let (declaring, mut clients, store, all) = two_of_three().await;
    let ciphertexts = ciphertexts(&mut clients, &store, 3).await;
    drain(&mut clients, &declaring, "hsm-1").await;
    let drained = |store: &pb::KeyStore| store.nodes[0].health() == pb::HsmHealth::Drained;
    clients.watch_until(&store, drained).await;
    declaring.reload(&without(&without(&all, "hsm-3"), "hsm-2")).await;
    clients.watch_until(&store, |store| store.nodes.len() == 1).await;
    let log = declaring.log();
    let told = log.lines().find(|line| line.contains("on no other HSM in service")).expect("it is said");
    assert!(told.contains("ERROR") && told.contains("\"keys\":3") && told.contains("hsm-2"), "{told}");
    refused("using a key", clients.decrypt(&ciphertexts[0]).await, "NO_NODE", "");

    clients.resume_hsm(&declaring.rig.cluster_id(), "hsm-1", false).await;
    clients.watch_until(&store, are_healthy(1)).await;
    all_open(&mut clients, &ciphertexts).await;
}

#[tokio::test]
async fn declarations_one_upon_the_other_end_as_the_last_one_says() {
    let (declaring, mut clients, store, all) = three().await;
    let key = clients.key(&store).await.key_id;
    let load = Load::start(&clients, &key, 2);
    for hsm in ["hsm-1", "hsm-2", "hsm-3", "hsm-1"] {
        declaring.declare(&without(&all, hsm));
        load.more(5).await;
        declaring.declare(&all);
    }
    declaring.reload(&with_line_for(&without(&all, "hsm-2"), "hsm-1", "pool_size = 3")).await;
    let as_said = |store: &pb::KeyStore| are_healthy(2)(store) && store.nodes[0].sessions_limit == 3;
    let told = clients.watch_until(&store, as_said).await;
    assert_eq!(hsms(&told), ["hsm-1", "hsm-3"]);
    load.more(10).await;
    load.unharmed().await;
}

#[tokio::test]
async fn a_daemon_that_is_killed_while_an_hsm_joins_goes_on_with_it() {
    let (mut declaring, mut clients, store, all) = two_of_three().await;
    let ciphertexts = ciphertexts(&mut clients, &store, KEYS).await;
    declaring.reload(&all).await;
    // Not in the middle of its first login: only an operator could say what is to come of that.
    let logged_in = |store: &pb::KeyStore| store.nodes.get(2).is_some_and(|node| node.sessions_open > 0);
    clients.watch_until(&store, logged_in).await;
    declaring.begin_anew();
    let mut clients = declaring.clients().await;
    clients.watch_until(&store, are_healthy(3)).await;
    drain(&mut clients, &declaring, "hsm-1").await;
    drain(&mut clients, &declaring, "hsm-2").await;
    all_open(&mut clients, &ciphertexts).await;
}

#[tokio::test]
async fn what_is_declared_while_a_key_store_is_connecting_is_followed_once_it_is_connected() {
    let (declaring, mut clients) = Declaring::over(Rig::new().faulty()).await;
    let all = declaring.configuration();
    declaring.reload(&without(&all, "hsm-3")).await;
    for hsm in ["hsm-1", "hsm-2"] {
        let faults = declaring.rig.faults(hsm);
        faults.mark("hang");
        faults.set([Rule::block(C_Login).during("hang")]);
    }
    let store = clients.store(&declaring.rig, "main").await;
    clients.connect(&store).await;
    clients.watch_until(&store, |store| store.nodes.len() == 2).await;

    declaring.reload(&without(&all, "hsm-2")).await;
    for hsm in ["hsm-1", "hsm-2"] {
        declaring.rig.faults(hsm).unmark("hang");
    }
    let told = clients.watch_until(&store, |store| {
        if store.connection_state() == pb::ConnectionState::Connecting {
            assert_eq!(hsms(store), ["hsm-1", "hsm-2"]);
        }
        hsms(store).contains(&"hsm-3") && are_healthy(2)(store)
    });
    assert_eq!(hsms(&told.await), ["hsm-1", "hsm-3"]);
}

#[tokio::test]
async fn a_call_that_runs_on_an_hsm_that_leaves_ends_well_though_its_key_store_is_disconnected_meanwhile() {
    let (declaring, mut clients) = Declaring::over(Rig::new().faulty()).await;
    let all = with_line_for(&declaring.configuration(), "hsm-1", "patience = \"10s\"");
    declaring.reload(&all).await;
    let store = clients.connected_store(&declaring.rig, "main").await;
    clients.all_healthy(&store).await;
    let key_id = clients.key(&store).await.key_id;
    for hsm in ["hsm-2", "hsm-3"] {
        drain(&mut clients, &declaring, hsm).await;
    }
    let faults = declaring.rig.faults("hsm-1");
    faults.mark("hang");
    faults.set([Rule::block(C_Encrypt).during("hang"), Rule::journal(C_EncryptInit)]);
    let mut caller = clients.clone();
    let request = pb::EncryptRequest { key_id, plaintext: b"still".to_vec(), ..Default::default() };
    let call = tokio::spawn(async move { caller.crypto.encrypt(request).await });
    // Beside the call only the canary is asked, which decrypts.
    wait_async(|| async { (faults.count(C_EncryptInit) > 0).then_some(()) }).await;

    declaring.reload(&without(&all, "hsm-1")).await;
    let leaves = |store: &pb::KeyStore| store.nodes[0].health() == pb::HsmHealth::Drained;
    clients.watch_until(&store, leaves).await;
    let request = pb::DisconnectKeyStoreRequest { key_store_id: store.clone(), ..Default::default() };
    clients.stores.disconnect_key_store(request).await.expect("disconnecting begins");
    let may_end = Arc::new(AtomicBool::new(false));
    let ending = may_end.clone();
    tokio::spawn(async move {
        // Time enough to be told too early that all is over.
        tokio::time::sleep(Duration::from_secs(1)).await;
        ending.store(true, Relaxed);
        faults.unmark("hang");
    });
    assert_eq!(clients.settled(&store).await.connection_state(), pb::ConnectionState::Disconnected);
    assert!(may_end.load(Relaxed), "it was told to be disconnected while a call ran");
    let ciphertext = call.await.expect("it ends").expect("it was let end").into_inner().ciphertext;

    for hsm in ["hsm-2", "hsm-3"] {
        clients.resume_hsm(&declaring.rig.cluster_id(), hsm, false).await;
    }
    clients.connect(&store).await;
    assert_eq!(clients.settled(&store).await.connection_state(), pb::ConnectionState::Connected);
    clients.watch_until(&store, are_healthy(2)).await;
    assert_eq!(clients.decrypt(&ciphertext).await.expect("its key is there"), b"still");
}

#[tokio::test]
async fn a_change_that_an_hsm_does_not_come_back_from_costs_that_one_alone() {
    let (declaring, mut clients) = Declaring::over(Rig::new().faulty()).await;
    let store = clients.connected_store(&declaring.rig, "main").await;
    clients.all_healthy(&store).await;
    let all = declaring.configuration();
    let key = clients.key(&store).await.key_id;
    let load = Load::start(&clients, &key, 4);
    load.more(40).await;
    for hsm in ["hsm-1", "hsm-2", "hsm-3"] {
        let faults = declaring.rig.faults(hsm);
        faults.mark("unfit");
        faults.set([Rule::fail(C_Initialize, CKR_GENERAL_ERROR).during("unfit")]);
    }
    let larger = ["hsm-1", "hsm-2", "hsm-3"].iter().fold(all, |all, hsm| with_line_for(&all, hsm, "pool_size = 3"));
    declaring.reload(&larger).await;
    let fewest = Cell::new(3);
    let is_out = |node: &pb::NodeConnection| node.health() == pb::HsmHealth::Unreachable;
    clients.watch_until(&store, |store| store.nodes.iter().any(is_out)).await;
    wait_async(|| async { declaring.log().contains("stays as it is until another one serves").then_some(()) }).await;
    load.more(100).await;
    // Told once more, it is no other declaration.
    declaring.reload(&larger).await;
    load.more(100).await;

    for hsm in ["hsm-1", "hsm-2", "hsm-3"] {
        declaring.rig.faults(hsm).unmark("unfit");
    }
    let is_larger = |node: &pb::NodeConnection| is_healthy(node) && node.sessions_limit == 3;
    let told = clients.watch_until(&store, |store| {
        fewest.set(fewest.get().min(serving(store)));
        store.nodes.len() == 3 && store.nodes.iter().all(is_larger)
    });
    told.await;
    assert!(fewest.get() >= 2, "one at a time");
    load.unharmed().await;
}

#[tokio::test]
async fn an_hsm_that_joins_and_refuses_the_password_is_asked_once() {
    let (declaring, mut clients) = Declaring::over(Rig::new().faulty()).await;
    let all = declaring.configuration();
    declaring.reload(&without(&all, "hsm-3")).await;
    let store = clients.connected_store(&declaring.rig, "main").await;
    let ciphertexts = ciphertexts(&mut clients, &store, 3).await;
    let faults = declaring.rig.faults("hsm-3");
    faults.set([Rule::journal(C_Login), Rule::fail(C_Login, CKR_PIN_INCORRECT)]);
    faults.forget_journal();
    declaring.reload(&all).await;
    let refuses = |node: &pb::NodeConnection| node.health() == pb::HsmHealth::LoginRefused;
    clients.watch_until(&store, |store| store.nodes.get(2).is_some_and(refuses)).await;
    // What changes on the others is none of its concern.
    declaring.reload(&without(&all, "hsm-2")).await;
    clients.watch_until(&store, |store| store.nodes.len() == 2).await;
    declaring.reload(&all).await;
    clients.watch_until(&store, |store| serving(store) == 2 && store.nodes.len() == 3).await;
    assert_eq!(faults.count(C_Login), 1);

    faults.clear();
    clients.resume_hsm(&declaring.rig.cluster_id(), "hsm-3", true).await;
    clients.watch_until(&store, are_healthy(3)).await;
    all_open(&mut clients, &ciphertexts).await;
}

/// Asks for a key whose copies wait until `hang` is unmarked, and waits until it is made.
async fn a_key_on_its_way(
    declaring: &Declaring,
    clients: &Clients,
    store: &str,
    hsms: &[&str],
) -> tokio::task::JoinHandle<Result<pb::Key, tonic::Status>> {
    let faults: Vec<_> = hsms.iter().map(|hsm| declaring.rig.faults(hsm)).collect();
    for faults in &faults {
        faults.mark("hang");
        faults.set([Rule::journal(C_GenerateKey), Rule::block(C_UnwrapKey).during("hang")]);
        faults.forget_journal();
    }
    let (mut caller, request) = (clients.clone(), named_request(store));
    let call = tokio::spawn(async move {
        caller.keys.create_key(request).await.map(|made| made.into_inner().key.expect("it is told"))
    });
    wait_async(|| async { faults.iter().any(|faults| faults.count(C_GenerateKey) > 0).then_some(()) }).await;
    call
}

fn named_request(store: &str) -> pb::CreateKeyRequest {
    pb::CreateKeyRequest { key_store_id: store.to_owned(), request_id: "the-same".to_owned(), ..Default::default() }
}

#[tokio::test]
async fn an_hsm_that_joins_while_a_key_is_made_gets_it() {
    let (declaring, mut clients) = Declaring::over(Rig::new().faulty()).await;
    let all = ["hsm-1", "hsm-2"]
        .iter()
        .fold(declaring.configuration(), |all, hsm| with_line_for(&all, hsm, "patience = \"60s\""));
    declaring.reload(&all).await;
    let store = clients.connected_store(&declaring.rig, "main").await;
    clients.all_healthy(&store).await;
    // When it joins, it has the cluster's keys, which the others could not give it meanwhile.
    declaring.reload(&without(&all, "hsm-3")).await;
    clients.watch_until(&store, are_healthy(2)).await;
    let making = a_key_on_its_way(&declaring, &clients, &store, &["hsm-1", "hsm-2"]).await;
    declaring.reload(&all).await;
    clients.watch_until(&store, are_healthy(3)).await;
    for hsm in ["hsm-1", "hsm-2"] {
        declaring.rig.faults(hsm).unmark("hang");
    }
    let key = making.await.expect("it ends").expect("two HSMs have it").key_id;
    let ciphertext = clients.encrypt(&key, &0_usize.to_be_bytes()).await;
    wait_async(|| async { (told(&clients).await[0].nodes[2].keys_missing == 0).then_some(()) }).await;
    drain(&mut clients, &declaring, "hsm-1").await;
    drain(&mut clients, &declaring, "hsm-2").await;
    all_open(&mut clients, &[ciphertext]).await;
    assert!(!declaring.log().contains("a key is missing on a node"), "nobody asked where it was not");
}

#[tokio::test]
async fn a_key_that_was_being_made_when_the_daemon_died_is_settled_though_one_of_its_hsms_was_removed() {
    let (mut declaring, mut clients) = Declaring::over(Rig::new().faulty()).await;
    let store = clients.connected_store(&declaring.rig, "main").await;
    clients.all_healthy(&store).await;
    let three = ["hsm-1", "hsm-2", "hsm-3"];
    let making = a_key_on_its_way(&declaring, &clients, &store, &three).await;
    declaring.declare(&without(&declaring.configuration(), "hsm-3"));
    declaring.begin_anew();
    making.await.expect("it ends").expect_err("its daemon is gone");
    for hsm in three {
        declaring.rig.faults(hsm).unmark("hang");
    }
    let mut clients = declaring.clients().await;
    clients.watch_until(&store, are_healthy(2)).await;
    // As long as it is not settled, the same request is told that the key is still being made.
    wait_async(|| async { clients.clone().keys.create_key(named_request(&store)).await.ok() }).await;
}
