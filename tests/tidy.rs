//! Keeps the map true: what `src/lib.rs` says of the rooms, their borders and what may stand where.
//!
//! Each test is a rule and the table of its exceptions, with the reason beside each. Comments, texts
//! and test modules are left out, so that only what runs in the product is judged.

#[path = "tidy/source.rs"]
mod source;

use std::collections::BTreeSet;

use source::sources;

/// Which rooms a room may import. `app` and `cli` join them and may import all; `seams` has a rule of its own.
const IMPORTS: [(&str, &[&str]); 20] = [
    (
        "door",
        &[
            "authz",
            "making",
            "users",
            "keystore",
            "keys",
            "cluster",
            "node",
            "records",
            "telemetry",
            "clock",
            "model",
            "proto",
            "tls",
        ],
    ),
    ("authz", &["model"]),
    ("making", &["authz", "users", "keystore", "cluster", "node", "host", "pki", "records", "clock", "model"]),
    ("users", &["authz", "keystore", "cluster", "node", "host", "link", "records", "clock", "model"]),
    ("keys", &["authz", "users", "keystore", "cluster", "node", "link", "records", "telemetry", "clock", "model"]),
    ("keystore", &["authz", "cluster", "node", "host", "records", "telemetry", "clock", "model"]),
    ("cluster", &["node", "host", "link", "records", "clock", "model"]),
    ("node", &["host", "link", "records", "clock", "model"]),
    ("host", &["link", "telemetry", "model", "proto", "tls"]),
    ("worker", &["link", "model"]),
    ("link", &["model"]),
    ("records", &["telemetry", "model"]),
    ("config", &["authz", "cluster", "door", "host", "keys", "keystore", "link", "telemetry", "users", "model", "tls"]),
    ("pki", &["model"]),
    ("telemetry", &["model"]),
    ("tls", &["model"]),
    ("clock", &[]),
    ("proto", &[]),
    ("model", &[]),
    (SEAMS, &[]),
];
const JOINERS: [&str; 4] = ["app", "cli", "main", "lib"];
const SEAMS: &str = "seams";

/// Where a secret is read, and how often. A reviewer looks at each place again when a number changes.
const EXPOSURES: [(&str, usize); 37] = [
    // Passwords, PINs and keys on their way to an HSM, or under the seal.
    ("src/host/admin.rs", 3),
    ("src/host/mod.rs", 1),
    ("src/host/opening.rs", 1),
    ("src/host/program.rs", 2),
    ("src/host/remote/users.rs", 1),
    ("src/host/users.rs", 1),
    ("src/keystore/create.rs", 2),
    ("src/model/escrow.rs", 1),
    ("src/model/seal.rs", 1),
    ("src/node/rotate.rs", 1),
    ("src/records/crypto_users.rs", 1),
    ("src/records/key_stores.rs", 1),
    ("src/records/open.rs", 1),
    ("src/users/token.rs", 1),
    // A login's token, on its way to the caller.
    ("src/door/grpc/crypto_user.rs", 1),
    // Plaintexts on their way between caller and HSM.
    ("src/cluster/connection.rs", 1),
    ("src/door/grpc/convert.rs", 1),
    ("src/door/grpc/crypto.rs", 6),
    ("src/door/grpc/data_key_pair.rs", 2),
    ("src/keys/data_key_pair.rs", 1),
    ("src/keys/rsa.rs", 1),
    // The client's end.
    ("src/cli/bytes.rs", 2),
    ("src/cli/ca.rs", 3),
    ("src/cli/check.rs", 1),
    ("src/cli/crypto.rs", 6),
    ("src/cli/crypto_user.rs", 6),
    ("src/cli/data_key.rs", 1),
    ("src/cli/data_key_pair.rs", 2),
    ("src/cli/dev.rs", 2),
    ("src/cli/dev/material.rs", 3),
    ("src/cli/dev/seed/file.rs", 1),
    ("src/cli/dev/seed/mod.rs", 3),
    ("src/cli/file/format.rs", 1),
    ("src/cli/key_store.rs", 2),
    ("src/cli/node/init.rs", 1),
    ("src/cli/re_encrypt.rs", 1),
    ("src/cli/sign.rs", 1),
];

#[test]
fn imports_between_rooms_run_one_way() {
    let mut violations = Vec::new();
    for source in sources() {
        let room = source.room();
        if JOINERS.contains(&room) {
            continue;
        }
        let Some((_, allowed)) = IMPORTS.iter().find(|(importer, _)| *importer == room) else {
            violations.push(format!("{}: room {room} has no row in IMPORTS", source.path));
            continue;
        };
        for (at, imported) in source.imports() {
            if imported != room && imported != SEAMS && !allowed.contains(&imported.as_str()) {
                violations.push(format!("{}: {room} must not import {imported}", source.place(at)));
            }
        }
    }
    agree("imports run only downwards, as in tests/tidy.rs IMPORTS", violations);
}

#[test]
fn the_table_of_imports_has_no_circle() {
    // Whoever imports comes before whom it imports: a table that cannot be put in order hides a circle.
    let mut placed: BTreeSet<&str> = BTreeSet::new();
    while placed.len() < IMPORTS.len() {
        let next = IMPORTS
            .iter()
            .find(|(room, imports)| !placed.contains(room) && imports.iter().all(|imported| placed.contains(imported)));
        let (room, _) = next.unwrap_or_else(|| panic!("a circle in IMPORTS beyond {placed:?}"));
        placed.insert(room);
    }
}

#[test]
fn what_belongs_to_one_room_stays_there() {
    let homes: [(&str, &[&str], &str); 8] = [
        ("cryptoki", &["src/worker/pkcs11/"], "PKCS#11 is spoken in one place"),
        ("cryptoki_sys", &["src/worker/pkcs11/"], "PKCS#11 is spoken in one place"),
        ("libloading", &["src/worker/pkcs11/"], "vendor code is loaded in workers"),
        ("sqlx", &["src/records/"], "SQL is spoken in one place"),
        ("unsafe", &["src/worker/pkcs11/raw.rs"], "everything else is checked by the compiler"),
        ("SystemTime::now", &["src/clock.rs"], "a test must be able to shift it"),
        (
            "env::",
            &[
                "src/cli/mod.rs",      // the command line, and the client's variables
                "src/cli/serve.rs",    // KEYWAY__ variables over the configuration
                "src/cli/node.rs",     // the same, over a node's
                "src/cli/output.rs",   // NO_COLOR
                "src/host/process.rs", // what a worker inherits
            ],
            "what the environment decides is read in named places",
        ),
        (
            "Code::",
            &[
                "src/door/grpc/status.rs",
                "src/door/grpc/finish.rs", // asks whether a refusal is one at all
                "src/cli/",                // the other end: reads codes, gives none
            ],
            "errors become statuses in one file",
        ),
    ];
    let mut violations = Vec::new();
    for source in sources() {
        for (word, allowed, why) in homes {
            if !allowed.iter().any(|home| source.path.starts_with(home)) {
                let found = source.words(word).into_iter();
                violations.extend(found.map(|at| format!("{}: `{word}` ({why})", source.place(at))));
            }
        }
    }
    agree("some words stand only in the files that tests/tidy.rs names", violations);
}

#[test]
fn what_blocks_grows_without_bound_or_is_unfinished_stands_nowhere() {
    let banned = [
        ("todo!", "unfinished"),
        ("unimplemented!", "unfinished"),
        ("dbg!", "left over from a search"),
        ("thread::sleep", "wait for something, with a limit"),
        ("unbounded", "every queue has a bound"),
        ("unbounded_channel", "every queue has a bound"),
        ("mpsc::channel()", "std's channel without a bound; use sync_channel"),
        ("static mut", "share with a lock"),
    ];
    let mut violations = Vec::new();
    for source in sources() {
        for (word, why) in banned {
            let found = source.words(word).into_iter();
            violations.extend(found.map(|at| format!("{}: `{word}`: {why}", source.place(at))));
        }
    }
    agree("some words stand nowhere in the product", violations);
}

#[test]
fn each_place_where_a_secret_is_read_is_counted() {
    let mut violations = Vec::new();
    for source in sources() {
        let found = source.words(".expose()").len() + source.words(".into_exposed()").len();
        let row = EXPOSURES.iter().find(|(path, _)| *path == source.path);
        let counted = row.map_or(0, |(_, counted)| *counted);
        if found != counted {
            violations.push(format!("{} reads secrets {found} times, EXPOSURES says {counted}", source.path));
        }
    }
    let paths: Vec<_> = sources().iter().map(|source| source.path.as_str()).collect();
    let gone = EXPOSURES.iter().filter(|(path, _)| !paths.contains(path));
    violations.extend(gone.map(|(path, _)| format!("{path} stands in EXPOSURES and is no more")));
    agree("look at what is new, then correct EXPOSURES in tests/tidy.rs", violations);
}

#[test]
fn release_builds_contain_no_seams() {
    let mut violations = Vec::new();
    let mut declared = false;
    for source in sources().iter().filter(|source| source.room() != SEAMS) {
        let debug_only = source.under_attribute("#[cfg(debug_assertions)]");
        for at in source.words(SEAMS) {
            declared |= source.path == "src/lib.rs";
            if !debug_only.iter().any(|range| range.contains(&at)) {
                violations.push(format!("{}: `seams` not under #[cfg(debug_assertions)]", source.place(at)));
            }
        }
    }
    assert!(declared, "src/lib.rs declares no seams: this rule looks for the wrong word");
    agree("stop points and the shifted clock are for debug builds alone", violations);
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent = sources().iter().filter(|source| !source.text.starts_with("//!"));
    agree("every file begins with //! and what it answers for", silent.map(|source| source.path.clone()).collect());
}

#[test]
fn every_room_is_on_the_map() {
    let rooms: BTreeSet<String> = sources().iter().map(|source| source.room().to_owned()).collect();
    let lib = std::fs::read_to_string(source::root().join("src/lib.rs")).expect("the map");
    let map: String = lib.lines().filter(|line| line.starts_with("//!")).collect();
    let off_the_map = |room: &&String| !map.contains(&format!("`{room}`"));
    let hidden = [SEAMS, "main", "lib"]; // tests' own, and the frame
    let missing = rooms.iter().filter(|room| !hidden.contains(&room.as_str()));
    agree("every room stands in the map of src/lib.rs", missing.filter(off_the_map).cloned().collect());
}

#[test]
fn every_directory_stands_in_the_architecture() {
    let Ok(architecture) = std::fs::read_to_string(source::root().join("ARCHITECTURE.md")) else {
        return;
    };
    let directories = sources().iter().filter(|source| source.path.matches('/').count() > 1);
    let rooms: BTreeSet<String> = directories.map(|source| source.room().to_owned()).collect();
    let missing = rooms.into_iter().filter(|room| !architecture.contains(&format!("{room}/")));
    agree("ARCHITECTURE.md tells every directory of src/", missing.collect());
}

/// Nothing to say, or everything at once.
#[track_caller]
fn agree(rule: &str, violations: Vec<String>) {
    assert!(violations.is_empty(), "{rule}:\n  {}", violations.join("\n  "));
}
