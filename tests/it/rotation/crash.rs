//! `kill -9` at every step of a rotation: the next daemon finds out what each HSM has, and nobody is locked out.

use faulty_pkcs11::Function::C_SetPIN;

use super::{HSMS, versions};
use crate::rig::{Clients, Rig, pb};

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
    let points =
        ["candidate-written", "set-pin-begun", "set-pin-answered", "candidate-login-begun", "candidate-confirmed"];
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
        assert_eq!(one_alone, !matches!(point, "candidate-written" | "set-pin-begun"), "{point}");
        assert_eq!(versions(&told).iter().filter(|version| **version == 1).count(), if one_alone { 2 } else { 0 });
        let again = clients.connect_again(&store).await;
        assert!(versions(&again).iter().all(|version| *version == versions(&again)[0]), "{point}: {again:?}");
    }
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
