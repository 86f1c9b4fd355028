//! HSMs that are declared otherwise while their key store is connected: they join, are drained and leave.

use std::cell::Cell;

use faulty_pkcs11::Function::{C_Encrypt, C_EncryptInit, C_Login};
use faulty_pkcs11::Rule;

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

async fn drain(clients: &mut Clients, declaring: &Declaring, hsm: &str) {
    let (cluster_id, hsm_id) = (declaring.rig.cluster_id(), hsm.to_owned());
    let request = pb::DrainHsmRequest { cluster_id, hsm_id, note: "to be looked at".to_owned(), drain_timeout: None };
    clients.clusters.drain_hsm(request).await.expect("it is known");
}

fn is_healthy(node: &pb::NodeConnection) -> bool {
    node.health() == pb::HsmHealth::Healthy
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
    let told = clients.watch_until(&store, |store| store.nodes.len() == 3).await;
    assert_eq!(told.nodes[2].health(), pb::HsmHealth::Drained);
    assert_eq!(told.nodes[2].keys_missing, 3);

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
        fewest.set(fewest.get().min(store.nodes.iter().filter(|node| is_healthy(node)).count()));
        store.nodes.len() == 3 && store.nodes.iter().all(is_larger)
    });
    told.await;
    assert_eq!(fewest.get(), 2, "one at a time");
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
    let hsms: Vec<_> = told.nodes.iter().map(|node| node.hsm_id.as_str()).collect();
    assert_eq!(hsms, ["hsm-1", "hsm-3"]);
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
    let request = pb::DescribeKeyStoresRequest::default();
    let told = clients.stores.describe_key_stores(request).await.expect("it is told").into_inner().key_stores.remove(0);
    let hsms: Vec<_> = told.nodes.iter().map(|node| node.hsm_id.as_str()).collect();
    assert_eq!((told.connection_state(), &hsms[..]), (pb::ConnectionState::Connecting, &["hsm-1", "hsm-2"][..]));
    for hsm in ["hsm-1", "hsm-2"] {
        declaring.rig.faults(hsm).unmark("hang");
    }
    let is_there = |store: &pb::KeyStore| store.nodes.iter().any(|node| node.hsm_id == "hsm-3");
    clients.watch_until(&store, |store| is_there(store) && are_healthy(2)(store)).await;
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
    faults.unmark("hang");
    let ciphertext = call.await.expect("it ends").expect("it was let end").into_inner().ciphertext;
    assert_eq!(clients.settled(&store).await.connection_state(), pb::ConnectionState::Disconnected);

    for hsm in ["hsm-2", "hsm-3"] {
        clients.resume_hsm(&declaring.rig.cluster_id(), hsm, false).await;
    }
    clients.connect(&store).await;
    assert_eq!(clients.settled(&store).await.connection_state(), pb::ConnectionState::Connected);
    clients.watch_until(&store, are_healthy(2)).await;
    assert_eq!(clients.decrypt(&ciphertext).await.expect("its key is there"), b"still");
}
