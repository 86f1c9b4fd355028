//! Many operations over one stream: each answered once, by its own id, whatever goes wrong with others, with HSMs, with the
//! daemon, or with the client.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use faulty_pkcs11::Function::C_Encrypt;
use faulty_pkcs11::Rule;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

use crate::failing::{node, ready};
use crate::rig::{Clients, Rig, kill, pb, reason, wait_async};

use pb::pipeline_request::Request as Asked;
use pb::pipeline_response::Response as Told;

/// As many as the daemon has unanswered at once, unless it is told otherwise.
const IN_FLIGHT: usize = 1_024;

/// The two ends of a stream.
struct Pipeline {
    asking: mpsc::Sender<pb::PipelineRequest>,
    answers: Streaming<pb::PipelineResponse>,
}

impl Pipeline {
    async fn open(clients: &Clients) -> Self {
        let (asking, asked) = mpsc::channel(1);
        let answers = clients.crypto.clone().pipeline(ReceiverStream::new(asked)).await.expect("it opens").into_inner();
        Self { asking, answers }
    }

    async fn ask(&self, id: u32, request: Asked) {
        self.asking.send(item(id, request)).await.expect("the stream lasts");
    }

    async fn answer(&mut self) -> (u32, Told) {
        let answer = self.answers.message().await.expect("the stream lasts").expect("the stream lasts");
        (answer.id, answer.response.expect("every answer says something"))
    }

    /// Asks for all of it, and half-closes; every answer by its id. Each must be there once, and the stream end with OK.
    async fn all(mut self, items: Vec<pb::PipelineRequest>) -> HashMap<u32, Told> {
        let asking = self.asking;
        tokio::spawn(async move {
            for item in items {
                asking.send(item).await.expect("the stream lasts");
            }
        });
        let mut answers = HashMap::new();
        while let Some(answer) = self.answers.message().await.expect("it ends with OK") {
            let former = answers.insert(answer.id, answer.response.expect("every answer says something"));
            assert!(former.is_none(), "item {} was answered twice", answer.id);
        }
        answers
    }
}

fn item(id: u32, request: Asked) -> pb::PipelineRequest {
    pb::PipelineRequest { id, timeout: None, request: Some(request) }
}

fn encrypt(key: &str, plaintext: &[u8]) -> Asked {
    Asked::Encrypt(pb::EncryptRequest { key_id: key.to_owned(), plaintext: plaintext.to_vec(), ..Default::default() })
}

fn decrypt(ciphertext: &[u8]) -> Asked {
    Asked::Decrypt(pb::DecryptRequest { ciphertext: ciphertext.to_vec(), ..Default::default() })
}

/// An item's error as the single call would have brought it.
fn status(told: &Told) -> Status {
    use prost::Message as _;
    let Told::Error(error) = told else { panic!("it was done: {told:?}") };
    Status::with_details(Code::from_i32(error.code), &error.message, error.encode_to_vec().into())
}

fn ciphertext(told: Told) -> Vec<u8> {
    match told {
        Told::Encrypt(encrypted) => encrypted.ciphertext,
        other => panic!("not encrypted: {other:?}"),
    }
}

#[tokio::test]
async fn thousands_of_items_of_every_kind_are_each_answered_once_and_by_their_own_id() {
    use pb::generate_data_key_request::Length;
    use pb::generate_data_key_without_plaintext_request::Length as Withheld;
    const ITEMS: u32 = 3_000;
    let (_rig, mut clients, store) = Rig::new().connected().await;
    let (key, other) = (clients.key(&store).await, clients.key(&store).await);
    let sealed = clients.encrypt(&key.key_id, b"sealed before").await;
    let ask = |id: u32| match id % 6 {
        0 => encrypt(&key.key_id, &id.to_be_bytes()),
        1 => decrypt(&sealed),
        2 => Asked::GenerateRandom(pb::GenerateRandomRequest {
            number_of_bytes: 1 + id.cast_signed() % 100,
            key_store_id: store.clone(),
        }),
        3 => Asked::GenerateDataKey(pb::GenerateDataKeyRequest {
            key_id: key.key_id.clone(),
            length: Some(Length::NumberOfBytes(1 + id.cast_signed() % 100)),
            ..Default::default()
        }),
        4 => Asked::GenerateDataKeyWithoutPlaintext(pb::GenerateDataKeyWithoutPlaintextRequest {
            key_id: key.key_id.clone(),
            length: Some(Withheld::NumberOfBytes(1 + id.cast_signed() % 100)),
            ..Default::default()
        }),
        _ => Asked::ReEncrypt(pb::ReEncryptRequest {
            ciphertext: sealed.clone(),
            destination_key_id: other.key_id.clone(),
            ..Default::default()
        }),
    };
    let answers = Pipeline::open(&clients).await.all((0..ITEMS).map(|id| item(id, ask(id))).collect()).await;
    assert_eq!(answers.len() as u32, ITEMS);

    let mut opening = Vec::new();
    for (id, told) in answers {
        let length = 1 + id as usize % 100;
        match (id % 6, told) {
            (0, Told::Encrypt(told)) => opening.push((id, told.ciphertext)),
            (1, Told::Decrypt(told)) => {
                assert_eq!((told.plaintext.as_slice(), &told.key_id), (&b"sealed before"[..], &key.arn))
            }
            (2, Told::GenerateRandom(told)) => assert_eq!(told.plaintext.len(), length),
            (3, Told::GenerateDataKey(told)) => assert_eq!(told.plaintext.len(), length),
            (4, Told::GenerateDataKeyWithoutPlaintext(told)) => assert_eq!(told.ciphertext.len(), length + 52),
            (5, Told::ReEncrypt(told)) => assert_eq!(told.key_id, other.arn),
            (_, other) => panic!("item {id}: {other:?}"),
        }
    }
    let items = opening.iter().map(|(id, ciphertext)| item(*id, decrypt(ciphertext))).collect();
    for (id, told) in Pipeline::open(&clients).await.all(items).await {
        let Told::Decrypt(told) = told else { panic!("item {id}: {told:?}") };
        assert_eq!(told.plaintext, id.to_be_bytes(), "an answer was another item's");
    }
}

#[tokio::test]
async fn what_goes_wrong_with_an_item_is_told_as_the_single_call_tells_it_and_ends_nothing() {
    let (rig, clients, _store, key) = ready().await;
    let crypto = || clients.crypto.clone();
    let unknown = pb::EncryptRequest { key_id: "alias/nobody".into(), plaintext: vec![7], ..Default::default() };
    let nothing = pb::EncryptRequest { key_id: key.clone(), ..Default::default() };
    let dry = pb::EncryptRequest { key_id: key.clone(), plaintext: vec![7], dry_run: true, ..Default::default() };
    let foreign = pb::DecryptRequest { ciphertext: vec![7; 80], ..Default::default() };
    let (sign, verify) = (pb::SignRequest::default(), pb::VerifyRequest::default());
    let (mac, verify_mac) = (pb::GenerateMacRequest::default(), pb::VerifyMacRequest::default());
    let alone = [
        (Asked::Encrypt(unknown.clone()), crypto().encrypt(unknown).await.unwrap_err()),
        (Asked::Encrypt(nothing.clone()), crypto().encrypt(nothing).await.unwrap_err()),
        (Asked::Encrypt(dry.clone()), crypto().encrypt(dry).await.unwrap_err()),
        (Asked::Decrypt(foreign.clone()), crypto().decrypt(foreign).await.unwrap_err()),
        // Served or not, they are so in both ways.
        (Asked::Sign(sign.clone()), crypto().sign(sign).await.unwrap_err()),
        (Asked::Verify(verify.clone()), crypto().verify(verify).await.unwrap_err()),
        (Asked::GenerateMac(mac.clone()), crypto().generate_mac(mac).await.unwrap_err()),
        (Asked::VerifyMac(verify_mac.clone()), crypto().verify_mac(verify_mac).await.unwrap_err()),
    ];
    let mut pipeline = Pipeline::open(&clients).await;
    for (number, (asked, alone)) in alone.into_iter().enumerate() {
        pipeline.ask(number as u32, asked.clone()).await;
        let (id, told) = pipeline.answer().await;
        let told = status(&told);
        assert_eq!((id as usize, told.code(), told.message()), (number, alone.code(), alone.message()), "{asked:?}");
        let details = [&told, &alone].map(Status::get_error_details);
        let [of_item, of_call] = details.each_ref().map(|details| {
            let info = details.error_info().expect("every error has it");
            let rest = format!("{:?} {:?} {:?}", details.bad_request(), details.retry_info(), details.help());
            (info.reason.clone(), info.metadata.clone(), rest)
        });
        assert_eq!(of_item, of_call, "{asked:?}");
        assert!(details[0].request_info().is_some_and(|info| !info.request_id.is_empty()), "{asked:?}");
    }
    let of_items = [
        (pb::PipelineRequest { id: 7, timeout: None, request: None }, "request"),
        (
            pb::PipelineRequest {
                timeout: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
                ..item(8, encrypt(&key, b"x"))
            },
            "timeout",
        ),
    ];
    for (item, field) in of_items {
        pipeline.asking.send(item).await.unwrap();
        let told = status(&pipeline.answer().await.1);
        let violations = told.get_error_details().bad_request().expect("a field").field_violations.clone();
        assert_eq!((reason(&told).1.as_str(), violations[0].field.as_str()), ("VALIDATION", field));
    }
    pipeline.ask(9, encrypt(&key, b"after all this")).await;
    ciphertext(pipeline.answer().await.1);

    // Counted as single calls are, beside these: one foreign ciphertext of each way, and one Encrypt that was done.
    let foreign = [("rpc", "CryptoService/Decrypt"), ("reason", "INVALID_CIPHERTEXT")];
    let told = rig.web().until("keyway_requests_total", &foreign, |n| n >= 2.0).await;
    assert_eq!(told.sum("keyway_requests_total", &foreign), 2.0);
    assert_eq!(told.sum("keyway_requests_total", &[("rpc", "CryptoService/Encrypt"), ("code", "OK")]), 1.0);
}

#[tokio::test]
async fn an_id_that_is_not_answered_yet_fails_its_second_item_alone_and_an_items_time_is_its_own() {
    let (rig, clients, _store, key) = ready().await;
    let mut pipeline = Pipeline::open(&clients).await;
    for hsm in ["hsm-1", "hsm-2", "hsm-3"] {
        rig.faults(hsm).set([Rule::delay(C_Encrypt, Duration::from_millis(1_000))]);
    }
    pipeline.ask(1, encrypt(&key, b"the first")).await;
    pipeline.ask(1, encrypt(&key, b"the second")).await;
    let hurried = pb::PipelineRequest {
        timeout: Some(prost_types::Duration { seconds: 0, nanos: 200_000_000 }),
        ..item(2, encrypt(&key, b"in a hurry"))
    };
    pipeline.asking.send(hurried).await.unwrap();

    let (id, told) = pipeline.answer().await;
    assert_eq!((id, reason(&status(&told))), (1, (Code::InvalidArgument, "VALIDATION".to_owned())));
    let (id, told) = pipeline.answer().await;
    assert_eq!((id, reason(&status(&told))), (2, (Code::DeadlineExceeded, "DEADLINE".to_owned())));
    let (id, told) = pipeline.answer().await;
    assert_eq!(id, 1);
    let first = ciphertext(told);
    for hsm in ["hsm-1", "hsm-2", "hsm-3"] {
        rig.faults(hsm).clear();
    }
    pipeline.ask(1, decrypt(&first)).await;
    let (_, told) = pipeline.answer().await;
    let Told::Decrypt(opened) = told else { panic!("its id is free again: {told:?}") };
    assert_eq!(opened.plaintext, b"the first");
}

#[tokio::test]
async fn a_client_that_does_not_read_is_not_read_from_and_gets_every_answer_when_it_does() {
    let (_rig, mut clients, store) = Rig::new().connected().await;
    let key = clients.key(&store).await.key_id;
    let random = pb::GenerateRandomRequest { number_of_bytes: 1_024, key_store_id: String::new() };
    // What fits in HTTP/2's windows and in the buffers between, of items and of answers, is more than the daemon's places. Of
    // long items that is little; of the shortest it is thousands, which must not end the connection as a flood would.
    let cases = [
        (encrypt(&key, &[7; 4_096]), 5_000, 2 * IN_FLIGHT),
        (Asked::GenerateRandom(random), 20_000, IN_FLIGHT + 14_000),
    ];
    for (asked, items, most) in cases {
        let (asking, asked_for) = mpsc::channel(1);
        let sent = Arc::new(AtomicUsize::new(0));
        let counted = sent.clone();
        tokio::spawn(async move {
            for id in 0..items {
                if asking.send(item(id, asked.clone())).await.is_err() {
                    return;
                }
                counted.fetch_add(1, Relaxed);
            }
        });
        let mut answers = clients.crypto.pipeline(ReceiverStream::new(asked_for)).await.unwrap().into_inner();
        let mut before = 0;
        wait_async(|| {
            let now = sent.load(Relaxed);
            let stands = now == before && now > 0;
            before = now;
            async move {
                tokio::time::sleep(Duration::from_millis(300)).await;
                stands.then_some(())
            }
        })
        .await;
        let stuck = sent.load(Relaxed);
        assert!((IN_FLIGHT / 2..=most).contains(&stuck), "{stuck} items were taken of a client that does not read");
        let mut seen = HashSet::new();
        for _ in 0..items {
            let answer = answers.message().await.unwrap().expect("not all is answered");
            let done = matches!(answer.response, Some(Told::Encrypt(_) | Told::GenerateRandom(_)));
            assert!(done && seen.insert(answer.id), "{answer:?}");
        }
        assert!(answers.message().await.unwrap().is_none());
    }
}

#[tokio::test]
async fn a_caller_has_so_many_streams_and_gets_another_once_one_has_ended() {
    const MOST: usize = 16;
    let (_rig, mut clients, store) = Rig::new().connected().await;
    let key = clients.key(&store).await.key_id;
    let mut streams = Vec::new();
    for _ in 0..MOST {
        streams.push(Pipeline::open(&clients).await);
    }
    let (_asking, asked) = mpsc::channel(1);
    let refused = clients.crypto.clone().pipeline(ReceiverStream::new(asked)).await.unwrap_err();
    assert_eq!(reason(&refused), (Code::ResourceExhausted, "THROTTLING".to_owned()), "{refused:?}");
    assert!(refused.get_error_details().retry_info().is_some(), "{refused:?}");

    let answers = streams.pop().expect("there are some").all(vec![item(1, encrypt(&key, b"x"))]).await;
    assert_eq!(answers.len(), 1, "the others are served");
    drop(streams.pop()); // without an end
    for _ in 0..2 {
        let opened = wait_async(|| {
            let (_asking, asked) = mpsc::channel(1);
            let mut crypto = clients.crypto.clone();
            async move { Some((_asking, crypto.pipeline(ReceiverStream::new(asked)).await.ok()?)) }
        });
        let (asking, answers) = opened.await;
        streams.push(Pipeline { asking, answers: answers.into_inner() });
    }
}

#[tokio::test]
async fn an_hsm_that_is_killed_amid_a_stream_costs_no_item() {
    let (rig, mut clients, store) = Rig::new().connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    let sealed = clients.encrypt(&key, b"sealed before").await;
    let mut pipeline = Pipeline::open(&clients).await;
    let asking = pipeline.asking.clone();
    let (key, opens) = (key.clone(), sealed.clone());
    let asker = tokio::spawn(async move {
        for id in 0..3_000 {
            let asked = if id % 2 == 0 { encrypt(&key, b"x") } else { decrypt(&opens) };
            asking.send(item(id, asked)).await.expect("the stream lasts");
        }
    });
    for answered in 0..3_000 {
        if [500, 1_500].contains(&answered) {
            kill(rig.worker_of(if answered == 500 { "hsm-1" } else { "hsm-2" }));
        }
        let (id, told) = pipeline.answer().await;
        assert!(matches!(told, Told::Encrypt(_) | Told::Decrypt(_)), "item {id}: {told:?}");
    }
    asker.await.unwrap();
}

#[tokio::test]
async fn a_client_that_goes_midway_leaves_nothing() {
    let (rig, mut clients, store, key) = ready().await;
    for hsm in ["hsm-1", "hsm-2", "hsm-3"] {
        rig.faults(hsm).set([Rule::delay(C_Encrypt, Duration::from_millis(100))]);
    }
    let before = rig.resources();
    for _ in 0..3 {
        // On a connection of its own, which goes with it.
        let mut pipeline = Pipeline::open(&rig.clients().await).await;
        for id in 0..800 {
            pipeline.ask(id, encrypt(&key, b"x")).await;
        }
        pipeline.answer().await;
    }
    // What was handed over is done; what waited is not. At ten a second and session, all of it would take a minute.
    let idle = |node: &pb::NodeConnection| node.requests_waiting == 0 && node.sessions_busy == 0;
    let begun = std::time::Instant::now();
    wait_async(|| {
        let (mut clients, store) = (clients.clone(), store.clone());
        async move { clients.settled(&store).await.nodes.iter().all(idle).then_some(()) }
    })
    .await;
    assert!(begun.elapsed() < Duration::from_secs(20), "work went on for nobody: {:?}", begun.elapsed());
    wait_async(|| async { (rig.resources().descriptors <= before.descriptors).then_some(()) }).await;
    for hsm in ["hsm-1", "hsm-2", "hsm-3"] {
        rig.faults(hsm).clear();
    }
    let store = clients.all_healthy(&store).await;
    assert_eq!(node(&store, "hsm-1").worker_restarts, 0);
}

#[tokio::test]
async fn a_daemon_that_stops_answers_what_it_took_and_says_why_it_takes_no_more() {
    let (mut rig, clients, store, key) = ready().await;
    for hsm in ["hsm-1", "hsm-2", "hsm-3"] {
        rig.faults(hsm).set([Rule::delay(C_Encrypt, Duration::from_millis(100))]);
    }
    let mut pipeline = Pipeline::open(&clients).await;
    for id in 0..200 {
        pipeline.ask(id, encrypt(&key, b"x")).await;
    }
    let mut answered = vec![pipeline.answer().await];
    // Until it has certainly taken so many: what three HSMs of two sessions are handed over, and what waits beside that.
    let taken = 3 * 2 * 16 + 50;
    wait_async(|| {
        let (mut clients, store) = (clients.clone(), store.clone());
        async move {
            let nodes = clients.settled(&store).await.nodes;
            (nodes.iter().map(|node| node.requests_waiting).sum::<i32>() >= 50).then_some(())
        }
    })
    .await;
    let stopping = tokio::task::spawn_blocking(move || rig.stop_daemon());
    let ended = loop {
        match pipeline.answers.message().await {
            Ok(Some(answer)) => answered.push((answer.id, answer.response.expect("every answer says something"))),
            Ok(None) => panic!("it ended as if all was done"),
            Err(ended) => break ended,
        }
    };
    assert_eq!(reason(&ended), (Code::Unavailable, "DRAINING".to_owned()), "{ended:?}");
    assert!(answered.len() >= taken, "of {taken} and more that were taken, {} were answered", answered.len());
    for (id, told) in answered {
        assert!(matches!(told, Told::Encrypt(_)), "item {id}: {told:?}");
    }
    assert!(stopping.await.unwrap().success());
}
