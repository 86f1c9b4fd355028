//! The ten reasons why connecting fails: each happens, is told with what to do, stays to be read, and goes with success.

use faulty_pkcs11::Function::*;
use faulty_pkcs11::ckr::*;
use faulty_pkcs11::{On, Rule};
use pb::ConnectionErrorCode as Code;

use crate::rig::{Clients, Rig, Served, pb, wait_async};

const HSMS: [&str; 2] = ["hsm-1", "hsm-2"];

/// A rig of two HSMs that fail when they are told to, with a store that was never connected.
async fn ready() -> (Rig, Clients, String) {
    let rig = Rig::new().nodes(2).zones(2).faulty().start();
    let mut clients = rig.clients().await;
    let store = clients.store(&rig, "main").await;
    (rig, clients, store)
}

impl Clients {
    /// Connects, which fails for this reason; the reason is whole, and can still be read after the disconnect.
    async fn fails_to_connect(&mut self, store: &str, code: Code) -> pb::ConnectionError {
        self.connect(store).await;
        let failed = self.settled(store).await;
        assert_eq!(failed.connection_state(), pb::ConnectionState::Failed, "{failed:?}");
        let error = failed.last_connection_error.clone().expect("it is told");
        assert_eq!((failed.connection_error_code(), error.code()), (code, code), "{failed:?}");
        assert!(!error.message.is_empty() && failed.connection_error_message == error.message, "{failed:?}");
        assert!(!error.remedy.is_empty() && failed.connection_error_remedy == error.remedy, "{failed:?}");
        let anchor = code.as_str_name().trim_start_matches("CONNECTION_ERROR_CODE_");
        assert!(error.help_url.ends_with(anchor) && error.time.is_some(), "{failed:?}");
        self.disconnect(store).await;
        let told = self.describe_store(store).await;
        assert_eq!(told.last_connection_error.as_ref(), Some(&error));
        assert_eq!(told.connection_error_code(), Code::Unspecified);
        error
    }

    async fn connects(&mut self, store: &str) {
        self.connect(store).await;
        let told = self.settled(store).await;
        assert_eq!(told.connection_state(), pb::ConnectionState::Connected, "{told:?}");
        assert_eq!(told.last_connection_error, None);
    }
}

/// A login that both HSMs answer in the same way.
async fn refused_login(answer: u64, code: Code) -> (Rig, Clients, String, pb::ConnectionError) {
    let (rig, mut clients, store) = ready().await;
    for hsm in HSMS {
        rig.faults(hsm).set([Rule::fail(C_Login, answer)]);
    }
    let error = clients.fails_to_connect(&store, code).await;
    assert!(HSMS.contains(&error.hsm_id.as_str()), "{error:?}");
    HSMS.iter().for_each(|hsm| rig.faults(hsm).clear());
    (rig, clients, store, error)
}

#[tokio::test]
async fn invalid_credentials() {
    let (rig, mut clients, store, _) = refused_login(CKR_PIN_INCORRECT, Code::InvalidCredentials).await;
    // The same word again, from an operator who has put the HSMs right.
    let request =
        pb::UpdateKeyStoreRequest { key_store_password: Some(rig.password()), ..super::update::update(&store) };
    clients.update_store(request).await;
    clients.connects(&store).await;
}

#[tokio::test]
async fn user_locked_out() {
    let (rig, mut clients, store, _) = refused_login(CKR_PIN_LOCKED, Code::UserLockedOut).await;
    let request =
        pb::UpdateKeyStoreRequest { key_store_password: Some(rig.password()), ..super::update::update(&store) };
    clients.update_store(request).await;
    clients.connects(&store).await;
}

#[tokio::test]
async fn user_logged_in() {
    let (_rig, mut clients, store, _) = refused_login(CKR_USER_ALREADY_LOGGED_IN, Code::UserLoggedIn).await;
    clients.connects(&store).await;
}

#[tokio::test]
async fn user_not_found() {
    let (_rig, mut clients, store, _) = refused_login(CKR_USER_PIN_NOT_INITIALIZED, Code::UserNotFound).await;
    // No password was compared, so that nothing was spent.
    clients.connects(&store).await;
}

#[tokio::test]
async fn a_token_without_its_user_is_told_as_such_and_the_others_serve() {
    let rig = Rig::new().nodes(3).zones(3).start();
    let mut clients = rig.clients().await;
    let store = clients.store(&rig, "main").await;
    rig.make_token_without_user("hsm-1");
    clients.connect(&store).await;
    let told = clients.settled(&store).await;
    assert_eq!(told.connection_state(), pb::ConnectionState::Connected, "{told:?}");
    let without = told.nodes.iter().find(|node| node.hsm_id == "hsm-1").expect("one of its nodes");
    assert_eq!(without.health(), pb::HsmHealth::LoginRefused);
    assert!(without.last_error.contains("no crypto user"), "{without:?}");
    clients.key(&store).await;
}

#[tokio::test]
async fn network_errors() {
    let (rig, mut clients, store) = ready().await;
    let away = |there| {
        for hsm in HSMS {
            let faults = rig.faults(hsm);
            if there { faults.clear() } else { faults.set([Rule::fail(On::all(), CKR_DEVICE_REMOVED)]) }
        }
    };
    away(false);
    let error = clients.fails_to_connect(&store, Code::NetworkErrors).await;
    assert!(HSMS.iter().all(|hsm| error.message.contains(hsm)), "each is named: {error:?}");
    away(true);
    clients.connects(&store).await;
}

#[tokio::test]
async fn network_errors_when_connect_timeout_runs_out() {
    let mut rig = Rig::new().nodes(2).zones(2).faulty().start();
    assert!(rig.stop_daemon().success());
    let mut served = Served::start(&rig, &["admin"]);
    served.restart_with(|text| format!("key_stores = {{ connect_timeout = \"1s\" }}\n{text}")).await;
    let mut clients = served.clients_on_the_socket().await;
    let store = clients.store(&rig, "main").await;
    for hsm in HSMS {
        rig.faults(hsm).mark("hang");
        rig.faults(hsm).set([Rule::block(C_Login).during("hang")]);
    }
    let began = std::time::Instant::now();
    let error = clients.fails_to_connect(&store, Code::NetworkErrors).await;
    assert!(
        began.elapsed() >= std::time::Duration::from_secs(1) && error.message.contains("connect_timeout"),
        "{error:?}"
    );
    HSMS.iter().for_each(|hsm| rig.faults(hsm).unmark("hang"));
    served.restart_with(|text| text.replace("connect_timeout = \"1s\"", "")).await;
    // An attempt that was begun and never answered may be made once more, since an operator connects again.
    served.clients_on_the_socket().await.connects(&store).await;
}

#[tokio::test]
async fn internal_error() {
    let (rig, mut clients, store) = ready().await;
    for hsm in HSMS {
        rig.faults(hsm).set([Rule::crash(C_Login)]);
    }
    clients.fails_to_connect(&store, Code::InternalError).await;
    HSMS.iter().for_each(|hsm| rig.faults(hsm).clear());
    // Connecting again is an operator's word: what was never answered may be asked once more.
    clients.connects(&store).await;
}

#[tokio::test]
async fn insufficient_cloudhsm_hsms() {
    let rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = rig.clients().await;
    let store = clients.store(&rig, "main").await;
    for hsm in HSMS {
        let request =
            pb::DrainHsmRequest { cluster_id: rig.cluster_id(), hsm_id: hsm.to_owned(), ..Default::default() };
        clients.clusters.drain_hsm(request).await.expect("it is taken out of use");
    }
    let error = clients.fails_to_connect(&store, Code::InsufficientCloudhsmHsms).await;
    let output = rig.keyway(&["key-store", "connect", "main", "--wait"]).output().expect("it runs");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let step = format!("failed   cluster  prerequisites\n    {}\n    {}\n", error.message, error.remedy);
    assert!(output.status.code() == Some(1) && told.contains(&step), "what the cluster lacks is a step: {told}");
    clients.disconnect(&store).await;
    clients.resume_hsm(&rig.cluster_id(), "hsm-2", false).await;
    clients.connects(&store).await;
}

#[tokio::test]
async fn subnet_not_found_and_insufficient_free_addresses_in_subnet() {
    let mut rig = Rig::new().nodes(2).zones(2).start();
    assert!(rig.stop_daemon().success());
    let mut served = Served::start(&rig, &["admin"]);
    let store = served.clients_on_the_socket().await.store(&rig, "main").await;
    let zone = "zone = \"us-east-1a\"";
    let cases =
        [("present = false", Code::SubnetNotFound), ("free_addresses = 0", Code::InsufficientFreeAddressesInSubnet)];
    for (fault, code) in cases {
        served.restart_with(|text| text.replace(zone, &format!("{zone}\n{fault}"))).await;
        let mut clients = served.clients_on_the_socket().await;
        let error = clients.fails_to_connect(&store, code).await;
        assert!(error.message.contains("subnet-a1"), "{error:?}");
        served.restart_with(|text| text.replace(&format!("\n{fault}"), "")).await;
    }
    served.clients_on_the_socket().await.connects(&store).await;
}

// CLUSTER_NOT_FOUND, with its remedy: update::cluster::a_store_whose_cluster_is_gone_is_told_so_and_lives_on_in_a_restored_one.

#[tokio::test]
async fn a_failure_is_kept_over_a_restart_and_a_connected_store_stays_so_whatever_fails() {
    let (mut rig, mut clients, store) = ready().await;
    let all_away = |rig: &Rig| {
        for hsm in HSMS {
            rig.faults(hsm).set([Rule::fail(On::all(), CKR_DEVICE_REMOVED)]);
        }
    };
    all_away(&rig);
    clients.connect(&store).await;
    let failed = clients.settled(&store).await;
    rig.kill_daemon();
    rig.start_daemon();
    let mut clients = rig.clients().await;
    let told = clients.describe_store(&store).await;
    assert_eq!(told.connection_state(), pb::ConnectionState::Failed);
    // But for the port that its pages are served on.
    let error = |store: pb::KeyStore| {
        store.last_connection_error.map(|error| pb::ConnectionError { help_url: String::new(), ..error })
    };
    assert_eq!(error(told), error(failed));
    clients.disconnect(&store).await;
    HSMS.iter().for_each(|hsm| rig.faults(hsm).clear());
    clients.connects(&store).await;
    clients.all_healthy(&store).await;

    all_away(&rig);
    let gone = |node: &pb::NodeConnection| node.health() == pb::HsmHealth::Unreachable;
    let told = clients.watch_until(&store, |store| store.nodes.iter().all(gone)).await;
    assert_eq!(told.connection_state(), pb::ConnectionState::Connected);
    rig.kill_daemon();
    rig.start_daemon();
    let mut clients = rig.clients().await;
    let told = clients.watch_until(&store, |store| store.nodes.iter().all(gone)).await;
    assert_eq!((told.connection_state(), told.connect_attempt), (pb::ConnectionState::Connected, 2));
    HSMS.iter().for_each(|hsm| rig.faults(hsm).clear());
    clients.all_healthy(&store).await;
}

#[tokio::test]
async fn the_command_tells_each_step_and_at_the_end_code_message_hsm_and_remedy() {
    let (rig, mut clients, store) = ready().await;
    for hsm in HSMS {
        rig.faults(hsm).set([Rule::fail(C_Login, CKR_PIN_LOCKED)]);
    }
    let output = rig.keyway(&["key-store", "connect", "main", "--wait"]).output().expect("it runs");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{told}");
    for part in ["hsm-1", "reach", "hsm-2", "locked the crypto user", "USER_LOCKED_OUT", "reset kmsuser's password"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    // Also to who looks when it is over.
    let request = pb::WatchKeyStoreRequest { key_store_id: store.clone() };
    let mut later = clients.stores.watch_key_store(request).await.expect("it can be watched").into_inner();
    let steps = later.message().await.expect("the stream lasts").expect("the present state comes first").steps;
    assert!(HSMS.iter().all(|hsm| steps.iter().any(|step| step.hsm_id == *hsm)), "{steps:?}");
    drop(later);
    clients.disconnect(&store).await;
    HSMS.iter().for_each(|hsm| rig.faults(hsm).clear());
    let password = rig.home.path().join("password");
    std::fs::write(&password, rig.password()).expect("our directory");
    let file = password.to_str().expect("ASCII");
    let output = rig.keyway(&["key-store", "update", "main", "--name", "orders", "--password-file", file]).output();
    let output = output.expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = rig.keyway(&["key-store", "connect", "orders", "--wait"]).output().expect("it runs");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("CONNECTED"), "{told}");
    assert!(HSMS.iter().all(|hsm| told.contains(hsm)), "{told}");
    assert!(told.contains("passed   cluster  prerequisites\n"), "{told}");
    wait_async(|| async { (rig.workers().len() == 2).then_some(()) }).await;
}
