//! The trust ceremony's logins: the SO's PIN and the user's password are offered once to a token that refuses them.

use std::path::PathBuf;

use faulty_pkcs11::ckr::*;
use faulty_pkcs11::{Function::*, Outcome, Rule};

use super::{node, ready};
use crate::rig::{Rig, kill, pb, wait_async};

const OTHER_PASSWORD: &str = "another-password-of-32-characters";

#[tokio::test]
async fn a_wrong_so_pin_is_offered_once_and_again_only_when_an_operator_says_so() {
    let (mut rig, mut clients, store, _) = ready().await;
    let before = rig.objects("hsm-2");
    let pin = std::fs::read(so_pin_file(&rig, "hsm-2")).unwrap();
    std::fs::write(so_pin_file(&rig, "hsm-2"), "not-the-pin").unwrap();
    let logins = Logins::of(&rig, "hsm-2");
    rig.empty_token("hsm-2");
    clients.until_told(&store, "hsm-2", "the SO PIN was refused on hsm-2").await;
    assert_eq!(logins.refused(&rig), 1);

    // However often it is proved, by whatever wakes it: another node is given the keys meanwhile.
    clients.empty_and_heal(&rig, &store, "hsm-3").await;
    kill(rig.worker_of("hsm-2"));
    clients.watch_until(&store, |store| node(store, "hsm-2").worker_restarts > 0).await;
    clients.until_told(&store, "hsm-2", "the SO PIN was refused on hsm-2").await;
    rig.kill_daemon();
    rig.start_daemon();
    clients = rig.clients().await;
    clients.until_told(&store, "hsm-2", "the SO PIN was refused on hsm-2").await;
    assert_eq!(logins.refused(&rig), 1, "it was offered again");

    // One more is refused as well: exactly one.
    clients.resume_hsm(&rig.cluster_id(), "hsm-2", true).await;
    wait_async(|| async { (logins.refused(&rig) == 2).then_some(()) }).await;
    clients.until_told(&store, "hsm-2", "the SO PIN was refused on hsm-2").await;
    clients.resume_hsm(&rig.cluster_id(), "hsm-2", false).await;
    clients.empty_and_heal(&rig, &store, "hsm-1").await;
    assert_eq!(logins.refused(&rig), 2);

    std::fs::write(so_pin_file(&rig, "hsm-2"), pin).unwrap();
    clients.resume_hsm(&rig.cluster_id(), "hsm-2", true).await;
    clients.all_healthy(&store).await;
    assert_eq!(rig.objects("hsm-2"), before);
    assert_eq!(logins.refused(&rig), 2);
}

#[tokio::test]
async fn a_password_changed_at_the_node_that_would_give_its_keys_is_refused_there_once_and_another_gives_them() {
    let (rig, mut clients, store, key) = ready().await;
    for hsm in ["hsm-1", "hsm-2"] {
        // Their workers go on: SoftHSM2 looks at passwords only when somebody logs in.
        rig.change_password(hsm, OTHER_PASSWORD);
    }
    let (one, two) = (Logins::of(&rig, "hsm-1"), Logins::of(&rig, "hsm-2"));
    rig.empty_token("hsm-3");
    // Each of them was asked, once; then nobody is left to ask.
    clients.until_told(&store, "hsm-3", "the password was refused on hsm-").await;
    wait_async(|| async { (one.refused(&rig) + two.refused(&rig) == 2).then_some(()) }).await;
    rig.restore_password("hsm-2", OTHER_PASSWORD);
    clients.resume_hsm(&rig.cluster_id(), "hsm-2", true).await;
    clients.until_health(&store, "hsm-3", pb::HsmHealth::Healthy).await;
    assert_eq!((one.refused(&rig), two.refused(&rig)), (1, 1));
    assert!(clients.describe_key(&key).await.nodes.iter().all(|it| it.proof() == pb::KeyProof::Used));
}

#[tokio::test]
async fn giving_a_token_the_clusters_keys_spends_no_more_than_the_one_attempt_on_a_password_it_refuses() {
    let (rig, mut clients, store, _) = ready().await;
    rig.change_password("hsm-2", OTHER_PASSWORD);
    let logins = Logins::of(&rig, "hsm-2");
    rig.empty_token("hsm-2");
    clients.until_told(&store, "hsm-2", "the password was refused on hsm-2").await;
    clients.empty_and_heal(&rig, &store, "hsm-3").await;
    clients.tries(&store, "hsm-2", 3).await;
    assert_eq!(logins.refused(&rig), 1);
    // The next worker does not offer it either.
    kill(rig.worker_of("hsm-2"));
    clients.until_health(&store, "hsm-2", pb::HsmHealth::LoginRefused).await;
    assert_eq!(logins.refused(&rig), 1);
}

#[tokio::test]
async fn a_node_that_cannot_be_given_the_clusters_key_keeps_what_it_has_and_is_tried_less_and_less_often() {
    let (rig, mut clients, store, _) = ready().await;
    std::fs::write(so_pin_file(&rig, "hsm-2"), "not-the-pin").unwrap();
    let canary = rig.objects("hsm-2").into_iter().find(|object| object.label == "keyway:canary").unwrap();
    rig.delete_object("hsm-2", &canary.id);
    clients.until_told(&store, "hsm-2", "the SO PIN was refused on hsm-2").await;
    let tries = clients.tries(&store, "hsm-2", 4).await;
    let seconds = |time: &prost_types::Timestamp| time.seconds as f64 + f64::from(time.nanos) / 1e9;
    let pauses: Vec<_> = tries.windows(2).map(|pair| seconds(&pair[1]) - seconds(&pair[0])).collect();
    assert!(pauses[2] > 2.0 * pauses[0], "{pauses:?}");
    assert!(rig.objects("hsm-2").iter().any(|object| object.label == "keyway:kek"), "it went for nothing");
}

#[tokio::test]
async fn a_store_whose_every_so_pin_is_wrong_fails_soon_and_says_where_what_is_to_be_mended() {
    let rig = Rig::new().faulty().start();
    let mut clients = rig.clients().await;
    let store = clients.store(&rig, "main").await;
    let hsms = ["hsm-1", "hsm-2", "hsm-3"];
    let logins = hsms.map(|hsm| Logins::of(&rig, hsm));
    let pins = hsms.map(|hsm| std::fs::read(so_pin_file(&rig, hsm)).unwrap());
    for hsm in hsms {
        std::fs::write(so_pin_file(&rig, hsm), "not-the-pin").unwrap();
    }
    for _ in 0..2 {
        clients.connect(&store).await;
        let failed = clients.settled(&store).await;
        assert_eq!(failed.connection_state(), pb::ConnectionState::Failed);
        assert_eq!(failed.connection_error_code(), pb::ConnectionErrorCode::InternalError);
        for hsm in hsms {
            let told = format!(
                "{hsm}: the SO PIN was refused on {hsm}; mend its so_pin_file, and resume it allowing one login"
            );
            assert!(failed.connection_error_message.contains(&told), "{failed:?}");
        }
        assert!(hsms.contains(&failed.last_connection_error.unwrap().hsm_id.as_str()));
        assert_eq!(logins.each_ref().map(|it| it.refused(&rig)), [1, 1, 1], "each was offered once");
        clients.disconnect(&store).await;
    }
    // One of them is mended: it begins, and the others wait for their operator.
    std::fs::write(so_pin_file(&rig, "hsm-3"), &pins[2]).unwrap();
    clients.resume_hsm(&rig.cluster_id(), "hsm-3", true).await;
    clients.connect(&store).await;
    assert_eq!(clients.settled(&store).await.connection_state(), pb::ConnectionState::Connected);
    for (hsm, pin) in hsms.into_iter().zip(pins) {
        std::fs::write(so_pin_file(&rig, hsm), pin).unwrap();
        clients.resume_hsm(&rig.cluster_id(), hsm, true).await;
    }
    clients.all_healthy(&store).await;
}

#[tokio::test]
async fn a_store_whose_hsms_cannot_make_the_clusters_first_keys_fails_soon_and_says_why() {
    let rig = Rig::new().faulty().start();
    let mut clients = rig.clients().await;
    let store = clients.store(&rig, "main").await;
    for hsm in ["hsm-1", "hsm-2", "hsm-3"] {
        rig.faults(hsm).set([Rule::fail(C_GenerateKey, CKR_DEVICE_ERROR)]);
    }
    clients.connect(&store).await;
    let failed = clients.settled(&store).await;
    assert_eq!(failed.connection_state(), pb::ConnectionState::Failed);
    assert!(failed.connection_error_message.contains("the trust ceremony failed on hsm-"), "{failed:?}");
    for hsm in ["hsm-1", "hsm-2", "hsm-3"] {
        rig.faults(hsm).clear();
    }
    clients.disconnect(&store).await;
    clients.connect(&store).await;
    clients.all_healthy(&store).await;
}

fn so_pin_file(rig: &Rig, hsm: &str) -> PathBuf {
    rig.path(&format!("hsms/{hsm}/so-pin"))
}

/// The logins of an HSM from now on.
struct Logins {
    hsm: &'static str,
    before: usize,
}

impl Logins {
    fn of(rig: &Rig, hsm: &'static str) -> Self {
        Self { hsm, before: rig.faults(hsm).journal().len() }
    }

    fn refused(&self, rig: &Rig) -> usize {
        let journal = rig.faults(self.hsm).journal().into_iter().skip(self.before);
        journal.filter(|it| it.function == C_Login && it.outcome == Outcome::Answered(CKR_PIN_INCORRECT)).count()
    }
}
