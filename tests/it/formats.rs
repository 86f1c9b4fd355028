//! What is stored outlives what wrote it: the ciphertext format does not move, and needs no keyway to be read.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use keyway::Sealed;
use keyway::envelope;
use keyway::model::{CkaId, EncryptionContext, KeyId, KeyVersion};
use serde::Deserialize;

use crate::rig::{Rig, pb, wait_async};

const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
/// What no release may change.
const GOLDEN: &str = include_str!("../golden/ciphertext-v1.json");

#[test]
fn every_golden_ciphertext_opens_to_its_plaintext() {
    for case in golden() {
        let opened = envelope::open(&case.ciphertext.0).unwrap();
        assert_eq!((opened.key, opened.version), (case.key(), case.version()), "{}", case.name);
        let aad = envelope::aad(opened.key, opened.version, &case.context());
        assert_eq!(open_gcm(&case.aes_key.0, &opened.sealed, &aad), case.plaintext.0, "{}", case.name);
    }
}

#[test]
fn what_was_sealed_then_is_sealed_the_same_today() {
    for case in golden() {
        let context = case.context();
        assert_eq!(context.canonical(), case.canonical_context.0, "{}", case.name);
        assert_eq!(envelope::aad(case.key(), case.version(), &context), case.aad.0, "{}", case.name);
        let sealed = envelope::open(&case.ciphertext.0).unwrap().sealed;
        assert_eq!(envelope::seal(case.key(), case.version(), &sealed), case.ciphertext.0, "{}", case.name);
    }
}

#[test]
fn the_documented_bytes_are_where_the_document_says() {
    for case in golden() {
        let (bytes, plaintext) = (&case.ciphertext.0, &case.plaintext.0);
        assert_eq!(bytes.len(), plaintext.len() + 52, "{}", case.name);
        assert_eq!(&bytes[..4], b"KW\x01\x01", "{}", case.name);
        assert_eq!(bytes[4..24], *CkaId::of(case.key(), case.version()).as_bytes(), "{}", case.name);
        assert_eq!((bytes[..24].len(), case.aad.0.len()), (24, 56), "{}", case.name);
        assert_eq!(case.aad.0[..24], bytes[..24], "{}", case.name);
    }
}

#[test]
fn the_way_out_opens_every_golden_ciphertext_in_an_hsm() {
    let token = Token::new();
    for case in golden() {
        token.import(&case);
        let opened = decrypt_without_keyway(&token.way_out, &case.context, &case.ciphertext.0);
        assert!(opened.status.success(), "{}: {}", case.name, String::from_utf8_lossy(&opened.stderr));
        assert_eq!(opened.stdout, case.plaintext.0, "{}", case.name);
    }
}

#[test]
fn the_way_out_needs_the_right_context_and_the_whole_ciphertext() {
    let token = Token::new();
    let case = golden().into_iter().find(|case| !case.context.is_empty()).unwrap();
    token.import(&case);
    let mut changed = case.ciphertext.0.clone();
    *changed.last_mut().unwrap() ^= 1;
    for (context, ciphertext) in [(BTreeMap::new(), &case.ciphertext.0), (case.context.clone(), &changed)] {
        let refused = decrypt_without_keyway(&token.way_out, &context, ciphertext);
        assert!(!refused.status.success() && refused.stdout.is_empty());
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains("is the encryption context right, and the ciphertext whole?"), "{said}");
    }
}

#[tokio::test]
async fn what_the_daemon_encrypted_opens_without_it_in_every_hsm() {
    let (mut rig, mut clients, store) = Rig::new().connected().await;
    clients.all_healthy(&store).await;
    let key = clients.key(&store).await.key_id;
    let context =
        BTreeMap::from([("tenant".to_owned(), "blue".to_owned()), ("Größe".to_owned(), "名前=鍵".to_owned())]);
    let request = pb::EncryptRequest {
        key_id: key.clone(),
        plaintext: b"attack at dawn".to_vec(),
        encryption_context: HashMap::from_iter(context.clone()),
        ..Default::default()
    };
    let ciphertext = clients.crypto.encrypt(request).await.unwrap().into_inner().ciphertext;
    wait_async(|| {
        let (mut clients, key) = (clients.clone(), key.clone());
        async move {
            let nodes = clients.describe_key(&key).await.nodes;
            nodes.iter().all(|node| node.proof() == pb::KeyProof::Used).then_some(())
        }
    })
    .await;
    assert!(rig.stop_daemon().success());

    let pin_file = rig.home.path().join("pin");
    std::fs::write(&pin_file, format!("kmsuser:{}\n", rig.password())).unwrap();
    for hsm in ["hsm-1", "hsm-2", "hsm-3"] {
        let way_out = WayOut {
            configuration: rig.path(&format!("hsms/{hsm}/kmsuser/softhsm2.conf")),
            token_label: "kmsuser".to_owned(),
            pin_file: pin_file.clone(),
        };
        let opened = decrypt_without_keyway(&way_out, &context, &ciphertext);
        assert!(opened.status.success(), "{hsm}: {}", String::from_utf8_lossy(&opened.stderr));
        assert_eq!(opened.stdout, b"attack at dawn", "{hsm}");
    }
}

/// A ciphertext that was made once and is never made again.
#[derive(Deserialize)]
struct Golden {
    name: String,
    aes_key: Hex,
    key_id: String,
    version: u32,
    context: BTreeMap<String, String>,
    canonical_context: Hex,
    aad: Hex,
    plaintext: Hex,
    ciphertext: Hex,
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Hex(Vec<u8>);

impl TryFrom<String> for Hex {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let bytes = (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16));
        bytes.collect::<Result<_, _>>().map(Self)
    }
}

impl Golden {
    fn key(&self) -> KeyId {
        self.key_id.parse().unwrap()
    }

    fn version(&self) -> KeyVersion {
        KeyVersion(self.version)
    }

    fn context(&self) -> EncryptionContext {
        EncryptionContext::new(self.context.clone()).unwrap()
    }
}

fn golden() -> Vec<Golden> {
    #[derive(Deserialize)]
    struct File {
        cases: Vec<Golden>,
    }
    let file: File = serde_json::from_str(GOLDEN).unwrap();
    assert_eq!(file.cases.len(), 6, "cases may be added, and none taken away");
    file.cases
}

fn open_gcm(key: &[u8], sealed: &Sealed, aad: &[u8]) -> Vec<u8> {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).unwrap());
    let nonce = Nonce::try_assume_unique_for_key(&sealed.iv).unwrap();
    let mut bytes = sealed.sealed.clone();
    key.open_in_place(nonce, Aad::from(aad), &mut bytes).unwrap().to_vec()
}

/// Where the example finds a key.
struct WayOut {
    configuration: PathBuf,
    token_label: String,
    pin_file: PathBuf,
}

/// The example, as a user would run it.
fn decrypt_without_keyway(way_out: &WayOut, context: &BTreeMap<String, String>, ciphertext: &[u8]) -> Output {
    let mut example = Command::new(example())
        .env("SOFTHSM2_CONF", &way_out.configuration)
        .args(["--module", MODULE, "--token-label", &way_out.token_label, "--pin-file"])
        .arg(&way_out.pin_file)
        .args(context.iter().flat_map(|(name, value)| ["--context".to_owned(), format!("{name}={value}")]))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    example.stdin.take().unwrap().write_all(ciphertext).unwrap();
    example.wait_with_output().unwrap()
}

/// Cargo puts examples beside the binary, in a directory of their own.
fn example() -> PathBuf {
    let profile = Path::new(env!("CARGO_BIN_EXE_keyway")).parent().unwrap();
    let example = profile.join("examples/decrypt_without_keyway");
    assert!(
        example.is_file(),
        "`cargo test` builds {}, but `cargo test --test it` does not: run `cargo build --examples` first",
        example.display()
    );
    example
}

/// A token that has never seen keyway.
struct Token {
    home: tempfile::TempDir,
    way_out: WayOut,
}

impl Token {
    const PIN: &str = "user:golden";

    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let path = |name: &str| home.path().join(name);
        std::fs::create_dir(path("tokens")).unwrap();
        let configuration =
            format!("directories.tokendir = {}\nobjectstore.backend = file\n", path("tokens").display());
        std::fs::write(path("softhsm2.conf"), configuration).unwrap();
        std::fs::write(path("pin"), Self::PIN).unwrap();
        let way_out =
            WayOut { configuration: path("softhsm2.conf"), token_label: "golden".to_owned(), pin_file: path("pin") };
        let token = Self { home, way_out };
        let mut tool = Command::new("softhsm2-util");
        tool.args(["--init-token", "--free", "--label", "golden", "--so-pin", "so:golden", "--pin", Self::PIN]);
        token.run(tool);
        token
    }

    /// The key's bytes come in as no key of keyway's ever does: from outside.
    fn import(&self, case: &Golden) {
        let file = self.home.path().join("key");
        std::fs::write(&file, &case.aes_key.0).unwrap();
        let id: String = CkaId::of(case.key(), case.version()).as_bytes().iter().map(|b| format!("{b:02x}")).collect();
        let mut tool = Command::new("pkcs11-tool");
        tool.args(["--module", MODULE, "--token-label", "golden", "--login", "--pin", Self::PIN])
            .args(["--write-object".as_ref(), file.as_os_str()])
            .args(["--type", "secrkey", "--key-type", "AES:32", "--usage-decrypt", "--id", &id, "--label", "golden"]);
        self.run(tool);
    }

    fn run(&self, mut tool: Command) {
        let output = tool.env("SOFTHSM2_CONF", &self.way_out.configuration).output().unwrap();
        assert!(output.status.success(), "{tool:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
