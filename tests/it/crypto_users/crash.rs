//! `kill -9` in the middle of what is done for a user: it is done to its end by the next daemon, or was never begun.

use super::*;
use crate::rig::wait_async;

const HSMS: [&str; 3] = ["hsm-1", "hsm-2", "hsm-3"];

/// What was asked for when the daemon died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Create,
    Reset,
    Change,
    Delete,
}

async fn ask(mut clients: Clients, rig: &Rig, asked: Asked) {
    let _ = match asked {
        Asked::Create => clients.create_user(rig, "alice", SECOND).await.map(drop),
        Asked::Reset => clients.reset_password(rig, "alice", SECOND).await.map(drop),
        Asked::Change => clients.change_user_password(rig, "alice", FIRST, SECOND).await.map(drop),
        Asked::Delete => clients.delete_user(rig, "alice").await,
    };
}

/// Kills the daemon at the stop point, starts another, and waits until all of it was done.
async fn killed_at(stop: &str, asked: Asked) {
    let mut rig = Rig::new().seams().start();
    let mut clients = rig.clients().await;
    if asked != Asked::Create {
        clients.create_user(&rig, "alice", FIRST).await.unwrap();
    }
    rig.stop_at(stop);
    tokio::select! {
        () = ask(clients.clone(), &rig, asked) => panic!("{asked:?} went past {stop}"),
        () = rig.wait_until_stopped_at(stop) => {}
    }
    rig.kill_daemon();
    rig.let_pass(stop);
    rig.start_daemon();
    let mut clients = rig.clients().await;
    match asked {
        Asked::Delete => {
            wait_async(|| {
                let mut clients = clients.clone();
                let rig = &rig;
                async move { clients.user(rig, "alice").await.is_none().then_some(()) }
            })
            .await;
            assert!(HSMS.iter().all(|hsm| !rig.user_token(hsm, "alice").exists()));
            let made = clients.create_user(&rig, "alice", FIRST).await.unwrap();
            assert_eq!(present_on(&made), HSMS, "the name is free again");
        }
        Asked::Create | Asked::Reset | Asked::Change => {
            logs_in(&clients, &rig, "alice", SECOND).await.unwrap();
            all_done(&mut clients, &rig, "alice").await;
            assert_eq!(present_on(&clients.user(&rig, "alice").await.unwrap()), HSMS);
            assert!(HSMS.iter().all(|hsm| rig.user_opens(hsm, "alice", SECOND)));
            assert!(clients.reset_password(&rig, "alice", FIRST).await.unwrap().is_empty());
            clients.log_in(&rig, "alice", FIRST).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_user_who_was_being_made_when_the_daemon_died_is_made_by_the_next() {
    for stop in ["user-written-down", "user-give-begun", "user-given"] {
        killed_at(stop, Asked::Create).await;
    }
}

#[tokio::test]
async fn a_password_that_was_being_reset_when_the_daemon_died_is_reset_by_the_next() {
    for stop in ["user-password-written-down", "user-give-begun", "user-given"] {
        killed_at(stop, Asked::Reset).await;
    }
}

#[tokio::test]
async fn a_password_that_was_being_changed_when_the_daemon_died_is_changed_by_the_next() {
    for stop in ["user-password-written-down", "user-give-begun", "user-given"] {
        killed_at(stop, Asked::Change).await;
    }
}

#[tokio::test]
async fn a_user_who_was_being_deleted_when_the_daemon_died_is_deleted_by_the_next() {
    for stop in ["user-removal-written-down", "user-remove-begun", "user-removed"] {
        killed_at(stop, Asked::Delete).await;
    }
}

#[tokio::test]
async fn a_login_that_was_cut_short_counts_as_one_that_failed() {
    let mut rig = Rig::new().nodes(1).zones(1).seams().start();
    let mut clients = rig.clients().await;
    clients.create_user(&rig, "alice", FIRST).await.unwrap();
    for cut_short in 1..=3 {
        rig.stop_at("user-login-counted");
        tokio::select! {
            answer = clients.log_in(&rig, "alice", FIRST) => panic!("{answer:?}"),
            () = rig.wait_until_stopped_at("user-login-counted") => {}
        }
        rig.kill_daemon_and_hosts();
        rig.let_pass("user-login-counted");
        rig.start_daemon();
        clients = rig.clients().await;
        let alice = clients.user(&rig, "alice").await.unwrap();
        assert_eq!(alice.hsms[0].failed_logins, cut_short);
    }
    refused("nobody may guess for nothing", clients.log_in(&rig, "alice", FIRST).await, "THROTTLING", "");
}

#[tokio::test]
async fn whenever_the_daemon_is_killed_a_change_is_finished_and_the_token_is_whole() {
    let mut rig = Rig::new().nodes(2).zones(2).start();
    let mut clients = rig.clients().await;
    clients.create_user(&rig, "alice", FIRST).await.unwrap();
    for round in 0..u64::try_from(rig.rounds(8)).unwrap() {
        let new = format!("password-number-{round}");
        let asking = tokio::spawn({
            let mut clients = clients.clone();
            let request = pb::ResetPasswordRequest {
                cluster_id: rig.cluster_id(),
                username: "alice".to_owned(),
                new_password: new.clone(),
            };
            async move { clients.users.reset_password(request).await }
        });
        // Somewhere in the middle of it, another place each time.
        tokio::time::sleep(std::time::Duration::from_millis(7 * round)).await;
        rig.kill_daemon();
        let acknowledged = asking.await.unwrap().is_ok();
        rig.start_daemon();
        clients = rig.clients().await;
        let opens = |password: &str| ["hsm-1", "hsm-2"].iter().all(|hsm| rig.user_opens(hsm, "alice", password));
        let before = round.checked_sub(1).map_or(FIRST.to_owned(), |last| format!("password-number-{last}"));
        let has_it = logs_in(&clients, &rig, "alice", &new).await.is_ok();
        assert!(has_it || !acknowledged, "what was acknowledged is done");
        all_done(&mut clients, &rig, "alice").await;
        assert!(opens(if has_it { &new } else { &before }), "on every HSM, or on none");
        // And so that the next round knows where it begins.
        assert!(clients.reset_password(&rig, "alice", &new).await.unwrap().is_empty());
    }
}
