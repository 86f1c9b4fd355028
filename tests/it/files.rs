//! Files under data keys, as people type it: of any length, through pipes, and nothing of what was changed.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde_json::Value;

use crate::rig::{Rig, signal, wait};

/// What `docs/formats.md` says of a chunk.
const CHUNK: usize = 64 * 1024;
const TAG: usize = 16;

struct Desk {
    rig: Rig,
    key: String,
    other: String,
}

impl Desk {
    async fn new() -> Self {
        let (rig, mut clients, store) = Rig::new().nodes(2).zones(2).connected().await;
        let (key, other) = (clients.key(&store).await.key_id, clients.key(&store).await.key_id);
        let desk = Self { rig, key, other };
        std::fs::create_dir(desk.path("")).unwrap();
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.rig.home.path().join("files").join(name)
    }

    /// Runs `keyway file`, in the directory of the files, on this input.
    fn file(&self, args: &[&str], input: &[u8]) -> Output {
        let mut command = self.rig.keyway(&[&["file"], args].concat());
        command.current_dir(self.path("")).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
        // One that has made up its mind need not read on.
        let feeding = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().unwrap();
        feeding.join().unwrap();
        output
    }

    fn does(&self, args: &[&str]) {
        let output = self.file(args, b"");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// It must be refused with this reason, and write no file.
    fn refuses(&self, args: &[&str], reason: &str) -> String {
        let before = self.names();
        let output = self.file(args, b"");
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {told}");
        assert!(told.contains(&format!("reason: {reason}")), "{args:?}: {told}");
        assert_eq!(self.names(), before, "{args:?} left something");
        told
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path("")).unwrap().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 251 + at) as u8).collect()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn files_of_any_length_come_back_through_files_and_pipes() {
    let desk = Desk::new().await;
    for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 17] {
        desk.write("plain", &bytes(length));
        desk.does(&["encrypt", "--key", &desk.key, "--context", "host=db1", "plain", "sealed"]);
        let sealed = desk.read("sealed");
        assert!(sealed.starts_with(b"KWF\x01"));
        // The magic, two lengths, the data key with what encrypting adds to it, one pair of context.
        let head = 4 + 2 + (32 + 52) + 2 + (4 + 4 + "host".len() + 4 + "db1".len());
        assert_eq!(sealed.len(), head + length + length.div_ceil(CHUNK).max(1) * TAG);
        desk.does(&["decrypt", "sealed", "back"]);
        assert!(desk.read("back") == bytes(length), "{length}");

        let piped = desk.file(&["encrypt", "--key", &desk.key, "-", "-"], &bytes(length));
        assert!(piped.status.success() && piped.stderr.is_empty(), "{}", String::from_utf8_lossy(&piped.stderr));
        let back = desk.file(&["decrypt", "-", "-"], &piped.stdout);
        assert!(back.status.success() && back.stdout == bytes(length), "{}", String::from_utf8_lossy(&back.stderr));
    }
    assert_eq!(mode(&desk.path("back")), 0o600, "a plaintext is its owner's");
    assert_eq!(desk.names(), ["back", "plain", "sealed"]);

    // In its own place: it is read to the end before it is replaced.
    desk.does(&["encrypt", "--key", &desk.key, "plain", "plain"]);
    desk.does(&["decrypt", "plain", "plain"]);
    assert!(desk.read("plain") == bytes(5 * CHUNK + 17));

    let mut json = desk.rig.keyway(&["--output", "json", "file", "decrypt", "sealed", "back"]);
    let told: Value = serde_json::from_slice(&json.current_dir(desk.path("")).output().unwrap().stdout).unwrap();
    assert!(told["keyId"].as_str().unwrap().ends_with(&desk.key), "{told}");
    assert_eq!(told.get("plaintext"), None, "the data key is shown: {told}");
    assert_eq!(told.get("plaintextCrc32c"), None, "32 bits of the data key are shown: {told}");
}

#[tokio::test]
async fn a_file_that_was_changed_or_is_another_one_is_refused_and_what_was_there_stays() {
    let desk = Desk::new().await;
    let length = 2 * CHUNK + 100;
    desk.write("plain", &bytes(length));
    desk.does(&["encrypt", "--key", &desk.key, "--context", "host=db1", "plain", "sealed"]);
    let sealed = desk.read("sealed");
    let head = sealed.len() - length - 3 * TAG;
    desk.write("out", b"from before");
    let flip = |at: usize| {
        let mut changed = sealed.clone();
        changed[at] ^= 1;
        changed
    };
    let (chunk, body) = (CHUNK + TAG, &sealed[head..]);
    let cases = [
        ("the magic", flip(0)),
        ("the format", flip(3)),
        ("the data key's length", flip(5)),
        ("the data key's key", flip(12)),
        ("the data key", flip(60)),
        ("the context's length", flip(head - 20)),
        ("the context", flip(head - 1)),
        ("the first chunk", flip(head)),
        ("the second", flip(head + chunk + 7)),
        ("the last tag", flip(sealed.len() - 1)),
        ("nothing but the header", sealed[..head].to_vec()),
        ("half a header", sealed[..head / 2].to_vec()),
        ("nothing", Vec::new()),
        ("cut after a chunk", sealed[..head + chunk].to_vec()),
        ("cut in a chunk", sealed[..head + chunk + 9].to_vec()),
        ("more at its end", [&sealed[..], b"x"].concat()),
        (
            "two chunks exchanged",
            [&sealed[..head], &body[chunk..2 * chunk], &body[..chunk], &body[2 * chunk..]].concat(),
        ),
    ];
    for (what, changed) in cases {
        desk.write("changed", &changed);
        desk.refuses(&["decrypt", "changed", "out"], "INVALID_CIPHERTEXT");
        assert_eq!(desk.read("out"), b"from before", "{what}");
        // Through a pipe the file's beginning may be told, and never anything else.
        let piped = desk.file(&["decrypt", "-", "-"], &changed);
        assert_eq!(piped.status.code(), Some(1), "{what}");
        assert!(bytes(length).starts_with(&piped.stdout) && piped.stdout.len() < length, "{what}");
    }
    desk.refuses(&["decrypt", "--key", &desk.other, "sealed", "out"], "INCORRECT_KEY");
    let told = desk.refuses(&["decrypt", "--context", "host=db2", "sealed", "out"], "INVALID_CIPHERTEXT");
    assert!(told.contains("host"), "{told}");
    desk.refuses(&["encrypt", "--key", "alias/nobody", "plain", "new"], "NOT_FOUND");
    desk.does(&["decrypt", "--key", &desk.key, "--context", "host=db1", "sealed", "out"]);
    assert!(desk.read("out") == bytes(length));
}

#[tokio::test]
async fn a_command_that_is_ended_midway_leaves_no_half_file() {
    let desk = Desk::new().await;
    for kind in [rustix::process::Signal::TERM, rustix::process::Signal::INT, rustix::process::Signal::HUP] {
        let mut command = desk.rig.keyway(&["file", "encrypt", "--key", &desk.key, "-", "sealed"]);
        let mut child =
            command.current_dir(desk.path("")).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(&bytes(3 * CHUNK)).unwrap();
        let partial =
            wait(|| desk.names().pop().filter(|name| desk.path(name).metadata().is_ok_and(|it| it.len() > 0)));
        assert!(partial.starts_with(".sealed.") && partial.ends_with(".partial"), "{partial}");
        signal(child.id(), kind);
        let ended = child.wait_with_output().unwrap();
        assert_eq!(ended.status.code(), Some(1), "{}", String::from_utf8_lossy(&ended.stderr));
        assert_eq!(desk.names(), [""; 0]);
        drop(input);

        // And one that still waits for the file to begin.
        let mut command = desk.rig.keyway(&["file", "decrypt", "-", "out"]);
        let mut child =
            command.current_dir(desk.path("")).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let input = child.stdin.take().unwrap();
        wait(|| desk.names().pop());
        signal(child.id(), kind);
        assert_eq!(child.wait_with_output().unwrap().status.code(), Some(1));
        assert_eq!(desk.names(), [""; 0]);
        drop(input);
    }
}
