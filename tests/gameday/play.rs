//! Plays a plan: the cluster, the traffic, what the plan does, and the recording of it.

use std::time::{Duration, Instant};

use tokio::task::block_in_place;

use super::machine;
use super::measure::measure;
use super::plan::{Act, Plan};
use super::recording::{Event, Recording};
use super::report::{Circumstances, Report};
use super::stage::Stage;
use super::traffic::{Traffic, capacity};
use super::watch::Watch;
use crate::rig::Rig;

/// Calls a second, on a machine that can do much more.
const PER_SECOND: f64 = 100.0;
/// At most this share of what the cluster can do.
const SHARE: f64 = 0.25;
/// Calls go over so many connections.
const CONNECTIONS: usize = 4;
/// How long an HSM gets to be well again before the plan goes on without it.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether all is well.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// `each`: how long the parts last in which nothing is done.
pub async fn play(plan: &Plan, each: Duration) -> Report {
    let mut rig = Rig::new().nodes(plan.nodes).zones(plan.zones).contained();
    if plan.rotating {
        rig = rig.rotating();
    }
    let (rig, mut clients, store) = rig.connected().await;
    let nodes = clients.all_healthy(&store).await.nodes;
    let key = clients.key(&store).await.key_id;
    let capacity = capacity(&clients, &key).await;
    let per_second = PER_SECOND.min((capacity * SHARE).round());
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(rig.clients().await);
    }
    let traffic = Traffic::start(connections, &store, plan.callers, per_second).await;
    let began = traffic.began();
    let hsms: Vec<_> = nodes.into_iter().map(|node| (node.hsm_id, node.availability_zone)).collect();
    let names: Vec<_> = hsms.iter().map(|(hsm, _)| hsm.clone()).collect();
    let watch = Watch::start(&clients, &store, &rig.cluster_id(), &names, began);
    let busy = machine::Watch::start(Duration::ZERO);

    let mut stage = Stage { rig, clients, store };
    let mut events = Vec::new();
    tokio::time::sleep(each).await;
    for act in &plan.acts {
        do_it(act, &mut stage, &watch, &mut events, began, each).await;
    }
    tokio::time::sleep(each).await;
    traffic.stop().await;
    let length = began.elapsed();
    let busy = busy.others(Duration::ZERO);
    // If it does not come to that, the report tells.
    let _ = until(|| watch.all_is_well() && watch.out_of_step() == Some(0)).await;
    let (keys, ciphertexts) = (traffic.keys_that_work().await, traffic.ciphertexts_that_open().await);
    let (sightings, drift) = watch.told();
    let calls = traffic.calls();
    let recording = Recording { length, hsms, calls, sightings, drift, events, keys, ciphertexts };
    let machine = machine::describe("SoftHSM2 in a container for each HSM");
    measure(plan, &recording, Circumstances { machine, busy, capacity, per_second })
}

async fn do_it(act: &Act, stage: &mut Stage, watch: &Watch, events: &mut Vec<Event>, began: Instant, each: Duration) {
    match act {
        Act::Strike { what, hsms, how } => {
            // From when it begins: some of it may be felt before all is done.
            events.push(Event::Struck { at: began.elapsed(), what, hsms: hsms.clone() });
            block_in_place(|| hsms.iter().for_each(|hsm| how(stage, hsm)));
        }
        Act::Return { what, hsms, how } => {
            block_in_place(|| hsms.iter().for_each(|hsm| how(stage, hsm)));
            // And from when it is done.
            events.push(Event::Returned { at: began.elapsed(), what, hsms: hsms.clone() });
        }
        Act::Incident { what, how } => {
            let from = began.elapsed();
            block_in_place(|| how(stage));
            events.push(Event::Incident { from, until: began.elapsed(), what });
        }
        Act::Hold => tokio::time::sleep(each).await,
        Act::UntilWell => {
            if until(|| watch.all_is_well()).await {
                events.push(Event::Well { at: began.elapsed() });
            }
        }
    }
}

/// Until it is so, or nobody believes it any more: whether it is.
async fn until(well: impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    while !well() && begun.elapsed() < PATIENCE {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    well()
}
