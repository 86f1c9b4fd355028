//! `grpc.health.v1`: the daemon, each service, and each key store.
//!
//! `""` and the services are SERVING while the daemon is [ready](crate::door::ready), even with every HSM down;
//! `key-store/<id>` is SERVING when the store is CONNECTED and at least one of its nodes can be used. All are NOT_SERVING
//! while the daemon drains.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::select_all;
use tokio::sync::watch;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::door::ready::Readiness;
use crate::keystore::lifecycle::Event;
use crate::keystore::{KeyStores, Store};
use crate::model::KeyStoreId;

use super::key_store::next_move;

const SERVICES: [&str; 7] = [
    "",
    "keyway.v1.KeyStoreService",
    "keyway.v1.ClusterService",
    "keyway.v1.CryptoUserService",
    "keyway.v1.KeyService",
    "keyway.v1.CryptoService",
    "keyway.v1.ServerService",
];

/// Keeps the health service's answers true until the daemon drains, and then says NOT_SERVING.
pub async fn report(reporter: HealthReporter, key_stores: KeyStores, readiness: watch::Receiver<Readiness>) {
    let mut follower = reporter.clone();
    let follow = async {
        let mut known = BTreeMap::new();
        loop {
            let next = changed(&key_stores);
            report_stores(&mut follower, &key_stores, &mut known).await;
            next.await;
        }
    };
    tokio::select! {
        () = follow => {}
        () = report_services(&reporter, readiness) => {}
    }
    for store in key_stores.list() {
        reporter.set_service_status(named(&store.id()), ServingStatus::NotServing).await;
    }
}

/// Until the daemon drains.
async fn report_services(reporter: &HealthReporter, mut readiness: watch::Receiver<Readiness>) {
    loop {
        let now = *readiness.borrow_and_update();
        let status = if now.is_ready() { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in SERVICES {
            reporter.set_service_status(service, status).await;
        }
        if now == Readiness::Draining || readiness.changed().await.is_err() {
            return;
        }
    }
}

/// What a key store is asked for by.
fn named(id: &KeyStoreId) -> String {
    format!("key-store/{id}")
}

async fn report_stores(
    reporter: &mut HealthReporter,
    key_stores: &KeyStores,
    known: &mut BTreeMap<KeyStoreId, ServingStatus>,
) {
    let now: BTreeMap<_, _> = key_stores.list().iter().map(|store| (store.id(), status(store))).collect();
    for (id, status) in &now {
        if known.get(id) != Some(status) {
            reporter.set_service_status(named(id), *status).await;
        }
    }
    for gone in known.keys().filter(|id| !now.contains_key(id)) {
        reporter.clear_service_status(&named(gone)).await;
    }
    *known = now;
}

fn status(store: &Store) -> ServingStatus {
    match store.connection_for(Event::Use) {
        Ok(Some(connection)) if connection.any_proved() => ServingStatus::Serving,
        Ok(_) | Err(_) => ServingStatus::NotServing,
    }
}

/// Resolves when any store or node changes after this call.
fn changed(key_stores: &KeyStores) -> impl Future<Output = ()> + Send + use<> {
    let mut listed = key_stores.listed();
    listed.borrow_and_update();
    let each: Vec<_> = key_stores.list().into_iter().map(store_changed).collect();
    async move {
        let any_store = async {
            if each.is_empty() {
                std::future::pending::<()>().await;
            }
            select_all(each.into_iter().map(Box::pin)).await;
        };
        tokio::select! {
            _ = listed.changed() => {}
            () = any_store => {}
        }
    }
}

fn store_changed(store: Arc<Store>) -> impl Future<Output = ()> + Send + use<> {
    let (mut record, mut nodes) = (store.record_changes(), store.nodes());
    let connection = nodes.borrow_and_update().clone();
    let moved = next_move(connection.as_deref());
    async move {
        tokio::select! {
            _ = record.changed() => {}
            _ = nodes.changed() => {}
            () = moved => {}
        }
    }
}
