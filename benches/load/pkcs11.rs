//! PKCS#11 alone: AES-256-GCM on a SoftHSM2 token of its own, in a child of the bench, with nothing in front of it.
//!
//! `C_EncryptInit` and `C_Encrypt`, with AAD as long as keyway's. cryptoki asks for the length of the answer first;
//! here that is a call within the process, which costs a hundredth of the encryption.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;

use crate::shared::child::{Own, cpu_time};
use crate::window::{Latencies, Measured, Phase, Window};
use crate::{Error, PLAINTEXT};

/// Where distributions keep SoftHSM2.
const SOFTHSM2: [&str; 5] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
];
/// As long as the additional data that keyway binds a ciphertext to.
const AAD: [u8; 56] = [0xa5; 56];
const TAG_BITS: u64 = 128;

/// The child, seen from the bench.
pub struct Alone {
    child: Own,
    library: String,
}

impl Alone {
    /// Starts it with a token in `home`.
    pub fn start(home: &Path, module: Option<&Path>) -> Result<Self, Error> {
        let module = module.map(Path::to_owned).or_else(installed);
        let module = module.ok_or("SoftHSM2 is not installed; on Debian and Ubuntu: apt install softhsm2")?;
        let tokens = home.join("tokens");
        std::fs::create_dir_all(&tokens)?;
        let configuration = home.join("softhsm2.conf");
        let text = format!("directories.tokendir = {}\nobjectstore.backend = file\n", tokens.display());
        std::fs::write(&configuration, text)?;
        let role = |command: &mut Command| {
            command.arg("pkcs11").arg(module).env("SOFTHSM2_CONF", configuration);
        };
        let mut child = Own::start(role)?;
        let library = child.hear()?;
        Ok(Self { child, library })
    }

    /// The library's name and version, as it says itself.
    pub fn library(&self) -> &str {
        &self.library
    }

    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Encrypts on `threads` sessions at once for this long.
    pub fn measure(&mut self, threads: usize, length: Duration) -> Result<Measured, Error> {
        self.child.tell(&format!("{threads} {}", length.as_millis()))?;
        Ok(serde_json::from_str(&self.child.hear()?)?)
    }
}

fn installed() -> Option<PathBuf> {
    SOFTHSM2.iter().map(PathBuf::from).find(|path| path.is_file())
}

/// The child: says what library it has, and then answers `<threads> <milliseconds>` with what it measured.
pub fn serve(module: &Path) -> Result<(), Error> {
    let library = Pkcs11::new(module)?;
    library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))?;
    let slot = make_token(&library)?;
    let session = library.open_rw_session(slot)?;
    session.login(UserType::User, Some(&pin()))?;
    // Kept in the token, as keyway's keys are: SoftHSM2 then unseals the key for every operation.
    let template = [
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::ValueLen(32.into()),
        Attribute::Encrypt(true),
    ];
    let key = session.generate_key(&Mechanism::AesKeyGen, &template)?;

    let info = library.get_library_info()?;
    say(&format!("{} {}", info.library_description().trim(), info.library_version()))?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (threads, milliseconds) = line.split_once(' ').ok_or("two numbers are asked for")?;
        let length = Duration::from_millis(milliseconds.parse()?);
        let measured = measure(&library, slot, key, threads.parse()?, length)?;
        say(&serde_json::to_string(&measured)?)?;
    }
    Ok(())
}

fn make_token(library: &Pkcs11) -> Result<Slot, Error> {
    let free = library.get_all_slots()?.first().copied().ok_or("there is no slot")?;
    library.init_token(free, &pin(), "bench")?;
    let session = library.open_rw_session(free)?;
    session.login(UserType::So, Some(&pin()))?;
    session.init_pin(&pin())?;
    Ok(free)
}

fn measure(
    library: &Pkcs11,
    slot: Slot,
    key: ObjectHandle,
    threads: usize,
    length: Duration,
) -> Result<Measured, Error> {
    let window = Window::new();
    std::thread::scope(|scope| {
        let mut working = Vec::new();
        for number in 0..threads {
            let session = library.open_rw_session(slot)?;
            let window = &window;
            working.push(scope.spawn(move || {
                let worked = work(&session, key, number, window);
                if worked.is_err() {
                    window.close();
                }
                worked
            }));
        }
        let passed = window.pass(length, || cpu_time(std::process::id()));
        let mut latencies = Latencies::default();
        for thread in working {
            latencies.join(thread.join().map_err(|_| "a session panicked")??);
        }
        Ok(latencies.sum_up(passed))
    })
}

fn work(
    session: &Session,
    key: ObjectHandle,
    number: usize,
    window: &Window,
) -> Result<Latencies, cryptoki::error::Error> {
    let mut latencies = Latencies::default();
    let mut nonce = [0; 12];
    nonce[8..].copy_from_slice(&u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes());
    for count in 0_u64.. {
        let phase = window.phase();
        if phase == Phase::Over {
            break;
        }
        nonce[..8].copy_from_slice(&count.to_be_bytes());
        let began = Instant::now();
        let gcm = Mechanism::AesGcm(GcmParams::new(&mut nonce, &AAD, TAG_BITS.into())?);
        session.encrypt(&gcm, key, &PLAINTEXT)?;
        if phase == Phase::Counting {
            latencies.note(began.elapsed());
        }
    }
    Ok(latencies)
}

/// The token lives as long as the run, in the run's own directory, and guards nothing.
fn pin() -> AuthPin {
    AuthPin::new("12345678".into())
}

fn say(line: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}
