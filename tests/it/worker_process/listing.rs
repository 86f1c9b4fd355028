//! Listings: everything in the token, by pages, and what is known once all of it has been read.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::*;

const SECRET_KEY: u64 = 4;

impl Worker {
    fn page(&mut self, listing: u64, offset: u32) -> v1::Objects {
        match self.ask(Verb::ListObjects(v1::ListObjects { listing, offset })) {
            Outcome::Objects(objects) => objects,
            other => panic!("no page: {other:?}"),
        }
    }

    /// Every page of a new listing.
    fn list(&mut self) -> Vec<v1::objects::Object> {
        let v1::Objects { mut objects, listing, total, mut next_offset } = self.page(0, 0);
        while next_offset < total {
            let page = self.page(listing, next_offset);
            assert_eq!((page.listing, page.total), (listing, total));
            objects.extend(page.objects);
            next_offset = page.next_offset;
        }
        objects
    }

    /// What its threads have used, which other processes on the machine do not lengthen.
    fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap();
        let after_name = stat.rsplit_once(") ").unwrap().1;
        let ticks: u64 = after_name.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 10)
    }

    fn listed(&mut self) -> Vec<Vec<u8>> {
        let mut ids: Vec<_> = self.list().into_iter().map(|it| it.cka_id).collect();
        ids.sort();
        ids
    }
}

impl Node {
    /// As many more objects, all alike: copies of the file of the one that was made last.
    fn multiply_last(&self, count: u32) {
        let token = std::fs::read_dir(self.home.path().join("tokens")).unwrap().next().unwrap().unwrap().path();
        let files = std::fs::read_dir(&token).unwrap().map(|entry| entry.unwrap().path());
        let objects = files.filter(|path| {
            path.extension().is_some_and(|it| it == "object") && path.file_stem().is_some_and(|it| it != "token")
        });
        let object = objects.max_by_key(|path| path.metadata().unwrap().modified().unwrap()).unwrap();
        static MADE: AtomicU32 = AtomicU32::new(0);
        for _ in 0..count {
            let name = format!("00000000-0000-0000-0000-{:012x}", MADE.fetch_add(1, Relaxed));
            std::fs::copy(&object, token.join(&name).with_extension("object")).unwrap();
            File::create(token.join(name).with_extension("lock")).unwrap();
        }
    }

    /// What another program makes in the token, as its user.
    fn pkcs11_tool(&self, arguments: &[&str]) {
        let status = Command::new("pkcs11-tool")
            .args(["--module", MODULE, "--login", "--pin", USER_PIN])
            .args(arguments)
            .env("SOFTHSM2_CONF", self.configuration())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
    }
}

#[test]
fn a_long_listing_comes_in_pages_of_one_snapshot() {
    let node = Node::with_kek();
    node.serving(1).make_key(b"many");
    node.multiply_last(1_500);
    let mut worker = node.serving(2);
    let first = worker.page(0, 0);
    assert_eq!((first.objects.len(), first.total, first.next_offset), (1_000, 1_502, 1_000));
    // What is made now is not of this snapshot; what went away is left out.
    worker.make_key(b"k1");
    assert_eq!(worker.ask(destroy(b"many")), Outcome::Done(v1::Done { count: 1_501 }));
    let second = worker.page(first.listing, 1_000);
    assert_eq!((second.total, second.next_offset), (1_502, 1_502));
    assert!(second.objects.iter().all(|it| it.cka_id == KEK), "{} left", second.objects.len());
    assert_eq!(worker.page(first.listing, 5_000).objects, []);
    assert_eq!(worker.listed(), [b"k1", KEK].map(<[u8]>::to_vec));
}

#[test]
fn one_listing_is_held_and_an_older_one_is_refused() {
    let node = Node::with_kek();
    let mut worker = node.serving(1);
    let first = worker.page(0, 0);
    assert!(first.listing != 0);
    assert_eq!(worker.page(first.listing, 0), first);
    let second = worker.page(0, 0);
    let older = |listing| Verb::ListObjects(v1::ListObjects { listing, offset: 0 });
    assert_eq!(worker.fault(older(first.listing)), (Bucket::Input, Kind::Protocol));
    assert_eq!(worker.fault(older(second.listing + 1)), (Bucket::Input, Kind::Protocol));
    assert_eq!(worker.page(second.listing, 0), second);
}

#[test]
fn a_listing_names_what_is_not_as_keyway_makes_it() {
    let node = Node::with_kek();
    let (made, taken) = (Node::with_token(), b"taken");
    join(&node, &made);
    let mut worker = node.serving(1);
    worker.make_key(b"made");
    let elsewhere = made.serving(1).make_key(taken);
    assert_eq!(worker.found(unwrap_key(taken, &elsewhere.wrapped, &elsewhere.probe)), Found::Proven);
    let strange = ["--keygen", "--key-type", "AES:16", "--id", "5757", "--label", "keyway:strange"];
    node.pkcs11_tool(&strange);
    node.pkcs11_tool(&["--keygen", "--key-type", "AES:16", "--id", "5858", "--label", "of somebody else"]);
    let mut objects = worker.list();
    objects.sort_by(|a, b| a.label.cmp(&b.label));
    assert!(objects.iter().all(|it| it.class == SECRET_KEY));
    let seen: Vec<_> = objects.iter().map(|it| (it.label.as_str(), it.differing.as_str())).collect();
    let [kek, strange, first, second, foreign] = seen[..] else { panic!("{seen:?}") };
    assert_eq!(kek, ("keyway:kek", ""));
    assert_eq!([first, second], [("keyway:test:1", ""); 2]);
    assert_eq!(foreign, ("of somebody else", ""));
    assert_eq!(strange.0, "keyway:strange");
    for attribute in ["CKA_WRAP_WITH_TRUSTED", "CKA_VALUE_LEN", "CKA_COPYABLE"] {
        assert!(strange.1.contains(attribute), "{}", strange.1);
    }
    assert!(!strange.1.contains("CKA_KEY_TYPE"), "{}", strange.1);
}

#[test]
fn after_a_whole_listing_what_keyway_made_and_destroyed_is_known_without_a_search() {
    let node = Node::with_kek();
    let mut worker = node.serving(2);
    let key = worker.make_key(b"k1");
    assert_eq!(worker.listed(), [b"k1", KEK].map(<[u8]>::to_vec));
    assert_eq!(worker.found(prove(b"k1", &key.probe)), Found::Proven);
    assert_eq!(worker.fault(generate_key(b"k1")), (Bucket::Input, Kind::BadInput));
    // The slot's lock keeps every other keyway process away, so that this one need not look.
    let intruder = node.serving(1).make_key(b"k2");
    assert_eq!(worker.found(prove(b"k2", &intruder.probe)), Found::Missing);
    assert_eq!(worker.found(prove(b"k2", b"")), Found::Proven);
    assert_eq!(worker.found(prove(b"k2", &intruder.probe)), Found::Proven);

    worker.ask(destroy(b"k1"));
    assert_eq!(worker.found(prove(b"k1", &key.probe)), Found::Missing);
    assert_eq!(worker.found(unwrap_key(b"k1", &key.wrapped, &key.probe)), Found::Proven);
    assert_eq!(worker.fault(generate_key(b"k1")), (Bucket::Input, Kind::BadInput));
    assert_eq!(worker.found(prove(b"k1", &intruder.probe)), Found::Different);
    assert_eq!(worker.found(prove(b"k1", &key.probe)), Found::Proven);
    assert_eq!(worker.listed(), [b"k1", b"k2", KEK].map(<[u8]>::to_vec));
}

#[test]
fn listed_keys_are_proved_before_they_are_used() {
    let node = Node::with_kek();
    let (one, two) = {
        let mut worker = node.serving(1);
        (worker.make_key(b"k1"), worker.make_key(b"k2"))
    };
    let mut worker = node.serving(1);
    worker.list();
    assert_eq!(worker.fault(encrypt_proved(b"k1", b"x", &two.probe)), (Bucket::Node, Kind::KeyMissing));
    assert!(matches!(worker.ask(encrypt_proved(b"k1", b"x", &one.probe)), Outcome::Sealed(_)));
    // Destroyed and made again by somebody else: the listed handle is stale, and the key is searched for.
    let mut other = node.serving(1);
    other.ask(destroy(b"k2"));
    assert_eq!(worker.found(prove(b"k2", &two.probe)), Found::Missing);
    assert_eq!(other.found(unwrap_key(b"k2", &two.wrapped, &two.probe)), Found::Proven);
    other.ask(destroy(b"k1"));
    assert_eq!(other.found(unwrap_key(b"k1", &one.wrapped, &one.probe)), Found::Proven);
    assert_eq!(worker.found(prove(b"k1", &one.probe)), Found::Proven);
}

#[test]
fn two_keys_under_one_id_are_neither_free_nor_one_key_after_a_listing() {
    let node = Node::with_kek();
    let key = node.serving(1).make_key(b"k1");
    node.multiply_last(1);
    let mut worker = node.serving(1);
    assert_eq!(worker.list().len(), 3);
    assert_eq!(worker.found(prove(b"k1", &key.probe)), Found::Different);
    assert_eq!(worker.found(unwrap_key(b"k1", &key.wrapped, &key.probe)), Found::Different);
    assert_eq!(worker.fault(encrypt_proved(b"k1", b"x", &key.probe)), (Bucket::Node, Kind::KeyMissing));
}

#[test]
fn a_token_that_vanished_is_absent_and_not_empty_after_a_listing() {
    let node = Node::with_kek();
    let mut worker = node.serving(1);
    let key = worker.make_key(b"k1");
    let listing = worker.page(0, 0).listing;
    std::fs::rename(node.home.path().join("tokens"), node.home.path().join("gone")).unwrap();
    assert_eq!(worker.fault(prove(b"never made", &key.probe)), (Bucket::Node, Kind::TokenAbsent));
    // With that everything that was known is forgotten.
    assert_eq!(
        worker.fault(Verb::ListObjects(v1::ListObjects { listing, offset: 0 })),
        (Bucket::Input, Kind::Protocol)
    );
}

/// Not a test: whether taking a key in grows with what is in the token. Run with `--ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn measure_taking_keys_in() {
    const BATCH: usize = 100;
    let (source, node) = (Node::with_kek(), Node::with_token());
    join(&source, &node);
    let mut on_source = source.serving(1);
    let keys: Vec<_> = (0..BATCH)
        .map(|number| {
            let id = format!("take-{number:05}").into_bytes();
            let key = on_source.make_key(&id);
            (id, key)
        })
        .collect();
    let take_in = |worker: &mut Worker, keys: &[(Vec<u8>, v1::NewKey)]| {
        let (began, busy) = (Instant::now(), worker.processor_time());
        for (id, key) in keys {
            assert_eq!(worker.found(unwrap_key(id, &key.wrapped, &key.probe)), Found::Proven);
        }
        let count = u32::try_from(keys.len()).unwrap();
        let each = (began.elapsed() / count, (worker.processor_time() - busy) / count);
        for (id, _) in keys {
            worker.ask(destroy(id));
        }
        each
    };
    node.serving(1).make_key(b"many");
    for more in [0, 1_000, 1_000, 2_000] {
        node.multiply_last(more);
        let mut worker = node.serving(1);
        let unlisted = take_in(&mut worker, &keys[..20]);
        let began = Instant::now();
        let objects = worker.list().len();
        let listing = began.elapsed();
        let listed = take_in(&mut worker, &keys);
        println!("{objects} objects: {unlisted:?} a key; listing {listing:?}; then {listed:?} a key (elapsed, busy)");
    }
}
