//! `kmsuser`'s password is changed by connecting a key store, and by nothing else.

mod command;
mod crash;
mod escrow;
mod refusal;

use std::time::Duration;

use faulty_pkcs11::Function::C_SetPIN;

use crate::rig::{Clients, Rig, Served, kill, pb, wait_async};
use crate::update::update;

pub(crate) const HSMS: [&str; 3] = ["hsm-1", "hsm-2", "hsm-3"];
const ADMIN: &str = "platform-engineer";

/// Which version of the password each HSM has, as the store tells it.
pub(crate) fn versions(store: &pb::KeyStore) -> [i32; 3] {
    HSMS.map(|hsm| node(store, hsm).password_version)
}

pub(crate) fn node<'a>(store: &'a pb::KeyStore, hsm: &str) -> &'a pb::NodeConnection {
    store.nodes.iter().find(|node| node.hsm_id == hsm).expect("one of its nodes")
}

fn rotated(store: &pb::KeyStore) -> Duration {
    let time = store.password_rotate_time.expect("it was rotated");
    Duration::new(time.seconds.try_into().unwrap(), time.nanos.try_into().unwrap())
}

/// A daemon that can be stopped at each of its steps, with what more is said of the cluster.
async fn served(
    rig: crate::rig::Builder,
    of_the_cluster: impl FnOnce(&Rig) -> String + Send + 'static,
) -> (Served, Rig) {
    let starting = Served::over(rig, &[ADMIN], |rig| {
        std::fs::create_dir_all(rig.home.path().join("data/seams")).unwrap();
        of_the_cluster(rig)
    });
    starting.await
}

impl Clients {
    /// Connects anew, until every HSM is healthy.
    pub async fn connect_again(&mut self, store: &str) -> pb::KeyStore {
        self.disconnect(store).await;
        self.connect(store).await;
        self.settled(store).await;
        self.all_healthy(store).await
    }

    pub async fn a_key_works(&mut self, store: &str) {
        let key = self.key(store).await.key_id;
        let ciphertext = self.encrypt(&key, b"x").await;
        assert_eq!(self.decrypt(&ciphertext).await.unwrap(), b"x");
    }
}

#[tokio::test]
async fn connecting_gives_every_hsm_a_password_that_nobody_had_before() {
    let rig = Rig::new().rotating().start();
    let mut clients = rig.clients().await;
    let store = clients.store(&rig, "main").await;
    assert!(HSMS.iter().all(|hsm| rig.opens(hsm, &rig.password())));
    clients.connect(&store).await;
    let connected = clients.settled(&store).await;
    assert_eq!(connected.connection_state(), pb::ConnectionState::Connected);
    assert_eq!(versions(&connected), [2; 3], "it is not CONNECTED before");
    for hsm in HSMS {
        assert!(!rig.opens(hsm, &rig.password()), "{hsm} takes the old one");
    }
    clients.all_healthy(&store).await;
    clients.a_key_works(&store).await;

    let again = clients.connect_again(&store).await;
    assert_eq!(versions(&again), [3; 3]);
    assert!(rotated(&again) > rotated(&connected));
    clients.a_key_works(&store).await;
}

#[tokio::test]
async fn neither_a_restart_nor_a_node_that_comes_back_changes_the_password() {
    let (mut rig, mut clients, store) = Rig::new().rotating().faulty().connected().await;
    let before = clients.all_healthy(&store).await;
    assert_eq!(versions(&before), [2; 3]);
    rig.kill_daemon();
    rig.start_daemon();
    let mut clients = rig.clients().await;
    clients.all_healthy(&store).await;
    kill(rig.workers_of("hsm-2")[0]);
    clients.watch_until(&store, |store| node(store, "hsm-2").worker_restarts > 0).await;
    let after = clients.all_healthy(&store).await;
    assert_eq!((versions(&after), rotated(&after)), ([2; 3], rotated(&before)));
    for hsm in HSMS {
        assert_eq!((rig.faults(hsm).count(C_SetPIN), rig.refusals(hsm)), (1, 0), "{hsm}");
    }
}

#[tokio::test]
async fn an_hsm_that_was_away_comes_back_with_its_old_password_and_gets_the_next_one() {
    let rig = Rig::new().rotating().faulty().start();
    let mut clients = rig.clients().await;
    let store = clients.store(&rig, "main").await;
    let (here, away) = (rig.path("hsms/hsm-3/kmsuser/tokens"), rig.path("hsms/hsm-3/kmsuser/away"));
    std::fs::rename(&here, &away).unwrap();
    clients.connect(&store).await;
    let connected = clients.settled(&store).await;
    assert_eq!(connected.connection_state(), pb::ConnectionState::Connected);
    assert_eq!(versions(&connected), [2, 2, 1]);

    std::fs::rename(&away, &here).unwrap();
    let back = clients.all_healthy(&store).await;
    assert_eq!(versions(&back), [2, 2, 1], "only connecting changes a password");
    assert!(rig.opens("hsm-3", &rig.password()));
    clients.a_key_works(&store).await;

    let again = clients.connect_again(&store).await;
    assert_eq!(versions(&again), [3; 3]);
    assert!(!rig.opens("hsm-3", &rig.password()));
    assert_eq!(HSMS.map(|hsm| rig.refusals(hsm)), [0; 3]);
}

#[tokio::test]
async fn a_development_cluster_keeps_its_password_unless_told_otherwise() {
    let (rig, mut clients, store) = Rig::new().connected().await;
    let connected = clients.all_healthy(&store).await;
    assert_eq!(versions(&connected), [1; 3]);
    assert_eq!(connected.password_rotate_time, None);
    assert!(HSMS.iter().all(|hsm| rig.opens(hsm, &rig.password())));
}

#[tokio::test]
async fn a_password_is_changed_once_an_interval_however_often_its_store_is_connected() {
    let (served, rig) = served(Rig::new(), |_| "rotation_interval = \"24h\"".to_owned()).await;
    let mut clients = served.clients_on_the_socket().await;
    let store = clients.connected_store(&rig, "main").await;
    let first = clients.all_healthy(&store).await;
    assert_eq!(versions(&first), [2; 3], "production rotates by itself");
    let second = clients.connect_again(&store).await;
    assert_eq!((versions(&second), rotated(&second)), ([2; 3], rotated(&first)));
    std::fs::write(served.data_dir().join("seams/clock-offset"), "86400").unwrap();
    let third = clients.connect_again(&store).await;
    assert_eq!(versions(&third), [3; 3]);
    let a_day = Duration::from_secs(86_400);
    assert!(rotated(&third) >= rotated(&first) + a_day);
    drop(served);
}

#[tokio::test]
async fn an_hsm_that_missed_a_rotation_gets_what_the_others_have_though_the_interval_is_not_over() {
    let (served, rig) = served(Rig::new().faulty(), |_| "rotation_interval = \"24h\"".to_owned()).await;
    let mut clients = served.clients_on_the_socket().await;
    let store = clients.store(&rig, "main").await;
    let (here, away) = (rig.path("hsms/hsm-3/kmsuser/tokens"), rig.path("hsms/hsm-3/kmsuser/away"));
    std::fs::rename(&here, &away).unwrap();
    clients.connect(&store).await;
    let first = clients.settled(&store).await;
    assert_eq!(versions(&first), [2, 2, 1]);
    std::fs::rename(&away, &here).unwrap();
    let second = clients.connect_again(&store).await;
    assert_eq!((versions(&second), rotated(&second)), ([2; 3], rotated(&first)));
    assert!(!rig.opens("hsm-3", &rig.password()));
    let third = clients.connect_again(&store).await;
    assert_eq!((versions(&third), rotated(&third)), ([2; 3], rotated(&first)));
    assert_eq!(HSMS.map(|hsm| rig.refusals(hsm)), [0; 3]);
    assert_eq!(HSMS.map(|hsm| rig.faults(hsm).count(C_SetPIN)), [1; 3]);
    drop(served);
}

#[tokio::test]
async fn a_clock_that_was_ahead_stops_no_rotation() {
    let (served, rig) = served(Rig::new(), |_| "rotation_interval = \"24h\"".to_owned()).await;
    let offset = served.data_dir().join("seams/clock-offset");
    std::fs::write(&offset, "8640000").unwrap();
    let mut clients = served.clients_on_the_socket().await;
    let store = clients.connected_store(&rig, "main").await;
    let ahead = clients.all_healthy(&store).await;
    std::fs::remove_file(&offset).unwrap();
    let set_right = clients.connect_again(&store).await;
    assert_eq!(versions(&set_right), [3; 3]);
    assert!(rotated(&set_right) < rotated(&ahead));
    assert_eq!(versions(&clients.connect_again(&store).await), [3; 3], "not before the interval is over");
    drop(served);
}

#[tokio::test]
async fn the_security_officer_resets_a_rotated_password_to_the_first_one_and_the_store_connects_with_its_keys() {
    let (rig, mut clients, store) = Rig::new().rotating().connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    let ciphertext = clients.encrypt(&key, b"before the reset").await;
    clients.all_healthy(&store).await;
    clients.disconnect(&store).await;
    for hsm in HSMS {
        assert!(!rig.opens(hsm, &rig.password()));
        rig.set_password_as_so(hsm, &rig.password());
        let labels: Vec<_> = rig.objects(hsm).into_iter().map(|object| object.label).collect();
        assert!(labels.contains(&format!("keyway:{key}:1")), "{hsm}: {labels:?}");
    }
    // The word that the operator gave first, and again: it is news since the rotation.
    let key_store_password = Some(rig.password());
    clients.update_store(pb::UpdateKeyStoreRequest { key_store_password, ..update(&store) }).await;
    clients.connect(&store).await;
    let connected = clients.settled(&store).await;
    assert_eq!(connected.connection_state(), pb::ConnectionState::Connected, "{connected:?}");
    assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"before the reset");
    assert!(HSMS.iter().all(|hsm| !rig.opens(hsm, &rig.password())), "it was rotated again");
}

#[tokio::test]
async fn a_password_known_to_nobody_costs_each_hsm_one_refused_login_however_often_it_is_connected() {
    let (mut rig, mut clients, store) = Rig::new().rotating().faulty().connected().await;
    clients.all_healthy(&store).await;
    clients.disconnect(&store).await;
    for hsm in HSMS {
        rig.set_password_as_so(hsm, "outsider1");
    }
    for _ in 0..3 {
        clients.connect(&store).await;
        let failed = clients.settled(&store).await;
        assert_eq!(failed.connection_error_code(), pb::ConnectionErrorCode::InvalidCredentials, "{failed:?}");
        clients.disconnect(&store).await;
        rig.kill_daemon();
        rig.start_daemon();
        clients = rig.clients().await;
    }
    let refusals = HSMS.map(|hsm| rig.refusals(hsm));
    assert!(refusals.iter().all(|refusals| *refusals <= 1) && refusals != [0; 3], "{refusals:?}");
    let told = pb::UpdateKeyStoreRequest { key_store_password: Some("outsider1".to_owned()), ..update(&store) };
    clients.update_store(told).await;
    clients.connect(&store).await;
    clients.settled(&store).await;
    let again = clients.all_healthy(&store).await;
    assert!(versions(&again).iter().all(|version| *version > 3), "{again:?}");
    assert_eq!(HSMS.map(|hsm| rig.refusals(hsm)), refusals);
}

#[tokio::test]
async fn a_store_cut_off_in_the_middle_of_a_change_is_disconnected_when_no_worker_can_make_it_any_more() {
    let rig = Rig::new().rotating().faulty().start();
    let mut clients = rig.clients().await;
    let store = clients.store(&rig, "main").await;
    for hsm in HSMS {
        rig.faults(hsm).set([faulty_pkcs11::Rule::delay(C_SetPIN, Duration::from_secs(3))]);
    }
    clients.connect(&store).await;
    let is_in_the_call = |hsm: &&str| rig.faults(hsm).count(C_SetPIN) > 0;
    let changing = wait_async(|| async { HSMS.into_iter().find(is_in_the_call) }).await;
    let now = Some(prost_types::Duration::default());
    let request = pb::DisconnectKeyStoreRequest { key_store_id: store.clone(), drain_timeout: now };
    clients.stores.disconnect_key_store(request).await.unwrap();
    assert_eq!(clients.settled(&store).await.connection_state(), pb::ConnectionState::Disconnected);
    assert!(rig.workers_of(changing).is_empty(), "it may be changing the password yet");
}

#[tokio::test]
async fn a_store_that_is_disconnected_in_the_middle_of_a_rotation_connects_again() {
    let rig = Rig::new().rotating().faulty().start();
    let mut clients = rig.clients().await;
    let store = clients.store(&rig, "main").await;
    for hsm in HSMS {
        rig.faults(hsm).set([faulty_pkcs11::Rule::delay(C_SetPIN, Duration::from_secs(1)).after()]);
    }
    clients.connect(&store).await;
    clients.watch_until(&store, |store| store.nodes.iter().any(|node| node.password_version == 0)).await;
    clients.disconnect(&store).await;
    clients.connect(&store).await;
    let connected = clients.settled(&store).await;
    assert_eq!(connected.connection_state(), pb::ConnectionState::Connected);
    clients.all_healthy(&store).await;
    clients.a_key_works(&store).await;
    assert!(HSMS.iter().all(|hsm| rig.refusals(hsm) <= 1), "{:?}", HSMS.map(|hsm| rig.refusals(hsm)));
}
