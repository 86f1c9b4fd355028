//! What docs/rigs.md has other projects type, typed.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Command;

use crate::rig::engine;

const DOCUMENT: &str = include_str!("../../../docs/rigs.md");

/// A directory with the example's seed, and what the document's lines are called here.
struct Reader {
    home: tempfile::TempDir,
    /// Of the container, or of the project.
    name: String,
    tag: String,
    port: u16,
    /// What is left behind is removed so.
    remove: &'static str,
}

impl Reader {
    fn new(what: &str, tag: String, remove: &'static str) -> Self {
        let home = tempfile::Builder::new().prefix("keyway-it-").tempdir().unwrap();
        let seed = home.path().join("seed.toml");
        std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/seed.toml"), &seed).unwrap();
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(seed, readable).unwrap();
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        Self { home, name: format!("keyway-test-{what}-{}", std::process::id()), tag, port, remove }
    }

    /// The document's words, with names that collide with nobody's and the images under test.
    fn here(&self, text: &str) -> String {
        let images = [
            ("keyway-dev --", "keyway-dev:TAG --"),
            ("image: keyway-dev", "image: keyway-dev:TAG"),
            ("image: keyway-daemon", "image: keyway-daemon:TAG"),
        ];
        let here = images.iter().fold(text.to_owned(), |text, (is, becomes)| text.replace(is, becomes));
        let here = here.replace("TAG", &self.tag).replace("127.0.0.1:50051:", &format!("127.0.0.1:{}:", self.port));
        let here = here.replace("localhost:50051", &format!("localhost:{}", self.port));
        let words = [(" kms ", " NAME "), (" kms\n", " NAME\n"), (" kms:/", " NAME:/")];
        words.iter().fold(here, |text, (is, becomes)| text.replace(is, becomes)).replace("NAME", &self.name)
    }

    /// Types it, and stops where something fails.
    #[track_caller]
    fn types(&self, lines: &str) -> String {
        let binary = Path::new(env!("CARGO_BIN_EXE_keyway")).parent().unwrap();
        let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap_or_default());
        let lines = self.here(lines);
        let output =
            Command::new("sh").args(["-exc", &lines]).current_dir(self.home.path()).env("PATH", path).output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(output.status.success(), "{lines}\n{said}");
        said
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let remove = self.remove.replace("NAME", &self.name);
        let removed = Command::new("sh").args(["-c", &remove]).current_dir(self.home.path()).output().unwrap();
        assert!(removed.status.success() || std::thread::panicking(), "{removed:?}");
    }
}

/// The blocks of one language under a heading.
#[track_caller]
fn blocks(heading: &str, language: &str) -> Vec<String> {
    let (_, rest) = DOCUMENT.split_once(&format!("\n## {heading}\n")).expect("the heading");
    let section = rest.split("\n## ").next().unwrap();
    let fence = format!("```{language}\n");
    let fenced = section.split(&fence).skip(1);
    fenced.map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

#[test]
fn the_lines_for_one_container_work_as_typed_and_so_do_its_faults() {
    let Some(engine) = engine() else { return };
    let reader = Reader::new("rig", engine.tag(), "docker rm --force --volumes NAME");
    for lines in blocks("One container", "sh") {
        reader.types(&lines);
    }
    for line in blocks("Faults", "sh")[0].lines() {
        reader.types(&format!("{line}\n"));
        if line.contains("docker start") {
            reader.types("docker exec kms keyway wait --dev data\n");
        }
        // The others stand until the next line takes them back.
        if !["disconnect", "docker pause", "docker kill"].iter().any(|stands| line.contains(stands)) {
            reader.types("docker exec kms keyway encrypt --key alias/orders /seed.toml data/ciphertext\n");
        }
    }
    reader.types(
        "for _ in $(seq 300); do\n\
         health=$(docker inspect --format '{{.State.Health.Status}}' kms | cat)\n\
         [ \"$health\" = healthy ] && exit 0\nsleep 0.2\ndone\nexit 1\n",
    );
}

#[test]
fn the_compose_file_starts_what_needs_it_once_it_is_healthy() {
    let Some(engine) = engine() else { return };
    let reader = Reader::new("rigs", engine.tag(), "docker-compose --project-name NAME down --volumes");
    std::fs::write(reader.home.path().join("docker-compose.yml"), reader.here(&blocks("With compose", "yaml")[0]))
        .unwrap();
    let said = reader.types("docker-compose --project-name NAME up --exit-code-from app\n");
    assert!(said.contains("customers' orders"), "what the app asked for: {said}");
}

#[test]
fn the_example_is_what_the_document_shows() {
    let example = include_str!("../../../examples/seed.toml");
    let shown = &blocks("The seed file", "toml")[0];
    assert!(example.ends_with(shown.as_str()), "docs/rigs.md and examples/seed.toml differ");
}
