//! `kill -9` at every step of a rotation: the next daemon finds out what each HSM has, and nobody is locked out.

use std::time::Duration;

use faulty_pkcs11::Function::C_SetPIN;
use faulty_pkcs11::Rule;

use super::{HSMS, versions};
use crate::rig::{Clients, Rig, kill, pb, wait_async};

/// Kills the daemon at a stop point, and starts another one.
async fn killed_at(rig: &mut Rig, point: &str) {
    rig.wait_until_stopped_at(point).await;
    rig.kill_daemon();
    rig.let_pass(point);
}

/// The store is CONNECTED, with every HSM, and works; each HSM has refused at most one login.
async fn all_is_well(rig: &Rig, clients: &mut Clients, store: &str, point: &str) -> pb::KeyStore {
    let settled = clients.settled(store).await;
    assert_eq!(settled.connection_state(), pb::ConnectionState::Connected, "{point}: {settled:?}");
    let healthy = clients.all_healthy(store).await;
    clients.a_key_works(store).await;
    for hsm in HSMS {
        assert!(rig.refusals(hsm) <= 1, "{point}: {hsm} refused {} logins", rig.refusals(hsm));
    }
    healthy
}

#[tokio::test]
async fn a_daemon_killed_at_any_step_of_a_rotation_costs_each_hsm_at_most_one_refused_login() {
    let points = [
        "new-password-sealed",
        "candidate-written",
        "set-pin-begun",
        "set-pin-answered",
        "candidate-login-begun",
        "candidate-confirmed",
    ];
    for point in points {
        let mut rig = Rig::new().rotating().seams().faulty().start();
        let mut clients = rig.clients().await;
        let store = clients.store(&rig, "main").await;
        rig.stop_at(point);
        clients.connect(&store).await;
        killed_at(&mut rig, point).await;
        rig.start_daemon();
        let mut clients = rig.clients().await;
        let told = all_is_well(&rig, &mut clients, &store, point).await;
        // One was changed before the kill, and is known to be. Otherwise the connect that goes on changes all of them.
        let one_alone = HSMS.map(|hsm| usize::from(rig.faults(hsm).count(C_SetPIN) > 0)).iter().sum::<usize>() == 1;
        assert_eq!(
            one_alone,
            !matches!(point, "new-password-sealed" | "candidate-written" | "set-pin-begun"),
            "{point}"
        );
        assert_eq!(versions(&told).iter().filter(|version| **version == 1).count(), if one_alone { 2 } else { 0 });
        let again = clients.connect_again(&store).await;
        assert!(versions(&again).iter().all(|version| *version == versions(&again)[0]), "{point}: {again:?}");
    }
}

#[tokio::test]
async fn a_daemon_killed_while_an_hsm_changes_its_password_waits_for_it_to_be_done() {
    let mut rig = Rig::new().rotating().faulty().start();
    let mut clients = rig.clients().await;
    let store = clients.store(&rig, "main").await;
    for hsm in HSMS {
        rig.faults(hsm).set([Rule::block(C_SetPIN).during("busy")]);
        rig.faults(hsm).mark("busy");
    }
    clients.connect(&store).await;
    let is_in_the_call = |hsm: &&str| rig.faults(hsm).count(C_SetPIN) > 0;
    wait_async(|| async { HSMS.iter().any(is_in_the_call).then_some(()) }).await;
    rig.kill_daemon();
    rig.start_daemon();
    for hsm in HSMS {
        rig.faults(hsm).unmark("busy");
    }
    let mut clients = rig.clients().await;
    let told = all_is_well(&rig, &mut clients, &store, "in the call").await;
    assert_eq!(versions(&told).iter().filter(|version| **version == 2).count(), 1, "{told:?}");
    assert_eq!(HSMS.map(|hsm| rig.refusals(hsm)), [0; 3]);
}

#[tokio::test]
async fn a_second_kill_while_the_first_one_is_settled_needs_no_operator() {
    let mut rig = Rig::new().rotating().seams().faulty().start();
    let mut clients = rig.clients().await;
    let store = clients.store(&rig, "main").await;
    rig.stop_at("set-pin-answered");
    clients.connect(&store).await;
    killed_at(&mut rig, "set-pin-answered").await;
    // The password was changed on one HSM, and nobody has written it down. Nor is the login that tells it answered.
    rig.stop_at("candidate-login-begun");
    rig.start_daemon();
    killed_at(&mut rig, "candidate-login-begun").await;
    rig.start_daemon();
    let mut clients = rig.clients().await;
    let told = all_is_well(&rig, &mut clients, &store, "twice").await;
    assert_eq!(versions(&told).iter().filter(|version| **version == 2).count(), 1);
}

#[tokio::test]
async fn a_worker_killed_at_any_moment_of_a_connect_leaves_its_token_whole_and_its_password_known() {
    let rig = Rig::new().rotating().faulty().start();
    let mut clients = rig.clients().await;
    let store = clients.store(&rig, "main").await;
    for round in 0..20_u32 {
        clients.connect(&store).await;
        let before = rig.refusals("hsm-1");
        // Spread over the time in which it logs in, is given a new password, and logs in with that.
        let moment = Duration::from_millis(u64::from(round) * 37 % 600);
        let killed = tokio::time::timeout(moment, clients.settled(&store)).await;
        for pid in rig.workers_of("hsm-1") {
            kill(pid);
        }
        let settled = match killed {
            Ok(settled) => settled,
            Err(_) => clients.settled(&store).await,
        };
        assert_eq!(settled.connection_state(), pb::ConnectionState::Connected, "round {round}: {settled:?}");
        clients.all_healthy(&store).await;
        assert!(rig.refusals("hsm-1") <= before + 1, "round {round}");
        clients.disconnect(&store).await;
    }
    assert!(HSMS.iter().all(|hsm| !rig.opens(hsm, &rig.password())));
}
