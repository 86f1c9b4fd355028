//! Requests that change one key store at the same time: whatever they answer, they can have come one after the other.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::rig::{Clients, Dice, Rig, Served, pb, reason};
use crate::update::update;
use pb::ConnectionState as State;

const ROUNDS: u32 = 20;
const REQUESTS: u32 = 6;
/// Restored from a backup of the rig's own.
const RESTORED: &str = "cluster-2restored234";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Asked {
    Connect,
    Disconnect,
    Rename(u32),
    TellPassword,
    Move(On),
    Delete,
}

/// The cluster that a store stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum On {
    First,
    Restored,
}

impl On {
    fn id(self, rig: &Rig) -> String {
        match self {
            Self::First => rig.cluster_id(),
            Self::Restored => RESTORED.to_owned(),
        }
    }
}

/// What a request answered.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    Done,
    /// It saw this state, which does not allow it.
    Refused(State),
    Gone,
    /// Lost to another, without saying to which.
    Conflict,
}

/// A store as the model has it; `None` once it is deleted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Store {
    state: State,
    name: Option<u32>,
    on: On,
}

/// What AWS's table says: what becomes of a store, or that it refuses.
fn next(store: &Store, asked: Asked) -> Result<Option<Store>, State> {
    use State::{Connected, Connecting, Disconnected, Disconnecting, Failed};
    let to = |state| Ok(Some(Store { state, ..store.clone() }));
    match (asked, store.state) {
        (Asked::Connect, Disconnected) => to(Connecting),
        (Asked::Connect, Connecting | Connected) | (Asked::TellPassword, Disconnected) => to(store.state),
        (Asked::Disconnect, Connecting | Connected | Failed) => to(Disconnecting),
        (Asked::Rename(name), Disconnected | Connected) => Ok(Some(Store { name: Some(name), ..store.clone() })),
        (Asked::Move(on), Disconnected) => Ok(Some(Store { on, ..store.clone() })),
        (Asked::Delete, Disconnected) => Ok(None),
        (_, state) => Err(state),
    }
}

/// What it becomes by itself. No HSM fails here.
fn in_time(state: State) -> Option<State> {
    match state {
        State::Connecting => Some(State::Connected),
        State::Disconnecting => Some(State::Disconnected),
        _ => None,
    }
}

/// Whether some order of these requests, with what the store does by itself in between, gives these answers and this end.
struct Serialisation<'a> {
    requests: &'a [(Asked, Answer)],
    end: Option<Store>,
    seen: HashSet<(u32, Option<Store>)>,
}

impl Serialisation<'_> {
    fn exists(&mut self, left: u32, store: &Option<Store>) -> bool {
        if !self.seen.insert((left, store.clone())) {
            return false;
        }
        if left == 0 && *store == self.end {
            return true;
        }
        let by_itself = store.as_ref().and_then(|now| Some(Store { state: in_time(now.state)?, ..now.clone() }));
        if by_itself.is_some() && self.exists(left, &by_itself) {
            return true;
        }
        let requests = self.requests;
        let waiting = requests.iter().enumerate().filter(|(index, _)| left & (1 << index) != 0);
        waiting.into_iter().any(|(index, (asked, answer))| {
            let rest = left & !(1 << index);
            match (store, answer) {
                (_, Answer::Conflict) | (None, Answer::Gone) => self.exists(rest, store),
                (Some(now), Answer::Refused(state)) => next(now, *asked) == Err(*state) && self.exists(rest, store),
                (Some(now), Answer::Done) => next(now, *asked).is_ok_and(|after| self.exists(rest, &after)),
                (None, Answer::Done | Answer::Refused(_)) | (Some(_), Answer::Gone) => false,
            }
        })
    }
}

/// What goes into requests, beside the store's id.
#[derive(Debug, Clone)]
struct Said {
    password: String,
    first: String,
}

impl Said {
    fn of(rig: &Rig) -> Self {
        Self { password: rig.password(), first: rig.cluster_id() }
    }
}

async fn ask(mut clients: Clients, id: String, said: Said, asked: Asked) -> Result<(), Status> {
    let stores = &mut clients.stores;
    match asked {
        Asked::Connect => {
            drop(stores.connect_key_store(pb::ConnectKeyStoreRequest { key_store_id: id }).await?);
        }
        Asked::Disconnect => {
            let drain_timeout = Some(prost_types::Duration::default());
            let request = pb::DisconnectKeyStoreRequest { key_store_id: id, drain_timeout };
            drop(stores.disconnect_key_store(request).await?);
        }
        Asked::Rename(name) => {
            let new_key_store_name = Some(format!("name-{name}"));
            drop(stores.update_key_store(pb::UpdateKeyStoreRequest { new_key_store_name, ..update(&id) }).await?);
        }
        Asked::TellPassword => {
            let key_store_password = Some(said.password);
            drop(stores.update_key_store(pb::UpdateKeyStoreRequest { key_store_password, ..update(&id) }).await?);
        }
        Asked::Move(on) => {
            let cluster_id = Some(match on {
                On::First => said.first,
                On::Restored => RESTORED.to_owned(),
            });
            drop(stores.update_key_store(pb::UpdateKeyStoreRequest { cluster_id, ..update(&id) }).await?);
        }
        Asked::Delete => {
            drop(stores.delete_key_store(pb::DeleteKeyStoreRequest { key_store_id: id }).await?);
        }
    }
    Ok(())
}

fn read(answer: Result<(), Status>) -> Answer {
    let Err(status) = answer else { return Answer::Done };
    let (code, reason) = reason(&status);
    match reason.as_str() {
        "CUSTOM_KEY_STORE_NOT_FOUND" => Answer::Gone,
        "CONFLICT" => {
            assert_eq!(code, Code::Aborted);
            Answer::Conflict
        }
        "CUSTOM_KEY_STORE_INVALID_STATE" => {
            let details = status.get_error_details();
            let metadata: &std::collections::HashMap<_, _> = &details.error_info().expect("it has one").metadata;
            let state = State::from_str_name(&format!("CONNECTION_STATE_{}", metadata["connectionState"]));
            Answer::Refused(state.expect("a state"))
        }
        _ => panic!("{status:?}"),
    }
}

/// The one store there is, once it has come to rest.
async fn at_rest(clients: &mut Clients, id: &str) -> Option<Store> {
    let request = pb::WatchKeyStoreRequest { key_store_id: id.to_owned() };
    if clients.stores.watch_key_store(request).await.is_err() {
        return None;
    }
    let told = clients.settled(id).await;
    let name = told.key_store_name.strip_prefix("name-").map(|number| number.parse().expect("our own"));
    let on = if told.cluster_id == RESTORED { On::Restored } else { On::First };
    Some(Store { state: told.connection_state(), name, on })
}

/// Another order of things in each run; a failure tells which.
fn thrown() -> (u64, Dice) {
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_millis();
    let seed = u64::try_from(seed).expect("for a while");
    (seed, Dice::new(seed))
}

fn draw(dice: &mut Dice, request: u32) -> Asked {
    match dice.below(14) {
        0..=2 => Asked::Connect,
        3..=5 => Asked::Disconnect,
        6..=7 => Asked::Rename(request),
        8..=9 => Asked::TellPassword,
        10..=12 => Asked::Move(dice.pick(&[On::First, On::Restored])),
        _ => Asked::Delete,
    }
}

/// A daemon with two clusters, of which one is restored from a backup of the other, and a DISCONNECTED key store whose
/// key-encryption key is in both.
async fn ready() -> (Rig, Served, Clients, String) {
    let (rig, mut served, mut clients) = served("backup_lineage = \"first\"\npassword_rotation = \"none\"").await;
    let id = clients.connected_store(&rig, "main").await;
    clients.all_healthy(&id).await;
    clients.disconnect(&id).await;
    let restored = rig.restore_elsewhere(RESTORED, "hsm-x").declaration(&rig, "first");
    served.restart_with(|text| text + &restored).await;
    let clients = served.clients_on_the_socket().await;
    (rig, served, clients, id)
}

async fn served(of_the_cluster: &'static str) -> (Rig, Served, Clients) {
    let two = Rig::new().nodes(2).zones(2);
    let (served, rig) = Served::over(two, &["admin"], |_| of_the_cluster.to_owned()).await;
    let clients = served.clients_on_the_socket().await;
    (rig, served, clients)
}

#[tokio::test]
async fn requests_at_the_same_time_answer_as_if_they_had_come_one_after_the_other() {
    let (rig, _served, mut clients, mut id) = ready().await;
    let (seed, mut dice) = thrown();
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for round in 0..ROUNDS {
        let begin = match at_rest(&mut clients, &id).await {
            Some(store) => store,
            None => {
                id = clients.store(&rig, "main").await;
                at_rest(&mut clients, &id).await.expect("it was just made")
            }
        };
        let asked: Vec<_> = (0..REQUESTS).map(|request| draw(&mut dice, round * REQUESTS + request)).collect();
        let calls = asked.iter().map(|asked| ask(clients.clone(), id.clone(), Said::of(&rig), *asked));
        let answers: Vec<_> = futures_util::future::join_all(calls).await.into_iter().map(read).collect();
        let requests: Vec<_> = asked.into_iter().zip(answers).collect();
        let end = at_rest(&mut clients, &id).await;
        let all = (1 << requests.len()) - 1;
        let mut search = Serialisation { requests: &requests, end: end.clone(), seen: HashSet::new() };
        assert!(search.exists(all, &Some(begin.clone())), "{begin:?} {requests:#?} {end:?}; seed {seed}");
        for (_, answer) in &requests {
            *seen.entry(format!("{answer:?}")).or_default() += 1;
        }
    }
    assert!(seen.contains_key("Done") && seen.keys().any(|answer| answer.starts_with("Refused")), "{seen:?}");
}

#[tokio::test]
async fn a_kill_in_the_middle_leaves_a_store_that_comes_to_rest_and_connects() {
    let (rig, mut served, mut clients, mut id) = ready().await;
    let (seed, mut dice) = thrown();
    for round in 0..6 {
        let asked = (0..REQUESTS).map(|request| draw(&mut dice, round * REQUESTS + request));
        for asked in asked {
            tokio::spawn(ask(clients.clone(), id.clone(), Said::of(&rig), asked));
        }
        tokio::time::sleep(Duration::from_millis(dice.below(60) as u64)).await;
        served.kill_daemon();
        served.start_daemon();
        clients = served.clients_on_the_socket().await;
        let told = at_rest(&mut clients, &id).await;
        assert!(told.as_ref().is_none_or(|store| in_time(store.state).is_none()), "{told:?}; seed {seed}");
        match told.map(|store| store.state) {
            None => id = clients.store(&rig, "main").await,
            Some(State::Connected | State::Failed) => clients.disconnect(&id).await,
            Some(_) => {}
        }
        clients.connect(&id).await;
        let told = clients.settled(&id).await;
        assert_eq!(told.connection_state(), State::Connected, "{told:?}; seed {seed}");
        clients.all_healthy(&id).await;
    }
}

fn new(rig: &Rig, name: &str, cluster: &str) -> pb::CreateKeyStoreRequest {
    pb::CreateKeyStoreRequest {
        key_store_name: name.to_owned(),
        cluster_id: cluster.to_owned(),
        key_store_password: rig.password(),
        trust_anchor_certificate: rig.trust_anchor(),
    }
}

/// Sends these at the same time: the ids of the stores, and the reasons of the refusals.
async fn create_all(clients: &Clients, requests: Vec<pb::CreateKeyStoreRequest>) -> (Vec<String>, Vec<String>) {
    let calls = requests.into_iter().map(|request| {
        let mut clients = clients.clone();
        tokio::spawn(async move { clients.stores.create_key_store(request).await })
    });
    let (mut made, mut refused) = (Vec::new(), Vec::new());
    for answer in futures_util::future::join_all(calls).await {
        match answer.expect("it answers") {
            Ok(answer) => made.push(answer.into_inner().key_store_id),
            Err(status) => refused.push(reason(&status).1),
        }
    }
    (made, refused)
}

#[tokio::test]
async fn of_many_key_stores_made_at_the_same_time_one_is_and_equal_requests_all_get_that_one() {
    let (rig, mut served, _) = served("backup_lineage = \"first\"").await;
    let unrelated = rig.restore_elsewhere(RESTORED, "hsm-x").declaration(&rig, "another");
    served.restart_with(|text| text + &unrelated).await;
    let mut clients = served.clients_on_the_socket().await;
    let (first, other) = (rig.cluster_id(), RESTORED);
    for _ in 0..10 {
        let (made, refused) = create_all(&clients, vec![new(&rig, "one", &first); 8]).await;
        assert!(refused.is_empty() && made.iter().all(|id| *id == made[0]), "{made:?} {refused:?}");
        delete(&mut clients, &made[0]).await;

        let on_both = (0..8).map(|number| new(&rig, "one", if number % 2 == 0 { &first } else { other })).collect();
        let (made, refused) = create_all(&clients, on_both).await;
        assert_eq!((made.len(), refused), (4, vec!["CUSTOM_KEY_STORE_NAME_IN_USE".to_owned(); 4]));
        assert!(made.iter().all(|id| *id == made[0]), "{made:?}");
        delete(&mut clients, &made[0]).await;

        let names = (0..8).map(|number| new(&rig, &format!("name-{number}"), &first)).collect();
        let (made, refused) = create_all(&clients, names).await;
        assert_eq!((made.len(), refused), (1, vec!["CLOUD_HSM_CLUSTER_IN_USE".to_owned(); 7]));
        delete(&mut clients, &made[0]).await;
    }
}

async fn delete(clients: &mut Clients, id: &str) {
    let request = pb::DeleteKeyStoreRequest { key_store_id: id.to_owned() };
    clients.stores.delete_key_store(request).await.expect("nothing is in it");
}

#[tokio::test]
async fn no_key_store_is_made_on_a_cluster_that_another_is_just_moving_to_or_from() {
    let (rig, _served, mut clients, id) = ready().await;
    for on in [On::Restored, On::First].into_iter().cycle().take(10) {
        let moving = tokio::spawn(ask(clients.clone(), id.clone(), Said::of(&rig), Asked::Move(on)));
        let on_both = (0..8).map(|number| {
            let cluster = if number % 2 == 0 { On::First } else { On::Restored };
            new(&rig, &format!("name-{number}"), &cluster.id(&rig))
        });
        let (made, refused) = create_all(&clients, on_both.collect()).await;
        assert_eq!((made.len(), refused), (0, vec!["CLOUD_HSM_CLUSTER_IN_USE".to_owned(); 8]));
        moving.await.expect("it answers").expect("nothing stands in its way");
        assert_eq!(clients.describe_store(&id).await.cluster_id, on.id(&rig));
    }
}
