//! A program of the operator's changes the password, for all HSMs of the cluster in one run.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use super::{HSMS, node, served, versions};
use crate::rig::{Clients, Rig, Served, kill, pb, wait_async};

/// A daemon whose cluster has a program that fails as `mode` says; and a key store, not connected yet.
async fn ready(mode: &'static str, timeout: &'static str) -> (Served, Rig, Clients, String) {
    let (served, rig) = served(Rig::new().faulty(), move |rig| {
        let program = rig.home.path().join("program.sh");
        std::fs::write(&program, include_str!("program.sh")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
        std::fs::write(rig.home.path().join("mode"), mode).unwrap();
        let mut words = "\"program.sh\", \"{user}\"".to_owned();
        for hsm in HSMS {
            write!(words, ", {:?}", rig.token_configuration(hsm)).unwrap();
        }
        format!("password_rotation = \"command\"\nrotation_command = [{words}]\nrotation_timeout = \"{timeout}\"")
    })
    .await;
    let mut clients = served.clients_on_the_socket().await;
    let store = clients.store(&rig, "main").await;
    (served, rig, clients, store)
}

/// Connected, every HSM becomes healthy, and has refused so many logins.
async fn connects(rig: &Rig, clients: &mut Clients, store: &str, refusals: [usize; 3]) -> pb::KeyStore {
    let settled = clients.settled(store).await;
    assert_eq!(settled.connection_state(), pb::ConnectionState::Connected, "{settled:?}");
    let healthy = clients.all_healthy(store).await;
    clients.a_key_works(store).await;
    assert_eq!(HSMS.map(|hsm| rig.refusals(hsm)), refusals);
    healthy
}

fn runs(rig: &Rig) -> usize {
    std::fs::read_to_string(rig.home.path().join("runs")).unwrap_or_default().lines().count()
}

#[tokio::test]
async fn a_program_changes_the_password_once_for_all_hsms_while_nobody_is_logged_in() {
    let (served, rig, mut clients, store) = ready("good", "60s").await;
    clients.connect(&store).await;
    let first = connects(&rig, &mut clients, &store, [0; 3]).await;
    assert_eq!(versions(&first), [2; 3]);
    assert!(HSMS.iter().all(|hsm| !rig.opens(hsm, &rig.password())));
    assert_eq!(versions(&clients.connect_again(&store).await), [3; 3]);
    assert_eq!(runs(&rig), 2);
    assert_eq!(std::fs::read_to_string(rig.home.path().join("workers")).unwrap(), "", "somebody was logged in");
    let new = std::fs::read_to_string(rig.home.path().join("passwords")).unwrap();
    assert_eq!(new.lines().count(), 2);
    let is_told = |password: &str| served.log().contains(password);
    assert!(!is_told(&rig.password()) && !new.lines().any(is_told), "what the program prints goes nowhere");
    drop(served);
}

#[tokio::test]
async fn what_a_program_that_failed_or_hung_has_changed_is_found_out_by_logins() {
    let cases = [
        // That nothing was changed is seen on the first HSM, and is then what the others are asked about first.
        ("fail-before", "60s", [1; 3], [1, 0, 0], "exit status: 3"),
        ("fail-after", "60s", [2; 3], [0; 3], "exit status: 4"),
        ("hang-before", "2s", [1; 3], [1, 0, 0], "did not end within 2s"),
        // It needs a while for three HSMs before it hangs.
        ("hang-after", "10s", [2; 3], [0; 3], "did not end within 10s"),
    ];
    for (mode, timeout, expected, refusals, why) in cases {
        let (served, rig, mut clients, store) = ready(mode, timeout).await;
        clients.connect(&store).await;
        let told = connects(&rig, &mut clients, &store, refusals).await;
        assert_eq!(versions(&told), expected, "{mode}");
        assert!(told.nodes.iter().all(|node| node.last_error.contains(why)), "{mode}: {told:?}");
        assert_eq!(runs(&rig), 1, "{mode}: what may have been done is not done again");
        std::fs::write(rig.home.path().join("mode"), "good").unwrap();
        assert_eq!(versions(&clients.connect_again(&store).await), [3; 3], "{mode}");
        drop(served);
    }
}

#[tokio::test]
async fn a_program_that_would_outlast_the_connect_is_killed_in_time_and_the_store_connects() {
    let (mut served, rig, clients, store) = ready("hang-before", "10m").await;
    drop(clients);
    served.kill_daemon();
    served.put("keyway.toml", &format!("{}\n[key_stores]\nconnect_timeout = \"40s\"\n", served.configuration()));
    let (served, rig, mut clients) = restarted(served, rig).await;
    clients.connect(&store).await;
    let told = connects(&rig, &mut clients, &store, [1, 0, 0]).await;
    assert!(told.nodes[0].last_error.contains("did not end within"), "{told:?}");
    drop(served);
}

#[tokio::test]
async fn hsms_of_which_a_program_has_changed_some_cost_at_most_one_refused_login_each_and_are_left_alone_then() {
    for (mode, expected, refusals) in [("first-alone", [2, 1, 1], [0, 1, 1]), ("all-but-first", [1, 2, 2], [1; 3])] {
        let (served, rig, mut clients, store) = ready(mode, "60s").await;
        clients.connect(&store).await;
        let told = connects(&rig, &mut clients, &store, refusals).await;
        assert_eq!(versions(&told), expected, "{mode}");
        std::fs::write(rig.home.path().join("mode"), "good").unwrap();
        let again = clients.connect_again(&store).await;
        assert_eq!((versions(&again), runs(&rig)), (expected, 1), "no program can be told the old one");
        let why = |hsm: &&str| node(&again, hsm).last_error.contains("another password than the others");
        assert!(HSMS.iter().any(why), "{mode}: {again:?}");
        assert_eq!(HSMS.map(|hsm| rig.refusals(hsm)), refusals, "{mode}");
        drop(served);
    }
}

#[tokio::test]
async fn no_program_is_run_while_an_hsm_that_was_away_has_not_told_what_it_has() {
    let (served, rig, mut clients, store) = ready("good", "60s").await;
    let (here, away) = (rig.path("hsms/hsm-3/kmsuser/tokens"), rig.path("hsms/hsm-3/kmsuser/away"));
    std::fs::rename(&here, &away).unwrap();
    clients.connect(&store).await;
    let told = clients.settled(&store).await;
    assert_eq!((told.connection_state(), versions(&told)), (pb::ConnectionState::Connected, [2, 2, 0]));
    clients.disconnect(&store).await;
    clients.connect(&store).await;
    let told = clients.settled(&store).await;
    assert_eq!((told.connection_state(), versions(&told)), (pb::ConnectionState::Connected, [2, 2, 0]));
    assert_eq!(runs(&rig), 1);
    assert!(served.log().contains("what came of an earlier rotation is not known there yet"));
    std::fs::rename(&away, &here).unwrap();
    let back = connects(&rig, &mut clients, &store, [0, 0, 1]).await;
    assert_eq!(versions(&back), [2, 2, 1]);
    drop(served);
}

#[tokio::test]
async fn no_program_is_run_while_an_hsm_refuses_its_password() {
    let (served, rig, mut clients, store) = ready("good", "60s").await;
    clients.connect(&store).await;
    connects(&rig, &mut clients, &store, [0; 3]).await;
    clients.disconnect(&store).await;
    rig.set_password_as_so("hsm-2", "outsider1");
    clients.connect(&store).await;
    let told = clients.settled(&store).await;
    assert_eq!(told.connection_state(), pb::ConnectionState::Connected, "{told:?}");
    assert_eq!(node(&told, "hsm-2").health(), pb::HsmHealth::LoginRefused);
    assert!(node(&told, "hsm-2").last_error.contains("it refuses its password"), "{told:?}");
    assert_eq!((runs(&rig), HSMS.map(|hsm| rig.refusals(hsm))), (1, [0, 1, 0]));
    drop(served);
}

#[tokio::test]
async fn a_daemon_killed_before_or_after_the_program_costs_each_hsm_at_most_one_refused_login() {
    for (point, version, refusals) in [("rotation-command-begun", 3, 1), ("rotation-command-ended", 2, 0)] {
        let (mut served, rig, mut clients, store) = ready("good", "60s").await;
        let seams = served.data_dir().join("seams");
        std::fs::write(seams.join(format!("stop-{point}")), "").unwrap();
        clients.connect(&store).await;
        let reached = seams.join(format!("reached-{point}"));
        wait_async(|| async { reached.exists().then_some(()) }).await;
        served.kill_daemon();
        std::fs::remove_file(seams.join(format!("stop-{point}"))).unwrap();
        let (served, rig, mut clients) = restarted(served, rig).await;
        let told = connects(&rig, &mut clients, &store, [refusals; 3]).await;
        assert_eq!(versions(&told), [version; 3], "{point}");
        drop(served);
    }
}

#[tokio::test]
async fn a_new_daemon_waits_for_the_program_that_a_killed_one_left_running() {
    let (mut served, rig, mut clients, store) = ready("slow", "60s").await;
    clients.connect(&store).await;
    wait_async(|| async { (runs(&rig) == 1).then_some(()) }).await;
    served.kill_daemon();
    let (served, rig, mut clients) = restarted(served, rig).await;
    let told = connects(&rig, &mut clients, &store, [0; 3]).await;
    assert_eq!((versions(&told), runs(&rig)), ([2; 3], 1));
    drop(served);
}

#[tokio::test]
async fn a_wrong_password_never_reaches_the_program() {
    let (served, rig, mut clients, _) = ready("good", "60s").await;
    let told = clients.stores.describe_key_stores(pb::DescribeKeyStoresRequest::default()).await.unwrap();
    let right = told.into_inner().key_stores.remove(0).key_store_id;
    clients.stores.delete_key_store(pb::DeleteKeyStoreRequest { key_store_id: right }).await.unwrap();
    let request = pb::CreateKeyStoreRequest {
        key_store_name: "wrong".to_owned(),
        cluster_id: rig.cluster_id(),
        key_store_password: "mistyped1".to_owned(),
        trust_anchor_certificate: rig.trust_anchor(),
    };
    let store = clients.stores.create_key_store(request).await.unwrap().into_inner().key_store_id;
    clients.connect(&store).await;
    let failed = clients.settled(&store).await;
    assert_eq!(failed.connection_error_code(), pb::ConnectionErrorCode::InvalidCredentials);
    assert_eq!(runs(&rig), 0);
    assert_eq!(HSMS.map(|hsm| rig.refusals(hsm)).iter().sum::<usize>(), 1);
    drop(served);
}

#[tokio::test]
async fn nobody_logs_in_before_a_program_that_cannot_be_killed_has_ended() {
    let (served, rig, mut clients, store) = ready("leave", "20s").await;
    clients.connect(&store).await;
    for attempt in ["the one that began it", "a later one"] {
        let failed = clients.settled(&store).await;
        assert_eq!(failed.connection_error_code(), pb::ConnectionErrorCode::InternalError, "{attempt}: {failed:?}");
        let told = &failed.connection_error_message;
        assert!(told.contains("rotation_command") && told.contains(".kmsuser.program"), "{attempt}: {told}");
        assert!(HSMS.iter().all(|hsm| rig.workers_of(hsm).is_empty()), "{attempt}");
        clients.disconnect(&store).await;
        clients.connect(&store).await;
    }
    let left = std::fs::read_to_string(rig.home.path().join("left")).unwrap();
    kill(left.trim().parse().unwrap());
    std::fs::write(rig.home.path().join("mode"), "good").unwrap();
    let told = connects(&rig, &mut clients, &store, [0; 3]).await;
    assert_eq!((versions(&told), runs(&rig)), ([3; 3], 2), "what it changed is known, and changed anew");
    drop(served);
}

#[tokio::test]
async fn a_store_is_disconnected_only_when_the_program_has_ended_and_connects_again() {
    let (served, rig, mut clients, store) = ready("held", "60s").await;
    let (hold, ended) = (rig.home.path().join("hold"), rig.home.path().join("ended"));
    std::fs::write(&hold, "").unwrap();
    clients.connect(&store).await;
    wait_async(|| async { (runs(&rig) == 1).then_some(()) }).await;
    let request = pb::DisconnectKeyStoreRequest { key_store_id: store.clone(), drain_timeout: None };
    clients.stores.disconnect_key_store(request).await.unwrap();
    let early = tokio::time::timeout(Duration::from_secs(2), clients.settled(&store)).await;
    assert!(early.is_err(), "the program is at work: {early:?}");
    std::fs::remove_file(&hold).unwrap();
    let disconnected = clients.settled(&store).await;
    assert_eq!(disconnected.connection_state(), pb::ConnectionState::Disconnected);
    assert!(ended.exists());

    clients.connect(&store).await;
    let told = connects(&rig, &mut clients, &store, [0; 3]).await;
    assert_eq!((versions(&told), runs(&rig)), ([3; 3], 2));
    drop(served);
}

/// Another daemon on the same data, where the former one was killed.
async fn restarted(mut served: Served, rig: Rig) -> (Served, Rig, Clients) {
    let starting = tokio::task::spawn_blocking(move || {
        served.start_daemon();
        (served, rig)
    });
    let (served, rig) = starting.await.expect("it starts");
    let clients = served.clients_on_the_socket().await;
    (served, rig, clients)
}
