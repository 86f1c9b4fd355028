//! A PKCS#11 program on the faulty library, in a process of its own: SoftHSM2 and the faults are a process's, not a test's.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use faulty_pkcs11::Faults;

use crate::rig::faulty_library;

pub const PIN: &str = "right-pin";
pub const SO_PIN: &str = "so-right-pin";
/// Names the directory of the test, in the process that it starts.
const HOME: &str = "FAULTY_LIBRARY_TEST";

pub struct Program {
    pub library: Pkcs11,
    pub slot: Slot,
    pub faults: Faults,
}

/// Runs the test that calls this once more, in a process of its own with an empty token directory, and `body` there.
pub fn alone<F: FnOnce(Program)>(body: F) {
    if let Some(home) = std::env::var_os(HOME) {
        return body(Program::start(Path::new(&home)));
    }
    let name = std::any::type_name::<F>().trim_start_matches("it::").trim_end_matches("::{{closure}}");
    let home = directory();
    let output = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env("SOFTHSM2_CONF", configuration(home.path()))
        .env(HOME, home.path())
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success() && text.contains("1 passed"), "{}\n{text}", output.status);
}

/// A directory for tokens, and the file that leads SoftHSM2 there.
pub fn directory() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    let tokens = home.path().join("tokens");
    std::fs::create_dir(&tokens).unwrap();
    let text = format!("directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n", tokens.display());
    std::fs::write(configuration(home.path()), text).unwrap();
    home
}

fn configuration(home: &Path) -> PathBuf {
    home.join("softhsm2.conf")
}

pub fn faults_in(home: &Path) -> Faults {
    Faults::beside(&configuration(home))
}

/// OpenSC's tool, on the faulty library.
pub fn tool(home: &Path, args: &[&str]) -> Output {
    let mut command = Command::new("pkcs11-tool");
    command.env("SOFTHSM2_CONF", configuration(home)).arg("--module").arg(faulty_library()).args(args);
    command.output().expect("opensc is installed by scripts/test")
}

/// Makes a token with that tool.
pub fn token_of_the_tool(home: &Path) {
    for args in [
        &["--init-token", "--slot-index", "0", "--label", "tool", "--so-pin", SO_PIN][..],
        &["--init-pin", "--login", "--so-pin", SO_PIN, "--new-pin", PIN],
    ] {
        let output = tool(home, args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Program {
    /// With a token whose user has a PIN.
    fn start(home: &Path) -> Self {
        let library = Pkcs11::new(faulty_library()).unwrap();
        library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
        let so_pin = AuthPin::new(SO_PIN.into());
        let free = library.get_all_slots().unwrap()[0];
        library.init_token(free, &so_pin, "program").unwrap();
        let program = Self { slot: free, library, faults: faults_in(home) };
        let session = program.open();
        session.login(UserType::So, Some(&so_pin)).unwrap();
        session.init_pin(&AuthPin::new(PIN.into())).unwrap();
        session.logout().unwrap();
        program
    }

    pub fn open(&self) -> Session {
        self.library.open_rw_session(self.slot).unwrap()
    }

    /// A session in which the user is logged in.
    pub fn logged_in(&self) -> Session {
        let session = self.open();
        log_in(&session, PIN).unwrap();
        session
    }
}

pub fn log_in(session: &Session, pin: &str) -> Result<(), RvError> {
    ckr(session.login(UserType::User, Some(&AuthPin::new(pin.into()))))
}

/// An AES key of the token's, with this label and id.
pub fn make_key(session: &Session, label: &str) -> ObjectHandle {
    try_to_make_key(session, label).unwrap()
}

pub fn try_to_make_key(session: &Session, label: &str) -> Result<ObjectHandle, RvError> {
    let template = [
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::ValueLen(32.into()),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::Label(label.into()),
        Attribute::Id(label.into()),
    ];
    ckr(session.generate_key(&Mechanism::AesKeyGen, &template))
}

/// The keys that a search for this id finds.
pub fn find(session: &Session, id: &str) -> Vec<ObjectHandle> {
    session.find_objects(&[Attribute::Id(id.into())]).unwrap()
}

/// What the key is that a handle names.
pub fn label(session: &Session, key: ObjectHandle) -> Result<String, RvError> {
    let attributes = ckr(session.get_attributes(key, &[AttributeType::Label]))?;
    let [Attribute::Label(label)] = &attributes[..] else { panic!("no label: {attributes:?}") };
    Ok(String::from_utf8(label.clone()).unwrap())
}

pub fn encrypt(session: &Session, key: ObjectHandle) -> Result<Vec<u8>, RvError> {
    ckr(session.encrypt(&Mechanism::AesEcb, key, &[7; 16]))
}

pub fn random(session: &Session) -> Result<(), RvError> {
    ckr(session.generate_random_vec(8)).map(drop)
}

/// What the library answered.
pub fn ckr<T>(result: Result<T, Error>) -> Result<T, RvError> {
    result.map_err(|error| match error {
        Error::Pkcs11(answer, _) => answer,
        other => panic!("not the library's answer: {other}"),
    })
}
