//! Libraries that hang, crash and leak: only their own worker suffers, and it is replaced.

use std::time::{Duration, Instant};

use faulty_pkcs11::Function::*;
use faulty_pkcs11::{On, Outcome, Rule};
use tonic::Code;

use super::{node, ready};
use crate::rig::{Load, Rig, kill, pb, reason, wait_async};

#[tokio::test]
async fn a_call_that_blocks_for_ever_is_answered_by_another_node_long_before_its_deadline() {
    let (rig, mut clients, store, key) = ready().await;
    let ciphertext = clients.encrypt(&key, b"x").await;
    rig.faults("hsm-1").set([Rule::block(On::all())]);
    let stuck = rig.workers_of("hsm-1");
    let begun = Instant::now();
    // The default deadline is 30 s; each call that meets the hung node gives it a share, and moves.
    for _ in 0..6 {
        assert_eq!(clients.decrypt(&ciphertext).await.unwrap(), b"x");
    }
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    wait_async(|| async { (rig.workers_of("hsm-1") != stuck).then_some(()) }).await;
    rig.faults("hsm-1").clear();
    clients.until_replaced(&store, "hsm-1", 1).await;
}

#[tokio::test]
async fn no_new_work_goes_to_a_worker_that_does_not_answer_its_ping() {
    let (rig, mut clients, store, key) = ready().await;
    let stopped = rig.worker_of("hsm-2");
    signal(stopped, rustix::process::Signal::STOP);
    // The first that meet it wait for their share of the deadline; soon nobody is sent there any more.
    let quick = wait_async(|| {
        let (mut clients, key) = (clients.clone(), key.clone());
        async move {
            let begun = Instant::now();
            for _ in 0..12 {
                clients.encrypt(&key, b"x").await;
            }
            (begun.elapsed() < Duration::from_secs(1)).then_some(true)
        }
    });
    assert!(quick.await);
    assert_eq!(rig.workers_of("hsm-2"), [stopped], "it was passed over before it was replaced");
    clients.until_replaced(&store, "hsm-2", 1).await;
}

#[tokio::test]
async fn a_library_that_blocks_at_its_start_holds_up_neither_the_daemon_nor_the_other_nodes() {
    let mut rig = Rig::new().faulty().start();
    rig.stop_daemon();
    rig.faults("hsm-1").set([Rule::block(C_Initialize)]);
    rig.start_daemon();
    let mut clients = rig.clients().await;
    let begun = Instant::now();
    let store = clients.connected_store(&rig, "main").await;
    assert!(begun.elapsed() < Duration::from_secs(25), "connecting took {:?}", begun.elapsed());
    let key = clients.key(&store).await.key_id;
    let on = clients.describe_key(&key).await.nodes;
    assert_eq!(on.iter().filter(|it| it.proof() == pb::KeyProof::Used).count(), 2, "{on:?}");
    // It is let go by the patience for opening a library, or by us.
    rig.faults("hsm-1").clear();
    for pid in rig.workers_of("hsm-1") {
        kill(pid);
    }
    clients.all_healthy(&store).await;
}

#[tokio::test]
async fn a_library_that_crashes_takes_only_its_own_worker_with_it() {
    let (rig, mut clients, store, key) = ready().await;
    let load = Load::start(&clients, &key, 32);
    load.more(100).await;
    rig.faults("hsm-3").set([Rule::crash(C_Encrypt).nth(40)]);
    clients.until_replaced(&store, "hsm-3", 1).await;
    // Its successor counts from one again, and may be near its end already.
    rig.faults("hsm-3").clear();
    load.more(200).await;
    clients.all_healthy(&store).await;
    load.unharmed().await;
    assert_eq!(rig.workers().len(), 3);
}

#[tokio::test]
async fn a_request_under_which_two_workers_die_is_given_up_and_held_back_and_nobody_else_is() {
    let (rig, mut clients, store, key) = ready().await;
    let other = clients.key(&store).await.key_id;
    let ciphertext = clients.encrypt(&key, b"deadly").await;
    for hsm in ["hsm-1", "hsm-2", "hsm-3"] {
        rig.faults(hsm).set([Rule::crash(C_Decrypt)]);
    }
    // The canary is decrypted as well, so that idle workers die too: one of these calls meets two that still live.
    let refused = wait_async(|| {
        let (mut clients, ciphertext) = (clients.clone(), ciphertext.clone());
        async move { clients.decrypt(&ciphertext).await.err().filter(|refused| refused.code() == Code::Internal) }
    })
    .await;
    assert_eq!(reason(&refused), (Code::Internal, "KMS_INTERNAL".to_owned()));
    for hsm in ["hsm-1", "hsm-2", "hsm-3"] {
        rig.faults(hsm).clear();
    }
    let held_back = clients.decrypt(&ciphertext).await.unwrap_err();
    assert_eq!(reason(&held_back), (Code::ResourceExhausted, "THROTTLING".to_owned()));
    let pushback: u64 = held_back.metadata().get("grpc-retry-pushback-ms").unwrap().to_str().unwrap().parse().unwrap();
    assert!((1..=60_000).contains(&pushback));
    clients.all_healthy(&store).await;
    // The same caller's other operations and keys are not held back.
    clients.encrypt(&key, b"x").await;
    let unharmed = clients.encrypt(&other, b"x").await;
    assert_eq!(clients.decrypt(&unharmed).await.unwrap(), b"x");
}

#[tokio::test]
async fn a_library_that_leaks_has_its_worker_replaced_before_it_is_too_big_and_no_caller_notices() {
    let mut rig = Rig::new().faulty().start();
    rig.stop_daemon();
    rig.start_daemon_with(&["--memory-limit-mib", "64"]);
    let mut clients = rig.clients().await;
    let store = clients.connected_store(&rig, "main").await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    let load = Load::start(&clients, &key, 16);
    load.more(50).await;
    rig.faults("hsm-1").set([Rule::leak(C_Encrypt, 1 << 20)]);
    let told = clients.watch_until(&store, |store| node(store, "hsm-1").worker_restarts >= 2).await;
    assert!(node(&told, "hsm-1").last_error.contains("grown"), "{}", node(&told, "hsm-1").last_error);
    rig.faults("hsm-1").clear();
    load.more(50).await;
    load.unharmed().await;
    clients.all_healthy(&store).await;
}

#[tokio::test]
async fn a_worker_that_is_stuck_in_its_library_outlives_its_daemon_by_no_more_than_its_patience() {
    let (mut rig, clients, _, key) = ready().await;
    // Every thread of one is stuck in a call, another is stuck before it has read anything from its link.
    rig.faults("hsm-1").set([Rule::journal(On::all()), Rule::block(On::all())]);
    rig.faults("hsm-2").set([Rule::block(C_Initialize)]);
    kill(rig.worker_of("hsm-2"));
    let load = Load::start(&clients, &key, 8);
    let blocked = |hsm| rig.faults(hsm).journal().iter().filter(|it| it.outcome == Outcome::Blocked).count();
    wait_async(|| async { (blocked("hsm-1") >= 2 && blocked("hsm-2") >= 1).then_some(()) }).await;
    rig.kill_daemon();
    load.refusals().await;
    wait_async(|| async { rig.workers_and_lookouts().is_empty().then_some(()) }).await;
}

#[tokio::test]
async fn no_worker_ever_has_a_child() {
    // A forked child would inherit the login.
    let (rig, clients, _, key) = ready().await;
    let load = Load::start(&clients, &key, 8);
    load.more(100).await;
    for (pid, slot) in rig.workers() {
        for thread in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
            let children = std::fs::read_to_string(thread.path().join("children")).unwrap();
            assert_eq!(children.trim(), "", "{slot}");
        }
    }
    load.unharmed().await;
}

#[tokio::test]
async fn nothing_is_left_of_a_thousand_workers_that_were_killed_or_disconnected() {
    let (rig, mut clients, store, _) = ready().await;
    // Each loads its library once.
    let started = || ["hsm-1", "hsm-2", "hsm-3"].map(|hsm| rig.faults(hsm).count(C_Initialize)).iter().sum::<usize>();
    let (begun, mut first) = (started(), None);
    while started() - begun < 1_000 {
        for (pid, _) in rig.workers() {
            kill(pid);
        }
        // Some are on their way back when the store is disconnected, some are not yet.
        clients.disconnect(&store).await;
        clients.connect(&store).await;
        clients.all_healthy(&store).await;
        // The first round fills pools and caches.
        let first = *first.get_or_insert_with(|| rig.resources());
        // What has just ended may not have been waited for yet.
        wait_async(|| async {
            let now = rig.resources();
            let as_few = now.threads <= first.threads + 2
                && now.processes <= first.processes
                && now.descriptors <= first.descriptors + 4
                && now.locks <= first.locks;
            as_few.then_some(())
        })
        .await;
    }
}

fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a pid");
    rustix::process::kill_process(pid, signal).expect("it is ours");
}
